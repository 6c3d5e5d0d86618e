//! What flows lose when a daemon ends and starts again.

use anyhow::{Result, ensure};
use meshd_tests::harness::{Flow, Host, Place, pace, wait_for};

use crate::{
    formed, in_a_world,
    report::{Machine, Report},
};

const HOSTS: u32 = 3;
const PACKETS_PER_SECOND: u32 = 1_000;
const SECONDS: u64 = 12;

/// What is done to the daemon of a host.
type Disturb = fn(&Host) -> Result<()>;

pub(crate) fn measure(machine: Machine) -> Result<Report> {
    let mut report = Report::new(machine, "restart", HOSTS);
    in_a_world(HOSTS, |world| {
        let mesh = formed(world, HOSTS)?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        // The control flow is of the other family: both end at one port of b.
        let addresses = [
            a.mesh_addresses()?.0,
            b.mesh_addresses()?.0,
            c.mesh_addresses()?.1,
            b.mesh_addresses()?.1,
        ];
        let ways: [(&str, &str, Disturb); 2] = [
            ("kill", "kill -9 and start", |host| {
                host.kill_daemon()?;
                host.start_daemon().map(drop)
            }),
            ("term", "SIGTERM and start", |host| {
                host.stop_daemon()?;
                host.start_daemon().map(drop)
            }),
        ];
        for (key, what, restart) in ways {
            let seconds = u32::try_from(pace(SECONDS).as_secs())?;
            let [of_a, of_b, of_c, of_b_too] = &addresses;
            let before = sent(a)?;
            let disturbed = Flow::start((a, of_a), (b, of_b), PACKETS_PER_SECOND, seconds)?;
            let control = Flow::start((c, of_c), (b, of_b_too), PACKETS_PER_SECOND, seconds)?;
            wait_for("the flows flow", pace(10), || {
                let packets = sent(a)?.saturating_sub(before);
                ensure!(packets > 1_000, "{packets} packets");
                Ok(())
            })?;
            restart(a)?;
            let (disturbed, control) = (disturbed.report()?, control.report()?);
            let mut add = |key: String, what: String, value: u32| {
                report.add(&key, &what, f64::from(value), "packets");
            };
            let lost = |flow: &meshd_tests::harness::FlowReport| flow.first.lost + flow.second.lost;
            add(format!("{key}_lost"), format!("{what}: lost, both ways"), lost(&disturbed));
            add(
                format!("{key}_control_lost"),
                format!("{what}: a flow beside it lost, both ways"),
                lost(&control),
            );
            add(
                format!("{key}_sent"),
                format!("{what}: sent by each flow, both ways"),
                disturbed.first.sent + disturbed.second.sent,
            );
        }
        Ok(())
    })?;
    Ok(report)
}

/// Packets that have gone out through the tunnel.
fn sent(host: &Host) -> Result<u64> {
    Ok(host.run(&["cat", "/sys/class/net/mesh0/statistics/tx_packets"])?.trim().parse()?)
}
