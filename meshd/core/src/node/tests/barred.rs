//! Those whose membership was ended.

use super::*;
use crate::{
    now::UnixTime,
    refusal::Code,
    trust::{Intermediate, RevocationTerms},
};

fn revocation(mesh: &TestMesh, signer: &Intermediate, name: &str) -> wire::SignedRevocation {
    let terms = RevocationTerms {
        key: peer(name),
        name: name.parse().unwrap(),
        revoked_at: NOW,
        not_after: NOW.plus(1_000_000),
        subject: None,
    };
    signer.revoke(&mesh.mesh_id, &terms)
}

fn told(revocations: Vec<wire::SignedRevocation>) -> Vec<u8> {
    frame(Body::Push(wire::Push { revocations, ..Default::default() }))
}

fn stored(outputs: &[Output]) -> Option<Bytes> {
    outputs.iter().find_map(|output| match output {
        Output::StoreRevocations(bytes) => Some(bytes.clone()),
        _ => None,
    })
}

#[test]
fn many_revocations_at_once_are_kept_as_one_set() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let all: Vec<_> =
        (0..50).map(|n| revocation(&mesh, &mesh.intermediate, &format!("node-{n}"))).collect();
    us.revoke(&revocation(&mesh, &mesh.intermediate, "first"), now).unwrap();
    us.revoke_all(&all, now).unwrap();
    // One of another mesh is told, and keeps nobody from the rest.
    let other = TestMesh::new(2);
    let mixed = [
        revocation(&other, &other.intermediate, "x"),
        revocation(&mesh, &mesh.intermediate, "last"),
    ];
    us.revoke_all(&mixed, now).unwrap_err();
    let done = outputs(&mut us);
    let kept = done.iter().filter(|output| matches!(output, Output::StoreRevocations(_)));
    assert_eq!(kept.count(), 1, "each would be the whole set");
    let mut anchors = mesh.anchors.clone();
    anchors.restore_revocations(&stored(&done).unwrap()).unwrap();
    assert_eq!(anchors.all_revocations().count(), 52);
}

#[test]
fn who_is_revoked_is_out_at_once_and_stays_out() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "bad", 1)]), now);
    us.handle_connected(peer("bad"), addr(9), false, now);
    outputs(&mut us);

    us.handle_frame(peer("x"), &told(vec![revocation(&mesh, &mesh.intermediate, "bad")]), now);
    let done = outputs(&mut us);
    assert!(matches!(done[0], Output::StoreRevocations(_)), "the first thing: {done:?}");
    assert!(done.contains(&Output::Disconnect { key: peer("bad") }));
    assert_eq!(events(&done, "member_revoked"), 1);
    assert!(!done.iter().any(|o| matches!(o, Output::Forget { .. })), "its prefixes are kept");
    assert!(us.directory().get(&peer("bad")).is_none());
    assert_eq!(us.barred().count(), 1);

    // By itself or through others, with whatever version.
    for from in [peer("x"), peer("bad")] {
        us.handle_frame(from, &push(vec![signed(&mesh, "bad", 2)]), now);
        assert!(us.directory().get(&peer("bad")).is_none());
    }
    assert!(us.counters().refusals["revoked"] >= 2);
    us.handle_datagram(peer("bad"), &[1, 2, 3], now);
    us.handle_connected(peer("bad"), addr(9), false, now);
    let done = outputs(&mut us);
    assert!(done.contains(&Output::Disconnect { key: peer("bad") }));
    assert!(frames(&done).is_empty(), "nothing is said to it");
}

#[test]
fn a_revocation_survives_a_restart_and_keeps_the_stored_record_out() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.revoke(&revocation(&mesh, &mesh.intermediate, "bad"), now).unwrap();
    let kept = stored(&outputs(&mut us)).unwrap();

    let mut anchors = mesh.anchors.clone();
    anchors.restore_revocations(&kept).unwrap();
    let identity = Arc::new(mesh.node("us", &[]));
    let config = NodeConfig::default();
    let mut again = Node::new(config, identity, anchors, [1; 32], BLOCK, BootId([9; 16]), now);
    again.restore(&signed(&mesh, "bad", 1).encode_to_vec(), now).unwrap();
    assert!(again.directory().is_empty());
    assert_eq!(again.barred().count(), 1, "what was routed to it must not leave in the clear");
    let later = now.after(Duration::from_secs(30 * 24 * 3600));
    again.handle_timeout(later);
    assert!(outputs(&mut again).contains(&Output::Forget { key: peer("bad") }));
    assert_eq!(again.barred().count(), 0);
}

#[test]
fn sets_of_revocations_become_their_union_in_one_exchange() {
    let mesh = TestMesh::new(1);
    let now = start();
    let (mut a, mut b) = (node(&mesh, "a", &[], now), node(&mesh, "b", &[], now));
    a.revoke(&revocation(&mesh, &mesh.intermediate, "one"), now).unwrap();
    b.revoke(&revocation(&mesh, &mesh.intermediate, "two"), now).unwrap();
    outputs(&mut a);
    outputs(&mut b);
    a.handle_connected(peer("b"), addr(2), true, now);
    // Carry frames to and fro until nobody says anything.
    for _ in 0..20 {
        for (to, body) in frames(&outputs(&mut a)) {
            assert_eq!(to, peer("b"));
            b.handle_frame(peer("a"), &frame(body), now);
        }
        for (to, body) in frames(&outputs(&mut b)) {
            assert_eq!(to, peer("a"));
            a.handle_frame(peer("b"), &frame(body), now);
        }
    }
    for node in [&a, &b] {
        assert!(node.anchors().revocation(&peer("one")).is_some());
        assert!(node.anchors().revocation(&peer("two")).is_some());
    }
    assert_eq!(a.anchors().revocations_hash(), b.anchors().revocations_hash());
}

#[test]
fn only_who_may_revokes_and_nobody_for_another_mesh() {
    let mesh = TestMesh::new(1);
    let other = TestMesh::new(2);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_frame(peer("x"), &push(vec![signed(&mesh, "good", 1)]), now);
    let foreign = revocation(&other, &other.intermediate, "good");
    let elsewhere = revocation(&other, &mesh.intermediate, "good");
    let mut altered = revocation(&mesh, &mesh.intermediate, "bad");
    let mut payload = wire::Revocation::decode(&altered.payload[..]).unwrap();
    payload.identity_key = peer("good").0.to_vec().into();
    altered.payload = payload.encode_to_vec().into();
    for (forged, code) in [
        (foreign, "unknown_issuer"),
        (elsewhere, "bad_signature"),
        (altered, "bad_signature"),
        (wire::SignedRevocation::default(), "malformed"),
    ] {
        let before = us.counters().refusals.get(code).copied().unwrap_or(0);
        us.handle_frame(peer("x"), &told(vec![forged]), now);
        assert_eq!(us.counters().refusals[code], before + 1);
    }
    assert!(us.directory().get(&peer("good")).is_some());
    assert!(us.anchors().revocations_hash().is_empty());
}

#[test]
fn what_a_stolen_signer_revoked_is_void_when_the_root_takes_it_out() {
    let mesh = TestMesh::new(1);
    let now = start();
    let thief = mesh.root.issue_intermediate(&[77; 32], NOW).unwrap();
    let mut us = node(&mesh, "us", &[], now);
    let both = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&mesh.intermediate, &thief]);
    let push_bundle =
        |bundle| frame(Body::Push(wire::Push { bundle: Some(bundle), ..Default::default() }));
    us.handle_frame(peer("x"), &push_bundle(both), now);
    for name in ["good", "bad"] {
        us.handle_frame(peer("x"), &push(vec![signed(&mesh, name, 1)]), now);
        us.handle_frame(peer("x"), &told(vec![revocation(&mesh, &thief, name)]), now);
    }
    us.handle_frame(peer("x"), &told(vec![revocation(&mesh, &mesh.intermediate, "bad")]), now);
    assert_eq!(us.barred().count(), 2);
    // What the thief let in is out as well.
    let terms = mesh.terms("planted", &[]);
    let planted =
        NodeIdentity::new(TestMesh::key("planted"), Arc::new(thief.issue_node(&terms).unwrap()))
            .unwrap();
    let record = mesh.sign(&planted, &mesh.draft(&planted, &[]), 1);
    us.handle_frame(peer("x"), &push(vec![record.clone()]), now);
    assert!(us.directory().get(&peer("planted")).is_some());
    us.handle_connected(peer("planted"), addr(9), false, now);
    outputs(&mut us);

    let without = mesh.root.sign_bundle(&mesh.mesh_id, 3, &[&mesh.intermediate]);
    us.handle_frame(peer("x"), &push_bundle(without), now);
    let done = outputs(&mut us);
    assert!(us.directory().get(&peer("good")).is_some(), "it is back by itself");
    assert!(us.directory().get(&peer("bad")).is_none(), "another signer revoked it too");
    assert!(us.directory().get(&peer("planted")).is_none());
    assert!(done.contains(&Output::Disconnect { key: peer("planted") }));
    // The last thing that it hears is why: nodes of that signer must not stay among themselves.
    let told = frames(&done).into_iter().any(|(to, body)| {
        to == peer("planted") && matches!(&body, Body::Push(push) if push.bundle.is_some())
    });
    assert!(told);
    us.handle_frame(peer("x"), &push(vec![record]), now);
    assert!(us.directory().get(&peer("planted")).is_none());
}

#[test]
fn a_node_that_hears_of_its_own_revocation_is_silent_and_says_so() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let draft = mesh.draft(&mesh.node("us", &[]), &[]);
    us.update_self(draft, now);
    assert!(us.own_record().is_some());
    us.handle_frame(peer("x"), &told(vec![revocation(&mesh, &mesh.intermediate, "us")]), now);
    assert!(us.is_revoked() && us.has_left());
    assert_eq!(events(&outputs(&mut us), "revoked"), 1);
    let later = now.after(Duration::from_secs(100_000));
    us.handle_timeout(later);
    assert!(frames(&outputs(&mut us)).is_empty());
    assert!(us.own_record().is_some(), "its kernel stays as it is");
}

#[test]
fn one_signer_cannot_fill_the_set_for_the_others() {
    let mesh = TestMesh::new(1);
    let mut anchors = mesh.anchors.clone();
    let name: meshd_proto::NodeName = "n".parse().unwrap();
    let signed = |i: u32, by: &Intermediate| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&i.to_be_bytes());
        let terms = RevocationTerms {
            key: NodeKey(key),
            name: name.clone(),
            revoked_at: UnixTime(0),
            not_after: UnixTime(1),
            subject: None,
        };
        by.revoke(&mesh.mesh_id, &terms)
    };
    for i in 0..10_000 {
        assert!(anchors.revoke(&signed(i, &mesh.intermediate)).unwrap().is_some());
    }
    let full = anchors.revoke(&signed(10_000, &mesh.intermediate)).unwrap_err();
    assert_eq!(full.code, Code::TooLarge);
    let other = mesh.root.issue_intermediate(&[77; 32], NOW).unwrap();
    let both = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&mesh.intermediate, &other]);
    anchors.install_bundle(&both).unwrap();
    assert!(anchors.revoke(&signed(10_000, &other)).unwrap().is_some());
}

#[test]
fn an_acknowledgement_of_who_is_out_or_unknown_means_nothing() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.handle_acknowledged(peer("nobody"), now);
    assert_eq!(us.liveness(&peer("nobody")), None);
    us.revoke(&revocation(&mesh, &mesh.intermediate, "out"), now).unwrap();
    outputs(&mut us);
    us.handle_acknowledged(peer("out"), now);
    assert_eq!(us.liveness(&peer("out")), None);
    assert!(outputs(&mut us).is_empty());
}
