//! Who is no member any more: a set of signed revocations that only grows.
//!
//! Any intermediate of the bundle, or the root, ends a membership by one signature. The sets of all nodes
//! become their union, whatever the order and whoever passes them on. A revocation counts for as long as its
//! signer does: when the root takes a stolen signer out of the bundle, what the thief revoked is void, so one
//! target may have a revocation of each signer. Held in [`Anchors`]; nothing here knows what follows.

use std::{cmp::Reverse, collections::BTreeMap, sync::OnceLock};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use meshd_proto::{MeshId, NodeKey, NodeName, wire};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    anchors::Anchors,
    ca::{Intermediate, RootCa},
    extension::{subject_from_wire, subject_to_wire},
    signing::{self, Kind},
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// A verified revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// As received: what is stored and passed on.
    pub signed: wire::SignedRevocation,
    /// Whose membership ended.
    pub key: NodeKey,
    /// The name it had.
    pub name: NodeName,
    /// Who signed: an intermediate's public key, or the root's.
    pub signer: [u8; 32],
    /// When.
    pub revoked_at: UnixTime,
    /// The end of the last certificate that the identity can have.
    pub not_after: UnixTime,
    /// As in its certificate: whom no identity document admits any more.
    pub subject: Option<[u8; 32]>,
}

/// What a revocation shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationTerms {
    /// Whose membership ends.
    pub key: NodeKey,
    /// Its name.
    pub name: NodeName,
    /// When.
    pub revoked_at: UnixTime,
    /// The end of the last certificate that the identity can have.
    pub not_after: UnixTime,
    /// As in its certificate, if that is known.
    pub subject: Option<[u8; 32]>,
}

impl Revocation {
    /// The same, to be signed by somebody else.
    #[must_use]
    pub fn terms(&self) -> RevocationTerms {
        RevocationTerms {
            key: self.key,
            name: self.name.clone(),
            revoked_at: self.revoked_at,
            not_after: self.not_after,
            subject: self.subject,
        }
    }
}

/// Of one target and one signer the latest end counts; else the smaller hash, so that all nodes agree.
type Rank = (UnixTime, Reverse<[u8; 32]>);

/// The revocations that are held: by target and signer.
#[derive(Debug, Clone, Default)]
pub(super) struct Revocations {
    held: BTreeMap<(NodeKey, [u8; 32]), Revocation>,
    of_signer: BTreeMap<[u8; 32], usize>,
    /// Made when it is asked for.
    hash: OnceLock<[u8; 32]>,
}

impl Revocations {
    pub(super) fn get(&self, key: &NodeKey) -> Option<&Revocation> {
        self.held.range((*key, [0; 32])..=(*key, [0xff; 32])).next().map(|(_, held)| held)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.held.values()
    }

    /// Over what is held; nothing when that is nothing.
    pub(super) fn hash(&self) -> Option<[u8; 32]> {
        let make = || {
            let payloads = self.held.values().map(|held| Sha256::digest(&held.signed.payload));
            payloads.fold(Sha256::new(), Sha256::chain_update).finalize().into()
        };
        (!self.held.is_empty()).then(|| *self.hash.get_or_init(make))
    }

    fn holds(&self, key: NodeKey, signer: [u8; 32], signed: &wire::SignedRevocation) -> bool {
        self.held.get(&(key, signer)).is_some_and(|held| held.signed == *signed)
    }

    /// Tells whether it is news.
    fn insert(&mut self, revocation: Revocation) -> Result<bool, Refusal> {
        let place = (revocation.key, revocation.signer);
        match self.held.get(&place) {
            Some(held) if rank(held) >= rank(&revocation) => return Ok(false),
            Some(_) => {}
            None => {
                let count = self.of_signer.entry(revocation.signer).or_default();
                if *count >= limits::REVOCATIONS {
                    let why = format!("revocation: its signer has made {count} already");
                    return Err(Refusal::new(Code::TooLarge, why));
                }
                *count += 1;
            }
        }
        self.held.insert(place, revocation);
        self.hash = OnceLock::new();
        Ok(true)
    }

    /// Drops what is signed by nobody who counts.
    pub(super) fn retain_signers(&mut self, counts: impl Fn(&[u8; 32]) -> bool) {
        self.held.retain(|(_, signer), _| counts(signer));
        self.of_signer.retain(|signer, _| counts(signer));
        self.hash = OnceLock::new();
    }
}

fn rank(revocation: &Revocation) -> Rank {
    (revocation.not_after, Reverse(Sha256::digest(&revocation.signed.payload).into()))
}

impl Anchors {
    /// Takes a revocation over when somebody signed it who may; whose it is, if it is news.
    pub fn revoke(&mut self, signed: &wire::SignedRevocation) -> Result<Option<NodeKey>, Refusal> {
        let revocation = read(signed)?;
        if self.revocations().holds(revocation.key, revocation.signer, signed) {
            return Ok(None);
        }
        self.verify_revocation(&revocation)?;
        let key = revocation.key;
        Ok(self.revocations_mut().insert(revocation)?.then_some(key))
    }

    /// The end of a membership, if it has one.
    #[must_use]
    pub fn revocation(&self, key: &NodeKey) -> Option<&Revocation> {
        self.revocations().get(key)
    }

    /// All revocations, by identity.
    pub fn all_revocations(&self) -> impl Iterator<Item = &Revocation> {
        self.revocations().iter()
    }

    /// Equal on nodes that hold the same revocations; empty when there are none.
    #[must_use]
    pub fn revocations_hash(&self) -> Bytes {
        let hash = self.revocations().hash();
        hash.map(|hash| Bytes::copy_from_slice(&hash)).unwrap_or_default()
    }

    /// All revocations as bytes, for the next start.
    #[must_use]
    pub fn encode_revocations(&self) -> Vec<u8> {
        let revocations = self.all_revocations().map(|held| held.signed.clone()).collect();
        wire::Revocations { revocations }.encode_to_vec()
    }

    /// Takes over what [`Self::encode_revocations`] gave. One that is not believed any more is left out.
    pub fn restore_revocations(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let stored = wire::Revocations::decode(bytes)
            .map_err(|_| Refusal::new(Code::Malformed, "revocations: not decodable"))?;
        for signed in &stored.revocations {
            // Its signer may have been taken out of the bundle since.
            let _ = self.revoke(signed);
        }
        Ok(())
    }

    fn verify_revocation(&self, revocation: &Revocation) -> Result<(), Refusal> {
        let Revocation { signed, signer, .. } = revocation;
        // A root that was replaced revokes nobody any more; what it did before stays while it counts.
        if signer != self.root_key() && !self.has_intermediate(signer) {
            let why = "revocation: its signer is not in the bundle";
            return Err(Refusal::new(Code::UnknownIssuer, why));
        }
        let (payload, signature) = (&signed.payload, &signed.signature);
        signing::verify(signer, Kind::Revocation, self.mesh_id(), payload, signature)
    }
}

/// What it says. Whether to believe it is another question.
fn read(signed: &wire::SignedRevocation) -> Result<Revocation, Refusal> {
    let malformed = |why: &str| Refusal::new(Code::Malformed, format!("revocation: {why}"));
    if signed.payload.len() > limits::REVOCATION {
        return Err(Refusal::new(Code::TooLarge, "revocation: too large"));
    }
    let payload =
        wire::Revocation::decode(&signed.payload[..]).map_err(|_| malformed("not decodable"))?;
    let signer = <[u8; 32]>::try_from(&payload.signer_key[..])
        .map_err(|_| malformed("its signer's key is not 32 bytes"))?;
    let key = NodeKey::try_from(&payload.identity_key[..])
        .map_err(|error| malformed(&error.to_string()))?;
    let subject = subject_from_wire(&payload.subject)
        .ok_or_else(|| malformed("its subject's hash is not 32 bytes"))?;
    let name = payload.name.parse().map_err(|error| malformed(&format!("{error}")))?;
    Ok(Revocation {
        // What arrives shares its bytes with a whole frame.
        signed: wire::SignedRevocation {
            payload: Bytes::copy_from_slice(&signed.payload),
            signature: Bytes::copy_from_slice(&signed.signature),
        },
        key,
        name,
        signer,
        revoked_at: UnixTime(payload.revoked_at),
        not_after: UnixTime(payload.not_after),
        subject,
    })
}

impl Intermediate {
    /// Ends a membership.
    #[must_use]
    pub fn revoke(&self, mesh: &MeshId, terms: &RevocationTerms) -> wire::SignedRevocation {
        sign(self.key(), mesh, terms)
    }
}

impl RootCa {
    /// Ends a membership, where there is no signer.
    #[must_use]
    pub fn revoke(&self, mesh: &MeshId, terms: &RevocationTerms) -> wire::SignedRevocation {
        sign(self.key(), mesh, terms)
    }
}

fn sign(key: &SigningKey, mesh: &MeshId, terms: &RevocationTerms) -> wire::SignedRevocation {
    let revocation = wire::Revocation {
        identity_key: terms.key.0.to_vec().into(),
        signer_key: key.verifying_key().to_bytes().to_vec().into(),
        name: terms.name.to_string(),
        revoked_at: terms.revoked_at.0,
        not_after: terms.not_after.0,
        subject: subject_to_wire(terms.subject.as_ref()),
    };
    let payload = revocation.encode_to_vec();
    let signature = signing::sign(key, Kind::Revocation, mesh, &payload);
    wire::SignedRevocation { payload: payload.into(), signature: signature.to_vec().into() }
}
