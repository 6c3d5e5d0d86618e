//! An issuer of identity documents of the tests' own: its key, its documents, and a CA for its web server.

use anyhow::{Context, Result};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use data_encoding::BASE64URL_NOPAD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// Whoever can say who a machine is.
#[derive(Debug)]
pub struct TestIssuer {
    name: String,
    key_name: String,
    key: EcdsaKeyPair,
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

impl TestIssuer {
    /// An issuer of this name (the claim `iss`), with a new key called `key_name`.
    pub fn new(name: &str, key_name: &str) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = key.ok().context("no key could be made")?;
        Ok(Self { name: name.to_owned(), key_name: key_name.to_owned(), key })
    }

    /// Its key set as it publishes it.
    pub fn jwks(&self) -> String {
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_name,
            "x": BASE64.encode(x), "y": BASE64.encode(y),
        }]})
        .to_string()
    }

    /// Claims about a machine, for an audience: fresh, and good for ten minutes.
    pub fn claims(&self, audience: &str, machine: &str) -> Value {
        let now = unix_now();
        json!({
            "iss": self.name, "aud": audience, "iat": now, "nbf": now, "exp": now + 600,
            "sub": format!("machine:{machine}"), "jti": format!("{machine}-{:016x}", rand::random::<u64>()),
            "site": { "project": "mesh-test", "machine": machine },
        })
    }

    /// A document of these claims.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.key_name });
        let part = |value: &Value| BASE64.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes());
        let signature = signature.ok().context("not signed")?;
        Ok(format!("{message}.{}", BASE64.encode(signature.as_ref())))
    }

    /// A document about a machine, for an audience.
    pub fn document(&self, audience: &str, machine: &str) -> Result<String> {
        self.sign(&self.claims(audience, machine))
    }
}

/// A CA and a web server's certificate of it, all in PEM.
#[derive(Debug)]
pub struct WebPki {
    /// The CA's certificate.
    pub ca: String,
    /// The server's certificate.
    pub certificate: String,
    /// The server's key.
    pub key: String,
}

impl WebPki {
    /// For a server that is reached at `host`, an address or a name.
    pub fn new(host: &str) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &issuer)?;
        Ok(Self {
            ca: pem("CERTIFICATE", certificate.der()),
            certificate: pem("CERTIFICATE", server.der()),
            key: pem("PRIVATE KEY", &key.serialize_der()),
        })
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
