//! Paths of any size, in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::super::{Changed, Known, PathMtus, Probe, Seen, Small, State};

pub(super) const PEER: NodeKey = NodeKey([1; 32]);
const TICK: Duration = Duration::from_millis(10);
/// The daemon looks at the kernel so often.
const LOOK: Duration = Duration::from_secs(10);

/// One path as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// The largest packet inside the tunnel that gets through whole.
    pub(super) carries: u32,
    /// The largest that device and link take.
    pub(super) largest: u32,
    pub(super) v6: bool,
    /// Of 100 packets.
    pub(super) loss: u32,
    pub(super) rtt: Duration,
    /// The peer's daemon is there.
    pub(super) answers: bool,
    pub(super) pad_follows: bool,
    /// Bytes a second that are no probes.
    pub(super) traffic: u64,
    pub(super) port: u16,
}

impl Link {
    pub(super) fn v4(carries: u32) -> Self {
        Self {
            carries,
            largest: 1_440,
            v6: false,
            loss: 0,
            rtt: Duration::from_millis(20),
            answers: true,
            pad_follows: true,
            traffic: 0,
            port: 51820,
        }
    }
}

pub(super) struct World {
    pub(super) mtus: PathMtus,
    pub(super) links: BTreeMap<NodeKey, Link>,
    /// The kernel's route and whether fragments are allowed, as planned a moment ago.
    routes: BTreeMap<NodeKey, (u32, bool)>,
    sent: BTreeMap<NodeKey, u64>,
    answers: BTreeSet<(Instant, u64, NodeKey)>,
    pub(super) held: Option<u32>,
    pub(super) probes: Vec<(Instant, Probe)>,
    pub(super) news: Vec<Changed>,
    rng: StdRng,
    pub(super) now: Instant,
    look_at: Instant,
}

impl World {
    pub(super) fn new(links: impl IntoIterator<Item = (NodeKey, Link)>, seed: u8) -> Self {
        #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
        let now = Instant::now();
        Self {
            mtus: PathMtus::new([seed; 32]),
            links: links.into_iter().collect(),
            routes: BTreeMap::new(),
            sent: BTreeMap::new(),
            answers: BTreeSet::new(),
            held: None,
            probes: Vec::new(),
            news: Vec::new(),
            rng: StdRng::from_seed([seed; 32]),
            now,
            look_at: now,
        }
    }

    pub(super) fn one(link: Link) -> Self {
        Self::new([(PEER, link)], 7)
    }

    pub(super) fn link(&mut self) -> &mut Link {
        self.links.get_mut(&PEER).unwrap()
    }

    pub(super) fn known(&self) -> Known {
        self.mtus.known(&PEER).unwrap()
    }

    pub(super) fn mtu(&self) -> u32 {
        self.known().mtu.mtu
    }

    pub(super) fn is_settled(&self) -> bool {
        self.mtus.known(&PEER).is_some_and(|known| known.state == State::Complete)
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Seconds until `done`, at most `limit`.
    pub(super) fn until(&mut self, limit: u64, done: impl Fn(&Self) -> bool) -> f64 {
        let start = self.now;
        while !done(self) {
            self.tick();
            let passed = self.now - start;
            assert!(passed < Duration::from_secs(limit), "{:?}", self.mtus.known(&PEER));
        }
        (self.now - start).as_secs_f64()
    }

    fn seen(&self, key: &NodeKey, link: &Link) -> Seen {
        let address = if link.v6 { "2001:db8::1" } else { "192.0.2.1" };
        let (route, fragments) = self.routes.get(key).copied().unwrap_or((1_280, false));
        Seen {
            up: true,
            endpoint: SocketAddr::new(address.parse().unwrap(), link.port),
            largest: link.largest,
            pad: if link.pad_follows { route } else { link.largest },
            pad_follows: link.pad_follows,
            whole: link.v6 || !fragments,
            fragments: !link.v6,
            alive: link.answers,
            sent: self.sent.get(key).copied().unwrap_or(0),
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        for (key, link) in &self.links {
            *self.sent.entry(*key).or_default() += link.traffic / 100;
        }
        while let Some((at, id, key)) = self.answers.first().copied()
            && at <= self.now
        {
            self.answers.pop_first();
            self.mtus.handle_answer(&key, id, self.now);
        }
        if self.mtus.take_changed() {
            for key in self.links.keys() {
                if let Some(known) = self.mtus.known(key) {
                    let fragments = known.mtu.small == Some(Small::Fragmented);
                    self.routes.insert(*key, (known.mtu.mtu.max(1_280), fragments));
                }
            }
            self.look_at = self.now;
        }
        if self.look_at <= self.now {
            self.look_at = self.now + LOOK;
            let seen = self.links.iter().map(|(key, link)| (*key, self.seen(key, link))).collect();
            self.mtus.observe(&seen, |_| self.held, self.now);
        }
        if self.mtus.poll_timeout().is_some_and(|at| at <= self.now) {
            for probe in self.mtus.handle_timeout(self.now) {
                self.send(probe);
            }
        }
        while let Some(news) = self.mtus.poll_news() {
            self.news.push(news);
        }
    }

    fn send(&mut self, probe: Probe) {
        self.probes.push((self.now, probe));
        let link = self.links[&probe.to];
        let (route, fragments) = self.routes.get(&probe.to).copied().unwrap_or((1_280, false));
        let pad = if link.pad_follows { route } else { link.largest };
        let last = if probe.size > pad { probe.size % pad } else { probe.size };
        let wire = probe.size - last + last.next_multiple_of(16).min(pad);
        assert!(wire <= link.largest, "{probe:?} leaves as {wire}: the link itself would fragment");
        let whole = wire <= link.carries || (!link.v6 && fragments && wire <= 1_280);
        let lost = self.rng.random_range(0..100) < link.loss;
        if whole && link.answers && !lost {
            self.answers.insert((self.now + link.rtt, probe.id, probe.to));
        }
    }
}
