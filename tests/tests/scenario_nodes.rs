//! Node addresses through the tunnel (`encrypt = "pods+nodes"`): switched on and off under way, host by host, beside
//! hosts that do not take part, under any reverse-path filter.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Flow, FlowReport, Host, HostPlan, LOSSES, Place, PodPlan, REBOOT, World, in_vm, pace, scenario,
    wait_for,
};

const NODES: &str = "[network]\nencrypt = \"pods+nodes\"\n";
const STRICT_NODES: &str = "[network]\nencrypt = \"pods+nodes\"\nleak_protection = \"strict\"\n";
/// What hosts may ask for by themselves.
const ALLOW: [&str; 4] = ["--allow", "192.0.2.0/24", "--allow", "2001:db8::/64"];
/// What of members may go in the clear: our own UDP, and what finds link addresses.
const NOT_OURS: &str = "not arp and not udp port 51800 and not udp port 51820 and not (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)";
const NOT_DISCOVERY: &str = "not arp and not (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)";

/// A mesh whose hosts may be granted their node addresses; `outside` has no meshd.
struct Site {
    hosts: Vec<Host>,
    outside: Host,
}

impl Site {
    fn build(world: &World, plans: &[HostPlan], config: &str, rp_filter: u8) -> Result<Self> {
        let hosts = plans.iter().map(|plan| world.host(plan)).collect::<Result<Vec<_>>>()?;
        let outside = world.host(&HostPlan::vm("outside"))?;
        for host in hosts.iter().chain([&outside]) {
            host.sh(&format!(
                "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {rp_filter} >$f; done"
            ))?;
        }
        let site = Self { hosts, outside };
        let (first, others) = site.hosts.split_first().context("no hosts")?;
        for host in &site.hosts {
            host.configure(config)?;
            host.start_daemon()?;
        }
        let with_prefixes = |host: &Host, words: &[&str]| -> Vec<String> {
            let prefixes = host.pod_prefixes();
            let exact = prefixes.iter().flat_map(|prefix| ["--prefix", prefix]);
            words.iter().copied().chain(exact).chain(ALLOW).map(str::to_owned).collect()
        };
        let run = |host: &Host, words: &[String]| -> Result<String> {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            Ok(host.meshctl(&words)?.ok()?.stdout)
        };
        run(first, &with_prefixes(first, &["init", "--mesh", "test"]))?;
        for host in others {
            let words = with_prefixes(host, &["token", "create", "--node", host.name()]);
            host.join(run(first, &words)?.trim())?;
        }
        for host in &site.hosts {
            host.wait_up(u32::try_from(site.hosts.len())? - 1, pace(20))?;
        }
        Ok(site)
    }
}

/// Forgets the link addresses of all neighbours, each once: `ip neigh flush` goes on until there are none, and so drops
/// what waits for those that are being asked for again.
const FORGET: &str = "ip neigh show dev eth0 | cut -d' ' -f1 | while read -r address; do
        ip neigh del \"$address\" dev eth0 || [ -z \"$(ip neigh show to \"$address\" dev eth0)\" ] || exit 1
    done";

/// Both families of a host's own addresses.
fn addresses(host: &Host) -> [String; 2] {
    [host.address(), host.address6()]
}

/// Whether packets of `from` to `to`'s node address go into the tunnel.
fn is_carried(from: &Host, to: &Host, family: usize) -> Result<bool> {
    let route = from.run(&["ip", "route", "get", &addresses(to)[family]])?;
    ensure!(
        !route.contains("mesh0") || route.contains(&format!("src {}", addresses(from)[family])),
        "the source is not the node address: {route}"
    );
    Ok(route.contains("mesh0"))
}

fn wait_carried(a: &Host, b: &Host, carried: bool) -> Result<()> {
    let what = format!("{} and {}: carried is {carried}", a.name(), b.name());
    wait_for(&what, pace(20), || {
        for (from, to) in [(a, b), (b, a)] {
            for family in [0, 1] {
                ensure!(
                    is_carried(from, to, family)? == carried,
                    "{}: {}\n{}",
                    from.name(),
                    from.run(&["ip", "route", "show", "table", "51820"])?,
                    from.meshctl(&["status"])?.stdout
                );
            }
        }
        Ok(())
    })
}

fn published(host: &Host, other: &Host) -> Result<()> {
    wait_for(&format!("{} takes {}'s node addresses", other.name(), host.name()), pace(30), || {
        let allowed = other.run(&["wg", "show", "mesh0", "allowed-ips"])?;
        for address in addresses(host) {
            ensure!(
                allowed.split_whitespace().any(|ip| ip.split('/').next() == Some(&address)),
                "{allowed}\n{}",
                host.meshctl(&["status"])?.stdout
            );
        }
        Ok(())
    })
}

fn reconfigure(host: &Host, config: &str) -> Result<()> {
    host.configure(config)?;
    host.reload_daemon()
}

/// A flow between the node addresses of both, in each family.
fn flows(a: &Host, b: &Host, seconds: u32) -> Result<Vec<Flow>> {
    let ends = addresses(a).into_iter().zip(addresses(b));
    // An emulated processor that cannot keep up is no loss.
    let rate = if in_vm() { 40 } else { 200 };
    ends.map(|(x, y)| Flow::start((a, &x), (b, &y), rate, seconds)).collect()
}

fn told(what: &str, flows: Vec<Flow>) -> Result<()> {
    let reports = flows.into_iter().map(Flow::report).collect::<Result<Vec<FlowReport>>>()?;
    for report in &reports {
        println!("nodes: {what}: {}", report.summary());
    }
    reports.iter().try_for_each(|report| report.nothing_lost(what))
}

fn switched_under_flows(rp_filter: u8) {
    scenario(&format!("nodes-{rp_filter}"), |world| {
        let plans = [HostPlan::node("a"), HostPlan::node("b"), HostPlan::vm("c")];
        let site = Site::build(world, &plans, "", rp_filter)?;
        let [a, b, c] = [&site.hosts[0], &site.hosts[1], &site.hosts[2]];
        let pods = [a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?];
        let seconds = u32::try_from(pace(8).as_secs())?;

        // One after the other.
        let beside = flows(a, c, seconds)?;
        let under = flows(a, b, seconds)?;
        reconfigure(a, NODES)?;
        published(a, b)?;
        ensure!(!is_carried(a, b, 0)? && !is_carried(b, a, 0)?, "carried before b agreed");
        reconfigure(b, NODES)?;
        wait_carried(a, b, true)?;
        told("switching a and b on", under)?;
        told("meanwhile with c, which has pods only", beside)?;

        // No packet between the two is in the clear any more; everybody reaches everybody.
        let capture = world.capture("both")?;
        for f in [0, 1] {
            let [to_a, to_b, to_c, out] =
                [a, b, c, &site.outside].map(|host| addresses(host)[f].clone());
            a.ping(&to_b, "")?;
            b.ping(&to_a, "")?;
            a.ping(&to_b, &to_a)?;
            pods[0].ping(&to_b, "").context("a pod to the other host")?;
            pods[1].ping(&to_a, "").context("a pod to the other host")?;
            let pod = [pods[1].address(), pods[1].address6()][f];
            a.ping(pod, "").context("a host to the other's pod")?;
            a.ping(pod, &to_a).context("from its node address")?;
            a.ping(&to_c, "")?;
            c.ping(&to_a, "")?;
            for host in [a, b, c] {
                host.ping(&out, "")?;
                site.outside.ping(&addresses(host)[f], "")?;
            }
            // What a pod sends to the mesh's own ports is none of the mesh's.
            for port in [51800, 51820, 51821] {
                for to in [to_b.as_str(), pod] {
                    pods[0].sh(&format!("bash -c 'echo leak >/dev/udp/{to}/{port}'"))?;
                }
            }
        }
        let captured = capture.stop(world)?;
        let pair = format!(
            "(host {} and host {}) or (host {} and host {})",
            a.address(),
            b.address(),
            a.address6(),
            b.address6()
        );
        let clear = captured.packets(&format!("({pair}) and {NOT_OURS}"))?;
        ensure!(clear.is_empty(), "in the clear: {clear:?}");
        let leaked = captured.packets(&format!(
            "net 10.244.0.0/16 or net fd00:10:244::/48 and not host {}",
            c.address()
        ))?;
        ensure!(leaked.is_empty(), "of pods in the clear: {leaked:?}");
        let ours = captured.packets(&format!("({pair}) and udp port 51820"))?;
        ensure!(ours.len() > 10, "the capture saw {} packets of WireGuard", ours.len());
        let control = captured.packets(&format!("host {} and icmp", c.address()))?;
        ensure!(!control.is_empty(), "the capture sees nothing in the clear at all");
        println!("nodes: 0 packets between a and b in the clear, {} of WireGuard", ours.len());

        // A daemon that is killed and started again, whose neighbours forget link addresses meanwhile.
        let under = flows(a, b, seconds)?;
        a.kill_daemon()?;
        a.sh(FORGET)?;
        b.sh(FORGET)?;
        a.start_daemon()?;
        a.wait_up(2, pace(20))?;
        wait_carried(a, b, true)?;
        told("kill -9 and start of a", under)?;

        // And off again.
        let under = flows(a, b, seconds)?;
        reconfigure(a, "")?;
        wait_carried(a, b, false)?;
        told("switching a off", under)?;
        // A userspace device keeps what was routed for a moment longer, and no more.
        wait_for("b takes a's node addresses no more", pace(20), || {
            let allowed = b.run(&["wg", "show", "mesh0", "allowed-ips"])?;
            let held = allowed.split_whitespace().filter_map(|ip| ip.split('/').next());
            ensure!(!held.into_iter().any(|ip| addresses(a).iter().any(|a| a == ip)), "{allowed}");
            Ok(())
        })?;
        a.ping(&b.address(), "")?;
        let left = a
            .sh("nft list table arp meshd 2>&1 || true; nft list table inet meshd; cat \
                         /proc/sys/net/ipv4/conf/eth0/src_valid_mark")?;
        ensure!(left.contains("No such file"), "{left}");
        ensure!(!left.contains("chain steer") && left.trim_end().ends_with('0'), "{left}");
        Ok(())
    });
}

#[test]
fn hosts_are_switched_on_and_off_under_a_strict_filter() {
    switched_under_flows(1);
}

#[test]
fn hosts_are_switched_on_and_off_under_a_loose_filter() {
    switched_under_flows(2);
}

#[test]
fn hosts_are_switched_on_and_off_without_a_filter() {
    switched_under_flows(0);
}

/// Packets between the addresses of two hosts that the wire shows in the clear, while `a` sends to `b` by ICMP and by UDP
/// to ports of the mesh and others.
fn clear_packets(world: &World, a: &Host, b: &Host, name: &str) -> Result<Vec<String>> {
    let capture = world.capture(name)?;
    let script = format!(
        "for t in {}; do
           (ping -n -c1 -W1 $t >/dev/null 2>&1 || true) &
           for p in 51800 51820 9; do (echo leak >/dev/udp/$t/$p) 2>/dev/null || true; done
         done; wait",
        addresses(b).join(" ")
    );
    a.run(&["bash", "-c", &script])?;
    let captured = capture.stop(world)?;
    // What bash sends comes from a port of its own: none of ours.
    let pair = format!(
        "((src host {} and dst host {}) or (src host {} and dst host {}))",
        a.address(),
        b.address(),
        a.address6(),
        b.address6()
    );
    captured.packets(&format!(
        "{pair} and {NOT_DISCOVERY} and not (udp and (src port 51800 or src port 51820))"
    ))
}

#[test]
fn strict_protection_covers_node_addresses() {
    scenario("nodes-strict", |world| {
        let plans = [HostPlan::node("a"), HostPlan::vm("b")];
        let site = Site::build(world, &plans, STRICT_NODES, 1)?;
        let [a, b] = [&site.hosts[0], &site.hosts[1]];
        wait_carried(a, b, true)?;
        for (from, to) in [(a, b), (b, a)] {
            addresses(to).iter().try_for_each(|to| from.ping(to, "").map(drop))?;
        }
        a.ping(&site.outside.address(), "").context("who is no member is reached")?;
        for (number, (name, loss)) in LOSSES.iter().enumerate() {
            a.kill_daemon()?;
            a.sh(loss).with_context(|| (*name).to_owned())?;
            let clear = clear_packets(world, a, b, &format!("loss-{number}"))?;
            ensure!(clear.is_empty(), "{name}: in the clear: {clear:?}");
            a.start_daemon()?;
            a.wait_up(1, pace(30))?;
            wait_carried(a, b, true)?;
            addresses(b).iter().try_for_each(|to| a.ping(to, "").map(drop)).context(*name)?;
            println!("nodes: strict, {name}: nothing in the clear, and back");
        }
        a.kill_daemon()?;
        a.sh(REBOOT)?;
        let mut guard = a.program("meshd")?;
        guard.arg("guard");
        let said = meshd_tests::harness::run(guard, "", pace(20))?.ok()?.stdout;
        ensure!(said.contains("the leak guard stands"), "meshd guard said {said:?}");
        let clear = clear_packets(world, a, b, "boot")?;
        ensure!(clear.is_empty(), "before the daemon: in the clear: {clear:?}");
        a.sh(FORGET)?;
        a.start_daemon()?;
        a.wait_up(1, pace(30))?;
        wait_carried(a, b, true)?;
        addresses(b)
            .iter()
            .try_for_each(|to| a.ping(to, "").map(drop))
            .context("after the boot")?;
        println!("nodes: strict, boot: nothing in the clear, and back");
        // Without protection the capture sees what it must.
        a.stop_daemon()?;
        let mut cleanup = a.program("meshd")?;
        cleanup.arg("cleanup");
        meshd_tests::harness::run(cleanup, "", pace(20))?.ok()?;
        let clear = clear_packets(world, a, b, "control")?;
        ensure!(clear.len() >= 4, "the control saw {clear:?} only");
        let left = a.sh("cat /proc/sys/net/ipv4/conf/eth0/src_valid_mark; nft list tables")?;
        ensure!(!left.contains("meshd") && left.starts_with('0'), "after a cleanup: {left}");
        println!("nodes: control, without protection: {} packets in the clear", clear.len());
        Ok(())
    });
}

/// What somebody does, and what shows that it is repaired: a script that must succeed again. `B`: an address of the other.
const DRIFTS: [(&str, &str, &str); 6] = [
    ("the ARP table goes", "nft delete table arp meshd", "nft list table arp meshd | grep -q 0x"),
    (
        "the ARP mark goes",
        "nft flush chain arp meshd input",
        "nft list table arp meshd | grep -q 0x",
    ),
    (
        "the marks go",
        "nft flush chain inet meshd steer",
        "nft list chain inet meshd steer | grep -q 51820",
    ),
    (
        "an address leaves the set",
        "nft delete element inet meshd routed4 '{ <B> }'",
        "nft list set inet meshd routed4 | grep -q <B>",
    ),
    (
        "the sysctl is off",
        "echo 0 >/proc/sys/net/ipv4/conf/eth0/src_valid_mark",
        "grep -q 1 /proc/sys/net/ipv4/conf/eth0/src_valid_mark",
    ),
    (
        "the route goes",
        "ip route del <B> dev mesh0 table 51820",
        "ip route show table 51820 | grep -q '^<B> dev mesh0'",
    ),
];

#[test]
fn drift_is_repaired_and_a_leave_leaves_no_trace() {
    scenario("nodes-drift", |world| {
        let site = Site::build(world, &[HostPlan::vm("a"), HostPlan::vm("b")], NODES, 1)?;
        let [a, b] = [&site.hosts[0], &site.hosts[1]];
        wait_carried(a, b, true)?;
        for (what, how, whole) in DRIFTS {
            let [how, whole] = [how, whole].map(|script| script.replace("<B>", &b.address()));
            a.sh(&how)?;
            wait_for(what, pace(20), || a.sh(&whole).map(drop))?;
            println!("nodes: {what}: repaired");
        }
        wait_carried(a, b, true)?;
        a.ping(&b.address(), "")?;
        // The other's address is only reached in the clear once it has heard of the leave.
        b.meshctl(&["leave"])?.ok()?;
        wait_for("a reaches b in the clear", pace(20), || {
            ensure!(!is_carried(a, b, 0)? && !is_carried(a, b, 1)?, "a still carries b");
            a.ping(&b.address(), "").map(drop)
        })?;
        let left = b.sh("cat /proc/sys/net/ipv4/conf/eth0/src_valid_mark; nft list tables")?;
        ensure!(!left.contains("meshd") && left.starts_with('0'), "after the leave: {left}");
        Ok(())
    });
}
