//! Records and meshes for the unit tests of this crate.

use std::{sync::Arc, time::Instant};

use meshd_proto::{BootId, MeshId, NodeKey, wire};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    now::{Now, UnixTime},
    trust::{NodeCertificate, Record},
};

/// The moment at which a test begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin(Now);

impl Default for Origin {
    #[allow(clippy::disallowed_methods)] // There is no other way to make an instant.
    fn default() -> Self {
        Self(Now { mono: Instant::now(), unix: UnixTime(1_800_000_000) })
    }
}

impl Origin {
    pub(crate) fn now(self) -> Now {
        self.0
    }
}

pub(crate) fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

/// The `i`th member's key: not a real one, but distinct and spread over the buckets.
pub(crate) fn key(i: u64) -> NodeKey {
    use sha2::Digest as _;
    NodeKey(sha2::Sha256::digest(i.to_be_bytes()).into())
}

/// A record as if it had been verified.
pub(crate) fn record(i: u64, name: &str, version: u64) -> Arc<Record> {
    let key = key(i);
    let name: meshd_proto::NodeName = name.parse().unwrap();
    let certificate = NodeCertificate {
        der: bytes::Bytes::new(),
        hash: [0; 32],
        key,
        name: name.clone(),
        mesh: "test".parse().unwrap(),
        mesh_id: MeshId([1; 16]),
        enrolment_id: [0; 16],
        groups: Vec::new(),
        grants: Vec::new(),
        mesh_ipv4: None,
        limits: Vec::new(),
        subject: None,
        not_before: UnixTime(0),
        not_after: UnixTime(i64::MAX),
    };
    let mut payload_hash = [0; 8];
    payload_hash.copy_from_slice(&version.to_be_bytes());
    Arc::new(Record {
        signed: wire::SignedRecord::default(),
        payload_hash,
        certificate: Arc::new(certificate),
        key,
        name,
        version,
        boot_id: BootId([1; 16]),
        generation: 1,
        issued_at: Origin::default().now().unix,
        lanes: Vec::new(),
        mesh_addresses: Vec::new(),
        prefixes: Vec::new(),
        endpoints: Vec::new(),
        zone: "".parse().unwrap(),
        capabilities: Vec::new(),
        left: false,
        via: None,
        node_claims: Vec::new(),
        node_addresses: Vec::new(),
        software_version: String::new(),
    })
}
