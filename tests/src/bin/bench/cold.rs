//! Cold start: power is back in a rack.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, Mesh, Place, pace, wait_for};
use nix::sys::signal::Signal;

use crate::{
    formed, in_a_world, process,
    report::{Machine, Report},
};

pub(crate) fn measure(machine: Machine, hosts: u32, runs: u32) -> Result<Report> {
    ensure!(runs > 0, "no run");
    let mut report = Report::new(machine, "cold", hosts);
    in_a_world(hosts, |world| {
        let mesh = formed(world, hosts)?;
        let (mut programmed, mut shaken, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            power_off(&mesh)?;
            let start = Instant::now();
            for host in &mesh.hosts {
                host.launch_daemon()?;
            }
            let others = mesh.hosts.len() - 1;
            programmed.push(until_all(&mesh, start, |host| {
                let peers = host.wg_handshakes()?.1;
                ensure!(peers == others, "{peers} of {others} peers");
                Ok(())
            })?);
            shaken.push(until_all(&mesh, start, |host| {
                let shaken = host.wg_handshakes()?.0;
                ensure!(shaken == others, "{shaken} of {others} with a handshake");
                Ok(())
            })?);
            let (first, last) = (&mesh.hosts[0], mesh.hosts.last().context("no hosts")?);
            wait_for("an echo from the last host", pace(20), || {
                first.ping(&last.mesh_addresses()?.0, "")
            })?;
            answered.push(start.elapsed().as_secs_f64());
        }
        report.add_spread("programmed_seconds", "start to all pairs programmed", &programmed, "s");
        report.add_spread(
            "handshaken_seconds",
            "start to all pairs with a handshake",
            &shaken,
            "s",
        );
        report.add_spread("echo_seconds", "start to an echo, first to last host", &answered, "s");
        report.add("runs", "runs", f64::from(runs), "");
        Ok(())
    })?;
    Ok(report)
}

/// Ends all daemons and takes their devices away: only what is on disk is left.
fn power_off(mesh: &Mesh) -> Result<()> {
    for host in &mesh.hosts {
        host.with_daemon(|daemon| daemon.signal(Signal::SIGTERM))?;
    }
    for host in &mesh.hosts {
        wait_for(&format!("the daemon of {} ends", host.name()), pace(30), || {
            ensure!(host.check_daemon().is_err(), "it runs");
            Ok(())
        })?;
        host.sh("ip link del mesh0; ip -4 route flush table 51820; ip -6 route flush table 51820")?;
        wait_for("the device's process ends", pace(10), || {
            ensure!(process::userspace(host)?.is_none(), "it runs");
            Ok(())
        })?;
    }
    Ok(())
}

/// Seconds after `start` at which all hosts have passed `probe`. Resolution: one look at each host.
pub(crate) fn until_all(
    mesh: &Mesh,
    start: Instant,
    probe: impl Fn(&Host) -> Result<()>,
) -> Result<f64> {
    let end = start + pace(120);
    for host in &mesh.hosts {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        wait_for(host.name(), left, || {
            host.check_daemon()?;
            probe(host)
        })?;
    }
    Ok(start.elapsed().as_secs_f64())
}
