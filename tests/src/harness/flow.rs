//! A flow of numbered packets between two places, both ways, through the program `udpflow`.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::daemon::binary;
use super::place::Place;
use super::process::Running;
use super::wait::pace;

/// What one end of a flow has seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Direction {
    /// Packets that this end sent.
    pub sent: u32,
    /// Sends that failed, by what the system said.
    pub send_errors: std::collections::BTreeMap<String, u32>,
    /// Packets that should have arrived here.
    pub expected: u32,
    /// Different packets that arrived here.
    pub received: u32,
    /// Packets that did not arrive here.
    pub lost: u32,
    /// Packets that arrived more than once.
    pub duplicates: u32,
    /// Packets that arrived after one with a higher number.
    pub reordered: u32,
    /// The longest time without a packet.
    pub longest_gap_ms: f64,
    /// What was lost, at most 20 entries.
    pub gaps: Vec<Gap>,
}

/// Consecutive packets that were lost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gap {
    /// When the first of them was sent, in seconds after the start.
    pub at_seconds: f64,
    /// How many.
    pub packets: u32,
}

/// A running flow.
#[derive(Debug)]
pub struct Flow {
    name: String,
    ends: [Running; 2],
    limit: Duration,
}

/// Both ends of a flow.
#[derive(Debug, Clone)]
pub struct FlowReport {
    /// What the first end saw.
    pub first: Direction,
    /// What the second end saw.
    pub second: Direction,
}

impl FlowReport {
    /// An error that shows the gaps unless every packet arrived.
    pub fn nothing_lost(&self, what: &str) -> Result<()> {
        for end in [&self.first, &self.second] {
            ensure!(end.lost == 0 && end.send_errors.is_empty(), "{what}: {end:?}");
            ensure!(end.received == end.expected && end.expected > 0, "{what}: {end:?}");
        }
        Ok(())
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let (a, b) = (&self.first, &self.second);
        format!(
            "{} and {} packets, lost {} and {}, longest gaps {:.0} and {:.0} ms",
            a.expected, b.expected, a.lost, b.lost, a.longest_gap_ms, b.longest_gap_ms
        )
    }
}

impl Flow {
    /// Starts `packets_per_second` both ways between two addresses, for `seconds` after both ends have heard each other.
    pub fn start(
        first: (&dyn Place, &str),
        second: (&dyn Place, &str),
        packets_per_second: u32,
        seconds: u32,
    ) -> Result<Self> {
        let program = binary("udpflow")?.to_string_lossy().into_owned();
        let (rate, length) = (packets_per_second.to_string(), seconds.to_string());
        // Flows that meet at one address need a port each.
        static PORT: AtomicU16 = AtomicU16::new(9000);
        let port = PORT.fetch_add(1, Ordering::Relaxed).to_string();
        let end = |here: (&dyn Place, &str), there: &str| {
            let arguments = [
                &program,
                "--bind",
                here.1,
                "--to",
                there,
                "--port",
                &port,
                "--rate",
                &rate,
                "--seconds",
                &length,
            ];
            here.0.start(&arguments)
        };
        Ok(Self {
            name: format!("{} - {}", first.0.name(), second.0.name()),
            ends: [end(first, second.1)?, end(second, first.1)?],
            limit: Duration::from_secs(u64::from(seconds)) + pace(30),
        })
    }

    /// Waits for the end of both.
    pub fn report(self) -> Result<FlowReport> {
        let [first, second] = self.ends.map(|end| -> Result<Direction> {
            let ran = end.finish(self.limit)?.ok()?;
            serde_json::from_str(&ran.stdout)
                .with_context(|| format!("udpflow said {}", ran.stdout))
        });
        let context = || format!("flow {}", self.name);
        Ok(FlowReport {
            first: first.with_context(context)?,
            second: second.with_context(context)?,
        })
    }
}
