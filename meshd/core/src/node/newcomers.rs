//! Records of members that are new and still learn who else there is: told to others a moment later.
//!
//! Were a newcomer's record told at once, all others would send it their first handshakes before it knows them, and
//! WireGuard sends no second one for five seconds; and in the meantime they would keep it from what it has to verify, where
//! they share its processors.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

/// How long a newcomer's record waits at most: a large directory takes longer to verify, and others are to know of it.
const WAIT: Duration = Duration::from_millis(300);
/// Newcomers at once, from whom more on nobody is waited for.
const AT_ONCE: usize = 1_000;

/// Those who compare directories with this node for the first time.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    until: BTreeMap<NodeKey, Instant>,
    /// Their records that came meanwhile, and who holds each.
    records: BTreeMap<NodeKey, BTreeSet<NodeKey>>,
}

impl Newcomers {
    /// `key`, of whom no record is held, has begun to compare.
    pub(super) fn begin(&mut self, key: NodeKey, now: Instant) {
        if self.until.len() < AT_ONCE {
            self.until.entry(key).or_insert(now + WAIT);
        }
    }

    /// Keeps the record of `key` back if that is one of them; gives `holders` back otherwise.
    pub(super) fn keep(
        &mut self,
        key: NodeKey,
        holders: BTreeSet<NodeKey>,
    ) -> Option<BTreeSet<NodeKey>> {
        if !self.until.contains_key(&key) {
            return Some(holders);
        }
        self.records.insert(key, holders);
        None
    }

    /// `key` has compared; who holds its record, if that was kept back.
    pub(super) fn end(&mut self, key: &NodeKey) -> Option<BTreeSet<NodeKey>> {
        self.until.remove(key);
        self.records.remove(key)
    }

    /// Those that are waited for no more.
    pub(super) fn late(&self, now: Instant) -> Vec<NodeKey> {
        let late = self.until.iter().filter(|(_, until)| **until <= now);
        late.map(|(key, _)| *key).collect()
    }

    /// When [`Newcomers::late`] gives somebody.
    pub(super) fn next(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture::key;

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_record_waits_until_its_owner_has_compared_and_not_for_long() {
        let now = start();
        let of = |i| BTreeSet::from([key(i)]);
        let mut newcomers = Newcomers::default();
        assert_eq!(newcomers.keep(key(1), of(1)), Some(of(1)));
        newcomers.begin(key(1), now);
        newcomers.begin(key(1), now + WAIT / 2);
        newcomers.begin(key(2), now + WAIT / 2);
        assert_eq!(newcomers.keep(key(1), of(1)), None);
        assert_eq!(newcomers.next(), Some(now + WAIT));
        assert_eq!(newcomers.late(now + WAIT), [key(1)]);
        assert_eq!(newcomers.end(&key(1)), Some(of(1)));
        assert_eq!(newcomers.keep(key(1), of(1)), Some(of(1)));
        assert_eq!(newcomers.end(&key(2)), None);
        assert_eq!(newcomers.next(), None);
    }

    #[test]
    fn a_crowd_of_them_is_not_waited_for() {
        let now = start();
        let mut newcomers = Newcomers::default();
        (0..=AT_ONCE as u64).for_each(|i| newcomers.begin(key(i), now));
        assert_eq!(newcomers.late(now + WAIT).len(), AT_ONCE);
    }
}
