//! What is printed.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

/// Figures in the order in which they came.
#[derive(Default)]
pub(crate) struct Figures {
    lines: Vec<(String, String, Value)>,
}

impl Figures {
    /// One number.
    pub(crate) fn add(&mut self, key: &str, what: &str, value: f64, unit: &str) {
        let digits = if value.fract() == 0.0 { 0 } else { 3 };
        let shown = format!("{what:<62} {value:>12.digits$} {unit}");
        self.tell(key, shown, json!(value));
    }

    /// Median, 99th percentile and maximum of times.
    pub(crate) fn add_times(&mut self, key: &str, what: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let [p50, p99, max] = [50, 99, 100].map(|share| at(&times, share).as_secs_f64() * 1e3);
        let shown = format!("{what:<44} {p50:>9.1} {p99:>9.1} {max:>9.1} ms (p50 p99 max)");
        self.tell(key, shown, json!({ "p50_ms": p50, "p99_ms": p99, "max_ms": max }));
    }

    fn tell(&mut self, key: &str, shown: String, value: Value) {
        eprintln!("  {shown}");
        self.lines.push((key.to_owned(), shown, value));
    }

    /// All of them, by key.
    pub(crate) fn to_json(&self, nodes: usize, seed: u64) -> Value {
        let figures: serde_json::Map<String, Value> =
            self.lines.iter().map(|(key, _, value)| (key.clone(), value.clone())).collect();
        json!({ "nodes": nodes, "seed": seed, "figures": figures })
    }
}

/// The value that `share` percent are not above.
fn at(sorted: &[Duration], share: usize) -> Duration {
    let place = (sorted.len() * share).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or_default()
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(_, shown, _)| writeln!(f, "  {shown}"))
    }
}
