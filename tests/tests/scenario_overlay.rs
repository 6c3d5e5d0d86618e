//! An overlay of another program (vxlan, as flannel makes it) on hosts of a mesh: between their own addresses, and inside
//! the tunnel.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Host, HostPlan, Mesh, Place, Running, World, pace, run, scenario, wait_for,
};

const BYTES: &str = "300000";
const NODES: &str = "[network]\nencrypt = \"pods+nodes\"\n";
/// What vxlan puts around a packet over IPv4, its Ethernet header among it.
const AROUND: u32 = 50;

/// A mesh of two machines that may be granted their own addresses.
fn form(world: &World, config: &str) -> Result<Mesh> {
    let mesh = Mesh::unstarted(world, &[HostPlan::vm("a"), HostPlan::vm("b")])?;
    for host in &mesh.hosts {
        host.configure(config)?;
    }
    mesh.start()?;
    let grants = ["--allow", "192.0.2.0/24", "--allow", "2001:db8::/64"];
    mesh.hosts[0].meshctl(&[&["init", "--mesh", "test"][..], &grants].concat())?.ok()?;
    let token = [&["token", "create"][..], &grants].concat();
    let token = mesh.hosts[0].meshctl(&token)?.ok()?.stdout;
    mesh.hosts[1].join(token.trim())?;
    mesh.wait_handshaken(pace(30))?;
    Ok(mesh)
}

/// The overlay's device on `host`, as flannel makes it: no learning, all about the other host put in by hand. `from` and
/// `to` are the addresses that its packets have, `more` says how it is bound.
fn overlay(host: &Host, other: &Host, ends: [&str; 2], more: &str, mtu: u32) -> Result<()> {
    let [from, to] = ends;
    let (own, there) = (host.number(), other.number());
    host.sh(&format!(
        "ip link del flannel.1 2>/dev/null || true
         ip link add flannel.1 address 02:42:00:00:00:{own:02x} type vxlan id 1 local {from} dstport 8472 nolearning {more}
         ip link set flannel.1 mtu {mtu} up
         ip addr add 10.42.{own}.0/32 dev flannel.1
         ip addr replace 10.42.{own}.1/32 dev lo
         ip neigh replace 10.42.{there}.0 lladdr 02:42:00:00:00:{there:02x} dev flannel.1 nud permanent
         bridge fdb replace 02:42:00:00:00:{there:02x} dev flannel.1 dst {to}
         ip route replace 10.42.{there}.0/24 via 10.42.{there}.0 dev flannel.1 onlink src 10.42.{own}.1"
    ))
    .map(drop)
}

/// A stream each way between the overlay's addresses.
fn streams(a: &Host, b: &Host) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let program = from.program_path("stream")?;
        let address = format!("10.42.{}.1:7000", from.number());
        let mut server: Running = from.start(&[&program, "serve", &address, BYTES])?;
        wait_for("the server listens", pace(10), || {
            ensure!(server.output_so_far()?.contains("listening"), "{}", server.errors_so_far()?);
            Ok(())
        })?;
        let mut fetch = to.command(&program);
        fetch.args(["fetch", &address]);
        let got =
            run(fetch, "", pace(60))?.ok().with_context(|| format!("from {}", from.name()))?;
        ensure!(got.stdout.trim() == BYTES, "{} of {BYTES} bytes", got.stdout.trim());
    }
    Ok(())
}

fn device_mtu(host: &Host) -> Result<u32> {
    Ok(host.run(&["cat", "/sys/class/net/mesh0/mtu"])?.trim().parse()?)
}

/// What the capture shows of the overlay in the clear, and of the tunnel.
fn seen(world: &World, name: &str, work: impl FnOnce() -> Result<()>) -> Result<(usize, usize)> {
    let capture = world.capture(name)?;
    work()?;
    let captured = capture.stop(world)?;
    let clear = captured.packets("udp port 8472 or net 10.42.0.0/16")?.len();
    Ok((clear, captured.packets("udp port 51820")?.len()))
}

#[test]
fn an_overlay_is_carried_between_node_addresses_and_over_the_mesh_device() {
    scenario("overlay", |world| {
        let mesh = form(world, NODES)?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let carried = |host: &Host, to: &str| -> Result<()> {
            let way = host.run(&["ip", "route", "get", to])?;
            ensure!(way.contains("dev mesh0"), "{way}");
            Ok(())
        };
        let own = [a.address(), b.address()];
        wait_for("node addresses are carried", pace(20), || {
            carried(a, &own[1]).and_then(|()| carried(b, &own[0]))
        })?;
        let mtu = device_mtu(a)?;
        // What fits, then what flannel takes where it sees the link alone: that goes in fragments, and arrives.
        for (name, size) in [("fits", mtu - AROUND), ("link", 1500 - AROUND)] {
            overlay(a, b, [&own[0], &own[1]], "", size)?;
            overlay(b, a, [&own[1], &own[0]], "", size)?;
            let (clear, tunnel) = seen(world, &format!("nodes-{name}"), || streams(a, b))?;
            ensure!(clear == 0, "{clear} packets of the overlay in the clear");
            println!(
                "overlay: between node addresses, its MTU {size} in a tunnel of {mtu}: 600,000 bytes, none in the clear, {tunnel} packets of WireGuard"
            );
        }

        // Over the mesh's device, whatever is carried of node addresses.
        let inside = [a.mesh_addresses()?.0, b.mesh_addresses()?.0];
        overlay(a, b, [&inside[0], &inside[1]], "dev mesh0", mtu - AROUND)?;
        overlay(b, a, [&inside[1], &inside[0]], "dev mesh0", mtu - AROUND)?;
        let (clear, tunnel) = seen(world, "device", || streams(a, b))?;
        ensure!(clear == 0, "{clear} packets of the overlay in the clear");
        a.kill_daemon()?;
        a.start_daemon()?;
        a.wait_up(1, pace(20))?;
        streams(a, b).context("after a restart")?;
        println!(
            "overlay: over mesh0, its MTU {}: 600,000 bytes, none in the clear, {tunnel} packets of WireGuard",
            mtu - AROUND
        );

        // Bound to the link, as flannel binds it.
        overlay(a, b, [&own[0], &own[1]], "dev eth0", mtu - AROUND)?;
        overlay(b, a, [&own[1], &own[0]], "dev eth0", mtu - AROUND)?;
        let (clear, tunnel) = seen(world, "bound", || streams(a, b))?;
        ensure!(clear == 0, "{clear} packets of the overlay in the clear");
        println!(
            "overlay: bound to eth0: 600,000 bytes, none in the clear, {tunnel} packets of WireGuard"
        );
        // The capture sees the overlay where nothing is carried.
        for host in [a, b] {
            host.configure("")?;
            host.reload_daemon()?;
        }
        wait_for("nothing is carried", pace(20), || {
            ensure!(carried(a, &own[1]).is_err() && carried(b, &own[0]).is_err(), "still carried");
            Ok(())
        })?;
        let (clear, _) = seen(world, "control", || streams(a, b))?;
        ensure!(clear > 100, "the capture saw {clear} packets of the overlay only");
        println!("overlay: control, without node addresses: {clear} packets in the clear");
        Ok(())
    });
}
