//! Random worlds, and what other hands do to a kernel.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use super::{super::*, worlds::*};
use crate::path_mtu::{PathMtu, Small};

/// Nested, disjoint and dangerous ones, of both families.
pub(super) const PREFIXES: [&str; 18] = [
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.1.128/25",
    "10.244.2.0/24",
    "10.244.2.0/25",
    "10.244.2.7/32",
    "10.245.0.0/16",
    "192.0.2.0/24",
    "192.0.2.77/32",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "100.112.0.0/16",
    "fd00::/8",
    "fd00:2::/48",
    "fd00:2::/64",
    "fd00:2::7/128",
    "2001:db8::/32",
];

fn any_prefixes(most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(PREFIXES.to_vec(), 0..=most)
}

/// Of other hosts, and what no member may take off this one.
const NODES: [&str; 9] = [
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.254",
    "192.0.2.1",
    "203.0.113.9",
    "10.244.2.9",
    "100.112.0.3",
    "2001:db8::2",
    "2001:db8::9",
];

fn any_liveness() -> impl Strategy<Value = Liveness> {
    prop_oneof![
        6 => Just(Liveness::Alive),
        1 => Just(Liveness::Suspect),
        3 => Just(Liveness::Down),
        1 => Just(Liveness::Left)
    ]
}

fn any_tunnel() -> impl Strategy<Value = Option<TunnelHealth>> {
    prop_oneof![
        Just(None),
        (0..4_u32).prop_map(|attempt| tunnel(TunnelState::Never, None, attempt)),
        (0..4_u32).prop_map(|attempt| tunnel(TunnelState::Stale, Some(300), attempt)),
        (0..1_000_u64).prop_map(|age| tunnel(TunnelState::Up, Some(age), 0)),
    ]
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let addresses = [
        "192.0.2.2",
        "192.0.2.1",
        "203.0.113.9",
        "10.244.2.9",
        "10.9.9.9",
        "198.51.100.1",
        "2001:db8::9",
        "127.0.0.1",
        "fd00:2::9",
        "100.112.0.3",
    ];
    proptest::sample::select(addresses.map(ip).to_vec())
}

fn any_path_mtu() -> impl Strategy<Value = PathMtu> {
    let small = prop_oneof![Just(Small::Fragmented), Just(Small::NoIpv6)];
    (576_u32..1_600, option::of(small)).prop_map(|(mtu, small)| PathMtu { mtu, small })
}

prop_compose! {
    fn any_member()(
        number in 2..7_u8,
        prefixes in any_prefixes(5),
        pool in option::of(8..24_u8),
        // Its lane's key is its own, somebody's, ours, or there is none.
        lane_of in prop_oneof![6 => Just(Some(0)), 1 => Just(Some(2)), 1 => Just(Some(1)), 1 => Just(None)],
        endpoints in vec(any_address(), 0..3),
        path in option::of(any_address()),
        liveness in any_liveness(),
        down_for in 0..1_000_u64,
        tunnel in any_tunnel(),
        left in prop::bool::weighted(0.1),
        version in 1..3_u64,
        path_mtu in option::of(any_path_mtu()),
        nodes in subsequence(NODES.to_vec(), 0..4),
        accepts in subsequence(vec!["192.0.2.1", "2001:db8::1"], 0..=2),
    ) -> Member {
        let mut record = record(number, &prefixes);
        if let Some(length) = pool {
            record = from_pool(record, length);
        }
        record = with_nodes(record, &nodes);
        match lane_of {
            Some(0) => {}
            Some(other) => record.lanes[0].public_key = lane(other).public_key,
            None => record.lanes.clear(),
        }
        record.endpoints = endpoints.into_iter().map(|a| SocketAddr::new(a, 51800)).collect();
        (record.left, record.version) = (left, version);
        let down_for = (liveness == Liveness::Down).then_some(Duration::from_secs(down_for));
        let accepts = accepts.into_iter().map(ip).collect();
        Member { path, liveness, down_for, tunnel, path_mtu, accepts, ..of(record) }
    }
}

prop_compose! {
    pub(super) fn any_world()(
        members in vec(any_member(), 0..6),
        own in subsequence(vec!["10.244.0.0/16", "10.244.1.0/24", "fd00:1::/64", "fd00:2::/48"], 0..3),
        more_local in subsequence(vec!["10.0.0.5/24", "172.17.0.1/16", "10.245.0.9/32"], 0..3),
        workloads in subsequence(vec!["10.244.2.7/32", "10.240.9.9/32", "fd00:2::1:1/128"], 0..3),
        announced in 0..3_usize,
        behind_nat in any::<Option<bool>>(),
        nodes in any::<bool>(),
        steering in any::<(bool, bool, bool)>(),
    ) -> World {
        let mut world = World::with(members);
        let announced = &workloads[..announced.min(workloads.len())];
        world.own = record(1, &[&own[..], announced].concat());
        world.local.workloads = nets(&workloads);
        world.local.addresses.extend(nets(&more_local));
        world.local.behind_nat = behind_nat;
        world.local.node_addresses = vec![ip("192.0.2.1"), ip("2001:db8::1")];
        world.local.underlay = ["eth0".to_owned()].into();
        world.config.nodes = nodes;
        if nodes {
            world.own = with_nodes(world.own, &["192.0.2.1", "2001:db8::1"]);
        }
        world.steering = SteeringSeen { v4: steering.0, v6: steering.1, routes: steering.2 };
        world
    }
}

prop_compose! {
    /// The same with settings that make a device anew.
    pub(super) fn any_settings()(
        mut world in any_world(),
        ipv6 in prop::bool::weighted(0.8),
        other_name in prop::bool::weighted(0.2),
        other_table in prop::bool::weighted(0.2),
        other_key in prop::bool::weighted(0.2),
        strict in any::<bool>(),
        workloads in any::<bool>(),
    ) -> World {
        world.local.ipv6 = ipv6;
        world.config.strict = strict;
        world.config.workloads = workloads;
        if other_name {
            world.config.interface = "mesh7".to_owned();
        }
        if other_table {
            world.config.table = 700;
            world.config.rule_priority = 2_000;
        }
        if other_key {
            world.lane = lane(3);
        }
        world
    }
}

/// What somebody else may do to the kernel.
#[derive(Debug, Clone)]
pub(super) enum Tamper {
    LinkDown,
    DeleteDevice,
    ForeignKey,
    FlushRoute(usize),
    FlushRules,
    RemovePeer(usize),
    ForeignPeer(&'static str),
    ForeignRoute(&'static str),
    RemoveFirewall,
    RemoveArp,
    ForgetMark,
}

pub(super) fn any_tamper() -> impl Strategy<Value = Tamper> {
    let prefix = || proptest::sample::select(PREFIXES.to_vec());
    prop_oneof![
        Just(Tamper::LinkDown),
        Just(Tamper::DeleteDevice),
        Just(Tamper::ForeignKey),
        any::<usize>().prop_map(Tamper::FlushRoute),
        Just(Tamper::FlushRules),
        any::<usize>().prop_map(Tamper::RemovePeer),
        prefix().prop_map(Tamper::ForeignPeer),
        prefix().prop_map(Tamper::ForeignRoute),
        Just(Tamper::RemoveFirewall),
        Just(Tamper::RemoveArp),
        Just(Tamper::ForgetMark),
    ]
}

pub(super) fn tamper(kernel: &mut Kernel, what: &Tamper) {
    let state = kernel.state();
    let Some(name) = state.device.map(|device| device.name) else { return };
    let changes: Vec<Change> = match what {
        Tamper::LinkDown => {
            kernel.take_down(&name);
            vec![]
        }
        Tamper::DeleteDevice => vec![Change::DeleteDevice { name }],
        Tamper::ForeignKey => vec![Change::ConfigureDevice {
            name,
            private_key: Some(lane(99).private_key),
            listen_port: Some(1),
            fwmark: Some(2),
        }],
        Tamper::FlushRoute(index) => {
            let routes: Vec<_> = state.routes.into_iter().collect();
            let route = index.checked_rem(routes.len()).map(|index| routes[index].clone());
            route.into_iter().map(Change::RemoveRoute).collect()
        }
        Tamper::FlushRules => state.rules.into_iter().map(Change::RemoveRule).collect(),
        Tamper::RemovePeer(index) => {
            let peers: Vec<_> = state.peers.into_keys().collect();
            let key = index.checked_rem(peers.len()).map(|index| peers[index]);
            key.map(|public_key| Change::RemovePeer { device: name, public_key })
                .into_iter()
                .collect()
        }
        Tamper::ForeignPeer(prefix) => vec![Change::PutPeer {
            device: name,
            public_key: lane(77).public_key,
            endpoint: None,
            keepalive: Some(5),
            preshared_key: Some(WgPresharedKey([5; 32])),
            add_allowed_ips: nets(&[prefix]),
            new: true,
        }],
        Tamper::ForeignRoute(prefix) => vec![Change::PutRoute(Route {
            destination: net(prefix),
            table: 51820,
            metric: 7,
            kind: RouteKind::Throw,
        })],
        Tamper::RemoveFirewall => vec![Change::RemoveFirewall],
        Tamper::RemoveArp => vec![Change::RemoveArp],
        Tamper::ForgetMark => {
            let path = "net/ipv4/conf/eth0/src_valid_mark".to_owned();
            vec![Change::SetUnderlaySysctl { path, value: "0".to_owned() }]
        }
    };
    for change in changes {
        let _ = kernel.apply(&change); // Nothing to remove is fine.
    }
}
