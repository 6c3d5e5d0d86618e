//! A root that follows another.

use std::sync::Arc;

use meshd_proto::{NodeKey, wire};
use prost::Message;

use super::world::{World, accept, open_token};
use crate::{
    limits,
    refusal::Code,
    trust::{
        Anchors, Intermediate, NodeCertificate, RevocationTerms, RootCa, SignerEntry, Succession,
        fixture::{NOW, TestMesh},
    },
};

fn entry(one: &Intermediate, node: NodeKey) -> SignerEntry {
    SignerEntry {
        key: one.public(),
        node,
        name: "x".parse().unwrap(),
        certificate: one.der().to_vec().into(),
        retiring: false,
    }
}

fn node() -> NodeKey {
    TestMesh::key("x").public()
}

/// The root after `before` in a mesh, from a byte.
fn next_root(mesh: &TestMesh, seed: u8) -> RootCa {
    RootCa::create(&[seed; 32], &mesh.mesh, &mesh.mesh_id, NOW).unwrap()
}

/// Verifies as TLS does: with the roots of `anchors`, and what a peer sends after its certificate.
fn tls_verifies(anchors: &Anchors, leaf: &NodeCertificate, sent: &[&[u8]]) -> bool {
    let der = rustls_pki_types::CertificateDer::from(&leaf.der[..]);
    let sent: Vec<_> =
        sent.iter().map(|der| rustls_pki_types::CertificateDer::from(*der)).collect();
    let seconds = std::time::Duration::from_secs(u64::try_from(NOW.0).unwrap());
    let at = rustls_pki_types::UnixTime::since_unix_epoch(seconds);
    let roots = anchors.trust_anchors();
    webpki::EndEntityCert::try_from(&der)
        .unwrap()
        .verify_for_usage(
            &[webpki::aws_lc_rs::ED25519],
            &roots,
            &sent,
            at,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .is_ok()
}

#[test]
fn a_mesh_changes_its_root_and_nobody_is_lost_on_the_way() {
    let mesh = TestMesh::new(1);
    let away = mesh.anchors.clone();
    let mut anchors = mesh.anchors.clone();
    let old_leaf = mesh.node("old", &[]).certificate;
    let second = next_root(&mesh, 50);
    let succession = anchors.succession().followed_by(&mesh.root, &second, NOW).unwrap();

    // The new root signs, the old one still counts.
    let first = entry(&mesh.intermediate, node());
    let bundle = second.sign_signers(&mesh.mesh_id, 2, std::slice::from_ref(&first), &succession);
    assert_eq!(anchors.install_bundle(&bundle), Ok(true));
    assert_eq!(*anchors.root_key(), second.public());
    assert!(anchors.follows(&mesh.root.public()) && anchors.is_root(&mesh.root.public()));
    assert_eq!(anchors.trust_anchors().len(), 2);
    anchors.check_chain(&old_leaf.der, Some(NOW)).unwrap();
    let due = anchors.signers_to_move();
    assert_eq!(due.iter().map(|one| one.key).collect::<Vec<_>>(), [mesh.intermediate.public()]);

    // Its signer gets a key under it, and the one before retires.
    let moved = second.issue_intermediate(&[60; 32], NOW).unwrap();
    let (all, succession) = anchors.with_signer(entry(&moved, node()));
    assert_eq!(all.iter().map(|one| one.retiring).collect::<Vec<_>>(), [true, false]);
    let bundle = second.sign_signers(&mesh.mesh_id, 3, &all, &succession);
    anchors.install_bundle(&bundle).unwrap();
    assert!(anchors.signers_to_move().is_empty());
    assert!(anchors.is_from_retiring(&old_leaf));
    assert!(!anchors.has_intermediate(&mesh.intermediate.public()));
    assert!(anchors.may_have_granted(&mesh.intermediate.public()));
    let new_leaf = moved.issue_node(&mesh.terms("new", &[])).unwrap();
    anchors.check_chain(&new_leaf.der, Some(NOW)).unwrap();
    // Who knows only the old root verifies the new certificate by what comes with it.
    let sent = anchors.chain_of(&new_leaf);
    assert_eq!(sent.len(), 2);
    assert!(tls_verifies(&away, &new_leaf, &sent));
    assert!(!tls_verifies(&away, &new_leaf, &sent[..1]));
    assert!(tls_verifies(&anchors, &old_leaf, &[mesh.intermediate.der()]));

    // Nobody needs it any more.
    let succession = anchors.succession().clone();
    let bundle = second.sign_signers(&mesh.mesh_id, 4, &all[1..], &succession);
    anchors.install_bundle(&bundle).unwrap();
    assert!(!anchors.is_root(&mesh.root.public()));
    assert_eq!(anchors.trust_anchors().len(), 1);
    assert_eq!(anchors.check_chain(&old_leaf.der, None).unwrap_err().code, Code::UnknownIssuer);
    assert!(!tls_verifies(&anchors, &old_leaf, &[mesh.intermediate.der()]));

    // A second time, for who missed it all.
    let third = next_root(&mesh, 51);
    let succession = anchors.succession().followed_by(&second, &third, NOW).unwrap();
    let bundle = third.sign_signers(&mesh.mesh_id, 5, &all[1..], &succession);
    let mut back = away.clone();
    assert_eq!(back.install_bundle(&bundle), Ok(true));
    assert_eq!(*back.root_key(), third.public());
    back.check_chain(&new_leaf.der, Some(NOW)).unwrap();
    let last = third.issue_intermediate(&[61; 32], NOW).unwrap();
    let (all, succession) = back.with_signer(entry(&last, node()));
    back.install_bundle(&third.sign_signers(&mesh.mesh_id, 6, &all, &succession)).unwrap();
    let leaf = last.issue_node(&mesh.terms("last", &[])).unwrap();
    assert!(tls_verifies(&away, &leaf, &back.chain_of(&leaf)));
}

#[test]
fn nobody_is_led_to_a_root_that_the_one_before_did_not_name() {
    let mesh = TestMesh::new(1);
    let (second, thief) = (next_root(&mesh, 50), next_root(&mesh, 66));
    let signers = [entry(&mesh.intermediate, node())];
    let good = Succession::default().followed_by(&mesh.root, &second, NOW).unwrap();
    let refused = |anchors: &Anchors, bundle: &wire::SignedBundle| {
        let mut anchors = anchors.clone();
        anchors.install_bundle(bundle).unwrap_err().code
    };
    // The thief's root certifies itself, or takes the place of the one that was certified.
    let own = Succession::default().followed_by(&thief, &thief, NOW).unwrap();
    let bundle = thief.sign_signers(&mesh.mesh_id, 9, &signers, &own);
    assert_eq!(refused(&mesh.anchors, &bundle), Code::UntrustedChain);
    let mut payload = wire::IntermediateBundle::decode(
        &second.sign_signers(&mesh.mesh_id, 9, &signers, &good).payload[..],
    )
    .unwrap();
    payload.roots[1].certificate = thief.der().to_vec().into();
    let bundle = thief.seal(&mesh.mesh_id, &payload);
    assert_eq!(refused(&mesh.anchors, &bundle), Code::UntrustedChain);
    payload.roots[1].link = thief.certify_successor(&thief, NOW).unwrap().into();
    let bundle = thief.seal(&mesh.mesh_id, &payload);
    assert_ne!(refused(&mesh.anchors, &bundle), Code::TooLarge);
    // The link of another root with the right key but another mesh's name, and one root too many.
    let other = TestMesh::new(2);
    let foreign = RootCa::create(&[50; 32], &other.mesh, &other.mesh_id, NOW).unwrap();
    payload.roots[1].certificate = second.der().to_vec().into();
    payload.roots[1].link = mesh.root.certify_successor(&foreign, NOW).unwrap().into();
    assert_eq!(refused(&mesh.anchors, &second.seal(&mesh.mesh_id, &payload)), Code::UntrustedChain);
    payload.roots = vec![payload.roots[0].clone(); limits::BUNDLE_ROOTS + 1];
    assert_eq!(refused(&mesh.anchors, &second.seal(&mesh.mesh_id, &payload)), Code::TooLarge);
    // The right one signed by the wrong key.
    let right = second.sign_signers(&mesh.mesh_id, 9, &signers, &good);
    let wrong = thief.sign_signers(&mesh.mesh_id, 9, &signers, &good);
    assert_eq!(refused(&mesh.anchors, &wrong), Code::BadSignature);

    // Whoever has moved is not led back, and not elsewhere, by the old root.
    let mut moved = mesh.anchors.clone();
    moved.install_bundle(&right).unwrap();
    let back = mesh.root.sign_signers(&mesh.mesh_id, 20, &signers, &Succession::default());
    assert_eq!(refused(&moved, &back), Code::BadSignature);
    let aside = Succession::default().followed_by(&mesh.root, &thief, NOW).unwrap();
    let aside = thief.sign_signers(&mesh.mesh_id, 20, &signers, &aside);
    assert_eq!(refused(&moved, &aside), Code::UntrustedChain);
    // What was installed is what it was.
    assert_eq!(*moved.root_key(), second.public());
    assert_eq!(moved.bundle_version(), 9);
}

#[test]
fn what_was_revoked_stays_revoked_under_the_next_root() {
    let mesh = TestMesh::new(1);
    let mut anchors = mesh.anchors.clone();
    let bad = mesh.node("bad", &[]);
    let terms = RevocationTerms {
        key: bad.public(),
        name: "bad".parse().unwrap(),
        revoked_at: NOW,
        not_after: bad.certificate.not_after,
        subject: None,
    };
    anchors.revoke(&mesh.root.revoke(&mesh.mesh_id, &terms)).unwrap();
    let second = next_root(&mesh, 50);
    let succession = anchors.succession().followed_by(&mesh.root, &second, NOW).unwrap();
    let moved = second.issue_intermediate(&[60; 32], NOW).unwrap();
    let signers = [entry(&mesh.intermediate, node())];
    anchors.install_bundle(&second.sign_signers(&mesh.mesh_id, 2, &signers, &succession)).unwrap();
    // What the old root revoked counts while it does; nobody else is revoked by it any more.
    assert!(anchors.check_membership(&bad.public()).is_err());
    let late = RevocationTerms { key: mesh.node("good", &[]).public(), ..terms.clone() };
    let late = anchors.revoke(&mesh.root.revoke(&mesh.mesh_id, &late)).unwrap_err();
    assert_eq!(late.code, Code::UnknownIssuer);
    anchors.revoke(&second.revoke(&mesh.mesh_id, &terms)).unwrap();
    let signers = [entry(&moved, node())];
    anchors.install_bundle(&second.sign_signers(&mesh.mesh_id, 3, &signers, &succession)).unwrap();
    assert!(anchors.check_membership(&bad.public()).is_err());
    // An old root that was stolen ends nobody's membership.
    let good = Arc::new(mesh.node("good", &[]));
    let terms = RevocationTerms { key: good.public(), name: "good".parse().unwrap(), ..terms };
    let late = anchors.revoke(&mesh.root.revoke(&mesh.mesh_id, &terms)).unwrap_err();
    assert_eq!(late.code, Code::UnknownIssuer);
}

#[test]
fn many_signers_that_move_at_once_can_still_admit() {
    let mut world = World::new();
    let token = world.token(open_token());
    let anchors = world.init.anchors.clone();
    let second = RootCa::create(&[50; 32], anchors.mesh(), anchors.mesh_id(), NOW).unwrap();
    let mut succession = anchors.succession().followed_by(&world.init.root, &second, NOW).unwrap();
    let mut signers = anchors.signers();
    for n in 0..25 {
        let host = TestMesh::key(&format!("s{n}")).public();
        let one = |root: &RootCa, seed: u8| root.issue_intermediate(&[seed; 32], NOW).unwrap();
        let old = SignerEntry { retiring: true, ..entry(&one(&world.init.root, 100 + n), host) };
        signers.extend([old, entry(&one(&second, 150 + n), host)]);
    }
    succession = succession.kept_for(&signers);
    let mut moved = anchors.clone();
    let bundle = second.sign_signers(anchors.mesh_id(), 2, &signers, &succession);
    moved.install_bundle(&bundle).unwrap();
    world.signer.set_anchors(moved);
    let request = world.request(&token, "a", &[]);
    let enrolled = world.decide(&request, NOW).unwrap();
    assert!(enrolled.reply.encoded_len() > limits::ENROL_MESSAGE);
    assert!(enrolled.reply.encoded_len() <= limits::ENROL_REPLY);
    // The token is from before, as far as its root goes.
    let accepted = accept(&enrolled.reply, &token, "a").unwrap();
    assert_eq!(*accepted.anchors.root_key(), second.public());
}
