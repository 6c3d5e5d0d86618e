//! What processes cost, from `/proc`.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use meshd_tests::harness::{Host, Place};

/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux that user space sees (`USER_HZ`).
const TICKS: f64 = 100.0;

/// One look at a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Resident memory, KiB.
    pub(crate) rss_kib: u64,
    /// Its share of what is resident, KiB.
    pub(crate) pss_kib: u64,
    /// Seconds of processor time since its start.
    pub(crate) cpu_seconds: f64,
}

impl Cost {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |name: &str| -> Result<u64> {
            let line =
                rollup.lines().find(|line| line.starts_with(name)).context("no such line")?;
            Ok(line.split_whitespace().nth(1).context("no value")?.parse()?)
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name, which may hold spaces.
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| -> Result<f64> {
            Ok(fields.get(index).context("a short line")?.parse()?)
        };
        Ok(Self {
            rss_kib: kib("Rss:")?,
            pss_kib: kib("Pss:")?,
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS,
        })
    }
}

/// The process of the daemon.
pub(crate) fn daemon(host: &Host) -> Result<u32> {
    host.with_daemon(|daemon| Ok(daemon.pid()))
}

/// The process behind a userspace device of this host, if there is one.
pub(crate) fn userspace(host: &Host) -> Result<Option<u32>> {
    let namespace = inode(Path::new(&format!("/proc/{}/ns/net", host.space().pid())))?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let is_device = name.starts_with("wireguard") || name.starts_with("boringtun");
        // Processes come and go: one that has gone is not it.
        if is_device && inode(&entry.path().join("ns/net")).is_ok_and(|found| found == namespace) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn inode(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.st_ino())
}
