//! Admission by identity documents, from the token to the ledger.

use std::sync::Arc;

use meshd_proto::wire;
use prost::Message;
use serde_json::json;

use super::{
    scene::{Scene, rotate},
    world::{World, accept, open_token},
};
use crate::{
    now::UnixTime,
    refusal::Code,
    trust::{
        JoinToken, NodeIdentity, Signer, TokenParams, build_identity_request, build_renewal,
        decider,
        fixture::{NOW, TestMesh},
        issuer::{
            Binding, Issuers, Template,
            tests::fake::{claims, terms},
        },
        signing::{self, Kind},
    },
};

#[test]
fn a_document_admits_to_what_its_rule_says() {
    let mut scene = Scene::new(|_| {});
    let enrolled = scene.join("a").unwrap();
    let voucher = enrolled.voucher.clone().unwrap();
    assert_eq!((voucher.issuer.as_str(), voucher.rule.as_str()), ("idp", "nodes"));
    let enrolment = accept(&enrolled.reply, &scene.token, "a").unwrap();
    assert_eq!(enrolment.certificate.groups, ["k8s"]);
    assert_eq!(enrolment.certificate.limits, ["10.128.0.0/9".parse().unwrap()]);
    let granted = |prefix: &str| {
        let prefix = prefix.parse().unwrap();
        enrolment.certificate.grants.iter().any(|grant| grant.prefix == prefix)
    };
    assert!(granted("10.129.0.0/24"));
    // Who lost the reply gets it again, without a document and after a restart.
    scene.world.restart();
    let again = scene.world.request_of(&scene.token, &TestMesh::key("a"), "a", &[]);
    let again = scene.world.decide(&again, NOW.plus(600)).unwrap();
    assert_eq!(again.reply, enrolled.reply);
    assert!(again.entries.is_empty());
}

#[test]
fn without_a_document_nobody_is_admitted() {
    let mut scene = Scene::new(|_| {});
    let bare = scene.world.request_of(&scene.token, &TestMesh::key("a"), "a", &[]);
    let refused = scene.world.decide(&bare, NOW).unwrap_err();
    assert_eq!(refused.refusal.code, Code::IdentityRequired);
    assert!(refused.fix.contains("--identity"), "{refused}");
    scene.world.issuers = None;
    let document = scene.document("a");
    let refused = scene.refused("a", "a", &document, Code::IdentityIssuer);
    assert!(refused.to_string().contains("knows no issuer idp"), "{refused}");
}

#[test]
fn nobody_else_can_use_a_document_that_is_bound_to_a_key() {
    let mut scene = Scene::new(|_| {});
    let document = scene.document("a");
    scene.refused("thief", "a", &document, Code::IdentityAudience);
    scene.join("a").map(drop).unwrap();
    scene.refused("thief", "a", &document, Code::IdentityAudience);
}

#[test]
fn a_document_that_is_not_bound_admits_the_first_key_only() {
    let mut scene = Scene::first_use(|terms| terms.rules[0].once = false);
    let document = scene.document("a");
    scene.join_as("a", "a", &document).map(drop).unwrap();
    for _ in 0..2 {
        let told = scene.refused("thief", "a", &document, Code::IdentityUsed).to_string();
        assert!(told.contains("has admitted another host already"), "{told}");
        assert!(!told.contains(&document[..20]));
        scene.world.restart();
    }
    // Signed anew by its issuer, with the same number: still the same document.
    let again = scene.document("a");
    assert_ne!(again, document);
    scene.refused("thief", "a", &again, Code::IdentityUsed);
}

#[test]
fn a_refused_document_is_not_used_up() {
    let mut scene = Scene::first_use(|_| {});
    let document = scene.document("a");
    scene.refused("a", "b", &document, Code::IdentityName);
    scene.refused("thief", "b", &document, Code::IdentityName);
    scene.join_as("a", "a", &document).map(drop).unwrap();
}

#[test]
fn subjects_that_stand_for_many_admit_many() {
    let mut scene = Scene::new(|terms| {
        terms.rules[0].subject = Template::parse("everybody").unwrap();
        terms.rules[0].once = false;
    });
    scene.join("a").map(drop).unwrap();
    scene.join("b").map(drop).unwrap();
    let document = scene.document("a");
    scene.refused("c", "a", &document, Code::IdentityAudience);
}

#[test]
fn names_and_prefixes_of_others_stay_theirs() {
    let mut scene =
        Scene::new(|terms| terms.rules[0].prefixes = vec!["10.9.0.0/16".parse().unwrap()]);
    scene.join("a").map(drop).unwrap();
    let document = scene.document("b");
    scene.refused("b", "b", &document, Code::PrefixTaken);
    let mut scene = Scene::new(|_| {});
    let document = scene.document("signer");
    scene.refused("signer-2", "signer", &document, Code::IdentityAudience);
    let key = TestMesh::key("other").public();
    let mut claims = claims(scene.token.mesh_id(), &key, "signer");
    claims["sub"] = json!("another machine");
    let document = scene.fake.sign(&claims);
    scene.refused("other", "signer", &document, Code::NameTaken);
}

#[test]
fn a_limit_without_limit_is_refused_though_a_rule_says_it() {
    let mut scene = Scene::new(|terms| terms.rules[0].allow = vec!["0.0.0.0/0".parse().unwrap()]);
    let document = scene.document("a");
    scene.refused("a", "a", &document, Code::BadTerms);
}

/// What passes a member: it cannot be read, and moved into another request it does not open.
#[test]
fn who_forwards_a_document_can_neither_read_nor_use_it() {
    let mut scene = Scene::first_use(|_| {});
    let document = scene.document("a");
    let request = scene.request(&TestMesh::key("a"), "a", &document);
    let bytes = request.encode_to_vec();
    let found = |part: &str| bytes.windows(part.len()).any(|window| window == part.as_bytes());
    assert!(found("idp"), "the search finds nothing");
    let claims = document.split('.').nth(1).unwrap();
    assert!(!found(&document[..40]) && !found(&claims[..40]) && !found("machine:"));
    // The token is no secret, so a member can sign with its key, and with an identity of its own.
    let thief = TestMesh::key("thief");
    let body = wire::EnrolBody::decode(&request.body[..]).unwrap();
    let body = wire::EnrolBody { identity_key: thief.public().0.to_vec().into(), ..body };
    let body = body.encode_to_vec();
    let mesh = scene.token.mesh_id();
    let stolen = wire::EnrolRequest {
        token_signature: signing::sign(scene.token.seed(), Kind::EnrolToken, mesh, &body)
            .to_vec()
            .into(),
        identity_signature: thief.sign(Kind::EnrolIdentity, mesh, &body).to_vec().into(),
        body: body.into(),
    };
    assert!(decider(&stolen.encode_to_vec(), &scene.world.init.anchors, |_| false).is_ok());
    let refused = scene.world.decide(&stolen, NOW).unwrap_err();
    assert_eq!(refused.refusal.code, Code::IdentityMalformed, "{refused}");
    assert!(refused.to_string().contains("not sealed to this signer by this host"), "{refused}");
    scene.join_as("a", "a", &document).map(drop).unwrap();
}

/// An older signer that does not know of documents would take the grant for one that admits by itself.
#[test]
fn a_grant_that_admits_by_documents_never_passes_for_another() {
    let scene = Scene::new(|_| {});
    let text = scene.token.encode();
    let read = JoinToken::parse(&text).unwrap();
    assert_eq!(read.terms(), scene.token.terms());
    let grant = scene.token.grant();
    let verify = |kind| {
        let (key, mesh) = (&scene.token.terms().intermediate_key, scene.token.mesh_id());
        signing::verify(key, kind, mesh, &grant.payload, &grant.signature)
    };
    assert!(verify(Kind::IdentityGrant).is_ok() && verify(Kind::TokenGrant).is_err());
    // Without the word that it needs a document it is no grant either.
    let mut terms = wire::TokenGrant::decode(&grant.payload[..]).unwrap();
    terms.identity = None;
    let mut request = scene.world.request_of(&scene.token, &TestMesh::key("a"), "a", &[]);
    let mut body = wire::EnrolBody::decode(&request.body[..]).unwrap();
    body.grant.as_mut().unwrap().payload = terms.encode_to_vec().into();
    let body = body.encode_to_vec();
    let mesh = scene.token.mesh_id();
    request.token_signature =
        signing::sign(scene.token.seed(), Kind::EnrolToken, mesh, &body).to_vec().into();
    request.identity_signature =
        TestMesh::key("a").sign(Kind::EnrolIdentity, mesh, &body).to_vec().into();
    request.body = body.into();
    let anchors = &scene.world.init.anchors;
    let refused = decider(&request.encode_to_vec(), anchors, |_| false).unwrap_err();
    assert_eq!(refused.code, Code::BadSignature);
}

#[test]
fn the_largest_document_fits_a_request_and_a_larger_one_is_refused_at_home() {
    let scene = Scene::new(|_| {});
    let key = TestMesh::key("a");
    let build = |length: usize| {
        let wanted: Vec<_> =
            (0..64).map(|i| format!("2001:db8:{i:x}::/64").parse().unwrap()).collect();
        let document = vec![b'x'; length];
        let name = "a".parse().unwrap();
        build_identity_request(&scene.token, &key, &name, &wanted, &document, [9; 16], NOW)
    };
    let largest = build(crate::limits::IDENTITY_DOCUMENT).unwrap().encoded_len();
    assert!(largest <= crate::limits::ENROL_MESSAGE, "{largest}");
    for length in [0, crate::limits::IDENTITY_DOCUMENT + 1] {
        assert_eq!(build(length).unwrap_err().code, Code::IdentityMalformed);
    }
    let mut world = World::new();
    let plain = world.token(open_token());
    let name = "a".parse().unwrap();
    let refused = build_identity_request(&plain, &key, &name, &[], b"x", [9; 16], NOW).unwrap_err();
    assert!(refused.detail.contains("takes no identity document"), "{refused}");
}

#[test]
fn keys_are_asked_for_only_when_the_request_could_be_granted() {
    let mut scene = Scene::new(|_| {});
    let unknown = Issuers::new([terms(Binding::Key)]);
    let wants = |signer: &Signer, request: &wire::EnrolRequest, now: UnixTime| {
        signer.wants_keys(&request.encode_to_vec(), &unknown, now)
    };
    let document = scene.document("a");
    let request = scene.request(&TestMesh::key("a"), "a", &document);
    assert_eq!(wants(&scene.world.signer, &request, NOW).as_deref(), Some("idp"));
    assert_eq!(wants(&scene.world.signer, &request, NOW.plus(100_000)), None, "the token is over");
    let garbage = scene.request(&TestMesh::key("a"), "a", "a.b.c");
    assert_eq!(wants(&scene.world.signer, &garbage, NOW), None);
    let bare = scene.world.request_of(&scene.token, &TestMesh::key("a"), "a", &[]);
    assert_eq!(wants(&scene.world.signer, &bare, NOW), None);
    let plain = scene.world.token(open_token());
    let plain = scene.world.request_of(&plain, &TestMesh::key("a"), "a", &[]);
    assert_eq!(wants(&scene.world.signer, &plain, NOW), None);
    scene.join("a").map(drop).unwrap();
    assert_eq!(wants(&scene.world.signer, &request, NOW), None, "it has its answer");
}

#[test]
fn who_was_admitted_by_a_document_renews_as_others_do() {
    let mut scene = Scene::new(|_| {});
    let enrolled = scene.join("a").unwrap();
    let first = accept(&enrolled.reply, &scene.token, "a").unwrap().certificate;
    let identity = NodeIdentity::new(TestMesh::key("a"), Arc::new(first.clone())).unwrap();
    // Its issuer is gone by then.
    scene.world.issuers = None;
    scene.world.restart();
    let later = NOW.plus(20 * 24 * 3600);
    let wanted = ["10.130.0.0/24".parse().unwrap()];
    let request = build_renewal(&identity, &wanted, false, [8; 16], later);
    let renewed = scene.world.decide(&request, later).unwrap();
    assert!(renewed.renewal && renewed.voucher.is_none());
    let next = accept(&renewed.reply, &scene.token, "a").unwrap().certificate;
    scene.world.persist(renewed.entries);
    assert!(next.not_after > first.not_after);
    assert_eq!((&next.groups, &next.limits), (&first.groups, &first.limits));
    assert!(next.grants.iter().any(|grant| grant.prefix == wanted[0]));
    // And its subject is still its own.
    scene.world.issuers = Some(scene.fake.issuers(terms(Binding::Key)));
    let mut claims = claims(scene.token.mesh_id(), &TestMesh::key("b").public(), "b");
    claims["sub"] = json!("machine:a");
    let document = scene.fake.sign(&claims);
    scene.refused("b", "b", &document, Code::IdentityUsed);
}

#[test]
fn such_a_token_grants_nothing_itself() {
    let mut world = World::new();
    for change in [
        TokenParams { allow: vec!["10.128.0.0/9".parse().unwrap()], ..open_token() },
        TokenParams { groups: vec!["x".into()], allow: Vec::new(), ..open_token() },
    ] {
        let params = TokenParams { issuer: Some(terms(Binding::Key)), ..change };
        let refused = world.signer.create_token(params, NOW, &mut world.rng).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms);
        assert!(refused.fix.contains("rules"), "{refused}");
    }
}

#[test]
fn a_token_that_admits_by_documents_outlives_a_rollover_of_the_root() {
    let mut scene = Scene::new(|_| {});
    rotate(&mut scene.world);
    let enrolled = scene.join("a").unwrap();
    let accepted = accept(&enrolled.reply, &scene.token, "a").unwrap();
    assert_ne!(accepted.anchors.root_key(), scene.world.init.anchors.root_key());
    let key = accepted.anchors.issuer_key(&accepted.certificate);
    assert_eq!(key, Some(scene.world.signer.public()));
}

#[test]
fn a_token_that_this_signer_cannot_open_documents_for_says_so() {
    let mut scene = Scene::new(|_| {});
    let (init, disk) = (&scene.world.init, scene.world.disk.iter().map(Vec::as_slice));
    let (der, seed) = (init.intermediate.der(), init.intermediate.seed());
    let other = TestMesh::key("another identity");
    scene.world.signer = Signer::open(init.anchors.clone(), der, &seed, &other, disk).unwrap();
    let document = scene.document("a");
    let told = scene.refused("a", "a", &document, Code::TokenUnknown).to_string();
    assert!(told.contains("key for this token is gone"), "{told}");
    assert!(told.contains("`meshctl token create --identity idp`"), "{told}");
}
