//! Leaving: no trace in the kernel, and the others know.

use anyhow::{Result, ensure};
use meshd_tests::harness::{
    Host, HostPlan, Mesh, Place, Pod, PodPlan, Snapshot, pace, run, scenario, wait_for,
};

/// The hosts of a mesh with what they were like before their daemons were started. The first has a pod, whose plugins
/// have put links, addresses, rules and nftables of their own there, which must stay.
fn with_snapshots(world: &meshd_tests::harness::World) -> Result<(Mesh, Pod, Vec<Snapshot>)> {
    let mesh = Mesh::unstarted(world, &[HostPlan::node("a"), HostPlan::vm("b")])?;
    let pod = mesh.hosts[0].pod(&PodPlan::masqueraded("pod"))?;
    let before = mesh.hosts.iter().map(Snapshot::take).collect::<Result<Vec<_>>>()?;
    mesh.start()?;
    mesh.join_all()?;
    mesh.wait_handshaken(pace(30))?;
    let (v4, _) = mesh.hosts[1].mesh_addresses()?;
    pod.ping(&v4, "")?;
    for (host, before) in mesh.hosts.iter().zip(&before) {
        let changed = before.differences(&Snapshot::take(host)?, &[]);
        for part in ["links", "addresses", "routes", "rules"] {
            ensure!(
                changed.iter().any(|line| line.starts_with(part)),
                "the mesh shows no trace among {part}: {changed:?}"
            );
        }
    }
    Ok((mesh, pod, before))
}

/// Waits until nothing but what lies in the state directory differs from `before`.
fn no_trace(host: &Host, before: &Snapshot) -> Result<()> {
    wait_for(&format!("no trace is left on {}", host.name()), pace(5), || {
        let left = before.differences(&Snapshot::take(host)?, &["state"]);
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
}

#[test]
fn leaving_removes_every_trace_and_the_others_know() {
    scenario("leave", |world| {
        let (mesh, _pod, before) = with_snapshots(world)?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        b.meshctl(&["leave"])?.ok()?;
        wait_for("a has removed b", pace(10), || {
            let left = a.peers()?.into_iter().find(|peer| peer.name == "b");
            ensure!(left.as_ref().is_none_or(|peer| peer.gossip == "left"), "{left:?}");
            let peers = a.wg_peers()?;
            ensure!(peers.is_empty(), "{peers:?}");
            Ok(())
        })?;
        b.wait_state("waiting", pace(10))?;
        b.stop_daemon()?;
        no_trace(b, &before[1])?;
        a.meshctl(&["leave", "--yes"])?.ok()?;
        a.stop_daemon()?;
        no_trace(a, &before[0])
    });
}

#[test]
fn cleanup_after_a_crash_removes_every_trace() {
    scenario("cleanup", |world| {
        let (mesh, _pod, before) = with_snapshots(world)?;
        for (host, before) in mesh.hosts.iter().zip(&before) {
            host.kill_daemon()?;
            ensure!(!host.wg_peers()?.is_empty(), "the crash took the data plane down");
            for _ in 0..2 {
                let mut cleanup = host.program("meshd")?;
                cleanup.arg("cleanup");
                run(cleanup, "", pace(10))?.ok()?;
            }
            no_trace(host, before)?;
        }
        Ok(())
    });
}

/// All that changes more in the kernel than the rest.
const EVERYTHING: &str = "[network]\nencrypt = \"pods+nodes\"\nleak_protection = \"strict\"\n";
/// What another program has on the hosts: a device, a table, a set with the same name as one of ours.
const OTHERS: &str = "ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning; ip link set flannel.1 up
    ip route add 10.42.0.0/16 dev flannel.1
    nft add table arp filter; nft add chain arp filter input '{ type filter hook input priority 0; }'
    nft add table inet others; nft add set inet others routed4 '{ type ipv4_addr; }'
    nft add element inet others routed4 '{ 192.0.2.7 }'
    echo 1 >/proc/sys/net/ipv4/conf/lo/src_valid_mark";
/// What meshd keeps beside its state directory's usual files: notes of sysctls, the guard for the next boot.
const NOTES: &str =
    "ls -A /run/meshd | grep -v sock || true; ls /var/lib/meshd/guard 2>/dev/null || true";

/// Node addresses carried and strict protection, on two hosts; what they were like before.
fn with_everything(world: &meshd_tests::harness::World) -> Result<(Mesh, Vec<Snapshot>)> {
    let mesh = Mesh::unstarted(world, &[HostPlan::node("a"), HostPlan::vm("b")])?;
    for host in &mesh.hosts {
        host.configure(EVERYTHING)?;
        host.sh(OTHERS)?;
    }
    let before = mesh.hosts.iter().map(Snapshot::take).collect::<Result<Vec<_>>>()?;
    mesh.start()?;
    let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
    let grants = ["192.0.2.0/24", "2001:db8::/64", "10.244.0.0/16", "fd00:10:244::/48"];
    let grants: Vec<&str> = grants.into_iter().flat_map(|range| ["--allow", range]).collect();
    a.meshctl(&[&["init", "--mesh", "test"][..], &grants].concat())?.ok()?;
    let token = a.meshctl(&[&["token", "create"][..], &grants].concat())?.ok()?.stdout;
    b.join(token.trim())?;
    for (host, other) in [(a, b), (b, a)] {
        wait_for("everything is there", pace(30), || {
            let way = host.run(&["ip", "route", "get", &other.address()])?;
            ensure!(way.contains("dev mesh0"), "{way}");
            let tables = host.run(&["nft", "list", "ruleset"])?;
            for part in ["table arp meshd", "chain guard_out", "chain steer", "set routed4"] {
                ensure!(tables.contains(part), "no {part}: {tables}");
            }
            let notes = host.sh(NOTES)?;
            ensure!(notes.contains("sysctls") && notes.contains("guard"), "notes: {notes}");
            host.sh("grep -q 1 /proc/sys/net/ipv4/conf/eth0/src_valid_mark").map(drop)
        })?;
    }
    Ok((mesh, before))
}

#[test]
fn node_addresses_and_strict_protection_leave_no_trace() {
    scenario("leave-everything", |world| {
        let (mesh, before) = with_everything(world)?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        b.meshctl(&["leave"])?.ok()?;
        b.wait_state("waiting", pace(10))?;
        b.stop_daemon()?;
        a.kill_daemon()?;
        let mut cleanup = a.program("meshd")?;
        cleanup.arg("cleanup");
        run(cleanup, "", pace(10))?.ok()?;
        for (host, before) in mesh.hosts.iter().zip(&before) {
            no_trace(host, before)?;
            ensure!(host.sh(NOTES)?.is_empty(), "{} keeps {}", host.name(), host.sh(NOTES)?);
        }
        Ok(())
    });
}
