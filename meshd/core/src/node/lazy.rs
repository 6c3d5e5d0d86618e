//! Announcements that wait: who has shown meanwhile that it holds a record need not be told of it.
//!
//! News runs along the rings, and comes to most members before anybody would have announced it to them. What is left
//! for announcements are those whom it did not reach that way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use meshd_proto::NodeKey;

/// By record, whom it is to be announced to, and when.
#[derive(Debug, Default)]
pub(super) struct Lazy {
    waiting: BTreeMap<NodeKey, Waiting>,
    /// In the order in which they were added, which is that of their times; among them some that were added again since.
    order: VecDeque<(Instant, NodeKey)>,
}

#[derive(Debug)]
struct Waiting {
    at: Instant,
    to: BTreeSet<NodeKey>,
}

impl Lazy {
    /// `record` is to be announced `to` those at `at`, which is no earlier than what was added before.
    pub(super) fn add(&mut self, record: NodeKey, to: BTreeSet<NodeKey>, at: Instant) {
        if to.is_empty() {
            self.waiting.remove(&record);
        } else {
            self.waiting.insert(record, Waiting { at, to });
            self.order.push_back((at, record));
        }
        self.prune();
    }

    /// `member` holds `record`.
    pub(super) fn holds(&mut self, record: &NodeKey, member: &NodeKey) {
        if let Some(waiting) = self.waiting.get_mut(record) {
            waiting.to.remove(member);
            if waiting.to.is_empty() {
                self.waiting.remove(record);
                self.prune();
            }
        }
    }

    /// Nothing is due before what waits in front.
    fn prune(&mut self) {
        while let Some((at, record)) = self.order.front()
            && self.waiting.get(record).is_none_or(|waiting| waiting.at != *at)
        {
            self.order.pop_front();
        }
    }

    /// When [`Lazy::due`] gives something.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at)
    }

    /// What is to be announced at `now`, by whom it is to be announced to.
    pub(super) fn due(&mut self, now: Instant) -> BTreeMap<NodeKey, Vec<NodeKey>> {
        let mut due: BTreeMap<NodeKey, Vec<NodeKey>> = BTreeMap::new();
        while let Some((at, record)) = self.order.front().copied()
            && at <= now
        {
            if let Some(waiting) = self.waiting.remove(&record) {
                waiting.to.iter().for_each(|to| due.entry(*to).or_default().push(record));
            }
            self.prune();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture::key;
    use std::time::Duration;

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    fn members(of: &[u64]) -> BTreeSet<NodeKey> {
        of.iter().map(|i| key(*i)).collect()
    }

    #[test]
    fn who_holds_it_is_not_told() {
        let now = start();
        let mut lazy = Lazy::default();
        lazy.add(key(1), members(&[10, 11]), now + MS);
        lazy.add(key(2), members(&[10]), now + MS * 2);
        lazy.holds(&key(1), &key(10));
        lazy.holds(&key(3), &key(10));
        assert_eq!(lazy.next(), Some(now + MS));
        assert_eq!(lazy.due(now), BTreeMap::new());
        assert_eq!(lazy.due(now + MS), BTreeMap::from([(key(11), vec![key(1)])]));
        assert_eq!(lazy.next(), Some(now + MS * 2));
        lazy.holds(&key(2), &key(10));
        assert_eq!(lazy.next(), None);
        assert_eq!(lazy.due(now + MS * 3), BTreeMap::new());
    }

    #[test]
    fn a_newer_version_of_a_record_takes_the_place_of_the_older_one() {
        let now = start();
        let mut lazy = Lazy::default();
        lazy.add(key(1), members(&[10, 11]), now + MS);
        lazy.add(key(1), members(&[12]), now + MS * 5);
        assert_eq!(lazy.next(), Some(now + MS * 5));
        assert_eq!(lazy.due(now + MS * 4), BTreeMap::new());
        lazy.add(key(2), members(&[12]), now + MS * 6);
        let both = BTreeMap::from([(key(12), vec![key(1), key(2)])]);
        assert_eq!(lazy.due(now + MS * 6), both);
        lazy.add(key(1), BTreeSet::new(), now + MS * 7);
        assert_eq!(lazy.next(), None);
    }
}
