//! One host: namespaces with an address on the underlay, in which everything of meshd has its default place.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::daemon::{self, Daemon};
use super::place::{Place, Space};
use super::pod::{self, Pod, PodPlan};
use super::process::{Ran, run};
use super::wait::{pace, wait_for};
use super::world::{Backend, World};

/// What a host shall be.
#[derive(Debug, Clone)]
pub struct HostPlan {
    name: String,
    pods: bool,
}

impl HostPlan {
    /// A node of a Kubernetes-like cluster: forwards, and has a CNI configuration with pod ranges of its own.
    pub fn node(name: &str) -> Self {
        Self { name: name.to_owned(), pods: true }
    }

    /// A plain machine.
    pub fn vm(name: &str) -> Self {
        Self { name: name.to_owned(), pods: false }
    }
}

/// A host. Dropping it ends everything that runs in it.
#[derive(Debug)]
pub struct Host {
    space: Space,
    number: u32,
    pods: bool,
    backend: Backend,
    log: PathBuf,
    daemon: RefCell<Option<Daemon>>,
    /// The file that daemons are started from, where it is not the one under test itself.
    installed: RefCell<Option<String>>,
}

impl Place for Host {
    fn space(&self) -> &Space {
        &self.space
    }
}

/// Private file systems, which vanish with the namespace: `/run` anew, `/etc` and `/var/lib` as layers over the real
/// ones. The programs under test and the CNI plugins see their usual paths.
const FILES: &str = "
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/layers/etc /run/layers/etc.work /run/layers/lib /run/layers/lib.work
mount -t overlay -o lowerdir=/etc,upperdir=/run/layers/etc,workdir=/run/layers/etc.work overlay /etc
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/layers/lib,workdir=/run/layers/lib.work overlay /var/lib
rm -rf /etc/meshd /etc/cni /var/lib/meshd /var/lib/cni
mkdir -p /run/wireguard /run/meshd /etc/meshd /etc/cni/net.d /var/lib/cni
install -d -m 700 /var/lib/meshd
ip link set lo up
for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$filter; done
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
";

impl Host {
    pub(super) fn new(world: &World, number: u32, plan: &HostPlan) -> Result<Self> {
        ensure!(number < 250, "the underlay has room for 249 hosts");
        let space = Space::new(&plan.name, FILES)?;
        let host = Self {
            number,
            pods: plan.pods,
            backend: world.backend(),
            log: world.logs().join(format!("{}.log", plan.name)),
            daemon: RefCell::new(None),
            installed: RefCell::new(None),
            space,
        };
        let (port, pid) = (host.port(), host.space.pid());
        let batch = format!(
            "link add {port} type veth peer name eth0 address {} netns {pid}\n\
             link set {port} addrgenmode none\n\
             link set {port} master br0 up\n",
            mac(number)
        );
        world.try_run_with(&["ip", "-batch", "-"], &batch)?.ok()?;
        let mut batch = format!(
            "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add default via 192.0.2.254\nroute add default via 2001:db8::fe\n",
            host.address(),
            host.address6()
        );
        for other in (1..=world.crowd()).filter(|other| *other != number) {
            for address in [format!("192.0.2.{other}"), format!("2001:db8::{other}")] {
                batch += &format!(
                    "neigh replace {address} lladdr {} dev eth0 nud permanent\n",
                    mac(other)
                );
            }
        }
        host.try_run_with(&["ip", "-batch", "-"], &batch)?.ok()?;
        if host.pods {
            host.write("/etc/cni/net.d/10-pods.conflist", &pod::conflist(number, false))?;
        }
        host.configure("")?;
        Ok(host)
    }

    /// Its number in the world, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its IPv4 address on the underlay.
    pub fn address(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    /// Its IPv6 address on the underlay.
    pub fn address6(&self) -> String {
        format!("2001:db8::{}", self.number)
    }

    /// The name of its port on the underlay's bridge.
    pub(super) fn port(&self) -> String {
        format!("v{}", self.number)
    }

    /// The pod ranges of this host: none for a plain machine.
    pub fn pod_prefixes(&self) -> Vec<String> {
        if self.pods { pod::ranges(self.number).to_vec() } else { Vec::new() }
    }

    /// Makes a pod by the CNI plugins.
    pub fn pod(&self, plan: &PodPlan) -> Result<Pod> {
        Pod::new(self, plan)
    }

    /// Writes `/etc/meshd/meshd.toml`: the backend under test, then `more` (TOML with its own section headers; what
    /// belongs to `[wireguard]` comes first).
    pub fn configure(&self, more: &str) -> Result<()> {
        let text = format!("[wireguard]\nbackend = \"{}\"\n{more}\n", self.backend.name());
        self.write("/etc/meshd/meshd.toml", &text)
    }

    /// Starts the daemon and waits until its socket answers.
    pub fn start_daemon(&self) -> Result<Duration> {
        let started = Instant::now();
        self.launch_daemon()?;
        wait_for(&format!("the daemon of {} answers", self.name()), pace(10), || {
            self.check_daemon()?;
            self.meshctl(&["status", "-o", "json"])?.ok()
        })?;
        Ok(started.elapsed())
    }

    /// Starts the daemon without waiting.
    pub fn launch_daemon(&self) -> Result<()> {
        let daemon = Daemon::launch(self, &self.log)?;
        self.daemon.replace(Some(daemon));
        Ok(())
    }

    /// An error if the daemon has ended.
    pub fn check_daemon(&self) -> Result<()> {
        match self.daemon.borrow_mut().as_mut() {
            Some(daemon) => daemon.check().with_context(|| self.log_tail()),
            None => anyhow::bail!("{} has no daemon", self.name()),
        }
    }

    /// Runs `work` with the daemon that was started last.
    pub fn with_daemon<T>(&self, work: impl FnOnce(&mut Daemon) -> Result<T>) -> Result<T> {
        let mut daemon = self.daemon.borrow_mut();
        work(daemon.as_mut().with_context(|| format!("{} has no daemon", self.name()))?)
    }

    /// `kill -9`, and waits for the end.
    pub fn kill_daemon(&self) -> Result<()> {
        self.with_daemon(Daemon::kill)
    }

    /// SIGTERM, and waits for an orderly end.
    pub fn stop_daemon(&self) -> Result<Duration> {
        self.with_daemon(Daemon::terminate)
    }

    /// SIGHUP: read the configuration again.
    pub fn reload_daemon(&self) -> Result<()> {
        self.with_daemon(|daemon| daemon.signal(nix::sys::signal::Signal::SIGHUP))
    }

    /// `meshctl` with arguments, whatever its exit code.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<Ran> {
        self.meshctl_with(arguments, "")
    }

    /// `meshctl` with arguments and standard input, whatever its exit code.
    pub fn meshctl_with(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let mut command = self.program("meshctl")?;
        command.args(arguments);
        run(command, input, pace(60))
    }

    /// One of the programs under test, to be started in here.
    pub fn program(&self, name: &str) -> Result<Command> {
        Ok(self.command(&self.program_path(name)?))
    }

    /// Puts a copy of the daemon with `mark` at its end where daemons of this host are started from now on, by renaming it
    /// over what is there, as a package manager does. A running daemon goes on with the old file.
    pub fn install_daemon(&self, mark: &str) -> Result<()> {
        const INSTALLED: &str = "/run/installed/meshd";
        let built = daemon::binary("meshd")?;
        self.sh(&format!(
            "mkdir -p /run/installed; cp {} {INSTALLED}.new; printf %s '{mark}' >>{INSTALLED}.new
             mv -f {INSTALLED}.new {INSTALLED}",
            built.display()
        ))?;
        self.installed.replace(Some(INSTALLED.to_owned()));
        Ok(())
    }

    /// The path of a program of this project.
    pub fn program_path(&self, name: &str) -> Result<String> {
        if name == "meshd"
            && let Some(path) = self.installed.borrow().as_ref()
        {
            return Ok(path.clone());
        }
        Ok(daemon::binary(name)?.to_string_lossy().into_owned())
    }

    /// When the daemon last logged a line with `text`, since `since`.
    pub fn last_logged(&self, text: &str, since: SystemTime) -> Result<Option<SystemTime>> {
        let log = std::fs::read_to_string(&self.log)?;
        let Some(line) = log.lines().rev().find(|line| line.contains(text)) else {
            return Ok(None);
        };
        let stamp = line.split_whitespace().next().unwrap_or_default();
        let time = OffsetDateTime::parse(stamp, &Rfc3339).with_context(|| line.to_owned())?;
        Ok(Some(SystemTime::from(time)).filter(|time| *time >= since))
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

fn mac(number: u32) -> String {
    format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 255)
}
