//! How much one peer may ask of this node in a time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

/// A token bucket. Whole tokens; time is an argument.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    capacity: u64,
    per_second: u64,
    /// Thousandths of a token.
    level: u64,
    at: Instant,
}

impl Bucket {
    /// A full bucket of `capacity` tokens that gains `per_second`.
    pub(super) fn new(capacity: u64, per_second: u64, now: Instant) -> Self {
        Self { capacity, per_second, level: capacity * 1000, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            let gained = millis.saturating_mul(self.per_second);
            self.level = self.level.saturating_add(gained).min(self.capacity * 1000);
            self.at = now;
        }
    }

    /// Takes `tokens` if there are as many.
    pub(super) fn take(&mut self, tokens: u64, now: Instant) -> bool {
        self.refill(now);
        match self.level.checked_sub(tokens.saturating_mul(1000)) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }

    /// Takes `tokens`, or all that there are.
    pub(super) fn drain(&mut self, tokens: u64, now: Instant) {
        self.refill(now);
        self.level = self.level.saturating_sub(tokens.saturating_mul(1000));
    }

    /// When there will be `tokens`, if nobody takes any before. Always later than `now`.
    pub(super) fn when(&self, tokens: u64, now: Instant) -> Instant {
        let lacking = tokens.saturating_mul(1000).saturating_sub(self.level);
        let millis = lacking.div_ceil(self.per_second.max(1)).max(1);
        now + Duration::from_millis(millis)
    }

    pub(super) fn is_full(&self, now: Instant) -> bool {
        let mut copy = *self;
        copy.refill(now);
        copy.level >= self.capacity * 1000
    }
}

/// Peers whose budgets are kept at most. More than that can only be members with certificates.
const PEERS: usize = 4_096;

/// What one peer may still cause.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Datagrams to be looked at.
    pub(super) datagrams: Bucket,
    /// Work: frames, verifications, digests; a refusal costs ten times.
    pub(super) work: Bucket,
    /// Bytes of records sent because it asked.
    pub(super) bytes: Bucket,
}

/// The budgets of all peers.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    peers: BTreeMap<NodeKey, Budget>,
}

impl Budgets {
    /// The budget of one peer.
    pub(super) fn of(&mut self, key: &NodeKey, now: Instant) -> &mut Budget {
        if self.peers.len() >= PEERS && !self.peers.contains_key(key) {
            self.peers.retain(|_, b| !(b.work.is_full(now) && b.bytes.is_full(now)));
            if self.peers.len() >= PEERS {
                self.peers.pop_first();
            }
        }
        self.peers.entry(*key).or_insert_with(|| Budget {
            datagrams: Bucket::new(2_000, 500, now),
            work: Bucket::new(10_000, 2_000, now),
            bytes: Bucket::new(16 << 20, 2 << 20, now),
        })
    }
}

/// How often members change their records: honest ones at most once a second.
#[derive(Debug, Default)]
pub(super) struct Updates {
    members: BTreeMap<NodeKey, Bucket>,
}

/// Updates of one member that may come at once: those of a start, delayed on their way.
const UPDATES_AT_ONCE: u64 = 10;

impl Updates {
    /// Whether another update of `key` is taken now.
    pub(super) fn allow(&mut self, key: NodeKey, now: Instant) -> bool {
        let new = || Bucket::new(UPDATES_AT_ONCE, 1, now);
        self.members.entry(key).or_insert_with(new).take(1, now)
    }

    /// Forgets those that have not changed for a while.
    pub(super) fn expire(&mut self, now: Instant) {
        self.members.retain(|_, bucket| !bucket.is_full(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture::Origin;

    #[test]
    fn a_bucket_gives_what_it_holds_and_refills() {
        let start = Origin::default().now().mono;
        let mut bucket = Bucket::new(2, 10, start);
        assert!(bucket.take(1, start) && bucket.take(1, start) && !bucket.take(1, start));
        let later = bucket.when(1, start);
        assert_eq!(later, start + Duration::from_millis(100));
        assert!(bucket.take(1, later) && !bucket.take(1, later));
        assert!(bucket.is_full(start + Duration::from_secs(10)));
    }

    #[test]
    fn many_peers_do_not_pile_up() {
        let start = Origin::default().now().mono;
        let mut budgets = Budgets::default();
        for i in 0..20_000_u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&i.to_be_bytes());
            budgets.of(&NodeKey(key), start).work.drain(1, start);
        }
        assert!(budgets.peers.len() <= PEERS);
    }
}
