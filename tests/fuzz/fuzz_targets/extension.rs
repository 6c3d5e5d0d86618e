//! The private extension of a certificate, the address blocks beside it, and the terms of a token: what is read is written
//! the same, and equal sets of prefixes are equal bytes.
#![no_main]

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use meshd_core::{address, trust::fuzzing};
use meshd_fuzz::{record::Prefix, world::world};

fuzz_target!(|input: (u8, &[u8], Vec<Prefix>)| {
    let (what, bytes, prefixes) = input;
    let mesh = world().mesh_id();
    let recode = |bytes: &[u8]| {
        if what & 1 == 0 {
            fuzzing::recode_extension(bytes)
        } else {
            fuzzing::recode_token_terms(bytes, mesh)
        }
    };
    if let Ok(once) = recode(bytes) {
        assert!(once.len() <= bytes.len() + 64, "{} bytes of {}", once.len(), bytes.len());
        assert_eq!(recode(&once).as_ref(), Ok(&once));
    }
    let prefixes: Vec<IpNet> = prefixes
        .iter()
        .take(300)
        .filter_map(|prefix| address::prefix_from_wire(&prefix.to_wire()).ok())
        .collect();
    let blocks = fuzzing::address_blocks(&prefixes);
    let mut other = prefixes.clone();
    other.reverse();
    other.extend(
        prefixes.iter().filter_map(|prefix| prefix.subnets(prefix.prefix_len() + 1).ok()).flatten(),
    );
    assert_eq!(fuzzing::address_blocks(&other), blocks);
    assert!(blocks.len() <= 64 + 48 * prefixes.len());
});
