//! Reads certificates: the one shape of node certificate that there is, and CA certificates.
//!
//! Reading says what a certificate claims. Whether to believe it, `anchors` decides; making them is
//! `ca`'s part.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ipnet::IpNet;
use meshd_proto::{MeshId, MeshName, NodeKey, NodeName};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{
    der_parser::Oid,
    prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509Version},
};

use super::{
    extension::{self, Grants},
    record::NodeCertificate,
    rfc3779,
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// `id-Ed25519` (RFC 8410), as DER content.
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// The DNS name that every node certificate of a mesh carries: TLS libraries want one to check, and
/// who the node is, its SPIFFE id says.
#[must_use]
pub fn server_name(mesh_id: &MeshId) -> String {
    format!("{mesh_id}.meshd.internal")
}

/// The SPIFFE id of a node.
#[must_use]
pub fn spiffe_id(mesh: &MeshName, node: &NodeName) -> String {
    format!("spiffe://{mesh}/node/{node}")
}

/// A moment at which all of a chain is valid, if there is one.
#[must_use]
pub fn valid_moment(chain: &[&[u8]]) -> Option<UnixTime> {
    let mut common: Option<(UnixTime, UnixTime)> = None;
    for der in chain {
        let (begin, end) = Read::parse(der).ok()?.validity();
        let (from, to) = common.unwrap_or((begin, end));
        common = Some((from.max(begin), to.min(end)));
    }
    common.filter(|(from, to)| from <= to).map(|(from, _)| from)
}

/// What a CA certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CaCertificate {
    pub(super) der: Bytes,
    /// Content of the subject's SEQUENCE.
    pub(super) subject: Vec<u8>,
    pub(super) common_name: String,
    pub(super) organization: String,
    pub(super) key: [u8; 32],
    pub(super) path_length: Option<u32>,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

impl NodeCertificate {
    /// Reads a node certificate. Nothing is verified but its shape.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let x509 = Read::parse(der)?;
        let ca = x509.certificate.basic_constraints().map_err(|_| malformed("constraints"))?;
        if ca.is_some_and(|constraints| constraints.value.ca) {
            return Err(malformed("it is a CA's, not a node's"));
        }
        let usage = x509.certificate.key_usage().ok().flatten();
        if !usage
            .is_some_and(|usage| usage.value.digital_signature() && !usage.value.key_cert_sign())
        {
            return Err(malformed("its key usage is not a node's"));
        }
        // Both ends of a connection show the same certificate.
        let purposes = x509.certificate.extended_key_usage().ok().flatten();
        if !purposes
            .is_some_and(|purposes| purposes.value.server_auth && purposes.value.client_auth)
        {
            return Err(malformed("it is not for both ends of TLS"));
        }
        let grants = Grants::decode(x509.extension(extension::OID, "grants")?)?;
        let (mesh, name) = x509.subject_alternative_names(&grants.mesh_id)?;
        let key = NodeKey(x509.key);
        let (not_before, not_after) = x509.validity();
        let certificate = Self {
            hash: Sha256::digest(der).into(),
            der: Bytes::copy_from_slice(der),
            key,
            name,
            mesh,
            mesh_id: grants.mesh_id,
            enrolment_id: grants.enrolment_id,
            groups: grants.groups,
            grants: grants.grants,
            mesh_ipv4: grants.mesh_ipv4,
            limits: grants.limits,
            subject: grants.subject,
            not_before,
            not_after,
        };
        // The canonical form is unique, so that comparing needs no parser of its own.
        let blocks = rfc3779::encode(&certificate.address_blocks());
        if x509.extension(rfc3779::OID, "address blocks")? != blocks {
            return Err(malformed("its address blocks are not those of its grants"));
        }
        Ok(certificate)
    }

    /// The serial number, in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> String {
        let read = Read::parse(&self.der);
        read.map(|read| HEXLOWER.encode(read.certificate.raw_serial())).unwrap_or_default()
    }

    /// The node's addresses inside the mesh, sorted: IPv4 when granted, and the ULA.
    #[must_use]
    pub fn mesh_addresses(&self) -> Vec<IpNet> {
        let v4 = self.mesh_ipv4.map(|v4| address::host_prefix(v4.into()));
        let ula = address::host_prefix(address::ula(&self.mesh_id, &self.key).into());
        v4.into_iter().chain([ula]).collect()
    }

    /// All that the certificate's holder may have or claim.
    pub(super) fn address_blocks(&self) -> Vec<IpNet> {
        let ula = address::host_prefix(address::ula(&self.mesh_id, &self.key).into());
        self.grants.iter().map(|grant| grant.prefix).chain([ula]).collect()
    }
}

impl CaCertificate {
    /// Reads a CA certificate. Nothing is verified but its shape.
    pub(super) fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let x509 = Read::parse(der)?;
        let constraints = x509
            .certificate
            .basic_constraints()
            .ok()
            .flatten()
            .filter(|constraints| constraints.value.ca)
            .ok_or_else(|| malformed("it is not a CA's"))?;
        let path_length = constraints.value.path_len_constraint;
        let subject = &x509.certificate.subject;
        let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attribute
                .and_then(|attribute| attribute.as_str().ok())
                .map(str::to_owned)
                .ok_or_else(|| malformed("its subject has no name"))
        };
        let common_name = text(subject.iter_common_name().next())?;
        let organization = text(subject.iter_organization().next())?;
        let (not_before, not_after) = x509.validity();
        Ok(Self {
            der: Bytes::copy_from_slice(der),
            subject: subject_and_issuer(der)?.0,
            common_name,
            organization,
            key: x509.key,
            path_length,
            not_before,
            not_after,
        })
    }

    /// Verifies the signature by `issuer`'s key.
    pub(super) fn verify_issued_by(&self, issuer: &[u8; 32]) -> Result<(), Refusal> {
        let x509 = Read::parse(&self.der)?.certificate;
        super::signing::verify_raw(
            issuer,
            x509.tbs_certificate.as_ref(),
            &x509.signature_value.data,
        )
        .map_err(|why| {
            Refusal::new(Code::UntrustedChain, format!("CA certificate: its signature {why}"))
        })
    }
}

/// Content of the subject's and of the issuer's SEQUENCE, as chains are linked by them.
pub(super) fn subject_and_issuer(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    let der = CertificateDer::from(der);
    let certificate = webpki::EndEntityCert::try_from(&der)
        .map_err(|error| Refusal::new(Code::Malformed, format!("certificate: {error}")))?;
    Ok((certificate.subject().to_vec(), certificate.issuer().to_vec()))
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("certificate: {why}"))
}

/// What node and CA certificates have in common.
struct Read<'a> {
    certificate: X509Certificate<'a>,
    key: [u8; 32],
}

impl<'a> Read<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, Refusal> {
        if der.len() > limits::CERTIFICATE {
            return Err(Refusal::new(
                Code::TooLarge,
                format!(
                    "certificate: {} bytes, at most {} are read",
                    der.len(),
                    limits::CERTIFICATE
                ),
            ));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| malformed("not decodable"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        if certificate.version() != X509Version::V3 {
            return Err(malformed("not version 3"));
        }
        let algorithms = [
            &certificate.signature_algorithm,
            &certificate.tbs_certificate.signature,
            &certificate.tbs_certificate.subject_pki.algorithm,
        ];
        if algorithms.iter().any(|a| a.algorithm.as_bytes() != ED25519 || a.parameters.is_some()) {
            return Err(malformed("not Ed25519"));
        }
        let bits = &certificate.tbs_certificate.subject_pki.subject_public_key;
        let key = <[u8; 32]>::try_from(&bits.data[..])
            .ok()
            .filter(|_| bits.unused_bits == 0)
            .ok_or_else(|| malformed("its key is not 32 bytes"))?;
        let mut seen = std::collections::BTreeSet::new();
        for extension in certificate.extensions() {
            if !seen.insert(extension.oid.as_bytes()) {
                return Err(malformed("an extension is there twice"));
            }
            if matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. }) {
                return Err(malformed("an extension is not decodable"));
            }
        }
        Ok(Self { certificate, key })
    }

    fn validity(&self) -> (UnixTime, UnixTime) {
        let validity = self.certificate.validity();
        (UnixTime(validity.not_before.timestamp()), UnixTime(validity.not_after.timestamp()))
    }

    fn extension(&self, oid: &[u64], what: &str) -> Result<&'a [u8], Refusal> {
        let missing = || malformed(&format!("it has no {what}"));
        let oid = Oid::from(oid).map_err(|_| missing())?;
        self.certificate
            .extensions()
            .iter()
            .find(|extension| extension.oid == oid)
            .map(|extension| extension.value)
            .ok_or_else(missing)
    }

    /// Exactly two names: the mesh's DNS name, and the SPIFFE id that is taken apart here.
    fn subject_alternative_names(&self, mesh: &MeshId) -> Result<(MeshName, NodeName), Refusal> {
        let names = self.certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let [GeneralName::DNSName(dns), GeneralName::URI(uri)] = names else {
            return Err(malformed("its names are not one DNS name and one SPIFFE id"));
        };
        if *dns != server_name(mesh) {
            return Err(Refusal::new(
                Code::OtherMesh,
                "certificate: its DNS name is another mesh's",
            ));
        }
        let (mesh, node) = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once("/node/"))
            .ok_or_else(|| malformed("its SPIFFE id is not a node's"))?;
        let mesh = mesh.parse().map_err(|error| malformed(&format!("{error}")))?;
        let node = node.parse().map_err(|error| malformed(&format!("{error}")))?;
        Ok((mesh, node))
    }
}
