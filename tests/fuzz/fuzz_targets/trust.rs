//! What the root and signers sign, and what is kept of it. The first byte says what it is; its highest bit, that the rest is
//! a payload which gets a right signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{IdentityKey, open_invite, open_offer, signing::Kind};
use meshd_fuzz::world::{NOW, world};
use meshd_proto::wire;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((what, bytes)) = data.split_first() else { return };
    let world = world();
    let mesh = world.mesh_id();
    let mut anchors = world.anchors.clone();
    let by = |seed: &[u8; 32], kind: Kind| -> bytes::Bytes {
        IdentityKey::from_seed(seed).sign(kind, mesh, bytes).to_vec().into()
    };
    let (root, signer) = (world.root.seed(), world.intermediate.seed());
    let right = what & 0x80 != 0;
    let payload = bytes::Bytes::copy_from_slice(bytes);
    match what & 0x7f {
        0 => {
            let bundle = if right {
                Some(wire::SignedBundle { signature: by(&root, Kind::Bundle), payload })
            } else {
                wire::SignedBundle::decode(bytes).ok()
            };
            let Some(bundle) = bundle else { return };
            let before = anchors.bundle_version();
            match anchors.install_bundle(&bundle) {
                Ok(true) => {
                    assert!(anchors.bundle_version() >= before);
                    assert_eq!(*anchors.signed_bundle(), bundle);
                    assert!(anchors.intermediates().count() <= 64);
                    assert_eq!(anchors.install_bundle(&bundle), Ok(false));
                    let _ = anchors.signers();
                }
                _ => assert_eq!(anchors.signed_bundle(), world.anchors.signed_bundle()),
            }
        }
        1 => {
            let revocation = if right {
                Some(wire::SignedRevocation { signature: by(&signer, Kind::Revocation), payload })
            } else {
                wire::SignedRevocation::decode(bytes).ok()
            };
            let Some(revocation) = revocation else { return };
            if let Ok(Some(key)) = anchors.revoke(&revocation) {
                assert!(anchors.check_membership(&key).is_err());
                assert_eq!(anchors.revoke(&revocation), Ok(None));
                let mut again = world.anchors.clone();
                again.restore_revocations(&anchors.encode_revocations()).expect("what was kept");
                assert_eq!(again.revocations_hash(), anchors.revocations_hash());
            } else {
                assert_eq!(anchors.all_revocations().count(), 0);
            }
        }
        2 => {
            let time = if right {
                Some(wire::SignedTime { signature: by(&signer, Kind::Time), payload })
            } else {
                wire::SignedTime::decode(bytes).ok()
            };
            let Some(time) = time else { return };
            if anchors.take_time(&time, NOW) == Ok(true) {
                assert!(anchors.signer_time().is_some_and(|at| at.since(NOW) <= 600));
                let judged = anchors.trust_time(NOW);
                assert!(judged.begins >= NOW && judged.ends <= NOW);
                let kept = anchors.encode_time();
                let mut again = world.anchors.clone();
                again.restore_time(&kept).expect("what was kept");
                assert_eq!(again.encode_time(), kept);
            } else {
                assert_eq!(anchors.signer_time(), None);
            }
        }
        3 => {
            if anchors.restore_revocations(bytes).is_ok() {
                let kept = anchors.encode_revocations();
                let mut again = world.anchors.clone();
                again.restore_revocations(&kept).expect("what was kept");
                assert_eq!(again.revocations_hash(), anchors.revocations_hash());
            }
        }
        4 => {
            if anchors.restore_time(bytes).is_ok() {
                let judged = anchors.trust_time(NOW);
                assert!(judged.begins >= NOW && judged.ends <= NOW);
            }
        }
        5 => {
            let invite = if right {
                Some(wire::SignerInvite { signature: by(&root, Kind::SignerInvite), payload })
            } else {
                wire::SignerInvite::decode(bytes).ok()
            };
            let Some(invite) = invite else { return };
            let _ = open_invite(&invite, &anchors, &world.victim().key(), NOW);
        }
        6 => {
            let liar = world.liar();
            let signature = liar.identity.key.sign(Kind::SignerOffer, mesh, bytes).to_vec();
            let offer = if right {
                let proof = by(&signer, Kind::SignerOffer);
                Some(wire::SignerOffer { signature: signature.into(), proof, payload })
            } else {
                wire::SignerOffer::decode(bytes).ok()
            };
            let Some(offer) = offer else { return };
            if let Ok(key) = open_offer(&offer, mesh, &liar.key(), &[5; 16]) {
                assert_eq!(key, world.intermediate.public(), "a key that nobody proved");
            }
        }
        _ => {}
    }
});
