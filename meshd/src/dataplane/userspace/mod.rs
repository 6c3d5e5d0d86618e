//! WireGuard in a process of its own, where the kernel has none.
//!
//! Responsible for starting that process so that it outlives the daemon, for knowing whether it is
//! alive, and for ending it. Not for what it is told: that is `uapi` and the data plane above.
//!
//! Under systemd the process is `meshd-wg@INTERFACE.service`; elsewhere it detaches itself, as
//! wireguard-go and boringtun do.

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
/// Longest wait for the process to be there, or gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at what we wait for.
const POLL: Duration = Duration::from_millis(10);

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
        DataplaneError::Timeout { .. } => starved(name).unwrap_or(error),
        error => error,
    })?;
    link::mark_as_ours(netlink, name, link.index)
}

fn begin(netlink: &Netlink, name: &str) -> Result<Link, DataplaneError> {
    if !systemd::start(name)? {
        detach(name)?;
    }
    wait_for("start userspace WireGuard", name, || {
        Ok(link::find(netlink, name)?.filter(|_| uapi::is_alive(name)))
    })
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

/// Starts the program, which puts itself into the background when it is ready.
fn detach(name: &str) -> Result<(), DataplaneError> {
    let program = program();
    let failed = |reason: String, fix| DataplaneError::Userspace {
        name: name.to_owned(),
        program: program.clone(),
        reason,
        fix,
    };
    if !Path::new(TUN).exists() {
        return Err(failed(NO_TUN.to_owned(), FIX_TUN));
    }
    let child = Command::new(&program)
        .arg(name)
        // boringtun would otherwise try to become the user who logged in.
        .env("WG_SUDO", "1")
        // A group of its own: what a terminal sends to the daemon's is not for the tunnel.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let status = match child {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(failed(NO_PROGRAM.to_owned(), FIX_PROGRAM));
        }
        child => child
            .and_then(|mut child| wait(&mut child))
            .map_err(|e| failed(e.to_string(), "check that it can be executed"))?,
    };
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(
            format!("it ended with {status}"),
            "run it by hand to see why; it needs CAP_NET_ADMIN and /dev/net/tun",
        )),
        None => Err(DataplaneError::Timeout {
            action: "start userspace WireGuard",
            program,
            within: PATIENCE,
        }),
    }
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
        thread::sleep(POLL);
    }
}

fn wait_for<T>(
    action: &'static str,
    name: &str,
    mut look: impl FnMut() -> Result<Option<T>, DataplaneError>,
) -> Result<T, DataplaneError> {
    let deadline = Instant::now() + PATIENCE;
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
        thread::sleep(POLL);
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
