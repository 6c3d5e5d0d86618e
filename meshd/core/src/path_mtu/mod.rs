//! How large a packet each peer's path carries, measured through the tunnel (RFC 8899).
//!
//! Responsible for what is probed when and for what follows from answers and silence. Not for sending: the daemon
//! does that, tells what it observes of the kernel, and hands each result to the planner. Nothing here trusts ICMP,
//! which anybody can forge and firewalls drop.
//!
//! | file | has |
//! |---|---|
//! | `mod` | all paths, and how many probes there are at once |
//! | `path` | the states of one path |
//! | `trial` | one size, tried until it is answered or was sent often enough |
//! | `sizes` | which sizes WireGuard does not pad, and which to try next |
//!
//! A tunnel that nobody uses is measured once and then left alone.

mod path;
mod sizes;
#[cfg(test)]
mod tests;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::path::{Path, Told};
pub use self::{
    path::Seen,
    sizes::{BASE, OVERHEAD_V4, OVERHEAD_V6, SMALLEST, overhead},
};

/// Paths that wait for an answer at the same time.
const AT_ONCE: usize = 32;
/// Between two paths' probes: at most 200 paths a second.
const SPACING: Duration = Duration::from_millis(5);
/// Tunnels that nobody uses yet wait for about so long, a half more or less by lot: a host that joins has a new tunnel with
/// everybody, and they are to answer it first. The base carries everything meanwhile.
const UNUSED_AFTER: Duration = Duration::from_secs(1);
/// Then they take turns: so many are measured at once, then one each time. A large mesh that starts has other things to do
/// first.
const UNUSED_AT_ONCE: u32 = 8;
const UNUSED_SPACING: Duration = Duration::from_millis(50);
/// Until a path that found no room tries again.
const NO_ROOM: Duration = Duration::from_millis(100);
/// An answer that takes longer is none.
const LATEST: Duration = Duration::from_secs(10);

/// What the planner takes of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathMtu {
    /// The largest packet inside the tunnel, in bytes.
    pub mtu: u32,
    /// IPv6's 1,280 bytes do not fit whole.
    pub small: Option<Small>,
}

/// How IPv6 goes over a path that does not carry 1,280 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Small {
    /// Encrypted packets to this endpoint may be fragmented on their way (IPv4).
    Fragmented,
    /// Not at all: nobody fragments IPv6 on the way, nor what a WireGuard process sends over IPv4, since its socket sets
    /// DF and gives its packets no numbers.
    NoIpv6,
}

/// How a path's MTU is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not yet: there is no tunnel, or routers may still fragment what is sent.
    Waiting,
    /// The base is being tried.
    Base,
    /// Larger sizes are being tried, or smaller ones than the base.
    Search,
    /// The last 16 bytes.
    Refine,
    /// Measured.
    Complete,
    /// The peer answers no probes.
    Silent,
}

impl State {
    /// `waiting`, `base`, `searching`, `measured` or `unanswered`, as in `meshctl mtu`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Base => "base",
            Self::Search | Self::Refine => "searching",
            Self::Complete => "measured",
            Self::Silent => "unanswered",
        }
    }
}

/// A packet to send through the tunnel; its answer is handed to [`PathMtus::handle_answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The peer.
    pub to: NodeKey,
    /// Comes back with the answer.
    pub id: u64,
    /// Bytes of the whole packet inside the tunnel.
    pub size: u32,
}

/// Why a path has another MTU than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The first measurement, or one after the tunnel moved.
    Measured,
    /// More is carried than before.
    Grew,
    /// What was carried no longer is: the path is measured again, from the base.
    Shrank,
    /// The peer answers no probes.
    Unanswered,
}

/// News of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// The peer.
    pub peer: NodeKey,
    /// Before; `None` for the first measurement.
    pub from: Option<u32>,
    /// Now.
    pub to: u32,
    /// Why.
    pub cause: Cause,
}

/// What is known of one path, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// For the planner.
    pub mtu: PathMtu,
    /// How it is known.
    pub state: State,
    /// Since when.
    pub since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    to: NodeKey,
    size: u32,
    at: Instant,
}

/// The paths to all peers.
#[derive(Debug)]
pub struct PathMtus {
    paths: BTreeMap<NodeKey, Path>,
    /// When each path is to be looked at.
    timers: BTreeSet<(Instant, NodeKey)>,
    timer_of: BTreeMap<NodeKey, Instant>,
    sent: BTreeMap<u64, Sent>,
    next_id: u64,
    /// Before this no probe is sent.
    free_at: Option<Instant>,
    /// When the last path that nobody uses has its turn.
    last_turn: Option<Instant>,
    news: VecDeque<Changed>,
    changed: bool,
    rng: StdRng,
}

impl PathMtus {
    /// Without any path. The same seed and calls give the same outputs.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        // Answers to an earlier process of this host must not count.
        let next_id = rng.random::<u64>() >> 8;
        Self {
            paths: BTreeMap::new(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_id,
            free_at: None,
            last_turn: None,
            news: VecDeque::new(),
            changed: false,
            rng,
        }
    }

    /// Takes in what is seen of all paths; those that are not among them are forgotten. `held` gives the MTU that a
    /// new path's route already has in the kernel, as after a restart.
    pub fn observe(
        &mut self,
        seen: &BTreeMap<NodeKey, Seen>,
        held: impl Fn(&NodeKey) -> Option<u32>,
        now: Instant,
    ) {
        let gone: Vec<NodeKey> =
            self.paths.keys().filter(|key| !seen.contains_key(*key)).copied().collect();
        for key in gone {
            self.paths.remove(&key);
            self.set_timer(key, None);
            self.changed = true;
        }
        for (key, seen) in seen {
            let before = match self.paths.get_mut(key) {
                Some(path) => {
                    let before = path.mtu();
                    path.observe(*seen, now);
                    Some(before)
                }
                None => {
                    self.paths.insert(*key, Path::new(*seen, held(key), now));
                    None
                }
            };
            self.settle(*key, before, now);
        }
    }

    /// When [`PathMtus::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (first, _) = self.timers.first()?;
        Some(self.free_at.map_or(*first, |free| free.max(*first)))
    }

    /// The probes to send now.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Probe> {
        let mut probes = Vec::new();
        while self.free_at.is_none_or(|free| free <= now)
            && let Some((at, key)) = self.timers.first().copied()
            && at <= now
        {
            let Some(path) = self.paths.get(&key) else {
                self.set_timer(key, None);
                continue;
            };
            if path.wants_turn(now) {
                self.give_turn(key, now);
                continue;
            }
            if path.trial.is_none() && self.is_full() {
                let later = now + NO_ROOM.mul_f64(self.rng.random_range(0.5..1.5));
                self.set_timer(key, Some(later));
                continue;
            }
            let Some(path) = self.paths.get_mut(&key) else { continue };
            let before = path.mtu();
            let sizes = path.step(&mut self.rng, now);
            if !sizes.is_empty() {
                self.free_at = Some(now + SPACING);
            }
            for size in sizes {
                probes.push(self.probe(key, size, now));
            }
            self.settle(key, Some(before), now);
        }
        self.sent.retain(|_, sent| now.saturating_duration_since(sent.at) < LATEST);
        probes
    }

    /// As many paths are measured as may be at once.
    fn is_full(&self) -> bool {
        self.paths.values().filter(|path| path.trial.is_some()).count() >= AT_ONCE
    }

    /// Sets when a path that nobody uses is measured: as a bucket of so many turns has it.
    fn give_turn(&mut self, key: NodeKey, now: Instant) {
        let least = now.checked_sub(UNUSED_SPACING * (UNUSED_AT_ONCE - 1)).unwrap_or(now);
        let turn = self.last_turn.map_or(least, |last| least.max(last + UNUSED_SPACING));
        self.last_turn = Some(turn);
        let wait = UNUSED_AFTER.mul_f64(self.rng.random_range(0.5..1.5));
        let Some(path) = self.paths.get_mut(&key) else { return };
        path.turn = Some(turn.max(now) + wait);
        let before = path.mtu();
        self.settle(key, Some(before), now);
    }

    /// `from` has answered the probe `id`. Anything else is passed over.
    pub fn handle_answer(&mut self, from: &NodeKey, id: u64, now: Instant) {
        if self.sent.get(&id).is_none_or(|sent| sent.to != *from) {
            return;
        }
        let (Some(sent), Some(path)) = (self.sent.remove(&id), self.paths.get_mut(from)) else {
            return;
        };
        let before = path.mtu();
        path.answered(sent.size, now.saturating_duration_since(sent.at), now);
        self.settle(*from, Some(before), now);
    }

    /// What is known of the path to `peer`.
    #[must_use]
    pub fn known(&self, peer: &NodeKey) -> Option<Known> {
        let path = self.paths.get(peer)?;
        Some(Known { mtu: path.mtu(), state: path.state, since: path.since })
    }

    /// Whether any path's MTU is another since this was last asked: the plan is another then.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// News, the oldest first.
    pub fn poll_news(&mut self) -> Option<Changed> {
        self.news.pop_front()
    }

    fn probe(&mut self, to: NodeKey, size: u32, now: Instant) -> Probe {
        let id = self.next_id;
        self.next_id += 1;
        self.sent.insert(id, Sent { to, size, at: now });
        Probe { to, id, size }
    }

    /// After anything happened to a path.
    fn settle(&mut self, key: NodeKey, before: Option<PathMtu>, now: Instant) {
        let Some(path) = self.paths.get_mut(&key) else { return };
        self.changed |= before != Some(path.mtu());
        let to = path.mtu().mtu;
        if let Some((from, told)) = path.news.take() {
            let cause = match told {
                Told::Silent => Cause::Unanswered,
                Told::Shrank => Cause::Shrank,
                Told::Measured if from.is_some_and(|from| from < to) => Cause::Grew,
                Told::Measured => Cause::Measured,
            };
            self.news.push_back(Changed { peer: key, from, to, cause });
        }
        let due = path.due(now);
        self.set_timer(key, due);
    }

    fn set_timer(&mut self, key: NodeKey, at: Option<Instant>) {
        if let Some(old) = self.timer_of.remove(&key) {
            self.timers.remove(&(old, key));
        }
        if let Some(at) = at {
            self.timer_of.insert(key, at);
            self.timers.insert((at, key));
        }
    }
}
