//! Identities that are issued off-line: the signer's decision, and the files.

use prost::Message as _;
use zeroize::Zeroizing;

use super::world::{World, open_token, params};
use crate::{
    limits,
    now::UnixTime,
    refusal::Code,
    trust::{
        Anchors, EnrolRefusal, Enrolled, IdentityFile, IdentityFiles, IssueTerms, IssuedIdentity,
        Known, LedgerEvent, NodeCertificate, TokenParams, build_issue_request, build_renewal,
        fixture::{NOW, TestMesh},
        identity_files, read_certificate,
    },
};

const DAY: i64 = 24 * 3600;

fn terms(prefixes: &[&str]) -> IssueTerms {
    IssueTerms {
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
        seeds: vec!["192.0.2.1:51800".into()],
        ttl_seconds: 30 * DAY,
        ..IssueTerms::default()
    }
}

fn ask(
    world: &mut World,
    key: &str,
    name: &str,
    terms: &IssueTerms,
) -> Result<Enrolled, EnrolRefusal> {
    let mesh = *world.init.anchors.mesh_id();
    let name = name.parse().unwrap();
    let request = build_issue_request(&TestMesh::key(key), &mesh, &name, [7; 16], NOW);
    let known = Known { members: &world.members, barred: &[], issuers: None };
    world.signer.issue(&request.encode_to_vec(), terms, known, NOW, &mut world.rng)
}

fn certificate(enrolled: &Enrolled) -> NodeCertificate {
    use meshd_proto::wire::enrol_reply::Result;
    match &enrolled.reply.result {
        Some(Result::Accepted(accepted)) => NodeCertificate::parse(&accepted.certificate).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn issued(world: &mut World, name: &str, terms: &IssueTerms) -> NodeCertificate {
    let enrolled = ask(world, name, name, terms).unwrap();
    let certificate = certificate(&enrolled);
    world.persist(enrolled.entries);
    certificate
}

fn next(
    world: &mut World,
    certificate: &NodeCertificate,
    now: UnixTime,
) -> Result<Enrolled, EnrolRefusal> {
    let known = Known { members: &world.members, barred: &[], issuers: None };
    let terms = terms(&[]);
    world.signer.issue_next(&certificate.der, &terms, known, now, &mut world.rng)
}

fn code(result: Result<Enrolled, EnrolRefusal>) -> Code {
    let refused = result.unwrap_err();
    assert!(!refused.fix.is_empty() && !refused.fix.contains("token"), "{refused}");
    refused.refusal.code
}

#[test]
fn a_key_gets_a_certificate_for_its_name_address_and_exact_prefixes() {
    let mut world = World::new();
    let mut asked = terms(&["10.3.0.0/16"]);
    asked.groups = vec!["db".into()];
    asked.allow = vec!["10.128.0.0/9".parse().unwrap()];
    asked.ttl_seconds = 365 * DAY;
    let got = issued(&mut world, "db-1", &asked);
    assert_eq!((got.key, got.name.as_str()), (TestMesh::key("db-1").public(), "db-1"));
    assert_eq!(got.groups, ["db"]);
    assert_eq!(got.limits, asked.allow);
    let address = got.mesh_ipv4.unwrap();
    assert!(world.signer.ipv4_pool().contains(&address));
    let grants: Vec<_> = got.grants.iter().map(|grant| grant.prefix.to_string()).collect();
    assert_eq!(grants, ["10.3.0.0/16", &format!("{address}/32")]);
    assert_eq!(got.not_after.since(NOW), 365 * DAY);
    world.init.anchors.check_chain(&got.der, Some(NOW)).unwrap();
}

#[test]
fn what_others_have_is_not_issued() {
    let mut world = World::new();
    let token = world.token(open_token());
    world.join(&token, "web-1", &["10.200.1.0/24"]).unwrap();
    let first = issued(&mut world, "db-1", &terms(&["10.3.0.0/16"]));
    for restart in [false, true] {
        if restart {
            world.restart();
        }
        assert_eq!(code(ask(&mut world, "x", "db-1", &terms(&[]))), Code::NameTaken);
        assert_eq!(code(ask(&mut world, "x", "web-1", &terms(&[]))), Code::NameTaken);
        assert_eq!(code(ask(&mut world, "x", "x", &terms(&["10.3.7.0/24"]))), Code::PrefixTaken);
        assert_eq!(code(ask(&mut world, "x", "x", &terms(&["10.200.0.0/16"]))), Code::PrefixTaken);
        // The same key under another name.
        assert_eq!(code(ask(&mut world, "db-1", "db-2", &terms(&[]))), Code::BadTerms);
    }
    let second = issued(&mut world, "db-2", &terms(&[]));
    assert_ne!(first.mesh_ipv4, second.mesh_ipv4);
    // And a token gives none of it away.
    let token = world.token(open_token());
    let request = world.request_of(&token, &TestMesh::key("thief"), "db-2", &[]);
    let refused = world.decide(&request, NOW).unwrap_err();
    assert_eq!(refused.refusal.code, Code::NameTaken);
}

#[test]
fn a_life_beyond_a_year_and_other_bad_terms_are_refused() {
    let mut world = World::new();
    let net = |text: &str| text.parse().unwrap();
    let good = || terms(&[]);
    let cases = [
        ("for ever", IssueTerms { ttl_seconds: i64::MAX, ..good() }),
        ("a second too long", IssueTerms { ttl_seconds: 365 * DAY + 1, ..good() }),
        ("hardly at all", IssueTerms { ttl_seconds: 60, ..good() }),
        ("backwards", IssueTerms { ttl_seconds: -DAY, ..good() }),
        ("everything", IssueTerms { prefixes: vec![net("0.0.0.0/0")], ..good() }),
        ("the pool", IssueTerms { prefixes: vec![net("100.112.3.0/24")], ..good() }),
        ("no limit", IssueTerms { allow: vec![net("::/0")], ..good() }),
        ("a bad group", IssueTerms { groups: vec!["a\u{1b}".into()], ..good() }),
        ("a bad seed", IssueTerms { seeds: vec!["seed".into()], ..good() }),
        ("too many", IssueTerms { allow: vec![net("10.0.0.0/8"); 65], ..good() }),
    ];
    let before = world.disk.len();
    for (what, terms) in cases {
        let refused = ask(&mut world, "x", "x", &terms).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms, "{what}");
    }
    assert_eq!(world.disk.len(), before);
    assert!(ask(&mut world, "x", "x", &terms(&[])).is_ok());
}

#[test]
fn a_request_is_good_for_its_key_mesh_and_moment_only() {
    let mut world = World::new();
    let mesh = *world.init.anchors.mesh_id();
    let name = "x".parse().unwrap();
    let request = build_issue_request(&TestMesh::key("x"), &mesh, &name, [7; 16], NOW);
    let mut decide = |request: &meshd_proto::wire::EnrolRequest, now| {
        let known = Known::default();
        code(world.signer.issue(&request.encode_to_vec(), &terms(&[]), known, now, &mut world.rng))
    };
    assert_eq!(decide(&request, NOW.plus(3600)), Code::PastDate);
    assert_eq!(decide(&request, NOW.plus(-3600)), Code::ClockSkew);
    let mut unsigned = request.clone();
    unsigned.identity_signature = bytes::Bytes::new();
    assert_eq!(decide(&unsigned, NOW), Code::BadSignature);
    let other = meshd_proto::MeshId([9; 16]);
    let other = build_issue_request(&TestMesh::key("x"), &other, &name, [7; 16], NOW);
    assert_eq!(decide(&other, NOW), Code::OtherMesh);
    assert_eq!(decide(&meshd_proto::wire::EnrolRequest::default(), NOW), Code::OtherMesh);
    // It is no request to join or to renew, and those are none of this kind.
    let known = Known::default();
    let joining = world.signer.enrol(&request.encode_to_vec(), known, &[], NOW, &mut world.rng);
    assert_eq!(joining.unwrap_err().refusal.code, Code::Malformed);
    let token = world.token(TokenParams { uses: 1, ..open_token() });
    let join = world.request(&token, "x", &[]).encode_to_vec();
    let refused = world.signer.issue(&join, &terms(&[]), known, NOW, &mut world.rng);
    assert_eq!(code(refused), Code::Malformed);
}

#[test]
fn the_ledger_replays_what_was_issued() {
    let mut world = World::new();
    let enrolled = ask(&mut world, "db-1", "db-1", &terms(&["10.3.0.0/16"])).unwrap();
    assert!(!enrolled.renewal);
    let [entry] = enrolled.entries.as_slice() else { panic!("{:?}", enrolled.entries) };
    assert!(
        matches!(&entry.event, LedgerEvent::Enrolled { token: None, renewal: false, .. }),
        "{entry:?}"
    );
    let certificate = certificate(&enrolled);
    world.persist(enrolled.entries);
    world.restart();
    assert_eq!(world.signer.name_of(&certificate.key), Some(&certificate.name));
    let known: Vec<_> = world.signer.admitted_as(&certificate.name).collect();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].hash, certificate.hash);
}

#[test]
fn the_next_certificate_has_the_same_key_name_address_and_rights() {
    let mut world = World::new();
    let mut asked = terms(&["10.3.0.0/16"]);
    asked.allow = vec!["10.128.0.0/9".parse().unwrap()];
    asked.groups = vec!["db".into()];
    let first = issued(&mut world, "db-1", &asked);
    // In the same second: it is later all the same, or its node would not know which counts.
    let soon = next(&mut world, &first, NOW).unwrap();
    let second = certificate(&soon);
    assert!(soon.renewal && second.not_before > first.not_before);
    world.persist(soon.entries);
    world.restart();
    let late = NOW.plus(20 * DAY);
    let enrolled = next(&mut world, &first, late).unwrap();
    let third = certificate(&enrolled);
    for one in [&second, &third] {
        assert_eq!((one.key, &one.name, one.mesh_ipv4), (first.key, &first.name, first.mesh_ipv4));
        assert_eq!(
            (&one.grants, &one.limits, &one.groups),
            (&first.grants, &first.limits, &first.groups)
        );
        assert_eq!(one.enrolment_id, first.enrolment_id);
    }
    assert_eq!(third.not_after.since(late), 30 * DAY);
    world.init.anchors.check_chain(&third.der, Some(late)).unwrap();
}

#[test]
fn what_a_node_has_detected_is_kept_in_its_next_certificate() {
    let mut world = World::new();
    let token = world.token(open_token());
    let joined = world.join(&token, "web-1", &["10.200.1.0/24"]).unwrap().certificate;
    let enrolled = next(&mut world, &joined, NOW.plus(DAY)).unwrap();
    assert_eq!(certificate(&enrolled).grants, joined.grants);
}

#[test]
fn who_left_was_revoked_or_is_of_another_mesh_gets_no_next_one() {
    let mut world = World::new();
    let certificate = issued(&mut world, "db-1", &terms(&[]));
    let foreign = World::with(&params(), 2);
    assert_eq!(code(next(&mut world, &foreign.init.certificate, NOW)), Code::OtherMesh);
    let ended = NOW.plus(500 * DAY);
    let mut anchors = world.init.anchors.clone();
    anchors.take_time(&world.signer.sign_time(ended), ended).unwrap();
    world.signer.set_anchors(anchors);
    assert_eq!(code(next(&mut world, &certificate, ended)), Code::CertificateExpired);
    let mut world = World::new();
    let certificate = issued(&mut world, "db-1", &terms(&[]));
    let left = crate::trust::LedgerEntry {
        time: NOW,
        event: LedgerEvent::Departed { key: certificate.key },
    };
    world.persist(vec![left]);
    assert_eq!(code(next(&mut world, &certificate, NOW)), Code::Revoked);
    // Its name is free again, for another key.
    let again = ask(&mut world, "db-1-new", "db-1", &terms(&[])).unwrap();
    world.persist(again.entries);
    let mut world = World::new();
    let certificate = issued(&mut world, "db-1", &terms(&[]));
    let revoked = world.signer.revoke(certificate.key, certificate.name.clone(), None, NOW);
    let mut anchors = world.init.anchors.clone();
    anchors.revoke(&revoked).unwrap();
    let until = anchors.revocation(&certificate.key).unwrap().not_after;
    assert!(until >= NOW.plus(*limits::ISSUED_SECONDS.end()), "it ends before a certificate may");
    world.signer.set_anchors(anchors);
    assert_eq!(code(next(&mut world, &certificate, NOW)), Code::Revoked);
    assert_eq!(code(ask(&mut world, "db-1", "db-1", &terms(&[]))), Code::Revoked);
}

#[test]
fn a_node_that_was_issued_off_line_renews_as_any_other() {
    let mut world = World::new();
    let mut asked = terms(&[]);
    asked.allow = vec!["10.128.0.0/9".parse().unwrap()];
    let certificate = std::sync::Arc::new(issued(&mut world, "db-1", &asked));
    let node = crate::trust::NodeIdentity::new(TestMesh::key("db-1"), certificate).unwrap();
    let wanted = ["10.200.1.0/24".parse().unwrap()];
    let request = build_renewal(&node, &wanted, false, [3; 16], NOW.plus(1));
    let enrolled = world.decide(&request, NOW.plus(1)).unwrap();
    let grants = self::certificate(&enrolled).grants;
    assert!(grants.iter().any(|grant| grant.prefix == wanted[0]), "{grants:?}");
}

#[test]
fn a_signer_that_is_none_any_more_issues_nothing() {
    let mut world = World::new();
    let certificate = issued(&mut world, "db-1", &terms(&[]));
    let other = world.init.root.issue_intermediate(&[42; 32], NOW).unwrap();
    let mut anchors = world.init.anchors.clone();
    let bundle = world.init.root.sign_bundle(anchors.mesh_id(), 9, &[&other]);
    anchors.install_bundle(&bundle).unwrap();
    world.signer.set_anchors(anchors);
    assert_eq!(code(ask(&mut world, "x", "x", &terms(&[]))), Code::NoSigner);
    assert_eq!(code(next(&mut world, &certificate, NOW)), Code::NoSigner);
}

/// What `meshctl` would write for a new node.
fn files(world: &mut World) -> IdentityFiles {
    let certificate = issued(world, "db-1", &terms(&["10.3.0.0/16"]));
    let seeds = ["192.0.2.1:51800".to_owned()];
    let key = TestMesh::key("db-1");
    let files = identity_files(Some(&key), &world.init.anchors, &certificate, &seeds);
    assert_eq!(files.last().map(|(file, _)| *file), Some(IdentityFile::Certificate));
    files.into_iter().collect()
}

#[test]
fn files_read_back_as_the_identity_that_was_issued() {
    let mut world = World::new();
    let files = files(&mut world);
    let read = IssuedIdentity::read(&files, NOW).unwrap();
    assert_eq!(read.identity.public(), read.certificate.key);
    assert_eq!(read.anchors.root_key(), world.init.anchors.root_key());
    assert_eq!(read.anchors.bundle_version(), world.init.anchors.bundle_version());
    assert_eq!(read.seeds, ["192.0.2.1:51800"]);
    for (file, content) in &files {
        assert!(std::str::from_utf8(content).is_ok(), "{file:?} can be pasted");
    }
    // For a node that has its key, none is written.
    let none = identity_files(None, &read.anchors, &read.certificate, &read.seeds);
    assert!(none.iter().all(|(file, _)| *file != IdentityFile::Key));
}

#[test]
fn every_file_that_is_missing_or_damaged_is_named() {
    let mut world = World::new();
    let whole = files(&mut world);
    for file in IdentityFile::ALL {
        let mut missing = whole.clone();
        missing.remove(&file);
        let misfit = IssuedIdentity::read(&missing, NOW).unwrap_err();
        assert_eq!((misfit.file, misfit.why.as_str()), (file, "it is missing"));
        for damage in
            [b"\xff\xfe\x00".to_vec(), b"-----BEGIN CERTIFICATE-----\n".to_vec(), b"x".to_vec()]
        {
            let mut damaged = whole.clone();
            damaged.insert(file, Zeroizing::new(damage));
            let misfit = IssuedIdentity::read(&damaged, NOW).unwrap_err();
            assert_eq!(misfit.file, file, "{misfit}");
            assert!(!misfit.fix.is_empty() && !misfit.clock, "{misfit}");
        }
        // Cut off, as while it is copied.
        for cut in (1..whole[&file].len() - 1).step_by(7) {
            let mut cut_off = whole.clone();
            cut_off.insert(file, Zeroizing::new(whole[&file][..cut].to_vec()));
            let read = IssuedIdentity::read(&cut_off, NOW);
            assert_eq!(read.unwrap_err().file, file, "cut at {cut}");
        }
    }
}

#[test]
fn files_of_different_identities_and_meshes_do_not_fit() {
    let mut world = World::new();
    let ours = files(&mut world);
    let mut elsewhere = World::with(&params(), 2);
    let foreign = files(&mut elsewhere);
    let other = issued(&mut world, "db-2", &terms(&[]));
    let anchors = world.init.anchors.clone();
    let another = identity_files(Some(&TestMesh::key("db-2")), &anchors, &other, &[]);
    let another: IdentityFiles = another.into_iter().collect();
    let mixed = |file: IdentityFile, from: &IdentityFiles| {
        let mut mixed = ours.clone();
        mixed.insert(file, from[&file].clone());
        IssuedIdentity::read(&mixed, NOW).unwrap_err().file
    };
    assert_eq!(mixed(IdentityFile::Key, &another), IdentityFile::Key);
    assert_eq!(mixed(IdentityFile::Certificate, &another), IdentityFile::Key);
    assert_eq!(mixed(IdentityFile::Bundle, &foreign), IdentityFile::Bundle);
    assert_eq!(mixed(IdentityFile::Root, &foreign), IdentityFile::Bundle);
    assert_eq!(mixed(IdentityFile::Certificate, &foreign), IdentityFile::Certificate);
    // The bundle of a time when its signer was none yet.
    let before = world.init.root.sign_bundle(anchors.mesh_id(), 1, &[]);
    let mut without = Anchors::from_root(anchors.root_der()).unwrap();
    without.install_bundle(&before).unwrap();
    let certificate = read_certificate(&ours).unwrap();
    let older: IdentityFiles =
        identity_files(None, &without, &certificate, &[]).into_iter().collect();
    assert_eq!(mixed(IdentityFile::Bundle, &older), IdentityFile::Bundle);
}

#[test]
fn a_certificate_out_of_date_says_so_and_may_do_when_the_clock_is_right() {
    let mut world = World::new();
    let files = files(&mut world);
    for (now, word) in [(NOW.plus(31 * DAY), "ended"), (UnixTime(1_000_000), "begins")] {
        let misfit = IssuedIdentity::read(&files, now).unwrap_err();
        assert!(misfit.clock && misfit.why.contains(word), "{misfit}");
        assert!(misfit.why.contains("clock says"), "{misfit}");
        assert_eq!(misfit.file, IdentityFile::Certificate);
    }
    assert!(IssuedIdentity::read(&files, NOW.plus(29 * DAY)).is_ok());
}
