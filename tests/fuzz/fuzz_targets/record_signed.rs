//! A record with changes, correctly signed by a member: whatever it says, what is believed is within that member's rights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{AdmitContext, admit, authenticate, authenticate_bytes};
use meshd_fuzz::{
    record::{Change, assert_lawful, signed},
    world::{NOW, world},
};
use prost::Message;

fuzz_target!(|changes: Vec<Change>| {
    let world = world();
    let wire = signed(world, &changes);
    match authenticate(&wire, &world.anchors) {
        Ok(record) => {
            assert_eq!(record.key, world.liar().key(), "another's record");
            assert_lawful(world, &record);
            let again = record.signed.encode_to_vec();
            assert_eq!(authenticate_bytes(&again, &world.anchors).as_ref(), Ok(&record));
            let anchors = &world.anchors;
            let context =
                AdmitContext { anchors, now: NOW, held: None, forget_after_seconds: 7 * 24 * 3600 };
            if admit(&record, &context).is_ok() {
                assert!(record.issued_at.since(NOW) <= 600, "from the future");
            }
        }
        Err(refusal) => {
            assert!(!changes.is_empty(), "an honest record is refused: {refusal}");
            assert!(!refusal.detail.chars().any(char::is_control), "{:?}", refusal.detail);
            assert!(refusal.detail.len() < 2_048);
        }
    }
});
