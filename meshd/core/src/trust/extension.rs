//! The private extension of a node certificate: what decides what the node may claim.
//!
//! A non-critical extension (webpki refuses critical ones that it does not know) whose value is a
//! DER OCTET STRING around a Protobuf message, so that later fields can be added.

use std::net::Ipv4Addr;

use bytes::Bytes;
use ipnet::IpNet;
use meshd_proto::{MeshId, wire};
use prost::Message;

use super::{record::Grant, terms};
use crate::{
    address, limits,
    refusal::{Code, Refusal},
};

/// 2.25 is the arc of numbers that need no registration; the second is a random one of ours.
pub(super) const OID: &[u64] = &[2, 25, 5_183_460_271_904_418_233];

/// What the extension says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grants {
    pub(super) mesh_id: MeshId,
    pub(super) enrolment_id: [u8; 16],
    pub(super) groups: Vec<String>,
    /// Sorted, each once.
    pub(super) grants: Vec<Grant>,
    pub(super) mesh_ipv4: Option<Ipv4Addr>,
    /// Sorted, each once.
    pub(super) limits: Vec<IpNet>,
    pub(super) subject: Option<[u8; 32]>,
}

impl Grants {
    pub(super) fn encode(&self) -> Vec<u8> {
        let message = wire::CertificateGrants {
            mesh_id: self.mesh_id.0.to_vec().into(),
            enrolment_id: self.enrolment_id.to_vec().into(),
            groups: self.groups.clone(),
            grants: self.grants.iter().map(grant_to_wire).collect(),
            mesh_ipv4: self
                .mesh_ipv4
                .map_or_else(Bytes::new, |address| address.octets().to_vec().into()),
            limits: self.limits.iter().map(address::prefix_to_wire).collect(),
            subject: subject_to_wire(self.subject.as_ref()),
        };
        yasna::construct_der(|writer| writer.write_bytes(&message.encode_to_vec()))
    }

    pub(super) fn decode(der: &[u8]) -> Result<Self, Refusal> {
        let value = yasna::parse_der(der, |reader| reader.read_bytes())
            .map_err(|_| malformed("its value is not one OCTET STRING"))?;
        let message = wire::CertificateGrants::decode(&value[..])
            .map_err(|_| malformed("its content is not decodable"))?;
        let mesh_id = MeshId::try_from(&message.mesh_id[..])
            .map_err(|error| malformed(&error.to_string()))?;
        let enrolment_id = <[u8; 16]>::try_from(&message.enrolment_id[..])
            .map_err(|_| malformed("the enrolment id is not 16 bytes"))?;
        if message.groups.len() > limits::GROUPS || message.grants.len() > limits::GRANTS {
            return Err(Refusal::new(Code::TooLarge, "certificate: too many groups or grants"));
        }
        if let Some(group) = message.groups.iter().find(|group| !is_group(group)) {
            return Err(malformed(&format!(
                "group {:?}",
                group.chars().take(40).collect::<String>()
            )));
        }
        let grants = message.grants.iter().map(grant_from_wire).collect::<Result<Vec<_>, _>>()?;
        if !grants.is_sorted_by(|a, b| a < b) {
            return Err(malformed("the grants are not sorted, or one is there twice"));
        }
        let mesh_ipv4 = match &message.mesh_ipv4[..] {
            [] => None,
            bytes => Some(
                <[u8; 4]>::try_from(bytes)
                    .map(Ipv4Addr::from)
                    .map_err(|_| malformed("the mesh address is not 4 bytes"))?,
            ),
        };
        if mesh_ipv4.is_some_and(|address| !grants.contains(&mesh_grant(address))) {
            return Err(malformed("the mesh address is not among its grants"));
        }
        let limits = terms::read_prefixes(&message.limits)?;
        let subject = subject_from_wire(&message.subject)
            .ok_or_else(|| malformed("the subject's hash is not 32 bytes"))?;
        let groups = message.groups;
        Ok(Self { mesh_id, enrolment_id, groups, grants, mesh_ipv4, limits, subject })
    }
}

/// Whom a document was about: a hash, or nothing.
pub(super) fn subject_to_wire(subject: Option<&[u8; 32]>) -> Bytes {
    subject.map(|hash| Bytes::copy_from_slice(hash)).unwrap_or_default()
}

/// The same back; `None` when it is neither.
pub(super) fn subject_from_wire(bytes: &[u8]) -> Option<Option<[u8; 32]>> {
    if bytes.is_empty() { Some(None) } else { <[u8; 32]>::try_from(bytes).ok().map(Some) }
}

/// The mesh address as the exact grant that it is: in a contest it counts like any other.
pub(super) fn mesh_grant(address: Ipv4Addr) -> Grant {
    Grant { prefix: address::host_prefix(address.into()), claim_len: None }
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("certificate extension: {why}"))
}

/// Groups are shown and matched: letters, digits and `-_.`, at most 63.
pub(super) fn is_group(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn grant_to_wire(grant: &Grant) -> wire::CertificateGrant {
    wire::CertificateGrant {
        prefix: Some(address::prefix_to_wire(&grant.prefix)),
        claim_len: grant.claim_len.map(u32::from),
    }
}

fn grant_from_wire(grant: &wire::CertificateGrant) -> Result<Grant, Refusal> {
    let prefix = grant.prefix.as_ref().ok_or_else(|| malformed("a grant without a prefix"))?;
    let prefix = address::prefix_from_wire(prefix)?;
    let claim_len = grant
        .claim_len
        .map(|length| {
            u8::try_from(length)
                .ok()
                .filter(|length| (prefix.prefix_len()..=prefix.max_prefix_len()).contains(length))
                .ok_or_else(|| malformed("a claim length that does not fit its pool"))
        })
        .transpose()?;
    Ok(Grant { prefix, claim_len })
}

impl Grant {
    /// True when a record may claim `prefix` by this grant.
    #[must_use]
    pub fn covers(&self, prefix: &IpNet) -> bool {
        match self.claim_len {
            None => self.prefix == *prefix,
            Some(length) => self.prefix.contains(prefix) && prefix.prefix_len() == length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(prefix: &str, claim_len: Option<u8>) -> Grant {
        Grant { prefix: prefix.parse().unwrap(), claim_len }
    }

    fn sample() -> Grants {
        Grants {
            mesh_id: MeshId([1; 16]),
            enrolment_id: [2; 16],
            groups: vec!["web".into()],
            grants: vec![
                grant("10.1.0.0/16", None),
                grant("10.2.0.0/16", Some(24)),
                grant("100.112.0.9/32", None),
            ],
            mesh_ipv4: Some(Ipv4Addr::new(100, 112, 0, 9)),
            limits: vec!["10.128.0.0/9".parse().unwrap()],
            subject: Some([3; 32]),
        }
    }

    #[test]
    fn it_reads_back() {
        assert_eq!(Grants::decode(&sample().encode()), Ok(sample()));
        let of_nobody = Grants { subject: None, ..sample() };
        assert_eq!(Grants::decode(&of_nobody.encode()), Ok(of_nobody));
    }

    #[test]
    fn trailing_bytes_unsorted_grants_and_wild_lengths_are_refused() {
        let mut trailing = sample().encode();
        trailing.push(0);
        assert!(Grants::decode(&trailing).is_err());
        let mut unsorted = sample();
        unsorted.grants.reverse();
        assert!(Grants::decode(&unsorted.encode()).is_err());
        let mut twice = sample();
        twice.grants = vec![grant("10.1.0.0/16", None); 2];
        assert!(Grants::decode(&twice.encode()).is_err());
        let mut short = sample();
        short.grants = vec![grant("10.2.0.0/16", Some(8))];
        assert!(Grants::decode(&short.encode()).is_err());
        let mut group = sample();
        group.groups = vec!["a\u{1b}".into()];
        assert!(Grants::decode(&group.encode()).is_err());
    }

    #[test]
    fn an_exact_grant_covers_itself_and_a_pool_pieces_of_its_length() {
        let exact = grant("10.1.0.0/16", None);
        assert!(exact.covers(&"10.1.0.0/16".parse().unwrap()));
        assert!(!exact.covers(&"10.1.2.0/24".parse().unwrap()));
        let pool = grant("10.2.0.0/16", Some(24));
        assert!(pool.covers(&"10.2.7.0/24".parse().unwrap()));
        assert!(!pool.covers(&"10.2.0.0/16".parse().unwrap()));
        assert!(!pool.covers(&"10.2.7.0/25".parse().unwrap()));
        assert!(!pool.covers(&"10.3.7.0/24".parse().unwrap()));
    }
}
