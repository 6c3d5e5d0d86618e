//! A signer's ledger, as a file of arbitrary bytes, and one entry of it. What is read is written the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::fuzzing;
use meshd_core::trust::{LedgerEntry, Signer};
use meshd_fuzz::world::{NOW, world};

fuzz_target!(|data: &[u8]| {
    let world = world();
    if let Ok(entry) = LedgerEntry::decode(data, world.mesh_id()) {
        let once = entry.encode();
        let again = LedgerEntry::decode(&once, world.mesh_id()).expect("what was written");
        assert_eq!(again, entry);
        assert_eq!(again.encode(), once);
        // Whatever an old ledger says, a signer opens it, or says which entry it does not understand.
        let entries: Vec<&[u8]> =
            world.ledger.iter().map(Vec::as_slice).chain([&once[..], &once[..]]).collect();
        let (anchors, key) = (world.anchors.clone(), &world.members[0].identity.key);
        let seed = world.intermediate.seed();
        let signer = Signer::open(anchors, world.intermediate.der(), &seed, key, entries);
        assert!(signer.expect("a readable ledger").tokens(NOW).count() <= 2);
    }
    if let Ok((entries, whole)) = fuzzing::ledger_file(data) {
        assert!(whole <= data.len());
        assert_eq!(fuzzing::make_ledger_file(&entries), &data[..whole]);
        assert!(entries.iter().all(|entry| entry.len() <= 64 << 10));
    }
});
