//! Watchers whose word about a member was wrong a moment ago: the member answered it by its next generation.
//!
//! Without this three that lie together could say the same of each generation, and the member, which signs no more than
//! one in ten seconds, would be down nearly all the time. An honest watcher loses its word for a minute when
//! its link failed for moments; a longer cut takes it from nobody, or the next one would not be noticed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

use crate::limits;

/// Who was answered after less than this was wrong: as long as it may take to sign the next generation, and some more for
/// it to spread.
const AT_ONCE: Duration = limits::SWIM_RENEW_INTERVAL.saturating_add(Duration::from_secs(3));
/// So long its word about that member does not count.
const UNHEARD: Duration = Duration::from_secs(60);

/// Who is not heard about whom, until when. No more than reports were held.
#[derive(Debug, Default)]
pub(super) struct Refuted {
    /// By member and watcher.
    until: BTreeMap<NodeKey, BTreeMap<NodeKey, Instant>>,
    /// The same in the order in which they end, which is the one in which they began.
    ends: VecDeque<(Instant, NodeKey, NodeKey)>,
}

impl Refuted {
    /// `watched` answered a report of `watcher` that came at `said`.
    pub(super) fn note(&mut self, watched: NodeKey, watcher: NodeKey, said: Instant, now: Instant) {
        if now.saturating_duration_since(said) < AT_ONCE {
            let until = now + UNHEARD;
            self.until.entry(watched).or_default().insert(watcher, until);
            self.ends.push_back((until, watched, watcher));
        }
    }

    /// Whether `watcher`'s word about `watched` counts.
    pub(super) fn counts(&self, watched: &NodeKey, watcher: &NodeKey) -> bool {
        self.until.get(watched).is_none_or(|all| !all.contains_key(watcher))
    }

    /// Ends what is over; gives the members of whom more count again.
    pub(super) fn ended(&mut self, now: Instant) -> BTreeSet<NodeKey> {
        let mut more = BTreeSet::new();
        while let Some((_, watched, watcher)) = self.ends.pop_front_if(|end| end.0 <= now) {
            let Some(all) = self.until.get_mut(&watched) else { continue };
            // It may have been noted again since.
            if all.get(&watcher).is_some_and(|until| *until <= now) {
                all.remove(&watcher);
                more.insert(watched);
            }
            if all.is_empty() {
                self.until.remove(&watched);
            }
        }
        more
    }

    /// Forgets a member that is gone.
    pub(super) fn forget(&mut self, key: &NodeKey) {
        self.until.remove(key);
    }

    /// When [`Self::ended`] has something.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.ends.front().map(|end| end.0)
    }
}
