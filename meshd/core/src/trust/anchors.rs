//! What a node trusts: the root of its mesh, the intermediates in force, and no more those who were revoked.
//!
//! Verifies chains; the bundle of intermediates in `bundle`, roots that follow one another in `succession`, revocations in
//! `revocation`. Who a certificate's holder is, is read in `certificate`; whether a
//! record is believed, `verify` decides with the help of this module. Called for every TLS peer, for
//! every record, and by a joiner when the signer has answered.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use meshd_proto::{MeshId, MeshName, NodeKey, NodeName, wire};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use yasna::models::ObjectIdentifier;

use super::{
    bundle::Bundle,
    ca,
    certificate::{self, CaCertificate},
    record::NodeCertificate,
    revocation::Revocations,
    time::{SignerTime, TrustTime},
};
use crate::{
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// The root of a mesh and its bundle of intermediates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Anchors {
    mesh: MeshName,
    mesh_id: MeshId,
    root: Arc<CaCertificate>,
    bundle: Arc<Bundle>,
    revocations: Arc<Revocations>,
    time: SignerTime,
}

impl Anchors {
    /// Reads a root certificate: mesh and mesh id are in its subject. Whether it is the right root,
    /// the caller knows: it has it from `init`, or compares [`Self::root_key`] with its token.
    pub fn from_root(der: &[u8]) -> Result<Self, Refusal> {
        let root = CaCertificate::parse(der)?;
        let malformed =
            |why: &str| Refusal::new(Code::Malformed, format!("root certificate: {why}"));
        let mesh: MeshName =
            root.organization.parse().map_err(|error| malformed(&format!("{error}")))?;
        let mesh_id: MeshId = root
            .common_name
            .strip_prefix(ca::ROOT_NAME)
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| malformed("its name holds no mesh id"))?;
        if root.subject != subject_content(&mesh, &mesh_id) {
            return Err(malformed("its subject is not that of a mesh's root"));
        }
        if root.path_length != Some(1) {
            return Err(malformed("its path length is not 1"));
        }
        root.verify_issued_by(&root.key)?;
        let (root, bundle, revocations) = (Arc::new(root), Arc::default(), Arc::default());
        let time = SignerTime::default();
        Ok(Self { mesh, mesh_id, root, bundle, revocations, time })
    }

    /// The mesh's name.
    #[must_use]
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// The mesh.
    #[must_use]
    pub fn mesh_id(&self) -> &MeshId {
        &self.mesh_id
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root.der
    }

    /// The root's Ed25519 public key.
    #[must_use]
    pub fn root_key(&self) -> &[u8; 32] {
        &self.root.key
    }

    /// The name that TLS clients check.
    #[must_use]
    pub fn server_name(&self) -> String {
        certificate::server_name(&self.mesh_id)
    }

    pub(super) fn root(&self) -> &CaCertificate {
        &self.root
    }

    pub(super) fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// A verified bundle, and the root that signed it.
    pub(super) fn take_over(&mut self, root: CaCertificate, bundle: Arc<Bundle>) {
        self.root = Arc::new(root);
        self.bundle = bundle;
        let now = self.clone();
        self.revocations_mut()
            .retain_signers(|signer| now.is_root(signer) || now.has_intermediate(signer));
    }

    /// The bundle as received, for those who lack it.
    #[must_use]
    pub fn signed_bundle(&self) -> &wire::SignedBundle {
        &self.bundle.signed
    }

    /// The bundle's version; 0 until one was installed.
    #[must_use]
    pub fn bundle_version(&self) -> u64 {
        self.bundle.version
    }

    /// The intermediates' certificates, DER.
    pub fn intermediates(&self) -> impl Iterator<Item = &[u8]> {
        self.bundle.intermediates.iter().map(|one| &one.certificate.der[..])
    }

    /// True when the bundle holds an intermediate of this public key, and it is not retiring.
    #[must_use]
    pub fn has_intermediate(&self, key: &[u8; 32]) -> bool {
        self.bundle.holds(key)
    }

    pub(super) fn intermediates_with_keys(&self) -> impl Iterator<Item = (&[u8; 32], &[u8])> {
        let all = self.bundle.intermediates.iter();
        all.map(|one| (&one.certificate.key, &one.certificate.der[..]))
    }

    pub(super) fn signer_infos(&self) -> &[([u8; 32], NodeKey, NodeName)] {
        &self.bundle.infos
    }

    pub(super) fn retiring(&self) -> &BTreeSet<[u8; 32]> {
        &self.bundle.retiring
    }

    /// Public key of the intermediate that issued `certificate`, if the bundle holds it.
    #[must_use]
    pub fn issuer_key(&self, certificate: &NodeCertificate) -> Option<[u8; 32]> {
        self.issuer(&certificate.der).ok().map(|issuer| issuer.key)
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) fn signer_time_ref(&self) -> &SignerTime {
        &self.time
    }

    pub(super) fn signer_time_mut(&mut self) -> &mut SignerTime {
        &mut self.time
    }

    pub(super) fn revocations_mut(&mut self) -> &mut Revocations {
        Arc::make_mut(&mut self.revocations)
    }

    /// The intermediate that issued `certificate`, DER: what TLS sends after the leaf.
    #[must_use]
    pub fn issuer_of(&self, certificate: &NodeCertificate) -> Option<&[u8]> {
        self.issuer(&certificate.der).ok().map(|issuer| &issuer.der[..])
    }

    /// Reads a node certificate and verifies that it is this mesh's: shape, mesh, issuer, signatures,
    /// fit for both ends of TLS.
    ///
    /// With `now`, its dates are judged too, and whether it was revoked. Without, the chain is checked at a
    /// time at which all of it is valid, so that the verdict does not change with the clock.
    pub fn check_chain(
        &self,
        leaf: &[u8],
        now: Option<UnixTime>,
    ) -> Result<Arc<NodeCertificate>, Refusal> {
        let (certificate, issuer) = self.read_leaf(leaf)?;
        self.verify_chain(&certificate, issuer)?;
        if let Some(now) = now {
            self.check_membership(&certificate.key)?;
            certificate.check_dates(self.trust_time(now))?;
        }
        Ok(Arc::new(certificate))
    }

    /// Reads a leaf of this mesh and who is to have signed it, without a look at the signature.
    pub(super) fn read_leaf(
        &self,
        leaf: &[u8],
    ) -> Result<(NodeCertificate, &CaCertificate), Refusal> {
        let certificate = NodeCertificate::parse(leaf)?;
        if certificate.mesh_id != self.mesh_id || certificate.mesh != self.mesh {
            return Err(Refusal::new(
                Code::OtherMesh,
                format!("certificate: of mesh {} ({})", certificate.mesh, certificate.mesh_id),
            ));
        }
        Ok((certificate, self.issuer(leaf)?))
    }

    /// Judges whether the membership of `key` was ended.
    pub fn check_membership(&self, key: &NodeKey) -> Result<(), Refusal> {
        match self.revocation(key) {
            None => Ok(()),
            Some(revocation) => Err(Refusal::new(
                Code::Revoked,
                format!("the membership of {} ({key}) was ended", revocation.name),
            )),
        }
    }

    fn issuer(&self, leaf: &[u8]) -> Result<&CaCertificate, Refusal> {
        let (_, issuer) = certificate::subject_and_issuer(leaf)?;
        let mut known = self.bundle.intermediates.iter().map(|one| &one.certificate);
        known.find(|known| known.subject == issuer).ok_or_else(|| {
            Refusal::new(
                Code::UnknownIssuer,
                format!(
                    "certificate: its issuer is not among the {} of bundle {}",
                    self.bundle.intermediates.len(),
                    self.bundle.version
                ),
            )
        })
    }

    fn verify_chain(&self, leaf: &NodeCertificate, issuer: &CaCertificate) -> Result<(), Refusal> {
        let untrusted =
            |why: String| Refusal::new(Code::UntrustedChain, format!("certificate: {why}"));
        let at = leaf.not_before.max(issuer.not_before);
        if at > leaf.not_after.min(issuer.not_after) {
            return Err(untrusted("it is never valid at a time when its issuer is".into()));
        }
        let seconds = u64::try_from(at.0).map_err(|_| untrusted("dated before 1970".into()))?;
        let time = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let anchors = self.trust_anchors();
        let intermediates = [CertificateDer::from(&issuer.der[..])];
        let der = CertificateDer::from(&leaf.der[..]);
        let end_entity =
            webpki::EndEntityCert::try_from(&der).map_err(|error| untrusted(error.to_string()))?;
        end_entity
            .verify_for_usage(
                &[webpki::aws_lc_rs::ED25519],
                &anchors,
                &intermediates,
                time,
                // That it serves as a server's too, was read with the certificate.
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|error| untrusted(error.to_string()))?;
        Ok(())
    }
}

impl NodeCertificate {
    /// Judges the dates of validity.
    pub fn check_dates(&self, now: TrustTime) -> Result<(), Refusal> {
        if now.begins < self.not_before {
            let ahead = self.not_before.since(now.begins);
            return Err(Refusal::new(
                Code::CertificateNotYetValid,
                format!("the certificate of {} is valid only in {ahead} s", self.name),
            ));
        }
        if now.ends > self.not_after {
            let past = now.ends.since(self.not_after);
            return Err(Refusal::new(
                Code::CertificateExpired,
                format!("the certificate of {} ended {past} s ago", self.name),
            ));
        }
        Ok(())
    }
}

/// The trust anchor of a mesh from what a join token holds: the root's subject is made of name and
/// id, its key is in the token.
#[must_use]
pub fn root_from_key(
    mesh: &MeshName,
    mesh_id: &MeshId,
    root_key: &[u8; 32],
) -> TrustAnchor<'static> {
    TrustAnchor {
        subject: subject_content(mesh, mesh_id).into(),
        subject_public_key_info: spki_content(root_key).into(),
        name_constraints: None,
    }
}

/// Content of the SEQUENCE of the root's subject, as rcgen writes it.
fn subject_content(mesh: &MeshName, mesh_id: &MeshId) -> Vec<u8> {
    let mut content = Vec::new();
    for (kind, text) in ca::root_subject(mesh, mesh_id) {
        content.extend(yasna::construct_der(|writer| {
            writer.write_set(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(kind));
                    writer.next().write_utf8_string(&text);
                });
            });
        }));
    }
    content
}

/// Content of the SEQUENCE of an Ed25519 SubjectPublicKeyInfo (RFC 8410).
fn spki_content(key: &[u8; 32]) -> Vec<u8> {
    let mut content = vec![0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    content.extend_from_slice(key);
    content
}
