//! WireGuard in a process of its own, where the kernel has none.
//!
//! Responsible for starting that process so that it outlives the daemon, for knowing whether it is
//! alive, and for ending it. Not for what it is told: that is `uapi` and the data plane above.
//!
//! Under systemd the process is `meshd-wg@INTERFACE.service`; elsewhere it is a child of the daemon, which outlives it.

pub(crate) mod uapi;

use std::{
    env, fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use meshd_core::plan::Backend;
use nix::{
    errno::Errno,
    sys::inotify::{InitFlags, Inotify},
};

use super::{
    DataplaneError,
    linux::{
        link::{self, Link},
        netlink::Netlink,
    },
};

/// Used when `WG_USERSPACE_IMPLEMENTATION` does not name another.
const DEFAULT_PROGRAM: &str = "wireguard-go";
const TUN: &str = "/dev/net/tun";
const NO_TUN: &str = "there is no /dev/net/tun";
const FIX_TUN: &str = "load the tun module, or give this container the device";
const NO_PROGRAM: &str = "the program is not installed";
const FIX_PROGRAM: &str = "install wireguard-go, or name another in WG_USERSPACE_IMPLEMENTATION";
const FIX_ENDED: &str = "run it by hand to see why; it needs CAP_NET_ADMIN and /dev/net/tun";
/// wireguard-go and boringtun know it.
const FOREGROUND: &str = "-f";
/// All that a thread needs which waits and logs once.
const REAPER_STACK: usize = 64 * 1024;
/// Longest wait for the process to be there, or gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at what we wait for: the first, and the longest after it was doubled again and again.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// Starts a process for the interface and marks the TUN as ours. There must be no such interface yet.
pub(crate) fn start(netlink: &Netlink, name: &str) -> Result<(), DataplaneError> {
    // Ours may still be ending, because somebody deleted its TUN. One that stays is in another network
    // namespace: taking its socket away would end it.
    wait_for("end the former userspace WireGuard", name, || {
        Ok((!uapi::is_alive(name)).then_some(()))
    })
    .map_err(|_| DataplaneError::Userspace {
        name: name.to_owned(),
        program: program(),
        reason: format!("another process answers at {}", uapi::socket_path(name).display()),
        fix: "stop it, or give each network namespace a /run/wireguard of its own",
    })?;
    // A stale socket of a process that was killed.
    let _ = fs::remove_file(uapi::socket_path(name));
    let link = begin(netlink, name).map_err(|error| match error {
        DataplaneError::Timeout { .. } | DataplaneError::Userspace { .. } => {
            starved(name).unwrap_or(error)
        }
        error => error,
    })?;
    link::mark_as_ours(netlink, name, link.index)
}

fn begin(netlink: &Netlink, name: &str) -> Result<Link, DataplaneError> {
    let mut child = if systemd::start(name)? { None } else { Some(spawn(name)?) };
    let link = wait_for("start userspace WireGuard", name, || {
        let status = child.as_mut().map(Child::try_wait).transpose();
        let status = status.map_err(|e| ended(name, e.to_string(), FIX_ENDED))?.flatten();
        // One that knows no foreground may have put itself into the background.
        if let Some(status) = status.filter(|status| !status.success()) {
            return Err(ended(name, format!("it ended with {status}"), FIX_ENDED));
        }
        Ok(link::find(netlink, name)?.filter(|_| uapi::is_alive(name)))
    });
    let Some(mut child) = child else { return link };
    if link.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
    }
    reap(child, name)
        .map_err(|e| ended(name, e.to_string(), "let the daemon have more threads"))?;
    link
}

/// wireguard-go watches its socket by inotify, and ends without a word when the kernel gives its user no more of that.
fn starved(name: &str) -> Option<DataplaneError> {
    let none_left = Inotify::init(InitFlags::IN_CLOEXEC).is_err_and(|errno| errno == Errno::EMFILE);
    none_left.then(|| DataplaneError::Userspace {
        name: name.to_owned(),
        program: program(),
        reason: "the kernel gives this user no more inotify instances".to_owned(),
        fix: "raise fs.inotify.max_user_instances by sysctl (128 unless it was set)",
    })
}

/// True when the TUN of ours has a process behind it.
pub(crate) fn is_alive(name: &str) -> bool {
    uapi::is_alive(name)
}

/// Ends the process and removes its TUN and socket.
pub(crate) fn stop(netlink: &Netlink, name: &str, link: &Link) -> Result<(), DataplaneError> {
    systemd::stop(name)?;
    // Either of these ends wireguard-go and boringtun.
    let _ = fs::remove_file(uapi::socket_path(name));
    link::delete(netlink, name, link.index)?;
    let is_gone = || {
        let still_ours = link::find(netlink, name)?.is_some_and(|now| {
            now.index == link.index && now.own_backend() == Some(Backend::Userspace)
        });
        Ok((!still_ours).then_some(()))
    };
    wait_for("end userspace WireGuard", name, is_gone)
}

/// Looks whether a process could be started.
pub(crate) fn check_installed(name: &str) -> Result<Backend, DataplaneError> {
    let program = program();
    let missing = |reason: &str, fix| DataplaneError::Userspace {
        name: name.to_owned(),
        program: program.clone(),
        reason: reason.to_owned(),
        fix,
    };
    if !Path::new(TUN).exists() {
        return Err(missing(NO_TUN, FIX_TUN));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // `join` takes an absolute program as it is.
    if env::split_paths(&path).any(|directory| directory.join(&program).is_file()) {
        Ok(Backend::Userspace)
    } else {
        Err(missing(NO_PROGRAM, FIX_PROGRAM))
    }
}

/// The program to start.
fn program() -> String {
    env::var("WG_USERSPACE_IMPLEMENTATION").unwrap_or_else(|_| DEFAULT_PROGRAM.to_owned())
}

/// Starts the program, which stays our child: sending itself into the background it would start twice.
fn spawn(name: &str) -> Result<Child, DataplaneError> {
    let failed = |reason: String, fix| ended(name, reason, fix);
    if !Path::new(TUN).exists() {
        return Err(failed(NO_TUN.to_owned(), FIX_TUN));
    }
    let child = Command::new(program())
        .args([FOREGROUND, name])
        // boringtun would otherwise try to become the user who logged in.
        .env("WG_SUDO", "1")
        // A group of its own: what a terminal sends to the daemon's is not for the tunnel.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed(NO_PROGRAM.to_owned(), FIX_PROGRAM),
        _ => failed(e.to_string(), "check that it can be executed"),
    })
}

fn ended(name: &str, reason: String, fix: &'static str) -> DataplaneError {
    DataplaneError::Userspace { name: name.to_owned(), program: program(), reason, fix }
}

/// Waits for the end of the process, which may be years from now: else it would stay as a zombie.
fn reap(mut child: Child, name: &str) -> io::Result<()> {
    let name = name.to_owned();
    let wait = move || match child.wait() {
        Ok(status) => tracing::info!(%status, "the userspace WireGuard of {name} has ended"),
        Err(error) => tracing::warn!(%error, "the userspace WireGuard of {name} is not watched"),
    };
    thread::Builder::new().name("reaper".to_owned()).stack_size(REAPER_STACK).spawn(wait).map(drop)
}

/// The status, or `None` (and the child killed) when it does not end in time.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL.1);
    }
}

fn wait_for<T>(
    action: &'static str,
    name: &str,
    mut look: impl FnMut() -> Result<Option<T>, DataplaneError>,
) -> Result<T, DataplaneError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = POLL.0;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(DataplaneError::Timeout {
                action,
                program: format!("{} for {name}", program()),
                within: PATIENCE,
            });
        }
        thread::sleep(pause);
        pause = POLL.1.min(pause * 2);
    }
}

/// The unit `meshd-wg@INTERFACE.service`.
mod systemd {
    use super::{Command, DataplaneError, ExitStatus, Stdio, env, fs, io, wait};

    /// True when systemd started the unit; false when it does not run us or does not know the unit.
    pub(super) fn start(name: &str) -> Result<bool, DataplaneError> {
        if !runs_us() || !knows(name) {
            return Ok(false);
        }
        let unit = unit(name);
        let failed = |reason: String| DataplaneError::Userspace {
            name: name.to_owned(),
            program: unit.clone(),
            reason,
            fix: "look at `systemctl status` and `journalctl -u` of that unit",
        };
        // A unit that failed before may be over its start limit.
        let _ = systemctl(&["reset-failed", &unit]);
        match systemctl(&["restart", &unit]).map_err(|e| failed(e.to_string()))? {
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(failed(format!("systemctl ended with {status}"))),
            None => Err(failed("systemctl did not answer".to_owned())),
        }
    }

    /// Stops the unit if systemd has one running in our network namespace.
    pub(super) fn stop(name: &str) -> Result<(), DataplaneError> {
        let unit = unit(name);
        if !runs_here(&unit) {
            return Ok(());
        }
        match systemctl(&["stop", &unit]) {
            Ok(Some(status)) if status.success() => Ok(()),
            _ => Err(DataplaneError::Userspace {
                name: name.to_owned(),
                program: unit,
                reason: "systemctl could not stop it".to_owned(),
                fix: "stop it by hand",
            }),
        }
    }

    /// `SYSTEMD_EXEC_PID` is ours only in the unit's own process; `INVOCATION_ID` alone is inherited by everything
    /// below, e.g. by tests in a CI runner's service.
    fn runs_us() -> bool {
        let own = std::process::id().to_string();
        env::var_os("INVOCATION_ID").is_some()
            && env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == own)
    }

    /// The unit's process is in our network namespace. Elsewhere it is another daemon's.
    fn runs_here(unit: &str) -> bool {
        let shown = Command::new("systemctl")
            .args(["show", "--property=MainPID", "--value", unit])
            .stdin(Stdio::null())
            .output();
        let Ok(output) = shown else { return false };
        let Ok(pid) = String::from_utf8_lossy(&output.stdout).trim().parse::<u32>() else {
            return false;
        };
        let namespace = |process: String| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        pid != 0
            && namespace(pid.to_string())
                .is_some_and(|theirs| namespace("thread-self".to_owned()) == Some(theirs))
    }

    fn knows(name: &str) -> bool {
        systemctl(&["cat", &unit(name)]).is_ok_and(|status| status.is_some_and(|s| s.success()))
    }

    fn unit(name: &str) -> String {
        format!("meshd-wg@{name}.service")
    }

    fn systemctl(arguments: &[&str]) -> io::Result<Option<ExitStatus>> {
        let mut child = Command::new("systemctl")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait(&mut child)
    }
}
