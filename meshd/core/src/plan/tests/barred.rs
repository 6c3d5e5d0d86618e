//! What becomes of those who are members no more.

use std::sync::Arc;

use super::{
    order::{converge, programmed},
    worlds::*,
};

fn barring(world: &mut World, number: u8, prefixes: &[&str]) {
    world.barred.push(Arc::new(record(number, prefixes)));
}

#[test]
fn what_was_theirs_is_refused_and_they_are_no_peer() {
    let mut world = World::with([member(2, &["10.244.2.0/24"])]);
    barring(&mut world, 3, &["10.244.3.0/24", "fd00:3::/64"]);
    let plan = world.plan();
    for prefix in ["10.244.3.0/24", "fd00:3::/64", "100.112.0.3/32"] {
        assert_eq!(kinds(&plan, prefix), ["unreachable"]);
    }
    assert!(world.peer(3).is_none());
    assert_eq!(kinds(&plan, "10.244.2.0/24"), ["device", "unreachable"]);
}

#[test]
fn what_a_member_holds_now_is_the_members() {
    let mut world = World::with([member(2, &["10.244.3.0/24", "10.250.0.0/16"])]);
    // The same prefix, and one within a wider one.
    barring(&mut world, 3, &["10.244.3.0/24", "10.250.7.0/24"]);
    let plan = world.plan();
    assert_eq!(kinds(&plan, "10.244.3.0/24"), ["device", "unreachable"]);
    assert!(kinds(&plan, "10.250.7.0/24").is_empty());
}

#[test]
fn nothing_of_theirs_cuts_this_host_off() {
    let mut world = World::with([]);
    // The underlay, a gateway, own pods, everything.
    barring(&mut world, 3, &["192.0.2.0/24", "10.244.1.0/25", "2001:db8::/64"]);
    let plan = world.plan();
    for prefix in ["192.0.2.0/24", "10.244.1.0/25", "2001:db8::/64"] {
        assert!(kinds(&plan, prefix).is_empty(), "{prefix}: {:?}", kinds(&plan, prefix));
    }
}

#[test]
fn their_peers_go_even_while_nothing_else_does() {
    let full = World::with([member(2, &["10.244.2.0/24"]), member(3, &["10.244.3.0/24"])]);
    let mut kernel = programmed(&full);
    // Member 2 is not known again yet, 3 was revoked.
    let mut world = World::with([]);
    world.complete = false;
    barring(&mut world, 3, &["10.244.3.0/24"]);
    converge(&mut kernel, &world.plan().desired);
    let peers: Vec<_> = kernel.state().peers.keys().copied().collect();
    assert_eq!(peers, [lane(2).public_key]);
}
