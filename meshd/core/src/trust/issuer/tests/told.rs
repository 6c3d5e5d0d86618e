//! By which clock a document is judged, and what its joiner is told.

use serde_json::{Value, json};

use super::{
    documents::{MESH, judge_as, of_a, refused, with},
    fake::{Fake, terms},
};
use crate::{
    refusal::Code,
    trust::{
        fixture::{NOW, TestMesh},
        issuer::{Binding, Clock, IssuerTerms, Joiner},
    },
};

#[test]
fn a_signer_whose_clock_is_behind_brings_no_document_back_to_life() {
    let fake = Fake::new();
    let key = TestMesh::key("a").public();
    let name = "a".parse().unwrap();
    let joiner = Joiner { mesh: &MESH, key: &key, name: &name };
    let judge = |wall: i64, latest: i64, claims: Value| {
        let issuers = fake.issuers(terms(Binding::Key));
        let now = Clock { wall: NOW.plus(wall), latest: NOW.plus(latest) };
        let judged = issuers.judge("idp", fake.sign(&with(claims)).as_bytes(), joiner, now);
        judged.map(drop).map_err(|refused| refused.refusal.code)
    };
    let day = 86_400;
    let iat = NOW.0 - 10;
    assert_eq!(judge(0, 0, json!({ "iat": iat })), Ok(()));
    assert_eq!(judge(0, 661, json!({ "iat": iat })), Err(Code::IdentityExpired), "its end");
    let long = json!({ "iat": iat, "exp": NOW.0 + 9 * day });
    assert_eq!(judge(0, 3_000, long.clone()), Ok(()));
    assert_eq!(judge(0, 3_651, long), Err(Code::IdentityExpired), "its age");
    // What has not begun is judged by this clock: the signers' time is no more than an hour behind it.
    let ahead = json!({ "nbf": NOW.0 + 61, "iat": iat });
    assert_eq!(judge(0, 61, ahead), Err(Code::IdentityNotYetValid));
}

#[test]
fn a_refusal_says_what_was_found_and_what_is_taken() {
    let fake = Fake::new();
    let told = |claims: Value, code| refused(&fake, &fake.sign(&with(claims)), code).to_string();
    let iss = told(json!({ "iss": "https://evil\u{1b}[2J" }), Code::IdentityIssuer);
    assert!(iss.contains("it is from https://evil\\u{1b}[2J, not from https://issuer"), "{iss}");
    let aud = told(json!({ "aud": ["one", "two"] }), Code::IdentityAudience);
    assert!(aud.contains("this host's key, but one, two;"), "{aud}");
    let long = told(json!({ "aud": "x\u{7}".repeat(500) }), Code::IdentityAudience);
    assert!(long.contains("x\\u{7}x") && long.len() < 400 && !long.contains('\u{7}'), "{long}");
    let header = json!({ "alg": "ES256", "kid": "new\u{1b}" }).to_string();
    let unknown = fake.sign_parts("ES256", &header, &of_a().to_string());
    let unknown = refused(&fake, &unknown, Code::IdentityKeyUnknown).to_string();
    assert!(unknown.contains("no key named new\\u{1b} for ES256"), "{unknown}");
    let forged = refused(&fake, &Fake::new().sign(&of_a()), Code::IdentitySignature).to_string();
    assert!(forged.contains("jwks_file") && forged.contains("jwks_url"), "{forged}");
    let only =
        IssuerTerms { algorithms: vec!["ES384".into(), "EdDSA".into()], ..terms(Binding::Key) };
    let other = judge_as(&fake, only, &fake.sign(&of_a()), "a").unwrap_err().to_string();
    assert!(other.contains("idp may not sign with ES256"), "{other}");
    assert!(other.contains("have the issuer sign with ES384 or EdDSA"), "{other}");
}
