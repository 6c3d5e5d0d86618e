//! Datagrams of arbitrary bytes from a member, through the SWIM filter; each byte 0xff 0x00 0xff parts two. Nobody may be
//! lost by them, and no generation or record come of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::node::Liveness;
use meshd_fuzz::{
    victim::Victim,
    world::{OTHER, world},
};

const PART: [u8; 3] = [0xff, 0x00, 0xff];

fuzz_target!(|data: &[u8]| {
    let world = world();
    let mut victim = Victim::new();
    let records = victim.node.directory().root_hash();
    let mut rest = data;
    for _ in 0..16 {
        let end = rest.windows(PART.len()).position(|window| window == PART);
        let (datagram, more) = rest.split_at(end.unwrap_or(rest.len()));
        victim.node.handle_datagram(world.liar().key(), datagram, victim.now);
        victim.check();
        match more.get(PART.len()..) {
            Some(more) => rest = more,
            None => break,
        }
    }
    let other = victim.node.liveness(&world.members[OTHER].key()).map(|(liveness, _)| liveness);
    assert!(other != Some(Liveness::Down) && other != Some(Liveness::Left), "down by hearsay");
    assert!(victim.node.directory().root_hash() == records || victim.node.counters().published > 1);
    victim.wait(std::time::Duration::from_millis(500));
});
