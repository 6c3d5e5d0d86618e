//! Keys as issuers publish them, and how long they are believed.

use serde_json::{Value, json};

use super::fake::{Fake, claims, terms};
use crate::{
    limits,
    now::UnixTime,
    refusal::Code,
    trust::{
        EnrolRefusal,
        fixture::{NOW, TestMesh},
        issuer::{Binding, Clock, IssuerTerms, Issuers, Joiner, KeySet},
    },
};

fn read(set: &Value) -> Result<KeySet, String> {
    KeySet::read(set.to_string().as_bytes())
}

#[test]
fn keys_that_are_not_taken_are_left_out() {
    let fake = Fake::new();
    assert_eq!(fake.keys().len(), 5);
    let mut set = fake.jwks();
    let keys = set["keys"].as_array_mut().unwrap();
    let good = keys[0].clone();
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    keys.extend([
        json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }),
        json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" }),
        json!({ "kty": "OKP", "crv": "X25519", "x": "AA" }),
        json!({ "kty": "what" }),
        json!(7),
        json!(null),
        with("use", json!("enc")),
        with("alg", json!("ES384")),
        with("alg", json!("HS256")),
        with("alg", json!(1)),
        with("x", json!("not base64!")),
    ]);
    assert_eq!(read(&set).unwrap().len(), 5);
}

#[test]
fn what_is_no_key_set_says_why() {
    let many = json!({ "keys": vec![Fake::new().jwks()["keys"][0].clone(); 65] });
    for (set, why) in [
        (json!([]), "no JWK set"),
        (json!({}), "\"keys\""),
        (json!({ "keys": {} }), "\"keys\""),
        (json!({ "keys": [] }), "no key for"),
        (many, "65 keys"),
        (json!({ "keys": [], "more": "x".repeat(limits::IDENTITY_KEYS) }), "larger than 256 KiB"),
    ] {
        let told = read(&set).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
    assert!(KeySet::read(br#"{"keys":[],"keys":[]}"#).unwrap_err().contains("twice"));
}

struct Asked {
    fake: Fake,
    issuers: Issuers,
    document: String,
}

impl Asked {
    fn new() -> Self {
        let fake = Fake::new();
        let key = TestMesh::key("a").public();
        let mesh = TestMesh::new(7).mesh_id;
        let document = fake.sign(&claims(&mesh, &key, "a"));
        Self { issuers: Issuers::new([terms(Binding::Key)]), document, fake }
    }

    fn wants(&self, now: UnixTime) -> bool {
        self.issuers.wants_keys("idp", self.document.as_bytes(), now)
    }

    fn judge(&self, now: UnixTime) -> Result<(), Code> {
        self.judged(now).map_err(|refused| refused.refusal.code)
    }

    fn refused(&self, now: UnixTime) -> EnrolRefusal {
        self.judged(now).unwrap_err()
    }

    fn judged(&self, now: UnixTime) -> Result<(), EnrolRefusal> {
        let (key, name) = (TestMesh::key("a").public(), "a".parse().unwrap());
        let mesh = TestMesh::new(7).mesh_id;
        let joiner = Joiner { mesh: &mesh, key: &key, name: &name };
        let now = Clock { wall: now, latest: now };
        self.issuers.judge("idp", self.document.as_bytes(), joiner, now).map(drop)
    }
}

#[test]
fn keys_are_asked_for_when_they_are_needed_and_not_more_often() {
    let mut world = Asked::new();
    assert!(world.wants(NOW), "none are known");
    assert_eq!(world.judge(NOW), Err(Code::IdentityKeysUnavailable));
    world.issuers.asked("idp", NOW);
    assert!(world.wants(NOW.plus(29)), "an answer may come");
    world.issuers.take_keys("idp", Err("no answer".into()), NOW);
    assert!(!world.wants(NOW) && !world.wants(NOW.plus(29)), "asked a moment ago");
    assert!(world.wants(NOW.plus(30)));
    world.issuers.take_keys("idp", Ok(world.fake.keys()), NOW);
    assert_eq!(world.judge(NOW), Ok(()));
    assert!(!world.wants(NOW.plus(31)) && !world.wants(NOW.plus(3599)));
    assert!(world.wants(NOW.plus(3600)), "they are an hour old");
    assert!(world.wants(NOW.plus(-60)), "the clock was set back");
    // Another document, signed by a key that is not among them.
    let next = Fake::new();
    world.document = next.sign_parts("ES256", r#"{"alg":"ES256","kid":"next"}"#, &claims_text());
    assert!(world.wants(NOW.plus(31)));
    world.issuers.asked("idp", NOW.plus(31));
    world.issuers.take_keys("idp", Ok(world.fake.keys()), NOW.plus(31));
    assert!(!world.wants(NOW.plus(60)), "it has none of that name");
    assert!(world.wants(NOW.plus(61)));
    assert_eq!(world.judge(NOW), Err(Code::IdentityKeyUnknown));
}

fn claims_text() -> String {
    let mesh = TestMesh::new(7).mesh_id;
    claims(&mesh, &TestMesh::key("a").public(), "a").to_string()
}

#[test]
fn keys_of_a_file_are_read_again_soon() {
    let mut world = Asked::new();
    let fresh = limits::IDENTITY_KEYS_FILE_FRESH_SECONDS;
    let of_file = IssuerTerms { keys_fresh_seconds: fresh, ..terms(Binding::Key) };
    world.issuers = Issuers::new([of_file]);
    world.issuers.asked("idp", NOW);
    world.issuers.take_keys("idp", Ok(world.fake.keys()), NOW);
    assert!(!world.wants(NOW.plus(fresh - 1)) && world.wants(NOW.plus(fresh)));
}

#[test]
fn why_keys_are_not_to_be_had_is_for_the_signer_and_not_for_strangers() {
    let mut world = Asked::new();
    assert_eq!(world.issuers.problems().count(), 0);
    for (after, why) in [(0, "10.0.0.7: certificate expired"), (60, "10.0.0.7: no answer")] {
        world.issuers.take_keys("idp", Err(why.into()), NOW.plus(after));
        let problems: Vec<_> = world.issuers.problems().collect();
        assert_eq!(problems, [("idp", why, NOW)], "since the first time");
    }
    let refused = world.refused(NOW);
    assert_eq!(refused.refusal.code, Code::IdentityKeysUnavailable);
    assert!(!refused.to_string().contains("10.0.0.7"), "{refused}");
    assert!(refused.fix.contains("`meshctl status` on the signer"), "{refused}");
    world.issuers.take_keys("idp", Ok(world.fake.keys()), NOW);
    assert_eq!(world.issuers.problems().count(), 0);
}

#[test]
fn nobody_is_asked_for_a_document_of_somebody_else() {
    let mut world = Asked::new();
    world.document = "a.b.c".into();
    assert!(!world.wants(NOW));
    let other = json!({ "iss": "https://other.example" });
    world.document = world.fake.sign(&other);
    assert!(!world.wants(NOW));
    assert!(!world.issuers.wants_keys("nobody", world.document.as_bytes(), NOW));
}

#[test]
fn keys_outlast_an_issuer_that_does_not_answer_for_a_day() {
    let mut world = Asked::new();
    world.issuers.take_keys("idp", Ok(world.fake.keys()), NOW);
    let later = NOW.plus(3600);
    world.issuers.take_keys("idp", Err("no answer".into()), later);
    // By then the document itself is too old; before that, the keys would be.
    assert_eq!(world.judge(NOW.plus(86_399)), Err(Code::IdentityExpired));
    assert_eq!(world.judge(NOW.plus(86_400)), Err(Code::IdentityKeysUnavailable));
    assert_eq!(world.judge(NOW), Ok(()));
}
