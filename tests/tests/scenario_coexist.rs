//! Beside other programs that route, filter, translate and encrypt on the same hosts: what they made stays as they made it,
//! and works.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Host, HostPlan, Mesh, Place, PodPlan, Running, World, pace, run, scenario, wait_for,
};

/// Enough to need full segments for a while.
const BYTES: &str = "300000";

/// A TCP server in a place.
struct Server(Running);

impl Server {
    fn start(host: &Host, place: &dyn Place, address: &str) -> Result<Self> {
        let program = host.program_path("stream")?;
        let mut server = Self(place.start(&[&program, "serve", address, BYTES])?);
        wait_for("the server listens", pace(10), || {
            ensure!(server.0.ended()?.is_none(), "it ended: {}", server.0.errors_so_far()?);
            ensure!(server.0.output_so_far()?.contains("listening"), "not yet");
            Ok(())
        })?;
        Ok(server)
    }

    /// Who came last.
    fn last(&mut self) -> Result<String> {
        Ok(self.0.output_so_far()?.lines().last().unwrap_or_default().to_owned())
    }
}

/// All of a stream, or an error.
fn fetch(host: &Host, place: &dyn Place, address: &str) -> Result<()> {
    let program = host.program_path("stream")?;
    let mut command = place.command(&program);
    command.args(["fetch", address]);
    let got = run(command, "", pace(60))?.ok().with_context(|| format!("from {}", place.name()))?;
    ensure!(got.stdout.trim() == BYTES, "{address} sent {}", got.stdout);
    Ok(())
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Rules and routes of others, as they are.
fn of_others(host: &Host) -> Result<String> {
    host.sh("for f in -4 -6; do
           ip $f rule show | grep -v 'lookup 5182[01]'
           ip $f route show table all | grep -Ev 'table 5182[01]|dev mesh0'
         done | sed 's/ expires [0-9]*sec//'; (iptables-save; ip6tables-save) | sed '/^#/d'")
        // Counters of chains move by themselves.
        .map(|text| {
            text.lines()
                .map(|line| line.split(" [").next().unwrap_or(line))
                .collect::<Vec<_>>()
                .join("\n")
        })
}

/// What clouds and VPNs put there: tables by source for a second interface, marks of several programs, rules before,
/// beside and after ours.
const POLICY: &str = "
ip link add second type bridge; ip link set second up; ip addr add 198.51.100.1/32 dev second
ip -6 addr add 2001:db8:51::1/128 dev second nodad
for f in -4 -6; do
  ip $f rule add pref 512 to all lookup 254 suppress_prefixlength 0
  ip $f rule add pref 1024 fwmark 0x80/0x80 lookup 100
  ip $f rule add pref 2599 fwmark 0x4000/0xc000 lookup 200
  ip $f rule add pref 2602 fwmark 0x200/0xf00 lookup 300
  ip $f rule add pref 20000 iif second lookup 300
  ip $f rule add pref 32000 fwmark 0x80000/0xff0000 lookup 400
done
ip rule add pref 1500 from 198.51.100.1 lookup 100
ip -6 rule add pref 1500 from 2001:db8:51::1 lookup 100
ip route add default via 192.0.2.3 table 100; ip -6 route add default via 2001:db8::3 table 100
ip route add blackhole 10.250.0.0/16 table 200; ip route add 203.0.113.128/25 dev second table 300 proto bird
iptables -t mangle -A OUTPUT -p tcp --dport 7777 -j MARK --set-xmark 0x80/0x80
iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
ip6tables -t nat -A POSTROUTING -s 2001:db8:77::/64 -j MASQUERADE
";

#[test]
fn rules_and_tables_of_others_stay_as_they_are_and_count() {
    scenario("policy", |world| {
        let mesh = Mesh::unstarted(world, &[HostPlan::node("a"), HostPlan::vm("b")])?;
        let router = world.host(&HostPlan::vm("router"))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        a.sh(POLICY)?;
        router.sh(
            "ip addr add 203.0.113.1/32 dev lo; ip -6 addr add 2001:db8:113::1/128 dev lo
             ip route add 198.51.100.1 via 192.0.2.1; ip -6 route add 2001:db8:51::1 via 2001:db8::1",
        )?;
        let before = of_others(a)?;
        let untouched = |when: &str| -> Result<()> {
            let now = of_others(a)?;
            ensure!(now == before, "{when}:\n{now}\ninstead of\n{before}");
            // The router on the second interface is only reached by the table of that address.
            for (to, from) in
                [("203.0.113.1", "198.51.100.1"), ("2001:db8:113::1", "2001:db8:51::1")]
            {
                a.ping(to, from).with_context(|| format!("{when}: by the other's table"))?;
            }
            println!("policy: {when}: rules, routes and tables of others as before, and obeyed");
            Ok(())
        };
        untouched("without a mesh")?;
        mesh.start()?;
        untouched("waiting")?;
        mesh.join_all()?;
        mesh.wait_handshaken(pace(30))?;
        untouched("running")?;
        let (v4, v6) = b.mesh_addresses()?;
        let reached = || -> Result<()> {
            for to in [&v4, &v6] {
                wait_for("b is reached", pace(10), || a.ping(to, ""))?;
            }
            Ok(())
        };
        reached()?;
        a.configure("[network]\npod_prefixes = []\n")?;
        a.reload_daemon()?;
        wait_for("the prefixes are withdrawn", pace(20), || {
            ensure!(b.peer("a")?.prefixes.is_empty(), "{:?}", b.peer("a")?.prefixes);
            Ok(())
        })?;
        untouched("after a change")?;
        a.stop_daemon()?;
        untouched("stopped")?;
        a.configure("[network]\nleak_protection = \"strict\"\n")?;
        a.start_daemon()?;
        a.wait_up(1, pace(20))?;
        reached()?;
        untouched("strict")?;
        a.kill_daemon()?;
        let mut cleanup = a.program("meshd")?;
        cleanup.arg("cleanup");
        run(cleanup, "", pace(20))?.ok()?;
        untouched("after a cleanup")?;
        let left = a.sh("ip rule; ip -6 rule; ip route show table all; nft list tables")?;
        ensure!(!left.contains("5182") && !left.contains("mesh"), "{left}");
        Ok(())
    });
}

/// What kube-proxy makes for a service with one pod behind it, and its port on the nodes. `{…}`: put in.
const KUBE_PROXY: &str = "*mangle
-A PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i cni0 -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -s {cluster} -d {service} -p tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d {service} -p tcp --dport 80 -j KUBE-SEP
-A KUBE-SERVICES -p tcp --dport 30080 -m addrtype --dst-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-SERVICES -p tcp --dport 30080 -m addrtype --dst-type LOCAL -j KUBE-SEP
-A KUBE-SEP -p tcp -j DNAT --to-destination {pod}
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

#[test]
fn services_of_kube_proxy_are_reached_through_the_tunnel() {
    scenario("kube-proxy", |world| {
        let mesh = Mesh::form(world, &[HostPlan::node("a"), HostPlan::node("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let outside = world.host(&HostPlan::vm("outside"))?;
        let [pod_a, pod_b] = [a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?];
        let capture = world.capture("kube-proxy")?;
        let (mesh4, mesh6) = a.mesh_addresses()?;
        for (tool, cluster, service, pod, from, node, inside) in [
            (
                "iptables-restore",
                "10.244.0.0/16",
                "10.96.0.10",
                pod_b.address(),
                pod_a.address(),
                a.address(),
                mesh4,
            ),
            (
                "ip6tables-restore",
                "fd00:10:244::/48",
                "fd00:10:96::a",
                pod_b.address6(),
                pod_a.address6(),
                a.address6(),
                mesh6,
            ),
        ] {
            let rules = KUBE_PROXY
                .replace("{cluster}", cluster)
                .replace("{service}", service)
                .replace("{pod}", &at(pod, 8080));
            a.try_run_with(&[tool, "--noflush"], &rules)?.ok()?;
            let mut server = Server::start(b, &pod_b, &at(pod, 8080))?;
            fetch(a, &pod_a, &at(service, 80)).context("a pod to the service")?;
            ensure!(server.last()? == from, "the pod came as {}", server.last()?);
            fetch(a, a, &at(service, 80)).context("the host to the service")?;
            ensure!(server.last()? == inside, "the host came as {}", server.last()?);
            fetch(a, &outside, &at(&node, 30080)).context("from outside by the node's port")?;
            ensure!(server.last()? == inside, "outside came as {}", server.last()?);
            println!(
                "kube-proxy: {service} and port 30080 of {node}: {BYTES} bytes each to a pod, its host and outside, from {from}, {inside}, {inside}"
            );
        }
        let captured = capture.stop(world)?;
        let clear = captured.packets(
            "net 10.244.0.0/16 or net fd00:10:244::/48 or net 10.96.0.0/16 or net fd00:10:96::/48",
        )?;
        ensure!(clear.is_empty(), "in the clear: {:?}", clear.first());
        ensure!(captured.packets("port 30080")?.len() > 10, "the capture does not see outside");
        Ok(())
    });
}

/// A tunnel between `a` and `outside` that is none of the mesh's, by wg-quick.
fn quick(world: &World, a: &Host, outside: &Host, more: &str, allowed: &str) -> Result<()> {
    let keys = world
        .sh("umask 077; for n in 1 2; do k=$(wg genkey); echo $k; echo $k | wg pubkey; done")?;
    let keys: Vec<&str> = keys.lines().collect();
    let [key_a, of_a, key_out, of_out] = keys.as_slice() else { anyhow::bail!("{keys:?}") };
    let config = |key: &str, address: &str, more: &str, peer: &str, allowed: &str, to: &str| {
        format!(
            "[Interface]\nPrivateKey = {key}\nAddress = {address}\nListenPort = 61820\n{more}\n\
             [Peer]\nPublicKey = {peer}\nAllowedIPs = {allowed}\nEndpoint = {to}:61820\n"
        )
    };
    a.write(
        "/etc/wireguard/wg0.conf",
        &config(key_a, "10.200.0.1/24", more, of_out, allowed, &outside.address()),
    )?;
    outside.write(
        "/etc/wireguard/wg0.conf",
        &config(key_out, "10.200.0.2/24", "", of_a, "10.200.0.1/32", &a.address()),
    )?;
    for host in [a, outside] {
        host.run(&["wg-quick", "up", "wg0"])?;
    }
    Ok(())
}

fn codes(host: &Host) -> Result<Vec<String>> {
    Ok(host.status()?.health.into_iter().map(|line| line.code).collect())
}

/// What `meshd check` says is wrong with routing.
fn checked(host: &Host) -> Result<Vec<String>> {
    let mut check = host.program("meshd")?;
    check.arg("check");
    let said = run(check, "", pace(20))?.stdout;
    Ok(said.lines().filter(|line| line.contains("routing:")).map(str::to_owned).collect())
}

#[test]
fn a_tunnel_of_wg_quick_is_told_where_it_clashes_and_works_beside_ours() {
    scenario("wg-quick", |world| {
        let mesh = Mesh::unstarted(world, &[HostPlan::vm("a"), HostPlan::vm("b")])?;
        let outside = world.host(&HostPlan::vm("outside"))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        // All that has no other way: wg-quick takes the first free table from 51820 on.
        quick(world, a, &outside, "", "0.0.0.0/0")?;
        let before = of_others(a)?;
        let theirs = a.sh("ip rule; ip route show table 51820")?;
        ensure!(theirs.contains("lookup 51820") && theirs.contains("dev wg0"), "{theirs}");
        let said = checked(a)?;
        ensure!(said.iter().any(|line| line.contains("table 51820")), "check said {said:?}");
        ensure!(of_others(a)? == before, "check has changed something");
        a.ping("10.200.0.2", "")?;
        println!("wg-quick: {}", said.join("; "));

        // Given another table, meshd and wg-quick's own stand beside each other.
        a.configure("[network]\ntable = 51900\n")?;
        ensure!(checked(a)?.is_empty(), "with another table: {:?}", checked(a)?);
        a.run(&["wg-quick", "down", "wg0"])?;
        outside.run(&["wg-quick", "down", "wg0"])?;
        a.configure("")?;
        mesh.start()?;
        mesh.join_all()?;
        mesh.wait_handshaken(pace(30))?;
        let (v4, v6) = b.mesh_addresses()?;
        quick(world, a, &outside, "Table = 1234", "10.200.0.0/24, 198.51.100.0/24")?;
        outside.run(&["ip", "addr", "add", "198.51.100.7/32", "dev", "lo"])?;
        a.run(&["ip", "rule", "add", "pref", "3000", "to", "198.51.100.0/24", "lookup", "1234"])?;
        for to in [v4.as_str(), v6.as_str(), "10.200.0.2", "198.51.100.7"] {
            a.ping(to, "").context("both tunnels")?;
        }
        ensure!(!codes(a)?.iter().any(|code| code.ends_with("_taken")), "{:?}", codes(a)?);
        let before = of_others(a)?;
        a.kill_daemon()?;
        a.start_daemon()?;
        a.wait_up(1, pace(20))?;
        ensure!(of_others(a)? == before, "the restart changed what is wg-quick's");
        for to in [v4.as_str(), "10.200.0.2", "198.51.100.7"] {
            a.ping(to, "").context("both tunnels after a restart")?;
        }
        for host in [a, &outside] {
            host.run(&["wg-quick", "down", "wg0"])?;
        }
        a.ping(&v4, "").context("after wg-quick down")?;

        // In our table while we run: said within seconds.
        quick(world, a, &outside, "Table = 51820", "198.51.100.0/24")?;
        wait_for("the clash is told", Duration::from_secs(90), || {
            ensure!(codes(a)?.contains(&"table_taken".to_owned()), "{:?}", codes(a)?);
            Ok(())
        })?;
        a.ping(&v4, "").context("beside foreign routes in our table")?;
        a.ping("198.51.100.7", "").context("foreign routes in our table stay")?;
        println!("wg-quick: beside ours in another table, and told when it comes into ours");
        Ok(())
    });
}
