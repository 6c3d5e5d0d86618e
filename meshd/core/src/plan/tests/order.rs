//! The order of changes, where a wrong one would be a hole, a leak or an error.

use super::{super::*, worlds::*};

/// Applies every change; returns them.
pub(super) fn converge(kernel: &mut Kernel, desired: &Desired) -> Vec<Change> {
    let mut changes = diff(desired, &kernel.state());
    for change in &changes {
        kernel.apply(change).unwrap();
    }
    if !desired.confined.is_empty() {
        // Devices wait until the table was seen to stand.
        let devices = diff(desired, &kernel.state());
        let of_device = |change: &Change| matches!(change, Change::PutPeer { public_key, .. } if desired.confined.contains(public_key));
        assert!(devices.iter().all(of_device), "{devices:?}");
        for change in &devices {
            kernel.apply(change).unwrap();
        }
        changes.extend(devices);
    }
    assert_eq!(diff(desired, &kernel.state()), []);
    changes
}

pub(super) fn programmed(world: &World) -> Kernel {
    let mut kernel = host();
    converge(&mut kernel, &world.plan().desired);
    kernel
}

fn position(changes: &[Change], which: impl Fn(&Change) -> bool) -> usize {
    changes.iter().position(which).unwrap()
}

#[test]
fn a_new_host_gets_its_rule_last() {
    let world = World::with([member(2, &["10.244.2.0/24"])]);
    let changes = converge(&mut host(), &world.plan().desired);
    let first_rule = position(&changes, |c| matches!(c, Change::AddRule(_)));
    assert!(changes[first_rule..].iter().all(|c| matches!(c, Change::AddRule(_))));
    let up = position(&changes, |c| matches!(c, Change::SetUp { .. }));
    let route = position(
        &changes,
        |c| matches!(c, Change::PutRoute(r) if matches!(r.kind, RouteKind::Device { .. })),
    );
    let peer = position(&changes, |c| matches!(c, Change::PutPeer { new: true, .. }));
    assert!(up < peer && peer < route);
}

#[test]
fn an_empty_desire_removes_every_trace_beginning_with_the_rules() {
    let mut kernel = programmed(&World::with([member(2, &["10.244.2.0/24"])]));
    let changes = converge(&mut kernel, &Desired::default());
    assert!(matches!(changes[0], Change::RemoveRule(_)));
    assert_eq!(kernel.state(), Observed::default());
}

#[test]
fn nothing_is_taken_away_while_members_may_be_missing() {
    let mut world = World::with([member(2, &["10.244.2.0/24"]), member(3, &["10.244.3.0/24"])]);
    let mut kernel = programmed(&world);
    let before = kernel.state();
    world.members.clear();
    world.complete = false;
    assert_eq!(converge(&mut kernel, &world.plan().desired), []);
    world.members.push(member(4, &["10.244.4.0/24"]));
    converge(&mut kernel, &world.plan().desired);
    assert!(before.routes.is_subset(&kernel.state().routes));
    assert_eq!(kernel.state().peers.len(), 3);
    world.complete = true;
    converge(&mut kernel, &world.plan().desired);
    assert_eq!(kernel.state().peers.len(), 1);
}

#[test]
fn only_what_differs_is_changed() {
    let mut world = World::with([member(2, &["10.244.2.0/24"]), member(3, &["10.244.3.0/24"])]);
    let mut kernel = programmed(&world);
    world.members[0] = of(record(2, &["10.244.2.0/24", "10.244.4.0/24"]));
    let changes = converge(&mut kernel, &world.plan().desired);
    assert_eq!(changes.len(), 3, "unreachable, allowed IP, route: {changes:?}");
    let put = changes.iter().find_map(|change| match change {
        Change::PutPeer { public_key, add_allowed_ips, endpoint, keepalive, new, .. } => {
            Some((public_key, add_allowed_ips, endpoint, keepalive, new))
        }
        _ => None,
    });
    let added = nets(&["10.244.4.0/24"]);
    assert_eq!(put, Some((&lane(2).public_key, &added, &None, &None, &false)));
}

#[test]
fn a_prefix_moves_to_another_peer_without_touching_the_old_one_or_the_route() {
    let mut world = World::with([member(2, &["10.244.2.0/24"]), member(3, &[])]);
    let mut kernel = programmed(&world);
    world.members = vec![member(2, &[]), member(3, &["10.244.2.0/24"])];
    let changes = converge(&mut kernel, &world.plan().desired);
    assert!(
        matches!(&changes[..], [Change::PutPeer { public_key, .. }] if *public_key == lane(3).public_key),
        "{changes:?}"
    );
}

#[test]
fn allowed_ips_are_replaced_only_when_they_do_not_move_by_themselves() {
    let mut world = World::with([member(2, &["10.244.2.0/24"])]);
    let mut kernel = programmed(&world);
    world.members = vec![member(2, &[])];
    let changes = converge(&mut kernel, &world.plan().desired);
    let replace = position(&changes, |c| matches!(c, Change::TakeAllowedIps { .. }));
    assert_eq!(replace, changes.len() - 1, "after its routes: {changes:?}");
}

#[test]
fn a_link_that_went_down_comes_back_with_addresses_before_routes() {
    let world = World::with([member(2, &["10.244.2.0/24", "fd00:2::/64"])]);
    let mut kernel = programmed(&world);
    kernel.take_down("mesh0");
    assert_eq!(kernel.verdict(ip("10.244.2.5")), Verdict::Unreachable, "no leak meanwhile");
    assert_eq!(kernel.verdict(ip("fd00:2::5")), Verdict::Unreachable);
    let changes = converge(&mut kernel, &world.plan().desired);
    assert!(!changes.iter().any(|c| matches!(c, Change::PutPeer { .. })), "{changes:?}");
    assert_eq!(kernel.verdict(ip("fd00:2::5")), Verdict::Tunnel(lane(2).public_key));
}

#[test]
fn another_key_on_the_device_is_set_right() {
    let world = World::with([member(2, &[])]);
    let mut kernel = programmed(&world);
    let foreign = Change::ConfigureDevice {
        name: "mesh0".to_owned(),
        private_key: Some(lane(9).private_key),
        listen_port: None,
        fwmark: None,
    };
    kernel.apply(&foreign).unwrap();
    let changes = converge(&mut kernel, &world.plan().desired);
    let expected = Change::ConfigureDevice {
        name: "mesh0".to_owned(),
        private_key: Some(lane(1).private_key),
        listen_port: None,
        fwmark: None,
    };
    assert_eq!(changes, [expected]);
}

#[test]
fn a_peer_that_bears_the_new_own_key_is_made_again() {
    let mut world = World::with([member(2, &["10.244.2.0/24"])]);
    let mut kernel = programmed(&world);
    world.lane = lane(2);
    let mut two = record(2, &["10.244.2.0/24"]);
    two.lanes[0].public_key = lane(1).public_key;
    world.members = vec![of(two)];
    converge(&mut kernel, &world.plan().desired);
    assert!(kernel.state().peers.contains_key(&lane(1).public_key));
}

#[test]
fn a_device_of_another_name_gives_way_and_nothing_leaks() {
    let mut world = World::with([member(2, &["10.244.2.0/24"])]);
    let mut kernel = programmed(&world);
    world.config.interface = "mesh7".to_owned();
    for change in diff(&world.plan().desired, &kernel.state()) {
        kernel.apply(&change).unwrap();
        assert_ne!(kernel.verdict(ip("10.244.2.5")), Verdict::Clear, "after {change:?}");
    }
    assert_eq!(kernel.verdict(ip("10.244.2.5")), Verdict::Tunnel(lane(2).public_key));
    assert_eq!(diff(&world.plan().desired, &kernel.state()), []);
}

#[test]
fn an_endpoint_is_compared_only_where_one_is_desired_and_never_set_on_a_live_tunnel() {
    let world = World::with([member(2, &[])]);
    let mut kernel = programmed(&world);
    let desired = world.plan().desired;
    let roamed = Some("203.0.113.7:4000".parse().unwrap());
    let peer = kernel.peer_mut("mesh0", &lane(2).public_key).unwrap();
    peer.endpoint = roamed;
    assert_eq!(diff(&desired, &kernel.state()).len(), 1);
    let peer = kernel.peer_mut("mesh0", &lane(2).public_key).unwrap();
    peer.last_handshake = Some(std::time::Duration::from_secs(5));
    assert_eq!(diff(&desired, &kernel.state()), [], "it has roamed");
    let peer = kernel.peer_mut("mesh0", &lane(2).public_key).unwrap();
    peer.last_handshake = None;
    let mut leave = Desired::clone(&desired);
    leave.peers.get_mut(&lane(2).public_key).unwrap().endpoint = None;
    assert_eq!(diff(&leave, &kernel.state()), []);
}

#[test]
fn a_workloads_address_that_moves_within_a_wider_prefix_never_loses_its_way() {
    let mut world = World::with([member(2, &["10.244.0.0/16"]), member(3, &[])]);
    let mut kernel = programmed(&world);
    let pod = ip("10.244.2.7");
    let (two, three) = (Verdict::Tunnel(lane(2).public_key), Verdict::Tunnel(lane(3).public_key));
    for (claims, from, to) in [(&["10.244.2.7/32"][..], two, three), (&[], three, two)] {
        assert_eq!(kernel.verdict(pod), from);
        world.members[1] = member(3, claims);
        for change in diff(&world.plan().desired, &kernel.state()) {
            kernel.apply(&change).unwrap();
            assert!([from, to].contains(&kernel.verdict(pod)), "after {change:?}");
        }
        assert_eq!(kernel.verdict(pod), to);
    }
}

#[test]
fn what_goes_from_within_a_clear_prefix_goes_after_that() {
    let mut bare = record(3, &["10.244.2.0/24"]);
    bare.lanes.clear();
    let wide = member(2, &["10.244.0.0/16"]);
    let mut world = World::with([wide.clone(), of(bare), member(4, &["10.244.2.0/25"])]);
    let mut kernel = programmed(&world);
    assert_eq!(kernel.verdict(ip("10.244.2.200")), Verdict::Clear);
    assert_eq!(kernel.verdict(ip("10.244.2.7")), Verdict::Tunnel(lane(4).public_key));
    world.members = vec![wide];
    for change in diff(&world.plan().desired, &kernel.state()) {
        kernel.apply(&change).unwrap();
        assert!(matches!(kernel.verdict(ip("10.244.2.7")), Verdict::Tunnel(_)), "{change:?}");
    }
}
