//! Our nftables table, through the nft program: what it is told and says is in `table`.

mod arp;
mod kernel;
mod table;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use meshd_core::plan::{
    ArpMark, Firewall, FirewallRules, FirewallSets, ObservedArp, ObservedFirewall,
};
use serde_json::Value;

use self::{
    kernel::Kernel,
    table::{FAMILY, Listing, Shape, TABLE},
};
use crate::dataplane::{DataplaneError, Ours};

/// What is remembered of our table between looks.
#[derive(Debug)]
pub(crate) struct Nft {
    ours: Ours,
    /// Rules that were written and not looked at yet.
    written: Option<FirewallRules>,
    /// How this version of nft lists what was written last, when not in our words: else it would be written anew at
    /// every look.
    known: Option<(Shape, FirewallRules)>,
    kernel: Kernel,
    /// What stood in our table, and under which generation.
    read: Option<(u32, Option<ObservedFirewall>)>,
    /// The same of the one for ARP.
    read_arp: Option<(u32, ObservedArp)>,
}

/// Our table being read.
pub(crate) struct Reading {
    source: Source,
    /// When it was begun.
    generation: Option<u32>,
}

enum Source {
    /// Nobody has changed anything since it was read last.
    Unchanged,
    /// There is no such table, says the kernel.
    Absent,
    /// By a program of its own, which takes its time while others are looked at.
    Program(io::Result<Child>),
}

impl Reading {
    fn start(family: &str, kernel: &Kernel) -> Self {
        let generation = kernel.generation();
        let source = match kernel.has_table(family, TABLE) {
            Some(false) => Source::Absent,
            _ => Source::Program(start(&["-j", "list", "table", family, TABLE])),
        };
        Self { source, generation }
    }

    /// What was read. Where nft or nftables is missing, so is the table.
    fn finish(&mut self) -> Result<Option<Value>, DataplaneError> {
        let action = "read the nftables table meshd";
        let source = std::mem::replace(&mut self.source, Source::Absent);
        let Source::Program(started) = source else { return Ok(None) };
        let output = match started.and_then(|child| finish(child, "")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.generation = None;
                return Ok(None);
            }
            output => output.map_err(|e| failed(action, &e.to_string()))?,
        };
        if output.status.success() {
            return Ok(Some(serde_json::from_slice(&output.stdout).unwrap_or_default()));
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        if reason.contains("No such file or directory") || lacks_nftables(&reason) {
            return Ok(None);
        }
        Err(failed(action, &reason))
    }

    /// There is no program to read it with.
    pub(crate) fn lacks_nft(&self) -> bool {
        matches!(&self.source, Source::Program(Err(e)) if e.kind() == io::ErrorKind::NotFound)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Nobody wants to know; it must not stay behind as a zombie.
        if let Source::Program(Ok(child)) = &mut self.source {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Nft {
    /// Nothing is known yet.
    pub(crate) fn new(ours: Ours) -> Self {
        Self { ours, written: None, known: None, kernel: Kernel::new(), read: None, read_arp: None }
    }

    /// Begins to read our table.
    pub(crate) fn read(&self) -> Reading {
        let read = self.read.as_ref().filter(|_| self.written.is_none());
        self.unchanged(read.map(|(under, _)| *under))
            .unwrap_or_else(|| Reading::start(FAMILY, &self.kernel))
    }

    /// Begins to read our table for ARP.
    pub(crate) fn read_arp(&self) -> Reading {
        self.unchanged(self.read_arp.map(|(under, _)| under))
            .unwrap_or_else(|| Reading::start(arp::FAMILY, &self.kernel))
    }

    /// When what was read under one generation still stands.
    fn unchanged(&self, read_under: Option<u32>) -> Option<Reading> {
        let generation = self.kernel.generation().filter(|now| read_under == Some(*now))?;
        Some(Reading { source: Source::Unchanged, generation: Some(generation) })
    }

    /// What stands in our table.
    pub(crate) fn observe(
        &mut self,
        mut reading: Reading,
    ) -> Result<Option<ObservedFirewall>, DataplaneError> {
        if matches!(reading.source, Source::Unchanged) {
            return Ok(self.read.as_ref().and_then(|(_, read)| read.clone()));
        }
        self.read = None;
        let listing = reading.finish()?;
        let observed = listing.map(|listing| self.understand(&listing));
        if observed.is_none() {
            self.written = None;
        }
        self.read = reading.generation.map(|generation| (generation, observed.clone()));
        Ok(observed)
    }

    /// What stands in our table for ARP.
    pub(crate) fn observe_arp(
        &mut self,
        mut reading: Reading,
    ) -> Result<ObservedArp, DataplaneError> {
        if let (Source::Unchanged, Some((_, read))) = (&reading.source, self.read_arp) {
            return Ok(read);
        }
        self.read_arp = None;
        let observed = arp::observe(&mut reading)?;
        self.read_arp = reading.generation.map(|generation| (generation, observed));
        Ok(observed)
    }

    fn understand(&mut self, listing: &Value) -> ObservedFirewall {
        let listing = Listing::read(listing);
        let shape = listing.shape.clone();
        let observed = listing.observed(self.known.as_ref());
        match self.written.take() {
            Some(written) if observed.rules.as_ref() != Some(&written) => {
                tracing::debug!("nft lists the table inet meshd in words of its own");
                self.known = Some((shape, written.clone()));
                ObservedFirewall { rules: Some(written), ..observed }
            }
            _ => observed,
        }
    }

    /// Makes our table hold exactly this, in one transaction.
    pub(crate) fn put(&mut self, table: &Firewall) -> Result<(), DataplaneError> {
        self.apply("set up nftables", &table::whole(table))?;
        self.written = Some(table.rules.clone());
        Ok(())
    }

    /// Changes elements of our sets, in one transaction.
    pub(crate) fn change_sets(
        &self,
        add: &FirewallSets,
        remove: &FirewallSets,
    ) -> Result<(), DataplaneError> {
        self.apply("change nftables sets", &table::changed(add, remove))
    }

    /// Makes our table for ARP hold exactly this.
    pub(crate) fn put_arp(&self, mark: ArpMark) -> Result<(), DataplaneError> {
        arp::put(self, mark)
    }

    /// Removes our table for ARP; gone already is fine.
    pub(crate) fn remove_arp(&self) -> Result<(), DataplaneError> {
        arp::remove(self)
    }

    /// Removes our table; gone already is fine.
    pub(crate) fn remove(&self) -> Result<(), DataplaneError> {
        if Reading::start(FAMILY, &self.kernel).finish()?.is_none() {
            return Ok(());
        }
        self.apply("remove the nftables table", &table::removal())
    }

    fn apply(&self, action: &'static str, script: &Value) -> Result<(), DataplaneError> {
        match self.apply_script(script) {
            Err(Err(e)) if e.kind() == io::ErrorKind::NotFound => {
                Err(DataplaneError::NftMissing { action })
            }
            Err(Err(e)) => Err(failed(action, &e.to_string())),
            Err(Ok(said)) => Err(failed(action, &said)),
            Ok(()) => Ok(()),
        }
    }

    /// Why it failed: nft could not be started, or what it said.
    fn apply_script(&self, script: &Value) -> Result<(), Result<String, io::Error>> {
        let done = start(&["-j", "-f", "-"]).and_then(|child| {
            // Before it is told anything to do.
            self.ours.add_program(child.id());
            finish(child, &script.to_string())
        });
        match done {
            Err(e) => Err(Err(e)),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(Ok(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    Command::new(program())
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Also where `PATH` leaves out the directories of the system's programs, as it does for some callers.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join("nft"))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| "nft".into())
}

fn finish(mut child: Child, input: &str) -> io::Result<Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // A child that ended early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn lacks_nftables(reason: &str) -> bool {
    ["Protocol not supported", "Operation not supported", "not implemented"]
        .iter()
        .any(|text| reason.contains(text))
}

fn first_line(stderr: &str) -> String {
    let line = stderr.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn failed(action: &'static str, stderr: &str) -> DataplaneError {
    let reason = first_line(stderr);
    let fix = if stderr.contains("Operation not permitted") {
        "meshd needs root or CAP_NET_ADMIN"
    } else if lacks_nftables(stderr) || stderr.contains("No such file or directory") {
        "this kernel lacks a part of nftables (nft_chain_nat, nft_masq, nft_rt): without it, packets with this host's own \
         address as source are not accepted by other members, and there is no leak guard"
    } else {
        "look at `nft list ruleset`"
    };
    DataplaneError::Nft { action, reason, fix }
}
