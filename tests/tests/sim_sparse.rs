//! Members watch their neighbours, and believe others about the rest: in virtual time.

use std::time::Duration;

use meshd_core::{node::Liveness, trust::Report};
use meshd_proto::wire;
use meshd_tests::sim::{Weather, World, prefix};

const SECOND: Duration = Duration::from_secs(1);

/// A LAN that loses one packet in a hundred.
fn lan() -> Weather {
    let delay = (Duration::from_micros(100), Duration::from_millis(1));
    Weather { loss: 0.01, delay }
}

/// A mesh of `count` that settled, and room for `more`.
fn settled(seed: u64, count: usize, more: usize) -> World {
    let mut world = World::new(seed, count + more, lan());
    let first = world.hosts[0].draft.endpoints.clone();
    (1..count + more).for_each(|host| world.hosts[host].seeds = first.clone());
    (0..count).for_each(|host| world.start(host));
    world.run_until("all know all", SECOND * 10, |world| world.all_know(count));
    world.run(SECOND * 20);
    world
}

fn liveness(world: &World, observer: usize, member: usize) -> Option<Liveness> {
    let key = world.hosts[member].key();
    world.hosts[observer].node.as_ref()?.liveness(&key).map(|(liveness, _)| liveness)
}

/// True when every running node other than `member` sees it so.
fn all_see(world: &World, member: usize, wanted: Liveness) -> bool {
    world.nodes().all(|(i, _)| i == member || liveness(world, i, member) == Some(wanted))
}

fn all_alive(world: &World) -> bool {
    let running: Vec<_> = world.nodes().map(|(i, _)| i).collect();
    running.iter().all(|member| all_see(world, *member, Liveness::Alive))
}

fn alarms(world: &World) -> usize {
    let events = world.hosts.iter().flat_map(|host| &host.events);
    events.filter(|event| event.code == "member_down").count()
}

#[test]
fn an_idle_node_costs_little_and_alarms_nobody_and_a_change_is_everywhere_at_once() {
    let mut cost = Vec::new();
    for count in [75, 200] {
        let mut world = settled(1, count, 0);
        let (before, told) = (world.report().bytes, alarms(&world));
        let (packets, frames) = (world.report().datagrams, world.report().frames);
        world.run(SECOND * 120);
        // SWIM's own probes are rare: what is quiet is greeted.
        let packets = (world.report().datagrams - packets) as f64 / (count * 120) as f64;
        assert!(packets < 0.4, "{packets} SWIM packets per node and second");
        let frames = (world.report().frames - frames) as f64 / (count * 120) as f64;
        assert!(frames < 2.5, "{frames} greetings and other frames per node and second");
        let bytes = (world.report().bytes - before) as f64 / (count * 120) as f64;
        println!("{count} nodes: {bytes:.0} bytes per node and second");
        assert!(bytes < 600.0, "{bytes}");
        assert_eq!(alarms(&world), told, "false alarms");
        cost.push(bytes);
        for round in 1..=5 {
            let host = count / 7 * usize::from(round);
            let mut times = world.spread(host, SECOND * 10, |world| {
                world.update(host, |draft| draft.prefixes = vec![prefix(host, round)]);
            });
            times.sort_unstable();
            let most = times[times.len() * 99 / 100];
            assert!(most < Duration::from_millis(250), "{most:?}");
            world.run(SECOND * 2);
        }
    }
    // What grows with the mesh would be 2.7 times as much. Seeds alone make 50 to 63 bytes of it among 75.
    assert!(cost[1] < cost[0] * 1.5, "grows with the mesh: {cost:?}");
}

#[test]
fn a_crash_is_known_to_all_and_a_restart_too_whatever_else_goes_on() {
    let mut world = settled(2, 150, 0);
    for host in [10, 30, 50, 70] {
        world.crash(host);
        let known = |world: &World| all_see(world, host, Liveness::Down);
        let took = world.run_until("all see it down", SECOND * 5, known);
        println!("n{host} is down at all after {took:?}");
        if host != 70 {
            world.start(host);
            world.run_until("it is back", SECOND * 5, all_alive);
        }
    }
    // Its watchers are restarted one after the other, and somebody new hears of it from those who are left.
    for host in (0..40).filter(|host| *host != 70) {
        world.crash(host);
        world.run(SECOND);
        world.start(host);
        world.run(SECOND);
    }
    world.run(SECOND * 20);
    assert!(all_see(&world, 70, Liveness::Down));
    let others = 0..150;
    assert!(others.filter(|i| *i != 70).all(|i| all_see_or_gone(&world, i, 70)));
    world.start(70);
    let took = world.run_until("it is back", SECOND * 5, all_alive);
    println!("back at all after {took:?}");
}

/// Everybody but `but` sees `member` alive.
fn all_see_or_gone(world: &World, member: usize, but: usize) -> bool {
    let fine =
        |i: usize| i == member || i == but || liveness(world, i, member) == Some(Liveness::Alive);
    world.nodes().all(|(i, _)| fine(i))
}

#[test]
fn halves_find_each_other_again_and_a_few_that_were_alone_too() {
    let mut world = settled(3, 150, 0);
    for (round, few) in [2, 50].into_iter().enumerate() {
        let cut = |host: usize| usize::from(host % few == 1);
        world.partition(|host| u32::from(host % few == 1));
        world.run(SECOND * 90);
        let apart = |a: usize, b: usize| cut(a) != cut(b);
        for a in 0..150 {
            for b in (0..150).filter(|b| *b != a) {
                let wanted = if apart(a, b) { Liveness::Down } else { Liveness::Alive };
                // Those who are alone with two others need long for all that are gone.
                if few == 2 || cut(a) == 0 {
                    assert_eq!(liveness(&world, a, b), Some(wanted), "round {round}: n{a} of n{b}");
                }
            }
        }
        world.heal();
        let took = world.run_until("all are alive", SECOND * 60, |world| {
            all_alive(world) && world.is_converged()
        });
        println!("round {round}: together again after {took:?}");
        let before = alarms(&world);
        world.run(SECOND * 60);
        assert_eq!(alarms(&world), before, "round {round}: an alarm after all was well");
    }
}

#[test]
fn half_of_all_may_die_at_once() {
    let mut world = settled(4, 160, 0);
    (0..160).filter(|host| host % 2 == 1).for_each(|host| world.crash(host));
    let took = world.run_until("all the dead are known", SECOND * 60, |world| {
        (0..160).filter(|host| host % 2 == 1).all(|host| all_see(world, host, Liveness::Down))
    });
    println!("80 crashes are known to all after {took:?}");
    assert!((0..160).step_by(2).all(|host| all_see(&world, host, Liveness::Alive)));
    (0..160).filter(|host| host % 2 == 1).for_each(|host| world.start(host));
    let took = world.run_until("all are back", SECOND * 20, all_alive);
    println!("back after {took:?}");
}

/// With this number the liar's own daemon, which is an honest one here, cannot take the lie back.
const MOST: u64 = u64::MAX;

/// `liar` tells everybody that `victim` is down.
fn lie(world: &mut World, liar: usize, victim: usize, number: u64) {
    let (watcher, watched) = (world.hosts[liar].key(), world.hosts[victim].key());
    let Some(node) = &world.hosts[liar].node else { return };
    let generation = |key| node.directory().get(key).map_or(0, |record| record.generation);
    let report = Report {
        watched,
        generation: generation(&watched),
        down: true,
        watcher,
        watcher_generation: generation(&watcher),
        number,
    };
    let reports = vec![report.sign(&world.hosts[liar].identity)];
    let push = wire::Push { reports, ..Default::default() };
    for to in (0..world.hosts.len()).filter(|to| *to != liar) {
        world.say(liar, to, wire::frame::Body::Push(push.clone()));
    }
}

#[test]
fn one_link_that_fails_takes_nobody_down() {
    let mut world = settled(7, 100, 0);
    let node = world.hosts[0].node.as_ref().unwrap();
    let near: Vec<_> = node.neighbours().collect();
    let near = (0..100).find(|i| near.contains(&world.hosts[*i].key())).unwrap();
    let before = alarms(&world);
    world.cut(0, near);
    world.run(SECOND * 300);
    assert!(all_alive(&world));
    assert_eq!(alarms(&world), before, "a link of two took a member down");
    // The other end is still missed when it does die.
    world.crash(near);
    let down = |world: &World| all_see(world, near, Liveness::Down);
    let took = world.run_until("all see it down", SECOND * 6, down);
    println!("down at all after {took:?}");
}

#[test]
fn a_bad_network_takes_nobody_down_and_a_crash_is_known_all_the_same() {
    let mut world = settled(8, 100, 0);
    world.links.weather.loss = 0.1;
    world.run(SECOND * 20);
    let before = alarms(&world);
    world.run(SECOND * 600);
    assert_eq!(alarms(&world), before, "false alarms");
    world.crash(42);
    let down = |world: &World| all_see(world, 42, Liveness::Down);
    let took = world.run_until("all see it down", SECOND * 6, down);
    println!("down at all after {took:?}");
}

#[test]
fn one_that_lies_changes_nothing_nor_do_two_and_three_not_for_long() {
    let mut world = settled(5, 150, 0);
    let victim = 9;
    let key = world.hosts[victim].key();
    let node = world.hosts[0].node.as_ref().unwrap();
    let may = |i: &usize| node.may_report(&world.hosts[*i].key(), &key);
    let watchers: Vec<_> = (1..150).filter(may).collect();
    let stranger = (1..150).find(|i| *i != victim && !watchers.contains(i)).unwrap();
    for number in (1..15).chain([MOST; 15]) {
        lie(&mut world, watchers[0], victim, number);
        lie(&mut world, watchers[1], victim, number);
        lie(&mut world, stranger, victim, number);
        world.run(SECOND);
        assert!(all_see(&world, victim, Liveness::Alive));
    }
    let refused = |world: &World| {
        let counters = world.nodes().map(|(_, node)| node.counters());
        counters.filter(|all| all.refusals.contains_key("report_not_watcher")).count()
    };
    assert!(refused(&world) >= 149, "{}", refused(&world));
    lie(&mut world, watchers[2], victim, MOST);
    assert!((0..150).any(|i| liveness(&world, i, victim) == Some(Liveness::Down)));
    let took = world.run_until("it said that it is there", SECOND * 2, all_alive);
    println!("three that lie are answered after {took:?}");
    // They go on, at each generation of it: for a minute nobody hears them.
    for second in 0..50 {
        (0..3).for_each(|liar| lie(&mut world, watchers[liar], victim, MOST));
        world.run(SECOND);
        assert!(all_see(&world, victim, Liveness::Alive), "after {second} s");
    }
    // When the victim does die others say so.
    world.crash(victim);
    let down = |world: &World| all_see(world, victim, Liveness::Down);
    let took = world.run_until("all see it down", SECOND * 5, down);
    println!("who was lied about dies: known after {took:?}");
}

#[test]
fn a_mesh_that_grows_and_shrinks_finds_its_crashes() {
    let mut world = settled(6, 3, 27);
    for host in 3..30 {
        world.start(host);
        world.run(SECOND);
        if [5, 9, 10, 14].contains(&host) {
            world.run(SECOND * 5);
            assert!(all_alive(&world));
            crash_and_back(&mut world, host / 2);
        }
    }
    world.run(SECOND * 5);
    crash_and_back(&mut world, 11);
    for left in [20, 10, 8, 3] {
        let goes = left..world.nodes().count();
        goes.clone().for_each(|host| world.leave(host));
        world.run(SECOND);
        goes.for_each(|host| world.crash(host));
        world.run(SECOND * 10);
        assert!(all_alive(&world));
        crash_and_back(&mut world, left / 2);
    }
}

#[test]
fn a_small_mesh_finds_a_crash_as_soon_and_one_link_takes_nobody_down() {
    for count in [2, 3, 5, 9, 10, 16] {
        let mut world = settled(9, count, 0);
        crash_and_back(&mut world, 1);
        if count == 2 {
            continue;
        }
        world.run(SECOND * 20);
        let before = alarms(&world);
        world.cut(0, 2);
        world.run(SECOND * 120);
        assert!(all_alive(&world));
        assert_eq!(alarms(&world), before, "{count}: a link of two took a member down");
    }
}

fn crash_and_back(world: &mut World, host: usize) {
    let before = alarms(world);
    world.crash(host);
    let took = world.run_until("all see it down", SECOND * 5, |w| all_see(w, host, Liveness::Down));
    world.start(host);
    let back = world.run_until("it is back", SECOND * 5, all_alive);
    println!("n{host}: down after {took:?}, back after {back:?}");
    let running = world.nodes().count();
    assert_eq!(alarms(world) - before, running - 1, "false alarms");
}
