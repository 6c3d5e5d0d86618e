//! A member's record after it was verified.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use meshd_proto::{BootId, MeshId, MeshName, NodeKey, NodeName, WgPublicKey, Zone, wire};

use super::anchors::Anchors;
use crate::{address, now::UnixTime};

/// What a certificate permits one node to claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The exact prefix, or the pool.
    pub prefix: IpNet,
    /// With it, `prefix` is a pool of which pieces of this length may be claimed.
    pub claim_len: Option<u8>,
}

/// A node's leaf certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// As received.
    pub der: bytes::Bytes,
    /// SHA-256 of the DER.
    pub hash: [u8; 32],
    /// The identity that it is for.
    pub key: NodeKey,
    /// From the SPIFFE id.
    pub name: NodeName,
    /// From the SPIFFE id.
    pub mesh: MeshName,
    /// From the private extension.
    pub mesh_id: MeshId,
    /// Kept at renewal.
    pub enrolment_id: [u8; 16],
    /// Groups.
    pub groups: Vec<String>,
    /// What may be claimed; sorted.
    pub grants: Vec<Grant>,
    /// The node's IPv4 address inside the mesh.
    pub mesh_ipv4: Option<Ipv4Addr>,
    /// What the node detects within these is granted when the certificate is renewed.
    pub limits: Vec<IpNet>,
    /// Whom the identity document was about that the node was admitted by: a hash, kept at renewal.
    pub subject: Option<[u8; 32]>,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
}

impl NodeCertificate {
    /// True when a grant names `prefix` itself, and not a pool that it is a piece of.
    #[must_use]
    pub fn grants_exactly(&self, prefix: &IpNet) -> bool {
        let mut exact = self.grants.iter().filter(|grant| grant.claim_len.is_none());
        exact.any(|grant| grant.prefix.trunc() == prefix.trunc())
    }

    /// True when a grant overlaps `prefix`, and is no pool.
    #[must_use]
    pub fn grants_some_of(&self, prefix: &IpNet) -> bool {
        let mut exact = self.grants.iter().filter(|grant| grant.claim_len.is_none());
        exact.any(|grant| address::overlaps(&grant.prefix, prefix))
    }
}

/// One WireGuard device of a member, its key proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneInfo {
    /// The WireGuard public key.
    pub public_key: WgPublicKey,
    /// UDP port.
    pub listen_port: u16,
    /// 0 is `mesh0`, 1 is `mesh1`.
    pub index: u8,
}

/// A member's record whose signatures, structure, proofs and grants are right. Whether it is in date
/// and newer than what is held is the directory's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As received: what is stored and passed on.
    pub signed: wire::SignedRecord,
    /// First 8 bytes of SHA-256 of the payload.
    pub payload_hash: [u8; 8],
    /// The certificate that the record goes with.
    pub certificate: Arc<NodeCertificate>,
    /// Whose record.
    pub key: NodeKey,
    /// The member's name.
    pub name: NodeName,
    /// The higher one wins.
    pub version: u64,
    /// The daemon's start that made it.
    pub boot_id: BootId,
    /// SWIM generation of that start.
    pub generation: u64,
    /// When it was signed.
    pub issued_at: UnixTime,
    /// WireGuard devices; the first has index 0. Empty: the member has no WireGuard.
    pub lanes: Vec<LaneInfo>,
    /// Host prefixes inside the mesh: the ULA, and an IPv4 address when granted.
    pub mesh_addresses: Vec<IpNet>,
    /// Sorted, each within the grants.
    pub prefixes: Vec<IpNet>,
    /// Its underlay addresses that shall be reached through the tunnel: host prefixes, sorted, each granted exactly.
    pub node_claims: Vec<IpNet>,
    /// Where its QUIC port is reached.
    pub endpoints: Vec<SocketAddr>,
    /// Zone, or empty.
    pub zone: Zone,
    /// Feature names.
    pub capabilities: Vec<String>,
    /// The gateway by which other zones are to reach it, as it says; what comes of that, [`crate::gateway`] says.
    pub via: Option<NodeKey>,
    /// It has left for good.
    pub left: bool,
    /// Underlay addresses, for display.
    pub node_addresses: Vec<IpAddr>,
    /// The software's version.
    pub software_version: String,
}

impl Record {
    /// Its prefixes without those that are pieces of a pool.
    #[must_use]
    pub fn whole_prefixes(&self) -> Vec<IpNet> {
        let pools = || self.certificate.grants.iter().filter(|grant| grant.claim_len.is_some());
        let whole = self.prefixes.iter().filter(|prefix| !pools().any(|pool| pool.covers(prefix)));
        whole.copied().collect()
    }
}

/// What `admit` judges a record against.
#[derive(Debug, Clone, Copy)]
pub struct AdmitContext<'a> {
    /// Who was revoked.
    pub anchors: &'a Anchors,
    /// Wall clock.
    pub now: UnixTime,
    /// The record that is held for the same identity.
    pub held: Option<&'a Record>,
    /// Records that are not held and older than this many seconds are refused.
    pub forget_after_seconds: i64,
}
