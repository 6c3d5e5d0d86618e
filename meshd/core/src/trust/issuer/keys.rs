//! An issuer's public keys: a JWK set (RFC 7517) as it was published, and how long it may be believed.

use jsonwebtoken::{
    Algorithm, DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde_json::Value;

use super::{
    document::{Document, algorithm_of},
    json,
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Keys of one set that are looked at.
const KEYS: usize = 64;
/// Exponent and modulus of an RSA key that is taken, as base64url: 8192 bits.
const RSA_TEXT: usize = 1_400;

/// The keys of an issuer that can verify its documents.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<PublicKey>);

#[derive(Debug, Clone)]
struct PublicKey {
    name: Option<String>,
    /// What it may be used with. RSA keys fit two, unless they say which.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JWK set. Keys of kinds that are not taken are left out.
    ///
    /// # Errors
    /// When it is no JWK set, too large, or holds no key that can be used.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > limits::IDENTITY_KEYS {
            return Err(format!("it is larger than {} KiB", limits::IDENTITY_KEYS >> 10));
        }
        let set = json::object(bytes).map_err(|why| format!("it is no JWK set: {why}"))?;
        let Some(Value::Array(keys)) = set.get("keys") else {
            return Err("it is no JWK set: it has no list \"keys\"".to_owned());
        };
        if keys.len() > KEYS {
            return Err(format!("it has {} keys, {KEYS} are the most", keys.len()));
        }
        let keys: Vec<PublicKey> = keys.iter().filter_map(PublicKey::read).collect();
        if keys.is_empty() {
            return Err("it has no key for RS256, PS256, ES256, ES384 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn fitting<'a>(&'a self, document: &'a Document) -> impl Iterator<Item = &'a PublicKey> {
        self.0.iter().filter(|key| {
            key.algorithms.contains(&document.algorithm)
                && (document.key_name.is_none() || document.key_name == key.name)
        })
    }

    pub(super) fn has_key_of(&self, document: &Document) -> bool {
        self.fitting(document).next().is_some()
    }

    /// Verifies the signature of a document.
    pub(super) fn verify(&self, document: &Document) -> Result<(), Refusal> {
        if !self.has_key_of(document) {
            let (name, algorithm) = (document.key_name.as_deref(), document.algorithm);
            let named = name.map(|name| format!(" named {}", super::shown(name)));
            let named = named.unwrap_or_default();
            return Err(Refusal::new(
                Code::IdentityKeyUnknown,
                format!(
                    "identity document: its issuer has published no key{named} for {algorithm:?}"
                ),
            ));
        }
        let signed = self.fitting(document).any(|key| {
            let (signature, message) = (&document.signature, &document.message);
            crypto::verify(signature, message, &key.key, document.algorithm).unwrap_or(false)
        });
        if signed {
            return Ok(());
        }
        let why = "identity document: its signature does not verify";
        Err(Refusal::new(Code::IdentitySignature, why))
    }
}

impl PublicKey {
    fn read(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if rsa.n.len() <= RSA_TEXT && rsa.e.len() <= 8 => {
                vec![Algorithm::RS256, Algorithm::PS256]
            }
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            // Symmetric keys are published by mistake only.
            _ => return None,
        };
        if let Some(only) = value.get("alg") {
            let only = algorithm_of(only.as_str()?)?;
            algorithms.retain(|algorithm| *algorithm == only);
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (!algorithms.is_empty()).then_some(Self { name: jwk.common.key_id, algorithms, key })
    }
}

/// The keys of one issuer as this host has them.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache {
    held: Option<(KeySet, UnixTime)>,
    asked_at: Option<UnixTime>,
    /// No answer came yet.
    pending: bool,
    /// Why the last answer was none, and since when there is none.
    problem: Option<(String, UnixTime)>,
}

impl Cache {
    /// Whether to wait for the issuer's answer before `document` is judged: there are no keys, they are old, or
    /// it is signed by one that is new. Not again within [`limits::IDENTITY_KEYS_ASK_SECONDS`]: whoever has a
    /// token could otherwise have the issuer asked for every document that he makes up.
    pub(super) fn wants(&self, document: &Document, fresh_seconds: i64, now: UnixTime) -> bool {
        let within = |at: UnixTime, seconds: i64| (0..seconds).contains(&now.since(at));
        let lately = self.asked_at.is_some_and(|at| within(at, limits::IDENTITY_KEYS_ASK_SECONDS));
        if lately && !self.pending {
            return false;
        }
        match &self.held {
            None => true,
            Some((keys, at)) => !within(*at, fresh_seconds) || !keys.has_key_of(document),
        }
    }

    pub(super) fn asked(&mut self, now: UnixTime) {
        self.asked_at = Some(now);
        self.pending = true;
    }

    pub(super) fn take(&mut self, answer: Result<KeySet, String>, now: UnixTime) {
        self.pending = false;
        match answer {
            Ok(keys) => {
                self.held = Some((keys, now));
                self.problem = None;
            }
            Err(why) => {
                let since = self.problem.take().map_or(now, |(_, since)| since);
                self.problem = Some((why, since));
            }
        }
    }

    /// Why the keys could not be had when they were asked for last, and since when that is so.
    pub(super) fn problem(&self) -> Option<(&str, UnixTime)> {
        self.problem.as_ref().map(|(why, since)| (why.as_str(), *since))
    }

    /// The keys to judge by. An issuer that cannot be asked for a day may have withdrawn them.
    pub(super) fn usable(&self, now: UnixTime) -> Result<&KeySet, Refusal> {
        let held = self.held.as_ref();
        if let Some((keys, at)) = held
            && now.since(*at) < limits::IDENTITY_KEYS_HOLD_SECONDS
        {
            return Ok(keys);
        }
        // What exactly failed is about the signer's network and files: strangers are not told.
        Err(Refusal::new(
            Code::IdentityKeysUnavailable,
            "the signer cannot have the keys of the document's issuer",
        ))
    }
}
