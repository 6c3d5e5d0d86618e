//! Who watches whom: four rings on which the hash of a member's key is its place.
//!
//! Every member computes the same from the members that it has admitted. A member watches whoever is next to
//! it on each ring, on both sides: eight others or so, whatever the size of the mesh. Where those are down it
//! watches whoever is behind them, so that the mesh stays in one piece whoever dies. Among so few that eight others are
//! all, all watch all.

use std::collections::{BTreeMap, BTreeSet};

use meshd_proto::{NodeHash, NodeKey};
use sha2::{Digest as _, Sha256};

/// Rings: with four the neighbours of all make one piece, also when half of them are gone.
pub(super) const RINGS: usize = 4;
/// In a mesh of so many or fewer everybody is everybody's neighbour.
const ALL: usize = 2 * RINGS + 1;
/// So many places away on some ring a member's word about another counts: views differ for a moment, and those
/// that are nearer may be down.
pub(super) const REACH: usize = 4;
/// Members that are down are passed over up to this many; more than that are another mesh than the one in which
/// this node was.
const STEPS: usize = 256;

type Place = (u64, NodeHash);

/// The places of all members, this node's among them.
#[derive(Debug, Default)]
pub(super) struct Rings {
    rings: [BTreeSet<Place>; RINGS],
    places: BTreeMap<NodeHash, [u64; RINGS]>,
}

/// Whom a member watches.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Watch {
    /// The next that are not down.
    pub(super) near: BTreeSet<NodeHash>,
    /// One of them on each ring, always on the same side; in the order of the rings, each once.
    pub(super) ahead: Vec<NodeHash>,
    /// Those that are down and in reach, on the way to them.
    pub(super) passed: BTreeSet<NodeHash>,
}

/// The places of a member: SHA-256 of a constant and its key, in four parts.
fn places(key: &NodeKey) -> [u64; RINGS] {
    let hash: [u8; 32] =
        Sha256::new_with_prefix(b"meshd-rings-v1\0").chain_update(key.0).finalize().into();
    let mut places = [0; RINGS];
    for (place, bytes) in places.iter_mut().zip(hash.as_chunks::<8>().0) {
        *place = u64::from_be_bytes(*bytes);
    }
    places
}

impl Rings {
    pub(super) fn insert(&mut self, key: &NodeKey) -> bool {
        let node = key.hash();
        if self.places.contains_key(&node) {
            return false;
        }
        let places = places(key);
        for (ring, place) in self.rings.iter_mut().zip(places) {
            ring.insert((place, node));
        }
        self.places.insert(node, places);
        true
    }

    pub(super) fn remove(&mut self, node: &NodeHash) -> bool {
        let Some(places) = self.places.remove(node) else { return false };
        for (ring, place) in self.rings.iter_mut().zip(places) {
            ring.remove(&(place, *node));
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The others on both sides of `node` on each ring, each side from the nearest on.
    fn sides(&self, node: &NodeHash) -> impl Iterator<Item = Vec<NodeHash>> {
        self.sides_up_to(node, REACH)
    }

    fn sides_up_to(&self, node: &NodeHash, steps: usize) -> impl Iterator<Item = Vec<NodeHash>> {
        let places = self.places.get(node).copied();
        let rings = places.into_iter().flat_map(|places| self.rings.iter().zip(places));
        let own = *node;
        rings.flat_map(move |(ring, place)| {
            let own = (place, own);
            let steps = steps.min(ring.len().saturating_sub(1));
            let up = ring.range(own..).chain(ring.range(..own)).skip(1).take(steps);
            let down = ring.range(..own).rev().chain(ring.range(own..).rev()).take(steps);
            [up.map(|place| place.1).collect(), down.map(|place| place.1).collect()]
        })
    }

    /// Whose word about `node` counts, some more than once; the same as those about whom its own does.
    pub(super) fn watchers(&self, node: &NodeHash) -> impl Iterator<Item = NodeHash> {
        self.sides(node).flatten()
    }

    /// Whether `watcher`'s word about `watched` counts. The same both ways round.
    pub(super) fn may_watch(&self, watcher: &NodeHash, watched: &NodeHash) -> bool {
        self.sides(watched).any(|side| side.contains(watcher))
    }

    /// Whom `node` watches, if those are down of whom `is_down` says so.
    pub(super) fn watch(&self, node: &NodeHash, is_down: impl Fn(&NodeHash) -> bool) -> Watch {
        let mut watch = Watch::default();
        let mut steps = REACH;
        // Nearly always somebody in reach is there.
        loop {
            let mut missed = false;
            for (number, side) in self.sides_up_to(node, steps).enumerate() {
                match side.iter().position(|other| !is_down(other)) {
                    Some(place) => {
                        watch.near.insert(side[place]);
                        // Up and down take turns.
                        if number % 2 == 0 && !watch.ahead.contains(&side[place]) {
                            watch.ahead.push(side[place]);
                        }
                        watch.passed.extend(&side[..place.min(REACH)]);
                    }
                    None => {
                        missed = true;
                        watch.passed.extend(&side[..side.len().min(REACH)]);
                    }
                }
            }
            if !missed || steps >= STEPS || steps >= self.len() {
                break;
            }
            steps *= 4;
        }
        if self.len() <= ALL {
            let others = self.places.keys().filter(|other| *other != node);
            (watch.passed, watch.near) = others.partition(|other| is_down(other));
        }
        watch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node::fixture;

    fn rings(members: impl IntoIterator<Item = u64>) -> Rings {
        let mut rings = Rings::default();
        for i in members {
            rings.insert(&fixture::key(i));
        }
        rings
    }

    fn node(i: u64) -> NodeHash {
        fixture::key(i).hash()
    }

    /// How many are reached from the first by going from neighbour to neighbour.
    fn reached(rings: &Rings, dead: &BTreeSet<NodeHash>, first: NodeHash) -> usize {
        let mut seen = BTreeSet::from([first]);
        let mut open = vec![first];
        while let Some(one) = open.pop() {
            for next in rings.watch(&one, |other| dead.contains(other)).near {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen.len()
    }

    #[test]
    fn everybody_has_eight_neighbours_or_a_few_less_and_all_are_one_piece() {
        for size in [2, 3, 5, 65, 300, 1_000] {
            let rings = rings(0..size);
            let mut all = 0;
            for i in 0..size {
                let near = rings.watch(&node(i), |_| false).near;
                assert!((1..=2 * RINGS).contains(&near.len()), "{size}: {}", near.len());
                assert!(near.iter().all(|other| rings.may_watch(&node(i), other)));
                all += near.len();
            }
            if size > 64 {
                assert!(all as f64 / size as f64 > 7.5, "{size}: {all}");
            }
            assert_eq!(reached(&rings, &BTreeSet::new(), node(0)), size as usize);
        }
    }

    #[test]
    fn when_half_die_the_rest_is_one_piece_and_every_dead_one_has_three_who_may_say_so() {
        let rings = rings(0..400);
        let dead: BTreeSet<_> = (0..400).filter(|i| i % 2 == 1).map(node).collect();
        assert_eq!(reached(&rings, &dead, node(0)), 200);
        for one in &dead {
            let watchers: BTreeSet<_> = rings.watchers(one).collect();
            let alive = watchers.difference(&dead).count();
            assert!(alive >= 3, "{alive}");
        }
    }

    #[test]
    fn a_few_of_very_many_still_find_each_other() {
        let rings = rings(0..500);
        let dead: BTreeSet<_> = (4..500).map(node).collect();
        for i in 0..4 {
            let watch = rings.watch(&node(i), |other| dead.contains(other));
            assert!(!watch.near.is_empty());
            assert!(watch.passed.len() <= 2 * RINGS * REACH);
        }
    }

    proptest! {
        #[test]
        fn rings_do_not_depend_on_the_order_and_watching_is_mutual(
            members in proptest::collection::btree_set(0_u64..500, 2..60),
            gone in proptest::collection::vec(0_u64..500, 0..30),
        ) {
            let (mut there, mut back) = (rings(members.clone()), rings(members.iter().rev().copied()));
            for i in &gone {
                there.remove(&node(*i));
            }
            for i in gone.iter().rev() {
                back.remove(&node(*i));
            }
            let left: Vec<_> = members.iter().filter(|i| !gone.contains(i)).copied().collect();
            prop_assert_eq!(there.len(), left.len());
            for a in &left {
                prop_assert_eq!(
                    there.watch(&node(*a), |_| false),
                    back.watch(&node(*a), |_| false)
                );
                for b in &left {
                    prop_assert_eq!(
                        there.may_watch(&node(*a), &node(*b)),
                        there.may_watch(&node(*b), &node(*a))
                    );
                    let near = there.watch(&node(*a), |_| false).near.contains(&node(*b));
                    prop_assert!(!near || there.watch(&node(*b), |_| false).near.contains(&node(*a)));
                }
                prop_assert!(!there.may_watch(&node(*a), &node(*a)));
                prop_assert!(there.watchers(&node(*a)).all(|other| other != node(*a)));
            }
        }
    }
}
