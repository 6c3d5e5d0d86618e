//! Stamps: what this host has verified it need not verify again when it starts.
//!
//! Three signatures go with each record, and ten thousand records are a second and a half of a processor, while the kernel
//! waits for its peers. The verdict on a record is a function of its bytes, of the root and the bundle, and of the program that judges. A
//! stamp is a MAC (HMAC-SHA-256, RFC 2104, cut to 16 bytes) over these under a key that follows from the identity's secret: who could
//! forge one could sign as this host, too. Without a stamp that fits, signatures are verified as those of any record are.
//! Dates, revocations and versions are judged each time, and so is what a record may claim.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use meshd_proto::wire;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{anchors::Anchors, secret::IdentityKey};

/// Bytes of a stamp.
const LENGTH: usize = 16;
/// A program that judges otherwise takes no stamp of this one's.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// Makes and checks the stamps of one host.
pub(crate) struct Stamper {
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Stamper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stamper(secret redacted)")
    }
}

impl Stamper {
    pub(crate) fn new(identity: &IdentityKey) -> Self {
        let mut mac = keyed(&identity.seed());
        mac.update(b"meshd-stored-record-v1\0");
        Self { key: Zeroizing::new(mac.finalize().into_bytes().into()) }
    }

    /// `signed` as it is stored. It must have been verified with these anchors.
    pub(crate) fn stamped(
        &self,
        signed: &wire::SignedRecord,
        anchors: &Anchors,
    ) -> wire::StoredRecord {
        let stamp = self.mac(signed, anchors).finalize().into_bytes();
        wire::StoredRecord {
            payload: signed.payload.clone(),
            signature: signed.signature.clone(),
            certificate: signed.certificate.clone(),
            stamp: bytes::Bytes::copy_from_slice(&stamp[..LENGTH]),
        }
    }

    /// Whether `stamp` says that `signed` was verified with these anchors.
    pub(crate) fn holds(
        &self,
        stamp: &[u8],
        signed: &wire::SignedRecord,
        anchors: &Anchors,
    ) -> bool {
        stamp.len() == LENGTH && self.mac(signed, anchors).verify_truncated_left(stamp).is_ok()
    }

    fn mac(&self, signed: &wire::SignedRecord, anchors: &Anchors) -> Hmac<Sha256> {
        let mut mac = keyed(&self.key);
        let bundle = anchors.signed_bundle();
        for part in [
            PROGRAM.as_bytes(),
            anchors.root_der(),
            &bundle.payload,
            &bundle.signature,
            &signed.payload,
            &signed.signature,
            &signed.certificate,
        ] {
            // No byte can move from one part to the next.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..32].copy_from_slice(key);
    let mac = Hmac::<Sha256>::new(&block);
    zeroize::Zeroize::zeroize(&mut block[..]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::fixture::TestMesh;

    #[test]
    fn a_stamp_is_for_one_record_one_host_and_one_bundle() {
        let mut mesh = TestMesh::new(1);
        let node = mesh.node("a", &[]);
        let signed = mesh.sign(&node, &Default::default(), 1);
        let ours = Stamper::new(&IdentityKey::from_seed(&[1; 32]));
        let stored = ours.stamped(&signed, &mesh.anchors);
        assert!(ours.holds(&stored.stamp, &signed, &mesh.anchors));

        let theirs = Stamper::new(&IdentityKey::from_seed(&[2; 32]));
        assert!(!theirs.holds(&stored.stamp, &signed, &mesh.anchors));
        for part in 0..3 {
            let mut other = signed.clone();
            let part = [&mut other.payload, &mut other.signature, &mut other.certificate]
                .into_iter()
                .nth(part)
                .unwrap();
            let mut changed = part.to_vec();
            changed[0] ^= 1;
            *part = changed.into();
            assert!(!ours.holds(&stored.stamp, &other, &mesh.anchors));
        }
        for wrong in [
            &stored.stamp[..15],
            &[],
            &[0; 16],
            &[stored.stamp.clone(), stored.stamp.clone()].concat(),
        ] {
            assert!(!ours.holds(wrong, &signed, &mesh.anchors), "{wrong:?}");
        }
        let newer = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[]);
        mesh.anchors.install_bundle(&newer).unwrap();
        assert!(!ours.holds(&stored.stamp, &signed, &mesh.anchors), "its issuer may be gone");
    }
}
