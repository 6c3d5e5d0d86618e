//! A member whose pool is the network of the hosts themselves, and that announces other machines' own addresses.

use std::time::Instant;

use anyhow::{Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, World, pace, scenario, wait_for};

const CONFIG: &str = "[network]\nroute_source = \"workloads\"\n";
/// What the hosts ask for names; nobody answers there.
const RESOLVER: &str = "192.0.2.53";
/// The hosts' own networks: what an operator gives who thinks of the whole of a cloud's network.
const HOSTS: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];

/// A strict filter would drop what a host says from an address that leads into the mesh.
const LOOSE: &str = "for one in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 2 >$one; done";

/// Three hosts, all of which may announce any address of [`HOSTS`].
fn form(world: &World, config: &str) -> Result<Mesh> {
    let plans = ["a", "x", "c"].map(HostPlan::vm);
    let mesh = Mesh::unstarted(world, &plans)?;
    for host in &mesh.hosts {
        host.configure(config)?;
        host.sh(LOOSE)?;
        host.sh(&format!("rm -f /etc/resolv.conf; echo nameserver {RESOLVER} >/etc/resolv.conf"))?;
    }
    mesh.start()?;
    let ranges = ["--workloads", HOSTS[0], "--workloads", HOSTS[1]];
    let a = &mesh.hosts[0];
    a.meshctl(&[&["init", "--mesh", "test"][..], &ranges].concat())?.ok()?;
    for host in &mesh.hosts[1..] {
        let made = a.meshctl(&[&["token", "create"][..], &ranges].concat())?.ok()?;
        host.join(made.stdout.trim())?;
    }
    mesh.wait_handshaken(pace(30))?;
    Ok(mesh)
}

/// Whether the kernel of `host` sends what is for `address` into the mesh.
fn leads(host: &Host, address: &str, into_mesh: bool) -> Result<()> {
    let way = host.run(&["ip", "route", "get", address])?;
    ensure!(way.contains("dev mesh0") == into_mesh, "{way}");
    Ok(())
}

#[test]
fn a_member_that_announces_other_machines_takes_no_member_and_no_name_server() {
    scenario("announced", |world| announces_machines(world, CONFIG));
}

#[test]
fn nor_does_it_under_strict_protection() {
    let config = format!("{CONFIG}leak_protection = \"strict\"\n");
    scenario("announced-strict", move |world| announces_machines(world, &config));
}

/// x announces the addresses of c, of a host that is yet to come, of the name server and of a machine without meshd.
fn announces_machines(world: &World, config: &str) -> Result<()> {
    let mesh = form(world, config)?;
    let [a, x, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
    let of_c = [c.address(), c.address6()];
    let of_d = ["192.0.2.4", "2001:db8::4"];
    let machine = "192.0.2.66";
    x.sh(
        "ip link add veth9 type veth peer name other; ip link set veth9 up; ip link set other up",
    )?;
    for address in of_c.iter().map(String::as_str).chain(of_d).chain([machine, RESOLVER]) {
        x.run(&["ip", "route", "add", address, "dev", "veth9"])?;
    }
    for address in [of_d[0], of_d[1], machine] {
        wait_for(&format!("{address} is taken"), pace(10), || leads(a, address, true))?;
    }
    // c is asked at each address that x announces.
    let untouched = || -> Result<()> {
        of_c.iter().map(String::as_str).chain([RESOLVER]).try_for_each(|to| leads(a, to, false))
    };
    wait_for("c and the name server are where they were", pace(10), untouched)?;
    let told = a.meshctl(&["events", "--code", "prefix_blocked", "-o", "json"])?.ok()?.stdout;
    ensure!(told.contains("where c was reached") && told.contains("name server"), "{told}");
    let reach_c = || {
        a.ping(&c.address(), "")?;
        a.ping(&c.mesh_addresses()?.0, "").map(drop)
    };
    reach_c()?;

    // Not killed: where the store may lack somebody, nothing is taken from the kernel for two minutes.
    a.stop_daemon()?;
    a.start_daemon()?;
    let started = Instant::now();
    while started.elapsed() < pace(4) {
        untouched()?;
    }
    reach_c()?;
    leads(a, machine, true)?;

    // d has its addresses, whoever announced them before.
    let d = world.host(&HostPlan::vm("d"))?;
    ensure!([d.address(), d.address6()] == of_d, "{}", d.address());
    d.configure(config)?;
    d.sh(LOOSE)?;
    d.start_daemon()?;
    let token = a.meshctl(&["token", "create"])?.ok()?.stdout;
    d.join(token.trim())?;
    wait_for("d is reached at its own addresses", pace(20), || {
        of_d.iter().try_for_each(|to| leads(a, to, false))?;
        a.ping(of_d[0], "")?;
        a.ping(&d.mesh_addresses()?.0, "").map(drop)
    })
}
