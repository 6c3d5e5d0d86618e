//! What must stay as it is whatever comes after, and what must go on whatever else is sent.

use super::*;
use crate::trust::LEAVE_VERSION;

fn left(mesh: &TestMesh, name: &str) -> wire::SignedRecord {
    let identity = mesh.node(name, &[]);
    mesh.sign(&identity, &RecordDraft { left: true, ..RecordDraft::default() }, 1)
}

fn entry_of(record: &wire::SignedRecord, of: &str, version: u64) -> wire::RecordKey {
    let digest: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&record.payload).into();
    wire::RecordKey {
        identity_key: peer(of).0.to_vec().into(),
        version,
        payload_hash: digest[..8].to_vec().into(),
    }
}

fn pulls(outputs: &[Output]) -> Vec<NodeKey> {
    frames(outputs)
        .into_iter()
        .filter_map(|(to, body)| matches!(body, Body::Pull(_)).then_some(to))
        .collect()
}

#[test]
fn nothing_comes_after_a_leave() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "a", 1), left(&mesh, "a")]), now);
    assert!(us.directory().get(&peer("a")).unwrap().left);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "a", 200)]), now);
    let held = us.directory().get(&peer("a")).unwrap();
    assert!(held.left && held.version == LEAVE_VERSION);
    assert_eq!(us.counters().refusals["old_version"], 1);
}

#[test]
fn who_hears_of_its_own_leave_is_silent() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut restored = node(&mesh, "us", &[], now);
    restored.restore(&left(&mesh, "us").encode_to_vec(), now).unwrap();
    let mut told = node(&mesh, "us", &[], now);
    told.update_self(RecordDraft::default(), now);
    told.handle_frame(peer("x"), &push(vec![left(&mesh, "us")]), now);
    for us in [&mut restored, &mut told] {
        assert!(us.has_left());
        let before = us.counters().published;
        us.update_self(RecordDraft { zone: "z".parse().unwrap(), ..RecordDraft::default() }, now);
        us.handle_timeout(now.after(Duration::from_secs(100_000)));
        assert_eq!(us.counters().published, before);
        assert_eq!(events(&outputs(us), "has_left"), 1);
    }
}

#[test]
fn an_answer_is_never_answered() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "a", 1)]), now);
    outputs(&mut us);
    let mut entries = wire::SyncEntries { exchange: 7, buckets: vec![1, 2], ..Default::default() };
    us.handle_frame(peer("x"), &frame(Body::SyncEntries(entries.clone())), now);
    let answers = frames(&outputs(&mut us));
    assert!(matches!(&answers[..], [(_, Body::SyncEntries(answer))] if answer.answer));
    entries.answer = true;
    us.handle_frame(peer("x"), &frame(Body::SyncEntries(entries)), now);
    assert!(frames(&outputs(&mut us)).is_empty());
}

#[test]
fn who_announces_what_it_never_sends_keeps_nobody_from_sending_it() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let real = signed(&mesh, "a", 1);
    let honest = frame(Body::Announce(wire::Announce { records: vec![entry_of(&real, "a", 1)] }));
    let bait =
        frame(Body::Announce(wire::Announce { records: vec![entry_of(&real, "a", 1 << 40)] }));
    us.handle_frame(peer("liar"), &bait, now);
    assert_eq!(pulls(&outputs(&mut us)), [peer("liar")]);
    us.handle_frame(peer("friend"), &honest, now);
    assert_eq!(pulls(&outputs(&mut us)), [], "the liar has a moment to answer");
    let now = now.after(Duration::from_millis(400));
    us.handle_frame(peer("friend"), &honest, now);
    assert_eq!(pulls(&outputs(&mut us)), [peer("friend")]);

    let invented = |i: u32| wire::RecordKey {
        identity_key: [&i.to_be_bytes()[..], &[0; 28]].concat().into(),
        version: 1,
        payload_hash: vec![1; 8].into(),
    };
    for first in (0..100_000).step_by(1_000) {
        let records = (first..first + 1_000).map(invented).collect();
        us.handle_frame(peer("liar"), &frame(Body::Announce(wire::Announce { records })), now);
    }
    outputs(&mut us);
    let other = signed(&mesh, "b", 1);
    let honest = frame(Body::Announce(wire::Announce { records: vec![entry_of(&other, "b", 1)] }));
    us.handle_frame(peer("friend"), &honest, now);
    assert_eq!(pulls(&outputs(&mut us)), [peer("friend")]);
}

#[test]
fn a_record_does_not_hold_on_to_the_frame_that_it_came_in() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "a", 1)]), now);
    let held = &us.directory().get(&peer("a")).unwrap().signed;
    for bytes in [&held.payload, &held.signature, &held.certificate] {
        assert!(bytes.is_unique());
    }
}

#[test]
fn a_member_that_changes_all_the_time_is_heard_once_a_second() {
    let mesh = TestMesh::new(1);
    let mut now = start();
    let mut us = node(&mesh, "us", &[], now);
    for version in 1..=200 {
        us.handle_frame(peer("x"), &push(vec![signed(&mesh, "a", version)]), now);
        now = now.after(Duration::from_millis(50));
    }
    let accepted = us.counters().records_accepted;
    assert!((15..=25).contains(&accepted), "{accepted} in ten seconds");
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "b", 1)]), now);
    assert!(us.directory().get(&peer("b")).is_some(), "the relay is not to blame");
    us.handle_frame(peer("x"), &push(vec![left(&mesh, "a")]), now);
    assert!(us.directory().get(&peer("a")).unwrap().left, "a leave is always heard");
}

#[test]
fn a_clock_that_was_wrong_is_not_held_against_a_record() {
    let mesh = TestMesh::new(1);
    let now = start();
    let ahead = Now { unix: now.unix.plus(8 * 24 * 3600), ..now };
    let mut us = node(&mesh, "us", &[], ahead);
    let record = signed(&mesh, "a", 1);
    us.handle_frame(peer("x"), &push(vec![record.clone()]), ahead);
    assert_eq!(us.counters().refusals["past_date"], 1);
    let announce =
        frame(Body::Announce(wire::Announce { records: vec![entry_of(&record, "a", 1)] }));
    us.handle_frame(peer("x"), &announce, ahead);
    assert_eq!(pulls(&outputs(&mut us)), []);
    us.handle_frame(peer("x"), &announce, now.after(Duration::from_secs(5)));
    us.handle_frame(peer("x"), &announce, now.after(Duration::from_secs(5)));
    assert_eq!(pulls(&outputs(&mut us)), [peer("x")]);
}
