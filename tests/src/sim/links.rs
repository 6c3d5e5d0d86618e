//! Which hosts reach each other, and how well.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};

/// Loss and delay of every link.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Shortest and longest delay, one way.
    pub delay: (Duration, Duration),
}

impl Default for Weather {
    fn default() -> Self {
        Self { loss: 0.0, delay: (Duration::from_millis(1), Duration::from_millis(5)) }
    }
}

/// Partitions, weather, and the connections between hosts.
#[derive(Debug, Default)]
pub struct Links {
    /// Loss and delay.
    pub weather: Weather,
    islands: Vec<u32>,
    /// Pairs between which nothing passes, the lower number first.
    cut: BTreeSet<(usize, usize)>,
    /// When each connection was last used, both ways.
    connected: Vec<BTreeMap<usize, Instant>>,
}

impl Links {
    /// Everybody on one island.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    /// Puts a host onto an island; hosts reach those of their own island only.
    pub fn set_island(&mut self, host: usize, island: u32) {
        if self.islands.len() <= host {
            self.islands.resize(host + 1, 0);
        }
        self.islands[host] = island;
    }

    /// Nothing passes any more between these two alone.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// True when packets pass between two hosts.
    #[must_use]
    pub fn reach(&self, a: usize, b: usize) -> bool {
        let island = |host: usize| self.islands.get(host).copied().unwrap_or(0);
        island(a) == island(b) && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// True when both ends hold a connection.
    #[must_use]
    pub fn is_connected(&self, a: usize, b: usize) -> bool {
        self.last_used(a, b).is_some()
    }

    /// When something passed over a connection last.
    #[must_use]
    pub fn last_used(&self, a: usize, b: usize) -> Option<Instant> {
        self.connected.get(a)?.get(&b).copied()
    }

    /// A handshake succeeded; false if there was a connection.
    pub fn connect(&mut self, a: usize, b: usize, now: Instant) -> bool {
        let size = self.connected.len().max(a + 1).max(b + 1);
        self.connected.resize_with(size, BTreeMap::new);
        self.connected[b].insert(a, now);
        self.connected[a].insert(b, now).is_none()
    }

    /// Something passes over a connection.
    pub fn touch(&mut self, a: usize, b: usize, now: Instant) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(last) = self.connected.get_mut(one).and_then(|all| all.get_mut(&other)) {
                *last = now;
            }
        }
    }

    /// A connection timed out or was closed; false if there was none.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        let mut remove = |one: usize, other: usize| {
            self.connected.get_mut(one).and_then(|all| all.remove(&other)).is_some()
        };
        remove(b, a) | remove(a, b)
    }

    /// Connections over which nothing passes.
    #[must_use]
    pub fn broken(&self) -> Vec<(usize, usize)> {
        let hosts = 0..self.connected.len();
        let pairs = hosts.flat_map(|a| self.peers(a).into_iter().map(move |b| (a, b)));
        pairs.filter(|(a, b)| a < b && !self.reach(*a, *b)).collect()
    }

    /// Everybody connected to `host`.
    #[must_use]
    pub fn peers(&self, host: usize) -> Vec<usize> {
        self.connected.get(host).into_iter().flatten().map(|(peer, _)| *peer).collect()
    }

    /// The connection of `host` that was not used for the longest time, if it has more than `most`.
    #[must_use]
    pub fn superfluous(&self, host: usize, most: usize) -> Option<usize> {
        let all = self.connected.get(host).filter(|all| all.len() > most)?;
        all.iter().min_by_key(|(_, last)| **last).map(|(peer, _)| *peer)
    }

    /// How long a packet takes.
    pub fn delay(&self, rng: &mut StdRng) -> Duration {
        let (shortest, longest) = self.weather.delay;
        rng.random_range(shortest..=longest)
    }

    /// How long a message takes that is sent again until it arrives: `patience` more for the first time, then twice as
    /// long each.
    pub fn delay_until_it_arrives(&self, patience: Duration, rng: &mut StdRng) -> Duration {
        let mut delay = self.delay(rng);
        let mut patience = patience;
        while self.loses(rng) {
            delay += patience;
            patience *= 2;
        }
        delay
    }

    /// The probe timeout of QUIC (RFC 9002, 6.2) once the round trip is known.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.weather.delay.1 * 2 * 3 + Duration::from_millis(25)
    }

    /// Whether a datagram gets lost.
    pub fn loses(&self, rng: &mut StdRng) -> bool {
        self.weather.loss > 0.0 && rng.random_bool(self.weather.loss)
    }
}
