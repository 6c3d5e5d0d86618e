//! A node's own side: its key, its certificate, and the records that it signs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use meshd_proto::{BootId, NodeKey, Zone, wire};
use prost::Message;

use super::{record::NodeCertificate, secret::IdentityKey, signing::Kind, verify::LEAVE_VERSION};
use crate::{
    address,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Who this node is: its key and the certificate for it.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    /// The identity key.
    pub key: IdentityKey,
    /// The certificate for it.
    pub certificate: Arc<NodeCertificate>,
}

/// What a node says of itself, apart from what its identity and its start give. The order of
/// addresses and prefixes does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordDraft {
    /// WireGuard devices, as `LaneKey::to_wire` makes them.
    pub lanes: Vec<wire::Lane>,
    /// Addresses inside the mesh: all or some of `NodeCertificate::mesh_addresses`.
    pub mesh_addresses: Vec<IpNet>,
    /// What the node routes for.
    pub prefixes: Vec<IpNet>,
    /// Single workloads on the node: [`Node::update_self`](crate::node::Node::update_self) puts those that are granted
    /// among the prefixes, as many as there is room for.
    pub workloads: Vec<IpNet>,
    /// Underlay addresses that shall be reached through the tunnel.
    pub node_claims: Vec<IpAddr>,
    /// Where its QUIC port is reached.
    pub endpoints: Vec<SocketAddr>,
    /// Zone, or empty.
    pub zone: Zone,
    /// Feature names.
    pub capabilities: Vec<String>,
    /// The gateway by which other zones reach this node.
    pub via: Option<NodeKey>,
    /// The node leaves for good.
    pub left: bool,
    /// Underlay addresses, for display.
    pub node_addresses: Vec<IpAddr>,
    /// The software's version.
    pub software_version: String,
}

impl RecordDraft {
    /// What the certificate should grant for it.
    #[must_use]
    pub fn wanted(&self) -> Vec<IpNet> {
        let nodes = self.node_claims.iter().map(|address| address::host_prefix(*address));
        nodes.chain(self.prefixes.iter().copied()).collect()
    }
}

impl NodeIdentity {
    /// Puts key and certificate together.
    pub fn new(key: IdentityKey, certificate: Arc<NodeCertificate>) -> Result<Self, Refusal> {
        if key.public() != certificate.key {
            return Err(Refusal::new(
                Code::IdentityMismatch,
                format!("the certificate is for {}, the key is {}", certificate.key, key.public()),
            ));
        }
        Ok(Self { key, certificate })
    }

    /// Who it is.
    #[must_use]
    pub fn public(&self) -> NodeKey {
        self.certificate.key
    }

    /// What this node may claim, and who it is to others.
    #[must_use]
    pub fn certificate(&self) -> &NodeCertificate {
        &self.certificate
    }

    /// Signs a record. Whether others will believe it, [`super::authenticate`] says, which is to be
    /// asked before it is sent. A leave has [`LEAVE_VERSION`], whatever `version` says.
    #[must_use]
    pub fn sign_record(
        &self,
        draft: &RecordDraft,
        version: u64,
        boot_id: BootId,
        generation: u64,
        issued_at: UnixTime,
    ) -> wire::SignedRecord {
        self.sign_payload(&self.payload(draft, version, boot_id, generation, issued_at))
    }

    /// Bytes of the payload that [`Self::sign_record`] would sign.
    pub(crate) fn payload_length(
        &self,
        draft: &RecordDraft,
        version: u64,
        boot_id: BootId,
        generation: u64,
        issued_at: UnixTime,
    ) -> usize {
        self.payload(draft, version, boot_id, generation, issued_at).encoded_len()
    }

    fn payload(
        &self,
        draft: &RecordDraft,
        version: u64,
        boot_id: BootId,
        generation: u64,
        issued_at: UnixTime,
    ) -> wire::NodeRecord {
        wire::NodeRecord {
            identity_key: self.certificate.key.0.to_vec().into(),
            name: self.certificate.name.to_string(),
            certificate_hash: self.certificate.hash.to_vec().into(),
            version: if draft.left { LEAVE_VERSION } else { version },
            boot_id: boot_id.0.to_vec().into(),
            generation,
            issued_at: issued_at.0,
            lanes: draft.lanes.clone(),
            mesh_addresses: to_wire(&draft.mesh_addresses),
            prefixes: to_wire(&draft.prefixes),
            endpoints: draft
                .endpoints
                .iter()
                .map(|endpoint| wire::Endpoint {
                    address: address::address_to_wire(&endpoint.ip()).into(),
                    port: u32::from(endpoint.port()),
                })
                .collect(),
            zone: draft.zone.to_string(),
            capabilities: draft.capabilities.clone(),
            left: draft.left,
            via: draft.via.map(|key| key.0.to_vec().into()).unwrap_or_default(),
            node_addresses: draft
                .node_addresses
                .iter()
                .map(|address| address::address_to_wire(address).into())
                .collect(),
            software_version: draft.software_version.clone(),
            node_claims: draft
                .node_claims
                .iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(|address| address::address_to_wire(address).into())
                .collect(),
        }
    }

    /// Signs any payload as this node's record: tests make bad ones with it.
    pub(super) fn sign_payload(&self, payload: &wire::NodeRecord) -> wire::SignedRecord {
        let payload = payload.encode_to_vec();
        let signature = self.key.sign(Kind::Record, &self.certificate.mesh_id, &payload);
        wire::SignedRecord {
            payload: payload.into(),
            signature: signature.to_vec().into(),
            certificate: self.certificate.der.clone(),
        }
    }
}

/// In the order that receivers insist on.
fn to_wire(prefixes: &[IpNet]) -> Vec<wire::IpPrefix> {
    let sorted: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    sorted.iter().map(address::prefix_to_wire).collect()
}
