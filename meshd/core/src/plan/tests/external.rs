//! Devices behind this host, in the plan.

use meshd_proto::WgPublicKey;

use super::{super::*, order::converge, worlds::*};
use crate::path_mtu::BASE;

const PHONE: WgPublicKey = WgPublicKey([0x50; 32]);

fn device(name: &str, number: u8, prefixes: &[&str]) -> External {
    External {
        name: name.parse().unwrap(),
        public_key: WgPublicKey([number; 32]),
        preshared_key: WgPresharedKey([9; 32]),
        prefixes: nets(prefixes),
        endpoint: None,
        tunnel: None,
    }
}

/// Node 1 announces 10.99.0.0/24 and fd99::/64 for its devices; the phone has an address of each.
fn world(members: impl IntoIterator<Item = Member>) -> World {
    let mut world = World::with(members);
    world.own = record(1, &["10.244.1.0/24", "fd00:1::/64", "10.99.0.0/24", "fd99::/64"]);
    world.externals.ranges = nets(&["10.99.0.0/24", "fd99::/64"]);
    world.externals.devices = vec![device("phone", 0x50, &["10.99.0.1/32", "fd99::1/128"])];
    world
}

fn reasons(world: &World) -> Vec<(String, &'static str)> {
    let blocked = world.plan().externals;
    let of = |(name, all): (&meshd_proto::NodeName, &Vec<Blocked>)| {
        all.iter().map(|b| (name.to_string(), b.reason.as_str())).collect::<Vec<_>>()
    };
    blocked.iter().flat_map(of).collect()
}

#[test]
fn a_device_is_a_peer_with_its_own_prefixes_and_the_rest_of_its_range_goes_nowhere() {
    let mut world = world([member(2, &["10.244.2.0/24"])]);
    world.config.strict = true;
    let plan = world.plan();
    let peer = &plan.desired.peers[&PHONE];
    assert_eq!(peer.allowed_ips, nets(&["10.99.0.1/32", "fd99::1/128"]));
    assert_eq!((peer.preshared_key.0, peer.keepalive), ([9; 32], Some(0)));
    assert_eq!(kinds(&plan, "10.99.0.1/32"), ["device", "unreachable"]);
    assert_eq!(kinds(&plan, "10.99.0.0/24"), ["unreachable"], "no throw: nothing of it is local");
    assert_eq!(kinds(&plan, "10.244.1.0/24"), ["throw"]);
    let firewall = plan.desired.firewall.as_ref().unwrap();
    assert!(firewall.sets.guarded.contains(&net("10.99.0.0/24")), "{firewall:?}");
    let forwarded = firewall.rules.forwarded.as_ref().unwrap();
    assert_eq!(forwarded.devices, nets(&["10.99.0.0/24", "fd99::/64"]));
    assert_eq!(forwarded.local, nets(&["10.244.1.0/24", "fd00:1::/64"]));
    assert!(firewall.rules.nat.own_v4.contains(&"10.99.0.0/24".parse().unwrap()));
    // Nobody measures its path.
    let mut to = plan.desired.routes.iter().filter(|r| r.destination == net("10.99.0.1/32"));
    assert!(to.any(|r| matches!(r.kind, RouteKind::Device { mtu: Some(BASE), .. })));
    assert!(plan.externals.is_empty(), "{:?}", plan.externals);
    // The kernel can be brought there, and has nothing left when it is removed.
    let mut kernel = Kernel::default();
    converge(&mut kernel, &plan.desired);
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Tunnel(PHONE));
    assert_eq!(kernel.verdict(ip("10.99.0.2")), Verdict::Unreachable);
    world.externals.devices.clear();
    let without = world.plan().desired;
    for change in diff(&without, &kernel.state()) {
        kernel.apply(&change).unwrap();
        let verdict = kernel.verdict(ip("10.99.0.1"));
        assert_ne!(verdict, Verdict::Clear, "after {change}");
    }
    assert!(!kernel.state().peers.contains_key(&PHONE));
}

#[test]
fn another_pre_shared_key_is_drift() {
    let world = world([]);
    let desired = world.plan().desired;
    let mut kernel = Kernel::default();
    converge(&mut kernel, &desired);
    for tampered in [WgPresharedKey::default(), WgPresharedKey([1; 32])] {
        kernel.peer_mut("mesh0", &PHONE).unwrap().preshared_key = tampered;
        let changes = diff(&desired, &kernel.state());
        let right = WgPresharedKey([9; 32]);
        assert!(
            matches!(&changes[..], [Change::PutPeer { preshared_key: Some(key), new: false, .. }] if *key == right),
            "{changes:?}"
        );
        kernel.apply(&changes[0]).unwrap();
    }
    // A member has none, and somebody sets one.
    let members = World::with([member(2, &[])]);
    let desired = members.plan().desired;
    let mut kernel = Kernel::default();
    converge(&mut kernel, &desired);
    kernel.peer_mut("mesh0", &lane(2).public_key).unwrap().preshared_key = WgPresharedKey([1; 32]);
    let changes = diff(&desired, &kernel.state());
    assert!(
        matches!(&changes[..], [Change::PutPeer { preshared_key: Some(key), .. }] if key.0 == [0; 32])
    );
}

#[test]
fn what_is_not_announced_is_not_programmed() {
    let mut world = world([]);
    world.own = record(1, &["10.244.1.0/24", "fd00:1::/64", "10.99.0.0/24"]);
    assert_eq!(reasons(&world), [("phone".to_owned(), "prefix_not_granted")]);
    let plan = world.plan();
    assert_eq!(plan.desired.peers[&PHONE].allowed_ips, nets(&["10.99.0.1/32"]));
    assert!(kinds(&plan, "fd99::1/128").is_empty() && kinds(&plan, "fd99::/64").is_empty());
    assert_eq!(kinds(&plan, "10.99.0.1/32"), ["device", "unreachable"], "the other family works");
}

#[test]
fn what_another_member_has_by_right_is_not_a_device_s() {
    // 10.99.0.1/32 is granted to n2 exactly: longer than this host's range.
    let mut world = world([member(2, &["10.99.0.1/32"])]);
    assert_eq!(reasons(&world), [("phone".to_owned(), "prefix_contested")]);
    assert!(!world.plan().desired.peers[&PHONE].allowed_ips.contains(&net("10.99.0.1/32")));
    // Devices in what turns out to be this host's pods.
    world = super::external::world([]);
    world.own.prefixes.push(net("10.99.0.0/28"));
    assert_eq!(reasons(&world), [("phone".to_owned(), "prefix_is_local")]);
}

#[test]
fn a_key_has_one_owner_and_members_come_first() {
    let mut world = world([member(2, &["10.244.2.0/24"])]);
    world.externals.devices.push(device("twin", 0x50, &["10.99.0.2/32"]));
    let mut member_key = device("thief", 0, &["10.99.0.3/32"]);
    member_key.public_key = lane(2).public_key;
    let mut own_key = device("self", 0, &["10.99.0.4/32"]);
    own_key.public_key = lane(1).public_key;
    world.externals.devices.extend([member_key, own_key]);
    let all: Vec<String> =
        reasons(&world).into_iter().map(|(name, code)| format!("{name} {code}")).collect();
    assert_eq!(all, ["self wg_key_in_use", "thief wg_key_in_use", "twin wg_key_in_use"]);
    let peer = world.peer(2).unwrap();
    assert!(peer.allowed_ips.contains(&net("10.244.2.0/24")));
    assert_eq!(peer.preshared_key, WgPresharedKey::default());
    // The same prefix twice goes to the first.
    world.externals.devices =
        vec![device("phone", 0x50, &["10.99.0.1/32"]), device("again", 0x51, &["10.99.0.1/32"])];
    assert_eq!(reasons(&world), [("again".to_owned(), "prefix_contested")]);
}

#[test]
fn no_range_cuts_this_host_off() {
    let mut world = world([]);
    world.local.addresses.insert(net("10.99.0.77/24"));
    assert_eq!(reasons(&world), [("phone".to_owned(), "covers_underlay")]);
    let plan = world.plan();
    assert!(kinds(&plan, "10.99.0.0/24").is_empty() && kinds(&plan, "10.99.0.1/32").is_empty());
}

#[test]
fn a_file_that_cannot_be_read_takes_nothing_from_the_kernel() {
    let whole = world([]);
    let mut kernel = Kernel::default();
    converge(&mut kernel, &whole.plan().desired);
    let mut damaged = whole.clone();
    damaged.externals.devices.clear();
    damaged.externals.incomplete = true;
    for change in diff(&damaged.plan().desired, &kernel.state()) {
        kernel.apply(&change).unwrap();
    }
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Tunnel(PHONE));
    // Another that was removed meanwhile goes all the same.
    damaged.externals.removed.insert(PHONE, nets(&["10.99.0.1/32", "fd99::1/128"]));
    for change in diff(&damaged.plan().desired, &kernel.state()) {
        kernel.apply(&change).unwrap();
    }
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Unreachable, "refused, not in the clear");
    assert!(!kernel.state().peers.contains_key(&PHONE));
}

#[test]
fn a_damaged_file_keeps_what_may_be_its_own_and_nothing_else() {
    let whole = world([member(2, &["10.244.2.0/24"])]);
    let mut kernel = Kernel::default();
    converge(&mut kernel, &whole.plan().desired);
    let mut damaged = whole.clone();
    damaged.members.clear();
    damaged.externals.devices.clear();
    (damaged.externals.incomplete, damaged.externals.unknown) = (true, true);
    converge(&mut kernel, &damaged.plan().desired);
    assert_eq!(kernel.state().peers.len(), 2, "whose ranges are not known keeps all");
    damaged.externals.unknown = false;
    converge(&mut kernel, &damaged.plan().desired);
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Tunnel(PHONE));
    assert_eq!(kernel.verdict(ip("10.244.2.7")), Verdict::Clear, "the member has gone");
    assert_eq!(kernel.state().peers.into_keys().collect::<Vec<_>>(), [PHONE]);
}

#[test]
fn what_another_peer_holds_stays_while_not_everybody_is_known() {
    const TABLET: WgPublicKey = WgPublicKey([0x51; 32]);
    let mut before = world([]);
    before.externals.devices = vec![device("tablet", 0x51, &["10.99.0.1/32"])];
    let mut kernel = Kernel::default();
    converge(&mut kernel, &before.plan().desired);
    // The phone had the same once; the tablet is not known now.
    let mut after = before.clone();
    after.complete = false;
    after.externals.devices.clear();
    after.externals.removed.insert(PHONE, nets(&["10.99.0.1/32"]));
    converge(&mut kernel, &after.plan().desired);
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Tunnel(TABLET));
    after.externals.removed.insert(TABLET, nets(&["10.99.0.1/32"]));
    converge(&mut kernel, &after.plan().desired);
    assert_eq!(kernel.verdict(ip("10.99.0.1")), Verdict::Unreachable);
    assert!(kernel.state().peers.is_empty());
}

#[test]
fn a_device_in_a_range_that_pods_are_in_is_told_so() {
    let mut world = world([]);
    let mut own = record(1, &["10.99.0.0/16"]);
    own.prefixes = vec![net("10.99.1.0/24")];
    world.own = own;
    world.externals.ranges.clear();
    let blocked = world.plan().externals.into_values().flatten();
    let blocked = blocked.filter(|blocked| blocked.reason == BlockReason::OwnPrefix);
    let told: Vec<String> = blocked.map(|blocked| blocked.message).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("own pods are within 10.99.0.0/16"), "{told:?}");
}

#[test]
fn its_endpoint_is_set_until_it_works_and_packets_to_it_may_be_fragmented() {
    let mut world = world([]);
    let phone = &mut world.externals.devices[0];
    phone.endpoint = Some(([192, 0, 2, 50], 51820).into());
    let endpoint = |world: &World| world.plan().desired.peers[&PHONE].endpoint;
    assert!(endpoint(&world).is_some());
    world.externals.devices[0].tunnel = tunnel(TunnelState::Up, Some(3), 0);
    assert_eq!(endpoint(&world), None, "it roams by itself");
    let fragmented = |world: &World| world.plan().desired.firewall.clone().unwrap().sets.fragmented;
    assert_eq!(fragmented(&world), ["192.0.2.99".parse().unwrap()].into());
    // A member behind the same NAT box has its path measured.
    let mut neighbour = member(2, &[]);
    neighbour.tunnel = tunnel(TunnelState::Up, Some(3), 0);
    world.members.push(neighbour);
    assert!(fragmented(&world).is_empty());
}

#[test]
fn a_device_comes_only_after_what_keeps_it_inside_the_mesh() {
    let world = world([]);
    let desired = world.plan().desired;
    let mut kernel = host();
    let is_device = |change: &Change| matches!(change, Change::PutPeer { public_key, .. } if *public_key == PHONE);
    // Whatever fails of the table: the device is not served.
    for _ in 0..3 {
        let changes = diff(&desired, &kernel.state());
        assert!(!changes.iter().any(is_device));
        for change in changes.iter().filter(|c| !matches!(c, Change::PutFirewall(_))) {
            kernel.apply(change).unwrap();
        }
    }
    let changes = diff(&desired, &kernel.state());
    changes.iter().for_each(|change| kernel.apply(change).unwrap());
    assert!(diff(&desired, &kernel.state()).iter().all(is_device));
    converge(&mut kernel, &desired);
    // A range more: first the table again.
    let mut wider = world;
    wider.externals.ranges.extend(nets(&["10.98.0.0/24"]));
    wider.own =
        record(1, &["10.244.1.0/24", "fd00:1::/64", "10.99.0.0/24", "fd99::/64", "10.98.0.0/24"]);
    wider.externals.devices.push(device("tablet", 0x51, &["10.98.0.1/32"]));
    let changes = diff(&wider.plan().desired, &kernel.state());
    assert!(changes.iter().any(|change| matches!(change, Change::PutFirewall(_))));
    assert!(!changes.iter().any(|change| matches!(change, Change::PutPeer { .. })));
}
