//! What a change costs among many members, counted at the kernel's own tap on netlink.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Backend, Host, HostPlan, Place, in_vm, scenario};
use meshd_tests::many::{Many, Programmer};

/// Netlink messages of `host` so far, as its tap has counted them.
fn messages(host: &Host) -> Result<u64> {
    let text = host.run(&["cat", "/sys/class/net/tap/statistics/rx_packets"])?;
    text.trim().parse().context("no number")
}

/// Messages that one changed record of one of `count` members costs when it comes, and when it goes.
fn cost(host: &Host, backend: Backend, count: u32) -> Result<(u64, u64)> {
    host.sh("ip link add tap type nlmon && ip link set tap up")
        .context("this kernel has no nlmon, which counts netlink messages")?;
    let mut many = Many::new(count, &format!("many{count}"));
    let mut programmer = Programmer::start(host, backend)?;
    programmer.program(many.plan())?;
    let quiet = Duration::from_millis(700);
    programmer.wait_for_quiet(quiet)?;
    let mut change = |more: bool| -> Result<u64> {
        many.change(usize::try_from(count / 2)?, more)?;
        let before = messages(host)?;
        let report = programmer.program(many.plan())?;
        let after = messages(host)?;
        let places = report.applied.len();
        ensure!((2..=4).contains(&places), "{places} changes: {:?}", report.applied);
        Ok(after - before)
    };
    let cost = (change(true)?, change(false)?);
    let routes = host.run(&["ip", "route", "show", "table", "51820", "172.31.99.0/24"])?;
    ensure!(routes.trim().is_empty(), "still there: {routes}");
    Ok(cost)
}

#[test]
fn a_changed_record_costs_as_many_messages_among_hundreds_as_among_ten() {
    scenario("scale", |world| {
        let few = cost(&world.host(&HostPlan::vm("few"))?, world.backend(), 10)?;
        let count = if in_vm() { 300 } else { 3_000 };
        let many = cost(&world.host(&HostPlan::vm("many"))?, world.backend(), count)?;
        println!(
            "scale: netlink messages for one changed record: {} and {} (it comes, it goes) among 10, {} and {} among \
             {count}",
            few.0, few.1, many.0, many.1
        );
        ensure!(few.0 > 0 && few.1 > 0, "nothing was counted");
        ensure!(many == few, "{many:?} against {few:?}");
        Ok(())
    });
}
