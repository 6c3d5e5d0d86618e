//! Runs one of the paths once, for callgrind to count the instructions of `measured`; `tests/lib/counted` compares them with
//! those that `tests/benches/instructions` holds. Without a name it says which there are.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use meshd_proto::wire;
use meshd_tests::paths::{Planned, Stored, idle};
use prost::Message as _;

const NAMES: [&str; 8] = ["verify", "encode", "decode", "learn", "open", "plan", "diff", "idle"];

fn main() -> ExitCode {
    let name = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let Some(name) = name else {
        NAMES.iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    match run(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {name}: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Counts `work`. glibc first joins what was freed before: it does so at the next large allocation, and whether that is in
/// `work` is chance.
fn count<T>(work: impl FnOnce() -> T) -> T {
    drop(black_box(Vec::<u8>::with_capacity(64 << 10)));
    measured(work)
}

/// What is counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn run(name: &str) -> Result<()> {
    match name {
        "verify" => {
            let stored = Stored::new(20);
            count(|| stored.verify(20))?;
        }
        "encode" => {
            let frame = Stored::new(100).frame(100)?;
            count(|| frame.encode_to_vec());
        }
        "decode" => {
            let bytes = bytes::Bytes::from(Stored::new(100).frame(100)?.encode_to_vec());
            count(|| wire::Frame::decode(bytes))?;
        }
        "learn" => {
            let stored = Stored::new(500);
            let mut node = stored.open()?;
            let frame = stored.change(250, 1)?;
            let wanted = count(|| stored.learn(&mut node, 250, 1, &frame))?;
            if wanted == 0 {
                bail!("the change was not news");
            }
        }
        "open" => {
            let stored = Stored::new(200);
            count(|| stored.open())?;
        }
        "plan" => {
            let planned = Planned::new(500)?;
            count(|| planned.plan());
        }
        "diff" => {
            let mut planned = Planned::new(500)?;
            planned.changed(250)?.first().context("no change")?;
            let desired = planned.plan();
            count(|| planned.diff(&desired));
        }
        "idle" => {
            let mut world = idle(20);
            count(|| world.run(Duration::from_secs(30)));
        }
        other => bail!("there is no such path as {other}"),
    }
    Ok(())
}
