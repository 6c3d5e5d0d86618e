//! Waiting for something, and how long it took.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

use super::world::World;

/// Waits for a member's record.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) key: NodeKey,
    /// For one that is newer than this.
    pub(super) after: u64,
    pub(super) arrivals: BTreeMap<usize, Instant>,
}

impl World {
    /// Changes what a host says of itself, runs until the record is at all others that run, and gives how long it took to
    /// each.
    ///
    /// # Panics
    /// If it is not within `limit`, or the host does not run.
    pub fn spread(
        &mut self,
        host: usize,
        limit: Duration,
        change: impl FnOnce(&mut Self),
    ) -> Vec<Duration> {
        let begin = self.now.mono;
        let key = self.hosts[host].key();
        let before = self.floors[host].get(&key).copied().unwrap_or_default();
        self.watched = Some(Watched { key, after: before, arrivals: BTreeMap::new() });
        change(self);
        let others = self.nodes().filter(|(i, _)| *i != host).count();
        self.run_until("the record is everywhere", limit, |world| {
            world.watched.as_ref().is_some_and(|watched| {
                watched.arrivals.keys().filter(|at| **at != host).count() >= others
            })
        });
        let arrivals = self.watched.take().map(|watched| watched.arrivals).unwrap_or_default();
        arrivals.into_iter().filter(|(at, _)| *at != host).map(|(_, at)| at - begin).collect()
    }

    /// Runs until `done`, looking every 20 ms; gives how long it took.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    pub fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let begin = self.now.mono;
        while !done(self) {
            assert!(
                self.now.mono - begin < limit,
                "seed {}: not within {limit:?} (virtual): {what}",
                self.seed
            );
            self.run(Duration::from_millis(20));
        }
        self.now.mono - begin
    }

    /// Nodes that run, by host.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, &meshd_core::node::Node)> {
        self.hosts.iter().enumerate().filter_map(|(i, host)| Some((i, host.node.as_ref()?)))
    }

    /// True when all running nodes hold the same records.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        let mut roots = self.nodes().map(|(_, node)| node.directory().root_hash());
        let first = roots.next();
        roots.all(|root| Some(root) == first)
    }

    /// True when every running node knows `count` members, itself among them.
    #[must_use]
    pub fn all_know(&self, count: usize) -> bool {
        self.nodes().all(|(_, node)| node.directory().len() == count)
    }
}
