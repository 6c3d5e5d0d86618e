//! One process of `meshd`, and where the programs under test are.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::host::Host;
use super::process::send;
use super::wait::{pace, wait_for};

/// A running daemon; killed, by its own id, when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    pub(super) fn launch(host: &Host, log: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = host.program("meshd")?;
        command.env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { child: command.spawn().context("meshd cannot be started")? })
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the daemon has ended: {status}"),
        }
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check()?;
        send(self.pid(), signal)
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and says how long that took. It must end with success.
    pub fn terminate(&mut self) -> Result<Duration> {
        let asked = Instant::now();
        self.signal(Signal::SIGTERM)?;
        let status = wait_for("the daemon ends after SIGTERM", pace(10), || {
            self.child.try_wait()?.context("it still runs")
        })?;
        ensure!(status.success(), "the daemon ended with {status} after SIGTERM");
        Ok(asked.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The path of a program of this project: `meshd` and `meshctl` in `MESHD_BIN_DIR`, if that is set, all others, and else
/// all, beside the running test (`target/debug`).
pub(super) fn binary(name: &str) -> Result<PathBuf> {
    let given = std::env::var_os("MESHD_BIN_DIR").filter(|_| matches!(name, "meshd" | "meshctl"));
    let directory = match given {
        Some(directory) => PathBuf::from(directory),
        None => beside_this_program()?,
    };
    let path = directory.join(name);
    ensure!(
        path.is_file(),
        "{} is not there; build it (cargo build --workspace) or set MESHD_BIN_DIR",
        path.display()
    );
    Ok(path)
}

fn beside_this_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a program without a directory")?;
    Ok(if directory.ends_with("deps") { directory.join("..") } else { directory.to_owned() })
}
