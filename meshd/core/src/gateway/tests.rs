//! What a `via` comes to, whose tunnel is next, and who is named when.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;
use proptest::prelude::*;

use super::*;
use crate::node::fixture::{self, Origin};

/// Node `number` of `zone`, behind `via` (0: directly), carrying for others or not.
fn node(number: u8, zone: &str, via: u8, carries: bool) -> Record {
    let mut record = (*fixture::record(u64::from(number), "x", 1)).clone();
    record.zone = zone.parse().unwrap();
    record.via = (via != 0).then(|| key(via));
    record.capabilities = if carries { vec![CAPABILITY.to_owned()] } else { Vec::new() };
    let lane = crate::trust::LaneInfo {
        public_key: meshd_proto::WgPublicKey([number; 32]),
        listen_port: 51820,
        index: 0,
    };
    record.lanes = vec![lane];
    record
}

fn key(number: u8) -> NodeKey {
    fixture::record(u64::from(number), "x", 1).key
}

type Mesh = BTreeMap<NodeKey, Record>;

fn mesh(nodes: impl IntoIterator<Item = Record>) -> Mesh {
    nodes.into_iter().map(|record| (record.key, record)).collect()
}

fn hop(mesh: &Mesh, from: u8, to: u8) -> u8 {
    let found = next_hop(&mesh[&key(from)], &mesh[&key(to)], |key| mesh.get(key));
    (1..=u8::MAX).find(|number| key(*number) == found).unwrap()
}

/// Two zones with hidden hosts 3 and 4 behind 1 and 2, 7 behind 6, and 5 outside.
fn two_zones() -> Mesh {
    mesh([
        node(1, "private", 0, true),
        node(2, "private", 0, true),
        node(3, "private", 1, false),
        node(4, "private", 2, false),
        node(5, "", 0, false),
        node(6, "cellar", 0, true),
        node(7, "cellar", 6, false),
    ])
}

#[test]
fn each_pair_has_the_next_hop_of_the_table() {
    let mesh = two_zones();
    for (from, to, expected) in [
        (5, 3, 1),
        (5, 4, 2),
        (5, 1, 1),
        (5, 7, 6),
        (3, 5, 1),
        (3, 7, 1),
        (3, 6, 1),
        (3, 4, 4),
        (3, 2, 2),
        (3, 1, 1),
        (1, 3, 3),
        (1, 4, 4),
        (1, 7, 6),
        (2, 3, 3),
        (6, 3, 1),
        (6, 7, 7),
        (7, 4, 6),
    ] {
        assert_eq!(hop(&mesh, from, to), expected, "from {from} to {to}");
    }
}

#[test]
fn a_via_that_nobody_consented_to_counts_for_nothing() {
    let cases = [
        (node(3, "private", 3, false), Odd::Itself),
        (node(3, "private", 99, false), Odd::Unknown),
        (node(3, "private", 6, false), Odd::OtherZone),
        (node(3, "", 1, false), Odd::OtherZone),
        (node(3, "private", 8, false), Odd::NoConsent),
        (node(3, "private", 9, false), Odd::Behind),
        (node(3, "private", 10, false), Odd::NoWireguard),
        (node(3, "private", 11, false), Odd::Unknown),
    ];
    for (host, odd) in cases {
        let mut mesh = two_zones();
        let left = Record { left: true, ..node(11, "private", 0, true) };
        let bare = Record { lanes: Vec::new(), ..node(10, "private", 0, true) };
        let others =
            [node(8, "private", 0, false), node(9, "private", 1, true), bare, left, host.clone()];
        mesh.extend(self::mesh(others));
        assert_eq!(carrier(&host, |key| mesh.get(key)), Err(odd));
        assert_eq!(hop(&mesh, 5, 3), 3, "{odd}: it is dealt with as reachable directly");
        assert!(odd.explain("h", "g").contains("; "), "what to do is said");
    }
}

#[test]
fn two_that_name_each_other_carry_for_nobody() {
    let mut mesh = two_zones();
    mesh.extend(self::mesh([node(1, "private", 2, true), node(2, "private", 1, true)]));
    for number in [1, 2, 3, 4] {
        assert_eq!(hop(&mesh, 5, number), number);
        assert_eq!(hop(&mesh, number, 5), 5);
    }
}

fn any_node(number: u8) -> impl Strategy<Value = Record> {
    let zone = prop_oneof![Just(""), Just("a"), Just("b"), Just("c")];
    (zone, prop_oneof![2 => Just(0), 3 => 1..9_u8], any::<bool>())
        .prop_map(move |(zone, via, carries)| node(number, zone, via, carries))
}

fn any_mesh() -> impl Strategy<Value = Mesh> {
    (1..9_u8).map(any_node).collect::<Vec<_>>().prop_map(mesh)
}

proptest! {
    /// Whoever forwards, a packet arrives, in three hops at most; the way back has the same hosts.
    #[test]
    fn every_way_ends_at_its_target(mesh in any_mesh()) {
        for from in 1..9 {
            for to in (1..9).filter(|to| *to != from) {
                let way = |from: u8, to: u8| {
                    let mut way = vec![from];
                    while *way.last().unwrap() != to && way.len() < 10 {
                        way.push(hop(&mesh, *way.last().unwrap(), to));
                    }
                    way
                };
                let (there, mut back) = (way(from, to), way(to, from));
                back.reverse();
                prop_assert!(there.len() <= 4, "{there:?}");
                prop_assert_eq!(there, back);
            }
        }
    }

    /// What one host knows of a zone may be older than what another does: still nothing goes round, as long as nobody who
    /// carries by what one knows is carried by what the other does. Where two have just changed places, a packet goes to and
    /// fro until both have heard of it.
    #[test]
    fn different_views_make_no_loop(a in any_mesh(), b in any_mesh(), zones in any_mesh()) {
        let carriers =
            |of: &Mesh| of.values().filter_map(|record| record.via).collect::<BTreeSet<_>>();
        // Zones and consent are the same, the gateways that are named are not.
        let view = |of: &Mesh, direct: &BTreeSet<NodeKey>| -> Mesh {
            let of = of.values().map(|record| {
                let via = record.via.filter(|_| !direct.contains(&record.key));
                Record { via, ..zones[&record.key].clone() }
            });
            mesh(of)
        };
        let b = view(&b, &carriers(&a));
        let views = [view(&a, &carriers(&b)), b];
        for pattern in 0..256_u32 {
            let (mut at, mut hops) = (1, 0);
            while at != 8 && hops < 8 {
                at = hop(&views[usize::from(pattern >> hops & 1 == 1)], at, 8);
                hops += 1;
            }
            prop_assert_eq!(at, 8, "with views {:b}", pattern);
        }
    }
}

fn start() -> Instant {
    Origin::default().now().mono
}

fn candidates(states: &[(u8, Fitness)]) -> Vec<Candidate> {
    states
        .iter()
        .map(|(number, fitness)| Candidate { key: key(*number), fitness: *fitness })
        .collect()
}

const UP: Fitness = Fitness::Up;
const DOWN: Fitness = Fitness::Down;
const UNFIT: Fitness = Fitness::Unfit;

#[test]
fn the_preferred_one_is_left_at_once_and_returned_to_late() {
    let (mut choice, start) = (Choice::default(), start());
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut step = |seconds, states: &[(u8, Fitness)]| {
        choice.decide(&candidates(states), at(seconds));
        choice.current()
    };
    assert_eq!(step(0, &[(1, UNFIT), (2, UNFIT)]), None);
    assert_eq!(step(1, &[(1, UP), (2, UP)]), Some(key(1)));
    assert_eq!(step(2, &[(1, DOWN), (2, UP)]), Some(key(2)));
    assert_eq!(step(10, &[(1, UP), (2, UP)]), Some(key(2)));
    assert_eq!(step(69, &[(1, UP), (2, UP)]), Some(key(2)));
    assert_eq!(step(69, &[(1, DOWN), (2, UP)]), Some(key(2)), "it was away for a moment");
    assert_eq!(step(70, &[(1, UP), (2, UP)]), Some(key(2)));
    assert_eq!(step(129, &[(1, UP), (2, UP)]), Some(key(2)));
    assert_eq!(step(130, &[(1, UP), (2, UP)]), Some(key(1)));
    assert_eq!(step(131, &[(1, DOWN), (2, DOWN)]), Some(key(1)), "nobody is better");
    assert_eq!(step(132, &[(1, DOWN), (2, UP)]), Some(key(2)));
    assert_eq!(step(133, &[(1, UP), (2, UNFIT)]), Some(key(1)), "it may not carry any more");
    assert_eq!(step(134, &[]), None);
}

#[test]
fn a_restart_keeps_what_was_named() {
    let mut choice = Choice::new(Some(key(2)));
    assert!(!choice.decide(&candidates(&[(1, UP), (2, UP)]), start()));
    assert_eq!(choice.current(), Some(key(2)));
}

#[test]
fn a_gateway_that_leads_nowhere_is_tried_less_and_less_often() {
    let (mut choice, start) = (Choice::default(), start());
    let both = candidates(&[(1, UP), (2, UP)]);
    let mut changes = 0;
    // Nobody outside answers for an hour, by whichever of them.
    for second in 0..3_600 {
        let now = start + Duration::from_secs(second);
        changes += usize::from(choice.decide(&both, now));
        if second % 10 == 9 {
            choice.led_nowhere(now);
        }
    }
    assert!((3..25).contains(&changes), "{changes} changes in an hour");
    let end = start + Duration::from_secs(3_600);
    assert_eq!(choice.resting(end).collect::<BTreeSet<_>>(), [key(1), key(2)].into());
    assert_eq!(choice.resting(end + Duration::from_secs(601)).count(), 0);
}

fn seen(outside: &[u8]) -> Seen {
    let outside: BTreeSet<NodeKey> = outside.iter().map(|number| key(*number)).collect();
    Seen { gateway: Some(key(1)), outside, ..Seen::default() }
}

/// Looks each second until a verdict other than that it carries; whoever is in `answers` answers. Gives the seconds and
/// how many were asked.
fn watched(seen: &Seen, answers: &[u8], seconds: u64) -> (Option<(Verdict, u64)>, usize) {
    let (mut watch, start, mut asked) = (Watch::default(), start(), 0);
    watch.look(seen, start);
    watch.heard(&key(5), true, start);
    for second in 1..=seconds {
        let now = start + Duration::from_secs(second);
        let ask = watch.look(seen, now);
        asked += ask.len();
        for number in answers.iter().filter(|number| ask.contains(&key(**number))) {
            watch.heard(&key(*number), *number != 1, now + Duration::from_millis(30));
        }
        if let Some(verdict) = watch.verdict().filter(|verdict| *verdict != Verdict::Carries) {
            return (Some((verdict, second)), asked);
        }
    }
    (None, asked)
}

#[test]
fn a_gateway_that_is_silent_and_one_that_leads_nowhere_are_told_apart() {
    let (verdict, _) = watched(&seen(&[5, 6, 7, 8]), &[], 60);
    assert!(matches!(verdict, Some((Verdict::Silent, 5..=10))), "{verdict:?}");
    let (verdict, _) = watched(&seen(&[5, 6, 7, 8]), &[1], 60);
    assert!(matches!(verdict, Some((Verdict::LeadsNowhere, 5..=10))), "{verdict:?}");
}

#[test]
fn one_answer_from_outside_is_enough_and_a_quiet_mesh_stays_quiet() {
    let (verdict, asked) = watched(&seen(&[5, 6, 7, 8]), &[1, 5, 6, 7, 8], 600);
    assert_eq!(verdict, None);
    assert!(asked <= 120, "{asked} packets in ten minutes");
    let (verdict, _) = watched(&seen(&[5, 6, 7, 8]), &[1, 7], 600);
    assert_eq!(verdict, None, "three of four are silent, one is not");
    let (verdict, asked) = watched(&seen(&[]), &[], 600);
    assert_eq!((verdict, asked), (None, 0), "there is nobody to carry to");
}

/// Nobody outside was ever heard; whoever is in `answers` does when asked.
fn never_heard(seen: &Seen, answers: &[u8], seconds: u64) -> (Option<(Verdict, u64)>, usize) {
    let (mut watch, start, mut asked) = (Watch::default(), start(), 0);
    for second in 0..seconds {
        let now = start + Duration::from_secs(second);
        let ask = watch.look(seen, now);
        asked += ask.len();
        for number in answers.iter().filter(|number| ask.contains(&key(**number))) {
            watch.heard(&key(*number), *number != 1, now + Duration::from_millis(30));
        }
        if let Some(verdict) = watch.verdict().filter(|verdict| *verdict != Verdict::Carries) {
            return (Some((verdict, second)), asked);
        }
    }
    (None, asked)
}

#[test]
fn a_gateway_that_never_let_anybody_be_heard_is_in_doubt_after_a_while() {
    let unheard = [5, 6, 7, 8].map(key).into();
    let seen = Seen { unheard, ..seen(&[]) };
    let (verdict, _) = never_heard(&seen, &[1], 60);
    assert!(matches!(verdict, Some((Verdict::LeadsNowhere, 10..=16))), "{verdict:?}");
    let (verdict, _) = never_heard(&seen, &[], 60);
    assert!(matches!(verdict, Some((Verdict::Silent, 10..=16))), "{verdict:?}");
    // Also where something is sent and not answered all the time; not before its time is over.
    let suspect = Seen { suspect: true, ..seen.clone() };
    let (verdict, _) = never_heard(&suspect, &[1], 60);
    assert!(matches!(verdict, Some((Verdict::LeadsNowhere, 10..=16))), "{verdict:?}");
    let (verdict, asked) = never_heard(&seen, &[1, 8], 600);
    assert_eq!(verdict, None, "one that was asked answers");
    assert!(asked <= 20, "{asked} packets");
    // Who comes later has as long.
    let (mut watch, start) = (Watch::default(), start());
    for second in 0..100 {
        let now = start + Duration::from_secs(second);
        let nobody = Seen { unheard: BTreeSet::new(), ..seen.clone() };
        let ask = watch.look(if second < 90 { &nobody } else { &seen }, now);
        assert!(ask.is_empty(), "after {second} s");
    }
}

#[test]
fn witnesses_that_are_taken_for_gone_during_a_doubt_were_witnesses() {
    let (mut watch, start) = (Watch::default(), start());
    let there = seen(&[5]);
    let gone = Seen { unheard: [key(5)].into(), ..seen(&[]) };
    watch.look(&there, start);
    watch.heard(&key(5), true, start);
    for second in 1..20 {
        let now = start + Duration::from_secs(second);
        if watch.look(if second < 7 { &there } else { &gone }, now).contains(&key(1)) {
            watch.heard(&key(1), false, now);
        }
        if watch.verdict() == Some(Verdict::LeadsNowhere) {
            return;
        }
    }
    panic!("{:?}", watch.verdict());
}

#[test]
fn what_is_sent_without_an_answer_is_asked_about_at_once() {
    let (mut watch, start) = (Watch::default(), start());
    let mut seen = seen(&[5, 6]);
    let mut verdict_at = None;
    watch.look(&seen, start);
    for second in 0..20 {
        let now = start + Duration::from_secs(second);
        if second < 3 {
            watch.heard(&key(5), true, now);
            seen.bytes.0 += 1_000;
        }
        seen.bytes.1 += 1_000;
        watch.look(&seen, now);
        if watch.verdict() == Some(Verdict::Silent) {
            verdict_at.get_or_insert(second);
        }
    }
    // The last answer came at second 2.
    assert!(verdict_at.is_some_and(|second| second <= 9), "{verdict_at:?}");
}

#[test]
fn another_gateway_begins_without_the_faults_of_the_one_before() {
    let (mut watch, start) = (Watch::default(), start());
    let suspect = Seen { suspect: true, ..seen(&[5]) };
    for second in 0..6 {
        watch.look(&suspect, start + Duration::from_secs(second));
    }
    assert_eq!(watch.verdict(), Some(Verdict::Silent));
    let other = Seen { gateway: Some(key(2)), ..seen(&[5]) };
    watch.look(&other, start + Duration::from_secs(6));
    assert_eq!(watch.verdict(), None);
}
