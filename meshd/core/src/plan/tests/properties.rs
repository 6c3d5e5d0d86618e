//! What holds in every world, after every sequence of worlds, and whatever call fails.

use std::{collections::BTreeSet, net::IpAddr, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use super::{super::*, worlds::*};
use crate::address::host_prefix;

/// Nested, disjoint and dangerous ones, of both families.
const PREFIXES: [&str; 18] = [
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
    ) -> Member {
        let mut record = record(number, &prefixes);
        if let Some(length) = pool {
            record = from_pool(record, length);
        }
        match lane_of {
            Some(0) => {}
            Some(other) => record.lanes[0].public_key = lane(other).public_key,
            None => record.lanes.clear(),
        }
        record.endpoints = endpoints.into_iter().map(|a| SocketAddr::new(a, 51800)).collect();
        (record.left, record.version) = (left, version);
        let down_for = (liveness == Liveness::Down).then_some(Duration::from_secs(down_for));
        Member { path, liveness, down_for, tunnel, ..of(record) }
    }
}

prop_compose! {
    fn any_world()(
        members in vec(any_member(), 0..6),
        own in subsequence(vec!["10.244.0.0/16", "10.244.1.0/24", "fd00:1::/64", "fd00:2::/48"], 0..3),
        more_local in subsequence(vec!["10.0.0.5/24", "172.17.0.1/16", "10.245.0.9/32"], 0..3),
        behind_nat in any::<bool>(),
    ) -> World {
        let mut world = World::with(members);
        world.own = record(1, &own);
        world.local.addresses.extend(nets_with_hosts(&more_local));
        world.local.behind_nat = behind_nat;
        world
    }
}

prop_compose! {
    /// The same with settings that make a device anew.
    fn any_settings()(
        mut world in any_world(),
        ipv6 in prop::bool::weighted(0.8),
        other_name in prop::bool::weighted(0.2),
        other_table in prop::bool::weighted(0.2),
        other_key in prop::bool::weighted(0.2),
    ) -> World {
        world.local.ipv6 = ipv6;
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

fn nets_with_hosts(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

/// What somebody else may do to the kernel.
#[derive(Debug, Clone)]
enum Tamper {
    LinkDown,
    DeleteDevice,
    ForeignKey,
    FlushRoute(usize),
    FlushRules,
    RemovePeer(usize),
    ForeignPeer(&'static str),
    ForeignRoute(&'static str),
    RemoveNat,
}

fn any_tamper() -> impl Strategy<Value = Tamper> {
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
        Just(Tamper::RemoveNat),
    ]
}

fn tamper(kernel: &mut Kernel, what: &Tamper) {
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
            add_allowed_ips: nets(&[prefix]),
            new: true,
        }],
        Tamper::ForeignRoute(prefix) => vec![Change::PutRoute(Route {
            destination: net(prefix),
            table: 51820,
            metric: 7,
            kind: RouteKind::Throw,
        })],
        Tamper::RemoveNat => vec![Change::RemoveNat],
    };
    for change in changes {
        let _ = kernel.apply(&change); // Nothing to remove is fine.
    }
}

/// One pass without failures, after which nothing is left to do.
fn converge(kernel: &mut Kernel, desired: &Desired) {
    for change in diff(desired, &kernel.state()) {
        kernel.apply(&change).unwrap_or_else(|error| panic!("{change:?}: {error}"));
    }
    assert_eq!(diff(desired, &kernel.state()), []);
}

/// The kernel's state without what a plan leaves to it.
fn comparable(kernel: &Kernel, desired: &Desired) -> Observed {
    let mut state = kernel.state();
    for (key, peer) in &mut state.peers {
        if desired.peers.get(key).is_none_or(|desired| desired.endpoint.is_none()) {
            peer.endpoint = None;
        }
    }
    if let (Some(observed), Some(device)) = (&mut state.device, &desired.device) {
        observed.sysctls.retain(|path, _| device.sysctls.contains_key(path));
    }
    state
}

/// Addresses in and beside every prefix.
fn probes() -> Vec<IpAddr> {
    let prefixes = PREFIXES.iter().map(|prefix| net(prefix));
    let ends = prefixes.flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
    let more =
        ["10.244.1.5", "10.244.2.7", "10.244.2.200", "10.1.1.1", "fd00:2::1:1", "100.112.0.3"];
    ends.chain(more.map(ip)).collect()
}

fn verdicts(kernel: &Kernel) -> Vec<(IpAddr, Verdict)> {
    probes().into_iter().map(|address| (address, kernel.verdict(address))).collect()
}

fn is_tunnel(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Tunnel(_))
}

/// Applies the changes one by one. Nothing that is kept from the clear before and after is in it
/// meanwhile; with `no_hole`, nothing that is in a tunnel before and after is without meanwhile.
fn step_through(kernel: &mut Kernel, desired: &Desired, no_hole: bool) {
    let before = verdicts(kernel);
    let mut end = kernel.clone();
    converge(&mut end, desired);
    let after = verdicts(&end);
    for change in diff(desired, &kernel.state()) {
        kernel.apply(&change).unwrap();
        for ((probe, before), (_, after)) in before.iter().zip(&after) {
            let now = kernel.verdict(*probe);
            if *before != Verdict::Clear && *after != Verdict::Clear {
                assert_ne!(now, Verdict::Clear, "{probe} leaks after {change:?}");
            }
            if no_hole && is_tunnel(*before) && is_tunnel(*after) {
                assert!(is_tunnel(now), "{probe} is {now:?} after {change:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_leads_from_any_state_to_any_plan(
        worlds in vec((any_settings(), vec(any_tamper(), 0..3)), 1..4),
    ) {
        let mut kernel = Kernel::default();
        for (world, tampers) in &worlds {
            converge(&mut kernel, &world.plan().desired);
            for what in tampers {
                tamper(&mut kernel, what);
            }
        }
        converge(&mut kernel, &worlds[0].0.plan().desired);
        converge(&mut kernel, &Desired::default());
        prop_assert_eq!(kernel.state(), Observed::default());
    }

    #[test]
    fn every_failing_call_costs_at_most_one_pass(
        first in any_settings(),
        second in any_settings(),
        failing in vec(1..60_u64, 0..6),
        goes_on in any::<bool>(),
    ) {
        let mut kernel = Kernel::default();
        converge(&mut kernel, &first.plan().desired);
        let desired = second.plan().desired;
        kernel.fail_calls(failing.iter().copied());
        let mut passes = 0;
        loop {
            passes += 1;
            prop_assert!(passes <= failing.len() + 2, "no end after {passes} passes");
            let Ok(observed) = kernel.observe() else { continue };
            let changes = diff(&desired, &observed);
            if changes.is_empty() {
                break;
            }
            for change in changes {
                if kernel.apply(&change).is_err() && !goes_on {
                    break;
                }
            }
        }
    }

    #[test]
    fn the_end_depends_on_the_last_world_only(worlds in vec(any_settings(), 1..5)) {
        let last = worlds[worlds.len() - 1].plan().desired;
        let mut straight = Kernel::default();
        converge(&mut straight, &last);
        let expected = comparable(&straight, &last);
        let forward: Vec<&World> = worlds.iter().collect();
        let reversed: Vec<&World> = worlds.iter().rev().collect();
        let doubled: Vec<&World> = worlds.iter().flat_map(|world| [world, world]).collect();
        for sequence in [forward, reversed, doubled] {
            let mut kernel = Kernel::default();
            for world in sequence {
                converge(&mut kernel, &world.plan().desired);
            }
            converge(&mut kernel, &last);
            prop_assert_eq!(comparable(&kernel, &last), expected.clone());
        }
    }

    #[test]
    fn the_order_and_repetition_of_members_do_not_matter(world in any_world()) {
        let mut members = world.members.clone();
        // Of two records of one version there is only one in truth.
        members.sort_by_key(|member| (member.record.key, member.record.version));
        members.dedup_by_key(|member| (member.record.key, member.record.version));
        let plan = World { members: members.clone(), ..world.clone() }.plan();
        members.reverse();
        prop_assert_eq!(&World { members: members.clone(), ..world.clone() }.plan(), &plan);
        members.extend(members.clone());
        prop_assert_eq!(&World { members, ..world }.plan(), &plan);
    }

    #[test]
    fn an_update_makes_no_hole_and_no_leak(
        first in any_world(),
        second in any_world(),
    ) {
        let mut kernel = Kernel::default();
        converge(&mut kernel, &first.plan().desired);
        step_through(&mut kernel, &second.plan().desired, true);
    }

    #[test]
    fn settings_and_other_hands_make_no_leak(
        first in any_settings(),
        second in any_settings(),
        what in any_tamper(),
    ) {
        let mut kernel = Kernel::default();
        converge(&mut kernel, &first.plan().desired);
        tamper(&mut kernel, &what);
        step_through(&mut kernel, &second.plan().desired, false);
    }

    #[test]
    fn no_plan_cuts_a_host_off(world in any_settings()) {
        let plan = world.plan();
        let mut kernel = Kernel::default();
        converge(&mut kernel, &plan.desired);
        let own: Vec<IpNet> = world.own.prefixes.clone();
        let present = world.members.iter().filter(|member| {
            plan.routed.contains_key(&member.record.key)
        });
        let reached = present.filter_map(|member| {
            let is_newest = world.members.iter().all(|other| {
                other.record.key != member.record.key
                    || other.record.version < member.record.version
                    || std::ptr::eq(other, member)
            });
            member.path.filter(|_| is_newest)
        });
        let mesh: BTreeSet<IpNet> =
            world.members.iter().flat_map(|m| m.record.mesh_addresses.clone()).collect();
        let outside = world.local.addresses.iter().map(|net| net.addr());
        let needed = outside.chain(world.local.gateways.iter().copied()).chain(reached);
        for address in needed.filter(|address| !own.iter().any(|net| net.contains(address))) {
            if !mesh.contains(&host_prefix(address)) {
                prop_assert_eq!(kernel.verdict(address), Verdict::Clear, "{}", address);
            }
        }
        for peer in plan.desired.peers.values() {
            if let Some(endpoint) = peer.endpoint {
                prop_assert_eq!(kernel.verdict(endpoint.ip()), Verdict::Clear);
            }
        }
    }

    #[test]
    fn no_allowed_ip_is_on_two_peers_and_each_has_its_routes(world in any_settings()) {
        let plan = world.plan();
        let mut seen = BTreeSet::new();
        for ip in plan.desired.peers.values().flat_map(|peer| &peer.allowed_ips) {
            prop_assert!(seen.insert(*ip), "{} twice", ip);
            let kinds = kinds(&plan, &ip.to_string());
            if world.local.ipv6 || ip.addr().is_ipv4() {
                prop_assert_eq!(kinds, ["device", "unreachable"]);
            }
        }
    }
}
