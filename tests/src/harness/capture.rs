//! Every packet on the underlay, by tcpdump.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::place::Place;
use super::process::{Running, run};
use super::wait::{pace, wait_for};
use super::world::World;

/// A group that only markers are sent to: a marker in the file proves that everything before it is there too.
const MARKER_GROUP: &str = "239.255.77.77";

/// A running capture. [`Capture::stop`] ends it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    file: PathBuf,
}

impl Capture {
    /// Returns when tcpdump says that it listens.
    pub(super) fn start(world: &World, file: &Path) -> Result<Self> {
        let path = file.to_string_lossy();
        let mut tcpdump = world.start(&[
            "tcpdump",
            "-i",
            "br0",
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
            &path,
        ])?;
        wait_for("tcpdump listens", pace(10), || {
            let said = tcpdump.errors_so_far()?;
            ensure!(tcpdump.ended()?.is_none(), "tcpdump has ended: {said}");
            ensure!(said.contains("listening on"), "it said: {said}");
            Ok(())
        })?;
        Ok(Self { tcpdump, file: file.to_owned() })
    }

    /// Ends the capture when all packets that were sent before this call are in the file.
    pub fn stop(self, world: &World) -> Result<Captured> {
        let marker = format!("meshd-capture-{}", self.file.display());
        world.run(&["bash", "-c", &format!("printf %s '{marker}' >/dev/udp/{MARKER_GROUP}/9")])?;
        wait_for("the capture has the marker", pace(10), || {
            let bytes = std::fs::read(&self.file)?;
            let found = bytes.windows(marker.len()).any(|w| w == marker.as_bytes());
            ensure!(found, "{} bytes without it", bytes.len());
            Ok(())
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.finish(pace(10))?;
        Ok(Captured { file: self.file })
    }
}

/// A finished capture.
#[derive(Debug)]
pub struct Captured {
    file: PathBuf,
}

impl Captured {
    /// The packets that match a filter of tcpdump's language, a line each. Markers are left out.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>> {
        let mut command = std::process::Command::new("tcpdump");
        let filter = format!("not dst host {MARKER_GROUP} and ({filter})");
        command.args(["-n", "-tt", "-r"]).arg(&self.file).arg(filter);
        let ran = run(command, "", Duration::from_secs(60))?.ok().context("reading a capture")?;
        Ok(ran.stdout.lines().map(str::to_owned).collect())
    }
}
