//! Memberships that end, and certificates that must not: in virtual time.

use std::time::Duration;

use meshd_tests::sim::{Weather, World};

const DAY: i64 = 24 * 3600;

/// A mesh whose first host is its signer, joined and settled.
fn settled(seed: u64, count: usize, weather: Weather, life: i64) -> World {
    let mut world = World::with_certificates(seed, count, weather, life);
    world.make_signer(0);
    let first = world.hosts[0].draft.endpoints.clone();
    (1..count).for_each(|host| world.hosts[host].seeds = first.clone());
    (0..count).for_each(|host| world.start(host));
    let limit = Duration::from_secs(20);
    world.run_until("all know all", limit, |world| world.all_know(count) && world.is_converged());
    world.run(Duration::from_secs(10));
    world
}

fn knows(world: &World, observer: usize, member: usize) -> bool {
    let key = world.hosts[member].key();
    let node = world.hosts[observer].node.as_ref();
    node.is_some_and(|node| node.directory().get(&key).is_some())
}

fn all_but(world: &World, member: usize) -> Vec<usize> {
    world.nodes().map(|(i, _)| i).filter(|i| *i != member).collect()
}

#[test]
fn a_revocation_reaches_a_hundred_nodes_within_a_second() {
    for seed in 0..3 {
        let weather = Weather { loss: 0.05, ..Weather::default() };
        let mut world = settled(seed, 100, weather, 365 * DAY);
        world.revoke(0, 77);
        let took = world.run_until("nobody knows it", Duration::from_secs(1), |world| {
            all_but(world, 77).iter().all(|observer| !knows(world, *observer, 77))
        });
        println!("seed {seed}: gone from 99 nodes after {took:?}");
        // It goes on talking, restarts, and signs anew: nobody listens.
        world.update(77, |draft| draft.zone = "elsewhere".parse().unwrap_or_default());
        world.crash(77);
        world.start(77);
        world.run(Duration::from_secs(60));
        assert!(all_but(&world, 77).iter().all(|observer| !knows(&world, *observer, 77)));
    }
}

#[test]
fn who_was_away_obeys_within_one_exchange_and_two_signers_may_revoke_at_once() {
    let mut world = settled(5, 12, Weather::default(), 365 * DAY);
    world.partition(|host| u32::from(host >= 6));
    world.run(Duration::from_secs(30));
    world.revoke(0, 11);
    world.revoke(0, 3);
    // The other half has a signer too, who revokes one of the same.
    world.make_signer(6);
    world.crash(6);
    world.start(6);
    world.run(Duration::from_secs(10));
    world.revoke(6, 11);
    world.run(Duration::from_secs(30));
    assert!(knows(&world, 7, 3) && !knows(&world, 7, 11));
    world.heal();
    let took = world.run_until("all agree", Duration::from_secs(60), |world| {
        // Those who are out hear nothing any more.
        let mut members = world.nodes().map(|(i, _)| i).filter(|i| ![3, 11].contains(i));
        members.all(|i| !knows(world, i, 3) && !knows(world, i, 11))
    });
    println!("after healing: {took:?}");
    world.run(Duration::from_secs(60));
    let hashes: Vec<_> = world
        .nodes()
        .filter(|(i, _)| ![3, 11].contains(i))
        .map(|(_, node)| node.anchors().revocations_hash())
        .collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}

#[test]
fn certificates_are_renewed_for_ever_and_nobody_is_cut() {
    let mut world = settled(7, 12, Weather::default(), 30 * DAY);
    // Four months in thirty hours.
    world.hasten(96);
    world.run(Duration::from_secs(30 * 3600));
    for (i, host) in world.hosts.iter().enumerate() {
        assert!((3..8).contains(&host.renewals.len()), "n{i}: {} renewals", host.renewals.len());
        let lost = host.events.iter().filter(|event| event.code == "member_revoked").count();
        assert_eq!(lost, 0, "n{i}");
    }
    assert!(world.all_know(12) && world.is_converged());
}

#[test]
fn sixty_days_without_signers_cut_nothing_and_then_renewals_spread() {
    without_signers(96);
}

#[test]
fn nor_do_two_hundred_and_forty_days() {
    without_signers(4 * 96);
}

/// Fifteen hours of the hosts' clocks without a signer, by a wall clock that is so many times as fast.
fn without_signers(factor: i64) {
    let mut world = settled(11, 16, Weather::default(), 30 * DAY);
    world.hasten(factor);
    world.run(Duration::from_secs(3600));
    let before: Vec<usize> = world.hosts.iter().map(|host| host.renewals.len()).collect();
    assert!(factor > 96 || before.iter().all(|renewals| *renewals == 0));
    world.crash(0);
    world.run(Duration::from_secs(15 * 3600));
    for host in 1..16 {
        assert!((1..16).all(|member| knows(&world, host, member)), "n{host}");
        // The signer is down, and is kept all the same.
        assert!(knows(&world, host, 0), "n{host}");
    }
    world.hasten(1);
    world.start(0);
    let back = world.now();
    world.run(Duration::from_secs(2 * 3600));
    let mut times = Vec::new();
    for (i, host) in world.hosts.iter().enumerate() {
        let first = host.renewals.iter().find(|at| **at >= back);
        let first = first.unwrap_or_else(|| panic!("n{i} was not renewed"));
        times.push(first.duration_since(back));
        let lost = host.events.iter().filter(|event| event.code == "member_revoked").count();
        assert_eq!(lost, 0, "n{i}");
    }
    times.sort_unstable();
    println!("renewed after {times:?}");
    // They had all been trying for weeks, each in its own time.
    let minute = Duration::from_secs(60);
    let most = times
        .iter()
        .map(|from| times.iter().filter(|at| *at >= from && **at < *from + minute).count());
    assert!(most.max().unwrap_or(0) <= 6, "a stampede: {times:?}");
    assert!(world.all_know(16) && world.is_converged());
}
