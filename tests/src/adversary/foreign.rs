//! CAs that the mesh does not know, and what they sign.

use std::sync::Arc;

use anyhow::Result;
use meshd_core::{
    now::UnixTime,
    trust::{Grant, Intermediate, NodeIdentity, NodeTerms, RevocationTerms, RootCa},
};
use meshd_proto::{MeshId, wire};
use rustls_pki_types::CertificateDer;

use super::{member::Member, scene::unix_now};

/// A root and an intermediate of the adversary's own.
pub(super) struct Foreign {
    root: RootCa,
    intermediate: Intermediate,
    mesh_id: MeshId,
}

impl Foreign {
    /// With the name and the id of the mesh under attack.
    pub(super) fn of_same_mesh(member: &Member) -> Result<Self> {
        Self::new(member, *member.anchors.mesh_id())
    }

    /// With its name and another id.
    pub(super) fn of_other_mesh(member: &Member) -> Result<Self> {
        Self::new(member, MeshId(rand::random()))
    }

    fn new(member: &Member, mesh_id: MeshId) -> Result<Self> {
        let now = unix_now();
        let root = RootCa::create(&rand::random(), member.anchors.mesh(), &mesh_id, now)?;
        let intermediate = root.issue_intermediate(&rand::random(), now)?;
        Ok(Self { root, intermediate, mesh_id })
    }

    /// The member's own key, certified by this CA, and with every prefix that might be wanted.
    pub(super) fn identity(&self, member: &Member) -> Result<NodeIdentity> {
        let own = &member.identity.certificate;
        let mut grants = own.grants.clone();
        for pool in ["10.0.0.0/8", "fd00::/8"] {
            grants.push(Grant { prefix: pool.parse()?, claim_len: Some(24) });
        }
        let certificate = self.intermediate.issue_node(&NodeTerms {
            mesh: own.mesh.clone(),
            mesh_id: self.mesh_id,
            name: own.name.clone(),
            key: own.key,
            enrolment_id: own.enrolment_id,
            groups: own.groups.clone(),
            grants,
            mesh_ipv4: own.mesh_ipv4,
            limits: Vec::new(),
            subject: None,
            not_before: unix_now().plus(-600),
            not_after: unix_now().plus(24 * 3600),
        })?;
        Ok(NodeIdentity::new(member.identity.key.clone(), Arc::new(certificate))?)
    }

    /// The intermediate's certificate.
    pub(super) fn intermediate(&self) -> CertificateDer<'static> {
        self.intermediate.der().to_vec().into()
    }

    /// A bundle with this intermediate in it, newer than any.
    pub(super) fn bundle(&self, newer_than: u64) -> wire::SignedBundle {
        self.root.sign_bundle(&self.mesh_id, newer_than + 1, &[&self.intermediate])
    }

    /// The end of a membership.
    pub(super) fn revoke(&self, terms: &RevocationTerms) -> wire::SignedRevocation {
        self.intermediate.revoke(&self.mesh_id, terms)
    }

    /// The mesh that it signs for.
    pub(super) fn mesh_id(&self) -> &MeshId {
        &self.mesh_id
    }
}

/// A month, in seconds.
pub(super) const MONTH: i64 = 30 * 24 * 3600;

/// A month ago.
pub(super) fn a_month_ago() -> UnixTime {
    unix_now().plus(-MONTH)
}
