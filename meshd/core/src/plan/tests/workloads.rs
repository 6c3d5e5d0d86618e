//! Single workloads on this host, announced or not.

use std::net::IpAddr;

use super::{
    order::{converge, programmed},
    worlds::*,
};
use crate::plan::{Change, RouteKind, Verdict, diff};

fn with_workloads(mut world: World, announced: &[&str], silent: &[&str]) -> World {
    world.config.workloads = true;
    world.own.prefixes.extend(announced.iter().map(|text| net(text)));
    world.local.workloads = nets(&[announced, silent].concat());
    world
}

#[test]
fn a_local_workload_stays_local_though_it_is_not_announced() {
    let world = World::with([member(2, &["10.240.0.0/16"])]);
    let world = with_workloads(world, &["10.240.1.5/32"], &["10.240.1.6/32", "10.99.0.1/32"]);
    let plan = world.plan();
    assert_eq!(kinds(&plan, "10.240.1.5/32"), ["throw"]);
    assert_eq!(kinds(&plan, "10.240.1.6/32"), ["throw"], "another's prefix would take it along");
    assert!(kinds(&plan, "10.99.0.1/32").is_empty(), "nothing would");
}

#[test]
fn what_another_claims_and_is_here_is_not_routed_away() {
    let world = World::with([member(2, &["10.240.1.6/32"])]);
    let world = with_workloads(world, &[], &["10.240.1.6/32"]);
    assert_eq!(world.blocked(2), [(Some(net("10.240.1.6/32")), "prefix_is_local")]);
    assert!(kinds(&world.plan(), "10.240.1.6/32").iter().all(|kind| *kind == "throw"));
}

#[test]
fn a_workload_keeps_its_source_by_an_element_and_not_by_a_rule() {
    let world = World::with([member(2, &["10.244.2.0/24"])]);
    let one = with_workloads(world.clone(), &["10.240.1.5/32"], &["10.240.1.6/32"]);
    let two = with_workloads(world, &["10.240.1.5/32", "10.240.1.7/32"], &[]);
    let firewall = |world: &World| world.plan().desired.firewall.clone().unwrap();
    assert_eq!(firewall(&one).rules, firewall(&two).rules, "pods change no rule");
    assert_eq!(firewall(&one).sets.own, ["10.240.1.5".parse::<IpAddr>().unwrap()].into());
    let mut kernel = programmed(&one);
    let changes = converge(&mut kernel, &two.plan().desired);
    assert!(
        matches!(&changes[..], [Change::ChangeSets { add, .. }, Change::PutRoute(route)]
            if add.own.len() == 1 && route.kind == RouteKind::Throw),
        "one more pod costs what it is: {changes:?}"
    );
}

#[test]
fn one_remote_workload_more_or_less_costs_what_it_is() {
    let all: Vec<String> = (0..200).map(|n| format!("10.240.2.{n}/32")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut world = World::with([member(2, &all[..199])]);
    let mut kernel = programmed(&world);
    world.members = vec![member(2, &all)];
    let changes = diff(&world.plan().desired, &kernel.state());
    assert_eq!(changes.len(), 3, "allowed IP, route, `unreachable`: {changes:?}");
    converge(&mut kernel, &world.plan().desired);
    world.members = vec![member(2, &all[..199])];
    let changes = diff(&world.plan().desired, &kernel.state());
    assert_eq!(changes.len(), 3, "{changes:?}");
}

#[test]
fn a_workload_that_moves_here_and_away_always_has_one_way() {
    let remote = || World::with([member(2, &["10.240.1.5/32"])]);
    let local = || with_workloads(World::with([member(2, &[])]), &["10.240.1.5/32"], &[]);
    let mut away = remote();
    away.config.workloads = true;
    let pod = ip("10.240.1.5");
    let mut kernel = programmed(&away);
    let there = Verdict::Tunnel(lane(2).public_key);
    for (world, from, to) in [(local(), there, Verdict::Clear), (away, Verdict::Clear, there)] {
        assert_eq!(kernel.verdict(pod), from);
        for change in diff(&world.plan().desired, &kernel.state()) {
            kernel.apply(&change).unwrap();
        }
        assert_eq!(kernel.verdict(pod), to);
    }
}
