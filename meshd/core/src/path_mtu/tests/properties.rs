//! Any path, with losses, shrinking and growing.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    super::sizes::{BASE, UNIT},
    world::{Link, World},
};

/// What a path of these sizes ends with: exact, unless padding forbids, as it does for the sixteen bytes above the base,
/// which is 1,280 to 1,295.
fn expected(carries: u32, largest: u32) -> std::ops::RangeInclusive<u32> {
    let carries = carries.min(largest);
    let exact = carries >= BASE + 2 * UNIT;
    if exact { carries..=carries } else { carries.saturating_sub(15).max(576)..=carries }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_path_is_measured_with_few_probes(
        carries in 600_u32..9_000,
        largest in prop_oneof![1_380_u32..1_460, 8_000_u32..8_950],
        v6 in any::<bool>(),
        rtt in 1_u64..150,
        seed in any::<u8>(),
    ) {
        let link = Link { largest, v6, rtt: Duration::from_millis(rtt), ..Link::v4(carries) };
        let mut world = World::new([(super::world::PEER, link)], seed);
        let took = world.until(60, World::is_settled);
        prop_assert!(expected(carries, largest).contains(&world.mtu()), "{} in {took} s", world.mtu());
        prop_assert!(world.probes.len() <= 80, "{} probes", world.probes.len());
    }

    #[test]
    fn a_path_with_losses_is_never_taken_for_more_than_it_is(
        carries in 1_300_u32..1_440,
        then in 1_300_u32..1_440,
        loss in 0_u32..15,
        seed in any::<u8>(),
    ) {
        let link = Link { traffic: 100_000, loss, ..Link::v4(carries) };
        let mut world = World::new([(super::world::PEER, link)], seed);
        world.until(90, World::is_settled);
        prop_assert!(world.mtu() <= carries);
        world.link().carries = then;
        world.run(Duration::from_secs(60));
        world.until(90, World::is_settled);
        prop_assert!(world.mtu() <= then, "{} over {then}", world.mtu());
        world.link().loss = 0;
        world.run(Duration::from_secs(1_500));
        world.until(90, World::is_settled);
        // What grew by less than padding tells apart is not looked for.
        prop_assert!(world.mtu() <= then && world.mtu() + 16 > then, "{} of {then}", world.mtu());
    }
}

#[test]
fn a_path_right_above_the_base_is_measured_within_padding() {
    // The base is 1,285 here, so that the largest can be probed exactly.
    for carries in 1_281..1_330 {
        let link = Link { largest: 8_126, rtt: Duration::from_millis(1), ..Link::v4(carries) };
        let mut world = World::new([(super::world::PEER, link)], 0);
        world.until(60, World::is_settled);
        assert!(expected(carries, 8_126).contains(&world.mtu()), "{} of {carries}", world.mtu());
    }
}
