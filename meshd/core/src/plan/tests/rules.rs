//! Each rule of the planner, one by one.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use super::{super::*, worlds::*};
use crate::path_mtu::{PathMtu, Small};

fn socket(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

fn down(mut member: Member, seconds: u64) -> Member {
    member.liveness = Liveness::Down;
    member.down_for = Some(Duration::from_secs(seconds));
    member
}

fn with_tunnel(mut member: Member, tunnel: Option<TunnelHealth>) -> Member {
    member.tunnel = tunnel;
    member
}

fn with_path(mut member: Member, path: &str) -> Member {
    member.path = Some(ip(path));
    member
}

#[test]
fn a_member_gets_a_peer_routes_with_a_source_and_an_unreachable_behind_each() {
    let world = World::with([member(2, &["10.244.2.0/24", "fd00:2::/64"])]);
    let plan = world.plan();
    let peer = world.peer(2).unwrap();
    let addresses: Vec<String> =
        world.members[0].record.mesh_addresses.iter().map(ToString::to_string).collect();
    let all = ["10.244.2.0/24", "fd00:2::/64", &addresses[0], &addresses[1]];
    assert_eq!(peer.allowed_ips, nets(&all));
    assert_eq!(peer.endpoint, socket("192.0.2.2:51820"));
    for destination in all {
        let routes: Vec<_> =
            plan.desired.routes.iter().filter(|r| r.destination == net(destination)).collect();
        let is_v6 = destination.contains(':');
        let own = world.own.mesh_addresses.iter().map(|a| a.addr()).find(|a| a.is_ipv6() == is_v6);
        let device = RouteKind::Device { device: "mesh0".to_owned(), source: own, mtu: None };
        assert_eq!((&routes[0].kind, routes[0].metric), (&device, ROUTE_METRIC));
        assert_eq!(
            (&routes[1].kind, routes[1].metric),
            (&RouteKind::Unreachable, UNREACHABLE_METRIC)
        );
    }
    assert_eq!(plan.desired.rules.len(), 2);
    assert!(plan.blocked.is_empty());
    assert_eq!(plan.routed[&key(2)], peer.allowed_ips);
}

#[test]
fn own_prefixes_are_thrown_and_keep_their_source() {
    let plan = World::with([]).plan();
    assert_eq!(kinds(&plan, "10.244.1.0/24"), ["throw"]);
    let nat = plan.desired.firewall.clone().unwrap().rules.nat;
    assert_eq!(nat.own_v4, ["100.112.0.1/32", "10.244.1.0/24"].map(|n| n.parse().unwrap()).into());
    assert_eq!(nat.own_v6.len(), 2);
}

#[test]
fn foreign_sources_are_only_looked_for_while_there_was_none_and_nobody_tracks_connections() {
    let watched = |sources: SourceFacts| {
        let mut world = World::with([]);
        world.local.sources = sources;
        world.plan().desired.firewall.clone().unwrap().rules.nat.watch
    };
    let told = SourceFacts { told: true, ..SourceFacts::default() };
    assert!(watched(told));
    assert!(!watched(SourceFacts::default()), "nobody would tell");
    assert!(!watched(SourceFacts { seen: true, ..told }));
    assert!(!watched(told.and(true)), "what is tracked already would stay without NAT");
    assert!(!watched(told.and(true).and(false)), "once tracked, tracked again");
    assert!(watched(told.and(false)));
    let mut carried = World::with([]);
    carried.local.sources = told;
    carried.config.nodes = true;
    assert!(!carried.plan().desired.firewall.clone().unwrap().rules.nat.watch, "it answers pods");
}

#[test]
fn the_device_has_addresses_sysctls_and_what_the_configuration_says() {
    let mut world = World::with([]);
    let device = world.plan().desired.device.clone().unwrap();
    assert_eq!(device.addresses.len(), 2);
    assert_eq!(device.sysctls["net/ipv4/conf/mesh0/rp_filter"], "2");
    assert_eq!(device.sysctls["net/ipv4/conf/mesh0/forwarding"], "1");
    assert_eq!((device.listen_port, device.fwmark, device.mtu), (51820, 0x10, 1440));
    world.local.ipv6 = false;
    let desired = World::plan(&world).desired;
    let device = desired.device.clone().unwrap();
    assert_eq!(device.addresses, nets(&["100.112.0.1/32"]));
    assert!(device.sysctls.keys().all(|path| path.starts_with("net/ipv4/")));
    assert!(desired.routes.iter().all(|route| route.destination.addr().is_ipv4()));
    assert!(desired.rules.iter().all(|rule| rule.family == Family::V4));
}

#[test]
fn the_mtu_is_the_configured_one_or_the_largest_that_a_peer_can_be_sent() {
    let mtu = |world: &World| world.plan().desired.device.clone().unwrap().mtu;
    let mut world = World::with([member(2, &[])]);
    assert_eq!(mtu(&world), 1_440);
    let mut v6 = record(3, &[]);
    v6.endpoints = vec!["[2001:db8::3]:51800".parse().unwrap()];
    world.members.push(of(v6));
    assert_eq!(mtu(&world), 1_440, "the one with IPv4 can be sent as much");
    world.members.remove(0);
    assert_eq!(mtu(&world), 1_420);
    world.local.addresses = nets(&["192.0.2.1/24"]);
    assert_eq!(mtu(&world), 1_440, "this host has no IPv6 underlay");
    world.local.underlay_mtu = Some(9_001);
    assert_eq!(mtu(&world), 8_941);
    world.local.underlay_mtu = Some(1_300);
    assert_eq!(mtu(&world), 1_280, "IPv6 needs it");
    world.config.mtu = Some(1_400);
    assert_eq!(mtu(&world), 1_400);
}

#[test]
fn a_route_has_what_its_path_was_proved_to_carry() {
    let mut world = World::with([member(2, &["10.244.2.0/24", "fd00:2::/64"])]);
    let mtus = |world: &World| {
        let plan = world.plan();
        let routes = plan.desired.routes.iter().filter_map(|route| match &route.kind {
            RouteKind::Device { mtu, .. } => Some((route.destination.addr().is_ipv6(), *mtu)),
            _ => None,
        });
        routes.collect::<BTreeSet<_>>()
    };
    for (mtu, v4, v6) in [
        (None, Some(1_280), Some(1_280)),
        (Some(1_340), Some(1_340), Some(1_340)),
        (Some(1_240), Some(1_240), Some(1_280)),
        (Some(1_440), None, None),
        (Some(9_000), None, None),
    ] {
        world.members[0].path_mtu = mtu.map(|mtu| PathMtu { mtu, small: None });
        assert_eq!(mtus(&world), [(false, v4), (true, v6)].into());
    }
    world.members[0].path_mtu = None;
    world.config.mtu = Some(1_400);
    assert_eq!(mtus(&world), [(false, None), (true, None)].into(), "fixed");
}

#[test]
fn a_path_too_small_for_ipv6_takes_fragments_over_ipv4_and_refuses_it_over_ipv6() {
    let mut world = World::with([member(2, &["10.244.2.0/24", "fd00:2::/64"])]);
    world.members[0].tunnel = tunnel(TunnelState::Up, Some(1), 0);
    let small = |small| Some(PathMtu { mtu: 1_232, small: Some(small) });
    world.members[0].path_mtu = small(Small::Fragmented);
    let plan = world.plan();
    let firewall = plan.desired.firewall.clone().unwrap();
    assert_eq!(firewall.sets.fragmented, [[192, 0, 2, 99].into()].into());
    assert!(firewall.rules.dont_fragment.is_some() && plan.blocked.is_empty());
    world.members[0].path_mtu = small(Small::NoIpv6);
    let plan = world.plan();
    assert_eq!(world.blocked(2), [(Some(net("fd00:2::/64")), "path_too_small")]);
    assert_eq!(kinds(&plan, "fd00:2::/64"), ["unreachable"]);
    assert_eq!(kinds(&plan, "10.244.2.0/24"), ["device", "unreachable"]);
    let ula = world.members[0].record.mesh_addresses[0].to_string();
    assert_eq!(kinds(&plan, &ula), ["device", "unreachable"], "by it the path is measured");
    assert!(plan.desired.firewall.clone().unwrap().sets.fragmented.is_empty());
    world.config.mtu = Some(1_400);
    let firewall = world.plan().desired.firewall.clone().unwrap();
    assert_eq!(firewall.rules.dont_fragment, None, "a fixed MTU may be too large");
}

#[test]
fn a_peer_goes_only_when_its_member_left_or_has_another_key() {
    let mut world = World::with([down(member(2, &["10.244.2.0/24"]), 1_000_000)]);
    assert!(world.peer(2).is_some());
    assert_eq!(kinds(&world.plan(), "10.244.2.0/24"), ["device", "unreachable"]);
    world.members[0].liveness = Liveness::Left;
    assert!(world.peer(2).is_none());
    assert!(kinds(&world.plan(), "10.244.2.0/24").is_empty(), "nothing at all");
    world.members[0].liveness = Liveness::Alive;
    Arc::make_mut(&mut world.members[0].record).left = true;
    assert!(world.peer(2).is_none());
    let mut rekeyed = record(2, &[]);
    rekeyed.lanes[0].public_key = lane(9).public_key;
    let world = World::with([of(rekeyed)]);
    assert!(world.peer(2).is_none() && world.peer(9).is_some());
}

#[test]
fn a_member_without_wireguard_is_reached_in_the_clear_even_within_anothers_prefix() {
    let mut bare = record(2, &["10.244.2.0/24"]);
    bare.lanes.clear();
    let mut world = World::with([of(bare)]);
    assert!(kinds(&world.plan(), "10.244.2.0/24").is_empty());
    assert_eq!(world.blocked(2), [(None, "no_wireguard")]);
    world.members.push(of(from_pool(record(3, &["10.244.0.0/16"]), 8)));
    assert_eq!(kinds(&world.plan(), "10.244.2.0/24"), ["throw"]);
}

#[test]
fn a_second_holder_of_a_wireguard_key_is_unreachable() {
    let mut copy = record(3, &["10.244.3.0/24"]);
    copy.lanes[0].public_key = lane(2).public_key;
    let mut own_key = record(4, &["10.244.4.0/24"]);
    own_key.lanes[0].public_key = lane(1).public_key;
    let world = World::with([of(copy), member(2, &["10.244.2.0/24"]), of(own_key)]);
    let plan = world.plan();
    assert_eq!(plan.desired.peers.len(), 1);
    assert_eq!(kinds(&plan, "10.244.2.0/24"), ["device", "unreachable"]);
    for (number, prefix) in [(3, "10.244.3.0/24"), (4, "10.244.4.0/24")] {
        assert_eq!(kinds(&plan, prefix), ["unreachable"]);
        assert_eq!(world.blocked(number), [(None, "wg_key_in_use")]);
    }
}

#[test]
fn the_loser_of_a_prefix_is_shown_and_not_programmed() {
    let exact = member(2, &["10.244.2.0/24"]);
    let pool = of(from_pool(record(3, &["10.244.2.0/24"]), 16));
    let nested = of(from_pool(record(4, &["10.244.2.128/25"]), 16));
    let world = World::with([pool, nested, exact]);
    assert!(world.peer(2).unwrap().allowed_ips.contains(&net("10.244.2.0/24")));
    assert!(!world.peer(3).unwrap().allowed_ips.contains(&net("10.244.2.0/24")));
    assert_eq!(world.blocked(3), [(Some(net("10.244.2.0/24")), "prefix_contested")]);
    assert_eq!(world.blocked(4), [(Some(net("10.244.2.128/25")), "prefix_nested")]);
    assert!(kinds(&world.plan(), "10.244.2.128/25").is_empty(), "no hole in what is 2's");
}

#[test]
fn an_own_prefix_that_another_won_stays_local_is_shown_and_is_no_source() {
    let mut world = World::with([member(2, &["10.244.1.0/24"])]);
    world.own = from_pool(world.own, 16);
    let plan = world.plan();
    assert_eq!(kinds(&plan, "10.244.1.0/24"), ["throw"]);
    assert!(world.blocked(1).contains(&(Some(net("10.244.1.0/24")), "prefix_contested")));
    assert_eq!(world.blocked(2), [(Some(net("10.244.1.0/24")), "prefix_is_local")]);
    assert!(
        !plan
            .desired
            .firewall
            .as_ref()
            .unwrap()
            .rules
            .nat
            .own_v4
            .contains(&"10.244.1.0/24".parse().unwrap())
    );
}

#[test]
fn the_dead_lose_a_contested_prefix_only_when_their_tunnel_is_dead_too() {
    let contested = |tunnel| {
        let claims = |number| from_pool(record(number, &["10.244.2.0/24"]), 16);
        // Of the two, whoever the lot prefers is made dead.
        let alive = World::with([of(claims(2)), of(claims(3))]);
        let preferred = if alive.blocked(2).is_empty() { 2 } else { 3 };
        let dead = with_tunnel(down(of(claims(preferred)), 31), tunnel);
        let world = World::with([dead, of(claims(5 - preferred))]);
        world.blocked(preferred).is_empty()
    };
    assert!(contested(tunnel(TunnelState::Up, Some(1_000), 0)), "idle, not probed");
    assert!(contested(tunnel(TunnelState::Stale, Some(100), 0)), "handshake too young");
    assert!(!contested(tunnel(TunnelState::Stale, Some(200), 0)));
    assert!(!contested(tunnel(TunnelState::Never, None, 0)));
}

#[test]
fn a_prefix_that_would_cut_this_host_off_has_no_route() {
    for (prefix, code) in [
        ("192.0.0.0/16", "covers_gateway"),
        ("192.0.2.1/32", "covers_underlay"),
        ("192.0.2.254/32", "covers_gateway"),
        ("192.0.2.0/25", "covers_underlay"),
        ("192.0.2.128/26", "connected_network"),
        ("169.254.0.0/16", "prefix_reserved"),
        ("127.0.0.0/8", "prefix_reserved"),
        ("0.0.0.0/0", "prefix_reserved"),
        ("2001:db8::/32", "covers_underlay"),
        ("fe80::/64", "prefix_reserved"),
        ("10.244.1.128/25", "prefix_is_local"),
        ("10.244.1.0/24", "prefix_is_local"),
        ("203.0.113.0/24", "covers_endpoint"),
        ("100.112.0.1/32", "prefix_is_local"),
    ] {
        let reached = with_path(member(3, &[]), "203.0.113.9");
        let world = World::with([of(record(2, &[prefix])), reached]);
        let codes = world.blocked(2);
        let is_lost = codes.iter().any(|(_, code)| *code == "prefix_contested");
        assert!(is_lost || codes == [(Some(net(prefix)), code)], "{prefix}: {codes:?}");
        let kinds = kinds(&world.plan(), prefix);
        assert!(kinds.is_empty() || kinds == ["throw"], "{prefix}: {kinds:?}");
        assert!(!world.peer(2).unwrap().allowed_ips.contains(&net(prefix)));
    }
}

#[test]
fn the_ten_of_a_private_underlay_are_not_routed_but_a_neighbours_pods_are() {
    let mut world = World::with([member(2, &["10.0.0.0/8"]), member(3, &["10.244.2.0/24"])]);
    world.own.prefixes = vec![net("10.244.1.0/24")];
    world.local.addresses = nets(&["10.0.0.5/24", "10.244.1.1/24"]);
    world.local.gateways.clear();
    assert_eq!(world.blocked(2), [(Some(net("10.0.0.0/8")), "covers_underlay")]);
    assert!(world.blocked(3).is_empty());
    let message = &world.plan().blocked[&key(2)][0].message;
    assert!(message.contains("10.0.0.5") && message.contains("narrow"), "{message}");
}

#[test]
fn own_pods_within_a_wider_remote_prefix_stay_local() {
    let world = World::with([member(2, &["10.244.0.0/16"])]);
    let plan = world.plan();
    assert_eq!(kinds(&plan, "10.244.0.0/16"), ["device", "unreachable"]);
    assert_eq!(kinds(&plan, "10.244.1.0/24"), ["throw"]);
}

#[test]
fn a_single_workload_within_the_hosts_subnet_is_routed() {
    let world = World::with([member(2, &["192.0.2.77/32"])]);
    assert!(world.blocked(2).is_empty());
}

#[test]
fn an_endpoint_that_is_only_claimed_takes_no_prefix_off_and_is_not_used() {
    let mut liar = record(3, &[]);
    liar.endpoints = vec!["10.244.2.9:51800".parse().unwrap()];
    let world = World::with([member(2, &["10.244.2.0/24"]), of(liar)]);
    assert!(world.blocked(2).is_empty());
    assert_eq!(world.peer(3).unwrap().endpoint, None);
}

#[test]
fn a_router_for_its_own_network_is_fine_while_it_is_reached_from_outside() {
    let mut router = record(2, &["198.51.100.0/24"]);
    router.endpoints =
        vec!["198.51.100.1:51800".parse().unwrap(), "203.0.113.7:51800".parse().unwrap()];
    let mut world = World::with([of(router.clone())]);
    assert!(world.blocked(2).is_empty());
    assert_eq!(world.peer(2).unwrap().endpoint, socket("203.0.113.7:51820"));
    router.endpoints.pop();
    world.members = vec![of(router)];
    assert_eq!(world.blocked(2), [(Some(net("198.51.100.0/24")), "covers_endpoint")]);
    assert_eq!(world.peer(2).unwrap().endpoint, socket("198.51.100.1:51820"));
}

#[test]
fn a_prefix_over_the_meshs_own_addresses_is_unreachable_and_they_keep_their_routes() {
    for prefix in ["100.112.0.0/16", "fd00::/8"] {
        let world = World::with([of(record(2, &[prefix])), member(3, &[])]);
        assert_eq!(world.blocked(2), [(Some(net(prefix)), "covers_mesh_addresses")]);
        assert_eq!(kinds(&world.plan(), prefix), ["unreachable"]);
        assert_eq!(kinds(&world.plan(), "100.112.0.3/32"), ["device", "unreachable"]);
    }
}

#[test]
fn a_working_tunnels_endpoint_is_left_alone_and_others_rotate() {
    let mut two = record(2, &[]);
    two.endpoints.push("203.0.113.7:51800".parse().unwrap());
    let first = socket("192.0.2.2:51820");
    let second = socket("203.0.113.7:51820");
    let roamed = tunnel(TunnelState::Never, None, 0).and_then(|t| t.endpoint);
    assert!(roamed.is_some() && roamed != first);
    for (tunnel, expected) in [
        (None, first),
        (tunnel(TunnelState::Up, Some(5), 0), None),
        (tunnel(TunnelState::Up, Some(5_000), 0), None),
        (tunnel(TunnelState::Stale, Some(200), 0), None),
        (tunnel(TunnelState::Stale, Some(200), 1), first),
        (tunnel(TunnelState::Stale, Some(200), 2), second),
        (tunnel(TunnelState::Never, None, 0), first),
        (tunnel(TunnelState::Never, None, 1), second),
        (tunnel(TunnelState::Never, None, 2), first),
    ] {
        let world = World::with([with_tunnel(of(two.clone()), tunnel)]);
        assert_eq!(world.peer(2).unwrap().endpoint, expected, "{tunnel:?}");
    }
    let proved = World::with([with_path(of(two), "198.51.100.9")]);
    assert_eq!(proved.peer(2).unwrap().endpoint, socket("198.51.100.9:51820"));
}

#[test]
fn a_peer_that_the_kernel_holds_without_an_endpoint_gets_one() {
    let mut tunnel = tunnel(TunnelState::Up, Some(5), 0);
    tunnel.as_mut().unwrap().endpoint = None;
    let world = World::with([with_tunnel(member(2, &[]), tunnel)]);
    assert_eq!(world.peer(2).unwrap().endpoint, socket("192.0.2.2:51820"));
}

#[test]
fn endpoints_that_are_ours_or_inside_the_mesh_or_of_a_missing_family_are_not_used() {
    let ula = record(3, &[]).mesh_addresses[0].addr();
    let endpoint = |bad: String, world: &mut World| {
        let mut two = record(2, &[]);
        two.endpoints = vec![bad.parse().unwrap()];
        world.members = vec![of(two), member(3, &["10.244.3.0/24"])];
        world.peer(2).unwrap().endpoint
    };
    let mut world = World::with([]);
    for bad in [
        "192.0.2.1",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "10.244.3.4",
        "10.244.1.4",
        "100.112.0.3",
        "[fe80::1]",
        &format!("[{ula}]"),
        "255.255.255.255",
        "0.0.0.0",
        "[::1]",
    ] {
        assert_eq!(endpoint(format!("{bad}:51800"), &mut world), None, "{bad}");
    }
    world.own.endpoints = vec!["203.0.113.1:51800".parse().unwrap()];
    assert_eq!(endpoint("203.0.113.1:51801".to_owned(), &mut world), None, "leads back to us");
    assert!(endpoint("[2001:db8::3]:51800".to_owned(), &mut world).is_some());
    world.local.addresses = nets(&["192.0.2.1/24"]);
    assert_eq!(endpoint("[2001:db8::3]:51800".to_owned(), &mut world), None);
}

#[test]
fn keepalive_is_for_hosts_behind_nat_towards_who_has_answered() {
    let keepalive = |behind_nat: bool, member: Member| {
        let mut world = World::with([member]);
        world.local.behind_nat = Some(behind_nat);
        world.peer(2).unwrap().keepalive.unwrap()
    };
    let answered = with_tunnel(member(2, &[]), tunnel(TunnelState::Up, Some(60), 0));
    let stale = with_tunnel(member(2, &[]), tunnel(TunnelState::Stale, Some(900), 0));
    assert_eq!(keepalive(true, answered.clone()), 25);
    assert_eq!(keepalive(false, answered.clone()), 0);
    assert_eq!(
        keepalive(true, with_tunnel(member(2, &[]), tunnel(TunnelState::Never, None, 0))),
        0
    );
    assert_eq!(keepalive(true, down(stale.clone(), 599)), 25);
    assert_eq!(keepalive(true, down(stale, 600)), 0);
    assert_eq!(keepalive(true, down(answered.clone(), 600)), 25, "a live tunnel is kept open");
    let mut unknown = World::with([answered]);
    unknown.local.behind_nat = None;
    assert_eq!(unknown.peer(2).unwrap().keepalive, None, "what the kernel has is left alone");
}
