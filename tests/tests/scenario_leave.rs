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
