//! What each state does when something happens.

use std::time::Duration;

use meshd_proto::NodeKey;

use super::{
    super::{Cause, PathMtu, Small, State},
    world::{Link, PEER, World},
};

#[test]
fn a_path_that_carries_all_takes_two_probes() {
    for (largest, v6) in [(1_440, false), (1_420, true), (8_940, false), (8_921, true)] {
        let mut world = World::one(Link { largest, v6, ..Link::v4(largest) });
        world.until(2, |world| !world.probes.is_empty());
        let took = world.until(5, World::is_settled);
        assert_eq!(world.mtu(), largest);
        assert!(took < 0.2, "{took}");
        world.run(Duration::from_secs(3_600));
        let sizes = world.probes.len();
        assert!(sizes <= 6, "an idle tunnel is left alone: {sizes} probes");
        let causes: Vec<_> =
            world.news.iter().map(|news| (news.from, news.to, news.cause)).collect();
        assert_eq!(causes, [(None, largest, Cause::Measured)]);
    }
}

#[test]
fn a_smaller_path_is_measured_to_the_byte_within_seconds() {
    for (carries, largest) in [
        (1_340, 1_440),
        (1_340, 1_420),
        (1_432, 1_440),
        (1_439, 1_440),
        (1_440, 8_940),
        (8_436, 8_940),
        (1_299, 1_440),
    ] {
        let mut world = World::one(Link { largest, ..Link::v4(carries) });
        let took = world.until(20, World::is_settled);
        println!("{carries} of {largest}: {took:.1} s, {} probes", world.probes.len());
        assert_eq!(world.mtu(), carries);
        assert_eq!(world.known().mtu.small, None);
    }
}

#[test]
fn where_padding_does_not_follow_the_route_sixteen_bytes_are_told_apart() {
    let mut world = World::one(Link { pad_follows: false, ..Link::v4(1_340) });
    world.until(20, World::is_settled);
    assert_eq!(world.mtu(), 1_328);
}

#[test]
fn below_the_base_ipv4_takes_fragments_and_ipv6_is_refused() {
    let mut world = World::one(Link::v4(1_240));
    world.until(20, World::is_settled);
    assert_eq!(world.known().mtu, PathMtu { mtu: 1_232, small: Some(Small::Fragmented) });
    let mut world = World::one(Link { v6: true, largest: 1_420, ..Link::v4(1_220) });
    world.until(20, World::is_settled);
    assert_eq!(world.known().mtu, PathMtu { mtu: 1_216, small: Some(Small::NoIpv6) });
}

#[test]
fn a_path_that_shrinks_in_use_is_noticed_within_ten_seconds() {
    for offset in 0..12 {
        let mut world = World::one(Link { traffic: 100_000, ..Link::v4(1_440) });
        world.run(Duration::from_millis(30_000 + offset * 700));
        assert_eq!(world.mtu(), 1_440);
        world.link().carries = 1_340;
        let noticed = world.until(12, |world| world.mtu() < 1_340);
        assert!(noticed <= 10.0, "{noticed}");
        world.until(12, |world| world.is_settled() && world.mtu() == 1_340);
        world.link().carries = 1_440;
        let grew = world.until(80, |world| world.is_settled() && world.mtu() == 1_440);
        println!("noticed after {noticed:.1} s, grew after {grew:.1} s");
        let causes: Vec<_> = world.news.iter().map(|news| news.cause).collect();
        assert_eq!(causes, [Cause::Measured, Cause::Shrank, Cause::Grew, Cause::Grew]);
    }
}

#[test]
fn a_path_that_grows_is_used_within_the_raise_time() {
    let mut world = World::one(Link { traffic: 100_000, ..Link::v4(1_340) });
    world.until(20, World::is_settled);
    world.link().carries = 1_440;
    let took = world.until(800, |world| world.is_settled() && world.mtu() == 1_440);
    assert!((400.0..=740.0).contains(&took), "{took}");
}

#[test]
fn a_peer_whose_daemon_is_down_keeps_its_size() {
    let mut world = World::one(Link { traffic: 100_000, ..Link::v4(1_440) });
    world.until(20, World::is_settled);
    world.link().answers = false;
    let before = world.probes.len();
    world.run(Duration::from_secs(600));
    assert_eq!((world.mtu(), world.known().state), (1_440, State::Complete));
    let sent = world.probes.len() - before;
    assert!(sent < 120, "{sent} probes to somebody who does not answer");
    world.link().carries = 1_340;
    world.link().answers = true;
    world.until(90, |world| world.is_settled() && world.mtu() == 1_340);
}

#[test]
fn a_peer_that_never_answers_gets_the_base_in_fragments_if_need_be() {
    let mut world = World::one(Link { answers: false, traffic: 10_000, ..Link::v4(1_340) });
    world.until(40, |world| {
        world.mtus.known(&PEER).is_some_and(|known| known.state == State::Silent)
    });
    assert_eq!(world.known().mtu, PathMtu { mtu: 1_280, small: Some(Small::Fragmented) });
    world.link().answers = true;
    world.until(100, World::is_settled);
    assert_eq!(world.known().mtu, PathMtu { mtu: 1_340, small: None });
}

#[test]
fn a_peer_whose_daemon_comes_back_is_measured_though_nobody_sends() {
    let mut world = World::one(Link { answers: false, ..Link::v4(1_440) });
    world.until(120, |world| {
        world.mtus.known(&PEER).is_some_and(|known| known.state == State::Silent)
    });
    world.run(Duration::from_secs(600));
    world.link().answers = true;
    world.until(30, World::is_settled);
    assert_eq!(world.mtu(), 1_440);
}

#[test]
fn the_base_of_a_route_is_no_measurement() {
    let mut world = World::one(Link::v4(1_440));
    world.held = Some(1_280);
    world.until(30, |world| world.is_settled() && world.mtu() == 1_440);
}

#[test]
fn a_small_path_that_grows_leaves_fragments_behind() {
    let mut world = World::one(Link { traffic: 10_000, ..Link::v4(1_240) });
    world.until(20, World::is_settled);
    world.link().carries = 1_440;
    world.until(800, |world| world.is_settled() && world.mtu() == 1_440);
    assert_eq!(world.known().mtu.small, None);
}

#[test]
fn a_tunnel_that_moved_is_measured_at_once() {
    for carries in [1_340, 1_440] {
        let mut world = World::one(Link::v4(1_400));
        world.until(20, World::is_settled);
        *world.link() = Link { port: 7, ..Link::v4(carries) };
        let took = world.until(25, |world| world.is_settled() && world.mtu() == carries);
        println!("{took:.1} s, 10 of them until it is seen");
    }
}

#[test]
fn a_restart_keeps_what_the_route_has() {
    let mut world = World::one(Link { traffic: 100_000, ..Link::v4(1_440) });
    world.held = Some(1_392);
    world.run(Duration::from_millis(50));
    assert_eq!(world.mtu(), 1_392);
    world.until(30, |world| world.mtu() == 1_440);
    assert_eq!(world.news.iter().map(|news| news.from).collect::<Vec<_>>(), [Some(1_392)]);
}

#[test]
fn a_thousand_paths_are_not_probed_at_once() {
    let key = |number: u16| {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        NodeKey(key)
    };
    for (used, done, seconds) in [(0, 1_000, 55), (300, 300, 25)] {
        let traffic = |number| if number < used { 100_000 } else { 0 };
        let link = |number| Link { traffic: traffic(number), ..Link::v4(1_440) };
        let mut world = World::new((0..1_000).map(|number| (key(number), link(number))), 3);
        world.run(Duration::from_secs(seconds));
        let state = |number: u16| world.mtus.known(&key(number)).unwrap().state;
        let complete = (0..done).filter(|n| state(*n) == State::Complete).count();
        assert_eq!(complete, usize::from(done));
        let mut busiest = 0;
        for window in world.probes.windows(250) {
            if window[249].0 - window[0].0 < Duration::from_secs(1) {
                busiest += 1;
            }
        }
        assert_eq!(busiest, 0, "more than 250 probes a second");
        assert!(used > 0 || world.probes.len() == 2_000, "{} probes", world.probes.len());
    }
}

#[test]
fn an_answer_counts_only_from_whom_it_was_asked() {
    let mut world = World::one(Link { answers: false, ..Link::v4(1_440) });
    world.until(2, |world| !world.probes.is_empty());
    let (_, probe) = world.probes[0];
    let now = world.now;
    world.mtus.handle_answer(&NodeKey([9; 32]), probe.id, now);
    world.mtus.handle_answer(&PEER, probe.id + 1, now);
    assert_eq!(world.known().state, State::Base);
    world.mtus.handle_answer(&PEER, probe.id, now);
    assert_eq!(world.known().state, State::Search);
}

#[test]
fn tunnels_that_nobody_uses_take_turns() {
    let links = (0..40).map(|n| (NodeKey([n; 32]), Link::v4(1_440)));
    let mut world = World::new(links, 3);
    let start = world.now;
    let settled = |world: &World| {
        let known = |key| world.mtus.known(key).is_some_and(|known| known.state == State::Complete);
        world.links.keys().filter(|key| known(key)).count()
    };
    world.run(Duration::from_millis(300));
    assert_eq!(world.probes, []);
    // One that is used does not wait, once that is seen.
    let used = *world.links.keys().last().unwrap();
    world.links.get_mut(&used).unwrap().traffic = 1_000_000;
    world.run(Duration::from_millis(700));
    let known = world.mtus.known(&used).unwrap();
    assert_eq!(known.state, State::Complete, "{known:?}");
    let done = settled(&world);
    assert!(done < 12, "{done}");
    world.until(20, |world| settled(world) == 40);
    let took = world.now - start;
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(5), "{took:?}");
}
