//! Node addresses: accepted by everybody, routed by pairs that agree, and never to the harm of a third.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{super::*, order::converge, worlds::*};

/// Node 1 with "pods+nodes" and 192.0.2.1 and 2001:db8::1, whose kernel has the marks; node 2 publishes its own and
/// accepts ours.
fn pair() -> World {
    let two = with_nodes(record(2, &["10.244.2.0/24"]), &["192.0.2.2", "2001:db8::2"]);
    let mut world = World::with([agreeing(of(two))]);
    world.own = with_nodes(world.own, &["192.0.2.1", "2001:db8::1"]);
    world.config.nodes = true;
    world.local.node_addresses = vec![ip("192.0.2.1"), ip("2001:db8::1")];
    world.local.underlay = ["eth0".to_owned()].into();
    world.steering = SteeringSeen { v4: true, v6: true, routes: false };
    world
}

fn agreeing(mut member: Member) -> Member {
    member.accepts = [ip("192.0.2.1"), ip("2001:db8::1")].into();
    member
}

fn routed(world: &World) -> BTreeSet<IpAddr> {
    let plan = world.plan();
    let all = plan.nodes.routed.values().flatten().map(|prefix| prefix.addr()).collect();
    let firewall = plan.desired.firewall.clone().unwrap();
    assert_eq!(firewall.sets.routed_nodes, all, "the sets follow the routes");
    all
}

fn accepted(world: &World) -> BTreeSet<IpAddr> {
    world.plan().nodes.accepted.values().flatten().map(|prefix| prefix.addr()).collect()
}

fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|text| ip(text)).collect()
}

#[test]
fn a_pair_that_agrees_routes_with_its_node_addresses_as_source() {
    let world = pair();
    let plan = world.plan();
    for (to, source) in [("192.0.2.2/32", "192.0.2.1"), ("2001:db8::2/128", "2001:db8::1")] {
        let route = plan.desired.routes.iter().find(|route| route.destination == net(to)).unwrap();
        let kind =
            RouteKind::Device { device: "mesh0".to_owned(), source: Some(ip(source)), mtu: None };
        assert_eq!(route.kind, kind);
        assert_eq!(kinds(&plan, to), ["device", "unreachable"]);
        assert!(world.peer(2).unwrap().allowed_ips.contains(&net(to)));
    }
    let firewall = plan.desired.firewall.clone().unwrap();
    let steering = Steering { mark: 0x10, gossip: 51800, wireguard: 51820 };
    assert_eq!(firewall.rules.steering, Some(steering));
    assert_eq!(firewall.rules.nat.own_nodes, ips(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(plan.desired.arp, Some(ArpMark { mark: 0x10 }));
    let sysctl = "net/ipv4/conf/eth0/src_valid_mark".to_owned();
    assert_eq!(plan.desired.underlay_sysctls, [(sysctl, "1".to_owned())].into());
    assert!(firewall.sets.guarded_nodes.is_empty(), "not strict");
    assert!(!plan.routed[&key(2)].contains(&net("192.0.2.2/32")), "endpoints may be there");
    assert_eq!(world.peer(2).unwrap().endpoint, Some("192.0.2.2:51820".parse().unwrap()));
}

#[test]
fn everybody_accepts_and_only_who_is_configured_so_does_anything_else() {
    let mut world = pair();
    world.config.nodes = false;
    assert_eq!(accepted(&world), ips(&["192.0.2.2", "2001:db8::2"]));
    assert!(routed(&world).is_empty());
    let desired = world.plan().desired;
    assert_eq!((desired.arp, desired.underlay_sysctls.len()), (None, 0));
    assert_eq!(desired.firewall.clone().unwrap().rules.steering, None);
    // Marks stay until the routes are gone.
    world.steering.routes = true;
    let desired = world.plan().desired;
    assert!(desired.arp.is_some() && desired.firewall.clone().unwrap().rules.steering.is_some());
}

#[test]
fn nothing_is_routed_before_the_other_accepts_and_this_host_has_its_marks() {
    let v6 = ips(&["2001:db8::2"]);
    let mut world = pair();
    world.members[0].accepts = v6_only();
    assert_eq!(routed(&world), v6);
    world.members[0].accepts.clear();
    assert!(routed(&world).is_empty());
    let mut world = pair();
    world.steering.v4 = false;
    assert_eq!(routed(&world), v6);
    world.steering.v6 = false;
    assert!(routed(&world).is_empty());
    // It must take every address that this host may send from.
    let mut world = pair();
    world.own = with_nodes(world.own, &["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    world.local.addresses.insert(net("198.51.100.1/24"));
    world.local.node_addresses.push(ip("198.51.100.1"));
    assert_eq!(routed(&world), v6);
    world.members[0].accepts.insert(ip("198.51.100.1"));
    assert_eq!(routed(&world).len(), 2);
}

fn v6_only() -> BTreeSet<IpAddr> {
    ips(&["2001:db8::1"])
}

#[test]
fn the_source_is_the_address_on_the_same_network() {
    let mut world = pair();
    world.own = with_nodes(world.own, &["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    world.local.addresses.insert(net("198.51.100.1/24"));
    world.local.node_addresses.insert(0, ip("198.51.100.1"));
    world.members[0].accepts.insert(ip("198.51.100.1"));
    let far = with_nodes(record(3, &[]), &["203.0.113.3"]);
    world.members.push(agreeing(of(far)));
    world.members[1].accepts.insert(ip("198.51.100.1"));
    let plan = world.plan();
    let source = |to: &str| {
        plan.desired.routes.iter().find_map(|route| match &route.kind {
            RouteKind::Device { source, .. } if route.destination == net(to) => *source,
            _ => None,
        })
    };
    assert_eq!(source("192.0.2.2/32"), Some(ip("192.0.2.1")));
    assert_eq!(source("203.0.113.3/32"), Some(ip("198.51.100.1")), "the best otherwise");
}

#[test]
fn what_a_host_needs_for_itself_or_for_another_member_is_never_carried() {
    let local = ["192.0.2.254", "192.0.2.1", "10.244.1.7", "127.0.0.1", "100.112.0.3"];
    for (address, reason) in local.iter().zip([
        "covers_gateway",
        "covers_underlay",
        "prefix_is_local",
        "prefix_reserved",
        "covers_mesh_addresses",
    ]) {
        let mut world = pair();
        world.own = with_nodes(world.own, &["2001:db8::1"]);
        let thief = agreeing(of(with_nodes(record(2, &[]), &[address])));
        world.members = vec![thief, member(3, &[])];
        assert!(accepted(&world).is_empty() && routed(&world).is_empty(), "{address}");
        let prefix = crate::address::host_prefix(ip(address));
        // The mesh's own addresses are their nodes' by a better right already.
        if reason != "covers_mesh_addresses" {
            assert_eq!(world.blocked(2), [(Some(prefix), reason)], "{address}");
        }
    }
    for place in ["path", "tunnel"] {
        let mut world = pair();
        let mut other = member(3, &[]);
        match place {
            "path" => other.path = Some(ip("192.0.2.2")),
            _ => {
                let endpoint = Some("192.0.2.2:51820".parse().unwrap());
                let up = tunnel(TunnelState::Up, Some(1), 0).unwrap();
                other.tunnel = Some(TunnelHealth { endpoint, ..up });
            }
        }
        world.members.push(other);
        assert_eq!(routed(&world), ips(&["2001:db8::2"]), "another was reached there");
        assert_eq!(world.blocked(2), [(Some(net("192.0.2.2/32")), "covers_endpoint")]);
    }
    let mut world = pair();
    world.members[0].path = Some(ip("192.0.2.2"));
    assert_eq!(routed(&world).len(), 2, "its own path may be there");
}

#[test]
fn of_two_that_claim_one_address_one_has_it_and_an_own_one_that_is_lost_is_no_source() {
    let mut world = pair();
    let rival = agreeing(of(with_nodes(record(3, &[]), &["192.0.2.2"])));
    world.members.push(rival);
    let plan = world.plan();
    let holders: Vec<_> =
        plan.nodes.routed.iter().filter(|(_, nets)| nets.contains(&net("192.0.2.2/32"))).collect();
    assert_eq!(holders.len(), 1);
    let loser = if *holders[0].0 == key(2) { 3 } else { 2 };
    assert_eq!(world.blocked(loser), [(Some(net("192.0.2.2/32")), "prefix_contested")]);
    let mut lost = 0;
    for number in 3..20 {
        let mut world = pair();
        world.members.push(agreeing(of(with_nodes(record(number, &[]), &["192.0.2.1"]))));
        let plan = world.plan();
        if plan.blocked.contains_key(&key(1)) {
            lost += 1;
            assert_eq!(plan.nodes.own, [ip("2001:db8::1")]);
            assert_eq!(routed(&world), ips(&["2001:db8::2"]));
        }
    }
    assert!(lost > 0);
}

#[test]
fn strict_guards_them_from_the_first_word_on_also_of_who_was_revoked() {
    let mut world = pair();
    world.config.strict = true;
    world.members[0].accepts.clear();
    let desired = world.plan().desired;
    assert_eq!(kinds(&world.plan(), "192.0.2.2/32"), ["unreachable"]);
    let sets = desired.firewall.clone().unwrap().sets;
    assert_eq!(sets.guarded_nodes, ips(&["192.0.2.2", "2001:db8::2"]));
    assert!(sets.guarded.iter().all(|prefix| !prefix.contains(&ip("192.0.2.2"))));
    let gone = world.members.remove(0).record;
    world.barred.push(Arc::new((*gone).clone()));
    let sets = world.plan().desired.firewall.clone().unwrap().sets;
    assert_eq!(sets.guarded_nodes, ips(&["192.0.2.2", "2001:db8::2"]));
    world.config.nodes = false;
    assert!(world.plan().desired.firewall.clone().unwrap().sets.guarded_nodes.is_empty());
}

#[test]
fn strict_guards_them_also_where_another_ends_there_or_the_key_is_anothers() {
    // Another member's tunnel ends at 192.0.2.2: by an authenticated packet that it sent with that source, say.
    let mut world = pair();
    world.config.strict = true;
    let mut other = of(record(3, &[]));
    other.path = Some(ip("192.0.2.2"));
    world.members.push(other.clone());
    let plan = world.plan();
    assert!(!plan.nodes.accepted.values().flatten().any(|net| net.addr() == ip("192.0.2.2")));
    let sets = plan.desired.firewall.clone().unwrap().sets;
    assert_eq!(sets.guarded_nodes, ips(&["192.0.2.2", "2001:db8::2"]));
    // It is the member's that was itself reached there.
    world.members[0].path = Some(ip("192.0.2.2"));
    let plan = world.plan();
    assert!(plan.nodes.accepted.values().flatten().any(|net| net.addr() == ip("192.0.2.2")));

    let mut world = pair();
    world.config.strict = true;
    let mut copied = (*world.members[0].record).clone();
    copied.lanes[0].public_key = lane(1).public_key;
    world.members[0].record = Arc::new(copied);
    let plan = world.plan();
    assert!(plan.nodes.accepted.is_empty());
    let sets = plan.desired.firewall.clone().unwrap().sets;
    assert_eq!(sets.guarded_nodes, ips(&["192.0.2.2", "2001:db8::2"]));
}

#[test]
fn who_has_no_wireguard_is_reached_as_before() {
    let mut world = pair();
    let mut bare = with_nodes(record(2, &[]), &["192.0.2.2"]);
    bare.lanes.clear();
    world.members = vec![agreeing(of(bare))];
    world.config.strict = true;
    let plan = world.plan();
    assert!(kinds(&plan, "192.0.2.2/32").is_empty());
    assert!(plan.desired.firewall.clone().unwrap().sets.guarded_nodes.is_empty());
}

#[test]
fn a_new_route_makes_no_hole_before_it_stands_and_none_when_it_goes() {
    let mut before = pair();
    before.members[0].accepts.clear();
    let mut kernel = host();
    converge(&mut kernel, &before.plan().desired);
    let after = pair();
    let mut seen = BTreeSet::new();
    for desired in [after.plan().desired, before.plan().desired] {
        for change in diff(&desired, &kernel.state()) {
            kernel.apply(&change).unwrap();
            let verdict = kernel.verdict(ip("192.0.2.2"));
            let fine = matches!(verdict, Verdict::Clear | Verdict::Tunnel(_));
            assert!(fine, "{verdict:?} after {change:?}");
            seen.insert(verdict);
        }
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_route_goes_also_while_not_everybody_is_known_again() {
    let mut kernel = host();
    let mut world = pair();
    converge(&mut kernel, &world.plan().desired);
    world.complete = false;
    converge(&mut kernel, &world.plan().desired);
    assert!(matches!(kernel.verdict(ip("192.0.2.2")), Verdict::Tunnel(_)));
    world.config.nodes = false;
    world.steering.routes = true;
    converge(&mut kernel, &world.plan().desired);
    assert_eq!(kernel.verdict(ip("192.0.2.2")), Verdict::Clear);
    assert!(matches!(kernel.verdict(ip("10.244.2.7")), Verdict::Tunnel(_)));
}

#[test]
fn marks_stand_before_the_first_route_and_go_after_the_last() {
    let mut kernel = host();
    let position = |changes: &[Change], of: fn(&Change) -> bool| changes.iter().position(of);
    let is_route = |change: &Change| match change {
        Change::PutRoute(route) | Change::RemoveRoute(route) => {
            route.destination == "192.0.2.2/32".parse().unwrap()
        }
        _ => false,
    };
    let desired = pair().plan().desired;
    let on = diff(&desired, &kernel.state());
    for change in &on {
        kernel.apply(change).unwrap();
    }
    let route = position(&on, is_route).unwrap();
    for mark in [
        position(&on, |c| matches!(c, Change::PutArp(_))),
        position(&on, |c| matches!(c, Change::SetUnderlaySysctl { .. })),
        position(&on, |c| matches!(c, Change::PutFirewall(_))),
    ] {
        assert!(mark.unwrap() < route);
    }
    let mut off = pair();
    off.config.nodes = false;
    off.steering.routes = true;
    let off = diff(&off.plan().desired, &kernel.state());
    assert!(position(&off, is_route).is_some());
    assert!(!off.iter().any(|c| matches!(c, Change::RemoveArp | Change::RestoreSysctl { .. })));
}
