//! One node and peers that are made up.

use bytes::Bytes;
use meshd_proto::wire;
use proptest::prelude::*;
use prost::Message as _;
use wire::frame::Body;

mod barred;
mod doubts;
mod handed;
mod renewal;
mod reports;
mod stored;
mod succession;
mod telling;
mod workloads;

use super::{fixture::Origin, *};
use crate::trust::{
    NodeIdentity, RecordDraft,
    fixture::{NOW, TestMesh},
};

const BLOCK: VersionBlock = VersionBlock { next: 1, end: 65 };

fn addr(i: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i], 51800))
}

fn start() -> Now {
    Now { unix: NOW, ..Origin::default().now() }
}

fn node(mesh: &TestMesh, name: &str, grants: &[&str], now: Now) -> Node {
    let identity = Arc::new(mesh.node(name, grants));
    let anchors = mesh.anchors.clone();
    Node::new(NodeConfig::default(), identity, anchors, [1; 32], BLOCK, BootId([9; 16]), now)
}

fn outputs(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll_output()).collect()
}

fn frames(outputs: &[Output]) -> Vec<(NodeKey, Body)> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Frame { to, bytes } => {
                assert!(bytes.len() <= crate::limits::FRAME);
                Some((*to, wire::Frame::decode(bytes.clone()).unwrap().body.unwrap()))
            }
            _ => None,
        })
        .collect()
}

fn frame(body: Body) -> Vec<u8> {
    wire::Frame { body: Some(body) }.encode_to_vec()
}

fn push(records: Vec<wire::SignedRecord>) -> Vec<u8> {
    frame(Body::Push(wire::Push { records, ..Default::default() }))
}

fn events(outputs: &[Output], code: &str) -> usize {
    outputs.iter().filter(|o| matches!(o, Output::Event(e) if e.code == code)).count()
}

fn peer(name: &str) -> NodeKey {
    TestMesh::key(name).public()
}

fn signed(mesh: &TestMesh, name: &str, version: u64) -> wire::SignedRecord {
    let identity = mesh.node(name, &["10.0.0.0/8@24"]);
    let prefix = format!("10.{version}.0.0/24");
    mesh.sign(&identity, &mesh.draft(&identity, &[&prefix]), version)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_order_and_grouping_of_pushes_gives_the_same_directory(
        order in Just((0..24_usize).collect::<Vec<_>>()).prop_shuffle(),
        again in prop::collection::vec(0..24_usize, 0..24),
        group in 1..9_usize,
    ) {
        let mesh = TestMesh::new(1);
        let records: Vec<_> = (0..24)
            .map(|i| signed(&mesh, ["a", "b", "c", "d", "e", "f"][i % 6], i as u64 / 6 + 1))
            .collect();
        let now = start();
        let mut plain = node(&mesh, "us", &[], now);
        records.iter().for_each(|r| plain.handle_frame(peer("x"), &push(vec![r.clone()]), now));

        let mut shuffled = node(&mesh, "us", &[], now);
        let all: Vec<_> = order.iter().chain(&again).map(|i| records[*i].clone()).collect();
        for group in all.chunks(group) {
            shuffled.handle_frame(peer("y"), &push(group.to_vec()), now);
        }
        prop_assert_eq!(shuffled.directory().root_hash(), plain.directory().root_hash());
        prop_assert_eq!(shuffled.directory().len(), 6);
        prop_assert!(shuffled.directory().iter().all(|record| record.version == 4));
    }
}

#[test]
fn garbage_around_a_good_record_does_not_keep_the_good_one_out() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let good = signed(&mesh, "a", 1);
    let forged = wire::SignedRecord { signature: vec![7; 64].into(), ..good.clone() };
    let other =
        wire::SignedRecord { certificate: signed(&mesh, "b", 1).certificate, ..good.clone() };
    for bad in [forged, other] {
        us.handle_frame(peer("liar"), &push(vec![bad]), now);
        assert!(us.directory().get(&peer("a")).is_none());
    }
    assert!(us.counters().refusals.values().sum::<u64>() >= 2);
    us.handle_frame(peer("friend"), &push(vec![good]), now);
    assert!(us.directory().get(&peer("a")).is_some());
}

#[test]
fn what_its_owner_may_not_claim_is_refused_once_and_not_asked_for_again() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let greedy = mesh.node("greedy", &[]);
    let record = mesh.sign(&greedy, &mesh.draft(&greedy, &["10.9.0.0/24"]), 1);
    us.handle_frame(peer("x"), &push(vec![record.clone()]), now);
    assert_eq!(us.counters().refusals["prefix_not_granted"], 1);
    let digest = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        &record.payload,
    ));
    let entry = wire::RecordKey {
        identity_key: greedy.public().0.to_vec().into(),
        version: 1,
        payload_hash: digest[..8].to_vec().into(),
    };
    let announce = frame(Body::Announce(wire::Announce { records: vec![entry] }));
    outputs(&mut us);
    us.handle_frame(peer("x"), &announce, now);
    assert!(frames(&outputs(&mut us)).is_empty());
    let later = now.after(crate::limits::REFUSED_HELD_FOR);
    us.handle_frame(peer("x"), &announce, later);
    assert!(matches!(frames(&outputs(&mut us))[..], [(_, Body::Pull(_))]));
}

#[test]
fn a_prefix_that_is_not_granted_is_said_at_home_and_left_out() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &["10.1.0.0/16"], now);
    let identity = mesh.node("us", &["10.1.0.0/16"]);
    us.update_self(mesh.draft(&identity, &["10.1.0.0/16", "10.2.0.0/16"]), now);
    let own = us.directory().get(&us.key()).unwrap().clone();
    assert_eq!(own.prefixes, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(us.own_refusals().len(), 1);
    assert_eq!(events(&outputs(&mut us), "own_record_refused"), 1);
}

#[test]
fn versions_come_from_reserved_blocks_and_a_foreign_start_is_outbid() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let identity = mesh.node("us", &[]);
    us.update_self(mesh.draft(&identity, &[]), now);
    let own = us.directory().get(&us.key()).unwrap().clone();
    assert_eq!((own.version, own.generation), (1, 1));

    let heard = mesh.sign(&identity, &RecordDraft::default(), 500);
    us.handle_frame(peer("x"), &push(vec![heard]), now);
    assert_eq!(us.poll_timeout().unwrap().1, TimeoutReason::Sync);
    let now = now.after(Duration::from_secs(1));
    us.handle_timeout(now);
    let asked = outputs(&mut us).iter().any(|o| *o == Output::ReserveVersions { at_least: 501 });
    assert!(asked, "a block that reaches above what was heard");
    assert_eq!(us.directory().get(&us.key()).unwrap().version, 1);
    us.handle_versions(VersionBlock { next: 501, end: 565 }, now);
    let own = us.directory().get(&us.key()).unwrap();
    assert_eq!((own.version, own.generation), (501, 501));
    assert_eq!(own.boot_id, BootId([9; 16]));
}

#[test]
fn own_updates_go_out_at_once_and_then_at_most_once_a_second() {
    let mesh = TestMesh::new(1);
    let mut now = start();
    let grants = ["10.0.0.0/8@24"];
    let mut us = node(&mesh, "us", &grants, now);
    let identity = mesh.node("us", &grants);
    for i in 0..40 {
        us.update_self(mesh.draft(&identity, &[&format!("10.{i}.0.0/24")]), now);
        us.update_self(mesh.draft(&identity, &[&format!("10.{i}.0.0/24")]), now);
        now = now.after(Duration::from_millis(100));
        us.handle_timeout(now);
    }
    assert_eq!(us.counters().published, 5);
    us.handle_timeout(now.after(Duration::from_secs(1)));
    let own = us.directory().get(&us.key()).unwrap();
    assert_eq!(own.prefixes, ["10.39.0.0/24".parse().unwrap()]);
}

#[test]
fn a_node_alone_is_synced_and_one_that_is_its_own_seed_too() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.update_self(RecordDraft::default(), now);
    assert!(!us.is_synced(), "its seeds are not known yet");
    us.set_seeds(Vec::new(), now);
    assert!(us.is_synced());
    us.set_seeds(vec![addr(1)], now);
    assert!(!us.is_synced());
    us.handle_timeout(now);
    assert!(outputs(&mut us).contains(&Output::Contact { addr: addr(1) }));
    us.handle_connected(us.key(), addr(1), true, now);
    assert!(us.is_synced());
    assert!(us.poll_timeout().is_some_and(|(_, reason)| reason != TimeoutReason::Seeds));
}

#[test]
fn a_node_that_reaches_nobody_tries_for_ever_and_ever_less_often() {
    let mesh = TestMesh::new(1);
    let begin = start();
    let mut us = node(&mesh, "us", &[], begin);
    us.set_seeds(vec![addr(1), addr(2)], begin);
    us.restore(&signed(&mesh, "a", 1).encode_to_vec(), begin).unwrap();
    us.update_self(RecordDraft::default(), begin);
    let (mut now, mut wakes, mut contacts, mut last) = (begin, 0_u32, 0_u32, begin.mono);
    while now.mono - begin.mono < Duration::from_secs(3600) {
        let (at, _) = us.poll_timeout().unwrap();
        now = now.after(at.saturating_duration_since(now.mono));
        us.handle_timeout(now);
        wakes += 1;
        for output in outputs(&mut us) {
            match output {
                Output::Contact { addr } => {
                    us.handle_unreachable(addr, now);
                    contacts += 1;
                    last = now.mono;
                }
                Output::Frame { to, .. } => us.handle_unreachable(to, now),
                _ => {}
            }
        }
    }
    assert!((200..400).contains(&contacts), "{contacts}");
    assert!(now.mono - last < Duration::from_secs(60));
    assert!(wakes < 5_000, "{wakes}");
    assert!(!us.is_synced() && us.directory().len() == 2);
    let key = peer("a");
    assert_eq!(us.liveness(&key).unwrap().0, Liveness::Down);
}

#[test]
fn a_seed_with_two_addresses_is_one_member() {
    let mesh = TestMesh::new(1);
    let begin = start();
    let mut us = node(&mesh, "us", &[], begin);
    us.set_seeds(vec![addr(1), addr(2)], begin);
    us.restore(&signed(&mesh, "a", 1).encode_to_vec(), begin).unwrap();
    us.handle_connected(peer("a"), addr(1), true, begin);
    assert_eq!(us.absent_seeds(), [addr(2)]);
    us.handle_reached(peer("a"), addr(2), begin);
    assert_eq!(us.absent_seeds(), []);
    us.handle_disconnected(peer("a"), begin);
    assert_eq!(us.absent_seeds(), [], "it may be there all the same");
    while us.liveness(&peer("a")).unwrap().0 != Liveness::Down {
        let (at, _) = us.poll_timeout().unwrap();
        assert!(at < begin.mono + Duration::from_secs(10));
        us.handle_timeout(begin.after(at - begin.mono));
    }
    assert_eq!(us.absent_seeds(), [addr(1), addr(2)], "it is to be found again at either");
}

#[test]
fn a_hostile_member_gets_no_more_than_its_share_and_leaves_nothing_behind() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.update_self(RecordDraft::default(), now);
    (0..50).for_each(|i| {
        us.handle_frame(peer("x"), &push(vec![signed(&mesh, &format!("n{i}"), 1)]), now);
    });
    outputs(&mut us);
    let liar = peer("liar");
    let keys: Vec<Bytes> = us.directory().iter().map(|r| r.key.0.to_vec().into()).collect();
    let pull = frame(Body::Pull(wire::Pull { identity_keys: keys, ..Default::default() }));
    let mut sent = 0;
    for _ in 0..20_000 {
        us.handle_frame(liar, &pull, now);
        sent += outputs(&mut us)
            .iter()
            .map(|o| if let Output::Frame { bytes, .. } = o { bytes.len() } else { 0 })
            .sum::<usize>();
    }
    assert!(sent < 20 << 20, "{sent} bytes");
    assert!(us.counters().refusals["rate_limited"] > 0);

    let invented = |i: u32| wire::RecordKey {
        identity_key: [&i.to_be_bytes()[..], &[0; 28]].concat().into(),
        version: 1,
        payload_hash: vec![1; 8].into(),
    };
    let now = now.after(Duration::from_secs(3600));
    for first in (0..100_000).step_by(1_000) {
        let records = (first..first + 1_000).map(invented).collect();
        us.handle_frame(liar, &frame(Body::Announce(wire::Announce { records })), now);
        let frames = frames(&outputs(&mut us));
        let pulls = frames.iter().filter(|(_, body)| matches!(body, Body::Pull(_))).count();
        assert!(pulls <= 1 && frames.len() < 20, "{}", frames.len());
    }
    assert_eq!(us.directory().len(), 51);
    for junk in [
        vec![0xff; 100],
        vec![0; crate::limits::FRAME + 1],
        frame(Body::Pull(wire::Pull {
            identity_keys: vec![Bytes::from_static(b"short")],
            ..Default::default()
        })),
    ] {
        us.handle_frame(liar, &junk, now);
        us.handle_datagram(liar, &junk, now);
    }
    // Somebody else is served all the same.
    outputs(&mut us);
    us.handle_frame(peer("friend"), &pull, now);
    assert!(matches!(frames(&outputs(&mut us))[..], [(_, Body::Push(_))]));
}

#[test]
fn two_nodes_compare_and_end_up_equal() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut a = node(&mesh, "a", &[], now);
    let mut b = node(&mesh, "b", &[], now);
    for (one, names) in [(&mut a, ["p", "q"]), (&mut b, ["q", "r"])] {
        one.update_self(RecordDraft::default(), now);
        let records = names.map(|name| signed(&mesh, name, 1)).to_vec();
        one.handle_frame(peer("x"), &push(records), now);
        outputs(one);
    }
    let (ka, kb) = (a.key(), b.key());
    a.handle_connected(kb, addr(2), true, now);
    b.handle_connected(ka, addr(1), false, now);
    for _ in 0..10 {
        for (to, body) in frames(&outputs(&mut a)) {
            if to == kb {
                b.handle_frame(ka, &frame(body), now);
            }
        }
        for (to, body) in frames(&outputs(&mut b)) {
            if to == ka {
                a.handle_frame(kb, &frame(body), now);
            }
        }
    }
    assert_eq!(a.directory().root_hash(), b.directory().root_hash());
    assert_eq!(a.directory().len(), 5);
    assert!(a.is_synced() && b.is_synced());
    let seen = Observed { address: addr(1).ip(), agreed: false };
    assert_eq!(a.observed(), [seen], "one of four says so");
    assert_eq!(a.path(&kb), Some(addr(2).ip()));
}

#[test]
fn a_leave_is_signed_sent_and_final() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.update_self(RecordDraft::default(), now);
    us.handle_connected(peer("a"), addr(1), false, now);
    outputs(&mut us);
    us.leave(now);
    let out = outputs(&mut us);
    assert!(out.contains(&Output::Left { to: vec![peer("a")] }));
    let pushed = frames(&out).into_iter().any(|(to, body)| {
        to == peer("a") && matches!(body, Body::Push(push) if push.records.len() == 1)
    });
    assert!(pushed);
    assert!(us.directory().get(&us.key()).unwrap().left);
    us.update_self(mesh.draft(&mesh.node("us", &[]), &[]), now);
    us.handle_timeout(now.after(Duration::from_secs(100_000)));
    assert_eq!(us.counters().published, 2);
}
