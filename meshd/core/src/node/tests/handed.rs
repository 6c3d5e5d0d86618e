//! A node whose next certificate is handed to it.

use super::*;
use crate::{now::UnixTime, trust::NodeTerms};

const DAY: i64 = 24 * 3600;

fn world(now: Now) -> (TestMesh, Node) {
    let mesh = TestMesh::new(1);
    let us = mesh.node_of("us", &terms(&mesh, 0));
    let (config, anchors) = (NodeConfig::default(), mesh.anchors.clone());
    let mut node = Node::new(config, Arc::new(us), anchors, [1; 32], BLOCK, BootId([9; 16]), now);
    node.update_self(mesh.draft(&mesh.node("us", &[]), &["10.1.0.0/24"]), now);
    outputs(&mut node);
    (mesh, node)
}

fn terms(mesh: &TestMesh, days: i64) -> NodeTerms {
    let from = NOW.plus(days * DAY);
    NodeTerms {
        not_before: from,
        not_after: from.plus(30 * DAY),
        ..mesh.terms("us", &["10.1.0.0/24"])
    }
}

fn renewed(outputs: &[Output]) -> Vec<UnixTime> {
    let of = |output: &Output| match output {
        Output::Renewed { certificate } => Some(certificate.not_before),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

#[test]
fn a_later_certificate_is_taken_over_once_and_signs_the_record() {
    let now = start();
    let (mesh, mut us) = world(now);
    let later = now.after(Duration::from_secs(10 * 24 * 3600));
    let next = mesh.node_of("us", &terms(&mesh, 5)).certificate;
    assert_eq!(us.take_certificate(&next, None, later), Ok(true));
    assert_eq!(renewed(&outputs(&mut us)), [next.not_before]);
    us.handle_timeout(later.after(Duration::from_secs(2)));
    assert_eq!(us.own_record().unwrap().certificate.hash, next.hash);
    // It lies there for ever, and an older one may be copied again.
    let older = mesh.node_of("us", &terms(&mesh, 1)).certificate;
    for again in [&next, &older] {
        assert_eq!(us.take_certificate(again, None, later), Ok(false));
        assert!(renewed(&outputs(&mut us)).is_empty());
    }
    assert_eq!(us.own_record().unwrap().certificate.hash, next.hash);
}

#[test]
fn what_is_not_its_own_not_in_date_or_not_the_meshs_is_refused() {
    let now = start();
    let (mesh, mut us) = world(now);
    let mut refused = |certificate: &crate::trust::NodeCertificate| {
        let before = us.own_record().unwrap().certificate.hash;
        let refusal = us.take_certificate(certificate, None, now).unwrap_err();
        assert_eq!(us.own_record().unwrap().certificate.hash, before);
        refusal.code
    };
    let begins_later = mesh.node_of("us", &terms(&mesh, 2)).certificate;
    assert_eq!(refused(&begins_later), Code::CertificateNotYetValid);
    let soon = NodeTerms { not_before: NOW.plus(1), ..terms(&mesh, 0) };
    let named = NodeTerms { name: "other".parse().unwrap(), ..soon.clone() };
    let at = now.after(Duration::from_secs(5));
    let certificate = mesh.node_of("us", &named).certificate;
    assert_eq!(us.take_certificate(&certificate, None, at).unwrap_err().code, Code::NameMismatch);
    let key = TestMesh::key("them").public();
    let theirs = NodeTerms { key, ..soon.clone() };
    let certificate = mesh.intermediate.issue_node(&theirs).unwrap();
    let refusal = us.take_certificate(&certificate, None, at).unwrap_err();
    assert_eq!(refusal.code, Code::IdentityMismatch);
    let foreign = TestMesh::with_id(2, mesh.mesh_id);
    let forged = NodeTerms { not_before: NOW.plus(1), ..terms(&foreign, 0) };
    let certificate = foreign.node_of("us", &forged).certificate;
    assert!(us.take_certificate(&certificate, None, at).is_err());
    assert!(renewed(&outputs(&mut us)).is_empty());
}

#[test]
fn the_bundle_that_lies_beside_it_brings_its_issuer() {
    let now = start();
    let (mesh, mut us) = world(now);
    let other = mesh.root.issue_intermediate(&[42; 32], NOW).unwrap();
    let at = now.after(Duration::from_secs(100));
    let next = NodeTerms { not_before: NOW.plus(50), ..terms(&mesh, 0) };
    let next = other.issue_node(&next).unwrap();
    let refusal = us.take_certificate(&next, None, at).unwrap_err();
    assert_eq!(refusal.code, Code::UnknownIssuer);
    let bundle = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&mesh.intermediate, &other]);
    assert_eq!(us.take_certificate(&next, Some(&bundle), at), Ok(true));
    let all = outputs(&mut us);
    assert_eq!(renewed(&all), [next.not_before]);
    assert!(all.iter().any(|output| matches!(output, Output::StoreBundle(_))));
    // An older bundle that is copied again takes nothing back.
    assert_eq!(us.take_certificate(&next, Some(mesh.anchors.signed_bundle()), at), Ok(false));
    assert_eq!(us.anchors().bundle_version(), 2);
}

#[test]
fn an_older_certificate_of_an_issuer_that_retires_is_not_taken_again() {
    let now = start();
    let at = now.after(Duration::from_secs(10 * 24 * 3600));
    let (mesh, mut us) = world(now);
    let older = us.own.identity().certificate.clone();
    let next = mesh.node_of("us", &terms(&mesh, 5)).certificate;
    assert_eq!(us.take_certificate(&next, None, at), Ok(true));
    // The signer of both retires; another one stays.
    let other = mesh.root.issue_intermediate(&[42; 32], NOW).unwrap();
    let entry = |of: &crate::trust::Intermediate, name: &str, retiring| crate::trust::SignerEntry {
        key: of.public(),
        node: TestMesh::key(name).public(),
        name: name.parse().unwrap(),
        certificate: Bytes::copy_from_slice(of.der()),
        retiring,
    };
    let signers = [entry(&mesh.intermediate, "old", true), entry(&other, "new", false)];
    let succession = mesh.anchors.succession();
    let bundle = mesh.root.sign_signers(&mesh.mesh_id, 2, &signers, succession);
    us.install_bundle(&bundle, at).unwrap();
    outputs(&mut us);
    // The files of before still lie there, and are looked at again after a restart.
    assert_eq!(us.take_certificate(&older, None, at), Ok(false));
    assert_eq!(us.take_certificate(&older, Some(&bundle), at), Ok(false));
    assert!(renewed(&outputs(&mut us)).is_empty());
    // What a signer that counts no more dated too late must not keep out what one that counts gives.
    let good = other.issue_node(&terms(&mesh, 3)).unwrap();
    assert_eq!(us.take_certificate(&good, Some(&bundle), at), Ok(true));
    assert_eq!(renewed(&outputs(&mut us)), [good.not_before]);
}

#[test]
fn who_was_revoked_or_has_left_is_not_brought_back() {
    let now = start();
    let at = now.after(Duration::from_secs(100));
    let (mesh, mut us) = world(now);
    let next = NodeTerms { not_before: NOW.plus(50), ..terms(&mesh, 0) };
    let next = mesh.node_of("us", &next).certificate;
    us.leave(now);
    assert_eq!(us.take_certificate(&next, None, at), Ok(false));
    let (mesh, mut us) = world(now);
    let revocation = crate::trust::RevocationTerms {
        key: us.key(),
        name: "us".parse().unwrap(),
        revoked_at: NOW,
        not_after: NOW.plus(400 * DAY),
        subject: None,
    };
    us.revoke(&mesh.intermediate.revoke(&mesh.mesh_id, &revocation), now).unwrap();
    let result = us.take_certificate(&next, None, at);
    assert!(!matches!(result, Ok(true)), "{result:?}");
    assert!(renewed(&outputs(&mut us)).is_empty());
}

#[test]
fn who_knows_nobody_but_seeds_asks_at_the_door_why_nobody_answers() {
    let now = start();
    let asks = |seeds: Vec<std::net::SocketAddr>| {
        let (_, mut us) = world(now);
        us.set_seeds(seeds, now);
        outputs(&mut us);
        us.handle_timeout(now.after(Duration::from_secs(1)));
        us.handle_timeout(now.after(Duration::from_secs(30)));
        outputs(&mut us).iter().any(|output| matches!(output, Output::AskAtTheDoor { .. }))
    };
    assert!(asks(vec![addr(7)]), "the seed refuses it, and says why only there");
    assert!(!asks(Vec::new()), "there is nobody to ask");
}
