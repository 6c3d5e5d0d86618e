//! What holds in every world, after every sequence of worlds, and whatever call fails.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*};

use super::{
    super::*,
    arbitrary::{PREFIXES, Tamper, any_settings, any_tamper, any_world, tamper},
    worlds::*,
};
use crate::address::host_prefix;

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
        if desired.peers.get(key).is_none_or(|desired| desired.keepalive.is_none()) {
            peer.keepalive = 0;
        }
    }
    state.underlay_sysctls.retain(|path, _| desired.underlay_sysctls.contains_key(path));
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

/// Applies the changes to the kernel and follows them in what was read of it before.
fn follow(kernel: &mut Kernel, desired: &Desired) {
    let mut read = kernel.state();
    for change in diff(desired, &read.clone()) {
        kernel.apply(&change).unwrap();
        if change.can_be_followed() {
            read.follow(&change);
            assert_eq!(read, kernel.state(), "{change:?}");
        } else {
            read = kernel.state();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_leads_from_any_state_to_any_plan(
        worlds in vec((any_settings(), vec(any_tamper(), 0..3)), 1..4),
    ) {
        let mut kernel = host();
        for (world, tampers) in &worlds {
            converge(&mut kernel, &world.plan().desired);
            for what in tampers {
                tamper(&mut kernel, what);
            }
        }
        converge(&mut kernel, &worlds[0].0.plan().desired);
        converge(&mut kernel, &Desired::default());
        let mut state = kernel.state();
        // They are others', and as before.
        prop_assert!(state.underlay_sysctls.values().all(|value| value == "0"));
        state.underlay_sysctls.clear();
        prop_assert_eq!(state, Observed::default());
    }

    #[test]
    fn what_is_followed_is_what_would_be_read(
        worlds in vec((any_settings(), vec(any_tamper(), 0..3)), 1..4),
    ) {
        let mut kernel = host();
        for (world, tampers) in &worlds {
            follow(&mut kernel, &world.plan().desired);
            for what in tampers {
                tamper(&mut kernel, what);
            }
        }
        follow(&mut kernel, &worlds[0].0.plan().desired);
    }

    #[test]
    fn every_failing_call_costs_at_most_one_pass(
        first in any_settings(),
        second in any_settings(),
        failing in vec(1..60_u64, 0..6),
        goes_on in any::<bool>(),
    ) {
        let mut kernel = host();
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
        let mut straight = host();
        converge(&mut straight, &last);
        let expected = comparable(&straight, &last);
        let forward: Vec<&World> = worlds.iter().collect();
        let reversed: Vec<&World> = worlds.iter().rev().collect();
        let doubled: Vec<&World> = worlds.iter().flat_map(|world| [world, world]).collect();
        for sequence in [forward, reversed, doubled] {
            let mut kernel = host();
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
        let mut kernel = host();
        converge(&mut kernel, &first.plan().desired);
        step_through(&mut kernel, &second.plan().desired, true);
    }

    #[test]
    fn new_settings_make_no_leak(first in any_settings(), second in any_settings()) {
        let mut kernel = host();
        converge(&mut kernel, &first.plan().desired);
        step_through(&mut kernel, &second.plan().desired, false);
    }

    #[test]
    fn repairs_make_no_leak(
        first in any_settings(),
        mut second in any_settings(),
        what in any_tamper(),
    ) {
        // In the table in use: while that changes too, a route that others left in the new table
        // counts from the rule on until it is removed.
        second.config = first.config.clone();
        let mut kernel = host();
        converge(&mut kernel, &first.plan().desired);
        tamper(&mut kernel, &what);
        step_through(&mut kernel, &second.plan().desired, false);
    }

    #[test]
    fn strict_holds_whatever_others_take_away(mut world in any_settings(), what in any_tamper()) {
        world.config.strict = true;
        let plan = world.plan();
        let mut kernel = host();
        converge(&mut kernel, &plan.desired);
        let before = verdicts(&kernel);
        tamper(&mut kernel, &what);
        for ((probe, before), (_, now)) in before.iter().zip(verdicts(&kernel)) {
            if *before != Verdict::Clear {
                prop_assert_ne!(now, Verdict::Clear, "{} leaks after {:?}", probe, &what);
            } else if !matches!(what, Tamper::ForeignRoute(_) | Tamper::FlushRoute(_)) {
                prop_assert_eq!(now, Verdict::Clear, "{} is cut off after {:?}", probe, &what);
            }
        }
    }

    #[test]
    fn no_plan_cuts_a_host_off(world in any_settings()) {
        let plan = world.plan();
        let mut kernel = host();
        converge(&mut kernel, &plan.desired);
        let own: Vec<IpNet> = world.own.prefixes.clone();
        let firewall = plan.desired.firewall.as_ref();
        let guarded = firewall.map(|table| table.sets.guarded_nodes.clone()).unwrap_or_default();
        let present = world.members.iter().filter(|member| {
            plan.routed.contains_key(&member.record.key)
        });
        let reached: Vec<_> = present.filter_map(|member| {
            let is_newest = world.members.iter().all(|other| {
                other.record.key != member.record.key
                    || other.record.version < member.record.version
                    || std::ptr::eq(other, member)
            });
            // Our own packets to a member's node address go past its tunnel, and past the guard.
            let node = plan.nodes.accepted.get(&member.record.key).into_iter().flatten();
            let mut node = node.map(|prefix| prefix.addr());
            member.path.filter(|path| {
                is_newest && !guarded.contains(path) && !node.any(|node| node == *path)
            })
        }).collect();
        let mesh: BTreeSet<IpNet> =
            world.members.iter().flat_map(|m| m.record.mesh_addresses.clone()).collect();
        let outside = world.local.addresses.iter().map(|net| net.addr());
        let needed = outside.chain(world.local.gateways.iter().copied()).chain(reached);
        for address in needed.filter(|address| !own.iter().any(|net| net.contains(address))) {
            if !mesh.contains(&host_prefix(address)) {
                prop_assert_eq!(kernel.verdict(address), Verdict::Clear, "{}", address);
            }
        }
        let single = |address: IpAddr| {
            plan.routed.values().any(|prefixes| prefixes.contains(&host_prefix(address)))
        };
        for peer in plan.desired.peers.values() {
            let nodes = || plan.nodes.accepted.values().flatten().map(|prefix| prefix.addr());
            // Single addresses of members neither: our encrypted packets are marked.
            if let Some(endpoint) = peer.endpoint
                && !single(endpoint.ip())
                && !nodes().chain(guarded.iter().copied()).any(|node| node == endpoint.ip())
            {
                prop_assert_eq!(kernel.verdict(endpoint.ip()), Verdict::Clear);
            }
        }
    }

    #[test]
    fn nodes_take_nothing_but_what_they_claim_off_a_host(world in any_settings()) {
        let mut without = world.clone();
        without.config.nodes = false;
        without.own.node_claims.clear();
        let claimed: BTreeSet<IpAddr> = world
            .members
            .iter()
            .flat_map(|member| member.record.node_claims.iter().map(IpNet::addr))
            .collect();
        let [mut with, mut off] = [host(), host()];
        converge(&mut with, &world.plan().desired);
        converge(&mut off, &without.plan().desired);
        for address in probes().into_iter().filter(|address| !claimed.contains(address)) {
            prop_assert_eq!(with.verdict(address), off.verdict(address), "{}", address);
        }
        for (key, prefixes) in &world.plan().nodes.routed {
            let records = world.members.iter().map(|member| &member.record);
            let theirs: Vec<_> = records.filter(|record| record.key == *key).collect();
            for prefix in prefixes {
                prop_assert!(theirs.iter().any(|record| record.node_claims.contains(prefix)));
            }
        }
    }

    #[test]
    fn no_allowed_ip_is_on_two_peers_and_each_has_its_routes(world in any_settings()) {
        let plan = world.plan();
        let mut seen = BTreeSet::new();
        for ip in plan.desired.peers.values().flat_map(|peer| &peer.allowed_ips) {
            prop_assert!(seen.insert(*ip), "{} twice", ip);
            let taken = plan.nodes.accepted.values().flatten().any(|node| node == ip);
            if taken && !plan.nodes.routed.values().flatten().any(|node| node == ip) {
                continue;
            }
            let kinds = kinds(&plan, &ip.to_string());
            if world.local.ipv6 || ip.addr().is_ipv4() {
                prop_assert_eq!(kinds, ["device", "unreachable"]);
            }
        }
    }
}
