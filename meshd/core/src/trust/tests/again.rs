//! Who comes again: after a leave, after a revocation, at another signer.

use std::sync::Arc;

use meshd_proto::{BootId, NodeKey, wire};
use prost::Message;

use super::{
    scene::Scene,
    world::{World, accept, open_token},
};
use crate::{
    refusal::Code,
    trust::{
        EnrolRefusal, Enrolled, Known, LedgerEntry, LedgerEvent, NodeCertificate, NodeIdentity,
        Record, RecordDraft, Signer, TokenParams, TokenState, authenticate, build_renewal,
        fixture::{NOW, TestMesh},
        issuer::{Binding, IssuerTerms, Naming, Template, tests::fake::terms},
    },
};

/// The record of the host `name` under `certificate`.
fn record(world: &World, name: &str, certificate: &NodeCertificate, left: bool) -> Arc<Record> {
    let identity = NodeIdentity::new(TestMesh::key(name), Arc::new(certificate.clone())).unwrap();
    let lane = crate::trust::LaneKey::from_seed(&[5; 32]);
    let draft = RecordDraft {
        mesh_addresses: certificate.mesh_addresses(),
        lanes: vec![lane.to_wire(&certificate.mesh_id, &identity.public(), 51820, 0)],
        left,
        ..RecordDraft::default()
    };
    let signed = identity.sign_record(&draft, 5, BootId([1; 16]), 1, NOW);
    authenticate(&signed, &world.init.anchors).unwrap()
}

fn departed(key: NodeKey) -> LedgerEntry {
    LedgerEntry { time: NOW, event: LedgerEvent::Departed { key } }
}

fn code(decided: Result<Enrolled, EnrolRefusal>) -> Code {
    decided.unwrap_err().refusal.code
}

/// Whoever forwarded the request has it still, and ten minutes in which its date is taken.
#[test]
fn a_request_that_is_played_again_after_a_leave_admits_nobody() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]);
    let enrolled = world.decide(&request, NOW).unwrap();
    world.persist(enrolled.entries);
    assert!(world.decide(&request, NOW.plus(1)).unwrap().entries.is_empty(), "a reply was lost");
    // Known from its record alone; written down; read again.
    let certificate = accept(&enrolled.reply, &token, "a").unwrap().certificate;
    world.members = vec![record(&world, "a", &certificate, true)];
    assert_eq!(code(world.decide(&request, NOW.plus(2))), Code::Revoked);
    let departures = world.signer.departures(&world.members, NOW);
    world.persist(departures);
    world.members.clear();
    for _ in 0..2 {
        let refused = world.decide(&request, NOW.plus(2)).unwrap_err();
        assert_eq!(refused.refusal.code, Code::Revoked, "{refused}");
        assert!(refused.to_string().contains("has left the mesh"), "{refused}");
        world.restart();
    }
    // With another token neither: an identity that left is gone.
    let other = world.token(open_token());
    assert_eq!(code(world.decide(&world.request(&other, "a", &[]), NOW)), Code::Revoked);
    // The host makes a new identity, and comes under its name.
    let renamed = world.request_of(&token, &TestMesh::key("a again"), "a", &[]);
    assert!(world.decide(&renamed, NOW).is_ok());
}

#[test]
fn a_document_that_is_played_again_after_a_leave_admits_nobody() {
    let mut scene = Scene::first_use(|terms| terms.rules[0].once = false);
    let document = scene.document("a");
    let request = scene.request(&TestMesh::key("a"), "a", &document);
    scene.join_as("a", "a", &document).map(drop).unwrap();
    scene.world.persist(vec![departed(TestMesh::key("a").public())]);
    assert_eq!(code(scene.world.decide(&request, NOW)), Code::Revoked);
    let issuers = scene.world.issuers.clone().unwrap();
    let wanted = scene.world.signer.wants_keys(&request.encode_to_vec(), &issuers, NOW.plus(9_999));
    assert_eq!(wanted, None, "nobody is asked for it");
}

#[test]
fn a_subject_admits_one_node_at_a_time_and_none_after_a_revocation() {
    let mut scene = Scene::new(|terms| {
        terms.rules[0].naming = crate::trust::issuer::Naming::Prefix(String::new());
        terms.rules[0].subject = Template::parse("{/kubernetes.io/namespace}").unwrap();
    });
    scene.join("a").map(drop).unwrap();
    let document = scene.document("b");
    let told = scene.refused("b", "b", &document, Code::IdentityUsed).to_string();
    assert!(told.contains("a member already, a"), "{told}");
    scene.world.restart();
    scene.refused("b", "b", &document, Code::IdentityUsed);
    // Its node has left: another may come.
    let key = TestMesh::key("a").public();
    let event = crate::trust::LedgerEvent::Departed { key };
    scene.world.persist(vec![crate::trust::LedgerEntry { time: NOW, event }]);
    scene.join_as("b", "b", &document).map(drop).unwrap();
    // That one was stolen: what it can still get documents for is worth nothing.
    let b = TestMesh::key("b").public();
    let revocation = scene.world.signer.revoke(b, "b".parse().unwrap(), None, NOW);
    let mut anchors = scene.world.init.anchors.clone();
    anchors.revoke(&revocation).unwrap();
    scene.world.signer.set_anchors(anchors);
    let document = scene.document("c");
    let told = scene.refused("c", "c", &document, Code::IdentityUsed).to_string();
    assert!(told.contains("which was revoked"), "{told}");
    assert_eq!(
        scene.world.signer.tokens(NOW).next().unwrap().state,
        TokenState::Usable,
        "others still come by the token"
    );
}

/// Another signer of the same mesh that believes the same issuer and has admitted nobody.
struct Second {
    world: World,
    scene: Scene,
}

impl Second {
    /// `a` was admitted by a document at the first.
    fn new(change: impl Fn(&mut IssuerTerms)) -> (Self, NodeCertificate) {
        let mut scene = Scene::new(&change);
        let enrolled = scene.join("a").unwrap();
        let certificate = accept(&enrolled.reply, &scene.token, "a").unwrap().certificate;
        let mut world = World::new();
        let other = scene.world.init.root.issue_intermediate(&[42; 32], NOW).unwrap();
        let mut anchors = scene.world.init.anchors.clone();
        let both = [&scene.world.init.intermediate, &other];
        let bundle = scene.world.init.root.sign_bundle(anchors.mesh_id(), 2, &both);
        anchors.install_bundle(&bundle).unwrap();
        world.disk.truncate(1);
        let (key, ledger) = (TestMesh::key("second"), world.disk.iter().map(Vec::as_slice));
        world.signer =
            Signer::open(anchors.clone(), other.der(), &other.seed(), &key, ledger).unwrap();
        world.init.anchors = anchors;
        let mut terms = terms(Binding::Key);
        change(&mut terms);
        world.issuers = Some(scene.fake.issuers(terms.clone()));
        scene.token =
            world.token(TokenParams { issuer: Some(terms), allow: Vec::new(), ..open_token() });
        (Self { world, scene }, certificate)
    }

    /// The same machine, which its issuer knows as before, with another key.
    fn decide(&mut self, name: &str) -> Result<Enrolled, EnrolRefusal> {
        let document = self.scene.document(name);
        let request = self.scene.request(&TestMesh::key(name), name, &document);
        self.world.decide(&request, NOW)
    }
}

fn by_namespace(terms: &mut IssuerTerms) {
    terms.rules[0].naming = Naming::Prefix(String::new());
    terms.rules[0].subject = Template::parse("{/kubernetes.io/namespace}").unwrap();
}

#[test]
fn every_signer_knows_which_subjects_have_a_node() {
    let (mut second, certificate) = Second::new(by_namespace);
    assert!(certificate.subject.is_some());
    second.decide("b").map(drop).unwrap();
    second.world.members = vec![record(&second.world, "a", &certificate, false)];
    let refused = second.decide("b").unwrap_err();
    assert_eq!(refused.refusal.code, Code::IdentityUsed);
    assert!(refused.to_string().contains("a member already, a;"), "{refused}");
    // It left, as this signer hears.
    second.world.members = vec![record(&second.world, "a", &certificate, true)];
    second.decide("b").map(drop).unwrap();
}

#[test]
fn a_revoked_machine_does_not_come_back_by_documents_at_another_signer() {
    let (mut second, _) = Second::new(by_namespace);
    let a = TestMesh::key("a").public();
    // The one that revoked has the certificate; the other learns it from the revocation alone.
    let first = &second.scene.world.signer;
    let revocation = first.revoke(a, "a".parse().unwrap(), None, NOW);
    let mut anchors = second.world.init.anchors.clone();
    anchors.revoke(&revocation).unwrap();
    let mut restored = second.world.init.anchors.clone();
    restored.restore_revocations(&anchors.encode_revocations()).unwrap();
    second.world.signer.set_anchors(restored);
    let refused = second.decide("b").unwrap_err();
    assert_eq!(refused.refusal.code, Code::IdentityUsed);
    assert!(refused.to_string().contains("which was revoked"), "{refused}");
    // Where a subject stands for many, the others go on.
    let many = |terms: &mut IssuerTerms| {
        by_namespace(terms);
        terms.rules[0].once = false;
    };
    let (mut second, _) = Second::new(many);
    let revocation = second.scene.world.signer.revoke(a, "a".parse().unwrap(), None, NOW);
    let mut anchors = second.world.init.anchors.clone();
    anchors.revoke(&revocation).unwrap();
    second.world.signer.set_anchors(anchors);
    second.decide("b").map(drop).unwrap();
}

#[test]
fn a_renewal_keeps_whom_the_document_was_about() {
    let (mut second, certificate) = Second::new(by_namespace);
    let identity = NodeIdentity::new(TestMesh::key("a"), Arc::new(certificate.clone())).unwrap();
    let later = NOW.plus(20 * 24 * 3600);
    let request = build_renewal(&identity, &[], false, [8; 16], later).encode_to_vec();
    let known = Known::default();
    let renewed = second.world.signer.enrol(&request, known, &[], later, &mut second.world.rng);
    let renewed = renewed.unwrap();
    let next = certificate_of(&renewed.reply);
    assert!(next.not_after > certificate.not_after);
    assert_eq!(next.subject, certificate.subject);
    // Who has renewed it knows it from its own ledger.
    second.world.persist(renewed.entries);
    assert_eq!(code(second.decide("b")), Code::IdentityUsed);
}

fn certificate_of(reply: &wire::EnrolReply) -> NodeCertificate {
    let Some(wire::enrol_reply::Result::Accepted(accepted)) = &reply.result else {
        panic!("refused: {reply:?}")
    };
    NodeCertificate::parse(&accepted.certificate).unwrap()
}

#[test]
fn a_machine_that_leaves_and_comes_back_takes_one_use_however_often() {
    let mut scene = Scene::new(|terms| terms.rules[0].naming = Naming::Prefix(String::new()));
    let issuer = Some(terms(Binding::Key));
    let params = TokenParams { issuer, allow: Vec::new(), uses: 2, ..open_token() };
    scene.token = scene.world.token(params);
    let again = |scene: &mut Scene, key: &str| {
        let mut claims = crate::trust::issuer::tests::fake::claims(
            scene.token.mesh_id(),
            &TestMesh::key(key).public(),
            key,
        );
        claims["sub"] = serde_json::json!("machine:a");
        let document = scene.fake.sign(&claims);
        scene.join_as(key, key, &document)
    };
    for key in ["a", "a2", "a3", "a4"] {
        again(&mut scene, key).map(drop).unwrap();
        let used = |scene: &Scene| {
            let id = scene.token.terms().id;
            scene.world.signer.tokens(NOW).find(|token| token.terms.id == id).unwrap()
        };
        assert_eq!(used(&scene).used, 1);
        scene.world.persist(vec![departed(TestMesh::key(key).public())]);
        assert_eq!((used(&scene).used, used(&scene).state), (1, TokenState::Usable));
        scene.world.restart();
    }
    scene.join("b").map(drop).unwrap();
    let document = scene.document("c");
    scene.refused("c", "c", &document, Code::TokenUsed);
    // The first one's place is its own.
    again(&mut scene, "a5").map(drop).unwrap();
}

#[test]
fn nodes_of_a_subject_that_stands_for_many_take_a_use_each() {
    let mut scene = Scene::new(|terms| {
        by_namespace(terms);
        terms.rules[0].once = false;
    });
    let issuer = Some(terms(Binding::Key));
    let params = TokenParams { issuer, allow: Vec::new(), uses: 2, ..open_token() };
    scene.token = scene.world.token(params);
    scene.join("a").map(drop).unwrap();
    scene.join("b").map(drop).unwrap();
    let document = scene.document("c");
    scene.refused("c", "c", &document, Code::TokenUsed);
    scene.world.persist(vec![departed(TestMesh::key("a").public())]);
    scene.join("c").map(drop).unwrap();
}
