//! What was measured, where, and how it is printed.

use std::fmt;

use anyhow::{Context, Result};
use meshd_tests::harness::Backend;
use serde_json::{Value, json};

/// The machine that measured. Figures of another are other figures.
pub(crate) struct Machine {
    place: String,
    backend: Backend,
    processors: usize,
    processor: String,
    memory_mib: u64,
    kernel: String,
    build: String,
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cpu = read("/proc/cpuinfo")?;
        let memory = value(&read("/proc/meminfo")?, "MemTotal").context("no MemTotal")?;
        let kib: u64 = memory.split_whitespace().next().unwrap_or_default().parse()?;
        let in_vm = std::env::var_os("MESHD_IN_VM").is_some();
        let own = std::env::current_exe()?;
        let programs = std::env::var_os("MESHD_BIN_DIR")
            .map_or_else(|| own.parent().map(ToOwned::to_owned), |path| Some(path.into()));
        let build =
            programs.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Self {
            place: if in_vm { "VM (emulated processor)" } else { "host" }.to_owned(),
            backend: Backend::from_environment()?,
            processors: std::thread::available_parallelism()?.get(),
            processor: value(&cpu, "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            build: build.unwrap_or_default(),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "place": self.place,
            "backend": self.backend.name(),
            "processors": self.processors,
            "processor": self.processor,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "build": self.build,
        })
    }
}

/// One figure.
struct Figure {
    key: String,
    what: String,
    value: f64,
    unit: &'static str,
}

/// All figures of one command.
pub(crate) struct Report {
    machine: Machine,
    command: &'static str,
    hosts: u32,
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(machine: Machine, command: &'static str, hosts: u32) -> Self {
        Self { machine, command, hosts, figures: Vec::new() }
    }

    /// Adds a figure. `key` names it in JSON; the unit is part of the key's name where it matters.
    pub(crate) fn add(&mut self, key: &str, what: &str, value: f64, unit: &'static str) {
        let (key, what) = (key.to_owned(), what.to_owned());
        self.figures.push(Figure { key, what, value, unit });
    }

    /// Adds the median and the largest of `values`, in that order.
    pub(crate) fn add_spread(&mut self, key: &str, what: &str, values: &[f64], unit: &'static str) {
        if values.is_empty() {
            return;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.add(
            &format!("{key}_p50"),
            &format!("{what}, p50"),
            sorted[(sorted.len() - 1) / 2],
            unit,
        );
        self.add(&format!("{key}_max"), &format!("{what}, max"), sorted[sorted.len() - 1], unit);
    }

    pub(crate) fn to_json(&self) -> Value {
        let figures: serde_json::Map<String, Value> =
            self.figures.iter().map(|figure| (figure.key.clone(), json!(figure.value))).collect();
        json!({
            "command": self.command,
            "daemons": self.hosts,
            "machine": self.machine.to_json(),
            "figures": figures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "{} {}: {} WireGuard, on the {}, {} build\n{} x {}, {} MiB, Linux {}",
            self.command,
            self.hosts,
            machine.backend.name(),
            machine.place,
            machine.build,
            machine.processors,
            machine.processor,
            machine.memory_mib,
            machine.kernel
        )?;
        for figure in &self.figures {
            let value = match figure.value {
                value if value.fract() == 0.0 => format!("{value:.0}"),
                value if value < 10.0 => format!("{value:.3}"),
                value => format!("{value:.1}"),
            };
            writeln!(f, "  {:<58} {value:>10} {}", figure.what, figure.unit)?;
        }
        Ok(())
    }
}
