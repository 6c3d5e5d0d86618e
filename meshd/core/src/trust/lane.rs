//! WireGuard keys and the proof of whose they are.
//!
//! A kernel peer is keyed by its WireGuard public key, so a member that published another's key as
//! its own would take that peer over. X25519 keys cannot sign, so the key pair is made from an
//! Ed25519 key W: the WireGuard public key is W's Montgomery form, the private key the clamped
//! scalar of the same seed (eprint 2021/509 shows the joint use to be safe), and W signs the identity
//! that it belongs to. Called when a record is made and when one is verified.

use std::fmt;

use ed25519_dalek::{SigningKey, VerifyingKey};
use meshd_proto::{MeshId, NodeKey, WgPublicKey, wire};

use super::{
    record::LaneInfo,
    signing::{self, Kind},
};
use crate::{
    limits,
    plan::WgPrivateKey,
    refusal::{Code, Refusal},
};

/// A lane's static key. Wiped when dropped.
#[derive(Clone)]
pub struct LaneKey(SigningKey);

impl LaneKey {
    /// The key of a seed of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The WireGuard private key, clamped as the kernel gives it back.
    #[must_use]
    pub fn private_key(&self) -> WgPrivateKey {
        let mut scalar = self.0.to_scalar_bytes();
        scalar[0] &= 248;
        scalar[31] &= 127;
        scalar[31] |= 64;
        WgPrivateKey(scalar)
    }

    /// The WireGuard public key.
    #[must_use]
    pub fn public_key(&self) -> WgPublicKey {
        WgPublicKey(self.0.verifying_key().to_montgomery().to_bytes())
    }

    /// The lane as `identity`'s record names it.
    #[must_use]
    pub fn to_wire(&self, mesh: &MeshId, identity: &NodeKey, port: u16, index: u8) -> wire::Lane {
        let proof = signing::sign(&self.0, Kind::WgLane, mesh, identity.as_bytes());
        wire::Lane {
            signing_key: self.0.verifying_key().to_bytes().to_vec().into(),
            proof: proof.to_vec().into(),
            listen_port: u32::from(port),
            index: u32::from(index),
        }
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneKey({}, secret redacted)", self.public_key())
    }
}

/// Reads a lane of `identity`'s record and verifies that its key is that identity's.
pub fn check(lane: &wire::Lane, mesh: &MeshId, identity: &NodeKey) -> Result<LaneInfo, Refusal> {
    let unproven = |why: &str| Refusal::new(Code::WgKeyUnproven, format!("lane: {why}"));
    let key = <[u8; 32]>::try_from(&lane.signing_key[..])
        .map_err(|_| unproven("its key is not 32 bytes"))?;
    signing::verify(&key, Kind::WgLane, mesh, identity.as_bytes(), &lane.proof)
        .map_err(|refusal| unproven(&refusal.detail))?;
    read(lane)
}

/// Reads a lane whose proof was verified.
pub(super) fn read(lane: &wire::Lane) -> Result<LaneInfo, Refusal> {
    let unproven = |why: &str| Refusal::new(Code::WgKeyUnproven, format!("lane: {why}"));
    let key = <[u8; 32]>::try_from(&lane.signing_key[..])
        .map_err(|_| unproven("its key is not 32 bytes"))?;
    let point =
        VerifyingKey::from_bytes(&key).map_err(|_| unproven("its key is not on the curve"))?;
    let public_key = WgPublicKey(point.to_montgomery().to_bytes());
    if point.is_weak() || public_key.0 == [0; 32] {
        return Err(unproven("its key is of small order"));
    }
    let malformed = |why: &str| Refusal::new(Code::Malformed, format!("lane: {why}"));
    let listen_port = u16::try_from(lane.listen_port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| malformed("its port is not 1 to 65535"))?;
    let index = u8::try_from(lane.index)
        .ok()
        .filter(|index| usize::from(*index) < limits::RECORD_LANES)
        .ok_or_else(|| malformed("its index is neither 0 nor 1"))?;
    Ok(LaneInfo { public_key, listen_port, index })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([1; 16]);
    const ME: NodeKey = NodeKey([5; 32]);

    #[test]
    fn the_private_key_belongs_to_the_public_key() {
        for seed in 0..20 {
            let lane = LaneKey::from_seed(&[seed; 32]);
            let secret = x25519_dalek::StaticSecret::from(lane.private_key().0);
            let public = x25519_dalek::PublicKey::from(&secret);
            assert_eq!(public.as_bytes(), lane.public_key().as_bytes());
        }
    }

    #[test]
    fn a_proved_lane_is_read() {
        let lane = LaneKey::from_seed(&[9; 32]);
        let info = check(&lane.to_wire(&MESH, &ME, 51820, 1), &MESH, &ME).unwrap();
        let want = LaneInfo { public_key: lane.public_key(), listen_port: 51820, index: 1 };
        assert_eq!(info, want);
    }

    #[test]
    fn another_nodes_key_is_refused() {
        let lane = LaneKey::from_seed(&[9; 32]).to_wire(&MESH, &ME, 51820, 0);
        let refused = |lane: &wire::Lane, mesh: &MeshId, node: &NodeKey| {
            assert_eq!(check(lane, mesh, node).unwrap_err().code, Code::WgKeyUnproven);
        };
        refused(&lane, &MESH, &NodeKey([6; 32]));
        refused(&lane, &MeshId([2; 16]), &ME);
        let mut bare = lane.clone();
        bare.proof = Default::default();
        refused(&bare, &MESH, &ME);
        // The other's WireGuard key with my own proof.
        let mut mixed = LaneKey::from_seed(&[8; 32]).to_wire(&MESH, &NodeKey([6; 32]), 51820, 0);
        mixed.signing_key = lane.signing_key.clone();
        refused(&mixed, &MESH, &NodeKey([6; 32]));
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let mut proof = [0; 64];
        proof[0] = 1;
        for key in [[0; 32], identity_point, [255; 32]] {
            let lane = wire::Lane {
                signing_key: key.to_vec().into(),
                proof: proof.to_vec().into(),
                listen_port: 51820,
                index: 0,
            };
            assert_eq!(check(&lane, &MESH, &ME).unwrap_err().code, Code::WgKeyUnproven);
        }
    }

    #[test]
    fn ports_and_indexes_out_of_range_are_refused() {
        let good = LaneKey::from_seed(&[9; 32]).to_wire(&MESH, &ME, 51820, 0);
        for (port, index) in [(0, 0), (65_536, 0), (51820, 2)] {
            let lane = wire::Lane { listen_port: port, index, ..good.clone() };
            assert_eq!(check(&lane, &MESH, &ME).unwrap_err().code, Code::Malformed);
        }
    }
}
