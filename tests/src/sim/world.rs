//! The event queue, and what happens to what nodes want done.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use meshd_core::{
    node::{NodeConfig, Output},
    now::{Now, UnixTime},
    trust::RecordDraft,
};
use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    event::{Event, Report},
    host::Host,
    links::{Links, Weather},
    mesh::{self, Mesh, START},
    network::Verified,
    observe::Watched,
};

/// A connection over which nothing passes ends after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// More timer events than this at one instant are a busy loop.
const SPINS: u32 = 1_000;

/// All hosts and the network between them.
#[derive(Debug)]
pub struct World {
    /// What the run follows from.
    pub seed: u64,
    /// The mesh's CA.
    pub mesh: Mesh,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Who reaches whom.
    pub links: Links,
    pub(super) config: NodeConfig,
    pub(super) rng: StdRng,
    pub(super) start: Now,
    pub(super) now: Now,
    /// From when on the wall clock is so many times as fast as the other.
    pub(super) wall: (Instant, UnixTime, i64),
    pub(super) queue: BTreeMap<(Instant, u64), Event>,
    pub(super) sequence: u64,
    pub(super) by_key: BTreeMap<NodeKey, Vec<usize>>,
    /// The highest version of each member that each host held: none may go below.
    pub(super) floors: Vec<BTreeMap<NodeKey, u64>>,
    /// Stored bytes that were verified here, apart from the nodes' own cache, by their hash.
    pub(super) verified: BTreeMap<[u8; 32], Verified>,
    /// A record that is awaited, and when it came to whom.
    pub(super) watched: Option<Watched>,
    pub(super) report: Report,
    pub(super) trace: DefaultHasher,
}

impl World {
    /// `count` hosts that do not run yet.
    #[must_use]
    pub fn new(seed: u64, count: usize, weather: Weather) -> Self {
        Self::with_certificates(seed, count, weather, 365 * 24 * 3600)
    }

    /// The same, with certificates of `life` seconds.
    #[must_use]
    pub fn with_certificates(seed: u64, count: usize, weather: Weather, life: i64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mesh = Mesh::new(&mut rng, life);
        let hosts: Vec<_> = (0..count)
            .map(|i| {
                let identity = mesh.identity(i, &mut rng);
                let draft = mesh.draft(i, &identity);
                Host::new(identity, draft, mesh.anchors.clone())
            })
            .collect();
        let start = Now { mono: Instant::now(), unix: START };
        Self {
            seed,
            mesh,
            by_key: hosts.iter().enumerate().map(|(i, host)| (host.key(), vec![i])).collect(),
            floors: vec![BTreeMap::new(); count],
            hosts,
            links: Links::new(weather),
            config: NodeConfig::default(),
            rng,
            start,
            now: start,
            wall: (start.mono, start.unix, 1),
            queue: BTreeMap::new(),
            sequence: 0,
            verified: BTreeMap::new(),
            watched: None,
            report: Report::default(),
            trace: DefaultHasher::new(),
        }
    }

    /// Makes a host a signer, from its next start on.
    pub fn make_signer(&mut self, host: usize) {
        let key = self.hosts[host].key();
        if self.hosts.iter().all(|host| host.signer.is_none()) {
            self.mesh.name_signer(key);
            for host in &mut self.hosts {
                host.anchors = self.mesh.anchors.clone();
            }
        }
        let signer = self.mesh.signer(&self.hosts[host].identity.key);
        self.hosts[host].signer = Some(signer);
    }

    /// Lets the wall clock of all hosts run so much faster than their other one: certificates live for
    /// weeks, and probes are sent every second.
    pub fn hasten(&mut self, factor: i64) {
        let begin = self.now;
        self.wall = (begin.mono, begin.unix, factor);
    }

    /// A signer ends the membership of `host`.
    ///
    /// # Panics
    /// If `signer` is none, or does not run.
    pub fn revoke(&mut self, signer: usize, host: usize) {
        let certificate = self.hosts[host].identity.certificate.clone();
        let now = self.now.unix;
        let by = self.hosts[signer].signer.as_ref().expect("a signer");
        let signed = by.revoke(certificate.key, certificate.name.clone(), None, now);
        self.with(signer, |node, now| {
            node.revoke(&signed, now).expect("its own signature");
        });
    }

    /// Settings of nodes that are started from now on.
    pub fn set_config(&mut self, config: NodeConfig) {
        self.config = config;
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.mono - self.start.mono
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now.mono
    }

    /// What happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { trace: self.trace.finish(), ..self.report.clone() }
    }

    /// Starts a host's daemon, from its store if it ran before.
    pub fn start(&mut self, host: usize) {
        // The first packet on an old connection is answered with a reset.
        for peer in self.links.peers(host) {
            self.links.disconnect(host, peer);
            self.disconnected(host, peer);
        }
        self.hosts[host].start(&self.mesh, self.config.clone(), &mut self.rng, self.now);
        self.step(host);
    }

    /// A second host with the key of `host`; gives its number. It is reached at its own address.
    pub fn clone_of(&mut self, host: usize) -> usize {
        let place = self.hosts.len();
        let original = &self.hosts[host];
        let mut draft = original.draft.clone();
        draft.endpoints = vec![mesh::address(place)];
        let anchors = original.anchors.clone();
        let mut clone = Host::new(Arc::clone(&original.identity), draft, anchors);
        clone.seeds = vec![mesh::address(0)];
        self.hosts.push(clone);
        self.floors.push(BTreeMap::new());
        self.by_key.entry(self.hosts[host].key()).or_default().push(place);
        place
    }

    /// Kills a host's daemon; its peers notice when their connections time out.
    pub fn crash(&mut self, host: usize) {
        self.hosts[host].stop();
        for peer in self.links.peers(host) {
            self.push(IDLE_TIMEOUT, Event::Broken(host, peer));
        }
    }

    /// Changes what a host says of itself.
    pub fn update(&mut self, host: usize, change: impl FnOnce(&mut RecordDraft)) {
        change(&mut self.hosts[host].draft);
        let draft = self.hosts[host].draft.clone();
        self.with(host, |node, now| node.update_self(draft, now));
    }

    /// A host leaves for good.
    pub fn leave(&mut self, host: usize) {
        self.with(host, |node, now| node.leave(now));
    }

    /// A host's connection brings something that no daemon of ours would say.
    pub fn say(&mut self, from: usize, to: usize, body: wire::frame::Body) {
        let key = self.hosts[from].key();
        let bytes = wire::Frame { body: Some(body) }.encode_to_vec();
        self.with(to, |node, now| node.handle_frame(key, &bytes, now));
    }

    /// Puts hosts onto islands.
    pub fn partition(&mut self, island: impl Fn(usize) -> u32) {
        (0..self.hosts.len()).for_each(|host| self.links.set_island(host, island(host)));
        for (a, b) in self.links.broken() {
            self.push(IDLE_TIMEOUT, Event::Broken(a, b));
        }
    }

    /// One link fails for good: these two reach each other through others only.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.links.cut(a, b);
        self.push(IDLE_TIMEOUT, Event::Broken(a, b));
    }

    /// There are no islands any more.
    pub fn heal(&mut self) {
        (0..self.hosts.len()).for_each(|host| self.links.set_island(host, 0));
    }

    /// Runs for a time.
    pub fn run(&mut self, time: Duration) {
        let end = self.now.after(time).mono;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let at = entry.key().0;
            let event = entry.remove();
            self.set_time(at);
            self.report.events += 1;
            self.handle(event);
        }
        self.set_time(end);
    }

    fn set_time(&mut self, at: Instant) {
        let (mono, unix, factor) = self.wall;
        let seconds = i64::try_from((at - mono).as_secs()).unwrap_or(0);
        self.now = Now { mono: at, unix: unix.plus(seconds * factor) };
    }

    pub(super) fn push(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now.mono + after, self.sequence), event);
    }

    /// Calls a running node, then does what it wants.
    pub(super) fn with(
        &mut self,
        host: usize,
        call: impl FnOnce(&mut meshd_core::node::Node, Now),
    ) {
        let now = self.now;
        if let Some(node) = &mut self.hosts[host].node {
            call(node, now);
            self.step(host);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer(host) => self.timer(host),
            Event::Datagram { from, to, bytes } => {
                if self.links.reach(from, to) {
                    let key = self.hosts[from].key();
                    self.with(to, |node, now| node.handle_datagram(key, &bytes, now));
                }
            }
            Event::Frame { from, to, bytes } => {
                if self.links.reach(from, to) && self.hosts[to].node.is_some() {
                    let key = self.hosts[from].key();
                    self.with(to, |node, now| node.handle_frame(key, &bytes, now));
                } else {
                    let key = self.hosts[to].key();
                    self.with(from, |node, now| node.handle_unreachable(key, now));
                }
            }
            Event::Greeting { from, to } => self.greeted(from, to),
            Event::Acknowledged { by, to } => self.acknowledged(by, to),
            Event::Dialled { from, to, addr, expected } => self.dialled(from, to, addr, expected),
            Event::Door { host, id, reply } => {
                self.with(host, |node, now| node.handle_renewal_reply(id, reply.as_deref(), now));
            }
            Event::Idle(a, b) => self.end_if_idle(a, b),
            Event::Broken(a, b) => {
                let up = |host: usize| self.hosts[host].node.is_some();
                if !(up(a) && up(b) && self.links.reach(a, b)) && self.links.disconnect(a, b) {
                    self.disconnected(a, b);
                }
            }
        }
    }

    fn timer(&mut self, host: usize) {
        let now = self.now.mono;
        let seed = self.seed;
        let one = &mut self.hosts[host];
        if one.timer != Some(now) {
            return; // Another one was set since, or the host crashed.
        }
        one.timer = None;
        one.spins =
            if one.spins.0 == Some(now) { (Some(now), one.spins.1 + 1) } else { (Some(now), 0) };
        assert!(
            one.spins.1 < SPINS,
            "seed {seed}: n{host} is in a busy loop, for {:?}",
            one.node.as_ref().map(|node| node.poll_timeout())
        );
        self.with(host, |node, now| node.handle_timeout(now));
    }

    /// Does what a node wants, checks what it holds, and sets its timer.
    fn step(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].node.as_mut().and_then(|node| node.poll_output())
        {
            self.note(host, &output);
            self.carry_out(host, output);
        }
        self.sign_time_if_due(host);
        let Some(node) = &self.hosts[host].node else { return };
        let Some((at, _)) = node.poll_timeout() else { return };
        let at = at.max(self.now.mono);
        if self.hosts[host].timer.is_none_or(|set| at < set) {
            self.hosts[host].timer = Some(at);
            self.push(at - self.now.mono, Event::Timer(host));
        }
    }

    fn sign_time_if_due(&mut self, host: usize) {
        let now = self.now;
        let one = &self.hosts[host];
        let due = one.node.as_ref().is_some_and(|node| node.wants_time(now));
        if let Some(signer) = one.signer.as_ref().filter(|_| due) {
            let time = signer.sign_time(now.unix);
            self.with(host, |node, now| {
                node.take_time(&time, now).expect("its own signature");
            });
        }
    }

    fn note(&mut self, host: usize, output: &Output) {
        let (kind, bytes): (u8, &[u8]) = match output {
            Output::Datagram { bytes, .. } => (1, bytes),
            Output::Frame { bytes, .. } => (2, bytes),
            Output::Store { bytes, .. } => (3, bytes),
            Output::Event(event) => (4, event.code.as_bytes()),
            Output::Contact { .. } => (5, &[]),
            Output::Greet { .. } => (7, &[]),
            _ => (6, &[]),
        };
        let elapsed = (self.now.mono - self.start.mono).as_nanos();
        self.trace.write_u128(elapsed);
        self.trace.write_usize(host);
        self.trace.write_u8(kind);
        self.trace.write(bytes);
    }

    /// A random number of the run, e.g. to pick a victim.
    pub fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }
}
