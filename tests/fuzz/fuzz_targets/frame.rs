//! One frame of arbitrary bytes from a member. Must hold: see `Victim::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_fuzz::{victim::Victim, world::world};

fuzz_target!(|data: &[u8]| {
    let mut victim = Victim::new();
    victim.node.handle_frame(world().liar().key(), data, victim.now);
    victim.check();
    victim.wait(std::time::Duration::from_secs(1));
});
