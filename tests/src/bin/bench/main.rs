//! `bench`: figures that anyone can measure again. `tests/bench` builds and starts it. Each command makes real daemons in
//! network namespaces, waits for what it measures, and prints one report, readable or as JSON.

mod cold;
mod idle;
mod join;
mod process;
mod program;
mod report;
mod restart;
mod stored;
mod tunnel;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use meshd_tests::harness::{HostPlan, Mesh, World};

use crate::report::{Machine, Report};

#[derive(Parser)]
#[command(about = "Measures meshd: real daemons in network namespaces of this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How to print.
    #[arg(short, long, global = true, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// All members enrolled and stored, no device: all daemons start at once, until all pairs have a handshake.
    Cold {
        /// How many daemons.
        hosts: u32,
        /// How often.
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
    /// One host after the other joins, until it is programmed at all others; then all at once.
    Join {
        /// How many hosts there are in the end.
        hosts: u32,
    },
    /// What daemons without work cost: memory, processor, bytes on the underlay.
    Idle {
        /// How many daemons.
        hosts: u32,
        /// For how long.
        #[arg(default_value_t = 60)]
        seconds: u32,
    },
    /// Packets that flows of 1,000 a second lose while a daemon is killed, or stopped, and started again.
    Restart,
    /// How long the kernel takes to be programmed for many members, beside `wg setconf` and `ip -batch`.
    Program {
        /// How many members.
        members: u32,
        /// Ours first, then by hand.
        #[arg(long)]
        ours_first: bool,
    },
    /// A daemon that starts with many stored members, none of whom is there: processor, memory, answers.
    Stored {
        /// How many members.
        members: u32,
        /// For how long it is watched afterwards.
        #[arg(default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Throughput and round trip of a tunnel of meshd beside one made by hand.
    Tunnel {
        /// How many microseconds the wire takes, one way, for all sides.
        #[arg(long, default_value_t = 0)]
        wire: u32,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match measure(&arguments.command) {
        Ok(report) => {
            match arguments.output {
                Output::Text => println!("{report}"),
                Output::Json => println!("{:#}", report.to_json()),
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: the measurement failed; {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(command: &Command) -> Result<Report> {
    let machine = Machine::look()?;
    match command {
        Command::Cold { hosts, runs } => cold::measure(machine, *hosts, *runs),
        Command::Join { hosts } => join::measure(machine, *hosts),
        Command::Idle { hosts, seconds } => idle::measure(machine, *hosts, *seconds),
        Command::Restart => restart::measure(machine),
        Command::Program { members, ours_first } => {
            program::measure(machine, *members, *ours_first)
        }
        Command::Stored { members, seconds } => stored::measure(machine, *members, *seconds),
        Command::Tunnel { wire } => tunnel::measure(machine, *wire),
    }
}

/// Runs `work` in a world with room for `hosts`. The daemons' logs go when it has succeeded, unless `MESHD_TEST_LOGS` says
/// where to keep them.
fn in_a_world<T>(hosts: u32, work: impl FnOnce(&World) -> Result<T>) -> Result<T> {
    ensure!((2..250).contains(&hosts), "{hosts} hosts cannot be made; give 2 to 249");
    let keep = std::env::var_os("MESHD_TEST_LOGS");
    let mut logs = tempfile::Builder::new();
    logs.prefix("meshd-bench-");
    let logs = match &keep {
        Some(directory) => logs.tempdir_in(directory)?,
        None => logs.tempdir()?,
    };
    let result = World::new(logs.path(), hosts).and_then(|world| work(&world));
    if result.is_err() || keep.is_some() {
        eprintln!("the daemons' logs are in {}", logs.keep().display());
    }
    result
}

/// Plain machines, one as the other.
fn plans(hosts: u32) -> Vec<HostPlan> {
    (1..=hosts).map(|number| HostPlan::vm(&format!("n{number}"))).collect()
}

/// Hosts that are one mesh, each pair with a handshake.
fn formed(world: &World, hosts: u32) -> Result<Mesh> {
    let mesh = Mesh::waiting(world, &plans(hosts))?;
    mesh.join_all()?;
    mesh.wait_handshaken(meshd_tests::harness::pace(120))?;
    Ok(mesh)
}
