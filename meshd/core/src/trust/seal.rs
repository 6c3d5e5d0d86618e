//! Sealing what only a signer may read: HPKE (RFC 9180), base mode.
//!
//! An identity document is a bearer secret, and a member that forwards an enrolment must not read it. The
//! signer's key for this follows from its identity's seed, so that there is no further file to lose, and its
//! public half is in the token, under the signature of its intermediate. Not from the intermediate's seed: that
//! one is replaced when the root is, and tokens outlive it. Mesh, joiner and token are bound in: a sealed
//! document that is moved into another request does not open.

use std::fmt;

use meshd_proto::{MeshId, NodeKey};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{secret::IdentityKey, terms::TokenId};

static SUITE: &dyn Hpke = DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305;
/// The sender's ephemeral public key, before the ciphertext.
const SECRET: usize = 32;
const INFO: &[u8] = b"meshd-identity-document-v1\0";

/// Whose document, for which token of which mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope<'a> {
    pub(super) mesh: &'a MeshId,
    pub(super) joiner: &'a NodeKey,
    pub(super) token: &'a TokenId,
}

impl Envelope<'_> {
    fn info(&self) -> Vec<u8> {
        [INFO, &self.mesh.0].concat()
    }

    fn bound(&self) -> Vec<u8> {
        [&self.joiner.0[..], &self.token.0].concat()
    }

    /// Seals for the holder of `to`. The ephemeral key comes from the system's generator: the library takes
    /// no other. `None` when `to` is no key.
    pub(super) fn seal(&self, to: &[u8; 32], plain: &[u8]) -> Option<Vec<u8>> {
        let to = HpkePublicKey(to.to_vec());
        let (secret, sealed) = SUITE.seal(&self.info(), &self.bound(), plain, &to).ok()?;
        Some([secret.0, sealed].concat())
    }

    /// Opens what was sealed in the same terms.
    pub(super) fn open(&self, key: &SealKey, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (secret, sealed) = sealed.split_at_checked(SECRET)?;
        let secret = EncapsulatedSecret(secret.to_vec());
        let own = HpkePrivateKey::from(key.0.to_vec());
        let opened = SUITE.open(&secret, &self.info(), &self.bound(), sealed, &own);
        opened.ok().map(Zeroizing::new)
    }
}

/// A signer's key for opening. Wiped when dropped.
pub(super) struct SealKey(Zeroizing<[u8; 32]>);

impl SealKey {
    /// The key that goes with a signer's identity.
    pub(super) fn of(signer: &IdentityKey) -> Self {
        let digest = Sha256::new_with_prefix(b"meshd-seal-key-v2\0")
            .chain_update(&signer.seed()[..])
            .finalize();
        Self(Zeroizing::new(digest.into()))
    }

    /// Its public half.
    pub(super) fn public(&self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*self.0)).to_bytes()
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_signer_opens_it_and_only_in_the_same_request() {
        let (mesh, joiner, token) = (MeshId([1; 16]), NodeKey([2; 32]), TokenId([3; 16]));
        let envelope = Envelope { mesh: &mesh, joiner: &joiner, token: &token };
        let key = SealKey::of(&IdentityKey::from_seed(&[7; 32]));
        let other = SealKey::of(&IdentityKey::from_seed(&[8; 32]));
        let sealed = envelope.seal(&key.public(), b"a document").unwrap();
        assert!(!sealed.windows(10).any(|part| part == b"a document"));
        assert_eq!(envelope.open(&key, &sealed).unwrap().as_slice(), b"a document");
        assert!(envelope.open(&other, &sealed).is_none(), "another signer");
        let thief = NodeKey([9; 32]);
        assert!(Envelope { joiner: &thief, ..envelope }.open(&key, &sealed).is_none());
        let other = TokenId([9; 16]);
        assert!(Envelope { token: &other, ..envelope }.open(&key, &sealed).is_none());
        let elsewhere = MeshId([9; 16]);
        assert!(Envelope { mesh: &elsewhere, ..envelope }.open(&key, &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(envelope.open(&key, &changed).is_none(), "byte {at}");
            assert!(envelope.open(&key, &sealed[..at]).is_none(), "cut at {at}");
        }
        assert!(!format!("{key:?}").contains("["), "it is not shown");
        assert!(envelope.seal(&[0; 32], b"x").is_none(), "a point of small order is no key");
    }
}
