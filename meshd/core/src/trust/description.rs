//! What a certificate says, for people and programs that look at it. Nothing is believed here, and nothing
//! verified but the shape: a chain is `anchors`' matter. Called by `meshctl cert show`.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use meshd_proto::{MeshId, MeshName, NodeKey, NodeName};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    ca,
    certificate::{self, CaCertificate},
    record::{Grant, NodeCertificate},
    rfc3779,
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateKind {
    /// A node's.
    Node,
    /// A signer's.
    Intermediate,
    /// A mesh's.
    Root,
}

impl CertificateKind {
    /// `node`, `intermediate` or `root`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
        }
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Whose it is.
    pub kind: CertificateKind,
    /// Whom it is for. Text from outside, as that of the issuer: to be escaped.
    pub subject: String,
    /// Who says so.
    pub issuer: String,
    /// Hexadecimal, with colons.
    pub serial: String,
    /// The name of the mesh, if it has one.
    pub mesh: Option<MeshName>,
    /// The mesh; an intermediate does not say.
    pub mesh_id: Option<MeshId>,
    /// Ed25519.
    pub public_key: [u8; 32],
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
    /// RFC 3779 address blocks, sorted; `None`: in no form of meshd.
    pub address_blocks: Option<Vec<String>>,
    /// CAs below it.
    pub path_length: Option<u32>,
    /// What only a node's says.
    pub node: Option<NodeDescription>,
}

/// What only a node's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDescription {
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub key: NodeKey,
    /// Its SPIFFE id.
    pub spiffe_id: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What it may claim, its own address left out.
    pub grants: Vec<Grant>,
    /// Within these, what it detects is granted at renewal.
    pub limits: Vec<IpNet>,
    /// Addresses inside the mesh.
    pub mesh_addresses: Vec<IpNet>,
    /// Its node asks for the next one between these.
    pub renewal: (UnixTime, UnixTime),
}

/// Reads a certificate of a mesh, DER.
///
/// # Errors
/// What is no certificate, and one that no mesh has made.
pub fn describe(der: &[u8]) -> Result<Description, Refusal> {
    let not_ours = || Refusal::new(Code::Malformed, "certificate: not decodable");
    let (_, x509) = X509Certificate::from_der(der).map_err(|_| not_ours())?;
    let ca = x509.basic_constraints().ok().flatten().is_some_and(|basic| basic.value.ca);
    let mut description = Description {
        kind: CertificateKind::Node,
        subject: x509.subject().to_string(),
        issuer: x509.issuer().to_string(),
        serial: x509.raw_serial_as_string(),
        mesh: None,
        mesh_id: None,
        public_key: [0; 32],
        not_before: UnixTime(x509.validity().not_before.timestamp()),
        not_after: UnixTime(x509.validity().not_after.timestamp()),
        fingerprint: Sha256::digest(der).into(),
        address_blocks: None,
        path_length: None,
        node: None,
    };
    match ca {
        true => describe_ca(der, &x509, &mut description)?,
        false => describe_node(der, &mut description)?,
    }
    Ok(description)
}

fn describe_ca(
    der: &[u8],
    x509: &X509Certificate<'_>,
    description: &mut Description,
) -> Result<(), Refusal> {
    let ca = CaCertificate::parse(der)?;
    let own = x509.subject().as_raw() == x509.issuer().as_raw();
    description.kind = if own { CertificateKind::Root } else { CertificateKind::Intermediate };
    description.mesh = ca.organization.parse().ok();
    description.mesh_id = ca.common_name.strip_prefix(ca::ROOT_NAME).and_then(|id| id.parse().ok());
    description.public_key = ca.key;
    description.path_length = ca.path_length;
    let blocks = x509.extensions().iter().find(|extension| {
        extension
            .oid
            .iter()
            .is_some_and(|mut numbers| numbers.by_ref().eq(rfc3779::OID.iter().copied()))
    });
    let everything = blocks.is_some_and(|blocks| blocks.value == rfc3779::encode_all());
    description.address_blocks = everything.then(|| vec!["0.0.0.0/0".into(), "::/0".into()]);
    Ok(())
}

fn describe_node(der: &[u8], description: &mut Description) -> Result<(), Refusal> {
    let node = NodeCertificate::parse(der)?;
    description.public_key = node.key.0;
    description.mesh_id = Some(node.mesh_id);
    description.address_blocks = Some(rfc3779::texts(&node.address_blocks()));
    let own = |grant: &Grant| is_own(grant, node.mesh_ipv4);
    let life = node.not_after.since(node.not_before);
    let at = |share: i64| node.not_before.plus(life / 1000 * share);
    let share = limits::RENEWAL_SHARE;
    description.node = Some(NodeDescription {
        spiffe_id: certificate::spiffe_id(&node.mesh, &node.name),
        grants: node.grants.iter().filter(|grant| !own(grant)).cloned().collect(),
        mesh_addresses: node.mesh_addresses(),
        renewal: (at(share.start), at(share.end)),
        name: node.name,
        key: node.key,
        groups: node.groups,
        limits: node.limits,
    });
    description.mesh = Some(node.mesh);
    Ok(())
}

fn is_own(grant: &Grant, mesh_ipv4: Option<Ipv4Addr>) -> bool {
    mesh_ipv4.is_some_and(|own| *grant == super::extension::mesh_grant(own))
}
