//! Two Kubernetes-like nodes and a plain machine: everything reaches everything through the mesh, and nothing of it is
//! readable on the wire.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Captured, Host, HostPlan, Mesh, Place, Pod, PodPlan, World, pace, scenario, wait_for,
};

/// All that is not WireGuard, gossip, or the link's own neighbour and group management.
const IN_THE_CLEAR: &str = "not arp and not (udp port 51820 or udp port 51800) and not (ip6 and ip6[6] == 0) \
                            and not (icmp6 and ip6[40] >= 130 and ip6[40] <= 136)";

struct Site {
    mesh: Mesh,
    plain: [Pod; 2],
    masqueraded: [Pod; 2],
}

impl Site {
    fn build(world: &World) -> Result<Self> {
        let mesh =
            Mesh::form(world, &[HostPlan::node("a"), HostPlan::node("b"), HostPlan::vm("vm")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        Ok(Self {
            plain: [a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?],
            masqueraded: [
                a.pod(&PodPlan::masqueraded("hidden-a"))?,
                b.pod(&PodPlan::masqueraded("hidden-b"))?,
            ],
            mesh,
        })
    }

    /// Every place with the number of the host that it is on and, for a host, the address to bind to in a second round.
    fn sources(&self) -> Vec<(usize, &dyn Place, Option<&Host>)> {
        let mut all: Vec<(usize, &dyn Place, Option<&Host>)> = Vec::new();
        for (number, host) in self.mesh.hosts.iter().enumerate() {
            all.push((number, host, None));
            all.push((number, host, Some(host)));
        }
        for pods in [&self.plain, &self.masqueraded] {
            all.extend(
                pods.iter().enumerate().map(|(number, pod)| (number, pod as &dyn Place, None)),
            );
        }
        all
    }

    /// Every address that must be reachable through the mesh, with the number of its host.
    fn targets(&self) -> Result<Vec<(usize, String)>> {
        let mut all = Vec::new();
        for (number, host) in self.mesh.hosts.iter().enumerate() {
            let (v4, v6) = host.mesh_addresses()?;
            all.extend([(number, v4), (number, v6)]);
        }
        for (number, pod) in self.plain.iter().enumerate() {
            all.extend([(number, pod.address().to_owned()), (number, pod.address6().to_owned())]);
        }
        Ok(all)
    }
}

fn packets_in_the_clear(captured: &Captured) -> Result<Vec<String>> {
    captured.packets(IN_THE_CLEAR)
}

#[test]
fn pods_and_hosts_reach_each_other_and_the_wire_shows_only_the_mesh() {
    scenario("reach", |world| {
        let site = Site::build(world)?;
        let capture = world.capture("mesh-up")?;
        let (mut failed, mut tried) = (Vec::new(), 0);
        let targets = site.targets()?;
        // Source NAT comes with the first packet that needs it, which is lost.
        for (number, _, bound) in site.sources() {
            let Some(host) = bound else { continue };
            let other =
                targets.iter().find(|(other, target)| *other != number && !target.contains(':'));
            let (_, target) = other.context("no target")?;
            wait_for("source NAT is on", pace(10), || host.ping(target, &host.address()))?;
        }
        for (number, source, bound) in site.sources() {
            for (_, target) in targets.iter().filter(|(other, _)| *other != number) {
                let from = match bound {
                    None => String::new(),
                    Some(host) if target.contains(':') => host.address6(),
                    Some(host) => host.address(),
                };
                tried += 1;
                if let Err(why) = source.ping(target, &from) {
                    failed.push(format!("{} {from} to {target}: {why:#}", source.name()));
                }
            }
        }
        let captured = capture.stop(world)?;
        ensure!(failed.is_empty(), "{} of {tried} failed:\n{}", failed.len(), failed.join("\n"));
        let clear = packets_in_the_clear(&captured)?;
        ensure!(
            clear.is_empty(),
            "{} packets in the clear, the first: {:?}",
            clear.len(),
            clear.first()
        );
        let tunnelled = captured.packets("udp port 51820")?.len();
        ensure!(tunnelled >= 2 * tried, "only {tunnelled} WireGuard packets for {tried} pings");
        println!("reach: {tried} pairs, {tunnelled} WireGuard packets, none in the clear");

        mesh_down(&site)?;
        let capture = world.capture("mesh-down")?;
        for target in [site.plain[1].address(), site.plain[1].address6()] {
            let _ = site.plain[0].ping(target, "");
        }
        let captured = capture.stop(world)?;
        for filter in ["icmp[icmptype] == icmp-echo", "icmp6 and ip6[40] == 128"] {
            let seen = captured.packets(&format!("({IN_THE_CLEAR}) and ({filter})"))?;
            ensure!(
                !seen.is_empty(),
                "with the mesh down the capture does not see {filter}: it could not see a leak"
            );
        }
        Ok(())
    });
}

fn mesh_down(site: &Site) -> Result<()> {
    for host in &site.mesh.hosts {
        host.stop_daemon()?;
        let mut cleanup = host.program("meshd")?;
        cleanup.arg("cleanup");
        meshd_tests::harness::run(cleanup, "", pace(10))?.ok()?;
    }
    Ok(())
}

#[test]
fn meshctl_tells_of_peers_what_wireguard_knows() {
    scenario("tell", |world| {
        let mesh = Mesh::form(world, &[HostPlan::node("a"), HostPlan::vm("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        for (here, there) in [(a, b), (b, a)] {
            let key = there.status()?.public_key;
            // The endpoint may move once more between two looks: the first handshake decides.
            let agree = || {
                let (peer, witness) = (here.peer(there.name())?, here.wg_peers()?);
                ensure!(
                    peer.public_key == key && Some(&witness[0].public_key) == key.as_ref(),
                    "{peer:?} {witness:?}"
                );
                ensure!(
                    peer.endpoint.as_ref() == Some(&witness[0].endpoint),
                    "{peer:?} {witness:?}"
                );
                Ok(())
            };
            wait_for("meshctl and wg tell the same", pace(5), agree)?;
            let (peer, witness) = (here.peer(there.name())?, here.wg_peers()?);
            ensure!(
                peer.path == "direct" && peer.gossip == "alive" && peer.tunnel == "up",
                "{peer:?}"
            );
            for prefix in there.pod_prefixes() {
                ensure!(
                    peer.prefixes.contains(&prefix) && witness[0].allowed_ips.contains(&prefix),
                    "{peer:?}"
                );
            }
            ensure!(
                here.status()?.backend.as_deref() == Some(world.backend().name()),
                "another backend is used"
            );
            here.meshctl(&["ping", there.name()])?.ok()?;
            for format in ["table", "wide", "json", "yaml"] {
                let out = here.meshctl(&["peers", "list", "-o", format])?.ok()?.stdout;
                ensure!(out.contains(there.name()), "peers list -o {format} printed {out}");
            }
        }
        // A member whose daemon is gone shows as such, and its tunnel goes on.
        b.kill_daemon()?;
        wait_for("a notices that b's daemon is gone", pace(60), || {
            let peer = a.peer("b")?;
            ensure!(peer.gossip == "down" || peer.gossip == "suspect", "{peer:?}");
            Ok(())
        })?;
        let script = "ip -4 -o addr show mesh0 | sed 's/.*inet \\([^/ ]*\\).*/\\1/'";
        a.ping(b.sh(script)?.trim(), "").map(drop)
    });
}

#[test]
fn tcp_says_a_segment_size_that_fits_the_tunnel() {
    scenario("mss", |world| {
        let site = Site::build(world)?;
        let mtu: u32 =
            site.mesh.hosts[0].run(&["cat", "/sys/class/net/mesh0/mtu"])?.trim().parse()?;
        let [near, far] = &site.plain;
        let server = far.start(&["iperf3", "-s"])?;
        for (target, headers) in [(far.address(), 40), (far.address6(), 60)] {
            // What each side is told by the other: the SYN at the far end, the SYN-ACK at the near one.
            let flags = if target.contains(':') { "ip6[53] & 2 != 0" } else { "tcp[13] & 2 != 0" };
            let watch = |place: &Pod, from: &str| {
                let filter = format!("tcp and src host {from} and {flags}");
                place.start(&[
                    "tcpdump",
                    "-n",
                    "-c",
                    "1",
                    "-i",
                    "eth0",
                    "--immediate-mode",
                    &filter,
                ])
            };
            let (mut at_far, mut at_near) = (
                watch(far, if headers == 40 { near.address() } else { near.address6() })?,
                watch(near, target)?,
            );
            for watching in [&mut at_far, &mut at_near] {
                wait_for("tcpdump listens", pace(10), || {
                    let said = watching.errors_so_far()?;
                    ensure!(said.contains("listening on"), "it said: {said}");
                    Ok(())
                })?;
            }
            wait_for("a connection", pace(10), || {
                near.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/{target}/5201")])
            })?;
            for (what, watching) in [("SYN", at_far), ("SYN-ACK", at_near)] {
                let line = watching.finish(pace(10))?.ok()?.stdout;
                let said: u32 = line
                    .split("mss ")
                    .nth(1)
                    .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
                    .with_context(|| format!("no segment size in {line:?}"))?;
                ensure!(
                    said <= mtu - headers,
                    "{what} to {target} says {said} in a tunnel of {mtu}"
                );
                println!("mss: {what}, {target}: {said} in a tunnel of {mtu}");
            }
        }
        drop(server);
        Ok(())
    });
}
