//! Records of the lying member: right, but for some changes; signed as it should be, unless that is changed.

use arbitrary::Arbitrary;
use bytes::Bytes;
use meshd_core::trust::signing::Kind;
use meshd_proto::wire;
use prost::Message;

use crate::world::{LIAR, NOW, VERSION, World};

/// A prefix, mostly well formed.
#[derive(Debug, Clone, Arbitrary)]
pub enum Prefix {
    V4([u8; 4], u8),
    V6([u8; 16], u8),
    /// A piece of the pool that is granted.
    OfPool(u8),
    /// What a member was granted exactly.
    Granted(u8),
    Raw(Vec<u8>, u32),
}

impl Prefix {
    pub fn to_wire(&self) -> wire::IpPrefix {
        let (address, length) = match self {
            Self::V4(address, length) => (masked(address, *length), u32::from(*length)),
            Self::V6(address, length) => (masked(address, *length), u32::from(*length)),
            Self::OfPool(third) => (vec![10, 200, *third, 0], 24),
            Self::Granted(number) => (vec![10, 1, *number % 6, 0], 24),
            Self::Raw(address, length) => (address.clone(), *length),
        };
        wire::IpPrefix { address: address.into(), length }
    }
}

fn masked(address: &[u8], length: u8) -> Vec<u8> {
    let mut address = address.to_vec();
    for (at, byte) in address.iter_mut().enumerate() {
        let kept = usize::from(length).saturating_sub(at * 8).min(8);
        *byte &= u8::try_from(0xff00_u16 >> kept & 0xff).unwrap_or(0);
    }
    address
}

/// One change of a record.
#[derive(Debug, Clone, Arbitrary)]
pub enum Change {
    Identity(u8),
    Name(String),
    NameOf(u8),
    CertificateHash([u8; 32]),
    CertificateOf(u8),
    Version(u64),
    VersionUp(u8),
    BootId(Vec<u8>),
    Generation(u64),
    IssuedAt(i64),
    IssuedLater(i32),
    DropLanes,
    Lane {
        port: u32,
        index: u32,
    },
    LaneOf(u8),
    RawLane {
        key: Vec<u8>,
        proof: Vec<u8>,
        port: u32,
        index: u32,
    },
    MeshAddresses(Vec<Prefix>),
    MeshAddressesOf(u8),
    Prefixes(Vec<Prefix>),
    Prefix(Prefix),
    SortPrefixes,
    Endpoints(Vec<(Vec<u8>, u32)>),
    Endpoint([u8; 4], u16),
    Endpoint6([u8; 16], u16),
    Zone(String),
    Capabilities(Vec<String>),
    Left(bool),
    NodeAddresses(Vec<Vec<u8>>),
    Software(String),
    /// In the encoded payload, before it is signed.
    Byte(u16, u8),
    Append(Vec<u8>),
    Cut(u16),
    /// In the signature, behind it, or for another use.
    Signature(u8, u8),
    WrongKind,
}

/// A record as `changes` make it.
pub fn signed(world: &World, changes: &[Change]) -> wire::SignedRecord {
    let liar = world.liar();
    let mut record = wire::NodeRecord::decode(liar.signed.payload.clone()).expect("its own record");
    record.version = VERSION + 1;
    record.issued_at = NOW.0;
    let mut certificate = liar.signed.certificate.clone();
    for change in changes {
        apply(world, &mut record, change);
        if let Change::CertificateOf(number) = change {
            certificate = world.any(*number).signed.certificate.clone();
        }
    }
    let mut payload = record.encode_to_vec();
    let mut kind = Kind::Record;
    for change in changes {
        match change {
            Change::Byte(at, with) => {
                let at = usize::from(*at) % payload.len().max(1);
                if let Some(byte) = payload.get_mut(at) {
                    *byte ^= with;
                }
            }
            Change::Append(more) => payload.extend_from_slice(more),
            Change::Cut(length) => payload.truncate(usize::from(*length)),
            Change::WrongKind => kind = Kind::WgLane,
            _ => {}
        }
    }
    let mut signature = liar.identity.key.sign(kind, world.mesh_id(), &payload).to_vec();
    for change in changes {
        if let Change::Signature(at, with) = change {
            signature[usize::from(*at) % 64] ^= with;
        }
    }
    wire::SignedRecord { payload: payload.into(), signature: signature.into(), certificate }
}

fn apply(world: &World, record: &mut wire::NodeRecord, change: &Change) {
    let of = |number: u8| {
        wire::NodeRecord::decode(world.any(number).signed.payload.clone()).expect("a record")
    };
    let prefixes = |list: &[Prefix]| list.iter().map(Prefix::to_wire).collect();
    let endpoint = |address: &[u8], port: u32| wire::Endpoint {
        address: Bytes::copy_from_slice(address),
        port,
    };
    match change {
        Change::Identity(number) => record.identity_key = of(*number).identity_key,
        Change::Name(name) => record.name.clone_from(name),
        Change::NameOf(number) => record.name = of(*number).name,
        Change::CertificateHash(hash) => record.certificate_hash = hash.to_vec().into(),
        Change::Version(version) => record.version = *version,
        Change::VersionUp(by) => record.version = VERSION + u64::from(*by),
        Change::BootId(id) => record.boot_id = id.clone().into(),
        Change::Generation(generation) => record.generation = *generation,
        Change::IssuedAt(at) => record.issued_at = *at,
        Change::IssuedLater(by) => record.issued_at = NOW.plus(i64::from(*by)).0,
        Change::DropLanes => record.lanes.clear(),
        Change::Lane { port, index } => {
            let liar = &world.members[LIAR];
            let mut lane = liar.lane.to_wire(world.mesh_id(), &liar.key(), 0, 0);
            (lane.listen_port, lane.index) = (*port, *index);
            record.lanes.push(lane);
        }
        Change::LaneOf(number) => record.lanes.extend(of(*number).lanes),
        Change::RawLane { key, proof, port, index } => record.lanes.push(wire::Lane {
            signing_key: key.clone().into(),
            proof: proof.clone().into(),
            listen_port: *port,
            index: *index,
        }),
        Change::MeshAddresses(list) => record.mesh_addresses = prefixes(list),
        Change::MeshAddressesOf(number) => record.mesh_addresses = of(*number).mesh_addresses,
        Change::Prefixes(list) => record.prefixes = prefixes(list),
        Change::Prefix(prefix) => record.prefixes.push(prefix.to_wire()),
        Change::SortPrefixes => {
            // As ipnet sorts: by family, address, length.
            record.prefixes.sort_by(|a, b| {
                let key = |p: &wire::IpPrefix| (p.address.len(), p.address.clone(), p.length);
                key(a).cmp(&key(b))
            });
            record.prefixes.dedup();
        }
        Change::Endpoints(list) => {
            record.endpoints =
                list.iter().map(|(address, port)| endpoint(address, *port)).collect();
        }
        Change::Endpoint(address, port) => record.endpoints.push(endpoint(address, (*port).into())),
        Change::Endpoint6(address, port) => {
            record.endpoints.push(endpoint(address, (*port).into()))
        }
        Change::Zone(zone) => record.zone.clone_from(zone),
        Change::Capabilities(list) => record.capabilities.clone_from(list),
        Change::Left(left) => record.left = *left,
        Change::NodeAddresses(list) => {
            record.node_addresses = list.iter().map(|bytes| bytes.clone().into()).collect();
            record.node_claims.clone_from(&record.node_addresses);
        }
        Change::Software(text) => record.software_version.clone_from(text),
        Change::CertificateOf(_)
        | Change::Byte(..)
        | Change::Append(_)
        | Change::Cut(_)
        | Change::Signature(..)
        | Change::WrongKind => {}
    }
}

/// Panics when a record says what the lying member may not say. Does not ask the code that let it through.
pub fn assert_lawful(world: &World, record: &meshd_core::trust::Record) {
    use meshd_core::{address, limits};
    let owner = world.members.iter().find(|member| member.key() == record.key);
    let certificate = &record.certificate;
    assert_eq!(record.key, certificate.key);
    assert_eq!(record.name, certificate.name);
    if let Some(owner) = owner {
        assert_eq!(record.name, owner.identity.certificate.name, "another's name");
        for lane in &record.lanes {
            let others = world.members.iter().filter(|member| member.key() != record.key);
            for other in others {
                assert_ne!(lane.public_key, other.lane.public_key(), "another's WireGuard key");
            }
        }
    }
    assert!(record.version > 0 && record.version <= u64::MAX / 2);
    assert_eq!(record.left, record.version == u64::MAX / 2);
    assert!(record.prefixes.len() <= limits::RECORD_PREFIXES);
    assert!(record.prefixes.windows(2).all(|pair| pair[0] < pair[1]));
    let ulas = ipnet::IpNet::V6(address::ula_prefix(world.mesh_id()));
    for prefix in &record.prefixes {
        assert_eq!(*prefix, prefix.trunc());
        assert!(!address::overlaps(prefix, &ulas), "{prefix} is of the mesh's own");
        assert!(prefix.prefix_len() > 0, "{prefix} is everything");
        let granted = certificate.grants.iter().any(|grant| match grant.claim_len {
            None => grant.prefix == *prefix,
            Some(length) => grant.prefix.contains(prefix) && prefix.prefix_len() == length,
        });
        assert!(granted, "{prefix} is not granted");
    }
    for address in &record.mesh_addresses {
        assert!(certificate.mesh_addresses().contains(address), "{address} is not its own");
    }
    assert!(record.endpoints.len() <= limits::RECORD_ENDPOINTS);
    for endpoint in &record.endpoints {
        let ip = endpoint.ip();
        assert!(
            endpoint.port() != 0 && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
        );
    }
    assert!(record.lanes.len() <= limits::RECORD_LANES);
    assert!(record.software_version.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    assert!(record.issued_at.0 >= 0);
}
