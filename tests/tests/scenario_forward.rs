//! A member that forwards is no router into the mesh for its neighbours, and none out of it for members.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, PodPlan, pace, scenario, wait_for};

/// What was dropped of what was to be forwarded, chain by chain.
fn dropped(host: &Host, chain: &str) -> Result<u64> {
    let text = host.sh(&format!("nft list chain inet meshd {chain}"))?;
    let counts = text.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next());
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Makes sure that `try_it` gets nowhere because `host` drops it.
fn refused(
    host: &Host,
    chain: &str,
    what: &str,
    try_it: impl Fn() -> Result<String>,
) -> Result<()> {
    let before = dropped(host, chain)?;
    let answer = try_it();
    ensure!(answer.is_err(), "{what}: {answer:?}");
    let after = dropped(host, chain)?;
    ensure!(after > before, "{what}: refused elsewhere than in {chain}");
    println!("{what}: {} packets dropped", after - before);
    Ok(())
}

#[test]
fn nobody_goes_through_a_member_who_is_not_behind_it() {
    scenario("forward", |world| {
        let mesh = Mesh::form(world, &[HostPlan::node("a"), HostPlan::vm("z")])?;
        let [a, z] = [&mesh.hosts[0], &mesh.hosts[1]];
        let (a4, a6) = a.mesh_addresses()?;
        let (z4, z6) = z.mesh_addresses()?;
        let outside = world.host(&HostPlan::vm("outside"))?;
        let pod = a.pod(&PodPlan::plain("pod"))?;
        // The kernel itself lets through what it can.
        a.sh(
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done",
        )?;
        outside.sh("echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce")?;
        let (from4, from6) = (outside.address(), outside.address6());
        outside.sh(&format!(
            "ip route add {z4} via {}; ip -6 route add {z6} via {}
             ip addr add 10.244.1.200/32 dev lo; ip addr add fd00:10:244:1::200/128 dev lo nodad
             ip -6 addr add {a6}/128 dev lo nodad",
            a.address(),
            a.address6()
        ))?;
        let attempts = || -> Result<()> {
            for (chain, from, to, what) in [
                ("from_outside", from4.as_str(), &z4, "a neighbour, IPv4"),
                ("from_outside", &from6, &z6, "a neighbour, IPv6"),
                ("from_outside", "10.244.1.200", &z4, "a neighbour as a pod, IPv4"),
                ("from_outside", "fd00:10:244:1::200", &z6, "a neighbour as a pod, IPv6"),
                ("into_mesh", &a6, &z6, "a neighbour as the member itself"),
            ] {
                refused(a, chain, what, || outside.ping(to, from))?;
            }
            Ok(())
        };
        let tracked = || a.sh("cat /proc/sys/net/netfilter/nf_conntrack_count");
        pod.ping(&z4, "").context("the pod, which may")?;
        ensure!(tracked()?.trim() == "0", "{} connections tracked for nothing", tracked()?);
        // It might be an answer: from now on connections are tracked, and the table is another.
        ensure!(outside.ping(&z4, "").is_err(), "the first attempt of a neighbour");
        wait_for("source NAT is on", pace(20), || {
            a.sh("nft list chain inet meshd postrouting").map(drop)
        })?;
        attempts()?;
        for (to, from) in [(&z4, a.address()), (&z6, a.address6())] {
            wait_for("the host from its own address", pace(10), || a.ping(to, &from))?;
        }

        // A pod that says that it is the host.
        pod.sh(&format!("ip -6 addr add {a6}/128 dev lo nodad"))?;
        refused(a, "into_mesh", "a pod as the member itself", || pod.ping(&z6, &a6))?;

        // A member on the way out: it has its own kernel, and its daemon does not repair it.
        let key = a.status()?.public_key.context("no key")?;
        z.kill_daemon()?;
        outside.sh(&format!(
            "ip addr add 198.51.100.77/32 dev lo; ip route replace {z4} via {}",
            a.address()
        ))?;
        a.sh(&format!("ip route add 198.51.100.77/32 via {from4}"))?;
        ensure!(a.ping("198.51.100.77", "").is_ok(), "the control: from the member itself");
        z.sh(&format!(
            "old=$(wg show mesh0 allowed-ips | awk -v k={key} '$1 == k {{ $1 = \"\"; print }}' | tr -s ' ' ,)
             wg set mesh0 peer {key} allowed-ips ${{old#,}},198.51.100.77/32
             ip route add 198.51.100.77/32 dev mesh0 src {z4}"
        ))?;
        ensure!(z.ping(&a4, "").is_ok(), "the tunnel itself");
        refused(a, "from_mesh", "a member on its way out", || z.ping("198.51.100.77", &z4))?;
        z.start_daemon().map(drop)
    });
}
