//! Signatures, each bound to its use and its mesh.
//!
//! Everything that meshd signs itself goes through here: Ed25519 over
//! `"meshd-<kind>-v1\0" ‖ mesh_id ‖ bytes`, so that a signature made for one use, or in one mesh, is
//! worth nothing in another. Certificates are signed in `ca`. Called by the rest of `trust`.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use meshd_proto::MeshId;

use crate::refusal::{Code, Refusal};

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node's record, by its identity key.
    Record,
    /// An identity key, by the Ed25519 form of a WireGuard key.
    WgLane,
    /// What a token permits, by an intermediate's key.
    TokenGrant,
    /// The same of a token that admits by identity documents only.
    IdentityGrant,
    /// An enrolment request, by the token's key.
    EnrolToken,
    /// An enrolment request, by the identity that asks.
    EnrolIdentity,
    /// The intermediates in force, by the root.
    Bundle,
    /// The end of a membership, by an intermediate's or the root's key.
    Revocation,
    /// The time, by an intermediate's key.
    Time,
    /// An invitation to become a signer, by the root.
    SignerInvite,
    /// The answer, by the identity and by the new intermediate's key.
    SignerOffer,
    /// What a member saw of another, by its identity key.
    Report,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Record,
        Self::WgLane,
        Self::TokenGrant,
        Self::IdentityGrant,
        Self::EnrolToken,
        Self::EnrolIdentity,
        Self::Bundle,
        Self::Revocation,
        Self::Time,
        Self::SignerInvite,
        Self::SignerOffer,
        Self::Report,
    ];

    /// The name inside the signed bytes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::WgLane => "wg-lane",
            Self::TokenGrant => "token-grant",
            Self::IdentityGrant => "identity-grant",
            Self::EnrolToken => "enrol-token",
            Self::EnrolIdentity => "enrol-identity",
            Self::Bundle => "bundle",
            Self::Revocation => "revocation",
            Self::Time => "time",
            Self::SignerInvite => "signer-invite",
            Self::SignerOffer => "signer-offer",
            Self::Report => "report",
        }
    }
}

/// Signs `bytes` for one use in one mesh.
#[must_use]
pub fn sign(key: &SigningKey, kind: Kind, mesh: &MeshId, bytes: &[u8]) -> [u8; 64] {
    key.sign(&message(kind, mesh, bytes)).to_bytes()
}

/// Verifies what [`sign`] made. Keys and signature points of small order are refused: with them one
/// signature would fit many messages.
pub fn verify(
    public: &[u8; 32],
    kind: Kind,
    mesh: &MeshId,
    bytes: &[u8],
    signature: &[u8],
) -> Result<(), Refusal> {
    verify_raw(public, &message(kind, mesh, bytes), signature).map_err(|why| {
        Refusal::new(Code::BadSignature, format!("{} signature: {why}", kind.as_str()))
    })
}

/// Verifies a bare Ed25519 signature: for certificates, which bind their content by themselves.
pub(super) fn verify_raw(
    public: &[u8; 32],
    message: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    if signature.is_empty() {
        return Err("there is none");
    }
    let signature = Signature::from_slice(signature).map_err(|_| "not 64 bytes")?;
    let key = VerifyingKey::from_bytes(public).map_err(|_| "the key is not on the curve")?;
    key.verify_strict(message, &signature).map_err(|_| "does not verify")
}

fn message(kind: Kind, mesh: &MeshId, bytes: &[u8]) -> Vec<u8> {
    let name = kind.as_str().as_bytes();
    let mut message = Vec::with_capacity(name.len() + bytes.len() + 32);
    message.extend_from_slice(b"meshd-");
    message.extend_from_slice(name);
    message.extend_from_slice(b"-v1\0");
    message.extend_from_slice(&mesh.0);
    message.extend_from_slice(bytes);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([1; 16]);

    #[test]
    fn a_signature_is_good_for_one_kind_mesh_and_message_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        for kind in Kind::ALL {
            let signature = sign(&key, kind, &MESH, b"hello");
            for other in Kind::ALL {
                let verdict = verify(&public, other, &MESH, b"hello", &signature);
                assert_eq!(verdict.is_ok(), kind == other, "{kind:?} as {other:?}");
            }
            assert!(verify(&public, kind, &MeshId([2; 16]), b"hello", &signature).is_err());
            assert!(verify(&public, kind, &MESH, b"hellp", &signature).is_err());
            assert!(verify(&[8; 32], kind, &MESH, b"hello", &signature).is_err());
        }
    }

    #[test]
    fn no_signature_a_short_one_and_a_weak_key_are_refused() {
        for signature in [&[][..], &[0; 63], &[0; 64]] {
            // The all-zero key is a point of small order: R = 0, S = 0 would fit any message.
            let refusal = verify(&[0; 32], Kind::Record, &MESH, b"x", signature).unwrap_err();
            assert_eq!(refusal.code, Code::BadSignature);
        }
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(verify(&identity_point, Kind::Record, &MESH, b"x", &signature).is_err());
    }
}
