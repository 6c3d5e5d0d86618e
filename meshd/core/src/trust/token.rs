//! Join tokens: a key and a signed grant.
//!
//! A token is one line, `meshd1.` and base64url. It holds an Ed25519 seed that never leaves the joiner,
//! what the signer grants to its holder, and the root's public key, by which the joiner knows the mesh
//! when it meets it. Made by `signer`, read by a joiner.

use std::fmt;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::SigningKey;
use meshd_proto::{MeshId, MeshName, NodeName, wire};
use prost::Message;
use rustls_pki_types::TrustAnchor;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::{anchors, certificate, signing, terms::TokenTerms};
use crate::{limits, now::UnixTime, refusal::Refusal};

/// What every token of this format starts with.
const PREFIX: &str = "meshd1.";
/// Format number inside the message.
const FORMAT: u32 = 1;
/// Longest text that is looked at.
const LONGEST: usize = 24 * 1024;
/// Bytes of the length before the message, and of the checksum after it.
const LENGTH: usize = 2;
const CHECKSUM: usize = 4;

/// A token, read and checked. Its seed is wiped when it is dropped, and never shown. Of a token that admits by
/// identity documents the seed is no secret: it only lets the request through to the signer.
#[derive(Clone)]
pub struct JoinToken {
    seed: SigningKey,
    mesh: MeshName,
    mesh_id: MeshId,
    root_key: [u8; 32],
    grant: wire::SignedGrant,
    terms: TokenTerms,
    seeds: Vec<String>,
}

/// Why a text is no token that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}; {}", self.why(), self.fix())]
pub enum TokenError {
    /// It does not look like a token at all.
    NotAToken,
    /// The end is missing.
    Truncated,
    /// There is something behind its end.
    Trailing,
    /// Characters were changed.
    Garbled,
    /// Made by a later version.
    OtherVersion(String),
    /// Whole, but what it says cannot be.
    Inconsistent(Refusal),
}

impl TokenError {
    /// What is wrong with it.
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::NotAToken => format!("that is no join token: one starts with {PREFIX:?}"),
            Self::Truncated => "the join token is cut off: its end is missing".into(),
            Self::Trailing => "there is more behind the end of the join token".into(),
            Self::Garbled => "the join token is garbled: its checksum does not fit".into(),
            Self::OtherVersion(found) => format!("the join token has format {found:?}, not 1"),
            Self::Inconsistent(refusal) => format!("the join token contradicts itself: {refusal}"),
        }
    }

    /// What to do.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotAToken => "run `meshctl token create` on a signer and copy the line it prints",
            Self::Truncated => {
                "copy the whole line, or pass it on by `meshctl join -` rather than by hand"
            }
            Self::Trailing => "copy one line only",
            Self::Garbled => "copy it again, or make a new one with `meshctl token create`",
            Self::OtherVersion(_) => "install the meshd of the host that made the token",
            Self::Inconsistent(_) => "make a new one with `meshctl token create`",
        }
    }
}

impl JoinToken {
    /// Reads a token. White space in and around it is ignored: terminals wrap long lines.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() > LONGEST {
            return Err(TokenError::NotAToken);
        }
        let text: Zeroizing<String> =
            Zeroizing::new(text.chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(other_format(&text));
        };
        let (message, seed) = read(unwrap(body)?)?;
        Self::check(seed, message).map_err(TokenError::Inconsistent)
    }

    /// The token as one line.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        let seed = Bytes::from(self.seed.to_bytes().to_vec());
        let message = wire::Token {
            format: FORMAT,
            seed: seed.clone(),
            grant: Some(self.grant.clone()),
            mesh: self.mesh.to_string(),
            mesh_id: self.mesh_id.0.to_vec().into(),
            root_key: self.root_key.to_vec().into(),
            seeds: self.seeds.clone(),
        };
        let body = Zeroizing::new(message.encode_to_vec());
        drop(message);
        wipe(seed);
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + body.len() + CHECKSUM));
        bytes.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&checksum(&body));
        let mut text =
            Zeroizing::new(String::with_capacity(PREFIX.len() + bytes.len() * 4 / 3 + 4));
        text.push_str(PREFIX);
        BASE64URL_NOPAD.encode_append(&bytes, &mut text);
        text
    }

    pub(super) fn new(
        seed: SigningKey,
        anchors: &anchors::Anchors,
        grant: wire::SignedGrant,
        terms: TokenTerms,
        seeds: Vec<String>,
    ) -> Self {
        Self {
            seed,
            mesh: anchors.mesh().clone(),
            mesh_id: *anchors.mesh_id(),
            root_key: *anchors.root_key(),
            grant,
            terms,
            seeds,
        }
    }

    fn check(seed: SigningKey, message: wire::Token) -> Result<Self, Refusal> {
        let malformed = |why: &str| Refusal::new(crate::refusal::Code::Malformed, why);
        let mesh: MeshName =
            message.mesh.parse().map_err(|error| malformed(&format!("{error}")))?;
        let mesh_id = MeshId::try_from(&message.mesh_id[..])
            .map_err(|error| malformed(&error.to_string()))?;
        let root_key = <[u8; 32]>::try_from(&message.root_key[..])
            .map_err(|_| malformed("the root's key is not 32 bytes"))?;
        let grant = message.grant.ok_or_else(|| malformed("it grants nothing"))?;
        let terms = TokenTerms::decode(&grant.payload, &mesh_id)?;
        signing::verify(
            &terms.intermediate_key,
            terms.kind(),
            &mesh_id,
            &grant.payload,
            &grant.signature,
        )?;
        if seed.verifying_key().to_bytes() != terms.token_key {
            return Err(malformed("its key is not the one that its grant names"));
        }
        if message.seeds.len() > limits::TOKEN_SEEDS || !message.seeds.iter().all(|s| is_seed(s)) {
            return Err(malformed("its seeds are not addresses with a port"));
        }
        Ok(Self { seed, mesh, mesh_id, root_key, grant, terms, seeds: message.seeds })
    }

    /// Name of the mesh that it admits to.
    #[must_use]
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// The mesh.
    #[must_use]
    pub fn mesh_id(&self) -> &MeshId {
        &self.mesh_id
    }

    /// The root's public key.
    #[must_use]
    pub fn root_key(&self) -> &[u8; 32] {
        &self.root_key
    }

    /// The mesh's root as rustls takes it: the joiner knows whom it talks to.
    #[must_use]
    pub fn trust_anchor(&self) -> TrustAnchor<'static> {
        anchors::root_from_key(&self.mesh, &self.mesh_id, &self.root_key)
    }

    /// The name that TLS clients check.
    #[must_use]
    pub fn server_name(&self) -> String {
        certificate::server_name(&self.mesh_id)
    }

    /// Where to ask, as `HOST:PORT`.
    #[must_use]
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// The only name that it admits, when it names one.
    #[must_use]
    pub fn node_name(&self) -> Option<&NodeName> {
        self.terms.node_name.as_ref()
    }

    /// When it ends. For display: the signer's clock decides.
    #[must_use]
    pub fn expires_at(&self) -> UnixTime {
        self.terms.expires_at
    }

    /// What it permits.
    #[must_use]
    pub fn terms(&self) -> &TokenTerms {
        &self.terms
    }

    pub(super) fn grant(&self) -> &wire::SignedGrant {
        &self.grant
    }

    pub(super) fn seed(&self) -> &SigningKey {
        &self.seed
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, of {}, secret redacted)", self.terms.id, self.mesh)
    }
}

/// True for `HOST:PORT` and `[ADDRESS]:PORT`, as far as text can tell.
pub(super) fn is_seed(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    text.len() <= limits::TOKEN_SEED
        && !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b))
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn other_format(text: &str) -> TokenError {
    match text.strip_prefix("meshd").and_then(|rest| rest.split_once('.')) {
        Some((version, _))
            if (1..=4).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            TokenError::OtherVersion(version.to_owned())
        }
        _ if !text.is_empty() && PREFIX.starts_with(text) => TokenError::Truncated,
        _ => TokenError::NotAToken,
    }
}

/// Takes length and checksum off. The length tells a token that lacks its end from a garbled one.
fn unwrap(body: &str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !body.bytes().all(known) {
        return Err(TokenError::Garbled);
    }
    // A cut can fall where no group of base64 ends, and then leaves bits that belong to nothing.
    let groups = &body.as_bytes()[..body.len() - body.len() % 4];
    let (bytes, ragged) = match BASE64URL_NOPAD.decode(body.as_bytes()) {
        Ok(bytes) => (bytes, false),
        Err(_) => (BASE64URL_NOPAD.decode(groups).map_err(|_| TokenError::Garbled)?, true),
    };
    let bytes = Zeroizing::new(bytes);
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Err(TokenError::Truncated);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    let Some((message, sum)) = rest.get(..length + CHECKSUM).map(|all| all.split_at(length)) else {
        return Err(TokenError::Truncated);
    };
    if checksum(message) != sum {
        return Err(TokenError::Garbled);
    }
    if ragged || rest.len() > length + CHECKSUM {
        return Err(TokenError::Trailing);
    }
    Ok(Zeroizing::new(message.to_vec()))
}

fn checksum(message: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    let digest = Sha256::new().chain_update(b"meshd-token-v1\0").chain_update(message).finalize();
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

/// Decodes the message and takes the seed out of it.
fn read(mut message: Zeroizing<Vec<u8>>) -> Result<(wire::Token, SigningKey), TokenError> {
    // The message's fields are views into these bytes; they are wiped when the last view is gone.
    let bytes = Bytes::from(std::mem::take(&mut *message));
    let decoded = wire::Token::decode(bytes.clone());
    let Ok(mut token) = decoded else {
        wipe(bytes);
        return Err(TokenError::Garbled);
    };
    let format = token.format;
    let mut seed = Zeroizing::new([0; 32]);
    let whole = token.seed.len() == seed.len();
    if whole {
        seed.copy_from_slice(&token.seed);
    }
    token.seed = Bytes::new();
    let token = detach(token);
    wipe(bytes);
    if format != FORMAT {
        return Err(TokenError::OtherVersion(format.to_string()));
    }
    if !whole {
        return Err(TokenError::Garbled);
    }
    Ok((token, SigningKey::from_bytes(&seed)))
}

/// The same message in bytes of its own.
fn detach(mut token: wire::Token) -> wire::Token {
    let own = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
    own(&mut token.mesh_id);
    own(&mut token.root_key);
    if let Some(grant) = &mut token.grant {
        own(&mut grant.payload);
        own(&mut grant.signature);
    }
    token
}

/// Overwrites bytes that nobody else looks at any more.
fn wipe(bytes: Bytes) {
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.as_mut().zeroize();
    }
}
