//! Each change, applied and read back by a data plane with no memory.

use std::collections::BTreeSet;

use meshd_core::plan::{
    ArpMark, Change, Desired, Device, DontFragment, Family, Firewall, FirewallRules, FirewallSets,
    Foreign, Forwarded, Observed, ObservedArp, ObservedDevice, ObservedFirewall, ObservedPeer,
    Peer, RouteKind, SourceNat, Steering, diff,
};

use crate::host::{Host, MARK, backend, net, nets, private, public, route, rule, sysctls};

const ADDRESSES: [&str; 2] = ["100.112.0.1/32", "fd00::1/128"];

/// With every part that there is.
fn firewall(host: &Host) -> Firewall {
    let nat = SourceNat {
        watch: false,
        device: host.device.clone(),
        own_v4: ["100.112.0.1/32", "10.1.0.0/24"].iter().map(|n| n.parse().unwrap()).collect(),
        own_v6: ["fd00::1/128", "fd01::/64"].iter().map(|n| n.parse().unwrap()).collect(),
        workloads: true,
        own_nodes: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
    };
    Firewall {
        rules: FirewallRules {
            nat,
            clamp_mss: true,
            dont_fragment: Some(DontFragment { port: 51820, mark: MARK }),
            guard: Some(Steering { mark: MARK, gossip: 51800, wireguard: 51820 }),
            steering: Some(Steering { mark: MARK, gossip: 51800, wireguard: 51820 }),
            forwarded: Some(Forwarded {
                own: nets(&["100.112.0.1/32", "fd00::1/128"]),
                outside: ["eth0", "eth1"].map(str::to_owned).into(),
                behind: nets(&["192.168.50.0/24"]),
                local: nets(&["10.1.0.0/24", "fd01::/64"]),
                devices: nets(&["10.9.0.0/24", "10.9.1.7/32", "fd09::/64"]),
            }),
        },
        sets: FirewallSets {
            // Side by side, and single addresses side by side: nft must not make one of them.
            guarded: nets(&[
                "10.2.0.0/24",
                "10.3.0.0/24",
                "10.9.0.1/32",
                "10.9.0.2/32",
                "fd02::/64",
            ]),
            fragmented: ["192.0.2.2".parse().unwrap()].into(),
            own: ["10.240.0.5".parse().unwrap(), "fd09::5".parse().unwrap()].into(),
            routed_nodes: ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap()).into(),
            guarded_nodes: ["192.0.2.2", "192.0.2.3"].map(|ip| ip.parse().unwrap()).into(),
        },
    }
}

fn observed_firewall(host: &Host) -> ObservedFirewall {
    let Firewall { rules, sets } = firewall(host);
    ObservedFirewall { rules: Some(rules), sets }
}

/// One of everything.
fn all(host: &Host) -> Vec<Change> {
    let mut changes = host.device_changes(1, &ADDRESSES);
    changes.extend([
        host.put_peer(2, Some("192.0.2.2:51820"), &["10.2.0.0/24", "fd02::/64"]),
        host.put_peer(3, Some("[2001:db8::3]:51820"), &["10.3.0.0/24"]),
        Change::PutRoute(host.route("10.2.0.0/24", Some("100.112.0.1"), Some(1380))),
        Change::PutRoute(host.route("fd02::/64", Some("fd00::1"), None)),
        Change::PutRoute(route("10.1.0.0/24", RouteKind::Throw)),
        Change::PutRoute(route("fd01::/64", RouteKind::Throw)),
        Change::PutRoute(route("10.9.0.0/24", RouteKind::Unreachable)),
        Change::PutRoute(route("fd09::/64", RouteKind::Unreachable)),
        Change::AddRule(rule(Family::V4)),
        Change::AddRule(rule(Family::V6)),
        Change::PutFirewall(firewall(host)),
        Change::PutArp(ArpMark { mark: MARK }),
    ]);
    changes
}

fn peer(endpoint: &str, allowed_ips: &[&str]) -> ObservedPeer {
    ObservedPeer {
        allowed_ips: nets(allowed_ips),
        endpoint: Some(endpoint.parse().unwrap()),
        keepalive: 25,
        ..ObservedPeer::default()
    }
}

fn expected(host: &Host) -> Observed {
    Observed {
        device: Some(ObservedDevice {
            name: host.device.clone(),
            backend: backend(),
            public_key: Some(public(1)),
            listen_port: 51820,
            fwmark: MARK,
            mtu: 1420,
            up: true,
            addresses: nets(&ADDRESSES),
            sysctls: sysctls(host, "2"),
        }),
        peers: [
            (public(2), peer("192.0.2.2:51820", &["10.2.0.0/24", "fd02::/64"])),
            (public(3), peer("[2001:db8::3]:51820", &["10.3.0.0/24"])),
        ]
        .into(),
        routes: [
            host.route("10.2.0.0/24", Some("100.112.0.1"), Some(1380)),
            host.route("fd02::/64", Some("fd00::1"), None),
            route("10.1.0.0/24", RouteKind::Throw),
            route("fd01::/64", RouteKind::Throw),
            route("10.9.0.0/24", RouteKind::Unreachable),
            route("fd09::/64", RouteKind::Unreachable),
        ]
        .into(),
        rules: [rule(Family::V4), rule(Family::V6)].into(),
        firewall: Some(observed_firewall(host)),
        arp: ObservedArp::Mark(ArpMark { mark: MARK }),
        ..Observed::default()
    }
}

/// Without what the kernel counts by itself, and without what is not ours.
fn observe(host: &Host) -> Observed {
    let mut observed = host.observe().unwrap();
    observed.foreign = Foreign::default();
    for peer in observed.peers.values_mut() {
        (peer.rx_bytes, peer.tx_bytes, peer.last_handshake) = (0, 0, None);
    }
    observed
}

#[test]
fn what_is_applied_is_observed_and_can_be_applied_again() {
    let host = Host::new();
    assert_eq!(observe(&host), Observed::default());
    host.apply(all(&host));
    assert_eq!(observe(&host), expected(&host));
    host.apply(all(&host));
    assert_eq!(observe(&host), expected(&host));
}

#[test]
fn a_desired_state_is_reached_in_one_round_and_left_without_a_trace() {
    let host = Host::new();
    let before = host.everything();
    let seen = expected(&host);
    let device = seen.device.clone().unwrap();
    let desired = Desired {
        arp: Some(ArpMark { mark: MARK }),
        device: Some(Device {
            name: device.name,
            private_key: private(1),
            public_key: public(1),
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            mtu: device.mtu,
            addresses: device.addresses,
            sysctls: device.sysctls,
        }),
        peers: seen
            .peers
            .into_iter()
            .map(|(key, peer)| {
                let ObservedPeer { allowed_ips, endpoint, keepalive, .. } = peer;
                (key, Peer { allowed_ips, endpoint, keepalive: Some(keepalive), ..Peer::default() })
            })
            .collect(),
        routes: seen.routes,
        rules: seen.rules,
        firewall: Some(firewall(&host)),
        additive: false,
        ..Desired::default()
    };
    for want in [&desired, &Desired::default(), &desired, &Desired::default()] {
        host.apply(diff(want, &observe(&host)));
        assert_eq!(diff(want, &observe(&host)), []);
    }
    assert_eq!(host.everything(), before);
}

#[test]
fn everything_is_gone_after_removal_and_removal_can_be_repeated() {
    let host = Host::new();
    let before = host.everything();
    host.apply(all(&host));
    let removal = |host: &Host| {
        let mut changes = vec![Change::RemoveFirewall, Change::RemoveArp];
        changes.extend(expected(host).rules.into_iter().map(Change::RemoveRule));
        changes.extend(expected(host).routes.into_iter().map(Change::RemoveRoute));
        changes.push(Change::DeleteDevice { name: host.device.clone() });
        changes
    };
    host.apply(removal(&host));
    assert_eq!(observe(&host), Observed::default());
    assert_eq!(host.everything(), before);
    host.apply(removal(&host));
    assert_eq!(host.everything(), before);
}

#[test]
fn elements_of_sets_come_and_go_alone() {
    let host = Host::new();
    host.apply(vec![Change::PutFirewall(firewall(&host))]);
    let before = host.sh("nft list table inet meshd | grep -c counter");
    let wanted = Desired {
        firewall: Some(Firewall {
            sets: FirewallSets {
                // A wider one in place of two, one gone, one new.
                guarded: nets(&["10.2.0.0/15", "10.9.0.2/32", "10.9.0.3/32"]),
                fragmented: ["192.0.2.3".parse().unwrap()].into(),
                own: ["10.240.0.6".parse().unwrap(), "fd09::6".parse().unwrap()].into(),
                routed_nodes: ["192.0.2.4", "2001:db8::2"].map(|ip| ip.parse().unwrap()).into(),
                guarded_nodes: ["192.0.2.2", "2001:db8::3"].map(|ip| ip.parse().unwrap()).into(),
            },
            ..firewall(&host)
        }),
        ..Desired::default()
    };
    let changes = diff(&wanted, &host.observe().unwrap());
    assert!(changes.iter().all(|c| matches!(c, Change::ChangeSets { .. })), "{changes:?}");
    host.apply(changes);
    assert_eq!(diff(&wanted, &host.observe().unwrap()), []);
    assert_eq!(host.sh("nft list table inet meshd | grep -c counter"), before);
    let gone = Desired {
        firewall: Some(Firewall { sets: FirewallSets::default(), ..firewall(&host) }),
        ..Desired::default()
    };
    host.apply(diff(&gone, &host.observe().unwrap()));
    assert_eq!(diff(&gone, &host.observe().unwrap()), []);
}

#[test]
fn a_moved_allowed_ip_has_one_owner() {
    let host = Host::new();
    host.apply(host.device_changes(1, &ADDRESSES));
    host.apply(vec![
        host.put_peer(2, None, &["10.2.0.0/24", "fd02::/64"]),
        host.put_peer(3, None, &["10.3.0.0/24"]),
    ]);
    host.apply(vec![host.put_peer(3, None, &["10.2.0.0/24"])]);
    let peers = observe(&host).peers;
    assert_eq!(peers[&public(2)].allowed_ips, nets(&["fd02::/64"]));
    assert_eq!(peers[&public(3)].allowed_ips, nets(&["10.2.0.0/24", "10.3.0.0/24"]));
}

#[test]
fn allowed_ips_are_taken_and_the_others_stay() {
    let host = Host::new();
    host.apply(host.device_changes(1, &ADDRESSES));
    host.apply(vec![host.put_peer(2, None, &["10.2.0.0/24", "10.3.0.0/24", "fd02::/64"])]);
    let take = |ips: &[&str]| Change::TakeAllowedIps {
        device: host.device.clone(),
        public_key: public(2),
        allowed_ips: nets(ips),
    };
    host.apply(vec![take(&["10.3.0.0/24", "fd02::/64"])]);
    let peers = observe(&host).peers;
    assert_eq!(peers.len(), 1, "nothing is left of the dummy: {peers:?}");
    assert_eq!(peers[&public(2)].allowed_ips, nets(&["10.2.0.0/24"]));
    host.apply(vec![take(&["10.2.0.0/24", "10.3.0.0/24"])]);
    let peers = observe(&host).peers;
    assert_eq!((peers.len(), &peers[&public(2)].allowed_ips), (1, &BTreeSet::new()));
}

#[test]
fn a_peer_may_have_hundreds_of_allowed_ips() {
    let host = Host::new();
    host.apply(host.device_changes(1, &ADDRESSES));
    let many: BTreeSet<_> = (0..150_u32)
        .flat_map(|n| [net(&format!("10.{n}.0.0/24")), net(&format!("fd02:0:0:{n:x}::/64"))])
        .collect();
    let put = |ips: BTreeSet<_>| Change::PutPeer {
        device: host.device.clone(),
        public_key: public(2),
        endpoint: Some("192.0.2.2:51820".parse().unwrap()),
        keepalive: Some(25),
        preshared_key: None,
        add_allowed_ips: ips,
        new: true,
    };
    host.apply(vec![put(many.clone())]);
    let seen = observe(&host).peers;
    assert_eq!((seen.len(), &seen[&public(2)].allowed_ips), (1, &many));
    assert_eq!((seen[&public(2)].keepalive, seen[&public(2)].endpoint.is_some()), (25, true));

    let few: BTreeSet<_> = many.iter().take(10).copied().collect();
    host.apply(vec![Change::TakeAllowedIps {
        device: host.device.clone(),
        public_key: public(2),
        allowed_ips: many.difference(&few).copied().collect(),
    }]);
    let seen = observe(&host).peers;
    assert_eq!((seen.len(), &seen[&public(2)].allowed_ips), (1, &few));
}

#[test]
fn a_change_of_one_setting_leaves_the_others() {
    let host = Host::new();
    host.apply(all(&host));
    host.apply(vec![
        Change::ConfigureDevice {
            name: host.device.clone(),
            private_key: None,
            listen_port: Some(51821),
            fwmark: None,
        },
        Change::PutPeer {
            device: host.device.clone(),
            public_key: public(2),
            endpoint: None,
            keepalive: Some(0),
            preshared_key: None,
            add_allowed_ips: BTreeSet::new(),
            new: false,
        },
        Change::RemovePeer { device: host.device.clone(), public_key: public(3) },
        Change::RemoveAddress { name: host.device.clone(), address: net("100.112.0.1/32") },
        Change::SetMtu { name: host.device.clone(), mtu: 1400 },
    ]);
    let mut want = expected(&host);
    let device = want.device.as_mut().unwrap();
    (device.listen_port, device.mtu) = (51821, 1400);
    device.addresses = nets(&["fd00::1/128"]);
    want.peers.remove(&public(3));
    want.peers.get_mut(&public(2)).unwrap().keepalive = 0;
    // The kernel drops routes whose preferred source goes away.
    want.routes.retain(|r| r.destination != net("10.2.0.0/24"));
    assert_eq!(observe(&host), want);

    host.apply(vec![Change::ConfigureDevice {
        name: host.device.clone(),
        private_key: Some(private(9)),
        listen_port: None,
        fwmark: None,
    }]);
    assert_eq!(observe(&host).device.unwrap().public_key, Some(public(9)));
}

#[test]
fn a_route_changes_its_kind_in_one_step() {
    let host = Host::new();
    host.apply(host.device_changes(1, &ADDRESSES));
    for destination in ["10.2.0.0/24", "fd02::/64"] {
        let kinds = [
            host.route(destination, None, None).kind,
            RouteKind::Unreachable,
            host.route(destination, None, Some(1300)).kind,
            RouteKind::Throw,
            host.route(destination, None, None).kind,
        ];
        for kind in kinds {
            let want = route(destination, kind);
            host.apply(vec![Change::PutRoute(want.clone())]);
            assert_eq!(observe(&host).routes, BTreeSet::from([want.clone()]));
        }
        host.apply(vec![Change::RemoveRoute(host.route(destination, None, None))]);
        assert_eq!(observe(&host).routes, BTreeSet::new());
    }
}

#[test]
fn routes_of_different_metric_stand_side_by_side() {
    let host = Host::new();
    host.apply(host.device_changes(1, &ADDRESSES));
    for destination in ["10.2.0.0/24", "fd02::/64"] {
        let first = host.route(destination, None, None);
        let mut behind = route(destination, RouteKind::Unreachable);
        behind.metric = meshd_core::plan::UNREACHABLE_METRIC;
        host.apply(vec![Change::PutRoute(behind.clone()), Change::PutRoute(first.clone())]);
        assert_eq!(observe(&host).routes, BTreeSet::from([first.clone(), behind.clone()]));
        host.sh(&format!("ip link set {} down", host.device));
        assert_eq!(observe(&host).routes, BTreeSet::from([behind.clone()]), "{destination}");
        host.apply(vec![Change::SetUp { name: host.device.clone() }, Change::RemoveRoute(behind)]);
        assert_eq!(observe(&host).routes, BTreeSet::new());
    }
}

#[test]
fn what_others_break_is_observed() {
    let host = Host::new();
    host.apply(all(&host));
    let device = &host.device;
    let good = expected(&host);
    host.sh(&format!(
        "ip link set {device} mtu 1300; ip addr del fd00::1/128 dev {device}; \
         ip route del 10.2.0.0/24 table 51820; ip -6 rule del pref 2600; \
         sysctl -qw net.ipv4.conf.{device}.rp_filter=1; nft flush table inet meshd"
    ));
    let seen = observe(&host);
    assert_ne!(seen, good);
    let seen_device = seen.device.as_ref().unwrap();
    assert_eq!(seen_device.mtu, 1300);
    assert_eq!(seen_device.addresses, nets(&["100.112.0.1/32"]));
    assert_eq!(seen_device.sysctls, sysctls(&host, "1"));
    assert_eq!(seen.rules, BTreeSet::from([rule(Family::V4)]));
    assert_eq!(seen.firewall.unwrap().rules, None);
    assert!(!seen.routes.iter().any(|r| r.destination == net("10.2.0.0/24")));

    host.apply(all(&host));
    assert_eq!(observe(&host), good);
    host.sh(&format!("ip link del {device}"));
    let seen = observe(&host);
    assert_eq!((seen.device, seen.peers.len()), (None, 0));
    host.apply(all(&host));
    assert_eq!(observe(&host), good);
}
