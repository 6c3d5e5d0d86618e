//! Makes certificates: the root's, an intermediate's, a node's.
//!
//! All are Ed25519, and the same input gives the same bytes. Who gets one is `signer`'s decision;
//! reading them is `certificate`'s part.

use std::{fmt, net::Ipv4Addr};

use ed25519_dalek::{Signer, SigningKey};
use ipnet::IpNet;
use meshd_proto::{MeshId, MeshName, NodeKey, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use sha2::{Digest, Sha256};
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    certificate::{CaCertificate, server_name, spiffe_id},
    extension::{self, Grants},
    record::{Grant, NodeCertificate},
    rfc3779,
};
use crate::{address, limits, now::UnixTime, refusal::Refusal};

/// 9999-12-31T23:59:59Z: the last time that a certificate can name.
const LAST_SECOND: i64 = 253_402_300_799;

/// A certificate that could not be made or whose parts do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CaError {
    /// The encoder refused.
    #[error("cannot make a certificate: {0}")]
    Encode(String),
    /// The certificate is not what its file should hold.
    #[error("the stored certificate is not usable: {0}; restore it from a backup")]
    Unusable(#[from] Refusal),
    /// Certificate and key are not a pair.
    #[error("the stored key does not belong to its certificate; restore both from one backup")]
    KeyMismatch,
}

/// A CA's certificate and key. Wiped when dropped.
#[derive(Clone)]
struct CaKey {
    key: SigningKey,
    certificate: CaCertificate,
}

/// The root of a mesh.
#[derive(Debug, Clone)]
pub struct RootCa(CaKey);

/// What a signer issues node certificates with.
#[derive(Debug, Clone)]
pub struct Intermediate(CaKey);

/// What a node certificate shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerms {
    /// The mesh's name.
    pub mesh: MeshName,
    /// The mesh.
    pub mesh_id: MeshId,
    /// The node's name.
    pub name: NodeName,
    /// Whom it is for.
    pub key: NodeKey,
    /// Kept at renewal.
    pub enrolment_id: [u8; 16],
    /// Groups.
    pub groups: Vec<String>,
    /// What may be claimed, in any order.
    pub grants: Vec<Grant>,
    /// IPv4 address inside the mesh; granted with the rest.
    pub mesh_ipv4: Option<Ipv4Addr>,
    /// Limits of what is granted at renewal, in any order.
    pub limits: Vec<IpNet>,
    /// Whom the identity document was about that it is admitted by: a hash, kept at renewal.
    pub subject: Option<[u8; 32]>,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity; cut to the intermediate's.
    pub not_after: UnixTime,
}

/// The root's subject, from which a joiner that holds only its public key rebuilds the anchor.
pub(super) fn root_subject(mesh: &MeshName, mesh_id: &MeshId) -> Subject {
    vec![(ORGANIZATION, mesh.to_string()), (COMMON_NAME, format!("{ROOT_NAME}{mesh_id}"))]
}

/// Attribute types (their object identifiers) and texts, in order.
type Subject = Vec<(&'static [u64], String)>;
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];

/// Start of a root's common name; the mesh id in hexadecimal follows.
pub(super) const ROOT_NAME: &str = "meshd root ";
/// Start of an intermediate's common name; half of its key's hash in hexadecimal follows.
const INTERMEDIATE_NAME: &str = "meshd signer ";

impl RootCa {
    /// Makes the root of a new mesh from 32 random bytes.
    pub fn create(
        seed: &[u8; 32],
        mesh: &MeshName,
        mesh_id: &MeshId,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let key = SigningKey::from_bytes(seed);
        let pair = Pair::new(&key);
        let subject = root_subject(mesh, mesh_id);
        let params = ca_params(subject, Some(1), &pair.public, &pair.public, now);
        let der = params.self_signed(&pair).map_err(encode_error)?.der().to_vec();
        Ok(Self(CaKey { certificate: CaCertificate::parse(&der)?, key }))
    }

    /// The root from its stored parts.
    pub fn from_parts(certificate: &[u8], seed: &[u8; 32]) -> Result<Self, CaError> {
        CaKey::from_parts(certificate, seed).map(Self)
    }

    /// Issues an intermediate, its key made from 32 random bytes.
    pub fn issue_intermediate(
        &self,
        seed: &[u8; 32],
        now: UnixTime,
    ) -> Result<Intermediate, CaError> {
        let key = SigningKey::from_bytes(seed);
        let der = self.certify_signer(&key.verifying_key().to_bytes(), now)?;
        Ok(Intermediate(CaKey { certificate: CaCertificate::parse(&der)?, key }))
    }

    /// Issues the certificate of an intermediate whose key is elsewhere, DER.
    pub fn certify_signer(&self, public: &[u8; 32], now: UnixTime) -> Result<Vec<u8>, CaError> {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(public)[..16]);
        let subject = vec![
            (ORGANIZATION, self.0.certificate.organization.clone()),
            (COMMON_NAME, format!("{INTERMEDIATE_NAME}{hash}")),
        ];
        let params = ca_params(subject, Some(0), public, &self.0.certificate.key, now);
        self.0.issue(&params, public)
    }

    /// Certifies the root that comes after this one, DER: whoever trusts this one can follow.
    pub fn certify_successor(&self, next: &Self, now: UnixTime) -> Result<Vec<u8>, CaError> {
        let (own, next) = (&self.0.certificate, &next.0.certificate);
        let subject = vec![
            (ORGANIZATION, next.organization.clone()),
            (COMMON_NAME, next.common_name.clone()),
        ];
        // No bound: the links of several rollovers come to lie in one chain.
        let params = ca_params(subject, None, &next.key, &own.key, now);
        self.0.issue(&params, &next.key)
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0.certificate.key
    }

    /// The certificate, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.certificate.der
    }

    /// The seed, to be stored in a file that only root reads.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.key.to_bytes())
    }

    /// The key that signs bundles.
    pub(super) fn key(&self) -> &SigningKey {
        &self.0.key
    }
}

impl Intermediate {
    /// The intermediate from its stored parts.
    pub fn from_parts(certificate: &[u8], seed: &[u8; 32]) -> Result<Self, CaError> {
        CaKey::from_parts(certificate, seed).map(Self)
    }

    /// Issues a node certificate.
    pub fn issue_node(&self, terms: &NodeTerms) -> Result<NodeCertificate, CaError> {
        let der = self.0.issue(&node_params(terms, &self.0.certificate)?, &terms.key.0)?;
        Ok(NodeCertificate::parse(&der)?)
    }

    /// The certificate, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.certificate.der
    }

    /// The seed, to be stored in a file that only root reads.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.key.to_bytes())
    }

    /// The public key, by which grants name their signer.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0.certificate.key
    }

    /// The key that signs grants.
    pub(super) fn key(&self) -> &SigningKey {
        &self.0.key
    }
}

impl CaKey {
    fn from_parts(certificate: &[u8], seed: &[u8; 32]) -> Result<Self, CaError> {
        let certificate = CaCertificate::parse(certificate)?;
        let key = SigningKey::from_bytes(seed);
        if key.verifying_key().to_bytes() != certificate.key {
            return Err(CaError::KeyMismatch);
        }
        Ok(Self { key, certificate })
    }

    fn issue(&self, params: &CertificateParams, subject: &[u8; 32]) -> Result<Vec<u8>, CaError> {
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = dn(vec![
            (ORGANIZATION, self.certificate.organization.clone()),
            (COMMON_NAME, self.certificate.common_name.clone()),
        ]);
        let pair = Pair::new(&self.key);
        let certificate = params
            .signed_by(&PublicKey(*subject), &Issuer::from_params(&issuer, &pair))
            .map_err(encode_error)?;
        Ok(certificate.der().to_vec())
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaKey({:?}, secret redacted)", self.certificate.common_name)
    }
}

fn encode_error(error: impl fmt::Display) -> CaError {
    CaError::Encode(error.to_string())
}

fn dn(subject: Subject) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, text) in subject {
        let kind = if kind == COMMON_NAME { DnType::CommonName } else { DnType::OrganizationName };
        name.push(kind, text);
    }
    name
}

fn ca_params(
    subject: Subject,
    path_length: Option<u8>,
    key: &[u8; 32],
    issuer: &[u8; 32],
    now: UnixTime,
) -> CertificateParams {
    let not_before = now.plus(-limits::CERTIFICATE_BACKDATE_SECONDS);
    let not_after = now.plus(limits::CA_CERTIFICATE_SECONDS);
    let mut params = CertificateParams::default();
    params.not_before = date(not_before);
    params.not_after = date(not_after);
    params.serial_number = Some(serial(&[issuer, key, &not_before.0.to_be_bytes()]));
    params.distinguished_name = dn(subject);
    let bound = path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained);
    params.is_ca = IsCa::Ca(bound);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.custom_extensions = vec![extension_of(rfc3779::OID, rfc3779::encode_all())];
    params.use_authority_key_identifier_extension = true;
    params
}

fn node_params(terms: &NodeTerms, issuer: &CaCertificate) -> Result<CertificateParams, CaError> {
    let mut grants = terms.grants.clone();
    grants.extend(terms.mesh_ipv4.map(extension::mesh_grant));
    grants.sort_unstable();
    grants.dedup();
    let ula = address::host_prefix(address::ula(&terms.mesh_id, &terms.key).into());
    let blocks: Vec<IpNet> = grants.iter().map(|grant| grant.prefix).chain([ula]).collect();
    let extension = Grants {
        mesh_id: terms.mesh_id,
        enrolment_id: terms.enrolment_id,
        groups: terms.groups.clone(),
        grants,
        mesh_ipv4: terms.mesh_ipv4,
        limits: sorted(&terms.limits),
        subject: terms.subject,
    };
    let content = extension.encode();
    let (from, to) =
        (terms.not_before.max(issuer.not_before), terms.not_after.min(issuer.not_after));
    let dates = [from.0.to_be_bytes(), to.0.to_be_bytes()].concat();
    let dns = server_name(&terms.mesh_id).try_into().map_err(encode_error)?;
    let uri = spiffe_id(&terms.mesh, &terms.name).try_into().map_err(encode_error)?;
    let mut params = CertificateParams::default();
    params.not_before = date(from);
    params.not_after = date(to);
    params.serial_number = Some(serial(&[&issuer.key, &terms.key.0, &dates, &content]));
    params.subject_alt_names = vec![SanType::DnsName(dns), SanType::URI(uri)];
    // Always 52 characters; a node's name may be longer than a common name can be.
    params.distinguished_name = dn(vec![(COMMON_NAME, terms.key.to_string())]);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.custom_extensions = vec![
        extension_of(rfc3779::OID, rfc3779::encode(&blocks)),
        extension_of(extension::OID, content),
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn sorted(prefixes: &[IpNet]) -> Vec<IpNet> {
    let sorted: std::collections::BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    sorted.into_iter().collect()
}

/// Never critical: webpki refuses critical extensions that it does not know.
fn extension_of(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(false);
    extension
}

/// A positive serial number of 16 bytes that differs wherever the certificates do.
fn serial(parts: &[&[u8]]) -> SerialNumber {
    let mut hash = Sha256::new().chain_update(b"meshd-serial-v1\0");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut serial = hash.finalize()[..16].to_vec();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from(serial)
}

/// Clamped to the years that a certificate can name.
fn date(time: UnixTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.0.clamp(0, LAST_SECOND))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A public key as rcgen takes it.
struct PublicKey([u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// A key pair as rcgen takes it; the secret is not copied.
struct Pair<'a> {
    key: &'a SigningKey,
    public: [u8; 32],
}

impl<'a> Pair<'a> {
    fn new(key: &'a SigningKey) -> Self {
        Self { key, public: key.verifying_key().to_bytes() }
    }
}

impl PublicKeyData for Pair<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Pair<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}
