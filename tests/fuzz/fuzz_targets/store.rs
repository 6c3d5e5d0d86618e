//! Entries of the record store, and PEM files: what is read was put there, and goes through the same verification as what
//! comes from the network. The first byte: the entry as it is, or with a right header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::fuzzing;
use meshd_core::trust::authenticate_bytes;
use meshd_fuzz::{record::assert_lawful, victim::Victim, world::world};
use meshd_proto::NodeKey;

fuzz_target!(|data: &[u8]| {
    let Some((what, rest)) = data.split_first() else { return };
    if what & 0x40 != 0 {
        if let Ok(once) = fuzzing::recode_pem(rest) {
            assert_eq!(fuzzing::recode_pem(once.as_bytes()), Ok(once));
        }
        return;
    }
    let Some((key, entry)) = rest.split_at_checked(32) else { return };
    let entry = if what & 1 == 0 {
        entry.to_vec()
    } else {
        fuzzing::make_store_entry(&NodeKey::try_from(key).expect("32 bytes"), entry)
    };
    let Ok((key, record)) = fuzzing::store_entry(key, &entry) else {
        assert!(what & 1 == 0, "what was put is not read");
        return;
    };
    assert_eq!(fuzzing::make_store_entry(&key, &record), entry);
    let mut victim = Victim::new();
    let before = victim.node.directory().root_hash();
    match victim.node.restore(&record, victim.now) {
        Ok(()) => {
            let world = world();
            let believed = authenticate_bytes(&record, &world.anchors).expect("it is believed");
            assert_lawful(world, &believed);
        }
        Err(_) => assert_eq!(victim.node.directory().root_hash(), before),
    }
    victim.check();
});
