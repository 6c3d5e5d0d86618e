//! Roots that follow one another, without a mesh noticing.
//!
//! The old root certifies the next one, and the bundle, signed by the newest from then on, carries these links: a
//! node follows them from the root that it knows, however long it was away, and never back. Signers then
//! get keys under the newest root and their old ones retire, so that all nodes renew; an older root counts
//! for as long as the bundle holds an intermediate of it. Whoever stole an old root can lead those astray
//! who have not moved yet, and nobody else.

use bytes::Bytes;
use meshd_proto::{NodeKey, NodeName, wire};
use rustls_pki_types::TrustAnchor;

use super::{
    anchors::{Anchors, root_from_key},
    ca::{CaError, RootCa},
    certificate::CaCertificate,
    record::NodeCertificate,
    signership::{self, SignerEntry},
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// The roots that a mesh had, and the keys that its signers had under them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Succession {
    /// From the oldest to the newest; empty when there was only one.
    roots: Vec<Step>,
    /// Tokens granted by these still admit, at the signer that they name.
    former: Vec<([u8; 32], NodeKey, NodeName)>,
}

/// A root, and what the one before it says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    root: CaCertificate,
    /// A certificate for the same key by the root before, DER. Empty in the first step.
    link: Bytes,
}

impl Succession {
    /// The same, and `next` after `now_root`, which certifies it.
    pub fn followed_by(
        &self,
        now_root: &RootCa,
        next: &RootCa,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let step = |root: &RootCa, link: Vec<u8>| {
            Ok::<_, CaError>(Step { root: CaCertificate::parse(root.der())?, link: link.into() })
        };
        let mut all = self.clone();
        if all.roots.is_empty() {
            all.roots.push(step(now_root, Vec::new())?);
        }
        all.roots.push(step(next, now_root.certify_successor(next, now)?)?);
        let excess = all.roots.len().saturating_sub(limits::BUNDLE_ROOTS);
        all.roots.drain(..excess);
        if let Some(first) = all.roots.first_mut() {
            first.link = Bytes::new();
        }
        Ok(all)
    }

    /// The same, and `signer`'s key is one that it had before.
    fn with_former(mut self, signer: &SignerEntry) -> Self {
        self.former.push((signer.key, signer.node, signer.name.clone()));
        let excess = self.former.len().saturating_sub(limits::BUNDLE_FORMER);
        self.former.drain(..excess);
        self
    }

    /// The same without the keys of nodes that are no signers any more.
    #[must_use]
    pub fn kept_for(mut self, signers: &[SignerEntry]) -> Self {
        self.former.retain(|(_, node, _)| signers.iter().any(|signer| signer.node == *node));
        self
    }

    /// Reads the roots of a bundle and verifies each by the one before it. `held` must be among them.
    pub(super) fn read(
        bundle: &wire::IntermediateBundle,
        held: &CaCertificate,
    ) -> Result<Self, Refusal> {
        if bundle.roots.len() > limits::BUNDLE_ROOTS || bundle.former.len() > limits::BUNDLE_FORMER
        {
            return Err(Refusal::new(Code::TooLarge, "bundle: too many roots or former signers"));
        }
        let mut roots: Vec<Step> = Vec::with_capacity(bundle.roots.len());
        for step in &bundle.roots {
            let root = CaCertificate::parse(&step.certificate)?;
            if root.subject != held.subject || root.path_length != Some(1) {
                return Err(untrusted("a root that is not of this mesh"));
            }
            root.verify_issued_by(&root.key)?;
            if let Some(before) = roots.last() {
                let link = CaCertificate::parse(&step.link)?;
                if link.key != root.key || link.subject != root.subject {
                    return Err(untrusted("a link that leads to another root"));
                }
                link.verify_issued_by(&before.root.key)?;
            }
            roots.push(Step { root, link: Bytes::copy_from_slice(&step.link) });
        }
        if !roots.is_empty() && !roots.iter().any(|step| step.root.key == held.key) {
            return Err(untrusted("its roots do not follow the one that is known here"));
        }
        Ok(Self { roots, former: signership::read_infos(&bundle.former)? })
    }

    /// The root that signs now, if there was ever another.
    pub(super) fn newest(&self) -> Option<&CaCertificate> {
        self.roots.last().map(|step| &step.root)
    }

    /// The keys of all roots.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.roots.iter().map(|step| &step.root.key)
    }

    /// What leads from the newest root back to the oldest, DER.
    fn links(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().skip(1).rev().map(|step| &step.link[..])
    }

    pub(super) fn roots_to_wire(&self) -> Vec<wire::RootStep> {
        let step = |step: &Step| wire::RootStep {
            certificate: step.root.der.clone(),
            link: step.link.clone(),
        };
        self.roots.iter().map(step).collect()
    }

    pub(super) fn former_to_wire(&self) -> Vec<wire::SignerInfo> {
        let info =
            |(key, node, name): &([u8; 32], NodeKey, NodeName)| signership::info(key, node, name);
        self.former.iter().map(info).collect()
    }
}

fn untrusted(why: &str) -> Refusal {
    Refusal::new(Code::UntrustedChain, format!("bundle: {why}"))
}

/// A root of the mesh, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootInfo {
    /// Its public key.
    pub key: [u8; 32],
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
    /// Certificates below it count.
    pub counts: bool,
}

impl Anchors {
    /// The roots and former keys, as the bundle has them.
    #[must_use]
    pub fn succession(&self) -> &Succession {
        &self.bundle().succession
    }

    /// The mesh's roots from the oldest to the newest.
    #[must_use]
    pub fn roots(&self) -> Vec<RootInfo> {
        let info = |root: &CaCertificate| RootInfo {
            key: root.key,
            not_before: root.not_before,
            not_after: root.not_after,
            counts: self.is_root(&root.key),
        };
        let before = &self.succession().roots;
        if before.is_empty() {
            return vec![info(self.root())];
        }
        before.iter().map(|step| info(&step.root)).collect()
    }

    /// True for the newest root, and for one before it while an intermediate of it is in the bundle.
    #[must_use]
    pub fn is_root(&self, key: &[u8; 32]) -> bool {
        self.root_key() == key || self.bundle().intermediates.iter().any(|one| one.root == *key)
    }

    /// True when whoever trusts the root of that key can trust this one: it is the same, or one before it.
    #[must_use]
    pub fn follows(&self, key: &[u8; 32]) -> bool {
        self.root_key() == key || self.succession().keys().any(|root| root == key)
    }

    /// The roots that count, as rustls and webpki take them.
    #[must_use]
    pub fn trust_anchors(&self) -> Vec<TrustAnchor<'static>> {
        let before = self.succession().keys().filter(|key| *key != self.root_key());
        std::iter::once(self.root_key())
            .chain(before.filter(|key| self.is_root(key)))
            .map(|key| root_from_key(self.mesh(), self.mesh_id(), key))
            .collect()
    }

    /// What TLS sends after `certificate`: its issuer, and the links by which who knows an older root
    /// comes to the newest. Empty when the issuer is none any more.
    #[must_use]
    pub fn chain_of(&self, certificate: &NodeCertificate) -> Vec<&[u8]> {
        match self.issuer_of(certificate) {
            Some(issuer) => std::iter::once(issuer).chain(self.succession().links()).collect(),
            None => Vec::new(),
        }
    }

    /// True when tokens granted by this key admit, at the signer that they name: its own key, or one before.
    #[must_use]
    pub fn may_have_granted(&self, key: &[u8; 32]) -> bool {
        self.has_intermediate(key) || self.succession().former.iter().any(|one| one.0 == *key)
    }

    /// Signers that still sign by a key under an older root.
    #[must_use]
    pub fn signers_to_move(&self) -> Vec<SignerEntry> {
        let mut all = self.signers();
        all.retain(|signer| !signer.retiring && !self.is_under_newest(&signer.key));
        all
    }

    /// True when the newest root certified this signer's key.
    #[must_use]
    pub fn is_under_newest(&self, key: &[u8; 32]) -> bool {
        let mut all = self.bundle().intermediates.iter();
        all.any(|one| one.certificate.key == *key && one.root == *self.root_key())
    }

    /// The signers with `new` among them. Keys that the same host has under older roots retire; tokens that
    /// they granted still admit.
    #[must_use]
    pub fn with_signer(&self, new: SignerEntry) -> (Vec<SignerEntry>, Succession) {
        let mut succession = self.succession().clone();
        let mut all = self.signers();
        for signer in &mut all {
            let moves = signer.node == new.node && !self.is_under_newest(&signer.key);
            if moves && !signer.retiring {
                signer.retiring = true;
                succession = succession.with_former(signer);
            }
        }
        all.push(new);
        (all, succession)
    }
}
