//! The same as `frames` in a large mesh, in which the victim watches its neighbours and believes reports of the others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_fuzz::{
    message::{Step, play},
    victim::Victim,
    world::world,
};

fuzz_target!(|steps: Vec<Step>| {
    let mut victim = Victim::in_a_crowd();
    // Among so few it would watch all.
    assert!(victim.node.directory().len() > 9);
    play(world(), &mut victim, &steps);
});
