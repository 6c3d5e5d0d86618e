//! Paths that are narrower than the links at their ends, behind a router that says nothing: each is measured, and what
//! people send arrives.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Backend, Host, HostPlan, Mesh, Place, Router, Running, World, pace, scenario, wait_for,
};
use serde_json::Value;

/// The path from `host` to `peer`: bytes of the encrypted packet, state. Which family it goes over is decided by who sends
/// first.
fn path(host: &Host, peer: &Host) -> Result<(u64, String)> {
    let out = host.meshctl(&["mtu", "-o", "json"])?.ok()?.stdout;
    let paths: Vec<Value> = serde_json::from_str(&out)?;
    let path = paths.iter().find(|path| path["name"] == peer.name()).context("no such peer")?;
    let state = path["state"].as_str().unwrap_or_default().to_owned();
    let overhead = if path["underlay"] == "ipv6" { 80 } else { 60 };
    Ok((path["mtu"].as_u64().context("no MTU")? + overhead, state))
}

/// Waits until both directions are measured as one of `sizes`; says how long that took.
fn measured(
    a: &Host,
    b: &Host,
    sizes: std::ops::RangeInclusive<u64>,
    since: Instant,
) -> Result<Duration> {
    for (here, there) in [(a, b), (b, a)] {
        let what = format!("the path from {} to {} is measured", here.name(), there.name());
        wait_for(&what, pace(30), || {
            let (mtu, state) = path(here, there)?;
            ensure!(sizes.contains(&mtu) && state == "measured", "{mtu}, {state}");
            Ok(())
        })?;
    }
    Ok(since.elapsed())
}

/// WireGuard in a process pads by the device, not by the route: there sizes are told apart by 16.
fn about(world: &World, exact: u64) -> std::ops::RangeInclusive<u64> {
    match world.backend() {
        Backend::Kernel => exact..=exact,
        Backend::Userspace => exact - 15..=exact,
    }
}

/// 10 MB over TCP between mesh addresses, over IPv4 and, unless that is refused, over IPv6.
fn transfer(from: &Host, to: &Host, v6_too: bool) -> Result<Vec<Duration>> {
    let (v4, v6) = to.mesh_addresses()?;
    let mut took = Vec::new();
    for address in [Some(v4), v6_too.then_some(v6)].into_iter().flatten() {
        let server = to.start(&["timeout", "240", "iperf3", "-s", "-1", "-B", &address])?;
        wait_for("iperf3 listens", pace(10), || {
            to.sh("ss -tln | grep -q :5201").context("not yet")
        })?;
        let start = Instant::now();
        from.run(&["timeout", "120", "iperf3", "-c", &address, "-n", "10M"])
            .with_context(|| format!("10 MB from {} to {address}", from.name()))?;
        took.push(start.elapsed());
        server.finish(pace(20))?;
    }
    Ok(took)
}

/// Requests and replies of 1,372 bytes of payload, over both families; what is too large for the route goes in fragments
/// inside the tunnel.
fn ask(from: &Host, to: &Host) -> Result<()> {
    let (v4, _) = to.mesh_addresses()?;
    from.meshctl(&["ping", to.name(), "-s", "1372", "-c", "3", "-i", "200"])?.ok()?;
    from.run(&["ping", "-n", "-c", "2", "-i", "0.3", "-W", "3", "-s", "1372", "-M", "dont", &v4])
        .map(drop)
}

fn flow(from: &Host, to: &Host, seconds: u32) -> Result<[Running; 2]> {
    let (v4, _) = to.mesh_addresses()?;
    let server = to.start(&["timeout", "240", "iperf3", "-s", "-1", "-B", &v4])?;
    wait_for("iperf3 listens", pace(10), || to.sh("ss -tln | grep -q :5201").context("not yet"))?;
    let seconds = seconds.to_string();
    let client =
        from.start(&["timeout", "200", "iperf3", "-c", &v4, "-t", &seconds, "-b", "10M"])?;
    Ok([client, server])
}

fn start(mesh: &Mesh) -> Result<Instant> {
    mesh.start()?;
    mesh.join_all()?;
    mesh.wait_handshaken(pace(30))?;
    Ok(Instant::now())
}

#[test]
fn a_narrow_path_is_measured_while_a_jumbo_pair_keeps_its_size() {
    scenario("mtu", |world| {
        let plans = [HostPlan::vm("a"), HostPlan::vm("b"), HostPlan::vm("c")];
        let mesh = Mesh::unstarted(world, &plans)?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        world.link_mtu(a, 9_000)?;
        world.link_mtu(c, 9_000)?;
        let router = Router::before(world, b, &[a, c], 1_500)?;
        router.narrow(1_400)?;
        let since = start(&mesh)?;
        let jumbo = measured(a, c, 8_965..=9_000, since)?;
        let narrow = measured(a, b, about(world, 1_400), since)?;
        println!(
            "mtu: after the last first handshake jumbo (encrypted {:?}) took {jumbo:.1?}, narrow ({:?}) {narrow:.1?}",
            path(a, c)?.0,
            path(a, b)?.0
        );
        let took = transfer(a, b, true)?;
        println!("mtu: 10 MB over the narrow path took {took:.1?}");
        ask(a, b)?;
        ask(a, c)?;

        let sent = || -> Result<u64> {
            Ok(a.run(&["cat", "/sys/class/net/mesh0/statistics/tx_bytes"])?.trim().parse()?)
        };
        let before = sent()?;
        let [client, server] = flow(a, b, if meshd_tests::harness::in_vm() { 40 } else { 25 })?;
        wait_for("the flow is under way", pace(20), || {
            let now = sent()?;
            ensure!(now > before + 5_000_000, "{} bytes", now - before);
            Ok(())
        })?;
        let since = Instant::now();
        router.narrow(1_360)?;
        wait_for("the smaller path is noticed", pace(30), || {
            let (mtu, state) = path(a, b)?;
            ensure!(mtu <= 1_360, "{mtu}, {state}");
            Ok(())
        })?;
        println!("mtu: a path that shrank in use was noticed after {:.1?}", since.elapsed());
        let again = measured(a, b, about(world, 1_360), since)?;
        println!("mtu: and measured after {again:.1?}");
        let ran = client.finish(pace(120))?.ok()?;
        println!("mtu: {}", ran.stdout.lines().rev().nth(2).unwrap_or_default().trim());
        server.finish(pace(20))?;
        transfer(a, b, true)?;
        let events = a.meshctl(&["events", "--code", "path_mtu_changed"])?.ok()?.stdout;
        ensure!(events.lines().count() >= 3, "{events}");
        Ok(())
    });
}

#[test]
fn a_path_too_small_for_ipv6_carries_it_in_fragments() {
    scenario("mtu-small", |world| {
        let mesh = Mesh::unstarted(world, &[HostPlan::vm("a"), HostPlan::vm("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let router = Router::before(world, b, &[a], 1_500)?;
        router.narrow(1_300)?;
        let since = start(&mesh)?;
        let took = measured(a, b, 1_285..=1_300, since)?;
        println!("mtu-small: {} encrypted was measured after {took:.1?}", path(a, b)?.0);
        wait_for("the health line", pace(10), || {
            let health = a.status()?.health;
            ensure!(health.iter().any(|line| line.code == "path_mtu_small"), "{health:?}");
            Ok(())
        })?;
        // A WireGuard process sets DF itself.
        let fragments = world.backend() == Backend::Kernel;
        let took = transfer(a, b, fragments)?;
        println!("mtu-small: 10 MB took {took:.1?}");
        if fragments {
            ask(a, b)?;
        }
        let paths = a.meshctl(&["mtu"])?.ok()?.stdout;
        println!("mtu-small: {}", paths.trim().replace('\n', "\nmtu-small: "));
        Ok(())
    });
}

#[test]
fn a_narrow_ipv6_underlay_is_measured() {
    scenario("mtu-over-six", |world| {
        let mesh = Mesh::unstarted(world, &[HostPlan::vm("a"), HostPlan::vm("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        for host in [a, b] {
            host.configure(&format!("[network]\nnode_addresses = [\"{}\"]", host.address6()))?;
        }
        let router = Router::before(world, b, &[a], 1_500)?;
        router.narrow(1_400)?;
        let since = start(&mesh)?;
        let took = measured(a, b, about(world, 1_400), since)?;
        println!("mtu-over-six: {} encrypted was measured after {took:.1?}", path(a, b)?.0);
        let took = transfer(a, b, true)?;
        println!("mtu-over-six: 10 MB took {took:.1?} over IPv4 and IPv6");
        ask(a, b)
    });
}
