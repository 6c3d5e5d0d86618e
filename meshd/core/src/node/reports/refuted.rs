//! Watchers whose word about a member was wrong a moment ago: the member answered it by its next generation.
//!
//! Without this three that lie together could say the same of each generation, and the member, which signs no more than
//! one in ten seconds, would be down nearly all the time. An honest watcher loses its word for a minute when
//! its link failed for moments; a longer cut takes it from nobody, or the next one would not be noticed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

use crate::limits;

/// Who was answered after less than this was wrong: as long as it may take to sign the next generation, and some more for
/// it to spread.
const AT_ONCE: Duration = limits::SWIM_RENEW_INTERVAL.saturating_add(Duration::from_secs(3));
/// So long its word about that member does not count.
const UNHEARD: Duration = Duration::from_secs(60);

/// By member and watcher, until when. No more than reports were held.
#[derive(Debug, Default)]
pub(super) struct Refuted(BTreeMap<NodeKey, BTreeMap<NodeKey, Instant>>);

impl Refuted {
    /// `watched` answered a report of `watcher` that came at `said`.
    pub(super) fn note(&mut self, watched: NodeKey, watcher: NodeKey, said: Instant, now: Instant) {
        if now.saturating_duration_since(said) < AT_ONCE {
            self.0.entry(watched).or_default().insert(watcher, now + UNHEARD);
        }
    }

    /// Whether `watcher`'s word about `watched` counts.
    pub(super) fn counts(&self, watched: &NodeKey, watcher: &NodeKey) -> bool {
        self.0.get(watched).is_none_or(|all| !all.contains_key(watcher))
    }

    /// Ends what is over; gives the members of whom more may count again.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<NodeKey> {
        let mut more = Vec::new();
        self.0.retain(|watched, all| {
            let before = all.len();
            all.retain(|_, until| *until > now);
            if all.len() < before {
                more.push(*watched);
            }
            !all.is_empty()
        });
        more
    }

    /// Forgets a member that is gone.
    pub(super) fn forget(&mut self, key: &NodeKey) {
        self.0.remove(key);
    }

    /// When [`Self::ended`] has something.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.0.values().flat_map(BTreeMap::values).min().copied()
    }
}
