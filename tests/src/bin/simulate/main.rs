//! `simulate`: the daemon's core, as many times as wanted, in virtual time. `tests/simulate` builds and starts it. Everything
//! follows from the seed; what it prints is how long things take, what they cost, and what went wrong.

mod figures;
mod happenings;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use meshd_tests::sim::Weather;

use crate::{figures::Figures, happenings::Happening};

#[derive(Parser)]
#[command(about = "Simulates a mesh of many nodes: the production core in virtual time")]
struct Arguments {
    /// How many nodes.
    #[arg(short, long, default_value_t = 100)]
    nodes: usize,
    /// What the run follows from.
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// Percentage of packets that are lost.
    #[arg(short, long, default_value_t = 0.0, value_parser = percentage)]
    loss: f64,
    /// How far apart the nodes are.
    #[arg(long, default_value = "lan")]
    delay: Delay,
    /// How many seeds there are.
    #[arg(long, default_value_t = 3)]
    seeds: usize,
    /// Milliseconds from the first start of a host to the next one's.
    #[arg(long, default_value_t = 0)]
    apart: u64,
    /// How often what is small is repeated.
    #[arg(short, long, default_value_t = 20)]
    rounds: usize,
    /// How to print.
    #[arg(short, long, default_value = "text")]
    output: Output,
    /// What happens, one after the other; everything unless some are named.
    happenings: Vec<Happening>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Delay {
    /// 0.1 to 1 ms one way.
    Lan,
    /// 5 to 80 ms one way.
    Continental,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

fn percentage(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=50.0).contains(&value) => Ok(value),
        _ => Err("not a percentage from 0 to 50".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !(2..=20_000).contains(&arguments.nodes) {
        eprintln!("error: {} nodes cannot be simulated; give 2 to 20000", arguments.nodes);
        return ExitCode::from(2);
    }
    let (shortest, longest) = match arguments.delay {
        Delay::Lan => (Duration::from_micros(100), Duration::from_millis(1)),
        Delay::Continental => (Duration::from_millis(5), Duration::from_millis(80)),
    };
    let weather = Weather { loss: arguments.loss / 100.0, delay: (shortest, longest) };
    let all = <Happening as clap::ValueEnum>::value_variants();
    let wanted =
        if arguments.happenings.is_empty() { all.to_vec() } else { arguments.happenings.clone() };
    let mut figures = Figures::default();
    happenings::run(&arguments, weather, &wanted, &mut figures);
    match arguments.output {
        Output::Text => println!(
            "{} nodes, {} to {} ms one way, {} % lost, seed {}\n{figures}",
            arguments.nodes,
            shortest.as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3,
            arguments.loss,
            arguments.seed
        ),
        Output::Json => println!("{:#}", figures.to_json(arguments.nodes, arguments.seed)),
    }
    ExitCode::SUCCESS
}
