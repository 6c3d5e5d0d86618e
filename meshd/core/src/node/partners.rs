//! With whom directories are compared.

use meshd_proto::NodeKey;
use rand::{RngExt, seq::IteratorRandom};

use super::{Node, types::Liveness};
use crate::now::Now;

/// One exchange in so many is with any member: were all of a node's neighbours to lie, it
/// would still hear the truth within minutes.
const FAR: u32 = 32;

impl Node {
    /// Somebody who is there, or may be.
    pub(super) fn partner(&mut self) -> Option<NodeKey> {
        let alive = || self.membership.members(Liveness::Alive);
        let far = self.rng.random_ratio(1, FAR);
        let mut chosen = None;
        if self.sync.is_young() && self.membership.joined().next().is_some() {
            // While all start, the first exchanges follow each other fast.
            chosen = alive().filter(|key| self.paths.is_connected(key)).choose(&mut self.rng);
        } else if !far {
            chosen = self.membership.neighbours().choose(&mut self.rng);
        }
        let chosen = chosen.or_else(|| alive().choose(&mut self.rng));
        let suspects = self.membership.members(Liveness::Suspect);
        chosen.or_else(|| suspects.choose(&mut self.rng))
    }

    /// A member that is down or a seed that nobody is connected to: how partitions heal. False when there
    /// is none.
    pub(super) fn open_with_the_absent(&mut self, now: Now) -> bool {
        let down: Vec<_> = self.membership.members(Liveness::Down).collect();
        let seeds = self.absent_seeds();
        let all = down.len() + seeds.len();
        if all == 0 {
            return false;
        }
        let choice = self.rng.random_range(0..all);
        match down.get(choice) {
            Some(peer) => self.open_exchange(*peer, now),
            None => self.contact(seeds[choice - down.len()], now),
        }
        true
    }

    /// Some members that have not left, whatever is known of their being there; connected ones first.
    pub(super) fn somebody(&mut self, count: usize) -> Vec<NodeKey> {
        let own = self.own.key();
        let mut chosen: Vec<_> = self.paths.connected().copied().filter(|k| *k != own).collect();
        chosen.truncate(count);
        let others = self.directory.iter().filter(|r| !r.left && r.key != own).map(|r| r.key);
        let more = others.filter(|key| !chosen.contains(key)).sample(&mut self.rng, count);
        chosen.extend(more);
        chosen.truncate(count);
        chosen
    }
}
