//! One member of the mesh, without I/O: what it knows, what it tells whom, and when.
//!
//! Responsible for gluing the [directory](crate::directory), SWIM, dissemination and anti-entropy
//! together behind `handle_*`, `poll_output` and `poll_timeout`. Not for sockets, connections, files
//! or the kernel: the daemon's loop and the simulator call it and carry its [`Output`]s out.
//!
//! | file | decides |
//! |---|---|
//! | `own`, `renewal` | when this node's record is signed, with which version; clones; its next certificate |
//! | `records`, `barred` | which records are held, refused, forgotten; who is out |
//! | `dissemination` | whom a new record goes to |
//! | `partners`, `sync` | with whom directories are compared, and how |
//! | `membership` | who is there |
//! | `reports` | what is believed of those whom others watch |
//! | `time` | what time it is by the signers |
//! | `telling` | what is said of all this |
//! | `seeds`, `paths` | whom to try, and where |
//! | `frames`, `budget` | what a peer may ask for |

mod barred;
mod budget;
mod dissemination;
mod doubts;
mod frames;
mod handed;
mod lazy;
mod membership;
mod own;
mod partners;
mod paths;
mod records;
mod renewal;
mod reports;
mod rounds;
mod seeds;
mod sync;
mod telling;
mod time;
mod types;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_proto::{BootId, NodeKey, wire};
use rand::{SeedableRng, rngs::StdRng};

pub use self::own::Unnamed;
pub use self::paths::Observed;
pub use self::types::{
    Counters, Liveness, NodeConfig, Output, Profile, SharedRecord, TimeoutReason, Traffic,
    Unreachable, VersionBlock,
};
use self::{
    budget::{Budgets, Updates},
    dissemination::Dissemination,
    membership::Membership,
    own::Own,
    paths::Paths,
    renewal::Renewals,
    reports::Reports,
    seeds::Seeds,
    sync::Sync,
};
use crate::{
    directory::{Directory, Refused},
    event::Event,
    gateway,
    now::Now,
    refusal::{Code, Refusal},
    trust::{Anchors, NodeIdentity, VerifyCache, stamp::Stamper},
};

/// How often it is looked for members to forget.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// Verdicts that are remembered: a few times as many as a large mesh has members.
const CACHED_VERDICTS: usize = 4_096;

/// Verdicts about records. Those of one process may share it: the simulator's nodes do.
pub type SharedCache = Arc<Mutex<VerifyCache>>;

/// One member of the mesh.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    anchors: Anchors,
    cache: SharedCache,
    stamper: Stamper,
    rng: StdRng,
    directory: Directory,
    barred: BTreeMap<NodeKey, SharedRecord>,
    /// They are not as stored.
    store_revocations: bool,
    refused: Refused,
    own: Own,
    membership: Membership,
    dissemination: Dissemination,
    sync: Sync,
    reports: Reports,
    renewals: Renewals,
    seeds: Seeds,
    paths: Paths,
    budgets: Budgets,
    updates: Updates,
    /// At the last call, to tell a clock that was set.
    clock: Now,
    /// When the kernel saw the last handshake with each; `None`: never.
    handshakes: BTreeMap<NodeKey, Option<Instant>>,
    housekeeping: Instant,
    outputs: VecDeque<Output>,
    changed: bool,
    counters: Counters,
}

impl Node {
    /// A node that knows only itself and has published nothing yet. Call [`Self::restore`] for each
    /// stored record, then [`Self::set_seeds`], then [`Self::update_self`].
    ///
    /// `seed` is 32 random bytes; the same seed and calls give the same outputs.
    #[must_use]
    pub fn new(
        config: NodeConfig,
        identity: Arc<NodeIdentity>,
        anchors: Anchors,
        seed: [u8; 32],
        versions: VersionBlock,
        boot_id: BootId,
        now: Now,
    ) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let stamper = Stamper::new(&identity.key);
        let own = Own::new(identity, versions, boot_id, now.mono);
        let generation = own.generation();
        let membership =
            Membership::new(&own.key(), generation, config.profile, &mut rng, now.mono);
        Self {
            paths: Paths::new(anchors.mesh_id()),
            config,
            anchors,
            cache: Arc::new(Mutex::new(VerifyCache::new(CACHED_VERDICTS))),
            stamper,
            directory: Directory::default(),
            barred: BTreeMap::new(),
            store_revocations: false,
            refused: Refused::default(),
            own,
            membership,
            dissemination: Dissemination::default(),
            sync: Sync::new(now.mono),
            reports: Reports::default(),
            renewals: Renewals::new(&mut rng, now.mono),
            seeds: Seeds::default(),
            budgets: Budgets::default(),
            updates: Updates::default(),
            clock: now,
            handshakes: BTreeMap::new(),
            housekeeping: now.mono + HOUSEKEEPING,
            outputs: VecDeque::new(),
            changed: false,
            counters: Counters::default(),
            rng,
        }
    }

    /// Uses a cache of verdicts that others use too.
    pub fn share_cache(&mut self, cache: SharedCache) {
        self.cache = cache;
    }

    /// The addresses to try when no member answers, resolved by the daemon (again, whenever it likes).
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>, now: Now) {
        self.seeds.set(seeds, now.mono);
    }

    /// Changes how long the dead are remembered.
    pub fn set_forget_after(&mut self, forget_after: Duration) {
        self.config.forget_after = forget_after;
    }

    /// The prefixes that this host routes into the mesh now: endpoints inside them are not dialled, single addresses excepted.
    pub fn set_routed(&mut self, routed: impl IntoIterator<Item = IpNet>) {
        self.paths.set_routed(routed);
    }

    /// A connection to `key` is up, its certificate verified. `outgoing` if this host dialled. May be this
    /// node itself, when a seed is: close that connection.
    pub fn handle_connected(&mut self, key: NodeKey, remote: SocketAddr, outgoing: bool, now: Now) {
        let sought = outgoing && self.seeds.answered(remote, key);
        if self.anchors.revocation(&key).is_some() {
            self.outputs.push_back(Output::Disconnect { key });
        } else if key != self.own.key() {
            self.paths.opened(key, remote, outgoing);
            self.send_hello(key, remote);
            let liveness = self.membership.liveness(&key).map(|(liveness, _)| liveness);
            let absent = matches!(liveness, None | Some(Liveness::Down));
            self.membership.heard(&key, now.mono);
            if sought || absent || !self.sync.completed() {
                self.open_exchange(key, now);
            }
        }
        self.settle(now);
    }

    /// One more connection to `key` is up. A seed of several addresses is no other member at each of them.
    pub fn handle_reached(&mut self, key: NodeKey, remote: SocketAddr, now: Now) {
        self.seeds.answered(remote, key);
        self.settle(now);
    }

    /// The last connection to `key` is gone.
    pub fn handle_disconnected(&mut self, key: NodeKey, now: Now) {
        self.paths.closed(&key);
        self.settle(now);
    }

    /// A datagram on a connection to `from`.
    pub fn handle_datagram(&mut self, from: NodeKey, bytes: &[u8], now: Now) {
        self.counters.datagrams.receive(bytes.len());
        if self.anchors.revocation(&from).is_some() {
            self.counters.refuse(Code::Revoked);
        } else if !self.budgets.of(&from, now.mono).datagrams.take(1, now.mono) {
            self.counters.refuse(Code::RateLimited);
        } else if let Err(refusal) = self.membership.handle_packet(&from, bytes, now.mono) {
            self.refused_record(from, &refusal);
        }
        self.settle(now);
    }

    /// `from` has acknowledged what [`Output::Greet`] asked to send.
    pub fn handle_acknowledged(&mut self, from: NodeKey, now: Now) {
        if self.anchors.revocation(&from).is_none() {
            self.membership.heard(&from, now.mono);
        }
        self.settle(now);
    }

    /// A dial or a send failed.
    pub fn handle_unreachable(&mut self, target: impl Into<Unreachable>, now: Now) {
        match target.into() {
            Unreachable::Member(key) => {
                self.drop_exchanges(&key);
                self.lose_signer(&key, now);
            }
            Unreachable::Address(addr) => self.paths.failed(addr, &mut self.rng, now.mono),
        }
        self.settle(now);
    }

    /// How long ago the kernel saw a WireGuard handshake with `key`; `None`: never.
    pub fn handle_handshake_age(&mut self, key: NodeKey, age: Option<Duration>, now: Now) {
        if self.directory.get(&key).is_some() {
            let at = age.and_then(|age| now.mono.checked_sub(age));
            self.handshakes.insert(key, at);
        }
    }

    /// Time has come to what [`Self::poll_timeout`] said. Early or late calls are harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        self.membership.handle_timeout(now.mono);
        self.handle_seed_timeout(now);
        self.handle_sync_timeout(now);
        self.handle_renewal_timeout(now);
        self.handle_reports_timeout(now);
        if self.housekeeping <= now.mono {
            self.housekeeping = now.mono + HOUSEKEEPING;
            self.forget_the_gone(now);
            self.heed_dates(now);
        }
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        let publish = self.own.next_timeout().map(|at| (at, TimeoutReason::Publish));
        let spread = self.dissemination.next_timeout().map(|at| (at, TimeoutReason::Spread));
        let seeds = self.next_seed().map(|at| (at, TimeoutReason::Seeds));
        let renewal = self.next_renewal().map(|at| (at, TimeoutReason::Renewal));
        self.membership
            .next_timeout()
            .into_iter()
            .chain(publish)
            .chain(spread)
            .chain(seeds)
            .chain(renewal)
            .chain(self.reports.next_timeout().map(|at| (at, TimeoutReason::Membership)))
            .chain([
                (self.sync.next_timeout(), TimeoutReason::Sync),
                (self.housekeeping, TimeoutReason::Housekeeping),
            ])
            .min()
    }

    /// What to do next. Call until `None` after every other call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs
            .pop_front()
            .or_else(|| std::mem::take(&mut self.changed).then_some(Output::Changed))
    }

    /// All verified records.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether `key` is there, and since when it is so. `None` if it has no record or is this node.
    #[must_use]
    pub fn liveness(&self, key: &NodeKey) -> Option<(Liveness, Instant)> {
        self.membership.liveness(key)
    }

    /// This node's own record as last signed, whether or not others would take it at this time: what the
    /// kernel of this host is planned from, also under a clock that is wrong.
    #[must_use]
    pub fn own_record(&self) -> Option<&SharedRecord> {
        self.own.view()
    }

    /// This node's identity.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.own.key()
    }

    /// The mesh's root and bundle as known now.
    #[must_use]
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// True once everybody's records can be taken for known, though nothing was known at the start.
    #[must_use]
    pub fn is_thoroughly_synced(&self, now: Instant) -> bool {
        self.sync.thorough(now)
    }

    /// True when this membership has ended, by [`Self::leave`] or before this start.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.own.has_left()
    }

    /// True when others have ended this membership.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.own.is_revoked()
    }

    /// True after the first completed exchange of this start, or when there is nobody to ask.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        let own = self.own.key();
        let nobody = || {
            !self.seeds.lead_elsewhere(&own)
                && self.directory.iter().all(|record| record.key == own || record.left)
        };
        self.sync.completed() || nobody()
    }

    /// Counters since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The address at which QUIC reached `key` last.
    #[must_use]
    pub fn path(&self, key: &NodeKey) -> Option<IpAddr> {
        self.paths.last(key)
    }

    /// This host's own address of each family as most others see it.
    #[must_use]
    pub fn observed(&self) -> Vec<Observed> {
        let own = self.own.key();
        let others = self.directory.iter().filter(|record| record.key != own && !record.left);
        self.paths.observed(others.count())
    }

    /// Where to dial `key` now, best first: what its record names, without what must not be dialled
    /// and what is backing off. Empty: do not dial. Where a gateway carries, its address inside the mesh is the only one.
    #[must_use]
    pub fn endpoints(&self, key: &NodeKey, now: Now) -> Vec<SocketAddr> {
        let Some(record) = self.directory.get(key).filter(|_| *key != self.own.key()) else {
            return Vec::new();
        };
        let own = self.own.view();
        let member = |key: &NodeKey| self.directory.get(key).map(|record| &**record);
        if own.is_some_and(|own| gateway::next_hop(own, record, member) != *key) {
            return self.paths.inside(self.anchors.mesh_id(), record, now.mono);
        }
        self.paths.endpoints(record, self.own.published(), &self.directory, now.mono)
    }

    /// What the receivers would refuse in this node's own record, and was therefore left out of it; with the prefix, where
    /// it is about one.
    #[must_use]
    pub fn own_refusals(&self) -> &[(Option<IpNet>, Refusal)] {
        self.own.refusals()
    }

    /// Verifies a record, or remembers that it was.
    fn verify(&self, signed: &wire::SignedRecord) -> Result<SharedRecord, Refusal> {
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .authenticate(signed, &self.anchors)
    }

    /// Ends every call: what the parts want done becomes outputs.
    fn settle(&mut self, now: Now) {
        if self.clock.was_set_before(now) {
            // Dates were judged by a wrong clock.
            self.refused = Refused::default();
        }
        self.clock = now;
        self.note_contact(now.mono);
        self.publish_if_due(now);
        self.report_what_was_seen(now);
        self.flush_revocations();
        self.flush_fresh(now.mono);
        while let Some(to) = self.membership.poll_greeting() {
            self.counters.frames.send(0);
            self.outputs.push_back(Output::Greet { to });
        }
        while let Some((to, bytes)) = self.membership.poll_send() {
            self.counters.datagrams.send(bytes.len());
            self.outputs.push_back(Output::Datagram { to, bytes });
        }
        while let Some((key, liveness)) = self.membership.poll_change() {
            self.changed = true;
            self.reports.heed_liveness(key, liveness);
            let name = self.directory.display_name(&key);
            let event = match liveness {
                Liveness::Alive => Event::info("member_alive", format!("{name} answers")),
                Liveness::Down => {
                    Event::warning("member_down", format!("{name} does not answer any more"))
                }
                Liveness::Suspect | Liveness::Left => continue,
            };
            self.tell(event.about(key, name));
        }
        for (code, count) in self.membership.take_refusals() {
            self.counters.add_refusals(code, count);
        }
    }
}
