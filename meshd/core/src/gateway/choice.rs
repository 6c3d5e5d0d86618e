//! Which gateway this host names.
//!
//! The first of the configured ones that works. One that stopped working is left at once for the next that does; a
//! preferred one is returned to only when it has worked for [`STEADY`] without a break. One behind which nobody answered
//! counts as not working for [`FIRST_REST`], and each time again for twice as long, so that a zone whose outside is
//! gone as a whole does not swing to and fro.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

/// A preferred gateway is returned to after it worked for so long.
const STEADY: Duration = Duration::from_secs(60);
/// How long one rests behind which nobody answered; twice as long each further time.
const FIRST_REST: Duration = Duration::from_secs(60);
/// The longest that it rests.
const LONGEST_REST: Duration = Duration::from_secs(600);

/// How one of the configured gateways does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// It may not carry for this host.
    Unfit,
    /// It may, and is gone: gossip says so, or its tunnel is silent.
    Down,
    /// It may, and is there.
    Up,
}

/// One of the configured gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub key: NodeKey,
    /// How it does.
    pub fitness: Fitness,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    pause: Duration,
}

/// The gateway that is named now, and what is remembered of the others.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    current: Option<NodeKey>,
    since: Option<Instant>,
    up_since: BTreeMap<NodeKey, Instant>,
    rests: BTreeMap<NodeKey, Rest>,
}

impl Choice {
    /// With what was named before this start: a restart changes nothing.
    #[must_use]
    pub fn new(before: Option<NodeKey>) -> Self {
        Self { current: before, ..Self::default() }
    }

    /// Who is named.
    #[must_use]
    pub fn current(&self) -> Option<NodeKey> {
        self.current
    }

    /// Those behind which nobody answered, and that are not used for a while.
    pub fn resting(&self, now: Instant) -> impl Iterator<Item = NodeKey> {
        self.rests.iter().filter(move |(_, rest)| rest.until > now).map(|(key, _)| *key)
    }

    /// Nobody behind the present one answered, though it did itself.
    pub fn led_nowhere(&mut self, now: Instant) {
        let Some(current) = self.current else { return };
        let rest = self.rests.entry(current);
        let rest = rest.or_insert(Rest { until: now, pause: FIRST_REST / 2 });
        rest.pause = (rest.pause * 2).min(LONGEST_REST);
        rest.until = now + rest.pause;
    }

    /// Somebody behind the present one answered. After ten minutes of that its earlier faults are forgotten.
    pub fn leads_outside(&mut self, now: Instant) {
        let old =
            self.since.is_some_and(|since| now.saturating_duration_since(since) > LONGEST_REST);
        if let Some(current) = self.current.filter(|_| old) {
            self.rests.remove(&current);
        }
    }

    /// Names one of `candidates`, which are in order of preference. True when that is another than before.
    pub fn decide(&mut self, candidates: &[Candidate], now: Instant) -> bool {
        let known = |key: &NodeKey| candidates.iter().any(|candidate| candidate.key == *key);
        self.up_since.retain(|key, _| known(key));
        self.rests.retain(|key, _| known(key));
        for candidate in candidates {
            if candidate.fitness == Fitness::Up {
                self.up_since.entry(candidate.key).or_insert(now);
            } else {
                self.up_since.remove(&candidate.key);
            }
        }
        let next = self.best(candidates, now);
        let changed = next != self.current;
        if changed {
            (self.current, self.since) = (next, Some(now));
        }
        changed
    }

    fn works(&self, candidate: &Candidate, now: Instant) -> bool {
        let resting = self.rests.get(&candidate.key).is_some_and(|rest| rest.until > now);
        candidate.fitness == Fitness::Up && !resting
    }

    fn best(&self, candidates: &[Candidate], now: Instant) -> Option<NodeKey> {
        let fit = || candidates.iter().filter(|candidate| candidate.fitness != Fitness::Unfit);
        let mut working = fit().filter(|candidate| self.works(candidate, now));
        let held = fit().find(|candidate| Some(candidate.key) == self.current);
        match held {
            Some(held) if self.works(held, now) => {
                let steady = |candidate: &&Candidate| {
                    let since = self.up_since.get(&candidate.key);
                    self.works(candidate, now)
                        && since.is_some_and(|at| now.saturating_duration_since(*at) >= STEADY)
                };
                let mut before = candidates.iter().take_while(|other| other.key != held.key);
                Some(before.find(steady).unwrap_or(held).key)
            }
            // One that rests and is there is better than one that is gone.
            Some(held) => {
                let there = || fit().find(|other| other.fitness == Fitness::Up);
                let other =
                    working.next().or_else(|| there().filter(|_| held.fitness == Fitness::Down));
                Some(other.unwrap_or(held).key)
            }
            None => {
                let there = || fit().find(|other| other.fitness == Fitness::Up);
                working.next().or_else(there).or_else(|| fit().next()).map(|one| one.key)
            }
        }
    }
}
