//! Many daemons join through one seed at the same time. `MESHD_TEST_CROWD` sets how many; without it
//! 20, and 6 in the VM, whose emulated processors would need minutes for the handshakes of 20.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use meshd_tests::harness::{HostPlan, Mesh, Place, crowded_scenario, in_vm, pace, wait_for};

#[test]
fn many_daemons_join_through_one_seed_without_a_tail() {
    let count: u32 = std::env::var("MESHD_TEST_CROWD")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(if in_vm() { 6 } else { 20 });
    crowded_scenario("crowd", count, |world| {
        let plans: Vec<HostPlan> =
            (1..=count).map(|number| HostPlan::node(&format!("n{number}"))).collect();
        let mesh = Mesh::waiting(world, &plans)?;
        let joining = Instant::now();
        mesh.join_all()?;
        let joined = joining.elapsed();
        let others = mesh.hosts.len() - 1;
        let mut programmed = Duration::ZERO;
        for host in &mesh.hosts {
            wait_for(&format!("{} has all peers", host.name()), pace(60), || {
                let peers = host.wg_peers()?.len();
                ensure!(peers == others, "{peers} of {others}");
                programmed = joining.elapsed();
                Ok(())
            })?;
        }
        mesh.wait_handshaken(pace(30))?;
        let shaken = joining.elapsed();
        println!(
            "crowd: {count} hosts: all joined after {joined:.1?}, {count} x {others} peers programmed after \
             {programmed:.1?}, all with a handshake after {shaken:.1?}"
        );
        // A first handshake that meets a peer not yet programmed is tried again after five seconds.
        ensure!(
            shaken - programmed < pace(4),
            "there is a tail: {:?} from programmed to handshaken",
            shaken - programmed
        );
        let (first, last) = (&mesh.hosts[0], mesh.hosts.last().context("no hosts")?);
        first.ping(&last.mesh_addresses()?.0, "")?;
        wait_for("the directories agree", pace(10), || mesh.directories_agree())
    });
}
