//! What a document must be, and what no document may be.

use data_encoding::BASE64URL_NOPAD as BASE64;
use meshd_proto::MeshId;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fake::{self, Fake, ISSUER, claims, first_use, terms};
use crate::{
    refusal::Code,
    trust::{
        fixture::{NOW, TestMesh},
        grants::EnrolRefusal,
        issuer::{
            ALGORITHMS, Binding, Clock, Document, IssuerTerms, Joiner, KeySet, Naming, Pointer,
            Template, Vouched, Wanted, mesh_audience,
        },
    },
};

pub(super) const MESH: MeshId = MeshId([7; 16]);

pub(super) fn judge_as(
    fake: &Fake,
    terms: IssuerTerms,
    document: &str,
    name: &str,
) -> Result<Vouched, EnrolRefusal> {
    let key = TestMesh::key("a").public();
    let name = name.parse().unwrap();
    let joiner = Joiner { mesh: &MESH, key: &key, name: &name };
    let now = Clock { wall: NOW, latest: NOW };
    fake.issuers(terms).judge("idp", document.as_bytes(), joiner, now)
}

pub(super) fn judge(fake: &Fake, document: &str) -> Result<Vouched, EnrolRefusal> {
    judge_as(fake, terms(Binding::Key), document, "a")
}

pub(super) fn refused(fake: &Fake, document: &str, code: Code) -> EnrolRefusal {
    let refused = judge(fake, document).unwrap_err();
    assert_eq!(refused.refusal.code, code, "{refused}");
    assert!(!refused.fix.is_empty());
    refused
}

pub(super) fn of_a() -> Value {
    claims(&MESH, &TestMesh::key("a").public(), "a")
}

/// The claims of a good document with some changed; `null` takes one out.
pub(super) fn with(changes: Value) -> Value {
    let mut all = of_a();
    let Value::Object(changes) = changes else { panic!("no object") };
    for (name, value) in changes {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(&name);
        } else {
            all[name] = value;
        }
    }
    all
}

#[test]
fn a_document_of_every_algorithm_admits_to_what_its_rule_says() {
    let fake = Fake::new();
    for algorithm in ALGORITHMS {
        let vouched = judge(&fake, &fake.sign_with(algorithm, &of_a())).unwrap();
        assert_eq!(vouched.voucher.issuer, "idp");
        assert_eq!(vouched.voucher.rule, "nodes");
        assert_eq!(vouched.groups, ["k8s"]);
        assert_eq!(vouched.allow, fake::rule().allow);
        let only = IssuerTerms { algorithms: vec!["ES384".into()], ..terms(Binding::Key) };
        let other = judge_as(&fake, only, &fake.sign_with(algorithm, &of_a()), "a");
        assert_eq!(other.is_ok(), algorithm == "ES384", "{algorithm}: only what the file allows");
    }
}

#[test]
fn a_document_that_nobody_signed_or_somebody_else_did_is_refused() {
    let (fake, thief) = (Fake::new(), Fake::new());
    refused(&fake, &thief.sign(&of_a()), Code::IdentitySignature);
    let good = fake.sign(&of_a());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let none =
        |alg: &str| format!("{}.{}.", fake::part(&json!({ "alg": alg })), fake::part(&of_a()));
    for alg in ["none", "None", "NONE", "", "HS256", "RS512", "ES256K", "a\u{1b}[2J"] {
        let told = refused(&fake, &none(alg), Code::IdentityAlgorithm);
        assert!(!told.to_string().contains('\u{1b}'), "{told}");
    }
    refused(&fake, &format!("{message}."), Code::IdentitySignature);
    // The classic: the public key, which everybody has, as the secret of an HMAC.
    let public = fake.jwks()["keys"][0].to_string();
    let header = fake::part(&json!({ "alg": "HS256", "kid": "ES256" }));
    let hmac_message = format!("{header}.{}", fake::part(&of_a()));
    let secret = jsonwebtoken::EncodingKey::from_secret(public.as_bytes());
    let algorithm = jsonwebtoken::Algorithm::HS256;
    let hmac = jsonwebtoken::crypto::sign(hmac_message.as_bytes(), &secret, algorithm).unwrap();
    refused(&fake, &format!("{hmac_message}.{hmac}"), Code::IdentityAlgorithm);
    // Content changed under a good signature, and a good signature under another algorithm's name.
    let wider = with(json!({ "sub": "machine:b" }));
    let header = message.split_once('.').unwrap().0;
    let forged = format!("{header}.{}.{signature}", fake::part(&wider));
    refused(&fake, &forged, Code::IdentitySignature);
    let renamed = json!({ "alg": "EdDSA", "kid": "EdDSA" });
    let forged = format!("{}.{}.{signature}", fake::part(&renamed), fake::part(&of_a()));
    refused(&fake, &forged, Code::IdentitySignature);
}

#[test]
fn a_key_verifies_only_under_its_own_name_and_kind() {
    let fake = Fake::new();
    let document =
        |header: Value| fake.sign_parts("ES256", &header.to_string(), &of_a().to_string());
    judge(&fake, &document(json!({ "alg": "ES256" }))).unwrap();
    refused(&fake, &document(json!({ "alg": "ES256", "kid": "new" })), Code::IdentityKeyUnknown);
    refused(&fake, &document(json!({ "alg": "ES256", "kid": "ES384" })), Code::IdentityKeyUnknown);
    refused(&fake, &document(json!({ "alg": "RS256", "kid": "PS256" })), Code::IdentityKeyUnknown);
    // A key that the document brings itself is nobody's.
    let own = Fake::new();
    let header =
        json!({ "alg": "ES256", "jwk": own.jwks()["keys"][0], "jku": "https://evil.example" });
    let brought = own.sign_parts("ES256", &header.to_string(), &of_a().to_string());
    refused(&fake, &brought, Code::IdentitySignature);
    for header in [
        json!({ "alg": "ES256", "crit": ["exp"] }),
        json!({ "alg": "ES256", "b64": false }),
        json!({ "alg": "ES256", "kid": 7 }),
        json!({ "kid": "ES256" }),
    ] {
        refused(&fake, &document(header), Code::IdentityMalformed);
    }
}

#[test]
fn issuer_audience_and_dates_decide() {
    let fake = Fake::new();
    let now = NOW.0;
    let other_key = claims(&MESH, &TestMesh::key("b").public(), "a")["aud"].clone();
    let other_mesh = claims(&MeshId([8; 16]), &TestMesh::key("a").public(), "a")["aud"].clone();
    let cases = [
        (json!({ "iss": "https://issuer.example/" }), Code::IdentityIssuer),
        (json!({ "aud": other_key }), Code::IdentityAudience),
        (json!({ "aud": other_mesh }), Code::IdentityAudience),
        (json!({ "aud": mesh_audience(&MESH) }), Code::IdentityAudience),
        (json!({ "aud": [] }), Code::IdentityAudience),
        (json!({ "exp": now - 60 }), Code::IdentityExpired),
        (json!({ "iat": now - 3661 }), Code::IdentityExpired),
        (json!({ "nbf": now + 61 }), Code::IdentityNotYetValid),
        (json!({ "iat": now + 61 }), Code::IdentityNotYetValid),
        (json!({ "iss": null }), Code::IdentityMalformed),
        (json!({ "aud": null }), Code::IdentityMalformed),
        (json!({ "exp": null }), Code::IdentityMalformed),
        (json!({ "iat": null }), Code::IdentityMalformed),
        (json!({ "iss": [ISSUER] }), Code::IdentityMalformed),
        (json!({ "aud": [1] }), Code::IdentityMalformed),
        (json!({ "aud": { "a": 1 } }), Code::IdentityMalformed),
        (json!({ "exp": format!("{}", now + 600) }), Code::IdentityMalformed),
        (json!({ "exp": -1 }), Code::IdentityMalformed),
        (json!({ "exp": 1e300 }), Code::IdentityMalformed),
        (json!({ "exp": u64::MAX }), Code::IdentityMalformed),
        (json!({ "nbf": true }), Code::IdentityMalformed),
    ];
    for (change, code) in cases {
        refused(&fake, &fake.sign(&with(change)), code);
    }
    for change in [
        json!({ "exp": now - 59 }),
        json!({ "iat": now - 3660 }),
        json!({ "nbf": now + 60 }),
        json!({ "nbf": null }),
        json!({ "exp": now as f64 + 0.5 }),
        json!({ "aud": ["https://elsewhere.example", of_a()["aud"]] }),
    ] {
        judge(&fake, &fake.sign(&with(change.clone())))
            .unwrap_or_else(|why| panic!("{change}: {why}"));
    }
}

#[test]
fn without_a_key_in_the_audience_the_mesh_is_the_only_one() {
    let fake = Fake::new();
    let judge = |aud: Value| {
        judge_as(&fake, terms(first_use(&MESH)), &fake.sign(&with(json!({ "aud": aud }))), "a")
    };
    judge(json!(mesh_audience(&MESH))).unwrap();
    judge(json!([mesh_audience(&MESH)])).unwrap();
    let shared = judge(json!([mesh_audience(&MESH), "https://elsewhere.example"])).unwrap_err();
    assert_eq!(shared.refusal.code, Code::IdentityAudience);
    assert!(shared.to_string().contains("for others too"), "{shared}");
    assert!(judge(json!(mesh_audience(&MeshId([8; 16])))).is_err());
    assert!(judge(of_a()["aud"].clone()).is_err(), "bound to a key, but not asked for");
}

#[test]
fn what_is_no_plain_document_is_refused_before_anything_is_verified() {
    let fake = Fake::new();
    let good = of_a().to_string();
    let header = r#"{"alg":"ES256"}"#;
    let twice = good.replacen('{', &format!(r#"{{"sub":"machine:b","aud":{},"#, of_a()["aud"]), 1);
    for claims in [&*twice, "[]", "null", "{", "\"x\"", "", r#"{"a":{"b":1,"b":2}}"#] {
        refused(&fake, &fake.sign_parts("ES256", header, claims), Code::IdentityMalformed);
    }
    let doubled = r#"{"alg":"none","alg":"ES256"}"#;
    refused(&fake, &fake.sign_parts("ES256", doubled, &good), Code::IdentityMalformed);
    let large = with(json!({ "more": "x".repeat(8_000) }));
    refused(&fake, &fake.sign(&large), Code::IdentityMalformed);
    let whole = fake.sign(&of_a());
    for text in
        ["", ".", "..", "...", "a.b.c", &format!("{whole}."), &format!("{whole}="), &whole[3..]]
    {
        refused(&fake, text, Code::IdentityMalformed);
    }
    // A JWE has five parts.
    refused(&fake, &format!("{whole}.a.b"), Code::IdentityMalformed);
    judge(&fake, &format!(" {whole}\n")).unwrap();
}

#[test]
fn a_rule_wants_every_claim_and_types_count() {
    let fake = Fake::new();
    let judge = |namespace: Value| {
        let kubernetes = json!({ "namespace": namespace, "node": { "name": "a" } });
        judge(&fake, &fake.sign(&with(json!({ "kubernetes.io": kubernetes }))))
    };
    judge(json!("meshd")).unwrap();
    judge(json!("infra-1")).unwrap();
    judge(json!(["x", "meshd"])).unwrap();
    for namespace in [
        json!("meshd2"),
        json!("Meshd"),
        json!(""),
        json!(7),
        json!(null),
        json!({}),
        json!([["meshd"]]),
    ] {
        let refused = judge(namespace).unwrap_err();
        assert_eq!(refused.refusal.code, Code::IdentityRule);
        let told = refused.to_string();
        assert!(told.contains("nodes wants another /kubernetes.io/namespace"), "{told}");
        assert!(!told.contains("infra-"), "what a rule wants is nobody's business: {told}");
    }
    let mut numbers = terms(Binding::Key);
    numbers.rules[0].claims = vec![
        (Pointer::parse("/project").unwrap(), vec![Wanted::Number(1)]),
        (Pointer::parse("/verified").unwrap(), vec![Wanted::Bool(true)]),
        (Pointer::parse("/https:~1~1example.com~1role").unwrap(), vec![Wanted::Text("x".into())]),
    ];
    let judge = |project: Value, verified: Value| {
        let role = "https://example.com/role";
        let claims = with(json!({ "project": project, "verified": verified, role: "x" }));
        judge_as(&fake, numbers.clone(), &fake.sign(&claims), "a").is_ok()
    };
    assert!(judge(json!(1), json!(true)));
    assert!(!judge(json!("1"), json!(true)) && !judge(json!(1.5), json!(true)));
    assert!(!judge(json!(1), json!("true")) && !judge(json!(1), json!(1)));
}

#[test]
fn the_first_rule_that_fits_decides() {
    let fake = Fake::new();
    let mut two = terms(Binding::Key);
    let mut second = two.rules[0].clone();
    two.rules[0].claims.push((Pointer::parse("/sub").unwrap(), vec![Wanted::Text("other".into())]));
    second.name = "second".into();
    second.groups = Vec::new();
    two.rules.push(second);
    let vouched = judge_as(&fake, two.clone(), &fake.sign(&of_a()), "a").unwrap();
    assert_eq!((vouched.voucher.rule.as_str(), vouched.groups.len()), ("second", 0));
    two.rules.clear();
    assert!(judge_as(&fake, two, &fake.sign(&of_a()), "a").is_err(), "no rule admits nobody");
}

#[test]
fn a_rule_gives_the_name() {
    let fake = Fake::new();
    let refusal = judge_as(&fake, terms(Binding::Key), &fake.sign(&of_a()), "b").unwrap_err();
    assert_eq!(refusal.refusal.code, Code::IdentityName);
    assert!(refusal.to_string().contains("admits a, not b"), "{refusal}");
    assert!(refusal.fix.contains("--name a"), "{refusal}");
    let mut prefix = terms(Binding::Key);
    prefix.rules[0].naming = Naming::Prefix("db-".into());
    let as_name = |name: &str| judge_as(&fake, prefix.clone(), &fake.sign(&of_a()), name);
    as_name("db-1").unwrap();
    assert_eq!(as_name("web-1").unwrap_err().refusal.code, Code::IdentityName);
    for name in [json!("a b"), json!(""), json!(["a"]), json!("x".repeat(600)), json!("../a")] {
        let kubernetes = json!({ "namespace": "meshd", "node": { "name": name } });
        let document = fake.sign(&with(json!({ "kubernetes.io": kubernetes })));
        assert!(judge(&fake, &document).is_err(), "{name}");
    }
    // A cloud's names may be in capitals; a node's are not.
    let kubernetes = json!({ "namespace": "meshd", "node": { "name": "A" } });
    judge(&fake, &fake.sign(&with(json!({ "kubernetes.io": kubernetes })))).unwrap();
}

#[test]
fn numbers_and_subjects_tell_documents_and_machines_apart() {
    let fake = Fake::new();
    let voucher = |claims: &Value| judge(&fake, &fake.sign(claims)).unwrap().voucher;
    let first = voucher(&of_a());
    assert_eq!(
        first,
        voucher(&of_a()),
        "an ECDSA signature is another each time, the number is not"
    );
    let later = voucher(&with(json!({ "jti": "other" })));
    assert_ne!(first.document, later.document);
    assert_eq!(first.subject, later.subject);
    assert_ne!(first.subject, voucher(&with(json!({ "sub": "machine:b" }))).subject);
    let elsewhere = super::super::subject_hash(&MeshId([8; 16]), ISSUER, "machine:a");
    assert_ne!(
        first.subject, elsewhere,
        "nobody tells from hashes that two meshes have one machine"
    );
    let unnumbered = with(json!({ "jti": null }));
    assert_eq!(voucher(&unnumbered).document, voucher(&unnumbered).document);
    let another = with(json!({ "jti": null, "more": 1 }));
    assert_ne!(voucher(&unnumbered).document, voucher(&another).document);
    let mut by_node = terms(Binding::Key);
    by_node.rules[0].subject = Template::parse("{/project}/{/kubernetes.io/node/name}").unwrap();
    let document = fake.sign(&with(json!({ "project": 7 })));
    judge_as(&fake, by_node.clone(), &document, "a").unwrap();
    let refused = judge_as(&fake, by_node, &fake.sign(&of_a()), "a").unwrap_err();
    assert!(refused.to_string().contains("/project"), "{refused}");
}

#[test]
fn pointers_and_templates_that_cannot_be_meant_are_refused() {
    for text in ["", "/", "sub", "kubernetes.io/namespace", "/a~", "/a~2b"] {
        assert!(Pointer::parse(text).is_err(), "{text}");
    }
    for text in ["{", "{/a", "a}", "{a}", "{}", "{/a}}", &"x".repeat(600)] {
        assert!(Template::parse(text).is_err(), "{text}");
    }
    assert!(Template::parse("x-{/a}-{/b/c}").unwrap().has_claims());
    assert!(!Template::parse("x").unwrap().has_claims());
}

#[test]
fn a_document_is_not_shown() {
    let fake = Fake::new();
    let document = fake.sign(&of_a());
    let shown = format!("{:?}", Document::read(document.as_bytes()).unwrap());
    assert!(shown.contains("redacted") && shown.len() < 60, "{shown}");
    let told = refused(
        &fake,
        &fake.sign(&with(json!({ "sub": "s3cret", "exp": 1 }))),
        Code::IdentityExpired,
    );
    assert!(!told.to_string().contains("s3cret"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), header in ".{0,80}", claims in ".{0,200}") {
        let _ = Document::read(&bytes);
        let _ = KeySet::read(&bytes);
        let parts = [header.as_bytes(), claims.as_bytes(), &bytes].map(|part| BASE64.encode(part));
        let _ = Document::read(parts.join(".").as_bytes());
        let _ = KeySet::read(claims.as_bytes());
    }
}
