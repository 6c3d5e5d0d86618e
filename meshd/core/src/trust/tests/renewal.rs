//! The next certificate of a member.

use std::sync::Arc;

use prost::Message;

use super::world::{World, open_token};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{
        Decider, EnrolRefusal, Enrolled, Known, NodeIdentity, Renewed, TokenParams, accept_renewal,
        build_renewal, decider,
        fixture::{NOW, TestMesh},
    },
};

const DAY: i64 = 24 * 3600;

fn joined(world: &mut World, name: &str, wanted: &[&str]) -> NodeIdentity {
    let token = world.token(open_token());
    let certificate = Arc::new(world.join(&token, name, wanted).unwrap().certificate);
    NodeIdentity::new(TestMesh::key(name), certificate).unwrap()
}

fn ask(
    world: &mut World,
    node: &NodeIdentity,
    wanted: &[&str],
    now: UnixTime,
) -> Result<Enrolled, EnrolRefusal> {
    let wanted: Vec<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
    world.decide(&build_renewal(node, &wanted, false, [3; 16], now), now)
}

fn renewed(
    world: &mut World,
    node: &NodeIdentity,
    wanted: &[&str],
    now: UnixTime,
) -> Result<Renewed, Refusal> {
    let enrolled = ask(world, node, wanted, now).map_err(|refused| refused.refusal)?;
    assert!(enrolled.renewal);
    world.persist(enrolled.entries);
    accept_renewal(&enrolled.reply, &node.certificate, &mut world.init.anchors.clone(), now)
}

fn grants(renewed: &Renewed) -> Vec<String> {
    renewed.certificate.grants.iter().map(|grant| grant.prefix.to_string()).collect()
}

#[test]
fn a_member_gets_the_same_again_and_what_it_detects_now() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    let before = node.certificate.clone();
    let later = NOW.plus(20 * DAY);
    let next = renewed(&mut world, &node, &["10.200.2.0/24", "192.168.0.0/24"], later).unwrap();
    let after = &next.certificate;
    assert_eq!((after.key, &after.name), (before.key, &before.name));
    assert_eq!(after.enrolment_id, before.enrolment_id);
    assert_eq!(after.mesh_ipv4, before.mesh_ipv4);
    assert_eq!(after.limits, before.limits);
    assert_eq!(after.not_after.since(later), limits::NODE_CERTIFICATE_SECONDS);
    let v4 = format!("{}/32", before.mesh_ipv4.unwrap());
    assert_eq!(grants(&next), ["10.200.2.0/24", &v4]);
    assert_eq!(next.not_granted.len(), 1, "outside the limits");
    // Its ledger says the same after a restart.
    world.restart();
    let node = NodeIdentity::new(TestMesh::key("db-1"), next.certificate.clone()).unwrap();
    let again = renewed(&mut world, &node, &["10.200.2.0/24"], later.plus(60)).unwrap();
    assert_eq!(
        again.certificate.hash, next.certificate.hash,
        "who asks too often gets what it has"
    );
}

#[test]
fn what_a_token_granted_exactly_stays_though_others_contest_it() {
    let mut world = World::new();
    let params = TokenParams {
        prefixes: vec!["10.77.0.0/16".parse().unwrap()],
        ttl_seconds: 3600,
        uses: 1,
        ..TokenParams::default()
    };
    let token = world.token(params);
    let certificate = Arc::new(world.join(&token, "edge", &[]).unwrap().certificate);
    let node = NodeIdentity::new(TestMesh::key("edge"), certificate).unwrap();
    let next = renewed(&mut world, &node, &[], NOW.plus(20 * DAY)).unwrap();
    assert!(grants(&next).contains(&"10.77.0.0/16".to_owned()));
}

#[test]
fn any_signer_renews_what_another_has_issued() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    // One that knows nothing but the anchors.
    let other = world.init.root.issue_intermediate(&[42; 32], NOW).unwrap();
    let mut anchors = world.init.anchors.clone();
    let both =
        world.init.root.sign_bundle(anchors.mesh_id(), 2, &[&world.init.intermediate, &other]);
    anchors.install_bundle(&both).unwrap();
    let ledger = [world.disk[0].clone()];
    let signer = crate::trust::Signer::open(
        anchors.clone(),
        other.der(),
        &other.seed(),
        &TestMesh::key("second"),
        ledger.iter().map(Vec::as_slice),
    )
    .unwrap();
    let later = NOW.plus(20 * DAY);
    let request = build_renewal(&node, &["10.200.1.0/24".parse().unwrap()], false, [3; 16], later);
    let bytes = request.encode_to_vec();
    assert_eq!(decider(&bytes, &anchors, |_| false), Ok(Decider::Any));
    let enrolled = signer.enrol(&bytes, Known::default(), &[], later, &mut world.rng).unwrap();
    let mut held = world.init.anchors.clone();
    let next = accept_renewal(&enrolled.reply, &node.certificate, &mut held, later).unwrap();
    assert!(next.bundle.is_some() && held.bundle_version() == 2, "the new bundle comes with it");
    assert!(held.issuer_of(&next.certificate).is_some_and(|der| der == other.der()));
    assert_eq!(next.certificate.mesh_ipv4, node.certificate.mesh_ipv4);
}

#[test]
fn who_was_off_for_weeks_comes_back_and_who_was_off_for_long_does_not() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &[]);
    assert!(renewed(&mut world, &node, &[], NOW.plus(60 * DAY)).is_ok());
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &[]);
    // By the signers' time: while they were silent, nobody could.
    let late = NOW.plus(130 * DAY);
    assert!(ask(&mut world, &node, &[], late).is_ok());
    let mut anchors = world.init.anchors.clone();
    anchors.take_time(&world.signer.sign_time(late), late).unwrap();
    world.signer.set_anchors(anchors);
    let refused = ask(&mut world, &node, &[], late).unwrap_err();
    assert_eq!(refused.refusal.code, Code::CertificateExpired);
}

#[test]
fn a_revoked_node_one_that_left_and_a_thief_of_a_certificate_get_nothing() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &[]);
    let later = NOW.plus(20 * DAY);
    // Somebody else's key under its certificate.
    let mut stolen = build_renewal(&node, &[], false, [3; 16], later);
    let thief = joined(&mut world, "thief", &[]);
    stolen.identity_signature =
        build_renewal(&thief, &[], false, [3; 16], later).identity_signature;
    let refused = world.decide(&stolen, later).unwrap_err();
    assert_eq!(refused.refusal.code, Code::BadSignature);

    let mut anchors = world.init.anchors.clone();
    let signed = world.signer.revoke(node.public(), node.certificate.name.clone(), None, NOW);
    anchors.revoke(&signed).unwrap();
    world.signer.set_anchors(anchors.clone());
    assert_eq!(ask(&mut world, &node, &[], later).unwrap_err().refusal.code, Code::Revoked);
    let request = build_renewal(&node, &[], false, [3; 16], later).encode_to_vec();
    assert_eq!(decider(&request, &anchors, |_| false).unwrap_err().code, Code::Revoked);

    // The name and what it had are free for the host's next identity.
    let token = world.token(open_token());
    let key = crate::trust::IdentityKey::from_seed(&[99; 32]);
    let again = world.request_of(&token, &key, "db-1", &[]);
    assert!(world.decide(&again, NOW).is_ok());
}

#[test]
fn a_token_whose_node_was_revoked_admits_nobody_else() {
    let mut world = World::new();
    let token = world.token(open_token());
    let enrolment = world.join(&token, "db-1", &[]).unwrap();
    let certificate = enrolment.certificate;
    let signed = world.signer.revoke(certificate.key, certificate.name.clone(), None, NOW);
    let mut anchors = world.init.anchors.clone();
    anchors.revoke(&signed).unwrap();
    world.signer.set_anchors(anchors);
    let refused = world.join(&token, "db-2", &[]).unwrap_err();
    assert_eq!(refused.refusal.code, Code::TokenRevoked);
    let refused = world.join(&token, "db-1", &[]).unwrap_err();
    assert_eq!(refused.refusal.code, Code::Revoked);
}

#[test]
fn a_revoked_token_admits_nobody_also_after_a_restart() {
    let mut world = World::new();
    let token = world.token(open_token());
    world.join(&token, "db-1", &[]).unwrap();
    let id = token.terms().id;
    let entry = world.signer.revoke_token(&id, NOW).unwrap().unwrap();
    world.persist(vec![entry]);
    assert_eq!(world.signer.revoke_token(&id, NOW), Ok(None));
    world.restart();
    assert_eq!(world.join(&token, "db-2", &[]).unwrap_err().refusal.code, Code::TokenRevoked);
    assert!(world.join(&token, "db-1", &[]).is_ok(), "who lost the answer was admitted before");
}

#[test]
fn an_answer_for_somebody_else_is_not_taken() {
    let mut world = World::new();
    let (a, b) = (joined(&mut world, "a", &[]), joined(&mut world, "b", &[]));
    let later = NOW.plus(20 * DAY);
    let for_b = ask(&mut world, &b, &[], later).unwrap();
    let mut anchors = world.init.anchors.clone();
    let refused = accept_renewal(&for_b.reply, &a.certificate, &mut anchors, later).unwrap_err();
    assert_eq!(refused.code, Code::IdentityMismatch);
    let other = World::with(&super::world::params(), 2);
    let mut foreign = other.init.anchors.clone();
    assert!(accept_renewal(&for_b.reply, &b.certificate, &mut foreign, later).is_err());
}

#[test]
fn nobody_fills_the_ledger_by_asking() {
    let mut world = World::new();
    let other = joined(&mut world, "other", &["10.200.9.0/24"]);
    let node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    let later = NOW.plus(DAY);
    let entries = |world: &mut World, wanted: &[&str], anyway: bool, at: UnixTime| {
        let wanted: Vec<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let request = build_renewal(&node, &wanted, anyway, [3; 16], at);
        let enrolled = world.decide(&request, at).unwrap();
        let count = enrolled.entries.len();
        world.persist(enrolled.entries);
        count
    };
    // What another holds is denied, however often it is asked for.
    for i in 0..100 {
        let wanted = ["10.200.1.0/24", "10.200.9.0/24"];
        assert_eq!(entries(&mut world, &wanted, false, later.plus(i)), 0);
    }
    assert_eq!(other.certificate.grants.len(), 2);
    // Nor by changing its mind, nor by insisting.
    let mut written = 0;
    for i in 0..100 {
        let wanted = [["10.200.2.0/24"], ["10.200.1.0/24"]][usize::from(i % 2 == 0)];
        written += entries(&mut world, &wanted, true, later.plus(200 + i));
    }
    assert!((1..=10).contains(&written), "{written} in a hundred seconds");
    // From then on one in half a minute, also when all that is known is the ledger.
    world.restart();
    let mut written = 0;
    for i in 0..300 {
        let wanted = [["10.200.2.0/24"], ["10.200.1.0/24"]][usize::from(i % 2 == 0)];
        written += entries(&mut world, &wanted, true, later.plus(300 + i));
    }
    assert!((1..=11).contains(&written), "{written} in three hundred seconds");
}

#[test]
fn what_is_wanted_one_after_the_other_is_granted_at_once_a_few_times() {
    let mut world = World::new();
    let mut node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    let mut wanted = vec!["10.200.1.0/24".to_owned()];
    let mut granted = |world: &mut World, node: &mut NodeIdentity, third: i64, at: UnixTime| {
        wanted.push(format!("10.200.{third}.0/24"));
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let next = renewed(world, node, &wanted, at).unwrap();
        let new = next.certificate.hash != node.certificate.hash;
        *node = NodeIdentity::new(TestMesh::key("db-1"), next.certificate).unwrap();
        new
    };
    let in_a_row = limits::RENEW_IN_A_ROW - 1;
    for i in 0..in_a_row {
        assert!(granted(&mut world, &mut node, 2 + i, NOW.plus(2 + 2 * i)), "{i}");
        world.restart();
    }
    let last = NOW.plus(2 * in_a_row);
    assert!(!granted(&mut world, &mut node, 50, last.plus(2)), "not without end");
    assert!(granted(&mut world, &mut node, 51, last.plus(limits::RENEW_ANYWAY_SECONDS)));
    let has = node.certificate.grants.iter().filter(|grant| grant.claim_len.is_none()).count();
    assert_eq!(i64::try_from(has).unwrap(), 1 + in_a_row + 2 + 1, "with its own address");
}

#[test]
fn a_request_that_is_played_again_changes_nothing() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    let later = NOW.plus(DAY);
    let old = build_renewal(&node, &["10.200.1.0/24".parse().unwrap()], false, [3; 16], later);
    let next = renewed(&mut world, &node, &["10.200.2.0/24"], later.plus(60)).unwrap();
    let replayed = world.decide(&old, later.plus(3600)).unwrap();
    assert!(replayed.entries.is_empty());
    let held = accept_renewal(
        &replayed.reply,
        &node.certificate,
        &mut world.init.anchors.clone(),
        later.plus(3600),
    );
    assert_eq!(held.unwrap().certificate.hash, next.certificate.hash);
}

#[test]
fn strangers_with_certificates_of_their_own_making_reach_no_signer() {
    let mut world = World::new();
    joined(&mut world, "db-1", &[]);
    let anchors = world.init.anchors.clone();
    // The right names, by a CA of its own.
    let forged = TestMesh::with_id(9, *anchors.mesh_id());
    let stranger = forged.node("db-9", &[]);
    let request = build_renewal(&stranger, &[], true, [3; 16], NOW).encode_to_vec();
    assert!(decider(&request, &anchors, |_| false).is_err());
    assert!(decider(&request, &anchors, |_| true).is_ok(), "one that was seen before");
}

#[test]
fn who_left_frees_its_name_though_a_renewal_was_on_its_way() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &["10.200.1.0/24"]);
    let later = NOW.plus(20 * DAY);
    // The reply is lost: its record goes with the old certificate.
    let lost = ask(&mut world, &node, &[], later).unwrap();
    world.persist(lost.entries);
    let mesh = *world.init.anchors.mesh_id();
    let draft = crate::trust::RecordDraft {
        mesh_addresses: node.certificate.mesh_addresses(),
        lanes: vec![crate::trust::LaneKey::from_seed(&[5; 32]).to_wire(
            &mesh,
            &node.public(),
            51820,
            0,
        )],
        left: true,
        ..Default::default()
    };
    let signed = node.sign_record(&draft, 1, meshd_proto::BootId([1; 16]), 1, later);
    let record = crate::trust::authenticate(&signed, &world.init.anchors).unwrap();
    assert_eq!(world.signer.departures(&[record], later).len(), 1);
}

#[test]
fn what_a_retiring_signer_issues_is_not_renewed_by_another() {
    let mut world = World::new();
    let thief = world.init.root.issue_intermediate(&[42; 32], NOW).unwrap();
    let entry = |one: &crate::trust::Intermediate, retiring| crate::trust::SignerEntry {
        key: one.public(),
        node: TestMesh::key("x").public(),
        name: "x".parse().unwrap(),
        certificate: one.der().to_vec().into(),
        retiring,
    };
    let mut anchors = world.init.anchors.clone();
    let signers = [entry(&world.init.intermediate, false), entry(&thief, true)];
    let bundle = world.init.root.sign_signers(anchors.mesh_id(), 2, &signers, anchors.succession());
    anchors.install_bundle(&bundle).unwrap();
    world.signer.set_anchors(anchors.clone());
    let terms = crate::trust::NodeTerms {
        mesh: anchors.mesh().clone(),
        mesh_id: *anchors.mesh_id(),
        ..TestMesh::with_id(1, *anchors.mesh_id()).terms("planted", &["10.0.0.0/8@24"])
    };
    let certificate = Arc::new(thief.issue_node(&terms).unwrap());
    let planted = NodeIdentity::new(TestMesh::key("planted"), certificate).unwrap();
    let request = build_renewal(&planted, &[], true, [3; 16], NOW).encode_to_vec();
    assert_eq!(decider(&request, &anchors, |_| false).unwrap_err().code, Code::UnknownIssuer);
    let refused = ask(&mut world, &planted, &[], NOW).unwrap_err();
    assert_eq!(refused.refusal.code, Code::UnknownIssuer);
}

#[test]
fn a_certificate_that_begins_years_from_now_is_not_taken() {
    let mut world = World::new();
    let node = joined(&mut world, "db-1", &[]);
    let ahead = NOW.plus(3000 * DAY);
    let enrolled = ask(&mut world, &node, &[], ahead).unwrap();
    let mut anchors = world.init.anchors.clone();
    let refused = accept_renewal(&enrolled.reply, &node.certificate, &mut anchors, NOW.plus(DAY));
    assert_eq!(refused.unwrap_err().code, Code::CertificateNotYetValid);
}
