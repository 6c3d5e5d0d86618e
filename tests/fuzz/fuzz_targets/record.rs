//! A signed record of arbitrary bytes, as from the store. What is believed must be one that a member signed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::authenticate_bytes;
use meshd_fuzz::{record::assert_lawful, world::world};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let world = world();
    if let Ok(record) = authenticate_bytes(data, &world.anchors) {
        assert_lawful(world, &record);
        let again = record.signed.encode_to_vec();
        assert_eq!(authenticate_bytes(&again, &world.anchors).as_ref(), Ok(&record));
        let known =
            world.members.iter().any(|member| member.signed.payload == record.signed.payload);
        assert!(known || world.members.iter().any(|member| member.key() == record.key));
    }
});
