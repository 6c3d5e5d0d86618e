//! Runs a program to its end, or beside the test, and keeps what it said. Never through a shell of its own accord.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Ran {
    /// An error with both outputs unless the exit code is 0.
    pub fn ok(self) -> Result<Self> {
        self.exits(0)
    }

    /// An error with both outputs unless the exit code is `code`.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "`{}` ended with {:?} instead of {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        );
        Ok(self)
    }

    /// Whether the exit code is 0.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }
}

/// A process that was started here; it is killed, by its own id, when this is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
    started: Instant,
}

impl Running {
    /// Starts `command` with `input` as its whole standard input. Output goes to unnamed files, so that a process that
    /// outlives it and keeps them open does not make anybody wait.
    pub fn start(mut command: Command, input: &str) -> Result<Self> {
        let line = line_of(&command);
        let stdout = tempfile::tempfile().context("a file for the output")?;
        let stderr = tempfile::tempfile().context("a file for the errors")?;
        let mut stdin = tempfile::tempfile().context("a file for the input")?;
        stdin.write_all(input.as_bytes())?;
        stdin.seek(SeekFrom::Start(0))?;
        command.stdin(Stdio::from(stdin)).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let child = command.spawn().with_context(|| format!("`{line}` cannot be started"))?;
        Ok(Self { command: line, child, stdout, stderr, started: Instant::now() })
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal).with_context(|| format!("{signal} to `{}`", self.command))
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written to standard output so far.
    pub fn output_so_far(&mut self) -> Result<String> {
        contents(&mut self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn errors_so_far(&mut self) -> Result<String> {
        contents(&mut self.stderr)
    }

    /// Waits for the end; kills it and fails when `limit` is over.
    pub fn finish(mut self, limit: Duration) -> Result<Ran> {
        let end = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!(
                    "`{}` did not end within {limit:?}\nstdout: {}\nstderr: {}",
                    self.command,
                    contents(&mut self.stdout)?,
                    contents(&mut self.stderr)?
                );
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        Ok(Ran {
            command: self.command.clone(),
            code: status.code(),
            stdout: contents(&mut self.stdout)?,
            stderr: contents(&mut self.stderr)?,
            took: self.started.elapsed(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `command` to its end, at most `limit`.
pub fn run(command: Command, input: &str, limit: Duration) -> Result<Ran> {
    Running::start(command, input)?.finish(limit)
}

/// Sends `signal` to the process `pid`.
pub(super) fn send(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

fn contents(file: &mut File) -> Result<String> {
    // The offset is shared with a child that still writes: read through a handle of our own instead of seeking.
    let mut own = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    let mut bytes = Vec::new();
    own.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
