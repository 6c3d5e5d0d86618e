//! What netlink announces inside a host, with its moment: what polling with `ip` and `wg` would blur.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::place::Place;
use super::process::Running;
use super::wait::{pace, wait_for};

/// A routing table that nobody uses: its routes mark moments.
const MARKERS: &str = "999";

/// A running `ip monitor route`.
#[derive(Debug)]
pub struct Monitor {
    ip: Running,
}

impl Monitor {
    /// Returns when it is seen to listen.
    pub fn start<P: Place>(host: &P) -> Result<Self> {
        let mut monitor = Self { ip: host.start(&["ip", "-ts", "monitor", "route"])? };
        wait_for("`ip monitor` listens", pace(10), || {
            // Told only of what comes after it began to listen: mark until it tells.
            mark(host)?;
            ensure!(!monitor.of(MARKERS)?.is_empty(), "it told nothing yet");
            Ok(())
        })?;
        Ok(monitor)
    }

    /// Marks this moment: [`Monitor::last_after_mark`] counts from here.
    pub fn mark<P: Place>(&mut self, host: &P) -> Result<()> {
        let before = self.of(MARKERS)?.len();
        mark(host)?;
        wait_for("the mark is told", pace(5), || {
            ensure!(self.of(MARKERS)?.len() >= before + 2, "not yet");
            Ok(())
        })
    }

    /// When the last mark was set, as a time of day: all monitors have one clock.
    pub fn marked(&mut self) -> Result<Duration> {
        self.of(MARKERS)?.last().copied().context("no mark was set")
    }

    /// How long after the last mark the last change of `table` came, and how many there were since.
    pub fn last_after_mark(&mut self, table: u32) -> Result<(Duration, usize)> {
        let mark = self.marked()?;
        self.last_after(mark, table)
    }

    /// How long after `mark` the last change of `table` came, and how many there were since.
    pub fn last_after(&mut self, mark: Duration, table: u32) -> Result<(Duration, usize)> {
        let changes: Vec<Duration> = self
            .of(&table.to_string())?
            .into_iter()
            .map(|at| at.checked_sub(mark).unwrap_or_else(|| at + DAY - mark))
            .filter(|after| *after < DAY / 2)
            .collect();
        let last = *changes.last().with_context(|| format!("table {table} did not change"))?;
        Ok((last, changes.len()))
    }

    /// The times of day at which routes of `table` came or went, in their order.
    fn of(&mut self, table: &str) -> Result<Vec<Duration>> {
        ensure!(self.ip.ended()?.is_none(), "`ip monitor` has ended");
        let said = self.ip.output_so_far()?;
        // The last line may be half written.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole
            .lines()
            .filter(|line| {
                let mut words = line.split_whitespace();
                words.any(|word| word == "table") && words.next() == Some(table)
            })
            .map(time_of_day)
            .collect()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn mark<P: Place>(host: &P) -> Result<()> {
    let batch = format!(
        "route add unreachable 192.0.2.255/32 table {MARKERS}\nroute del unreachable 192.0.2.255/32 table {MARKERS}\n"
    );
    host.try_run_with(&["ip", "-batch", "-"], &batch)?.ok().map(drop)
}

/// Of a line such as `[2026-01-02T03:04:05.678901] 10.1.0.0/16 dev mesh0 table 51820`.
fn time_of_day(line: &str) -> Result<Duration> {
    let clock = || {
        let stamp = line.strip_prefix('[')?.split_once(']')?.0.split_once('T')?.1;
        let mut parts = stamp.splitn(3, ':');
        let hours: u64 = parts.next()?.parse().ok()?;
        let minutes: u64 = parts.next()?.parse().ok()?;
        let seconds: f64 = parts.next()?.parse().ok()?;
        Some(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds))
    };
    clock().with_context(|| format!("`ip -ts monitor` printed {line:?}"))
}
