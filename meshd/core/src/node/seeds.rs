//! Seeds: addresses to try while no member answers, for ever, ever less often.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

use super::{
    Node,
    sync::jitter,
    types::{Liveness, Output},
};
use crate::now::Now;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Seeds that are kept.
const SEEDS: usize = 64;

#[derive(Debug)]
struct Seed {
    addr: SocketAddr,
    pause: Duration,
    next: Instant,
    /// Who answered there last.
    key: Option<NodeKey>,
    /// Contacted, not answered yet.
    contacted: bool,
}

/// The seeds.
#[derive(Debug, Default)]
pub(super) struct Seeds {
    seeds: Vec<Seed>,
    /// A list was given, be it empty: names take their time to be looked up.
    given: bool,
}

impl Seeds {
    /// Takes over a newly resolved list; what is known of an address stays.
    pub(super) fn set(&mut self, addrs: Vec<SocketAddr>, now: Instant) {
        self.given = true;
        let mut old = std::mem::take(&mut self.seeds);
        for addr in addrs.into_iter().take(SEEDS) {
            if self.seeds.iter().any(|seed| seed.addr == addr) {
                continue;
            }
            let seed = match old.iter().position(|seed| seed.addr == addr) {
                Some(place) => old.swap_remove(place),
                None => Seed { addr, pause: PAUSE.0, next: now, key: None, contacted: false },
            };
            self.seeds.push(seed);
        }
    }

    /// `key` answered at `addr`. True if this node had tried the address as a seed.
    pub(super) fn answered(&mut self, addr: SocketAddr, key: NodeKey) -> bool {
        let Some(seed) = self.seeds.iter_mut().find(|seed| seed.addr == addr) else { return false };
        seed.key = Some(key);
        seed.pause = PAUSE.0;
        std::mem::take(&mut seed.contacted)
    }

    /// True if somebody other than `own` may be behind a seed, as long as none was given too.
    pub(super) fn lead_elsewhere(&self, own: &NodeKey) -> bool {
        !self.given || self.seeds.iter().any(|seed| seed.key.as_ref() != Some(own))
    }
}

impl Node {
    fn needs_seeds(&self) -> bool {
        !self.own.has_left() && (!self.sync.completed() || self.paths.is_isolated())
    }

    /// Addresses of seeds that nobody known to be connected is behind.
    pub(super) fn absent_seeds(&self) -> Vec<SocketAddr> {
        let own = self.own.key();
        // Whoever is behind a seed is somebody's neighbour; of this node perhaps not, and then no connection to it is kept.
        let there = |key: &NodeKey| {
            self.membership
                .liveness(key)
                .is_some_and(|(liveness, _)| matches!(liveness, Liveness::Alive | Liveness::Left))
        };
        let absent = |key: &NodeKey| *key != own && !self.paths.is_connected(key) && !there(key);
        let seeds = self.seeds.seeds.iter();
        seeds.filter(|s| s.key.as_ref().is_none_or(absent)).map(|s| s.addr).collect()
    }

    /// Tries an address.
    pub(super) fn contact(&mut self, addr: SocketAddr, now: Now) {
        if let Some(seed) = self.seeds.seeds.iter_mut().find(|seed| seed.addr == addr) {
            seed.contacted = true;
            seed.next = now.mono + jitter(seed.pause, &mut self.rng);
            seed.pause = (seed.pause * 2).min(PAUSE.1);
        }
        self.outputs.push_back(Output::Contact { addr });
    }

    /// Tries the seeds that are due, if any are needed.
    pub(super) fn handle_seed_timeout(&mut self, now: Now) {
        if !self.needs_seeds() {
            return;
        }
        for addr in self.absent_seeds() {
            if self.seeds.seeds.iter().any(|seed| seed.addr == addr && seed.next <= now.mono) {
                self.contact(addr, now);
            }
        }
    }

    /// When a seed is due.
    pub(super) fn next_seed(&self) -> Option<Instant> {
        if !self.needs_seeds() {
            return None;
        }
        let absent = self.absent_seeds();
        self.seeds.seeds.iter().filter(|s| absent.contains(&s.addr)).map(|s| s.next).min()
    }
}
