//! Two zones whose hosts are hidden behind gateways, and a machine outside of both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Fence, Flow, Host, HostPlan, Mesh, Place, Pod, PodPlan, World, in_vm, pace, scenario, wait_for,
};
use serde_json::Value;

const STRICT: &str = "[network]\nleak_protection = \"strict\"\n";
const GATEWAY: &str = "gateway = true\n";

fn zone(name: &str, more: &str) -> String {
    format!("{STRICT}[node]\nzone = \"{name}\"\n{more}")
}

/// Zone `private`: h1 and h2 behind gw1 and gw2. Zone `cellar`: hb behind gwb. Outside: out.
struct Site {
    mesh: Mesh,
    pods: Vec<Pod>,
}

const NAMES: [&str; 7] = ["gw1", "gw2", "h1", "h2", "out", "gwb", "hb"];

impl Site {
    fn build(world: &World) -> Result<Self> {
        let plans = NAMES.map(HostPlan::node);
        let mesh = Mesh::unstarted(world, &plans)?;
        let site = Self { mesh, pods: Vec::new() };
        let [gw1, gw2, h1, h2, out, gwb, hb] = site.hosts();
        let behind = "gateways = [\"gw1\", \"gw2\"]\n";
        for (host, config) in [
            (gw1, zone("private", GATEWAY)),
            (gw2, zone("private", GATEWAY)),
            (h1, zone("private", behind)),
            (h2, zone("private", behind)),
            (out, STRICT.to_owned()),
            (gwb, zone("cellar", GATEWAY)),
            (hb, zone("cellar", "gateways = [\"gwb\"]\n")),
        ] {
            host.configure(&config)?;
        }
        Fence::only(h1, &[gw1, gw2, h2])?;
        Fence::only(h2, &[gw1, gw2, h1])?;
        Fence::only(hb, &[gwb])?;
        for host in [out, gwb] {
            Fence::without(host, &[h1, h2])?;
        }
        for host in [gw1, gw2] {
            Fence::without(host, &[hb])?;
        }
        Fence::without(out, &[h1, h2, hb])?;
        site.mesh.start()?;
        gw1.init_mesh()?;
        for host in [gw2, gwb, out, h1, h2] {
            host.join(&gw1.token_for(host)?)?;
        }
        // By a member that it reaches.
        let prefixes = hb.pod_prefixes();
        let seed = format!("{}:51800", gwb.address());
        let mut create = vec!["token", "create", "--node", "hb", "--seed", &seed];
        prefixes.iter().for_each(|prefix| create.extend(["--prefix", prefix]));
        let token = gw1.meshctl(&create)?.ok()?.stdout;
        hb.join(token.trim())?;
        let pods = [h1, h2, out, hb]
            .map(|host| host.pod(&PodPlan::plain(&format!("pod-{}", host.name()))))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let site = Self { pods, ..site };
        site.settle()?;
        Ok(site)
    }

    fn hosts(&self) -> [&Host; 7] {
        std::array::from_fn(|i| &self.mesh.hosts[i])
    }

    fn host(&self, name: &str) -> Result<&Host> {
        self.mesh.hosts.iter().find(|host| host.name() == name).context("no such host")
    }

    fn pod(&self, of: &str) -> Result<&Pod> {
        let name = format!("pod-{of}");
        self.pods.iter().find(|pod| pod.name() == name).context("no such pod")
    }

    /// Everybody sees everybody.
    fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        for host in &self.mesh.hosts {
            host.wait_up(6, pace(60)).with_context(|| peers(host))?;
        }
        wait_for("all see all", pace(60), || self.mesh.hosts.iter().try_for_each(alive))?;
        println!("zones: all see all {:.1?} after the last has joined", begun.elapsed());
        Ok(())
    }

    /// There and back, both families.
    fn pings(&self, a: &str, b: &str) -> Result<()> {
        let (from, to) = (self.pod(a)?, self.pod(b)?);
        for (one, other) in [(from, to), (to, from)] {
            for address in [other.address(), other.address6()] {
                one.ping(address, "")
                    .with_context(|| format!("{} to {}", one.name(), other.name()))?;
            }
        }
        Ok(())
    }

    fn is_via(&self, host: &str, peer: &str, gateway: Option<&str>) -> Result<()> {
        let row = self.host(host)?.peer(peer)?;
        ensure!(row.via.as_deref() == gateway, "{host} to {peer}: {row:?}");
        Ok(())
    }
}

fn peers(host: &Host) -> String {
    host.meshctl(&["peers", "list", "-o", "wide"]).map(|ran| ran.stdout).unwrap_or_default()
}

fn alive(host: &Host) -> Result<()> {
    for peer in host.peers()? {
        ensure!(peer.gossip == "alive" && peer.tunnel == "up", "{}: {peer:?}", host.name());
    }
    Ok(())
}

/// Every tunnel carries and nobody is down. A slow machine doubts now and then, and is answered.
fn not_down(host: &Host) -> Result<()> {
    for peer in host.peers()? {
        ensure!(peer.gossip != "down" && peer.tunnel == "up", "{}: {peer:?}", host.name());
    }
    Ok(())
}

/// How often members were called down on `host`.
fn downs(host: &Host) -> Result<usize> {
    let arguments = ["events", "-o", "json", "--code", "member_down"];
    let said = host.meshctl(&arguments)?.ok()?.stdout;
    let events: Value = serde_json::from_str(&said)?;
    Ok(events.as_array().with_context(|| said.clone())?.len())
}

fn all_downs(site: &Site) -> Result<usize> {
    site.mesh.hosts.iter().map(downs).sum()
}

#[test]
fn hidden_hosts_are_reached_through_their_gateways() {
    scenario("zones", |world| {
        let site = Site::build(world)?;
        for (host, peer, gateway) in [
            ("out", "h1", Some("gw1")),
            ("out", "hb", Some("gwb")),
            ("out", "gw1", None),
            ("h1", "out", Some("gw1")),
            ("h1", "hb", Some("gw1")),
            ("h1", "h2", None),
            ("h1", "gw2", None),
            ("gw1", "hb", Some("gwb")),
            ("hb", "h1", Some("gwb")),
        ] {
            site.is_via(host, peer, gateway)?;
        }
        ensure!(site.host("h1")?.status()?.via.as_deref() == Some("gw1"));
        carries(world, &site)?;
        let before = all_downs(&site)?;
        quiet(&site)?;
        fails_over(world, &site)?;
        println!("zones: members were called down {before} times while the mesh formed");
        Ok(())
    });
}

/// Pods and hosts reach each other, and nothing of it shows.
fn carries(world: &World, site: &Site) -> Result<()> {
    let capture = world.capture("carries")?;
    for (a, b) in [("h1", "out"), ("h1", "hb"), ("h2", "out"), ("h2", "hb"), ("out", "hb")] {
        site.pings(a, b)?;
    }
    for (a, b) in [("h1", "out"), ("hb", "h2"), ("out", "hb")] {
        let (v4, v6) = site.host(b)?.mesh_addresses()?;
        site.host(a)?.ping(&v4, "").with_context(|| format!("{a} to the host {b}"))?;
        site.host(a)?.ping(&v6, "").with_context(|| format!("{a} to the host {b}"))?;
    }
    let captured = capture.stop(world)?;
    let clear = "net 10.244.0.0/16 or net fd00:10:244::/48 or net 100.64.0.0/10 or net fc00::/7";
    let leaks = captured.packets(clear)?;
    ensure!(leaks.is_empty(), "in the clear: {leaks:?}");
    let around = format!(
        "udp port 51820 and host {} and host {}",
        site.host("h1")?.address(),
        site.host("out")?.address()
    );
    let around = captured.packets(&around)?;
    ensure!(around.is_empty(), "tried around the gateway: {around:?}");

    // Within the zone nobody is between.
    let capture = world.capture("direct")?;
    let pods = [site.pod("h1")?, site.pod("h2")?];
    let report = Flow::start((pods[0], pods[0].address()), (pods[1], pods[1].address()), 200, 5)?
        .report()?;
    report.nothing_lost("within the zone")?;
    let captured = capture.stop(world)?;
    let tunnel = |a: &str, b: &str| -> Result<usize> {
        let (a, b) = (site.host(a)?, site.host(b)?);
        let of = |a: String, b: String| format!("(udp port 51820 and host {a} and host {b})");
        let filter =
            format!("{} or {}", of(a.address(), b.address()), of(a.address6(), b.address6()));
        Ok(captured.packets(&filter)?.len())
    };
    let (direct, around) = (tunnel("h1", "h2")?, tunnel("h1", "gw1")? + tunnel("h2", "gw1")?);
    // Of 2,000, each of which arrived; a capture on a slow processor misses some.
    ensure!(direct >= 1_800 && around < 400, "{direct} packets direct, {around} to and from gw1");
    println!(
        "zones: within the zone {direct} packets directly, {around} with the gateway meanwhile"
    );
    Ok(())
}

/// Nobody is taken for gone, and no gateway is changed, while nothing happens.
fn quiet(site: &Site) -> Result<()> {
    let before = all_downs(site)?;
    let begun = Instant::now();
    let time = if in_vm() { Duration::from_secs(90) } else { Duration::from_secs(45) };
    while begun.elapsed() < time {
        for host in &site.mesh.hosts {
            not_down(host)?;
        }
        ensure!(site.host("h1")?.status()?.via.as_deref() == Some("gw1"));
    }
    let downs = all_downs(site)? - before;
    ensure!(downs == 0, "{downs} false alarms in {time:?}");
    println!("zones: no member called down in {time:?}");
    Ok(())
}

/// A gateway dies under flows and comes back.
fn fails_over(world: &World, site: &Site) -> Result<()> {
    let (h1, out) = (site.pod("h1")?, site.pod("out")?);
    let hb = site.pod("hb")?;
    let seconds = if in_vm() { 180 } else { 40 };
    let capture = world.capture("fails-over")?;
    let flows = [
        Flow::start((h1, h1.address()), (out, out.address()), 50, seconds)?,
        Flow::start((h1, h1.address6()), (hb, hb.address6()), 50, seconds)?,
    ];
    let gw1 = site.host("gw1")?;
    let carried = || -> Result<u64> {
        Ok(gw1.sh("cat /sys/class/net/mesh0/statistics/rx_packets")?.trim().parse()?)
    };
    let before = carried()?;
    wait_for("the gateway carries the flows", pace(20), || {
        let packets = carried()? - before;
        // Two flows, both ways, 50 packets a second: some seconds of them.
        ensure!(packets > 600, "{packets} packets");
        Ok(())
    })?;
    let gone = Instant::now();
    world.cable(gw1, false)?;
    wait_for("h1 and h2 name the other gateway", pace(30), || {
        for host in ["h1", "h2"] {
            let via = site.host(host)?.status()?.via;
            ensure!(via.as_deref() == Some("gw2"), "{host} is reached through {via:?}");
        }
        Ok(())
    })?;
    println!("zones: the other gateway is named {:.1?} after the first was gone", gone.elapsed());
    for flow in flows {
        let report = flow.report()?;
        println!("zones: gateway gone under flow: {}", report.summary());
        let gap = report.first.longest_gap_ms.max(report.second.longest_gap_ms);
        ensure!(gap < if in_vm() { 90_000.0 } else { 20_000.0 }, "{report:?}");
        ensure!(report.first.received > 0 && report.second.received > 0, "{report:?}");
    }
    site.pings("h1", "out")?;
    site.is_via("out", "h1", Some("gw2"))?;
    let leaks = capture.stop(world)?.packets("net 10.244.0.0/16 or net fd00:10:244::/48")?;
    ensure!(leaks.is_empty(), "in the clear: {leaks:?}");

    world.cable(gw1, true)?;
    let back = Instant::now();
    wait_for("h1 and h2 are back at the first gateway", pace(240), || {
        for host in ["h1", "h2"] {
            let via = site.host(host)?.status()?.via;
            ensure!(via.as_deref() == Some("gw1"), "{host} is reached through {via:?}");
        }
        Ok(())
    })?;
    println!("zones: back at the first gateway {:.1?} after it was there again", back.elapsed());
    ensure!(back.elapsed() > Duration::from_secs(55), "it has to be there for a while first");
    wait_for("all see all again", pace(60), || site.mesh.hosts.iter().try_for_each(alive))?;
    site.pings("h1", "out")?;
    site.pings("h1", "hb")
}

/// A gateway that lives, and answers its zone, while nothing passes between it and the outside.
#[test]
fn a_gateway_that_leads_nowhere_is_left_for_the_other() {
    scenario("zones-nowhere", |world| {
        let site = Site::build(world)?;
        let [gw1, gw2, h1, h2, ..] = site.hosts();
        let cut = Instant::now();
        Fence::only(gw1, &[gw2, h1, h2])?;
        wait_for("h1 and h2 name the other gateway", pace(40), || {
            for host in [h1, h2] {
                let via = host.status()?.via;
                ensure!(
                    via.as_deref() == Some("gw2"),
                    "{} is reached through {via:?}",
                    host.name()
                );
            }
            Ok(())
        })?;
        println!("zones-nowhere: left {:.1?} after its way out was cut", cut.elapsed());
        wait_for("h1 reaches the outside", pace(10), || site.pings("h1", "out"))?;
        let gw1_at_h1 = h1.peer("gw1")?;
        ensure!(gw1_at_h1.gossip == "alive", "for its zone it is there: {gw1_at_h1:?}");
        Fence::without(gw1, &[site.host("hb")?])?;
        Ok(())
    });
}
