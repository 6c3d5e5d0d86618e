//! The rig itself: what the other scenarios rely on is seen to work, and each instrument is seen to catch what it is for.

use anyhow::{Result, ensure};
use meshd_tests::harness::{Flow, Host, HostPlan, Place, PodPlan, Snapshot, scenario};

#[test]
fn a_capture_sees_every_packet_between_hosts() {
    scenario("rig-capture", |world| {
        let a = world.host(&HostPlan::vm("a"))?;
        let b = world.host(&HostPlan::vm("b"))?;
        let capture = world.capture("wire")?;
        for address in [b.address(), b.address6()] {
            a.run(&["ping", "-q", "-n", "-c", "20", "-i", "0.01", &address])?;
        }
        let captured = capture.stop(world)?;
        for filter in ["icmp[icmptype] == icmp-echo", "icmp6 and ip6[40] == 128"] {
            let count = captured.packets(filter)?.len();
            ensure!(count == 20, "{count} packets instead of 20 for {filter}");
        }
        Ok(())
    });
}

#[test]
fn a_flow_counts_what_a_cut_cable_loses() {
    scenario("rig-flow", |world| {
        let a = world.host(&HostPlan::vm("a"))?;
        let b = world.host(&HostPlan::vm("b"))?;
        let whole = Flow::start((&a, &a.address()), (&b, &b.address()), 500, 2)?.report()?;
        whole.nothing_lost("a flow over an untouched cable")?;

        let flow = Flow::start((&a, &a.address6()), (&b, &b.address6()), 500, 4)?;
        wait_for_traffic(&b)?;
        world.cable(&a, false)?;
        // The length of the cut is the thing under test, so this one is a time and not a condition.
        std::thread::sleep(std::time::Duration::from_millis(700));
        world.cable(&a, true)?;
        let cut = flow.report()?;
        // Towards the cut port; in the other direction, the sender's neighbour queue keeps some.
        let seen = cut.first;
        ensure!(seen.lost > 50 && seen.received > 50 && seen.longest_gap_ms > 100.0, "{seen:?}");
        ensure!(seen.gaps.iter().map(|gap| gap.packets).sum::<u32>() == seen.lost, "{seen:?}");
        Ok(())
    });
}

/// UDP datagrams that arrived in the host.
fn arrived(host: &Host) -> Result<u64> {
    let counters = host.run(&["cat", "/proc/net/snmp6"])?;
    let line = counters.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

fn wait_for_traffic(host: &Host) -> Result<()> {
    let before = arrived(host)?;
    meshd_tests::harness::wait_for("traffic", meshd_tests::harness::pace(5), || {
        let now = arrived(host)?;
        ensure!(now > before + 100, "{before} and {now} datagrams");
        Ok(())
    })
}

#[test]
fn pods_come_from_the_real_plugins_and_reach_their_host() {
    scenario("rig-pods", |world| {
        let node = world.host(&HostPlan::node("node"))?;
        let plain = node.pod(&PodPlan::plain("plain"))?;
        let hidden = node.pod(&PodPlan::masqueraded("hidden"))?;
        ensure!(
            plain.address().starts_with("10.244.1.")
                && plain.address6().starts_with("fd00:10:244:1:"),
            "{plain:?}"
        );
        node.ping(plain.address(), "")?;
        node.ping(plain.address6(), "")?;
        plain.ping(hidden.address(), "")?;

        // Only the masqueraded pod's packets carry the node's address on the wire.
        let other = world.host(&HostPlan::vm("other"))?;
        let capture = world.capture("wire")?;
        hidden.ping(&other.address(), "")?;
        plain.try_run(&["ping", "-n", "-c", "1", "-W", "1", &other.address()])?;
        let captured = capture.stop(world)?;
        let seen = |source: &str| {
            captured.packets(&format!("icmp[icmptype] == icmp-echo and src host {source}"))
        };
        ensure!(
            seen(&node.address())?.len() == 1,
            "the masqueraded pod's request is not on the wire"
        );
        ensure!(seen(plain.address())?.len() == 1, "the plain pod's request is not on the wire");
        ensure!(
            seen(hidden.address())?.is_empty(),
            "the masqueraded pod's own address is on the wire"
        );
        Ok(())
    });
}

#[test]
fn a_snapshot_shows_every_kind_of_trace() {
    scenario("rig-snapshot", |world| {
        let host = world.host(&HostPlan::node("host"))?;
        let before = Snapshot::take(&host)?;
        ensure!(
            before.differences(&Snapshot::take(&host)?, &[]).is_empty(),
            "two snapshots of one state differ"
        );
        let traces = [
            ("links", "ip link add trace type bridge"),
            ("addresses", "ip addr add 10.1.1.1/32 dev lo"),
            ("routes", "ip route add unreachable 10.2.0.0/16 table 51820"),
            ("rules", "ip -6 rule add lookup 51820 pref 2600"),
            ("nftables", "nft add table inet meshd"),
            ("sysctls", "echo 1 >/proc/sys/net/ipv4/conf/eth0/src_valid_mark"),
            ("wireguard", "touch /run/wireguard/mesh0.sock"),
            ("state", "touch /var/lib/meshd/file"),
        ];
        for (part, script) in traces {
            let before = Snapshot::take(&host)?;
            host.sh(script)?;
            let seen = before.differences(&Snapshot::take(&host)?, &[]);
            ensure!(
                seen.iter().any(|line| line.starts_with(part)),
                "`{script}` does not show: {seen:?}"
            );
        }
        let before = Snapshot::take(&host)?;
        let _sleeper = host.start(&["sleep", "60"])?;
        let seen = before.differences(&Snapshot::take(&host)?, &[]);
        ensure!(
            seen.iter().any(|line| line.contains("sleep")),
            "a process does not show: {seen:?}"
        );
        Ok(())
    });
}

#[test]
fn nothing_is_left_behind_when_hosts_are_dropped() {
    scenario("rig-cleanup", |world| {
        let host = world.host(&HostPlan::vm("host"))?;
        let mut orphan = host.command("sh");
        orphan.args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
        let pid =
            meshd_tests::harness::run(orphan, "", meshd_tests::harness::pace(10))?.ok()?.stdout;
        let entry = format!("/proc/{}", pid.trim());
        ensure!(std::path::Path::new(&entry).exists(), "the orphan does not run");
        drop(host);
        meshd_tests::harness::wait_for("the orphan is gone", meshd_tests::harness::pace(5), || {
            ensure!(!std::path::Path::new(&entry).exists(), "{entry} is there");
            Ok(())
        })
    });
}
