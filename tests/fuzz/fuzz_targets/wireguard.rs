//! What a userspace WireGuard answers on its control socket: read to its end or refused, never more peers than lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::fuzzing;

fuzz_target!(|text: &str| {
    if let Ok(peers) = fuzzing::wireguard_answer(text) {
        assert!(peers <= text.matches("public_key=").count());
    }
});
