//! A mesh for tests of the core: CA, anchors and nodes from a seed.

use std::{net::Ipv4Addr, sync::Arc};

use meshd_proto::{BootId, MeshId, MeshName, NodeName, wire};

use super::{
    Anchors, Grant, IdentityKey, Intermediate, LaneKey, NodeIdentity, NodeTerms, RecordDraft,
    RootCa,
};
use crate::now::UnixTime;

/// When everything of a fixture happens: 2027-01-15.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);

/// A mesh with its CA.
pub(crate) struct TestMesh {
    pub(crate) mesh: MeshName,
    pub(crate) mesh_id: MeshId,
    pub(crate) root: RootCa,
    pub(crate) intermediate: Intermediate,
    pub(crate) anchors: Anchors,
}

impl TestMesh {
    /// The mesh of a seed: same name for all, other id and keys for each.
    pub(crate) fn new(seed: u8) -> Self {
        Self::with_id(seed, MeshId([seed; 16]))
    }

    /// Keys of `seed` under a given id.
    pub(crate) fn with_id(seed: u8, mesh_id: MeshId) -> Self {
        let mesh: MeshName = "prod".parse().unwrap();
        let root = RootCa::create(&[seed; 32], &mesh, &mesh_id, NOW).unwrap();
        let intermediate = root.issue_intermediate(&[seed ^ 0x80; 32], NOW).unwrap();
        let mut anchors = Anchors::from_root(root.der()).unwrap();
        let bundle = root.sign_bundle(&mesh_id, 1, &[&intermediate]);
        assert_eq!(anchors.install_bundle(&bundle), Ok(true));
        Self { mesh, mesh_id, root, intermediate, anchors }
    }

    /// The identity key of a node: it follows from the name.
    pub(crate) fn key(name: &str) -> IdentityKey {
        let mut seed = [0x55; 32];
        for (byte, from) in seed.iter_mut().zip(name.bytes()) {
            *byte = from;
        }
        IdentityKey::from_seed(&seed)
    }

    /// What a node's certificate says. Grants are `PREFIX` (exact) or `PREFIX@LENGTH` (pool).
    pub(crate) fn terms(&self, name: &str, grants: &[&str]) -> NodeTerms {
        let key = Self::key(name).public();
        NodeTerms {
            mesh: self.mesh.clone(),
            mesh_id: self.mesh_id,
            name: name.parse::<NodeName>().unwrap(),
            key,
            enrolment_id: [key.0[0]; 16],
            groups: Vec::new(),
            grants: grants.iter().map(|text| grant(text)).collect(),
            mesh_ipv4: Some(Ipv4Addr::new(100, 112, key.0[0], key.0[1])),
            limits: Vec::new(),
            subject: None,
            not_before: NOW.plus(-600),
            not_after: NOW.plus(365 * 24 * 3600),
        }
    }

    /// A node with its certificate.
    pub(crate) fn node(&self, name: &str, grants: &[&str]) -> NodeIdentity {
        self.node_of(name, &self.terms(name, grants))
    }

    /// A node with a certificate of given terms.
    pub(crate) fn node_of(&self, name: &str, terms: &NodeTerms) -> NodeIdentity {
        let certificate = self.intermediate.issue_node(terms).unwrap();
        NodeIdentity::new(Self::key(name), Arc::new(certificate)).unwrap()
    }

    /// A record of a node, signed now.
    pub(crate) fn sign(
        &self,
        node: &NodeIdentity,
        draft: &RecordDraft,
        version: u64,
    ) -> wire::SignedRecord {
        node.sign_record(draft, version, BootId([7; 16]), 1, NOW)
    }

    /// A full draft: a proved lane and one of everything.
    pub(crate) fn draft(&self, node: &NodeIdentity, prefixes: &[&str]) -> RecordDraft {
        let lane = LaneKey::from_seed(&node.public().0);
        RecordDraft {
            lanes: vec![lane.to_wire(&self.mesh_id, &node.public(), 51820, 0)],
            mesh_addresses: node.certificate.mesh_addresses(),
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
            workloads: Vec::new(),
            endpoints: vec!["192.0.2.7:51800".parse().unwrap()],
            zone: "zone-1".parse().unwrap(),
            capabilities: vec!["nodes".into()],
            left: false,
            via: None,
            node_claims: Vec::new(),
            node_addresses: vec!["192.0.2.7".parse().unwrap()],
            software_version: "0.1.0".into(),
        }
    }
}

fn grant(text: &str) -> Grant {
    match text.split_once('@') {
        Some((prefix, length)) => {
            Grant { prefix: prefix.parse().unwrap(), claim_len: Some(length.parse().unwrap()) }
        }
        None => Grant { prefix: text.parse().unwrap(), claim_len: None },
    }
}
