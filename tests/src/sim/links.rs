//! Which hosts reach each other, and how well.

use std::time::Duration;

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
    /// Both ways.
    connected: Vec<Vec<bool>>,
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

    /// True when packets pass between two hosts.
    #[must_use]
    pub fn reach(&self, a: usize, b: usize) -> bool {
        let island = |host: usize| self.islands.get(host).copied().unwrap_or(0);
        island(a) == island(b)
    }

    /// True when both ends hold a connection.
    #[must_use]
    pub fn is_connected(&self, a: usize, b: usize) -> bool {
        self.connected.get(a).and_then(|row| row.get(b)).copied().unwrap_or(false)
    }

    /// A handshake succeeded; false if there was a connection.
    pub fn connect(&mut self, a: usize, b: usize) -> bool {
        !self.set(a, b, true)
    }

    /// A connection timed out or was closed; false if there was none.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        self.set(a, b, false)
    }

    fn set(&mut self, a: usize, b: usize, connected: bool) -> bool {
        let size = self.connected.len().max(a + 1).max(b + 1);
        self.connected.resize(size, Vec::new());
        let mut was = false;
        for (one, other) in [(a, b), (b, a)] {
            let row = &mut self.connected[one];
            row.resize(row.len().max(size), false);
            was = std::mem::replace(&mut row[other], connected);
        }
        was
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
        let row = self.connected.get(host).into_iter().flatten();
        row.enumerate().filter(|(_, connected)| **connected).map(|(peer, _)| peer).collect()
    }

    /// How long a packet takes.
    pub fn delay(&self, rng: &mut StdRng) -> Duration {
        let (shortest, longest) = self.weather.delay;
        rng.random_range(shortest..=longest)
    }

    /// Whether a datagram gets lost.
    pub fn loses(&self, rng: &mut StdRng) -> bool {
        self.weather.loss > 0.0 && rng.random_bool(self.weather.loss)
    }
}
