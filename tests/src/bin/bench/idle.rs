//! What daemons cost that have nothing to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use meshd_tests::harness::{Captured, Mesh};

use crate::{
    formed, in_a_world,
    process::{self, Cost},
    report::{Machine, Report},
};

/// After this, what joining caused has calmed down.
const SETTLE: Duration = Duration::from_secs(15);

pub(crate) fn measure(machine: Machine, hosts: u32, seconds: u32) -> Result<Report> {
    let mut report = Report::new(machine, "idle", hosts);
    in_a_world(hosts, |world| {
        let mesh = formed(world, hosts)?;
        std::thread::sleep(SETTLE);
        let daemons = mesh.hosts.iter().map(process::daemon).collect::<Result<Vec<_>>>()?;
        let devices = mesh.hosts.iter().map(process::userspace).collect::<Result<Vec<_>>>()?;
        let devices: Vec<u32> = devices.into_iter().flatten().collect();
        let capture = world.capture("idle")?;
        let start = Instant::now();
        let before = [costs(&daemons)?, costs(&devices)?];
        std::thread::sleep(Duration::from_secs(seconds.into()));
        let after = [costs(&daemons)?, costs(&devices)?];
        let took = start.elapsed().as_secs_f64();
        let captured = capture.stop(world)?;
        for (index, what, key) in [(0, "daemon", "daemon"), (1, "userspace WireGuard", "userspace")]
        {
            add_costs(&mut report, key, what, &before[index], &after[index], took);
        }
        add_traffic(&mut report, &captured, &mesh, took)?;
        report.add("seconds", "measured for", took, "s");
        Ok(())
    })?;
    Ok(report)
}

fn costs(pids: &[u32]) -> Result<Vec<Cost>> {
    pids.iter().map(|pid| Cost::of(*pid)).collect()
}

fn add_costs(
    report: &mut Report,
    key: &str,
    what: &str,
    before: &[Cost],
    after: &[Cost],
    seconds: f64,
) {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let rss: Vec<f64> = after.iter().map(|cost| mib(cost.rss_kib)).collect();
    let pss: Vec<f64> = after.iter().map(|cost| mib(cost.pss_kib)).collect();
    let used = |(before, after): (&Cost, &Cost)| after.cpu_seconds - before.cpu_seconds;
    let cpu: Vec<f64> = before.iter().zip(after).map(|pair| used(pair) / seconds * 100.0).collect();
    report.add_spread(&format!("{key}_rss_mib"), &format!("{what}: resident memory"), &rss, "MiB");
    report.add_spread(&format!("{key}_pss_mib"), &format!("{what}: share of memory"), &pss, "MiB");
    report.add_spread(
        &format!("{key}_cpu_percent"),
        &format!("{what}: processor, of one"),
        &cpu,
        "%",
    );
}

/// Bytes of IP packets on the underlay, by what they belong to. Each is seen once; what one host sends another receives.
fn add_traffic(report: &mut Report, captured: &Captured, mesh: &Mesh, seconds: f64) -> Result<()> {
    let hosts = mesh.hosts.len() as f64;
    for (key, what, filter) in [
        ("gossip", "gossip (UDP 51800)", "udp port 51800"),
        ("wireguard", "WireGuard (UDP 51820)", "udp port 51820"),
        ("other", "anything else", "not udp port 51800 and not udp port 51820"),
    ] {
        let packets = captured.packets(filter)?;
        let bytes = packets.iter().map(|line| ip_bytes(line)).sum::<Result<u64>>()?;
        let (per_second, each) = (bytes as f64 / seconds / hosts, packets.len() as f64);
        report.add(
            &format!("{key}_bytes_per_second"),
            &format!("{what}: sent per host, and received as much"),
            per_second,
            "B/s",
        );
        report.add(
            &format!("{key}_packets_per_second"),
            &format!("{what}: packets sent per host"),
            each / seconds / hosts,
            "1/s",
        );
    }
    Ok(())
}

/// Bytes of an IP packet, from the payload's length that tcpdump prints at the end of the line; 0 for what is not UDP.
fn ip_bytes(line: &str) -> Result<u64> {
    let Some((head, length)) = line.rsplit_once("UDP, length ") else { return Ok(0) };
    let payload: u64 = length.trim().parse().with_context(|| line.to_owned())?;
    let headers = if head.contains(" IP6 ") { 48 } else { 28 };
    Ok(payload + headers)
}
