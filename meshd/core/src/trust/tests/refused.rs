//! Joining, as it must not go: one test per way to cheat or to fail.

use meshd_proto::wire;
use proptest::prelude::*;
use prost::Message;

use super::world::{World, accept, open_token};
use crate::{
    limits,
    refusal::Code,
    trust::{
        EnrolError, IdentityKey, JoinToken, Known, TokenParams, build_request, decider,
        fixture::{NOW, TestMesh},
        signing::{self, Kind},
    },
};

fn code(world: &mut World, request: &wire::EnrolRequest) -> Code {
    let refused = world.decide(request, NOW).unwrap_err();
    assert!(!refused.fix.is_empty());
    refused.refusal.code
}

/// Changes the body and signs it again as the joiner would.
fn resigned(
    token: &JoinToken,
    key: &IdentityKey,
    request: &wire::EnrolRequest,
    change: impl FnOnce(&mut wire::EnrolBody),
) -> wire::EnrolRequest {
    let mut body = wire::EnrolBody::decode(&request.body[..]).unwrap();
    change(&mut body);
    let body = body.encode_to_vec();
    let mesh = token.mesh_id();
    wire::EnrolRequest {
        token_signature: signing::sign(token.seed(), Kind::EnrolToken, mesh, &body).to_vec().into(),
        identity_signature: key.sign(Kind::EnrolIdentity, mesh, &body).to_vec().into(),
        body: body.into(),
    }
}

#[test]
fn expired_used_up_and_misnamed_tokens_are_refused() {
    let mut world = World::new();
    let token = world.token(TokenParams { uses: 1, ttl_seconds: 60, ..open_token() });
    let key = TestMesh::key("a");
    let late = build_request(&token, &key, &"a".parse().unwrap(), &[], [1; 16], NOW.plus(61));
    let refused = world.decide(&late, NOW.plus(61)).unwrap_err();
    assert_eq!(refused.refusal.code, Code::TokenExpired);
    world.join(&token, "a", &[]).unwrap();
    let request = world.request(&token, "b", &[]);
    assert_eq!(code(&mut world, &request), Code::TokenUsed);
    let only = TokenParams { node_name: Some("c".parse().unwrap()), uses: 1, ..open_token() };
    let named = world.token(only);
    let request = world.request(&named, "b", &[]);
    assert_eq!(code(&mut world, &request), Code::TokenName);
}

#[test]
fn requests_that_are_stale_or_from_the_future_are_refused() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]);
    let refused = world.decide(&request, NOW.plus(601)).unwrap_err();
    assert_eq!(refused.refusal.code, Code::PastDate);
    assert!(refused.fix.contains("clock"));
    let refused = world.decide(&request, NOW.plus(-601)).unwrap_err();
    assert_eq!(refused.refusal.code, Code::ClockSkew);
}

#[test]
fn a_token_that_the_signer_does_not_know_is_refused() {
    let mut world = World::new();
    let (token, _not_kept) = world.signer.create_token(open_token(), NOW, &mut world.rng).unwrap();
    let request = world.request(&token, "a", &[]);
    assert_eq!(code(&mut world, &request), Code::TokenUnknown);
    let mut other = World::with(&super::world::params(), 2);
    let foreign = other.token(open_token());
    let request = world.request(&foreign, "a", &[]);
    assert_eq!(code(&mut world, &request), Code::OtherMesh);
    assert_eq!(
        decider(&request.encode_to_vec(), &world.init.anchors, |_| false).unwrap_err().code,
        Code::OtherMesh
    );
}

#[test]
fn a_grant_that_was_widened_is_refused() {
    let mut world = World::new();
    let token = world.token(open_token());
    let key = TestMesh::key("a");
    let request = world.request(&token, "a", &[]);
    let widened = resigned(&token, &key, &request, |body| {
        let grant = body.grant.as_mut().unwrap();
        let mut terms = wire::TokenGrant::decode(&grant.payload[..]).unwrap();
        terms.uses = 10_000;
        grant.payload = terms.encode_to_vec().into();
    });
    assert_eq!(code(&mut world, &widened), Code::BadSignature);
    // Signed by an intermediate that the holder made up.
    let own = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let mesh = *token.mesh_id();
    let made_up = resigned(&token, &key, &request, |body| {
        let grant = body.grant.as_mut().unwrap();
        let mut terms = wire::TokenGrant::decode(&grant.payload[..]).unwrap();
        terms.intermediate_key = own.verifying_key().to_bytes().to_vec().into();
        let payload = terms.encode_to_vec();
        grant.signature = signing::sign(&own, Kind::TokenGrant, &mesh, &payload).to_vec().into();
        grant.payload = payload.into();
    });
    assert_eq!(code(&mut world, &made_up), Code::TokenUnknown);
}

#[test]
fn a_carrier_cannot_put_its_own_key_into_a_request() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]);
    let thief = TestMesh::key("thief");
    // It has no token: it can sign as itself only.
    let mut body = wire::EnrolBody::decode(&request.body[..]).unwrap();
    body.identity_key = thief.public().0.to_vec().into();
    let body = body.encode_to_vec();
    let signature = thief.sign(Kind::EnrolIdentity, token.mesh_id(), &body);
    let stolen = wire::EnrolRequest {
        identity_signature: signature.to_vec().into(),
        token_signature: request.token_signature.clone(),
        body: body.into(),
    };
    assert_eq!(code(&mut world, &stolen), Code::BadSignature);
    // Who has a token cannot ask in another's name either: the identity signs too.
    let victim = TestMesh::key("victim").public();
    let forged =
        resigned(&token, &thief, &request, |body| body.identity_key = victim.0.to_vec().into());
    assert_eq!(code(&mut world, &forged), Code::BadSignature);
    for strip in [
        (|request| request.token_signature = Default::default()) as fn(&mut wire::EnrolRequest),
        |request| request.identity_signature = Default::default(),
        |request| std::mem::swap(&mut request.token_signature, &mut request.identity_signature),
    ] {
        let mut bare = request.clone();
        strip(&mut bare);
        assert_eq!(code(&mut world, &bare), Code::BadSignature);
    }
}

#[test]
fn requests_with_senseless_fields_are_refused() {
    let mut world = World::new();
    let token = world.token(open_token());
    let key = TestMesh::key("a");
    let request = world.request(&token, "a", &[]);
    for change in [
        (|body| body.name = "A b".into()) as fn(&mut wire::EnrolBody),
        |body| body.name = String::new(),
        |body| body.nonce = Default::default(),
        |body| body.identity_key = vec![1; 31].into(),
        |body| body.grant = None,
        |body| {
            let address = vec![10, 0, 0, 1].into();
            body.wanted = vec![wire::IpPrefix { address, length: 8 }];
        },
    ] {
        let changed = resigned(&token, &key, &request, change);
        assert_eq!(code(&mut world, &changed), Code::Malformed);
    }
    let mapped = resigned(&token, &key, &request, |body| {
        let v6: std::net::Ipv6Addr = "::ffff:10.0.0.0".parse().unwrap();
        body.wanted = vec![wire::IpPrefix { address: v6.octets().to_vec().into(), length: 104 }];
    });
    assert_eq!(code(&mut world, &mapped), Code::Malformed);
    let many = resigned(&token, &key, &request, |body| {
        let one = wire::IpPrefix { address: vec![10, 0, 0, 0].into(), length: 8 };
        body.wanted = vec![one; limits::ENROL_PREFIXES + 1];
    });
    assert_eq!(code(&mut world, &many), Code::TooLarge);
    let huge = vec![0; limits::ENROL_MESSAGE + 1];
    let refused = decider(&huge, &world.init.anchors, |_| false).unwrap_err();
    assert_eq!(refused.code, Code::TooLarge);
}

#[test]
fn reserved_prefixes_are_not_granted_though_a_limit_is_wide() {
    let mut world = World::new();
    let token = world.token(TokenParams {
        allow: vec!["100.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ..open_token()
    });
    let ula = crate::address::ula_prefix(world.init.anchors.mesh_id()).to_string();
    let wanted = ["100.112.9.0/24", "fe80::/64", &ula, "100.64.0.0/24"];
    let enrolment = world.join(&token, "a", &wanted).unwrap();
    let refused: Vec<String> = enrolment.not_granted.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["100.112.9.0/24", &ula, "fe80::/64"]);
}

#[test]
fn an_answer_is_believed_for_this_key_name_and_mesh_only() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]);
    let reply = world.decide(&request, NOW).unwrap().reply;
    assert!(accept(&reply, &token, "a").is_ok());
    let other = world.request(&token, "b", &[]);
    let others = world.decide(&other, NOW).unwrap().reply;
    let error = accept(&others, &token, "a").unwrap_err();
    assert_eq!(error.code(), Code::IdentityMismatch.as_str());
    let key = TestMesh::key("a").public();
    let error =
        crate::trust::accept_reply(&reply, &token, &key, &"c".parse().unwrap()).unwrap_err();
    assert_eq!(error.code(), Code::NameMismatch.as_str());

    // A carrier with a CA of its own, of the same name and id.
    let forger = TestMesh::with_id(9, *token.mesh_id());
    let forged = |root: &TestMesh, bundle: wire::SignedBundle| {
        let certificate = root.node("a", &[]).certificate.der.clone();
        let mut accepted = match reply.result.clone() {
            Some(wire::enrol_reply::Result::Accepted(accepted)) => accepted,
            _ => panic!("accepted"),
        };
        accepted.certificate = certificate;
        accepted.bundle = Some(bundle);
        accepted
    };
    let wrap =
        |accepted| wire::EnrolReply { result: Some(wire::enrol_reply::Result::Accepted(accepted)) };
    let bundle = forger.anchors.signed_bundle().clone();
    let mut accepted = forged(&forger, bundle.clone());
    let error = accept(&wrap(accepted.clone()), &token, "a").unwrap_err();
    assert_eq!(error.code(), Code::BadSignature.as_str(), "its bundle under our root");
    accepted.root = forger.root.der().to_vec().into();
    let error = accept(&wrap(accepted), &token, "a").unwrap_err();
    assert_eq!(error.code(), Code::UntrustedChain.as_str(), "its root");
    let ours = world.init.anchors.signed_bundle().clone();
    let error = accept(&wrap(forged(&forger, ours)), &token, "a").unwrap_err();
    assert_eq!(error.code(), Code::UnknownIssuer.as_str(), "its certificate");
    let elsewhere = TestMesh::new(4);
    let mut accepted = forged(&elsewhere, bundle);
    accepted.root = elsewhere.root.der().to_vec().into();
    let error = accept(&wrap(accepted), &token, "a").unwrap_err();
    assert_eq!(error.code(), Code::OtherMesh.as_str());
    assert!(accept(&wire::EnrolReply::default(), &token, "a").is_err());
}

#[test]
fn a_refusal_reaches_the_joiner_and_cannot_play_with_its_terminal() {
    let token = World::new().token(open_token());
    let refused = |code: &str| wire::EnrolReply {
        result: Some(wire::enrol_reply::Result::Refused(wire::EnrolRefused {
            code: code.into(),
            message: format!("no\u{1b}[2J\n{}", "x".repeat(5_000)),
            fix: "try\u{7}".into(),
        })),
    };
    let error = accept(&refused("token_expired"), &token, "a").unwrap_err();
    assert_eq!(error.code(), "token_expired");
    assert!(!error.to_string().chars().any(char::is_control));
    assert!(error.to_string().len() < 700);
    let odd = accept(&refused("\u{1b}"), &token, "a").unwrap_err();
    assert!(matches!(odd, EnrolError::Refused { ref code, .. } if code == "refused"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_flipped_bit_of_a_request_is_answered(position in 0.0..1.0_f64, bit in 0..8_u8) {
        let mut world = World::new();
        let token = world.token(open_token());
        let mut bytes = world.request(&token, "a", &["10.200.1.0/24"]).encode_to_vec();
        let index = ((bytes.len() - 1) as f64 * position) as usize;
        bytes[index] ^= 1 << bit;
        let verdict = world.signer.enrol(&bytes, Known::default(), &[], NOW, &mut world.rng);
        prop_assert!(verdict.is_err(), "byte {}", index);
    }

    #[test]
    fn no_flipped_bit_of_an_answer_misleads(position in 0.0..1.0_f64, bit in 0..8_u8) {
        let mut world = World::new();
        let token = world.token(open_token());
        let request = world.request(&token, "a", &["10.200.1.0/24"]);
        let reply = world.decide(&request, NOW).unwrap().reply;
        let honest = accept(&reply, &token, "a").unwrap();
        let mut bytes = reply.encode_to_vec();
        let index = ((bytes.len() - 1) as f64 * position) as usize;
        bytes[index] ^= 1 << bit;
        // What is not signed is only for display; the rest is as it was, or refused.
        if let Ok(Ok(changed)) =
            wire::EnrolReply::decode(&bytes[..]).map(|reply| accept(&reply, &token, "a"))
        {
            prop_assert_eq!(changed.certificate, honest.certificate);
            prop_assert_eq!(changed.anchors.root_key(), honest.anchors.root_key());
            prop_assert_eq!(changed.anchors.signed_bundle(), honest.anchors.signed_bundle());
        }
    }

    #[test]
    fn no_bytes_make_the_signer_or_the_joiner_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..500),
    ) {
        let mut world = World::new();
        let token = world.token(open_token());
        prop_assert!(world.signer.enrol(&bytes, Known::default(), &[], NOW, &mut world.rng).is_err());
        let _ = crate::trust::LedgerEntry::decode(&bytes, token.mesh_id());
        if let Ok(reply) = wire::EnrolReply::decode(&bytes[..]) {
            prop_assert!(accept(&reply, &token, "a").is_err());
        }
    }
}
