//! A large mesh, halved and healed, in virtual time.

use std::time::Duration;

use meshd_tests::sim::{Weather, World, prefix};

#[test]
fn three_hundred_nodes_agree_within_ten_seconds_after_a_partition() {
    const COUNT: usize = 300;
    let weather = Weather { loss: 0.05, ..Weather::default() };
    let mut world = World::new(1, COUNT, weather);
    let seed = world.hosts[0].draft.endpoints.clone();
    (1..COUNT).for_each(|host| world.hosts[host].seeds = seed.clone());
    (0..COUNT).for_each(|host| world.start(host));
    let took = world.run_until("all know all", Duration::from_secs(10), |w| {
        w.all_know(COUNT) && w.is_converged()
    });
    println!("joined after {took:?}: {:?}", world.report());
    world.run(Duration::from_secs(5));
    println!("settled: {:?}", world.report());

    world.partition(|host| u32::from(host % 2 == 1));
    for round in 1..=6 {
        world.run(Duration::from_secs(10));
        for host in (0..COUNT).filter(|host| host % 6 == usize::from(round) % 6) {
            world.update(host, |draft| draft.prefixes = vec![prefix(host, round)]);
        }
    }
    world.run(Duration::from_secs(60));
    assert!(!world.is_converged() && world.all_know(COUNT), "the halves must differ, and know all");
    println!("apart: {:?}", world.report());

    world.heal();
    let took =
        world.run_until("one root hash everywhere", Duration::from_secs(10), World::is_converged);
    println!("healed after {took:?}: {:?}", world.report());
}
