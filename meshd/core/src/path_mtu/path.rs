//! The path to one peer: what it is known to carry, and what to try next.
//!
//! ```text
//!            tunnel up               base fits, or does not               no size left to try
//! Waiting ───────────────► Base ───────────────────────────► Search ◄──────────────────────────► Complete
//!    │                      │ ▲                                │  └──► Refine (16 bytes apart) ──►  │ ▲
//!    │ (known before)       │ └── present size lost, small ones answered: black hole ───────────────┤ │ raise timer:
//!    └──────────────────────│──────────────────────────────────────────────────────────────────────►┘ └ one above
//!                           └─ nothing answered ─► Silent ── a small one answered ─► Base
//! ```
//! The states are those of RFC 8899, 5.2; its ERROR is here a search below the base. A size counts as too large
//! only if a small probe that was sent beside it was answered: a peer whose daemon is down says nothing about the
//! path, and what was proved stays.

mod outcome;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::RngExt;

use super::{
    PathMtu, Small, State,
    sizes::{self, BASE, CONTROL, Gap, SMALLEST},
    trial::{Kind, Trial},
};

/// Between two looks at whether a tunnel in use still carries the size it has.
const CONFIRM: Duration = Duration::from_secs(5);
/// A tunnel counts as in use for so long after it was seen to carry something: observations are 10 s apart.
const IN_USE: Duration = Duration::from_secs(25);
/// RFC 8899, 5.1.1 (PMTU_RAISE_TIMER).
const RAISE: Duration = Duration::from_secs(600);
/// The first try after a path shrank, which is often for a moment; each further one twice as late.
const RAISE_FIRST: Duration = Duration::from_secs(20);
/// Bytes beside probes that make a tunnel used: one packet above the base.
const USED: u64 = BASE as u64;
/// A route that does not become as wanted is measured as it is.
const ROUTE_PATIENCE: Duration = Duration::from_secs(10);
/// Rounds of probes without any answer after which a peer is taken for one that does not answer.
const SILENT_AFTER: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_secs(60);

/// What is seen of a path from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The tunnel carries packets.
    pub up: bool,
    /// Where the encrypted packets go.
    pub endpoint: SocketAddr,
    /// The largest packet that the device and the link take without fragments.
    pub largest: u32,
    /// The MTU that WireGuard pads up to: that of the route to the peer's mesh address, or of the device.
    pub pad: u32,
    /// `pad` is the route's, and becomes what the plan says.
    pub pad_follows: bool,
    /// Routers must not fragment what is sent to this endpoint.
    pub whole: bool,
    /// Routers fragment encrypted packets to this endpoint where they may: they can be sent without DF.
    pub fragments: bool,
    /// Its daemon answers, as gossip has it.
    pub alive: bool,
    /// Bytes sent to the peer that were neither probes nor answers to probes.
    pub sent: u64,
}

/// What changed for the better or worse, to be told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Measured,
    Shrank,
    Silent,
}

#[derive(Debug, Clone)]
pub(super) struct Path {
    pub(super) seen: Seen,
    pub(super) state: State,
    /// Carried, or taken to be.
    low: u32,
    proven: bool,
    /// Not carried; one above the largest while nothing is known.
    high: u32,
    /// What the routes keep while it is searched: each change of theirs costs a round of the data plane.
    kept: u32,
    /// The last success suggests that the size above is too large.
    above: bool,
    /// No size was tried since the search began.
    fresh: bool,
    pub(super) trial: Option<Trial>,
    /// Not before.
    pause: Option<Instant>,
    /// When it is measured for the first time, unless it is used earlier.
    pub(super) turn: Option<Instant>,
    silence: u32,
    rtt: Option<Duration>,
    used_at: Option<Instant>,
    confirm_at: Instant,
    /// Search again when the size was confirmed: it was measured on another path.
    rediscover: bool,
    raise_at: Instant,
    raise_after: Duration,
    /// Since when the route is not as wanted.
    waiting_since: Option<Instant>,
    /// Since when [`Path::mtu`] is what it is.
    pub(super) since: Instant,
    told: Option<u32>,
    pub(super) news: Option<(Option<u32>, Told)>,
}

impl Path {
    /// A path that was just seen. `held`: the MTU that its route has had since before this start.
    pub(super) fn new(seen: Seen, held: Option<u32>, now: Instant) -> Self {
        // The base itself says nothing: a route has it before anything is measured, too.
        let held = held.filter(|held| *held > BASE && *held <= seen.largest);
        let base = sizes::base(seen.largest, seen.pad_follows);
        Self {
            seen,
            state: if held.is_some() { State::Complete } else { State::Waiting },
            low: held.unwrap_or(base),
            proven: false,
            high: seen.largest + 1,
            kept: base,
            above: false,
            fresh: true,
            trial: None,
            pause: None,
            turn: None,
            silence: 0,
            rtt: None,
            used_at: None,
            confirm_at: now,
            rediscover: held.is_some(),
            raise_at: now + RAISE,
            raise_after: RAISE,
            waiting_since: None,
            since: now,
            told: held,
            news: None,
        }
    }

    /// What the routes to the peer get.
    pub(super) fn mtu(&self) -> PathMtu {
        let mtu = match self.state {
            State::Waiting | State::Base | State::Silent => self.base(),
            State::Search => self.kept,
            State::Complete => self.low,
            State::Refine => self.refined().map_or(self.low, |size| size - sizes::UNIT),
        };
        let small = match self.state {
            State::Complete if self.low < BASE && self.seen.fragments => Some(Small::Fragmented),
            State::Complete if self.low < BASE => Some(Small::NoIpv6),
            // It may be any: without a measurement fragments are better than nothing.
            State::Silent if self.seen.fragments => Some(Small::Fragmented),
            _ => None,
        };
        PathMtu { mtu: mtu.min(self.seen.largest.max(SMALLEST)), small }
    }

    fn base(&self) -> u32 {
        sizes::base(self.seen.largest, self.seen.pad_follows)
    }

    /// Takes in what is seen now.
    pub(super) fn observe(&mut self, seen: Seen, now: Instant) {
        let before = std::mem::replace(&mut self.seen, seen);
        if seen.sent.saturating_sub(before.sent) >= USED {
            self.used_at = Some(now);
        }
        let moved = seen.endpoint != before.endpoint;
        if seen.largest != before.largest {
            self.low = self.low.min(seen.largest);
            self.high = seen.largest + 1;
        }
        if (moved || seen.largest != before.largest) && self.state != State::Waiting {
            self.start_again(now);
        }
        if (seen.up && !before.up) || (seen.alive && !before.alive) {
            self.confirm_at = now;
            self.pause = None;
            self.silence = 0;
            // Nobody answered probes, and now there is somebody.
            if self.state == State::Silent {
                self.used_at = Some(now);
            }
        }
        if !seen.up {
            self.trial = None;
        }
    }

    /// The path may be another one: what was proved is confirmed, or the search begins anew.
    fn start_again(&mut self, now: Instant) {
        self.trial = None;
        self.pause = None;
        self.silence = 0;
        if self.state == State::Complete && self.low >= BASE {
            self.used_at = Some(now);
            self.confirm_at = now;
            self.rediscover = true;
            self.high = self.seen.largest + 1;
        } else {
            self.state = State::Base;
            self.low = self.base();
            self.high = self.seen.largest + 1;
        }
    }

    fn in_use(&self, now: Instant) -> bool {
        self.used_at.is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
    }

    /// It is to be measured for the first time, nobody waits for that, and no time was set.
    pub(super) fn wants_turn(&self, now: Instant) -> bool {
        self.state == State::Waiting && self.turn.is_none() && !self.in_use(now)
    }

    /// When [`Path::step`] is to be called next.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if !self.seen.up {
            return None;
        }
        if let Some(trial) = &self.trial {
            return Some(trial.deadline);
        }
        let at = match self.state {
            State::Waiting | State::Base | State::Search | State::Refine => {
                if !self.seen.whole {
                    return None;
                }
                match self.waiting_since {
                    Some(since) if !self.route_is_set() => since + ROUTE_PATIENCE,
                    _ if self.state == State::Waiting && !self.in_use(now) => {
                        self.turn.map_or(now, |turn| turn.max(now))
                    }
                    _ => now,
                }
            }
            State::Complete | State::Silent => self.next_look(now)?,
        };
        Some(self.pause.map_or(at, |pause| pause.max(at)))
    }

    /// A tunnel that nobody uses is left alone.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let measurable = self.seen.whole || self.mtu().small == Some(Small::Fragmented);
        if !self.in_use(now) || !measurable {
            return None;
        }
        let may_raise = self.state == State::Complete && self.low < self.seen.largest;
        match (self.confirms(), may_raise) {
            (true, true) => Some(self.confirm_at.min(self.raise_at)),
            (true, false) => Some(self.confirm_at),
            (false, true) => Some(self.raise_at),
            (false, false) => None,
        }
    }

    /// With fragments a size proves nothing.
    fn confirms(&self) -> bool {
        self.state == State::Silent || self.mtu().small != Some(Small::Fragmented)
    }

    fn route_is_set(&self) -> bool {
        !self.seen.pad_follows || self.seen.pad == self.mtu().mtu.max(BASE)
    }

    /// Does what is due; returns the sizes to send now.
    pub(super) fn step(&mut self, rng: &mut impl RngExt, now: Instant) -> Vec<u32> {
        if self.due(now).is_none_or(|at| at > now) {
            return Vec::new();
        }
        if let Some(trial) = self.trial.take() {
            if trial.is_over() {
                self.conclude(&trial, rng, now);
                return Vec::new();
            }
            return self.send(trial, now);
        }
        self.pause = None;
        match self.choose(rng, now) {
            Some(trial) => self.send(trial, now),
            None => Vec::new(),
        }
    }

    fn send(&mut self, mut trial: Trial, now: Instant) -> Vec<u32> {
        let sizes = trial.attempt(self.rtt, now);
        self.trial = Some(trial);
        sizes
    }

    /// What to try now; may only change the state.
    fn choose(&mut self, rng: &mut impl RngExt, now: Instant) -> Option<Trial> {
        if self.state == State::Waiting {
            self.state = State::Base;
        }
        if matches!(self.state, State::Base | State::Search | State::Refine) && !self.route_is_set()
        {
            let since = *self.waiting_since.get_or_insert(now);
            if now < since + ROUTE_PATIENCE {
                return None;
            }
            if self.state == State::Refine {
                self.complete(Told::Measured, now);
                return None;
            }
        }
        self.waiting_since = None;
        match self.state {
            State::Waiting => None,
            State::Base => {
                Some(Trial::new(Kind::Base, sizes::reachable(self.base(), self.seen.pad), now))
            }
            State::Search => {
                let next = self.next_size();
                self.fresh = false;
                match next {
                    Some((size, usual)) => {
                        self.above = usual;
                        return Some(Trial::new(Kind::Search, size, now));
                    }
                    None if self.refined().is_some() => self.state = State::Refine,
                    None => self.complete(Told::Measured, now),
                }
                None
            }
            State::Refine => match self.refined() {
                Some(size) => Some(Trial::new(Kind::Refine, size, now)),
                None => {
                    self.complete(Told::Measured, now);
                    None
                }
            },
            State::Complete => self.look(rng, now),
            State::Silent => Some(Trial::new(Kind::Wake, CONTROL, now)),
        }
    }

    fn gap(&self) -> Gap {
        Gap {
            low: self.low,
            high: self.high,
            pad: self.seen.pad,
            overhead: sizes::overhead(&self.seen.endpoint),
        }
    }

    fn next_size(&self) -> Option<(u32, bool)> {
        let gap = self.gap();
        if self.fresh && self.high > self.seen.largest {
            return gap.top().or_else(|| gap.middle());
        }
        if self.above {
            return gap.above().or_else(|| gap.middle());
        }
        gap.middle()
    }

    /// The size between two that padding keeps apart; to be had with a route 16 bytes below it.
    fn refined(&self) -> Option<u32> {
        let size = self.gap().exact()?;
        let possible = self.seen.pad_follows && self.proven && size >= BASE + sizes::UNIT;
        possible.then_some(size)
    }

    fn look(&mut self, rng: &mut impl RngExt, now: Instant) -> Option<Trial> {
        let jitter = rng.random_range(0.8..1.2);
        if self.confirms() && self.confirm_at <= now {
            self.confirm_at = now + CONFIRM.mul_f64(jitter);
            return Some(Trial::new(Kind::Confirm, sizes::reachable(self.low, self.seen.pad), now));
        }
        if self.raise_at > now {
            return None;
        }
        self.raise_after = (self.raise_after * 2).min(RAISE);
        self.raise_at = now + self.raise_after.mul_f64(jitter);
        let low = self.low.max(BASE);
        let (size, _) = Gap { low, high: self.seen.largest + 1, ..self.gap() }.above()?;
        Some(Trial::new(Kind::Raise, size, now))
    }
}
