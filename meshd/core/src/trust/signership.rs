//! How a member becomes a signer, and how one ceases to be: by the root's word in the bundle.
//!
//! The intermediate's key is made on the host that will use it and never leaves it. The holder of the root
//! invites a member, which answers with the public half; the root certifies that, and the next bundle holds
//! it. A signer that shall be none any more is first *retiring*: what it signs from then on counts for
//! nothing, what it issued before counts until its nodes have renewed; then it is left out.

use std::collections::BTreeSet;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{MeshId, NodeKey, NodeName, wire};
use prost::Message;

use super::{
    anchors::Anchors,
    ca::RootCa,
    record::NodeCertificate,
    secret::IdentityKey,
    signing::{self, Kind},
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// A signer as the bundle names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerEntry {
    /// The intermediate's public key.
    pub key: [u8; 32],
    /// The host that holds it.
    pub node: NodeKey,
    /// That host's name when it was added.
    pub name: NodeName,
    /// The intermediate's certificate, DER.
    pub certificate: Bytes,
    /// What it signs counts no more.
    pub retiring: bool,
}

impl RootCa {
    /// Asks `node` to become a signer.
    #[must_use]
    pub fn invite(
        &self,
        mesh: &MeshId,
        node: &NodeKey,
        pool: &Ipv4Net,
        nonce: [u8; 16],
        now: UnixTime,
    ) -> wire::SignerInvite {
        let invite = wire::SignerInvitation {
            identity_key: node.0.to_vec().into(),
            nonce: nonce.to_vec().into(),
            issued_at: now.0,
            ipv4_pool: Some(address::prefix_to_wire(&IpNet::V4(*pool))),
        };
        let payload = invite.encode_to_vec();
        let signature = signing::sign(self.key(), Kind::SignerInvite, mesh, &payload);
        wire::SignerInvite { payload: payload.into(), signature: signature.to_vec().into() }
    }
}

/// What the root asks of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Goes back with the offer.
    pub nonce: [u8; 16],
    /// IPv4 addresses inside the mesh.
    pub ipv4_pool: Ipv4Net,
}

/// Reads an invitation that the root signed for `node`, not long ago.
pub fn open_invite(
    invite: &wire::SignerInvite,
    anchors: &Anchors,
    node: &NodeKey,
    now: UnixTime,
) -> Result<Invitation, Refusal> {
    let (payload, signature) = (&invite.payload, &invite.signature);
    signing::verify(anchors.root_key(), Kind::SignerInvite, anchors.mesh_id(), payload, signature)?;
    let invitation = wire::SignerInvitation::decode(&invite.payload[..])
        .map_err(|_| malformed("not decodable"))?;
    if invitation.identity_key[..] != node.0 {
        return Err(Refusal::new(Code::IdentityMismatch, "invitation: for another node"));
    }
    let age = now.since(UnixTime(invitation.issued_at)).saturating_abs();
    if age > limits::CLOCK_SKEW_SECONDS {
        let why = format!("invitation: {age} s from this host's clock");
        return Err(Refusal::new(Code::ClockSkew, why));
    }
    let nonce = <[u8; 16]>::try_from(&invitation.nonce[..])
        .map_err(|_| malformed("its nonce is not 16 bytes"))?;
    let pool = invitation.ipv4_pool.ok_or_else(|| malformed("it has no pool"))?;
    match address::prefix_from_wire(&pool)? {
        IpNet::V4(ipv4_pool) => Ok(Invitation { nonce, ipv4_pool }),
        IpNet::V6(_) => Err(malformed("its pool is not IPv4")),
    }
}

/// Answers an invitation with the public half of the key made from `seed`, which must be on disk.
#[must_use]
pub fn build_offer(
    identity: &IdentityKey,
    mesh: &MeshId,
    nonce: &[u8; 16],
    seed: &[u8; 32],
) -> wire::SignerOffer {
    let key = SigningKey::from_bytes(seed);
    let offer = wire::SignerProposal {
        identity_key: identity.public().0.to_vec().into(),
        intermediate_key: key.verifying_key().to_bytes().to_vec().into(),
        nonce: nonce.to_vec().into(),
    };
    let payload = offer.encode_to_vec();
    let proof = signing::sign(&key, Kind::SignerOffer, mesh, &payload);
    wire::SignerOffer {
        signature: identity.sign(Kind::SignerOffer, mesh, &payload).to_vec().into(),
        proof: proof.to_vec().into(),
        payload: payload.into(),
    }
}

/// The public half of the key made from `seed`.
#[must_use]
pub fn public_of(seed: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(seed).verifying_key().to_bytes()
}

/// Reads `node`'s answer to the invitation of that nonce: the key to be certified, which it holds.
pub fn open_offer(
    offer: &wire::SignerOffer,
    mesh: &MeshId,
    node: &NodeKey,
    nonce: &[u8; 16],
) -> Result<[u8; 32], Refusal> {
    let proposal =
        wire::SignerProposal::decode(&offer.payload[..]).map_err(|_| malformed("not decodable"))?;
    if proposal.identity_key[..] != node.0 || proposal.nonce[..] != nonce[..] {
        return Err(Refusal::new(Code::IdentityMismatch, "offer: to another invitation"));
    }
    let key = <[u8; 32]>::try_from(&proposal.intermediate_key[..])
        .map_err(|_| malformed("its key is not 32 bytes"))?;
    signing::verify(&node.0, Kind::SignerOffer, mesh, &offer.payload, &offer.signature)?;
    signing::verify(&key, Kind::SignerOffer, mesh, &offer.payload, &offer.proof)?;
    Ok(key)
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("signer: {why}"))
}

impl Anchors {
    /// Everybody whose certificates count, as the bundle names them.
    #[must_use]
    pub fn signers(&self) -> Vec<SignerEntry> {
        let named = |key: &[u8; 32]| self.signer_infos().iter().find(|one| one.0 == *key);
        self.intermediates_with_keys()
            .filter_map(|(key, der)| {
                let (_, node, name) = named(key)?;
                Some(SignerEntry {
                    key: *key,
                    node: *node,
                    name: name.clone(),
                    certificate: Bytes::copy_from_slice(der),
                    retiring: self.retiring().contains(key),
                })
            })
            .collect()
    }

    /// True when the issuer of `certificate` is retiring: its nodes renew, and nothing new of it counts.
    #[must_use]
    pub fn is_from_retiring(&self, certificate: &NodeCertificate) -> bool {
        !self.retiring().is_empty()
            && self.issuer_key(certificate).is_some_and(|key| self.retiring().contains(&key))
    }
}

/// Reads who the signers of a bundle are. What an older bundle does not name has no name.
pub(super) fn read_infos(
    signers: &[wire::SignerInfo],
) -> Result<Vec<([u8; 32], NodeKey, NodeName)>, Refusal> {
    signers
        .iter()
        .map(|info| {
            let key = <[u8; 32]>::try_from(&info.intermediate_key[..])
                .map_err(|_| malformed("a key that is not 32 bytes"))?;
            let node = NodeKey::try_from(&info.identity_key[..])
                .map_err(|error| malformed(&error.to_string()))?;
            let name = info.name.parse().map_err(|error| malformed(&format!("{error}")))?;
            Ok((key, node, name))
        })
        .collect()
}

pub(super) fn info(key: &[u8; 32], node: &NodeKey, name: &NodeName) -> wire::SignerInfo {
    wire::SignerInfo {
        intermediate_key: key.to_vec().into(),
        identity_key: node.0.to_vec().into(),
        name: name.to_string(),
    }
}

pub(super) fn read_retiring(
    bundle: &wire::IntermediateBundle,
) -> Result<BTreeSet<[u8; 32]>, Refusal> {
    let read = |key: &Bytes| {
        <[u8; 32]>::try_from(&key[..]).map_err(|_| malformed("a key that is not 32 bytes"))
    };
    bundle.retiring.iter().map(read).collect()
}
