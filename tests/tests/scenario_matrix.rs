//! Everything that the mesh carries, and nothing of it in the clear, in every surrounding: see `meshd_tests::matrix`.
//!
//! `MESHD_TEST_MATRIX`: `pairwise` (the default: every pair of values meets in some cell; those for this kernel run),
//! `pairwise-here` (all of those, whatever kernel they are for), `full` (all 72, on this kernel) or the number of one cell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result};
use meshd_tests::harness::{Backend, scenario};
use meshd_tests::matrix::{Cell, choose, site::Site, traffic};

/// Runs one cell; its line tells what it was, and how it went.
fn passes(number: usize, cell: Cell, release: &str) -> bool {
    let started = Instant::now();
    let name = format!("matrix-{number}");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        scenario(&name, |world| {
            let site = Site::build(world, cell)?;
            let built = started.elapsed().as_secs_f64();
            let shown = traffic::prove(world, &site, &name)?;
            println!(
                "matrix: cell {number} ({cell}): {} pairs, same-node pods outside the tunnel, none in the clear; control: {} in the clear; built in {built:.1} s",
                shown.reached, shown.control
            );
            Ok(())
        });
    }));
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    let took = started.elapsed().as_secs_f64();
    println!("matrix: cell {number} ({cell}) on {release}: {verdict}, {took:.1} s");
    outcome.is_ok()
}

fn run() -> Result<Vec<usize>> {
    let wanted = std::env::var("MESHD_TEST_MATRIX").unwrap_or_default();
    let wanted = if wanted.is_empty() { "pairwise" } else { &wanted };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the release")?;
    let backend = Backend::from_environment()?;
    let choice = choose(wanted, release.trim(), backend == Backend::Kernel)?;
    println!(
        "matrix: {} cells, {} WireGuard: {}",
        choice.cells.len(),
        backend.name(),
        choice.reason
    );
    let failed = choice.cells.into_iter().filter(|(n, cell)| !passes(*n, *cell, release.trim()));
    Ok(failed.map(|(number, _)| number).collect())
}

#[test]
fn the_mesh_does_the_same_in_every_surrounding() {
    let failed = run().unwrap_or_else(|why| panic!("{why:#}"));
    assert!(failed.is_empty(), "cells that failed (MESHD_TEST_MATRIX=NUMBER runs one): {failed:?}");
}
