//! Whether the gateway that this host names carries anything.
//!
//! ```text
//!          nobody outside was heard for 5 s: one question      gossip suspects it, or sent and no answer
//!          which stays open for a second                       for 2 s
//! Calm ──────────────────────────────────────────┬──────────────────────────────────────────► Doubt
//!   ▲                                            ▼                                              │
//!   └── somebody outside answers ─────────────────────────── three rounds without one ──► verdict ┘
//! ```
//! In doubt the gateway and three members outside are asked, three times, a second apart. What is said then is
//! [`Verdict::Silent`] when the gateway itself did not answer, else [`Verdict::LeadsNowhere`]. A mesh that gossips hears
//! of members outside all the time; a quiet one costs this host a small packet and its answer in five seconds.
//!
//! A gateway through which nobody outside was ever heard, though there are members outside, is in doubt after ten seconds:
//! it may be one that does not forward.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

/// After so long without anybody outside one is asked.
const QUIET: Duration = Duration::from_secs(5);
/// Between two rounds of questions, and the time for an answer.
const ROUND: Duration = Duration::from_secs(1);
/// Rounds without an answer that end it.
const ROUNDS: u32 = 3;
/// Members outside that are asked in one round.
const ASKED: usize = 3;
/// Sent and nothing received for so long is a reason to ask.
const UNANSWERED: Duration = Duration::from_secs(2);
/// After a verdict nothing is asked for so long, unless another gateway is named.
const AFTER_VERDICT: Duration = Duration::from_secs(10);

/// A gateway has so long to let anybody outside be heard.
const ALONE: Duration = Duration::from_secs(10);

/// What is known at one moment.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The gateway that is named.
    pub gateway: Option<NodeKey>,
    /// Gossip does not hear it, or not for sure.
    pub suspect: bool,
    /// Bytes in and out of its tunnel.
    pub bytes: (u64, u64),
    /// Members that it carries to, and are not known to be gone.
    pub outside: BTreeSet<NodeKey>,
    /// Members that it carries to, and that were never heard, or are gone as far as is known here.
    pub unheard: BTreeSet<NodeKey>,
}

/// Whom to send a packet that is answered, through the tunnel.
pub type Ask = Vec<NodeKey>;

/// What came of the questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody outside answers.
    Carries,
    /// The gateway does not answer.
    Silent,
    /// The gateway answers, and nobody outside does.
    LeadsNowhere,
}

/// Follows one gateway after another.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    gateway: Option<NodeKey>,
    heard_outside: Option<Instant>,
    heard_gateway: Option<Instant>,
    /// Since when there are members outside, and this gateway has let none of them be heard.
    alone: Option<Instant>,
    bytes: (u64, u64),
    unanswered_since: Option<Instant>,
    doubt: Option<Doubt>,
    verdict: Option<(Verdict, Instant)>,
    /// Where the next round begins among the members outside.
    next: Option<NodeKey>,
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    since: Instant,
    asked: u32,
    due: Instant,
    /// There were members outside whose silence says something of the gateway.
    witnesses: bool,
}

impl Watch {
    /// A packet of `from` came out of the tunnel.
    pub fn heard(&mut self, from: &NodeKey, outside: bool, now: Instant) {
        if Some(*from) == self.gateway {
            self.heard_gateway = Some(now);
        } else if outside {
            self.heard_outside = Some(now);
        }
    }

    /// What was found out of the gateway that is named, if anything.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.map(|(verdict, _)| verdict)
    }

    /// When [`Self::look`] should be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.doubt.map(|doubt| doubt.due)
    }

    /// Takes in what is seen at `now`, and says whom to ask.
    pub fn look(&mut self, seen: &Seen, now: Instant) -> Ask {
        if seen.gateway != self.gateway {
            let next = self.next;
            *self = Self { gateway: seen.gateway, bytes: seen.bytes, next, ..Self::default() };
        }
        let Some(gateway) = self.gateway else { return Vec::new() };
        self.count(seen, now);
        let alone =
            self.heard_outside.is_none() && seen.outside.is_empty() && !seen.unheard.is_empty();
        self.alone = if alone { self.alone.or(Some(now)) } else { None };
        if let Some(doubt) = self.doubt {
            return self.press(doubt, gateway, seen, now);
        }
        if let Some(at) = self.heard_outside.filter(|at| self.verdict.is_none_or(|v| *at > v.1)) {
            self.verdict = Some((Verdict::Carries, at));
        }
        let age = |at: Instant| now.saturating_duration_since(at);
        let rest = self.verdict.is_some_and(|(verdict, at)| match verdict {
            // In doubt again and again it is asked again and again, but not all the time.
            Verdict::Carries => age(at) < ROUND,
            Verdict::Silent | Verdict::LeadsNowhere => age(at) < AFTER_VERDICT,
        });
        let alone = self.alone.is_some_and(|since| age(since) >= ALONE);
        let unanswered = self.unanswered_since.is_some_and(|at| age(at) >= UNANSWERED);
        let doubtful = seen.suspect || unanswered || alone;
        let carries = self.verdict.is_some_and(|(v, at)| v == Verdict::Carries && age(at) < QUIET);
        if rest || (!doubtful && (carries || seen.outside.is_empty())) {
            return Vec::new();
        }
        let witnesses = alone || !seen.outside.is_empty();
        let doubt = Doubt { since: now, asked: 0, due: now, witnesses };
        if doubtful {
            return self.press(doubt, gateway, seen, now);
        }
        // One question; a second later the doubt begins.
        self.doubt = Some(Doubt { due: now + ROUND, ..doubt });
        self.pick(seen, 1)
    }

    fn count(&mut self, seen: &Seen, now: Instant) {
        let (received, sent) = seen.bytes;
        if received != self.bytes.0 {
            self.unanswered_since = None;
        } else if sent > self.bytes.1 {
            self.unanswered_since.get_or_insert(now);
        }
        self.bytes = seen.bytes;
    }

    fn press(&mut self, doubt: Doubt, gateway: NodeKey, seen: &Seen, now: Instant) -> Ask {
        let after = |at: Option<Instant>| at.is_some_and(|at| at >= doubt.since);
        if after(self.heard_outside) || (!doubt.witnesses && after(self.heard_gateway)) {
            self.doubt = None;
            self.unanswered_since = None;
            self.verdict = Some((Verdict::Carries, now));
            return Vec::new();
        }
        if doubt.due > now {
            self.doubt = Some(doubt);
            return Vec::new();
        }
        if doubt.asked >= ROUNDS {
            let verdict = match after(self.heard_gateway) {
                true => Verdict::LeadsNowhere,
                false => Verdict::Silent,
            };
            self.verdict = Some((verdict, now));
            self.doubt = None;
            self.unanswered_since = None;
            return Vec::new();
        }
        self.doubt = Some(Doubt { asked: doubt.asked + 1, due: now + ROUND, ..doubt });
        let mut ask = self.pick(seen, ASKED);
        ask.push(gateway);
        ask
    }

    /// Others each time, round and round.
    fn pick(&mut self, seen: &Seen, count: usize) -> Vec<NodeKey> {
        let from = self.next.unwrap_or(NodeKey([0; 32]));
        let all = if seen.outside.is_empty() { &seen.unheard } else { &seen.outside };
        let picked: Vec<NodeKey> =
            all.range(from..).chain(all.range(..from)).take(count).copied().collect();
        let after =
            picked.last().and_then(|last| all.range(*last..).nth(1).or_else(|| all.first()));
        self.next = after.copied();
        picked
    }
}
