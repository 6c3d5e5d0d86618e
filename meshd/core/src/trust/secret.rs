//! A node's identity key.
//!
//! Holds the secret; keeps it out of logs and wipes it from memory. Where it is stored is the
//! daemon's matter.

use std::fmt;

use ed25519_dalek::SigningKey;
use meshd_proto::{MeshId, NodeKey};
use zeroize::Zeroizing;

use super::signing::{self, Kind};

/// PKCS#8 version 1 (RFC 8410) of an Ed25519 seed is this header and the 32 bytes.
const PKCS8_HEADER: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node's Ed25519 identity. Wiped when dropped.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// The identity of a seed of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, to be stored in a file that only root reads.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half: who the node is.
    #[must_use]
    pub fn public(&self) -> NodeKey {
        NodeKey(self.0.verifying_key().to_bytes())
    }

    /// The private key as rustls takes it.
    #[must_use]
    pub fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend_from_slice(&PKCS8_HEADER);
        der.extend_from_slice(self.0.as_bytes());
        der
    }

    /// Signs as this identity.
    #[must_use]
    pub fn sign(&self, kind: Kind, mesh: &MeshId, bytes: &[u8]) -> [u8; 64] {
        signing::sign(&self.0, kind, mesh, bytes)
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({}, secret redacted)", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pkcs8_form_is_read_as_the_same_key() {
        let key = IdentityKey::from_seed(&[3; 32]);
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec());
        let pair = rcgen::KeyPair::try_from(&der).unwrap();
        assert_eq!(pair.public_key_raw(), key.public().as_bytes());
    }

    #[test]
    fn the_secret_is_not_shown() {
        let key = IdentityKey::from_seed(&[3; 32]);
        let text = format!("{key:?}");
        assert!(text.contains("redacted") && !text.contains("3, 3"), "{text}");
        assert_eq!(*key.seed(), [3; 32]);
    }
}
