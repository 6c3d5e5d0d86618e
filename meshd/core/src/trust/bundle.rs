//! The bundle: which intermediates may issue node certificates, by the root's word.
//!
//! Signed by the mesh's newest root, gossiped to everybody; the higher version wins. It also carries how
//! roots followed one another (`succession`), so that who was away finds the way from the root it knows.

use std::{collections::BTreeSet, sync::Arc};

use meshd_proto::{MeshId, NodeKey, NodeName, wire};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    anchors::Anchors,
    ca::{Intermediate, RootCa},
    certificate::CaCertificate,
    signership::{self, SignerEntry},
    signing::{self, Kind},
    succession::Succession,
};
use crate::{
    limits,
    refusal::{Code, Refusal},
};

/// A bundle that was verified.
#[derive(Debug, Clone, Default)]
pub(super) struct Bundle {
    pub(super) signed: wire::SignedBundle,
    /// 0 until one was installed.
    pub(super) version: u64,
    pub(super) intermediates: Vec<IssuedBy>,
    /// Who holds them.
    pub(super) infos: Vec<([u8; 32], NodeKey, NodeName)>,
    /// Those that sign nothing any more.
    pub(super) retiring: BTreeSet<[u8; 32]>,
    pub(super) succession: Succession,
}

/// An intermediate, and the key of the root that certified it.
#[derive(Debug, Clone)]
pub(super) struct IssuedBy {
    pub(super) certificate: CaCertificate,
    pub(super) root: [u8; 32],
}

impl Bundle {
    pub(super) fn holds(&self, key: &[u8; 32]) -> bool {
        !self.retiring.contains(key)
            && self.intermediates.iter().any(|one| one.certificate.key == *key)
    }
}

impl Anchors {
    /// Takes a bundle over when it is the root's and newer than what is held; tells whether it was.
    ///
    /// A root never signs two bundles of one version. If it did all the same, the smaller hash would
    /// win everywhere, rather than whichever came first.
    pub fn install_bundle(&mut self, signed: &wire::SignedBundle) -> Result<bool, Refusal> {
        if signed.payload.len() > limits::FRAME {
            return Err(Refusal::new(Code::TooLarge, "bundle: too large"));
        }
        if *signed == *self.signed_bundle() {
            return Ok(false);
        }
        let malformed = |why: &str| Refusal::new(Code::Malformed, format!("bundle: {why}"));
        let bundle = wire::IntermediateBundle::decode(&signed.payload[..])
            .map_err(|_| malformed("not decodable"))?;
        let succession = Succession::read(&bundle, self.root())?;
        let root = succession.newest().unwrap_or_else(|| self.root()).clone();
        signing::verify(
            &root.key,
            Kind::Bundle,
            self.mesh_id(),
            &signed.payload,
            &signed.signature,
        )?;
        if bundle.mesh_id[..] != self.mesh_id().0 {
            return Err(Refusal::new(Code::OtherMesh, "bundle: of another mesh"));
        }
        let held = (self.bundle_version(), reverse_hash(&self.signed_bundle().payload));
        if (bundle.version, reverse_hash(&signed.payload)) <= held {
            return Ok(false);
        }
        if bundle.certificates.len() > limits::BUNDLE_INTERMEDIATES {
            return Err(Refusal::new(Code::TooLarge, "bundle: too many intermediates"));
        }
        let mut intermediates = Vec::with_capacity(bundle.certificates.len());
        for der in &bundle.certificates {
            let certificate = CaCertificate::parse(der)?;
            if certificate.path_length != Some(0) {
                return Err(malformed("an intermediate whose path length is not 0"));
            }
            let root = issuer(&certificate, &root, &succession)?;
            intermediates.push(IssuedBy { certificate, root });
        }
        let verified = Bundle {
            signed: signed.clone(),
            version: bundle.version,
            intermediates,
            infos: signership::read_infos(&bundle.signers)?,
            retiring: signership::read_retiring(&bundle)?,
            succession,
        };
        self.take_over(root, Arc::new(verified));
        Ok(true)
    }
}

/// The key of the root that certified an intermediate: the newest, or one before it.
fn issuer(
    intermediate: &CaCertificate,
    newest: &CaCertificate,
    succession: &Succession,
) -> Result<[u8; 32], Refusal> {
    let by_newest = match intermediate.verify_issued_by(&newest.key) {
        Ok(()) => return Ok(newest.key),
        Err(refusal) => refusal,
    };
    let mut before = succession.keys().filter(|key| intermediate.verify_issued_by(key).is_ok());
    before.next().copied().ok_or(by_newest)
}

impl RootCa {
    /// Signs a bundle of intermediates of which nothing else is said.
    #[must_use]
    pub fn sign_bundle(
        &self,
        mesh_id: &MeshId,
        version: u64,
        intermediates: &[&Intermediate],
    ) -> wire::SignedBundle {
        self.seal(
            mesh_id,
            &wire::IntermediateBundle {
                mesh_id: mesh_id.0.to_vec().into(),
                version,
                certificates: intermediates.iter().map(|one| one.der().to_vec().into()).collect(),
                ..wire::IntermediateBundle::default()
            },
        )
    }

    /// Signs who may issue node certificates from now on, and what roots there were before this one.
    #[must_use]
    pub fn sign_signers(
        &self,
        mesh_id: &MeshId,
        version: u64,
        signers: &[SignerEntry],
        succession: &Succession,
    ) -> wire::SignedBundle {
        let retiring = signers.iter().filter(|signer| signer.retiring);
        self.seal(
            mesh_id,
            &wire::IntermediateBundle {
                mesh_id: mesh_id.0.to_vec().into(),
                version,
                certificates: signers.iter().map(|signer| signer.certificate.clone()).collect(),
                signers: signers
                    .iter()
                    .map(|signer| signership::info(&signer.key, &signer.node, &signer.name))
                    .collect(),
                retiring: retiring.map(|signer| signer.key.to_vec().into()).collect(),
                roots: succession.roots_to_wire(),
                former: succession.former_to_wire(),
            },
        )
    }

    pub(super) fn seal(
        &self,
        mesh_id: &MeshId,
        bundle: &wire::IntermediateBundle,
    ) -> wire::SignedBundle {
        let payload = bundle.encode_to_vec();
        let signature = signing::sign(self.key(), Kind::Bundle, mesh_id, &payload);
        wire::SignedBundle { payload: payload.into(), signature: signature.to_vec().into() }
    }
}

fn reverse_hash(payload: &[u8]) -> std::cmp::Reverse<[u8; 32]> {
    std::cmp::Reverse(Sha256::digest(payload).into())
}
