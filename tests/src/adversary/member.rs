//! Who the adversary is: an enrolled host's state directory, read as its daemon reads it.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow};
use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use meshd_core::trust::{Anchors, IdentityKey, LaneKey, NodeCertificate, NodeIdentity};
use meshd_proto::wire;
use prost::Message;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

/// A legitimate member: keys, certificate, and whom it trusts.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) anchors: Anchors,
    pub(super) identity: NodeIdentity,
    pub(super) lane: LaneKey,
}

impl Member {
    /// Reads `pki/` and `keys/` below a state directory.
    pub(super) fn load(state: &Path) -> Result<Self> {
        let root = certificate(&state.join("pki/root.crt"))?;
        let mut anchors = Anchors::from_root(&root)?;
        let path = state.join("pki/bundle");
        let bundle = std::fs::read(&path).with_context(|| path.display().to_string())?;
        anchors.install_bundle(&wire::SignedBundle::decode(bundle.as_slice())?)?;
        let leaf = certificate(&state.join("pki/node.crt"))?;
        let leaf: Arc<NodeCertificate> = anchors.check_chain(&leaf, None)?;
        let identity = IdentityKey::from_seed(&seed(&state.join("keys/identity"))?);
        Ok(Self {
            identity: NodeIdentity::new(identity, leaf)?,
            lane: LaneKey::from_seed(&seed(&state.join("keys/lane0"))?),
            anchors,
        })
    }

    /// The certificate with its issuer's, as TLS sends them.
    pub(super) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let leaf = &self.identity.certificate;
        let issuer = self.anchors.issuer_of(leaf).context("the bundle lacks the issuer")?;
        Ok(vec![leaf.der.to_vec().into(), issuer.to_vec().into()])
    }

    /// The identity key as rustls takes it.
    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        private_key(&self.identity.key)
    }
}

/// A key as rustls takes it.
pub(super) fn private_key(key: &IdentityKey) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()).into()
}

pub(super) fn certificate(path: &Path) -> Result<Vec<u8>> {
    let pem = std::fs::read(path).with_context(|| path.display().to_string())?;
    let der = CertificateDer::from_pem_slice(&pem)
        .map_err(|error| anyhow!("{} holds no certificate: {error}", path.display()))?;
    Ok(der.to_vec())
}

pub(super) fn seed(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let bytes = HEX.decode(text.trim_ascii()).with_context(|| path.display().to_string())?;
    bytes.try_into().map_err(|_| anyhow!("{} does not hold 32 bytes", path.display()))
}
