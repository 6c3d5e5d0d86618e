//! What is kept of events, and how often the same refusal is said.
//!
//! Two rings, so that nothing that others can cause pushes out what those with the right to it did. The same
//! refusal of the same actor is said once; what follows within a minute is counted, and said together:
//!
//! ```text
//! unknown ── refusal: said ──► counting ── the same: counted, not said ──┐
//!    ▲                          ▲   └────────────────────────────────────┘
//!    │                          └─ a minute over, some counted: said with the count
//!    └── a minute over, nothing counted: forgotten
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Actor, Class, Event, Severity};
use crate::now::{Now, UnixTime};

/// Events of each ring.
const KEPT: usize = 1_000;
/// The same refusal is said at most this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Refusals that are told apart by actor; more are counted by code alone.
const KINDS: usize = 256;

/// An event that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Counted from 1 since the daemon's start.
    pub number: u64,
    /// When it was said.
    pub time: UnixTime,
    /// How many such there were: more than 1 for refusals that are said together.
    pub count: u64,
    /// What happened; of several the last one.
    pub event: Event,
}

/// Which refusals are the same: code, reason, and who, unless there are too many of those.
type Kind = (&'static str, String, Option<Actor>);

#[derive(Debug)]
struct Repeat {
    since: Instant,
    unsaid: u64,
    last: Option<Event>,
}

/// The events since the daemon's start, bounded.
#[derive(Debug, Default)]
pub struct Log {
    number: u64,
    decisions: VecDeque<Arc<Logged>>,
    others: VecDeque<Arc<Logged>>,
    repeats: BTreeMap<Kind, Repeat>,
    counts: BTreeMap<(&'static str, Severity), u64>,
}

/// Which events a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these codes or reasons; empty: all.
    pub codes: Vec<String>,
}

impl Filter {
    /// Whether this one is wanted.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        self.codes.is_empty()
            || self
                .codes
                .iter()
                .any(|code| code == event.code || event.reason.as_deref() == Some(code))
    }
}

impl Log {
    /// Takes an event; gives it back as it is to be said, or nothing when it was only counted.
    pub fn push(&mut self, event: Event, now: Now) -> Option<Arc<Logged>> {
        *self.counts.entry((event.code, event.severity)).or_default() += 1;
        let event = event.made_plain();
        if event.class() == Class::Refusal && self.is_repetition(&event, now.mono) {
            return None;
        }
        Some(self.keep(event, 1, now))
    }

    /// Refusals that were only counted and whose minute is over. To be asked for every second or so.
    pub fn poll(&mut self, now: Now) -> Vec<Arc<Logged>> {
        let over = |repeat: &Repeat| now.mono.saturating_duration_since(repeat.since) >= REPEAT;
        let mut due = Vec::new();
        self.repeats.retain(|_, repeat| {
            if !over(repeat) {
                return true;
            }
            let unsaid = std::mem::take(&mut repeat.unsaid);
            repeat.since = now.mono;
            due.extend(repeat.last.take().map(|event| (event, unsaid)));
            unsaid > 0
        });
        due.into_iter()
            .map(|(mut event, count)| {
                if count > 1 {
                    event.text.push_str(&format!(" ({count} times in the last minute)"));
                }
                self.keep(event, count, now)
            })
            .collect()
    }

    /// What is held and wanted, the oldest first: the newest `most` of what was said at `since` or later.
    #[must_use]
    pub fn recent(
        &self,
        filter: &Filter,
        since: Option<UnixTime>,
        most: usize,
    ) -> Vec<Arc<Logged>> {
        let mut all: Vec<_> = self
            .decisions
            .iter()
            .chain(&self.others)
            .filter(|logged| since.is_none_or(|since| logged.time >= since))
            .filter(|logged| filter.wants(&logged.event))
            .cloned()
            .collect();
        all.sort_by_key(|logged| logged.number);
        all.split_off(all.len().saturating_sub(most))
    }

    /// How many there were of each code and severity, those that were not said included.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Severity, u64)> {
        self.counts.iter().map(|((code, severity), count)| (*code, *severity, *count))
    }

    fn is_repetition(&mut self, event: &Event, now: Instant) -> bool {
        let reason = event.reason.as_deref().unwrap_or_default().to_owned();
        // A process is not another actor for having another id.
        let actor = match event.actor {
            Actor::User { uid, .. } => Actor::User { uid, pid: None, login: None },
            actor => actor,
        };
        let mut kind = (event.code, reason, Some(actor));
        if !self.repeats.contains_key(&kind) && self.repeats.len() >= KINDS {
            kind.2 = None;
        }
        if let Some(repeat) = self.repeats.get_mut(&kind) {
            repeat.unsaid += 1;
            repeat.last = Some(event.clone());
            return true;
        }
        self.repeats.insert(kind, Repeat { since: now, unsaid: 0, last: None });
        false
    }

    fn keep(&mut self, event: Event, count: u64, now: Now) -> Arc<Logged> {
        self.number += 1;
        let ring = match event.class() {
            Class::Decision => &mut self.decisions,
            Class::Refusal | Class::Presence => &mut self.others,
        };
        if ring.len() >= KEPT {
            ring.pop_front();
        }
        let logged = Arc::new(Logged { number: self.number, time: now.unix, count, event });
        ring.push_back(logged.clone());
        logged
    }
}

#[cfg(test)]
mod tests {
    use meshd_proto::NodeKey;

    use super::*;
    use crate::node::fixture::Origin;

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Now {
        Now { unix: UnixTime(1_000_000), ..Origin::default().now() }
    }

    fn refusal(from: u8) -> Event {
        let from = Actor::Node(NodeKey([from; 32]));
        Event::warning("refused", "no").by(from).because("bad_signature")
    }

    fn all(log: &Log) -> Vec<Arc<Logged>> {
        log.recent(&Filter::default(), None, usize::MAX)
    }

    #[test]
    fn a_flood_of_one_refusal_is_two_lines_a_minute() {
        let (mut log, now) = (Log::default(), start());
        assert!(log.push(refusal(1), now).is_some());
        for _ in 0..100_000 {
            assert!(log.push(refusal(1), now.after(REPEAT / 2)).is_none());
        }
        // Another actor, and another reason, are news.
        assert!(log.push(refusal(2), now).is_some());
        assert!(log.push(refusal(1).because("malformed"), now).is_some());
        assert!(log.poll(now.after(REPEAT / 2)).is_empty());
        let said = log.poll(now.after(REPEAT));
        assert_eq!((said.len(), said[0].count), (1, 100_000));
        assert!(said[0].event.text.ends_with("(100000 times in the last minute)"));
        // It is still counted, and not said again before another minute is over.
        assert!(log.push(refusal(1), now.after(REPEAT)).is_none());
        let last = log.poll(now.after(REPEAT * 2));
        assert_eq!((last.len(), last[0].count, last[0].event.text.as_str()), (1, 1, "no"));
        assert!(log.poll(now.after(REPEAT * 3)).is_empty() && log.repeats.is_empty());
        assert_eq!(log.counts().collect::<Vec<_>>(), [("refused", Severity::Warning, 100_004)]);
    }

    #[test]
    fn refusals_of_very_many_actors_are_counted_together() {
        let (mut log, now) = (Log::default(), start());
        let from = |n: u32| {
            Event::warning("connection_refused", "no")
                .by(Actor::Address(std::net::Ipv4Addr::from(n).into()))
        };
        let said = (0..100_000).filter(|n| log.push(from(*n), now).is_some()).count();
        assert_eq!(said, KINDS + 1);
        assert_eq!(log.repeats.len(), KINDS + 1);
        let together = log.poll(now.after(REPEAT));
        assert_eq!(together.len(), 1);
        assert_eq!(together[0].count, 100_000 - KINDS as u64 - 1);
    }

    #[test]
    fn what_others_cause_pushes_no_decision_out() {
        let (mut log, now) = (Log::default(), start());
        log.push(Event::info("node_admitted", "db-2 was admitted"), now);
        for n in 0..10_000 {
            log.push(Event::info("member_alive", format!("{n}")), now);
        }
        let held = all(&log);
        assert_eq!(held.len(), KEPT + 1);
        assert_eq!((held[0].event.code, held[0].number), ("node_admitted", 1));
        assert_eq!(held.last().unwrap().number, 10_001);
        assert!(held.is_sorted_by_key(|logged| logged.number));
    }

    #[test]
    fn what_every_node_does_every_month_pushes_no_decision_out() {
        let (mut log, now) = (Log::default(), start());
        log.push(Event::info("node_revoked", "db-2 was revoked"), now);
        for n in 0..10_000 {
            for code in ["renewal_granted", "certificate_renewed", "renewal_failed"] {
                log.push(Event::info(code, format!("{n}")), now);
            }
        }
        assert_eq!(all(&log)[0].event.code, "node_revoked");
        assert_eq!(all(&log).len(), KEPT + 1);
    }

    #[test]
    fn a_reader_gets_the_newest_of_what_it_asked_for() {
        let (mut log, now) = (Log::default(), start());
        for (n, code) in ["node_admitted", "member_down", "token_created"].into_iter().enumerate() {
            let at = now.after(Duration::from_secs(n as u64 * 10));
            log.push(Event::info(code, code), at);
        }
        log.push(refusal(1), now.after(Duration::from_secs(30)));
        let codes = |codes: &[&str], since: Option<i64>, most| {
            let filter = Filter { codes: codes.iter().map(|c| (*c).to_owned()).collect() };
            let since = since.map(|seconds| now.unix.plus(seconds));
            let found = log.recent(&filter, since, most);
            found.iter().map(|logged| logged.event.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&[], None, 2), ["token_created", "refused"]);
        assert_eq!(codes(&[], Some(10), 99), ["member_down", "token_created", "refused"]);
        assert_eq!(
            codes(&["node_admitted", "token_created"], None, 99),
            ["node_admitted", "token_created"]
        );
        // A reason is as good.
        assert_eq!(codes(&["bad_signature"], None, 99), ["refused"]);
    }
}
