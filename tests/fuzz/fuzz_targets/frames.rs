//! Sequences of messages, most of them right in form: records signed by a member, bundles, revocations and times signed
//! by whoever may, exchanges, SWIM, and time that passes. Must hold: see `Victim::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_fuzz::{
    message::{Step, play},
    victim::Victim,
    world::world,
};

fuzz_target!(|steps: Vec<Step>| {
    let mut victim = Victim::new();
    play(world(), &mut victim, &steps);
});
