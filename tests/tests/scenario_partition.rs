//! A network that falls apart for two minutes and heals. `MESHD_TEST_PARTITION_SECONDS` shortens it for work at the desk.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use meshd_tests::harness::{Flow, Host, HostPlan, Mesh, Place, pace, scenario, wait_for};

fn length() -> Duration {
    let given =
        std::env::var("MESHD_TEST_PARTITION_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(120))
}

fn move_to_zone(host: &Host, zone: &str) -> Result<()> {
    host.configure(&format!("[node]\nzone = \"{zone}\""))?;
    host.reload_daemon()
}

fn knows_zone(host: &Host, of: &str, zone: &str) -> Result<()> {
    let peer = host.peer(of)?;
    ensure!(
        peer.zone.as_deref() == Some(zone),
        "{} sees {of} in zone {:?}",
        host.name(),
        peer.zone
    );
    Ok(())
}

/// Keys and allowed IPs of all peers: what a cut tunnel would lack.
fn tunnels(host: &Host) -> Result<Vec<(String, Vec<String>)>> {
    Ok(host.wg_peers()?.into_iter().map(|peer| (peer.public_key, peer.allowed_ips)).collect())
}

#[test]
fn halves_that_were_parted_agree_soon_after_and_no_tunnel_is_cut() {
    scenario("partition", |world| {
        let mesh = Mesh::form(world, &["a", "b", "c", "d"].map(HostPlan::vm))?;
        let [a, b, c, d] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        wait_for("the directories agree", pace(10), || mesh.directories_agree())?;
        let before = mesh.hosts.iter().map(tunnels).collect::<Result<Vec<_>>>()?;
        let address = |host: &Host| Ok::<_, anyhow::Error>(host.mesh_addresses()?.0);
        let [of_a, of_b, of_c, of_d] = [address(a)?, address(b)?, address(c)?, address(d)?];

        let parted = Instant::now();
        world.part(&[c, d])?;
        let seconds = u32::try_from(length().as_secs())? + 5;
        let flows = [
            Flow::start((a, &of_a), (b, &of_b), 100, seconds)?,
            Flow::start((c, &of_c), (d, &of_d), 100, seconds)?,
        ];
        ensure!(a.ping(&of_c, "").is_err(), "the halves still reach each other");
        move_to_zone(a, "left")?;
        move_to_zone(c, "right")?;
        wait_for("the change arrives within its half", pace(10), || {
            knows_zone(b, "a", "left").and_then(|()| knows_zone(d, "c", "right"))
        })?;
        ensure!(knows_zone(c, "a", "left").is_err(), "the change crossed the cut");
        // Both halves watch their tunnels for the whole time.
        while parted.elapsed() < length() {
            for (host, before) in mesh.hosts.iter().zip(&before) {
                ensure!(&tunnels(host)? == before, "{} has cut a tunnel", host.name());
            }
            std::thread::sleep(
                Duration::from_secs(2).min(length().saturating_sub(parted.elapsed())),
            );
        }
        let directories_differ = mesh.directories_agree().is_err();
        ensure!(directories_differ, "the directories agree although the halves are parted");

        world.heal()?;
        let healed = Instant::now();
        wait_for("the directories agree again", Duration::from_secs(10), || {
            mesh.directories_agree()?;
            knows_zone(d, "a", "left").and_then(|()| knows_zone(b, "c", "right"))
        })?;
        println!(
            "partition: after {:?} the directories agreed in {:?}",
            length(),
            healed.elapsed()
        );
        wait_for("the tunnels between the halves carry again", pace(10), || {
            a.ping(&of_c, "").and_then(|_| d.ping(&of_b, ""))
        })?;
        for (host, before) in mesh.hosts.iter().zip(&before) {
            ensure!(&tunnels(host)? == before, "{} has cut a tunnel", host.name());
        }
        for flow in flows {
            flow.report()?.nothing_lost("a flow inside a half")?;
        }
        Ok(())
    });
}
