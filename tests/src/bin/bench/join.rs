//! Joining: one host after the other, and all at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, Mesh, Running, pace, wait_for};

use crate::{
    cold::until_all,
    in_a_world, plans,
    report::{Machine, Report},
};

pub(crate) fn measure(machine: Machine, hosts: u32) -> Result<Report> {
    let mut report = Report::new(machine, "join", hosts);
    in_a_world(hosts, |world| {
        let mesh = Mesh::waiting(world, &plans(hosts))?;
        one_by_one(&mesh, &mut report)
    })?;
    in_a_world(hosts, |world| {
        let mesh = Mesh::waiting(world, &plans(hosts))?;
        all_at_once(&mesh, &mut report)
    })?;
    Ok(report)
}

fn start_join(host: &Host, token: &str) -> Result<Running> {
    let mut command = host.program("meshctl")?;
    command.args(["join", "-"]);
    Running::start(command, token)
}

/// Members that a host's WireGuard has, and those with a handshake.
fn has(host: &Host, peers: usize, shaken: usize) -> Result<()> {
    let (now_shaken, now) = host.wg_handshakes()?;
    ensure!(now == peers && now_shaken >= shaken, "{now_shaken} of {now} peers, {peers} expected");
    Ok(())
}

fn one_by_one(mesh: &Mesh, report: &mut Report) -> Result<()> {
    let first = &mesh.hosts[0];
    first.init_mesh()?;
    let (mut joined, mut programmed, mut shaken) = (Vec::new(), Vec::new(), Vec::new());
    for (count, joiner) in mesh.hosts.iter().enumerate().skip(1) {
        let token = first.token_for(joiner)?;
        let start = Instant::now();
        let mut join = start_join(joiner, &token)?;
        let mut returned = None;
        for host in &mesh.hosts[..=count] {
            wait_for("the joiner is programmed everywhere", pace(60), || {
                if returned.is_none() && join.ended()?.is_some() {
                    returned = Some(start.elapsed());
                }
                has(host, count, 0)
            })?;
        }
        programmed.push(start.elapsed().as_secs_f64());
        for host in &mesh.hosts[..=count] {
            wait_for("a handshake with everybody", pace(60), || {
                if returned.is_none() && join.ended()?.is_some() {
                    returned = Some(start.elapsed());
                }
                has(host, count, count)
            })?;
        }
        shaken.push(start.elapsed().as_secs_f64());
        let took = join.finish(pace(60))?.ok()?.took;
        joined.push(returned.unwrap_or(took).as_secs_f64());
    }
    report.add_spread("join_seconds", "one by one: `meshctl join` returns", &joined, "s");
    report.add_spread(
        "programmed_seconds",
        "one by one: programmed at all others",
        &programmed,
        "s",
    );
    report.add_spread(
        "handshaken_seconds",
        "one by one: a handshake with all others",
        &shaken,
        "s",
    );
    let last = |values: &[f64]| values.last().copied().unwrap_or_default();
    report.add(
        "last_programmed_seconds",
        "  the last of them: programmed at all others",
        last(&programmed),
        "s",
    );
    report.add(
        "last_handshaken_seconds",
        "  the last of them: a handshake with all others",
        last(&shaken),
        "s",
    );
    Ok(())
}

fn all_at_once(mesh: &Mesh, report: &mut Report) -> Result<()> {
    let (first, joiners) = mesh.hosts.split_first().context("no hosts")?;
    first.init_mesh()?;
    let tokens = joiners.iter().map(|host| first.token_for(host)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut joins = joiners
        .iter()
        .zip(&tokens)
        .map(|(host, token)| start_join(host, token))
        .collect::<Result<Vec<_>>>()?;
    let mut joined = vec![None; joins.len()];
    wait_for("all joins return", pace(120), || {
        for (join, returned) in joins.iter_mut().zip(&mut joined) {
            if returned.is_none() && join.ended()?.is_some() {
                *returned = Some(start.elapsed());
            }
        }
        let still = joined.iter().filter(|returned| returned.is_none()).count();
        ensure!(still == 0, "{still} are still joining");
        Ok(())
    })?;
    for join in joins {
        join.finish(pace(10))?.ok()?;
    }
    let others = mesh.hosts.len() - 1;
    let programmed = until_all(mesh, start, |host| has(host, others, 0))?;
    let shaken = until_all(mesh, start, |host| has(host, others, others))?;
    let joined: Vec<f64> =
        joined.into_iter().flatten().map(|took: Duration| took.as_secs_f64()).collect();
    report.add_spread("parallel_join_seconds", "all at once: `meshctl join` returns", &joined, "s");
    report.add("parallel_programmed_seconds", "all at once: all pairs programmed", programmed, "s");
    report.add(
        "parallel_handshaken_seconds",
        "all at once: all pairs with a handshake",
        shaken,
        "s",
    );
    Ok(())
}
