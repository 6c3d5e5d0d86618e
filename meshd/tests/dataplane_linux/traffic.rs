//! Packets through two devices: source NAT does what it must and no more, and peers are changed
//! without losing packets.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use meshd::{dataplane::sources::ForeignSources, host};
use meshd_core::plan::{
    Change, Family, Firewall, FirewallRules, FirewallSets, Forwarded, RouteKind, SourceNat,
};

use crate::host::{Host, net, nets, public, route, rule};

/// A packet crosses the namespaces within this time, also where the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hosts A and B with a cable and a tunnel. Behind A is a pod 10.1.0.2 and fd01::2; B has 10.2.0.1 and fd02::1
/// as if they were pods.
struct Pair {
    a: Host,
    b: Host,
    pod: Host,
}

impl Pair {
    fn new() -> Self {
        let (a, b, pod) = (Host::new(), Host::new(), Host::new());
        a.cable("wire", &b, "wire");
        a.sh("ip addr add 192.168.7.1/24 dev wire; ip addr add fdaa::1/64 dev wire nodad");
        b.sh("ip addr add 192.168.7.2/24 dev wire; ip addr add fdaa::2/64 dev wire nodad");
        b.sh("ip addr add 10.2.0.1/32 dev lo; ip addr add fd02::1/128 dev lo nodad");
        a.cable("pod", &pod, "eth0");
        a.sh("ip addr add 10.1.0.1/24 dev pod; ip addr add fd01::1/64 dev pod nodad
              sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        pod.sh("ip addr add 10.1.0.2/24 dev eth0; ip addr add 10.1.0.3/24 dev eth0
                ip addr add fd01::2/64 dev eth0 nodad
                ip route add default via 10.1.0.1; ip -6 route add default via fd01::1");
        Self::tunnel(
            &a,
            1,
            "192.168.7.2:51820",
            2,
            ["10.2.0.0/24", "fd02::/64"],
            ["10.1.0.0/24", "fd01::/64"],
        );
        Self::tunnel(
            &b,
            2,
            "192.168.7.1:51820",
            1,
            ["10.1.0.0/24", "fd01::/64"],
            ["10.2.0.0/24", "fd02::/64"],
        );
        Self { a, b, pod }
    }

    fn tunnel(host: &Host, me: u8, endpoint: &str, other: u8, remote: [&str; 2], local: [&str; 2]) {
        let v4 = |n: u8| format!("100.112.0.{n}");
        let v6 = |n: u8| format!("fd00::{n}");
        let mut changes =
            host.device_changes(me, &[&format!("{}/32", v4(me)), &format!("{}/128", v6(me))]);
        let hosts = [format!("{}/32", v4(other)), format!("{}/128", v6(other))];
        let all = [remote[0], remote[1], &hosts[0], &hosts[1]];
        changes.push(host.put_peer(other, Some(endpoint), &all));
        for destination in all {
            let source = if net(destination).addr().is_ipv4() { v4(me) } else { v6(me) };
            changes.push(Change::PutRoute(host.route(destination, Some(&source), None)));
        }
        changes.extend(local.map(|net| Change::PutRoute(route(net, RouteKind::Throw))));
        changes.extend([Family::V4, Family::V6].map(|family| Change::AddRule(rule(family))));
        host.apply(changes);
    }

    fn nat(&self) -> Firewall {
        let nat = SourceNat {
            device: self.a.device.clone(),
            own_v4: ["100.112.0.1/32", "10.1.0.0/24"].iter().map(|n| n.parse().unwrap()).collect(),
            own_v6: ["fd00::1/128", "fd01::/64"].iter().map(|n| n.parse().unwrap()).collect(),
            ..SourceNat::default()
        };
        let forwarded = Forwarded {
            own: nets(&["100.112.0.1/32", "fd00::1/128"]),
            outside: ["wire".to_owned()].into(),
            local: nets(&["10.1.0.0/24", "fd01::/64"]),
            ..Forwarded::default()
        };
        let forwarded = Some(forwarded);
        let rules = FirewallRules { nat, forwarded, ..FirewallRules::default() };
        Firewall { rules, sets: FirewallSets::default() }
    }
}

/// Answers each packet with the address that it came from.
struct Mirror(Arc<AtomicBool>);

impl Mirror {
    fn new(host: &Host, address: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let socket = host.run(move || UdpSocket::bind(address).unwrap());
        host.spawn(move || {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(from.ip().to_string().as_bytes(), from).unwrap();
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The source that the mirror saw, or `None` when no answer came in time.
fn ask(host: &Host, bind: &'static str, to: &'static str, patience: Duration) -> Option<String> {
    host.run(move || {
        let socket = UdpSocket::bind((bind, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 64];
        while Instant::now() < deadline {
            // While there is no way yet, sending fails.
            let _ = socket.send_to(b"who am I", to.parse::<SocketAddr>().unwrap());
            if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                return Some(String::from_utf8(buffer[..length].to_vec()).unwrap());
            }
        }
        None
    })
}

#[test]
fn only_sources_that_are_not_ours_become_the_mesh_address() {
    let pair = Pair::new();
    let (v4, v6) = ("10.2.0.1:7000", "[fd02::1]:7000");
    let (_v4, _v6) = (Mirror::new(&pair.b, v4), Mirror::new(&pair.b, v6));
    let see = |host, bind, to| ask(host, bind, to, PATIENCE);

    // The tunnel works with preferred sources, and from a pod with its own source.
    assert_eq!(see(&pair.a, "0.0.0.0", v4).as_deref(), Some("100.112.0.1"));
    assert_eq!(see(&pair.a, "::", v6).as_deref(), Some("fd00::1"));
    assert_eq!(see(&pair.pod, "10.1.0.2", v4).as_deref(), Some("10.1.0.2"));
    assert_eq!(see(&pair.pod, "fd01::2", v6).as_deref(), Some("fd01::2"));
    // The control: a socket bound to the node's own address gets no answer without source NAT.
    let short = Duration::from_secs(2);
    assert_eq!(ask(&pair.a, "192.168.7.1", v4, short), None);
    assert_eq!(ask(&pair.a, "fdaa::1", v6, short), None);

    pair.a.apply(vec![Change::PutFirewall(pair.nat())]);
    assert_eq!(see(&pair.a, "192.168.7.1", v4).as_deref(), Some("100.112.0.1"));
    assert_eq!(see(&pair.a, "fdaa::1", v6).as_deref(), Some("fd00::1"));
    assert_eq!(see(&pair.a, "0.0.0.0", v4).as_deref(), Some("100.112.0.1"));
    assert_eq!(see(&pair.pod, "10.1.0.2", v4).as_deref(), Some("10.1.0.2"), "pods keep theirs");
    assert_eq!(see(&pair.pod, "fd01::2", v6).as_deref(), Some("fd01::2"), "pods keep theirs");

    // A container of this host alone: what answers it is let back to it.
    pair.pod.sh("ip addr add 172.17.0.2/32 dev eth0");
    pair.a.sh("ip route add 172.17.0.2/32 dev pod");
    assert_eq!(see(&pair.pod, "172.17.0.2", v4).as_deref(), Some("100.112.0.1"));
    // A CNI that masquerades its pods, before us and after us.
    for priority in ["srcnat - 1", "srcnat + 1"] {
        pair.a.sh(&format!(
            "nft 'add table ip cni; delete table ip cni; add table ip cni
             add chain ip cni post {{ type nat hook postrouting priority {priority}; }}
             add rule ip cni post ip saddr 10.1.0.3 masquerade'"
        ));
        let seen = see(&pair.pod, "10.1.0.3", v4);
        assert_eq!(seen.as_deref(), Some("100.112.0.1"), "{priority}");
    }
    // And traffic that does not leave through the device is left alone.
    let underlay = Mirror::new(&pair.b, "192.168.7.2:7001");
    assert_eq!(see(&pair.a, "0.0.0.0", "192.168.7.2:7001").as_deref(), Some("192.168.7.1"));
    drop(underlay);
}

#[test]
fn a_foreign_source_is_told_and_until_then_nothing_is_tracked() {
    let pair = Pair::new();
    let (v4, v6) = ("10.2.0.1:7000", "[fd02::1]:7000");
    let (_v4, _v6) = (Mirror::new(&pair.b, v4), Mirror::new(&pair.b, v6));
    let tracked = || pair.a.run(|| host::read().unwrap().tracked);
    for (bind, to, becomes) in [("192.168.7.1", v4, "100.112.0.1"), ("fdaa::1", v6, "fd00::1")] {
        let mut watching = pair.nat();
        watching.rules.nat.watch = true;
        pair.a.apply(vec![Change::PutFirewall(watching.clone())]);
        assert_eq!(pair.a.observe().unwrap().firewall.unwrap().rules, Some(watching.rules));
        let told = Arc::new(AtomicBool::new(false));
        let (listens, is_listening) = std::sync::mpsc::channel();
        let listener = pair.a.spawn({
            let told = told.clone();
            move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut sources = ForeignSources::listen().unwrap();
                    assert!(ForeignSources::listen().is_err(), "somebody has the group");
                    listens.send(()).unwrap();
                    tokio::time::timeout(2 * PATIENCE, sources.seen()).await.unwrap();
                });
                told.store(true, Ordering::Relaxed);
            }
        });
        is_listening.recv().unwrap();

        // Sources that members take go as they are, and nobody is told.
        assert!(ask(&pair.a, "0.0.0.0", v4, PATIENCE).is_some());
        assert!(ask(&pair.pod, "10.1.0.2", v4, PATIENCE).is_some());
        assert!(ask(&pair.pod, "fd01::2", v6, PATIENCE).is_some());
        assert!(!told.load(Ordering::Relaxed), "{bind}");
        // The namespace is new: the second time, it was tracked before.
        assert!(!tracked() || bind != "192.168.7.1");

        assert_eq!(ask(&pair.a, bind, to, Duration::from_secs(1)), None);
        listener.join().unwrap();
        pair.a.apply(vec![Change::PutFirewall(pair.nat())]);
        assert_eq!(ask(&pair.a, bind, to, PATIENCE).as_deref(), Some(becomes));
        assert!(tracked());
    }
}

#[test]
fn changes_of_peers_and_routes_lose_no_packet() {
    let pair = Pair::new();
    pair.a.apply(vec![Change::PutFirewall(pair.nat())]);
    let mirror = Mirror::new(&pair.b, "10.2.0.1:7000");
    assert!(ask(&pair.pod, "10.1.0.2", "10.2.0.1:7000", PATIENCE).is_some());
    drop(mirror);

    let received = Arc::new(AtomicU64::new(0));
    let sink = pair.b.run(|| UdpSocket::bind("10.2.0.1:7002").unwrap());
    let (count, stop) = (received.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let receiver = pair.b.spawn(move || {
        sink.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = [0; 64];
        while !stopped.load(Ordering::Relaxed) {
            if sink.recv(&mut buffer).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let enough = Arc::new(AtomicBool::new(false));
    let done = enough.clone();
    let sender = pair.pod.spawn(move || {
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        let mut sent = 0_u64;
        while !done.load(Ordering::Relaxed) {
            socket.send_to(&sent.to_be_bytes(), "10.2.0.1:7002").unwrap();
            sent += 1;
            // The rate of the flow.
            sleep(Duration::from_millis(1));
        }
        sent
    });

    for round in 0..20_u8 {
        let extra = format!("10.{}.0.0/24", 100 + round);
        let keep = ["10.2.0.0/24", "fd02::/64", "100.112.0.2/32", "fd00::2/128"];
        let shrink = Change::TakeAllowedIps {
            device: pair.a.device.clone(),
            public_key: public(2),
            allowed_ips: nets(&[&extra]),
        };
        let home = pair.a.route("10.2.0.0/24", Some("100.112.0.1"), None);
        let narrow = pair.a.route("10.2.0.0/24", Some("100.112.0.1"), Some(1300));
        pair.a.apply(vec![
            // Another peer takes nothing of this one's; what it adds is taken away again.
            pair.a.put_peer(3, None, &[&extra]),
            pair.a.put_peer(2, None, &[&extra]),
            shrink,
            pair.a.put_peer(2, None, &keep),
            Change::PutRoute(narrow),
            Change::PutRoute(home),
            Change::RemovePeer { device: pair.a.device.clone(), public_key: public(3) },
            Change::PutFirewall(pair.nat()),
        ]);
    }
    enough.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while received.load(Ordering::Relaxed) < sent && Instant::now() < deadline {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    receiver.join().unwrap();
    println!("{sent} sent during 20 rounds of changes");
    assert!(sent >= 20, "{sent}");
    assert_eq!(received.load(Ordering::Relaxed), sent);
    assert_eq!(pair.a.observe().unwrap().peers[&public(2)].allowed_ips.len(), 4);
}
