//! Namespaces, the processes that hold them open, and how commands get in.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::{Ran, Running, run};
use super::wait::pace;

/// Ends everything in the holder's network namespace except the holder. Only shell built-ins: one process per
/// process looked at would take seconds in the VM.
const END_ALL: &str = r#"
for process in /proc/[0-9]*; do
    [ "$process" != "/proc/$$" ] && [ "$process/ns/net" -ef "/proc/$$/ns/net" ] && kill -9 "${process#/proc/}"
done 2>/dev/null
"#;

/// A set of namespaces (network, mount, host name), held open by a process of its own.
#[derive(Debug)]
pub struct Space {
    name: String,
    holder: Child,
}

impl Space {
    /// Makes the namespaces and runs the shell script `setup` in them.
    pub(super) fn new(name: &str, setup: &str) -> Result<Self> {
        let script = format!(
            "set -e\nmount -t sysfs sysfs /sys\nhostname {name}\n{setup}\nset +e\necho ready\ncat >/dev/null\n{END_ALL}"
        );
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`unshare` cannot be started (package util-linux)")?;
        let mut said = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        let space = Self { name: name.to_owned(), holder };
        if said.trim() != "ready" {
            bail!("the namespaces of {name} cannot be made (its errors are above); run as root");
        }
        Ok(space)
    }

    /// The id of the holding process: `nsenter -t ID -n -m -u` leads in.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Its name, which is its host name too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the holder to end everything, without waiting for it.
    pub(super) fn close(&mut self) {
        drop(self.holder.stdin.take());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.close();
        let end = Instant::now() + pace(10);
        while let Ok(None) = self.holder.try_wait() {
            if Instant::now() > end {
                let _ = self.holder.kill();
                let _ = self.holder.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

/// Where commands run: a host, a pod, or the underlay itself.
pub trait Place {
    /// Its namespaces.
    fn space(&self) -> &Space;

    /// Its name.
    fn name(&self) -> &str {
        self.space().name()
    }

    /// `program`, to be started in here. The process gets the id that the caller sees: nothing forks in between.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.space().pid().to_string();
        command.args(["-t", &pid, "--net", "--mount", "--uts", "--", program]);
        command
    }

    /// Runs a program to its end, whatever its exit code.
    fn try_run(&self, arguments: &[&str]) -> Result<Ran> {
        self.try_run_with(arguments, "")
    }

    /// Runs a program with standard input to its end, whatever its exit code.
    fn try_run_with(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let (program, rest) = arguments.split_first().context("no program")?;
        let mut command = self.command(program);
        command.args(rest);
        run(command, input, pace(60))
    }

    /// Runs a program to its end, which must be a success, and gives its standard output.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.try_run(arguments).and_then(Ran::ok);
        Ok(ran.with_context(|| format!("in {}", self.name()))?.stdout)
    }

    /// Runs a shell script, which must succeed, and gives its standard output.
    fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }

    /// Starts a program beside the test.
    fn start(&self, arguments: &[&str]) -> Result<Running> {
        let (program, rest) = arguments.split_first().context("no program")?;
        let mut command = self.command(program);
        command.args(rest);
        Running::start(command, "")
    }

    /// One echo request that must be answered; `from` is an address to bind to, or empty. Gives what ping printed.
    fn ping(&self, to: &str, from: &str) -> Result<String> {
        let mut arguments = vec!["ping", "-n", "-c", "1", "-W", "3"];
        if !from.is_empty() {
            arguments.extend(["-I", from]);
        }
        arguments.push(to);
        self.run(&arguments)
    }

    /// Writes a file as the place sees it (below its own mounts).
    fn write(&self, path: &str, contents: &str) -> Result<()> {
        let outside = format!("/proc/{}/root{path}", self.space().pid());
        if let Some((directory, _)) = outside.rsplit_once('/') {
            std::fs::create_dir_all(directory)?;
        }
        let mut file = std::fs::File::create(&outside).with_context(|| outside.clone())?;
        Ok(file.write_all(contents.as_bytes())?)
    }
}
