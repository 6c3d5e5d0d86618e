//! What watchers say of others, and what those say who are none.

use super::*;
use crate::{refusal::Code, trust::Report};

/// Enough for neighbours only to be watched.
const CROWD: usize = 80;

fn name(i: usize) -> String {
    format!("n{i}")
}

fn record(mesh: &TestMesh, i: usize, version: u64, generation: u64) -> wire::SignedRecord {
    let identity = mesh.node(&name(i), &["10.0.0.0/8@24"]);
    let draft = mesh.draft(&identity, &[]);
    identity.sign_record(&draft, version, BootId([7; 16]), generation, NOW)
}

/// A node that knows `count` others, all of whom have signed a moment ago.
fn crowd(mesh: &TestMesh, count: usize, now: Now) -> Node {
    let mut us = node(mesh, "us", &[], now);
    let identity = mesh.node("us", &[]);
    us.update_self(mesh.draft(&identity, &[]), now);
    let records: Vec<_> = (0..count).map(|i| record(mesh, i, 1, 1)).collect();
    us.handle_frame(peer("n0"), &push(records), now);
    assert_eq!(us.directory().len(), count + 1);
    outputs(&mut us);
    us
}

fn report(
    mesh: &TestMesh,
    watched: NodeKey,
    watcher: &str,
    change: impl Fn(&mut Report),
) -> Vec<u8> {
    let identity = mesh.node(watcher, &[]);
    let mut report = Report {
        watched,
        generation: 1,
        down: true,
        watcher: identity.public(),
        watcher_generation: 1,
        number: 1,
    };
    change(&mut report);
    pushed(vec![report.sign(&identity)])
}

fn pushed(reports: Vec<wire::SignedReport>) -> Vec<u8> {
    frame(Body::Push(wire::Push { reports, ..Default::default() }))
}

/// Members that this node does not watch.
fn strangers(us: &Node) -> Vec<NodeKey> {
    let near: Vec<_> = us.membership.neighbours().collect();
    let strange = |key: &NodeKey| !near.contains(key) && !us.may_report(&us.key(), key);
    // The first few bring frames, and are heard by that.
    (3..CROWD).map(|i| peer(&name(i))).filter(strange).collect()
}

fn watchers(us: &Node, of: &NodeKey) -> Vec<String> {
    (0..CROWD).map(name).filter(|name| us.may_report(&peer(name), of)).collect()
}

/// One of them, and others that do watch it.
fn victim(us: &Node) -> (NodeKey, Vec<String>) {
    let key = strangers(us)[0];
    (key, watchers(us, &key))
}

fn down(us: &Node, key: &NodeKey) -> bool {
    us.liveness(key).unwrap().0 == Liveness::Down
}

fn refused(us: &Node, code: Code) -> u64 {
    us.counters().refusals.get(code.as_str()).copied().unwrap_or(0)
}

#[test]
fn three_watchers_are_believed_two_are_not_and_the_next_generation_ends_it() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    for (count, watcher) in watchers.iter().take(3).enumerate() {
        assert!(!down(&us, &victim), "{count} reports");
        // From whom it comes does not matter, nor how often.
        for via in ["n1", "n2"] {
            us.handle_frame(peer(via), &report(&mesh, victim, watcher, |_| {}), now);
        }
    }
    assert!(down(&us, &victim));
    let i = (0..CROWD).find(|i| peer(&name(*i)) == victim).unwrap();
    us.handle_frame(peer("n1"), &push(vec![record(&mesh, i, 2, 2)]), now);
    assert!(!down(&us, &victim));
    // What was said of the generation before is no news.
    us.handle_frame(peer("n1"), &report(&mesh, victim, &watchers[3], |_| {}), now);
    assert_eq!(refused(&us, Code::ReportOutdated), 1);
    assert!(!down(&us, &victim) && us.reports.is_empty());
}

#[test]
fn who_hears_the_member_again_takes_its_report_back() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    for watcher in &watchers[..3] {
        us.handle_frame(peer("n1"), &report(&mesh, victim, watcher, |_| {}), now);
    }
    let back = |report: &mut Report| (report.down, report.number) = (false, 2);
    us.handle_frame(peer("n1"), &report(&mesh, victim, &watchers[0], back), now);
    assert!(!down(&us, &victim));
    // An old one is not told again.
    us.handle_frame(peer("n1"), &report(&mesh, victim, &watchers[0], |_| {}), now);
    assert!(!down(&us, &victim));
    let again = |report: &mut Report| report.number = 3;
    us.handle_frame(peer("n1"), &report(&mesh, victim, &watchers[0], again), now);
    assert!(down(&us, &victim));
    // It is there, as this node hears itself.
    us.handle_connected(victim, addr(9), false, now);
    assert!(!down(&us, &victim));
}

#[test]
fn what_nobody_may_say_is_refused_with_its_reason() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    let stranger = (0..CROWD).map(name).find(|n| !watchers.contains(n) && peer(n) != victim);
    let (watcher, stranger) = (&watchers[0], &stranger.unwrap());
    let mut forged = Report {
        watched: victim,
        generation: 1,
        down: true,
        watcher: peer(watcher),
        watcher_generation: 1,
        number: 1,
    };
    let by_another = forged.sign(&mesh.node(stranger, &[]));
    forged.watched = peer(watcher);
    let of_itself = forged.sign(&mesh.node(watcher, &[]));
    let other_mesh = TestMesh::new(2);
    let cases = [
        (Code::ReportNotWatcher, report(&mesh, victim, stranger, |_| {})),
        (Code::ReportOutdated, report(&mesh, victim, watcher, |r| r.generation = 2)),
        (Code::ReportOutdated, report(&mesh, victim, watcher, |r| r.watcher_generation = 0)),
        (Code::SwimUnknownMember, report(&mesh, peer("nobody"), watcher, |_| {})),
        (Code::SwimUnknownMember, report(&mesh, victim, "nobody", |_| {})),
        (Code::BadSignature, report(&other_mesh, victim, watcher, |_| {})),
        (Code::BadSignature, pushed(vec![by_another])),
        (Code::Malformed, pushed(vec![of_itself])),
        (Code::Malformed, pushed(vec![wire::SignedReport::default()])),
    ];
    for (code, frame) in cases {
        let before = refused(&us, code);
        us.handle_frame(peer("n1"), &frame, now);
        assert_eq!(refused(&us, code), before + 1, "{code:?}");
    }
    assert!(us.reports.is_empty());
}

#[test]
fn one_watcher_cannot_keep_all_others_busy() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    for number in 1..=400 {
        let turn = |report: &mut Report| {
            (report.number, report.down) = (number, number % 2 == 0);
        };
        us.handle_frame(peer("n1"), &report(&mesh, victim, &watchers[0], turn), now);
    }
    assert!(refused(&us, Code::RateLimited) >= 250);
    assert_eq!(us.reports.signed(&victim).count(), 1);
}

#[test]
fn liars_who_were_answered_have_no_voice_for_a_minute_and_others_have() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    let lie = |us: &mut Node, liars: &[String], generation, now| {
        for watcher in liars {
            let about = |report: &mut Report| report.generation = generation;
            us.handle_frame(peer("n1"), &report(&mesh, victim, watcher, about), now);
        }
    };
    let i = (0..CROWD).find(|i| peer(&name(*i)) == victim).unwrap();
    lie(&mut us, &watchers[..3], 1, now);
    assert!(down(&us, &victim));
    let soon = now.after(Duration::from_secs(9));
    us.handle_frame(peer("n1"), &push(vec![record(&mesh, i, 2, 2)]), soon);
    lie(&mut us, &watchers[..3], 2, soon);
    assert!(!down(&us, &victim) && us.reports.signed(&victim).count() == 3);
    let mut honest = crowd(&mesh, CROWD, soon);
    honest.handle_frame(peer("n1"), &push(vec![record(&mesh, i, 2, 2)]), soon);
    lie(&mut honest, &watchers[1..4], 2, soon);
    assert!(down(&honest, &victim), "who did not hear it answered knows nothing against them");
    // What the liars say now is not worth less than before when the minute is over, nor is it forgotten.
    let over = soon.after(Duration::from_secs(61));
    us.handle_timeout(over);
    assert!(down(&us, &victim));
    us.handle_frame(peer("n1"), &push(vec![record(&mesh, i, 3, 3)]), over);
    assert!(!down(&us, &victim));
    lie(&mut us, &watchers[2..6], 3, over);
    assert!(down(&us, &victim), "three others say so");
}

#[test]
fn who_was_down_for_long_and_is_back_leaves_its_watchers_their_voice() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    let i = (0..CROWD).find(|i| peer(&name(*i)) == victim).unwrap();
    for (generation, now) in [(1, now), (2, now.after(Duration::from_secs(30)))] {
        if generation == 2 {
            us.handle_frame(peer("n1"), &push(vec![record(&mesh, i, 2, 2)]), now);
            assert!(!down(&us, &victim));
        }
        for watcher in &watchers[..3] {
            let about = |report: &mut Report| report.generation = generation;
            us.handle_frame(peer("n1"), &report(&mesh, victim, watcher, about), now);
        }
        assert!(down(&us, &victim), "generation {generation}");
    }
}

#[test]
fn a_flood_leaves_no_more_than_one_report_of_each_who_may_make_one() {
    let mesh = TestMesh::new(1);
    let mut now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let (victim, watchers) = victim(&us);
    // Members that nobody knows, and all that are known, each with many numbers; a second's work of the sender at a time.
    for i in 0..200 {
        us.handle_frame(peer("n1"), &report(&mesh, victim, &format!("invented-{i}"), |_| {}), now);
    }
    let (unknown, limited) =
        (refused(&us, Code::SwimUnknownMember), refused(&us, Code::RateLimited));
    assert_eq!(unknown + limited, 200);
    assert!(us.reports.is_empty());
    for number in 1..4 {
        for watcher in (0..CROWD).map(name).filter(|name| peer(name) != victim) {
            now = now.after(Duration::from_millis(200));
            let turn = |report: &mut Report| report.number = number;
            us.handle_frame(peer("n1"), &report(&mesh, victim, &watcher, turn), now);
        }
    }
    assert_eq!(us.reports.signed(&victim).count(), watchers.len());
    assert!(watchers.len() <= 32, "{}", watchers.len());
    assert!(refused(&us, Code::ReportNotWatcher) > 0);
}

#[test]
fn in_a_small_mesh_nobody_is_believed() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, 8, now);
    let now = now.after(Duration::from_secs(1));
    us.handle_timeout(now);
    assert_eq!(us.neighbours().count(), 8);
    for watcher in (1..8).map(name) {
        us.handle_frame(peer("n1"), &report(&mesh, peer("n0"), &watcher, |_| {}), now);
    }
    assert!(!down(&us, &peer("n0")));
}

#[test]
fn who_is_held_for_down_signs_its_next_generation_but_not_for_a_few_liars() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = crowd(&mesh, CROWD, now);
    let own = us.key();
    let watchers: Vec<_> = (0..CROWD).map(name).filter(|n| us.may_report(&peer(n), &own)).collect();
    let generation = us.own_record().unwrap().generation;
    let accuse = |us: &mut Node, watchers: &[String], generation, now| {
        for watcher in watchers {
            let about = |report: &mut Report| report.generation = generation;
            us.handle_frame(peer("n1"), &report(&mesh, own, watcher, about), now);
        }
    };
    accuse(&mut us, &watchers[..2], generation, now);
    let later = now.after(Duration::from_secs(2));
    us.handle_timeout(later);
    assert_eq!(us.own_record().unwrap().generation, generation);
    accuse(&mut us, &watchers[2..3], generation, later);
    let later = later.after(Duration::from_secs(2));
    us.handle_timeout(later);
    let next = us.own_record().unwrap().generation;
    assert!(next > generation && us.reports.is_empty());
    // They go on, and nobody believes them; others who say the same are answered, now and then.
    accuse(&mut us, &watchers[..4], next, later);
    let soon = later.after(Duration::from_secs(2));
    us.handle_timeout(soon);
    accuse(&mut us, &watchers[4..6], next, soon);
    assert_eq!(us.own_record().unwrap().generation, next);
    us.handle_timeout(soon.after(Duration::from_secs(2)));
    assert_eq!(us.own_record().unwrap().generation, next);
    us.handle_timeout(later.after(Duration::from_secs(12)));
    assert!(us.own_record().unwrap().generation > next);
}

#[test]
fn who_hears_nobody_reports_those_whom_it_watches_and_nobody_else() {
    let mesh = TestMesh::new(1);
    let begin = start();
    let mut us = crowd(&mesh, CROWD, begin);
    let near: Vec<_> = us.membership.neighbours().collect();
    let mut now = begin;
    let mut said = Vec::new();
    while now.mono < begin.mono + Duration::from_secs(20) {
        let Some((at, _)) = us.poll_timeout() else { break };
        now = now.after(at.saturating_duration_since(now.mono));
        us.handle_timeout(now);
        for (_, body) in frames(&outputs(&mut us)) {
            if let Body::Push(push) = body {
                said.extend(push.reports);
            }
        }
    }
    let of = |signed: &wire::SignedReport| {
        let report = Report::read(&signed.payload).unwrap();
        report.verify(signed, &mesh.mesh_id).unwrap();
        assert!(report.down && report.watcher == us.key());
        report.watched
    };
    let said: std::collections::BTreeSet<_> = said.iter().map(of).collect();
    assert!(near.iter().all(|key| said.contains(key) && down(&us, key)));
    assert!(said.iter().all(|key| us.may_report(&us.key(), key)));
}

#[test]
fn two_that_hold_different_reports_compare_them() {
    let mesh = TestMesh::new(1);
    let now = start();
    let (mut us, mut other) = (crowd(&mesh, CROWD, now), crowd(&mesh, CROWD, now));
    let (first, second) = (strangers(&us)[0], strangers(&us)[1]);
    let (of_first, of_second) = (watchers(&us, &first), watchers(&us, &second));
    for watcher in &of_first[..3] {
        us.handle_frame(peer("n1"), &report(&mesh, first, watcher, |_| {}), now);
    }
    for watcher in &of_second[..3] {
        other.handle_frame(peer("n1"), &report(&mesh, second, watcher, |_| {}), now);
    }
    outputs(&mut us);
    outputs(&mut other);
    let key = peer("n1");
    us.open_exchange(key, now);
    // Whatever one of the two sends the other gets.
    for _ in 0..6 {
        for (_, body) in frames(&outputs(&mut us)) {
            other.handle_frame(key, &frame(body), now);
        }
        for (_, body) in frames(&outputs(&mut other)) {
            us.handle_frame(key, &frame(body), now);
        }
    }
    assert_eq!(us.reports.root(), other.reports.root());
    assert!([&us, &other].iter().all(|node| down(node, &first) && down(node, &second)));
    us.open_exchange(key, now);
    for (_, body) in frames(&outputs(&mut us)) {
        other.handle_frame(key, &frame(body), now);
    }
    let answers = frames(&outputs(&mut other));
    assert!(matches!(answers[..], [(_, Body::SyncDone(_))]), "{answers:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_order_of_reports_ends_the_same(
        said in prop::collection::vec((0..6_usize, 1..4_u64, any::<bool>()), 1..16),
        order in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mesh = TestMesh::new(1);
        let now = start();
        let (mut plain, mut shuffled) = (crowd(&mesh, CROWD, now), crowd(&mesh, CROWD, now));
        let (victim, watchers) = victim(&plain);
        let frames: Vec<_> = said
            .iter()
            .map(|(watcher, number, is_down)| {
                report(&mesh, victim, &watchers[*watcher], |report| {
                    (report.number, report.down) = (*number, *is_down);
                })
            })
            .collect();
        frames.iter().for_each(|frame| plain.handle_frame(peer("n1"), frame, now));
        for place in order {
            if let Some(frame) = frames.get(place) {
                shuffled.handle_frame(peer("n2"), frame, now);
            }
        }
        prop_assert_eq!(plain.reports.root(), shuffled.reports.root());
        prop_assert_eq!(down(&plain, &victim), down(&shuffled, &victim));
    }
}
