//! The underlay, and the frame that a scenario runs in.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::capture::Capture;
use super::host::{Host, HostPlan};
use super::place::{Place, Space};

/// Which WireGuard the daemons are told to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's.
    Kernel,
    /// A process (wireguard-go).
    Userspace,
}

impl Backend {
    /// From `MESHD_TEST_BACKEND`: `kernel` or `userspace` (the default).
    pub fn from_environment() -> Result<Self> {
        match std::env::var("MESHD_TEST_BACKEND").as_deref() {
            Ok("kernel") => Ok(Self::Kernel),
            Ok("userspace") | Err(_) => Ok(Self::Userspace),
            Ok(other) => {
                anyhow::bail!("MESHD_TEST_BACKEND={other} is not known; set kernel or userspace")
            }
        }
    }

    /// As in the configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// An underlay network 192.0.2.0/24 and 2001:db8::/64 on a bridge in a namespace of its own. Host number N has the
/// addresses 192.0.2.N and 2001:db8::N (N written in decimal); the bridge is everybody's default router and drops what it
/// gets, so that packets that miss the mesh still show in a capture.
#[derive(Debug)]
pub struct World {
    wire: Space,
    logs: PathBuf,
    backend: Backend,
    hosts: Cell<u32>,
    crowd: u32,
}

impl Place for World {
    fn space(&self) -> &Space {
        &self.wire
    }
}

impl World {
    /// An underlay without hosts. Daemons' logs go to `logs`. With `crowd` above zero, each host knows the link
    /// addresses of hosts 1 to `crowd` for good: all namespaces of a kernel share one neighbour table of 1,024 entries,
    /// which a full mesh of 33 hosts overflows, and the underlay then drops packets.
    pub fn new(logs: &Path, crowd: u32) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces need root; use sudo");
        std::fs::create_dir_all(logs).with_context(|| format!("directory {}", logs.display()))?;
        let wire = Space::new(
            "underlay",
            "ip link set lo up
             ip link add br0 type bridge mcast_snooping 0
             ip link add br1 type bridge mcast_snooping 0
             ip link add cable0 master br0 type veth peer name cable1
             ip link set cable1 master br1 up
             ip link set br0 up
             ip link set br1 up
             ip addr add 192.0.2.254/24 dev br0
             ip addr add 2001:db8::fe/64 dev br0 nodad
             ip route add 239.0.0.0/8 dev br0",
        )?;
        Ok(Self {
            wire,
            logs: logs.to_owned(),
            backend: Backend::from_environment()?,
            hosts: Cell::new(0),
            crowd,
        })
    }

    /// Adds a host.
    pub fn host(&self, plan: &HostPlan) -> Result<Host> {
        let number = self.hosts.get() + 1;
        self.hosts.set(number);
        Host::new(self, number, plan)
    }

    /// The WireGuard that daemons are told to use.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Where daemons' logs and captures are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// How many hosts know each other's link addresses for good.
    pub(super) fn crowd(&self) -> u32 {
        self.crowd
    }

    /// Records every packet on the underlay, from now.
    pub fn capture(&self, name: &str) -> Result<Capture> {
        Capture::start(self, &self.logs.join(format!("{name}.pcap")))
    }

    /// Takes hosts to a bridge of their own: they reach each other and nobody else.
    pub fn part(&self, hosts: &[&Host]) -> Result<()> {
        let batch: String =
            hosts.iter().map(|h| format!("link set {} master br1\n", h.port())).collect();
        self.try_run_with(&["ip", "-batch", "-"], &batch)?.ok().map(drop)
    }

    /// Joins the two bridges. No host's own port is touched: within the halves nothing is lost.
    pub fn heal(&self) -> Result<()> {
        self.run(&["ip", "link", "set", "cable0", "up"]).map(drop)
    }

    /// Makes a host's link larger or smaller than 1,500 bytes; best before its daemon starts.
    pub fn link_mtu(&self, host: &Host, mtu: u32) -> Result<()> {
        self.run(&["ip", "link", "set", &host.port(), "mtu", &mtu.to_string()])?;
        host.run(&["ip", "link", "set", "eth0", "mtu", &mtu.to_string()]).map(drop)
    }

    /// Cuts or mends a host's cable.
    pub fn cable(&self, host: &Host, up: bool) -> Result<()> {
        self.run(&["ip", "link", "set", &host.port(), if up { "up" } else { "down" }]).map(drop)
    }
}

/// Runs `body` in a world of its own; when it fails, the last lines of each daemon's log are printed beside the reason.
///
/// # Panics
/// When `body` fails: that is how a test fails.
pub fn scenario(name: &str, body: impl FnOnce(&World) -> Result<()>) {
    crowded_scenario(name, 0, body);
}

/// As [`scenario`], with `crowd` hosts that know each other's link addresses (see [`World::new`]).
pub fn crowded_scenario(name: &str, crowd: u32, body: impl FnOnce(&World) -> Result<()>) {
    let logs = std::env::var_os("MESHD_TEST_LOGS").map_or_else(std::env::temp_dir, PathBuf::from);
    let logs = logs.join(format!("meshd-{name}-{}", std::process::id()));
    let started = Instant::now();
    let report = LogsOnPanic(&logs);
    let result = World::new(&logs, crowd).and_then(|world| body(&world));
    match result {
        Ok(()) => println!("{name}: {:.1} s", started.elapsed().as_secs_f64()),
        Err(why) => panic!("{why:#}"),
    }
    drop(report);
    if std::env::var_os("MESHD_TEST_LOGS").is_none() {
        let _ = std::fs::remove_dir_all(&logs);
    }
}

struct LogsOnPanic<'a>(&'a Path);

impl Drop for LogsOnPanic<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(self.0) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "log"));
        paths.sort();
        for path in paths.iter().take(6) {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(25)..];
            eprintln!("--- last lines of {}\n{}", path.display(), tail.join("\n"));
        }
    }
}
