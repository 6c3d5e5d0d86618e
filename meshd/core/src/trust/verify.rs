//! Which records are believed.
//!
//! [`authenticate`] is a pure function of the bytes and the anchors, in the order of the protocol:
//! size, signature, chain, mesh id, certificate hash, WireGuard proof, grants, structure. Dates and
//! versions are [`super::admit`]'s question, since their answer changes with time and with what is
//! held. Called for every record from the network, from the store, and for a node's own before it
//! is sent.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use meshd_proto::{BootId, MeshId, NodeKey, NodeName, Zone, wire};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    anchors::Anchors,
    lane,
    record::{LaneInfo, NodeCertificate, Record},
    signing::{self, Kind},
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Version of a leave, the largest that a record may have: nothing comes after it, so that who has left
/// cannot come back under a certificate whose name and prefixes others may hold by then. So high that no
/// honest node counts up to it, so low that counting on from it never overflows.
pub const LEAVE_VERSION: u64 = u64::MAX / 2;

/// Whether the signatures of a record are still to be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signatures {
    Unknown,
    /// They were, with the same anchors: [`super::stamp`].
    Verified,
}

/// Verifies all of a record that does not depend on time or on what is held.
pub fn authenticate(
    signed: &wire::SignedRecord,
    anchors: &Anchors,
) -> Result<Arc<Record>, Refusal> {
    judge(signed, anchors, Signatures::Unknown)
}

/// [`authenticate`] for a record with a stamp that holds.
pub(crate) fn read_stamped(
    signed: &wire::SignedRecord,
    anchors: &Anchors,
) -> Result<Arc<Record>, Refusal> {
    judge(signed, anchors, Signatures::Verified)
}

fn judge(
    signed: &wire::SignedRecord,
    anchors: &Anchors,
    signatures: Signatures,
) -> Result<Arc<Record>, Refusal> {
    check_size(signed)?;
    let payload = wire::NodeRecord::decode(&signed.payload[..])
        .map_err(|_| malformed("its payload is not decodable"))?;
    let key = NodeKey::try_from(&payload.identity_key[..])
        .map_err(|error| malformed(&error.to_string()))?;
    let certificate = match signatures {
        Signatures::Unknown => {
            let (mesh, payload) = (anchors.mesh_id(), &signed.payload);
            signing::verify(&key.0, Kind::Record, mesh, payload, &signed.signature)
                .map_err(|refusal| foreign(signed, anchors).unwrap_or(refusal))?;
            anchors.check_chain(&signed.certificate, None)?
        }
        Signatures::Verified => Arc::new(anchors.read_leaf(&signed.certificate)?.0),
    };
    if payload.certificate_hash[..] != certificate.hash {
        return Err(Refusal::new(
            Code::CertificateMismatch,
            "record: it goes with another certificate than the one it carries",
        ));
    }
    if key != certificate.key {
        return Err(Refusal::new(
            Code::IdentityMismatch,
            format!("record: of {key}, but its certificate is for {}", certificate.key),
        ));
    }
    read(signed, &payload, certificate, anchors.mesh_id(), signatures)
        .map(Arc::new)
        .map_err(Refusal::by_owner)
}

/// [`authenticate`] for bytes of the store or of a file: an encoded `SignedRecord`.
pub fn authenticate_bytes(bytes: &[u8], anchors: &Anchors) -> Result<Arc<Record>, Refusal> {
    if bytes.len() > limits::RECORD_PAYLOAD + limits::CERTIFICATE + 256 {
        return Err(Refusal::new(Code::TooLarge, format!("record: {} bytes", bytes.len())));
    }
    let signed = wire::SignedRecord::decode(bytes).map_err(|_| malformed("not decodable"))?;
    authenticate(&signed, anchors)
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("record: {why}"))
}

fn too_many(what: &str, count: usize, limit: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("record: {count} {what}, at most {limit} are taken"))
}

fn check_size(signed: &wire::SignedRecord) -> Result<(), Refusal> {
    for (what, length, limit) in [
        ("payload", signed.payload.len(), limits::RECORD_PAYLOAD),
        ("certificate", signed.certificate.len(), limits::CERTIFICATE),
        ("signature", signed.signature.len(), 64),
    ] {
        if length > limit {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("record: {what} of {length} bytes, at most {limit} are taken"),
            ));
        }
    }
    Ok(())
}

/// A record that was honestly made in another mesh fails at its signature. Its certificate says why:
/// two meshes have got into touch, which somebody should know.
fn foreign(signed: &wire::SignedRecord, anchors: &Anchors) -> Option<Refusal> {
    let certificate = NodeCertificate::parse(&signed.certificate).ok()?;
    (certificate.mesh_id != *anchors.mesh_id()).then(|| {
        Refusal::new(
            Code::OtherMesh,
            format!("record: of mesh {} ({})", certificate.mesh, certificate.mesh_id),
        )
    })
}

fn read(
    signed: &wire::SignedRecord,
    payload: &wire::NodeRecord,
    certificate: Arc<NodeCertificate>,
    mesh: &MeshId,
    signatures: Signatures,
) -> Result<Record, Refusal> {
    let key = certificate.key;
    let lanes = lanes(payload, mesh, &key, signatures)?;
    let mesh_addresses = mesh_addresses(payload, &certificate)?;
    let prefixes = prefixes(payload, &certificate, mesh)?;
    let name: NodeName = payload.name.parse().map_err(|error| malformed(&format!("{error}")))?;
    if name != certificate.name {
        return Err(Refusal::new(
            Code::NameMismatch,
            format!("record: of {name}, but its certificate is for {}", certificate.name),
        ));
    }
    if payload.version == 0 || payload.version > LEAVE_VERSION {
        return Err(malformed("its version is out of range"));
    }
    if payload.left != (payload.version == LEAVE_VERSION) {
        return Err(malformed("the last version is that of a leave, and of nothing else"));
    }
    if payload.issued_at < 0 {
        return Err(malformed("dated before 1970"));
    }
    let zone: Zone = payload.zone.parse().map_err(|error| malformed(&format!("{error}")))?;
    let mut payload_hash = [0; 8];
    payload_hash.copy_from_slice(&Sha256::digest(&signed.payload)[..8]);
    Ok(Record {
        signed: alone(signed),
        payload_hash,
        key,
        name,
        version: payload.version,
        boot_id: BootId::try_from(&payload.boot_id[..])
            .map_err(|error| malformed(&error.to_string()))?,
        generation: payload.generation,
        issued_at: UnixTime(payload.issued_at),
        lanes,
        mesh_addresses,
        prefixes,
        node_claims: node_claims(payload, &certificate, mesh)?,
        endpoints: endpoints(payload, mesh)?,
        zone,
        capabilities: capabilities(payload)?,
        via: via(payload)?,
        left: payload.left,
        node_addresses: node_addresses(payload)?,
        software_version: software_version(payload)?,
        certificate,
    })
}

/// What was decoded from a frame holds on to all of it, be it a hundred times as large.
fn alone(signed: &wire::SignedRecord) -> wire::SignedRecord {
    let copy = bytes::Bytes::copy_from_slice;
    wire::SignedRecord {
        payload: copy(&signed.payload),
        signature: copy(&signed.signature),
        certificate: copy(&signed.certificate),
    }
}

fn lanes(
    payload: &wire::NodeRecord,
    mesh: &MeshId,
    key: &NodeKey,
    signatures: Signatures,
) -> Result<Vec<LaneInfo>, Refusal> {
    if payload.lanes.len() > limits::RECORD_LANES {
        return Err(too_many("lanes", payload.lanes.len(), limits::RECORD_LANES));
    }
    let lanes = payload
        .lanes
        .iter()
        .map(|lane| match signatures {
            Signatures::Unknown => lane::check(lane, mesh, key),
            Signatures::Verified => lane::read(lane),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if let [first, second] = &lanes[..]
        && (first.index >= second.index || first.public_key == second.public_key)
    {
        return Err(malformed("two lanes with one index or one key, or out of order"));
    }
    Ok(lanes)
}

/// The ULA must be the one that follows from the key, the IPv4 address the one in the certificate.
fn mesh_addresses(
    payload: &wire::NodeRecord,
    certificate: &NodeCertificate,
) -> Result<Vec<IpNet>, Refusal> {
    let granted = certificate.mesh_addresses();
    if payload.mesh_addresses.len() > granted.len() {
        return Err(Refusal::new(
            Code::AddressNotGranted,
            format!("record: {} mesh addresses", payload.mesh_addresses.len()),
        ));
    }
    let addresses = read_prefixes(&payload.mesh_addresses, "mesh addresses")?;
    match addresses.iter().find(|address| !granted.contains(address)) {
        Some(address) => Err(Refusal::new(
            Code::AddressNotGranted,
            format!("record: mesh address {address} is neither derived from its key nor granted"),
        )),
        None => Ok(addresses),
    }
}

fn prefixes(
    payload: &wire::NodeRecord,
    certificate: &NodeCertificate,
    mesh: &MeshId,
) -> Result<Vec<IpNet>, Refusal> {
    if payload.prefixes.len() > limits::RECORD_PREFIXES {
        return Err(too_many("prefixes", payload.prefixes.len(), limits::RECORD_PREFIXES));
    }
    let prefixes = read_prefixes(&payload.prefixes, "prefixes")?;
    for prefix in &prefixes {
        let not_granted =
            |why: &str| Refusal::new(Code::PrefixNotGranted, format!("record: {prefix} {why}"));
        if is_never_granted(prefix, mesh) {
            return Err(not_granted("can be nobody's"));
        }
        if !certificate.grants.iter().any(|grant| grant.covers(prefix)) {
            return Err(not_granted("is not covered by a grant of its certificate"));
        }
    }
    Ok(prefixes)
}

/// Each needs an exact grant: of a pool every member may claim every address, and so could take another's.
fn node_claims(
    payload: &wire::NodeRecord,
    certificate: &NodeCertificate,
    mesh: &MeshId,
) -> Result<Vec<IpNet>, Refusal> {
    let count = payload.node_claims.len();
    if count > limits::RECORD_NODE_ADDRESSES {
        return Err(too_many("node claims", count, limits::RECORD_NODE_ADDRESSES));
    }
    let addresses = payload.node_claims.iter().map(|bytes| address::address_from_wire(bytes));
    let claims = addresses
        .map(|address| address.map(address::host_prefix))
        .collect::<Result<Vec<_>, _>>()?;
    if !claims.is_sorted_by(|a, b| a < b) {
        return Err(malformed("its node claims are not sorted, or one is there twice"));
    }
    for claim in &claims {
        let not_granted = |why: &str| {
            Refusal::new(Code::PrefixNotGranted, format!("record: node address {claim} {why}"))
        };
        if is_never_granted(claim, mesh) {
            return Err(not_granted("can be nobody's"));
        }
        if !certificate.grants_exactly(claim) {
            return Err(not_granted("is not granted exactly by its certificate"));
        }
    }
    Ok(claims)
}

/// True for what no certificate may make claimable: forbidden prefixes, and the mesh's own ULAs, which
/// follow from keys and from nothing else.
pub(super) fn is_never_granted(prefix: &IpNet, mesh: &MeshId) -> bool {
    address::is_forbidden_prefix(prefix)
        || address::overlaps(prefix, &IpNet::V6(address::ula_prefix(mesh)))
}

fn read_prefixes(prefixes: &[wire::IpPrefix], what: &str) -> Result<Vec<IpNet>, Refusal> {
    let prefixes = prefixes.iter().map(address::prefix_from_wire).collect::<Result<Vec<_>, _>>()?;
    if !prefixes.is_sorted_by(|a, b| a < b) {
        return Err(malformed(&format!("its {what} are not sorted, or one is there twice")));
    }
    Ok(prefixes)
}

fn endpoints(payload: &wire::NodeRecord, mesh: &MeshId) -> Result<Vec<SocketAddr>, Refusal> {
    if payload.endpoints.len() > limits::RECORD_ENDPOINTS {
        return Err(too_many("endpoints", payload.endpoints.len(), limits::RECORD_ENDPOINTS));
    }
    let mut endpoints = Vec::with_capacity(payload.endpoints.len());
    for endpoint in &payload.endpoints {
        let ip = address::address_from_wire(&endpoint.address)?;
        let refused =
            |why: &str| Refusal::new(Code::EndpointRefused, format!("record: endpoint {ip} {why}"));
        let port = u16::try_from(endpoint.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| refused("has no port between 1 and 65535"))?;
        if !address::is_routable_unicast(&ip) {
            return Err(refused("is not routable unicast"));
        }
        if address::ula_prefix(mesh).contains(&to_v6(ip)) {
            return Err(refused("is inside the mesh"));
        }
        let endpoint = SocketAddr::new(ip, port);
        if endpoints.contains(&endpoint) {
            return Err(malformed("an endpoint is there twice"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn to_v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn via(payload: &wire::NodeRecord) -> Result<Option<NodeKey>, Refusal> {
    if payload.via.is_empty() {
        return Ok(None);
    }
    let key = NodeKey::try_from(&*payload.via);
    key.map(Some).map_err(|_| malformed("a gateway that is no identity key"))
}

fn capabilities(payload: &wire::NodeRecord) -> Result<Vec<String>, Refusal> {
    if payload.capabilities.len() > limits::RECORD_CAPABILITIES {
        let count = payload.capabilities.len();
        return Err(too_many("capabilities", count, limits::RECORD_CAPABILITIES));
    }
    let valid = |name: &String| {
        (1..=limits::CAPABILITY).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    };
    if !payload.capabilities.iter().all(valid) {
        return Err(malformed("a capability that is no name"));
    }
    Ok(payload.capabilities.clone())
}

fn node_addresses(payload: &wire::NodeRecord) -> Result<Vec<IpAddr>, Refusal> {
    let count = payload.node_addresses.len();
    if count > limits::RECORD_NODE_ADDRESSES {
        return Err(too_many("node addresses", count, limits::RECORD_NODE_ADDRESSES));
    }
    payload.node_addresses.iter().map(|bytes| address::address_from_wire(bytes)).collect()
}

fn software_version(payload: &wire::NodeRecord) -> Result<String, Refusal> {
    let text = &payload.software_version;
    if text.len() > limits::SOFTWARE_VERSION || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(malformed("its software version is too long or not plain text"));
    }
    Ok(text.clone())
}
