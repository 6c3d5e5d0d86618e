//! The first handshake of each new pair, without WireGuard's own wait of five seconds.
//!
//! WireGuard sends a handshake message again only after REKEY_TIMEOUT, five seconds (WireGuard, 6.1).
//! A first message that meets a peer not yet programmed is lost; two that cross undo each other,
//! since each side then answers a message that the other has forgotten. So one side of each pair, the
//! one that leads, sends at once, and the other a little later, since it may be the one that was
//! programmed last. The one whose record is younger leads: a host that joins is ready after those that it joins.
//! Where no handshake comes of it, the peer is made anew, which makes WireGuard
//! forget when it last sent. That is done a few times only, and only to a peer that never had a
//! handshake: there is no session to lose.
//!
//! Where a whole mesh starts, as after a power cut, all pairs at once are N² handshakes, and as many paths to measure, while
//! everybody is busiest. So of those who started with it a host sends to a few at once, and to the next as soon as one of
//! them has answered: as fast as the machines are. With more than those few it begins when no more of them come, since to know
//! each other is more urgent; nor does it begin while it waits for a processor ([`FirstHandshakes::hold`]). The kernel
//! begins with whom it has a packet for in any case.
//!
//! ```text
//! programmed ─► turn ─► poke, or the kernel sent ─► no handshake in time ─► renew ─► programmed …  (four times)
//!                                         └───────► handshake: done
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use meshd_proto::WgPublicKey;

use super::types::{Change, Desired, Observed, ObservedPeer};
use crate::trust::Record;

/// How much later the side that does not lead sends: longer than a handshake takes on a busy host.
const SECOND: Duration = Duration::from_millis(400);
/// How long a handshake may take before the peer is made anew; each further one twice as long.
const PATIENCE: Duration = Duration::from_millis(700);
/// The same where few wait for theirs: then nobody is busy, and two that crossed need not wait for long. So much for each of
/// them is added to it.
const SHORT_PATIENCE: Duration = Duration::from_millis(200);
const FOR_EACH: Duration = Duration::from_millis(8);
/// After these WireGuard's own retries go on alone.
const RENEWALS: u32 = 4;
/// The same where both have just started: the other side may be busy with that for a while, and its own turn be late. Half
/// a minute in all, since the patience grows once only.
const RENEWALS_TOGETHER: u32 = 20;
/// Hosts whose records are no further apart than these seconds have started together.
const TOGETHER: u64 = 10;
/// Of those who started together so many are sent to at once.
const AT_ONCE: usize = 8;
/// Where more than these start together, turns are given when no new one came for so long, or after the second time at the
/// latest, which is also how long a busy host waits.
const CALM: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));
/// One that does not answer gives its turn to the next after this.
const TURN: Duration = Duration::from_millis(1_400);

/// How the two of a pair stand to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    /// This side sends first.
    leads: bool,
    /// Both have just started.
    together: bool,
}

impl Pair {
    /// Of the host with the record `own` and another.
    fn of(own: &Record, other: &Record) -> Self {
        Self {
            leads: (own.issued_at, own.key) > (other.issued_at, other.key),
            together: own.issued_at.0.abs_diff(other.issued_at.0) <= TOGETHER,
        }
    }
}

/// Pairs that wait for their first handshake.
#[derive(Debug, Clone, Default)]
pub struct FirstHandshakes {
    waiting: BTreeMap<WgPublicKey, Waiting>,
    /// Those that wait for their turn, in order.
    queue: VecDeque<WgPublicKey>,
    /// Those that have it, and until when.
    turns: BTreeMap<WgPublicKey, Instant>,
    /// When the first and the last came of those that wait for it.
    came: Option<(Instant, Instant)>,
    /// Nobody is given a turn before.
    held: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Waiting {
    next: Step,
    at: Instant,
    pair: Pair,
    renewals: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Waits for its turn.
    Turn,
    Poke,
    Renew,
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Peers to send a packet to through the tunnel.
    pub poke: Vec<WgPublicKey>,
    /// Peers to take away and add again ([`renewals`]).
    pub renew: Vec<WgPublicKey>,
}

impl FirstHandshakes {
    /// The kernel of the host with the record `own` has new peers, the hosts with these records.
    pub fn programmed<'a>(
        &mut self,
        own: &Record,
        others: impl IntoIterator<Item = &'a Record>,
        now: Instant,
    ) {
        // From here on round the ring of keys, so that where all start together not all begin with the same ones.
        let (before, after): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|other| other.key <= own.key);
        for other in after.into_iter().chain(before) {
            if let Some(lane) = other.lanes.first() {
                self.wait(lane.public_key, Pair::of(own, other), now);
            }
        }
    }

    fn wait(&mut self, key: WgPublicKey, pair: Pair, now: Instant) {
        let renewals = self.waiting.get(&key).map_or(0, |waiting| waiting.renewals);
        let first = if pair.leads { now } else { now + SECOND };
        let next = if pair.together && renewals == 0 { Step::Turn } else { Step::Poke };
        if next == Step::Turn {
            self.queue.push_back(key);
            let (_, last) = self.came.get_or_insert((now, now));
            *last = now;
        }
        self.waiting.insert(key, Waiting { next, at: first, pair, renewals });
    }

    /// True while somebody waits for a turn: to [`FirstHandshakes::hold`] them makes sense.
    #[must_use]
    pub fn queues(&self) -> bool {
        !self.queue.is_empty()
    }

    /// This host is busy: no turns before `until`, unless they were waited for long enough.
    pub fn hold(&mut self, until: Instant) {
        self.held = Some(until);
    }

    /// Until when nobody is given a turn.
    fn rush(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        let calm = (self.queue.len() > AT_ONCE).then_some(last + CALM.0);
        calm.max(self.held).map(|until| until.min(first + CALM.1))
    }

    /// Gives turns to as many as may have one.
    fn give_turns(&mut self, now: Instant) {
        self.turns.retain(|_, until| *until > now);
        if self.rush().is_some_and(|until| until > now) {
            return;
        }
        while self.turns.len() < AT_ONCE
            && let Some(key) = self.queue.pop_front()
        {
            if let Some(waiting) = self.waiting.get_mut(&key).filter(|w| w.next == Step::Turn) {
                waiting.next = Step::Poke;
                self.turns.insert(key, now + TURN);
            }
        }
        self.came.take_if(|_| self.queue.is_empty());
    }

    /// Takes in what the kernel held at `now`: pairs with a handshake are done.
    pub fn observe(&mut self, peers: &BTreeMap<WgPublicKey, ObservedPeer>, now: Instant) {
        self.waiting.retain(|key, waiting| {
            let Some(peer) = peers.get(key).filter(|peer| peer.last_handshake.is_none()) else {
                return false;
            };
            // The kernel had a packet for it before it was its turn.
            if waiting.next == Step::Turn && peer.tx_bytes > 0 {
                (waiting.next, waiting.at) = (Step::Renew, now + PATIENCE);
            }
            true
        });
        self.turns.retain(|key, _| self.waiting.contains_key(key));
        let waits = |key: &WgPublicKey| self.waiting.get(key).is_some_and(|w| w.next == Step::Turn);
        self.queue.retain(waits);
    }

    /// When [`FirstHandshakes::due`] is to be asked next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let turn = if self.turns.len() < AT_ONCE {
            self.queue.iter().filter_map(|key| self.waiting.get(key)).map(|w| w.at).min()
        } else {
            self.turns.values().min().copied().filter(|_| !self.queue.is_empty())
        };
        let turn = turn.max(self.rush());
        let others = self.waiting.values().filter(|waiting| waiting.next != Step::Turn);
        others.map(|waiting| waiting.at).chain(turn).min()
    }

    /// What is due at `now`.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.give_turns(now);
        let count = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let short = FOR_EACH.saturating_mul(count).saturating_add(SHORT_PATIENCE).min(PATIENCE);
        self.waiting.retain(|key, waiting| {
            if waiting.at > now {
                return true;
            }
            match waiting.next {
                Step::Turn => true,
                Step::Poke => {
                    due.poke.push(*key);
                    waiting.next = Step::Renew;
                    // The side that follows leaves the first renewal to the one that leads.
                    let Pair { leads, together } = waiting.pair;
                    let (patience, doublings, renewals) = match together {
                        true => (PATIENCE, waiting.renewals.min(1), RENEWALS_TOGETHER),
                        false => (short, waiting.renewals, RENEWALS),
                    };
                    let patience = patience * 2_u32.pow(doublings);
                    waiting.at = now + if leads { patience } else { patience * 2 };
                    waiting.renewals < renewals
                }
                Step::Renew => {
                    due.renew.push(*key);
                    waiting.renewals += 1;
                    // `programmed` comes before that, or the peer had its handshake and is left alone.
                    waiting.next = Step::Poke;
                    waiting.at = now + PATIENCE;
                    true
                }
            }
        });
        due
    }
}

/// The removals that make those of `keys` new at the next diff that have had no handshake until now
/// and are given an endpoint by the plan; one that was learned would be lost.
#[must_use]
pub fn renewals(
    desired: &Desired,
    observed: &Observed,
    keys: &BTreeSet<WgPublicKey>,
) -> Vec<Change> {
    let Some(device) = &desired.device else { return Vec::new() };
    let silent = |key: &WgPublicKey| {
        observed.peers.get(key).is_some_and(|peer| peer.last_handshake.is_none())
    };
    let placed =
        |key: &WgPublicKey| desired.peers.get(key).is_some_and(|peer| peer.endpoint.is_some());
    keys.iter()
        .filter(|key| placed(key) && silent(key))
        .map(|key| Change::RemovePeer { device: device.name.clone(), public_key: *key })
        .collect()
}

#[cfg(test)]
mod tests;
