//! How long the kernel takes to be programmed for many members: by the daemon's own planner and reconciler, and by
//! `wg setconf` and `ip -batch` with the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Backend, Host, HostPlan, Place};
use meshd_tests::many::{Many, Programmer, by_hand};

use crate::{
    in_a_world,
    report::{Machine, Report},
};

const INTERFACE: &str = "mesh0";

/// `ours_first`: in which order; the second of the two finds warm caches and a fuller memory.
pub(crate) fn measure(machine: Machine, members: u32, ours_first: bool) -> Result<Report> {
    ensure!((1..=60_000).contains(&members), "{members} members cannot be made; give 1 to 60000");
    let mut report = Report::new(machine, "program", members);
    in_a_world(2, |world| {
        ensure!(
            world.backend() == Backend::Kernel,
            "`wg setconf` is of the kernel's WireGuard: use --vm"
        );
        let many = Many::new(members, INTERFACE);
        let (one, two) = (world.host(&HostPlan::vm("one"))?, world.host(&HostPlan::vm("two"))?);
        let (ours, hand) = if ours_first {
            let ours = program(&one, &many, world.backend())?;
            (ours, script(&two, &many)?)
        } else {
            let hand = script(&one, &many)?;
            (program(&two, &many, world.backend())?, hand)
        };
        let mut add = |key: &str, what: &str, took: Duration| {
            report.add(key, what, took.as_secs_f64(), "s");
        };
        add("ours_seconds", "meshd: from a plan to a programmed kernel", ours);
        add("hand_wg_seconds", "by hand: ip link, wg setconf", hand.0);
        add("hand_ip_seconds", "by hand: ip -batch", hand.1);
        let ratio = ours.as_secs_f64() / (hand.0 + hand.1).as_secs_f64();
        report.add("ratio", "meshd against by hand", ratio, "times");
        Ok(())
    })?;
    Ok(report)
}

/// Nftables, rules and sysctls, which nobody does by hand here, are in it.
fn program(host: &Host, many: &Many, backend: Backend) -> Result<Duration> {
    let plan = many.plan();
    let mut programmer = Programmer::start(host, backend)?;
    let started = Instant::now();
    programmer.program(plan)?;
    Ok(started.elapsed())
}

fn script(host: &Host, many: &Many) -> Result<(Duration, Duration)> {
    let (desired, _) = many.plan();
    let (setconf, batch) = by_hand(&desired)?;
    host.write("/run/wg.conf", &setconf)?;
    host.write("/run/ip.batch", &batch)?;
    let started = Instant::now();
    host.run(&["ip", "link", "add", INTERFACE, "type", "wireguard"])?;
    host.run(&["wg", "setconf", INTERFACE, "/run/wg.conf"])?;
    let wireguard = started.elapsed();
    host.run(&["ip", "-batch", "/run/ip.batch"]).context("ip -batch")?;
    Ok((wireguard, started.elapsed() - wireguard))
}
