//! Members behind gateways: who is a peer, and who holds what.

use super::{super::*, worlds::*};
use crate::gateway::CAPABILITY;

fn zoned(number: u8, zone: &str, via: u8, prefixes: &[&str]) -> crate::trust::Record {
    let mut record = record(number, prefixes);
    record.zone = zone.parse().unwrap();
    record.via = (via != 0).then(|| key(via));
    record
}

fn gateway(number: u8, zone: &str, prefixes: &[&str]) -> Member {
    let mut record = zoned(number, zone, 0, prefixes);
    record.capabilities = vec![CAPABILITY.to_owned()];
    of(record)
}

/// Node 3 behind 2, both of zone "z"; 4 elsewhere.
fn world() -> World {
    World::with([
        gateway(2, "z", &["10.244.2.0/24"]),
        of(zoned(3, "z", 2, &["10.244.3.0/24", "fd00:3::/64"])),
        member(4, &["10.244.4.0/24"]),
    ])
}

#[test]
fn what_is_for_a_hidden_host_is_the_gateways_to_carry() {
    let world = world();
    let plan = world.plan();
    assert_eq!(plan.carried, [(key(3), key(2))].into());
    assert_eq!(world.peer(3), None, "it needs no peer of its own");
    let held = world.peer(2).unwrap().allowed_ips;
    for prefix in ["10.244.2.0/24", "10.244.3.0/24", "fd00:3::/64", "100.112.0.3/32"] {
        assert!(held.contains(&net(prefix)), "{prefix} is not in {held:?}");
    }
    assert!(!held.contains(&net("10.244.4.0/24")));
    assert_eq!(kinds(&plan, "10.244.3.0/24"), ["device", "unreachable"]);
    assert!(plan.blocked.is_empty(), "{:?}", plan.blocked);
}

#[test]
fn a_hidden_host_gives_all_but_its_zone_to_its_gateway() {
    let mut world = world();
    world.own.zone = "z".parse().unwrap();
    world.own.via = Some(key(2));
    let plan = world.plan();
    assert_eq!(plan.carried, [(key(4), key(2))].into());
    assert_eq!(world.peer(4), None);
    assert!(world.peer(2).unwrap().allowed_ips.contains(&net("10.244.4.0/24")));
    assert!(
        world.peer(3).unwrap().allowed_ips.contains(&net("10.244.3.0/24")),
        "its zone is direct"
    );
}

#[test]
fn no_allowed_ip_is_more_than_its_owners_certificate_grants() {
    let mut world = world();
    let mut liar = zoned(3, "z", 2, &["10.244.3.0/24"]);
    // Whatever it claims, the contest is decided by the certificates, not by who would carry it.
    liar.prefixes.push(net("10.244.4.0/24"));
    world.members[1] = of(liar);
    assert!(!world.peer(2).unwrap().allowed_ips.contains(&net("10.244.4.0/24")));
    assert!(world.peer(4).unwrap().allowed_ips.contains(&net("10.244.4.0/24")));
}

#[test]
fn an_odd_gateway_is_shown_and_not_followed() {
    for (via, member) in [
        (2, of(zoned(2, "z", 0, &[]))),
        (2, gateway(2, "y", &[])),
        (3, gateway(2, "z", &[])),
        (99, gateway(2, "z", &[])),
    ] {
        let world = World::with([member, of(zoned(3, "z", via, &["10.244.3.0/24"]))]);
        let plan = world.plan();
        assert_eq!(plan.carried, [].into());
        assert!(world.peer(3).unwrap().allowed_ips.contains(&net("10.244.3.0/24")));
        assert_eq!(world.blocked(3), [(None, "gateway_odd")]);
    }
}

#[test]
fn without_a_peer_for_the_gateway_nothing_leaves_in_the_clear() {
    let mut world = world();
    let lane = world.lane.public_key;
    let mut stolen = (*world.members[0].record).clone();
    stolen.lanes[0].public_key = lane;
    world.members[0] = of(stolen);
    let plan = world.plan();
    assert_eq!(kinds(&plan, "10.244.3.0/24"), ["unreachable"]);
    assert_eq!(
        plan.desired
            .peers
            .values()
            .filter(|p| p.allowed_ips.contains(&net("10.244.3.0/24")))
            .count(),
        0
    );
}

#[test]
fn node_addresses_are_not_carried_through_a_gateway() {
    let mut world = world();
    world.config.nodes = true;
    world.members[1] = of(with_nodes(zoned(3, "z", 2, &["10.244.3.0/24"]), &["203.0.113.3"]));
    assert_eq!(world.blocked(3), [(Some(net("203.0.113.3/32")), "behind_gateway")]);
    assert!(!world.peer(2).unwrap().allowed_ips.contains(&net("203.0.113.3/32")));
}

#[test]
fn another_gateway_takes_over_without_a_moment_without_a_holder() {
    let mut world = world();
    world.members.push(gateway(5, "z", &[]));
    let mut kernel = host();
    for change in diff(&world.plan().desired, &kernel.observe().unwrap()) {
        kernel.apply(&change).unwrap();
    }
    let mut moved = zoned(3, "z", 5, &["10.244.3.0/24", "fd00:3::/64"]);
    moved.version = 2;
    world.members[1] = of(moved);
    let changes = diff(&world.plan().desired, &kernel.observe().unwrap());
    assert!(!changes.is_empty());
    for change in changes {
        kernel.apply(&change).unwrap();
        let holders = kernel.observe().unwrap().peers;
        let count =
            holders.values().filter(|p| p.allowed_ips.contains(&net("10.244.3.0/24"))).count();
        assert_eq!(count, 1, "after {change}");
    }
    assert!(diff(&world.plan().desired, &kernel.observe().unwrap()).is_empty());
}
