//! An issuer of the tests' own, with keys of every kind that is taken.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding,
    },
};
use data_encoding::BASE64URL_NOPAD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use meshd_proto::{MeshId, NodeKey};
use serde_json::{Value, json};

use crate::{
    now::UnixTime,
    trust::{
        fixture::NOW,
        issuer::{
            ALGORITHMS, Binding, IssuerTerms, Issuers, KeySet, Naming, Pointer, Rule, Template,
            Wanted, audience, mesh_audience,
        },
    },
};

pub(in crate::trust) const ISSUER: &str = "https://issuer.example";

pub(in crate::trust) struct Fake {
    pub(in crate::trust) p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: SigningKey,
    rsa: RsaKeyPair,
}

pub(in crate::trust) fn part(value: &Value) -> String {
    BASE64.encode(value.to_string().as_bytes())
}

impl Fake {
    pub(in crate::trust) fn new() -> Self {
        Self {
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            ed25519: SigningKey::from_bytes(&[0x42; 32]),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        }
    }

    fn signature(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(encoding, &rng, message, &mut signature).unwrap();
            signature
        };
        match algorithm {
            "ES256" => self.p256.sign(&rng, message).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&rng, message).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(message).to_bytes().to_vec(),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            other => panic!("{other} is no algorithm of this issuer"),
        }
    }

    /// A document of exactly these texts, signed by the key of `algorithm`.
    pub(in crate::trust) fn sign_parts(
        &self,
        algorithm: &str,
        header: &str,
        claims: &str,
    ) -> String {
        let message =
            format!("{}.{}", BASE64.encode(header.as_bytes()), BASE64.encode(claims.as_bytes()));
        let signature = self.signature(algorithm, message.as_bytes());
        format!("{message}.{}", BASE64.encode(&signature))
    }

    pub(in crate::trust) fn sign_with(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({ "alg": algorithm, "kid": algorithm, "typ": "JWT" });
        self.sign_parts(algorithm, &header.to_string(), &claims.to_string())
    }

    pub(in crate::trust) fn sign(&self, claims: &Value) -> String {
        self.sign_with("ES256", claims)
    }

    /// Its keys as it publishes them.
    pub(in crate::trust) fn jwks(&self) -> Value {
        let point = |key: &EcdsaKeyPair| {
            let raw = key.public_key().as_ref()[1..].to_vec();
            let (x, y) = raw.split_at(raw.len() / 2);
            (BASE64.encode(x), BASE64.encode(y))
        };
        let (p256, p384) = (point(&self.p256), point(&self.p384));
        let number = |bytes: &[u8]| BASE64.encode(bytes);
        let rsa = self.rsa.public_key();
        let (n, e) = (rsa.modulus(), rsa.exponent());
        let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
        let rsa = |kid: &str| json!({ "kty": "RSA", "kid": kid, "alg": kid, "n": number(n), "e": number(e) });
        let ed25519 = BASE64.encode(self.ed25519.verifying_key().as_bytes());
        json!({ "keys": [
            { "kty": "EC", "kid": "ES256", "crv": "P-256", "use": "sig", "x": p256.0, "y": p256.1 },
            { "kty": "EC", "kid": "ES384", "crv": "P-384", "x": p384.0, "y": p384.1 },
            { "kty": "OKP", "kid": "EdDSA", "crv": "Ed25519", "x": ed25519 },
            rsa("RS256"), rsa("PS256"),
        ]})
    }

    pub(in crate::trust) fn keys(&self) -> KeySet {
        KeySet::read(self.jwks().to_string().as_bytes()).unwrap()
    }

    /// A signer's issuers: this one alone, under the name `idp`, its keys known.
    pub(in crate::trust) fn issuers(&self, terms: IssuerTerms) -> Issuers {
        let mut issuers = Issuers::new([terms]);
        issuers.take_keys("idp", Ok(self.keys()), NOW);
        issuers
    }
}

pub(in crate::trust) fn rule() -> Rule {
    Rule {
        name: "nodes".into(),
        claims: vec![(
            Pointer::parse("/kubernetes.io/namespace").unwrap(),
            vec![Wanted::Text("meshd".into()), Wanted::Prefix("infra-".into())],
        )],
        naming: Naming::Template(Template::parse("{/kubernetes.io/node/name}").unwrap()),
        subject: Template::parse("{/sub}").unwrap(),
        once: true,
        prefixes: Vec::new(),
        allow: vec!["10.128.0.0/9".parse().unwrap()],
        pools: Vec::new(),
        groups: vec!["k8s".into()],
    }
}

pub(in crate::trust) fn terms(binding: Binding) -> IssuerTerms {
    IssuerTerms {
        name: "idp".into(),
        issuer: ISSUER.into(),
        binding,
        algorithms: ALGORITHMS.map(str::to_owned).to_vec(),
        max_age_seconds: 3600,
        keys_fresh_seconds: crate::limits::IDENTITY_KEYS_FRESH_SECONDS,
        rules: vec![rule()],
    }
}

pub(in crate::trust) fn first_use(mesh: &MeshId) -> Binding {
    Binding::FirstUse { audience: mesh_audience(mesh) }
}

/// Claims for the node `name`, bound to `key`.
pub(in crate::trust) fn claims(mesh: &MeshId, key: &NodeKey, name: &str) -> Value {
    let UnixTime(now) = NOW;
    json!({
        "iss": ISSUER,
        "aud": audience(mesh, key),
        "sub": format!("machine:{name}"),
        "iat": now - 10, "nbf": now - 10, "exp": now + 600,
        "jti": format!("number of {name}"),
        "kubernetes.io": { "namespace": "meshd", "node": { "name": name } },
    })
}
