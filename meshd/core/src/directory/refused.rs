//! Records that were refused and count as held for a while, so that two nodes that disagree about one
//! do not exchange it for ever.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use crate::limits;

/// What is remembered at most: more than that is forgotten early, which costs an exchange each.
const REMEMBERED: usize = 8_192;

/// Payload hashes of refused records.
///
/// Only a refusal that the owner of the record alone can cause may go in: a payload with somebody else's
/// signature under it has the hash of the genuine record.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    until: BTreeMap<[u8; 8], Instant>,
    order: VecDeque<(Instant, [u8; 8])>,
}

impl Refused {
    /// Remembers a refusal.
    pub(crate) fn insert(&mut self, payload_hash: [u8; 8], now: Instant) {
        self.expire(now);
        let until = now + limits::REFUSED_HELD_FOR;
        if self.until.insert(payload_hash, until).is_none() {
            self.order.push_back((until, payload_hash));
        }
        if self.order.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.until.remove(&oldest);
        }
    }

    /// True when it was refused lately.
    pub(crate) fn contains(&self, payload_hash: &[u8; 8], now: Instant) -> bool {
        self.until.get(payload_hash).is_some_and(|until| *until > now)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((until, hash)) = self.order.front().copied() {
            if until > now {
                break;
            }
            self.order.pop_front();
            match self.until.get(&hash) {
                Some(later) if *later > now => self.order.push_back((*later, hash)),
                _ => {
                    self.until.remove(&hash);
                }
            }
        }
    }
}
