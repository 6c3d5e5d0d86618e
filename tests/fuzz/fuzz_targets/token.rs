//! A join token as text. What is read is written the same again. The first byte: the text as it is, a message that gets its
//! frame and checksum, or the terms of a grant that gets its signature too.
#![no_main]

use data_encoding::BASE64URL_NOPAD;
use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{IdentityKey, JoinToken, signing::Kind};
use meshd_fuzz::world::world;
use meshd_proto::wire;
use prost::Message;
use sha2::{Digest, Sha256};

fuzz_target!(|data: &[u8]| {
    let Some((what, bytes)) = data.split_first() else { return };
    let text = match what % 3 {
        0 => String::from_utf8_lossy(bytes).into_owned(),
        1 => framed(bytes),
        _ => framed(&granting(bytes)),
    };
    match JoinToken::parse(&text) {
        Ok(token) => {
            let again = token.encode();
            let read = JoinToken::parse(&again).expect("what was written");
            assert_eq!(read.encode(), again);
            assert_eq!(read.terms(), token.terms());
            assert!(
                token.seeds().len() <= 16 && token.seeds().iter().all(|seed| seed.len() <= 280)
            );
            assert!(
                !format!("{token:?}").contains(&text[7..text.len().min(60)]),
                "its secret is shown"
            );
            let _ = token.trust_anchor();
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 4_096 && !said.chars().any(char::is_control), "{said:?}");
        }
    }
});

/// Length, message, checksum, as text.
fn framed(message: &[u8]) -> String {
    let message = &message[..message.len().min(16_000)];
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let digest = Sha256::new().chain_update(b"meshd-token-v1\0").chain_update(message).finalize();
    let bytes = [&length[..], message, &digest[..4]].concat();
    format!("meshd1.{}", BASE64URL_NOPAD.encode(&bytes))
}

/// A token whose grant is the fuzzer's, signed by the mesh's intermediate.
fn granting(payload: &[u8]) -> Vec<u8> {
    let world = world();
    let seed = [0x44; 32];
    let mut grant = wire::TokenGrant::decode(payload).unwrap_or_default();
    grant.token_key = IdentityKey::from_seed(&seed).public().0.to_vec().into();
    grant.intermediate_key = world.intermediate.public().to_vec().into();
    grant.mesh_id = world.mesh_id().0.to_vec().into();
    let payload = grant.encode_to_vec();
    let signer = IdentityKey::from_seed(&world.intermediate.seed());
    let signature = signer.sign(Kind::TokenGrant, world.mesh_id(), &payload).to_vec();
    let token = wire::Token {
        format: 1,
        seed: seed.to_vec().into(),
        grant: Some(wire::SignedGrant { payload: payload.into(), signature: signature.into() }),
        mesh: "prod".into(),
        mesh_id: world.mesh_id().0.to_vec().into(),
        root_key: world.anchors.root_key().to_vec().into(),
        seeds: vec!["192.0.2.1:51800".into()],
    };
    token.encode_to_vec()
}
