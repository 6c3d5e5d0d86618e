//! An identity document: a JWT as it came, read but not believed yet.
//!
//! It is a bearer secret until it was used, so it is never shown. Reading is apart from verifying, so that
//! everything that strangers can send passes one function of bytes.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::json;
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Texts of a document that are looked at, such as its key's name.
const TEXT: usize = 512;

/// A JWT (RFC 7519, signed as RFC 7515 has it) whose signature was not looked at yet.
#[derive(Clone)]
pub struct Document {
    /// What is signed: header and payload as they came.
    pub(super) message: Vec<u8>,
    /// As it came, base64url.
    pub(super) signature: String,
    pub(super) algorithm: Algorithm,
    pub(super) key_name: Option<String>,
    pub(super) claims: Value,
}

impl Document {
    /// Reads one. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// When it is no JWT, larger than [`limits::IDENTITY_DOCUMENT`], signed by an algorithm that is never
    /// taken, or not plain.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let bytes = bytes.trim_ascii();
        if bytes.len() > limits::IDENTITY_DOCUMENT {
            return Err(malformed("larger than 8 KiB"));
        }
        let mut parts = bytes.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("not three parts with points between them"));
        };
        let decode = |part: &[u8]| {
            BASE64URL_NOPAD.decode(part).map_err(|_| malformed("a part of it is not base64url"))
        };
        let header_object = json::object(&decode(header)?)
            .map_err(|why| malformed(&format!("its header: {why}")))?;
        let claims = json::object(&decode(payload)?)
            .map_err(|why| malformed(&format!("its claims: {why}")))?;
        decode(signature)?;
        let (algorithm, key_name) = read_header(&header_object)?;
        Ok(Self {
            message: bytes[..header.len() + 1 + payload.len()].to_vec(),
            signature: String::from_utf8_lossy(signature).into_owned(),
            algorithm,
            key_name,
            claims: Value::Object(claims),
        })
    }

    /// A claim that must be text.
    pub(super) fn text(&self, claim: &str) -> Result<&str, Refusal> {
        match self.claims.get(claim) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(malformed(&format!("its claim {claim} is not text"))),
            None => Err(malformed(&format!("it has no claim {claim}"))),
        }
    }

    /// A claim that is a time (RFC 7519, NumericDate), if it is there.
    pub(super) fn time(&self, claim: &str) -> Result<Option<UnixTime>, Refusal> {
        /// The year 9999: what is beyond it was never meant.
        const LAST: i64 = 253_402_300_799;
        let Some(value) = self.claims.get(claim) else { return Ok(None) };
        let whole = value.as_i64().or_else(|| {
            let seconds = value.as_f64()?;
            // Within the bounds below no digit is lost.
            (0.0..=LAST as f64).contains(&seconds).then_some(seconds as i64)
        });
        match whole {
            Some(seconds) if (0..=LAST).contains(&seconds) => Ok(Some(UnixTime(seconds))),
            _ => Err(malformed(&format!("its claim {claim} is no time"))),
        }
    }

    /// Whom it is for: a text, or a list of texts.
    pub(super) fn audience(&self) -> Result<Vec<&str>, Refusal> {
        let wrong = || malformed("its claim aud is neither text nor a list of texts");
        match self.claims.get("aud") {
            None => Err(malformed("it has no claim aud")),
            Some(Value::String(one)) => Ok(vec![one]),
            Some(Value::Array(list)) => {
                list.iter().map(|one| one.as_str().ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// What tells this document from every other: its number at its issuer if it has one, else its content.
    /// Not of the signature: of some algorithms a holder can make another one that fits.
    pub(super) fn number(&self, issuer: &str) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(b"meshd-identity-number-v1\0");
        hash.update(Sha256::digest(issuer.as_bytes()));
        match self.claims.get("jti") {
            Some(Value::String(number)) if !number.is_empty() => {
                hash.update(b"jti\0");
                hash.update(number.as_bytes());
            }
            _ => {
                hash.update(b"all\0");
                hash.update(&self.message);
            }
        }
        hash.finalize().into()
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({:?}, redacted)", self.algorithm)
    }
}

fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), Refusal> {
    // RFC 7515, 4.1.11: who does not understand what is critical must refuse; nothing critical is understood.
    if header.contains_key("crit") || header.contains_key("b64") || header.contains_key("zip") {
        return Err(malformed("its header wants an extension that is not understood"));
    }
    let Some(Value::String(algorithm)) = header.get("alg") else {
        return Err(malformed("its header names no algorithm"));
    };
    let algorithm = algorithm_of(algorithm).ok_or_else(|| {
        let shown: String = algorithm.chars().take(20).flat_map(char::escape_default).collect();
        Refusal::new(
            Code::IdentityAlgorithm,
            format!("identity document: signed by {shown}, which is never taken"),
        )
    })?;
    match header.get("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(name)) if name.len() <= TEXT => Ok((algorithm, Some(name.clone()))),
        Some(_) => Err(malformed("its header's kid is no short text")),
    }
}

/// The algorithms that are ever taken: asymmetric ones only, so that nobody who can verify can also sign.
pub(super) fn algorithm_of(name: &str) -> Option<Algorithm> {
    match name {
        "RS256" => Some(Algorithm::RS256),
        "PS256" => Some(Algorithm::PS256),
        "ES256" => Some(Algorithm::ES256),
        "ES384" => Some(Algorithm::ES384),
        "EdDSA" => Some(Algorithm::EdDSA),
        _ => None,
    }
}

pub(super) fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::IdentityMalformed, format!("identity document: {why}"))
}
