//! Single addresses that a member announces, and that may be another machine's own.

use std::sync::Arc;

use super::worlds::*;
use crate::trust::Record;

/// As a pod of a pool, and as a prefix of its own inside the limits.
fn both(prefix: &str) -> [Record; 2] {
    [from_pool(record(2, &[prefix]), 24), within_limits(record(2, &[prefix]))]
}

fn within_limits(mut record: Record) -> Record {
    let mut certificate = (*record.certificate).clone();
    certificate.limits = vec![net("192.0.0.0/8")];
    record.certificate = Arc::new(certificate);
    record
}

#[test]
fn where_a_member_was_reached_is_its_own_whoever_announces_it() {
    for thief in both("192.0.2.3/32") {
        for strict in [false, true] {
            let mut world = World::with([of(thief.clone()), member(3, &[])]);
            world.config.strict = strict;
            assert_eq!(
                world.peer(3).unwrap().endpoint,
                Some("192.0.2.3:51820".parse().unwrap()),
                "it is tried, or it would never be reached"
            );
            world.members[1].path = Some(ip("192.0.2.3"));
            assert_eq!(world.blocked(2), [(Some(net("192.0.2.3/32")), "covers_endpoint")]);
            let plan = world.plan();
            assert!(kinds(&plan, "192.0.2.3/32").is_empty());
            let guarded = plan.desired.firewall.clone().unwrap().sets.guarded;
            assert!(guarded.iter().all(|prefix| !prefix.contains(&ip("192.0.2.3"))));
            assert_eq!(world.peer(3).unwrap().endpoint, Some("192.0.2.3:51820".parse().unwrap()));
        }
    }
}

#[test]
fn so_is_every_other_address_of_its_record_at_which_it_was_reached() {
    let mut world = World::with([member(2, &["192.0.2.3/32", "198.51.100.0/24"]), member(3, &[])]);
    world.members[1].path = Some(ip("2001:db8::3"));
    world.members[1].reached = [ip("192.0.2.3"), ip("198.51.100.9")].into();
    assert_eq!(world.blocked(2), [(Some(net("192.0.2.3/32")), "covers_endpoint")]);
    let plan = world.plan();
    assert!(
        plan.routed[&key(2)].contains(&net("198.51.100.0/24")),
        "a router may have its network"
    );

    // As a node address of another: not while only its owner was seen there.
    let mut world = World::with([of(with_nodes(record(2, &[]), &["192.0.2.3"])), member(3, &[])]);
    world.config.nodes = true;
    world.members[1].reached = [ip("192.0.2.3")].into();
    assert_eq!(world.blocked(2), [(Some(net("192.0.2.3/32")), "covers_endpoint")]);
    world.members[0].reached = [ip("192.0.2.3")].into();
    assert!(world.blocked(2).is_empty());
}

#[test]
fn a_record_alone_takes_nothing_off_others() {
    let world = World::with([member(2, &["192.0.2.3/32"]), member(3, &[])]);
    assert!(world.blocked(2).is_empty(), "else a member could name any pod as its endpoint");
}

#[test]
fn who_left_keeps_nobody_from_an_address() {
    let [thief, _] = both("192.0.2.3/32");
    let mut world = World::with([member(3, &[])]);
    world.barred.push(Arc::new(thief));
    assert_eq!(world.peer(3).unwrap().endpoint, Some("192.0.2.3:51820".parse().unwrap()));
    world.members[0].path = Some(ip("192.0.2.3"));
    assert!(kinds(&world.plan(), "192.0.2.3/32").is_empty());
}

#[test]
fn a_name_server_stays_where_it_is_unless_it_was_granted_by_name() {
    for server in ["192.0.2.53", "192.0.9.53"] {
        let prefix = format!("{server}/32");
        for thief in both(&prefix) {
            let mut world = World::with([of(thief.clone())]);
            assert!(world.blocked(2).is_empty());
            world.local.nameservers = [ip(server)].into();
            assert_eq!(world.blocked(2), [(Some(net(&prefix)), "covers_nameserver")]);
            assert!(kinds(&world.plan(), &prefix).is_empty());
            world.members.clear();
            world.barred.push(Arc::new(thief));
            assert!(kinds(&world.plan(), &prefix).is_empty(), "nor after a revocation");
        }
        let mut world = World::with([member(2, &[&prefix])]);
        world.local.nameservers = [ip(server)].into();
        assert!(world.blocked(2).is_empty());
    }
    // A site whose network one of them is in.
    let mut world = World::with([of(within_limits(record(2, &["192.0.9.0/24"])))]);
    world.local.nameservers = [ip("192.0.9.53")].into();
    assert!(world.blocked(2).is_empty());
}

#[test]
fn an_endpoint_is_never_an_address_of_the_mesh() {
    let mut liar = record(3, &[]);
    liar.endpoints = vec!["100.112.0.2:51800".parse().unwrap()];
    let world = World::with([member(2, &[]), of(liar)]);
    assert_eq!(world.peer(3).unwrap().endpoint, None);
}
