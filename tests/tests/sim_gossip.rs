//! Joining, crashing, leaving: small meshes in virtual time.

use std::time::Duration;

use meshd_core::node::{Liveness, NodeConfig};
use meshd_tests::sim::{Weather, World};

/// A mesh that was started through the first host and settled.
fn settled(seed: u64, count: usize, weather: Weather) -> World {
    let mut world = World::new(seed, count, weather);
    join(&mut world);
    let limit = Duration::from_secs(10);
    world.run_until("all know all", limit, |world| world.all_know(count) && world.is_converged());
    world.run(Duration::from_secs(10));
    world
}

fn join(world: &mut World) {
    let seed = world.hosts[0].draft.endpoints.clone();
    for host in 1..world.hosts.len() {
        world.hosts[host].seeds = seed.clone();
    }
    (0..world.hosts.len()).for_each(|host| world.start(host));
}

fn liveness(world: &World, observer: usize, member: usize) -> Option<Liveness> {
    let key = world.hosts[member].key();
    world.hosts[observer].node.as_ref()?.liveness(&key).map(|(liveness, _)| liveness)
}

/// True when every running node other than `member` sees it so.
fn all_see(world: &World, member: usize, wanted: Liveness) -> bool {
    world.nodes().all(|(i, _)| i == member || liveness(world, i, member) == Some(wanted))
}

#[test]
fn twenty_nodes_join_through_one_seed_within_two_seconds() {
    for seed in 0..20 {
        let mut world = World::new(seed, 20, Weather::default());
        join(&mut world);
        let took = world.run_until("all know all", Duration::from_secs(2), |w| w.all_know(20));
        assert!(world.is_converged(), "seed {seed}");
        assert!(world.nodes().all(|(_, node)| node.is_synced()), "seed {seed}");
        println!("seed {seed}: all know all after {took:?}, {:?}", world.report());
        world.run(Duration::from_secs(8));
        for member in 0..20 {
            assert!(all_see(&world, member, Liveness::Alive), "seed {seed}: n{member}");
        }
    }
}

#[test]
fn a_late_joiner_is_known_to_all_at_once() {
    let mut world = World::new(3, 20, Weather::default());
    let first = world.hosts[0].draft.endpoints.clone();
    (1..20).for_each(|host| world.hosts[host].seeds = first.clone());
    (0..19).for_each(|host| world.start(host));
    world.run(Duration::from_secs(30));
    world.start(19);
    let took =
        world.run_until("the joiner is known", Duration::from_millis(500), |w| w.all_know(20));
    println!("known to all after {took:?}");
}

#[test]
fn a_crash_is_declared_and_a_restart_is_back_and_nobody_is_forgotten() {
    let weather = Weather { loss: 0.02, ..Weather::default() };
    let mut world = settled(11, 20, weather);
    world.crash(7);
    let limit = Duration::from_secs(15);
    let took = world.run_until("all see it down", limit, |w| all_see(w, 7, Liveness::Down));
    println!("down at all after {took:?}");
    world.run(Duration::from_secs(60));
    assert!(world.all_know(20), "a member that is down must stay known");
    let down = |world: &World| {
        world.hosts.iter().flat_map(|h| &h.events).filter(|e| e.code == "member_down").count()
    };
    let others: Vec<_> = (0..20).filter(|i| *i != 7).collect();
    assert!(others.iter().all(|i| all_see_but(&world, *i, 7)), "a false removal, {}", down(&world));

    world.start(7);
    let took = world
        .run_until("it is back", limit, |w| all_see(w, 7, Liveness::Alive) && w.is_converged());
    println!("back at all after {took:?}");
    let node = world.hosts[7].node.as_ref().unwrap();
    assert!(node.is_synced() && node.directory().len() == 20);
    world.run(Duration::from_secs(5));
    assert!(others.iter().all(|i| liveness(&world, 7, *i) == Some(Liveness::Alive)));
}

fn all_see_but(world: &World, member: usize, but: usize) -> bool {
    let up = |i: usize| liveness(world, i, member) != Some(Liveness::Down);
    world.nodes().all(|(i, _)| i == member || i == but || up(i))
}

#[test]
fn all_hosts_restarted_at_once_find_each_other_without_their_seed() {
    let mut world = settled(5, 12, Weather::default());
    (0..12).for_each(|host| world.crash(host));
    world.run(Duration::from_secs(20));
    // The seed stays away.
    (1..12).for_each(|host| world.start(host));
    assert!(world.all_know(12), "the store is enough to know everybody");
    world.run_until("synced and alive", Duration::from_secs(10), |w| {
        w.is_converged()
            && w.nodes().all(|(_, node)| node.is_synced())
            && (1..12).all(|member| all_see(w, member, Liveness::Alive))
    });
    world.run_until("the seed is down", Duration::from_secs(10), |w| all_see(w, 0, Liveness::Down));
}

#[test]
fn a_leave_reaches_all_and_one_that_was_away_too() {
    let mut world = settled(21, 15, Weather::default());
    world.partition(|host| u32::from(host == 14));
    world.run(Duration::from_secs(20));
    world.leave(4);
    world.run(Duration::from_millis(500));
    assert!(world.hosts[4].left.as_ref().is_some_and(|to| !to.is_empty()));
    world.crash(4);
    for host in (0..14).filter(|host| *host != 4) {
        assert_eq!(liveness(&world, host, 4), Some(Liveness::Left), "n{host}");
    }
    assert_ne!(liveness(&world, 14, 4), Some(Liveness::Left));
    world.heal();
    world.run_until("the one that was away knows", Duration::from_secs(30), |w| {
        liveness(w, 14, 4) == Some(Liveness::Left) && w.is_converged()
    });
}

#[test]
fn those_who_left_or_are_gone_for_long_are_forgotten_and_stay_so() {
    let mut world = World::new(8, 4, Weather::default());
    let config = NodeConfig {
        forget_after: Duration::from_secs(600),
        resign_every: Duration::from_secs(200),
        ..NodeConfig::default()
    };
    world.set_config(config);
    join(&mut world);
    world.run(Duration::from_secs(5));
    world.crash(3);
    world.run(Duration::from_secs(300));
    assert!(world.all_know(4));
    // Somebody who was away all the time still has the record, and must not bring it back.
    world.crash(2);
    world.run(Duration::from_secs(500));
    assert!(world.nodes().all(|(_, node)| node.directory().len() == 3));
    world.start(2);
    world.run(Duration::from_secs(120));
    let key = world.hosts[3].key();
    for host in [0, 1] {
        let node = world.hosts[host].node.as_ref().unwrap();
        assert!(node.directory().get(&key).is_none(), "n{host}");
        assert!(!world.hosts[host].store.contains_key(&key));
    }
}

#[test]
fn a_mesh_cut_in_pieces_and_shuffled_comes_together_again() {
    let weather = Weather { loss: 0.1, ..Weather::default() };
    let mut world = settled(31, 16, weather);
    for round in 0..6_u8 {
        let salt = world.random();
        world.partition(|host| u32::from((salt >> host) & 1 == 1));
        for host in (0..16).filter(|host| (salt >> (host + 16)) & 1 == 1) {
            let prefix = meshd_tests::sim::prefix(host, round + 1);
            world.update(host, |draft| draft.prefixes = vec![prefix]);
        }
        let victim = usize::try_from(salt >> 40).unwrap_or(0) % 16;
        world.crash(victim);
        world.run(Duration::from_secs(12));
        world.start(victim);
    }
    world.heal();
    world.run_until("everything is the same again", Duration::from_secs(30), |world| {
        world.is_converged() && (0..16).all(|member| all_see(world, member, Liveness::Alive))
    });
}

#[test]
fn a_clone_raises_the_alarm_and_a_restored_backup_does_not() {
    let mut world = settled(41, 6, Weather::default());
    // The host forgets that it ever signed anything: a backup from before the join.
    world.crash(3);
    world.run(Duration::from_secs(1));
    world.hosts[3].forget_versions();
    world.start(3);
    world.run(Duration::from_secs(30));
    let alarms = |world: &World, host: usize| {
        world.hosts[host].events.iter().filter(|e| e.code == "clone_suspected").count()
    };
    assert!(world.is_converged());
    assert!(all_see(&world, 3, Liveness::Alive));
    assert_eq!(alarms(&world, 3), 0);

    let clone = world.clone_of(3);
    world.start(clone);
    // Half of what is meant for one of them goes to the other: it takes a few exchanges.
    world.run_until("both raise the alarm", Duration::from_secs(300), |world| {
        alarms(world, 3) == 1 && alarms(world, clone) == 1
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let weather = Weather { loss: 0.05, ..Weather::default() };
        let mut world = World::new(seed, 12, weather);
        join(&mut world);
        world.run(Duration::from_secs(10));
        world.crash(5);
        world.partition(|host| u32::from(host > 8));
        world.run(Duration::from_secs(20));
        world.heal();
        world.start(5);
        world.run(Duration::from_secs(10));
        world.report()
    };
    let (first, second) = (run(99), run(99));
    assert_eq!(first, second);
    assert_ne!(first.trace, run(100).trace);
}
