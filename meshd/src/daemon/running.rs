//! A host that belongs to a mesh: the core's node with what carries out its outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use bytes::Bytes;
use ipnet::IpNet;
use meshd_core::{
    address,
    node::{Liveness, Node, Output},
    path_mtu::PathMtus,
    plan::{FirstHandshakes, Observed, Plan, PlanPace, Revival, TunnelState, TunnelTracker},
    reached::Reached,
    refusal::{Code, Refusal},
    trust::{Anchors, LaneKey, NodeCertificate, NodeIdentity, Record, RecordDraft, Signer},
};
use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;

use super::{
    carrying::Carrying, clock, counters::Counters, devices::Devices, enrolment::Forwarded,
    events::EventLog, identities::Identities, own::Own, zones::Zones,
};
use crate::{
    config::Config,
    host::Load,
    probe::{self, Heard, Prober},
    state::{StateDir, store::Store},
    transport::{ChainCheck, Transport},
};

/// Everything that exists only while this host belongs to a mesh.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) identity: Arc<NodeIdentity>,
    pub(super) lane: LaneKey,
    pub(super) store: Store,
    pub(super) signer: Option<Signer>,
    pub(super) events: EventLog,
    pub(super) anchors: SharedAnchors,
    pub(super) seeds: Vec<String>,
    pub(super) prober: Option<Arc<Prober>>,
    pub(super) prober_failed: bool,
    pub(super) members: probe::Members,
    pub(super) tracker: TunnelTracker,
    pub(super) first: FirstHandshakes,
    pub(super) load: Load,
    pub(super) revival: Revival,
    pub(super) mtus: PathMtus,
    /// MTUs that the routes to mesh addresses had before this start.
    pub(super) held: BTreeMap<IpNet, u32>,
    /// Node addresses: what was said and heard.
    pub(super) carrying: Carrying,
    /// Gateways, and who is heard through them.
    pub(super) zones: Zones,
    /// What the prober hears goes there.
    pub(super) heard: mpsc::Sender<Heard>,
    pub(super) observed: Option<Observed>,
    /// When the kernel held that.
    pub(super) observed_at: Option<Instant>,
    pub(super) plan: Plan,
    pub(super) plan_number: u64,
    pub(super) pace: PlanPace,
    /// Where each member was reached; outlives the connection and the daemon.
    pub(super) reached: Reached,
    pub(super) dataplane_errors: Vec<(&'static str, String)>,
    /// What was last repaired after others.
    pub(super) repaired: String,
    /// Others undo repairs as fast as they are made.
    pub(super) contested: bool,
    pub(super) damage: Vec<String>,
    pub(super) forwarded: Forwarded,
    pub(super) identities: Identities,
    pub(super) devices: Devices,
    /// Set when the node has said whom its leave was sent to.
    pub(super) left: Option<Vec<NodeKey>>,
    /// Every record that was stored is known again; otherwise the kernel may hold members that we do not.
    pub(super) store_whole: bool,
    /// Why the revocations on disk cannot be read; until they are written anew.
    pub(super) revocations_lost: Option<String>,
    /// Why the store's buffers could not be written the last time.
    pub(super) flush_error: Option<String>,
    /// Records were put that are not flushed yet.
    pub(super) store_dirty: bool,
    /// The device was seen to be as planned at least once.
    pub(super) programmed: bool,
}

/// What the loop has to do beyond sending and storing.
#[derive(Default)]
pub(super) struct Wants {
    /// Answers for strangers that were handed on.
    pub(super) replies: Vec<(NodeKey, u64, Bytes)>,
    /// Requests for this host's signer.
    pub(super) requests: Vec<(NodeKey, u64, Bytes)>,
    /// Requests of this node that go through the door of strangers.
    pub(super) doors: Vec<(u64, Bytes)>,
    /// Answers to an invitation.
    pub(super) offers: Vec<(NodeKey, wire::SignerOffer)>,
    /// The bundle is another.
    pub(super) signership: bool,
    /// This node's certificate is another, and with it perhaps its address.
    pub(super) announce: bool,
    /// Connections that stand may be none any more.
    pub(super) check: bool,
}

/// The anchors that connections are checked against.
#[derive(Clone)]
pub(super) struct SharedAnchors(pub(super) Arc<RwLock<Anchors>>);

impl SharedAnchors {
    pub(super) fn get(&self) -> Anchors {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, anchors: Anchors) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = anchors;
    }
}

impl ChainCheck for SharedAnchors {
    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<NodeCertificate>, Refusal> {
        let leaf = chain
            .first()
            .ok_or_else(|| Refusal::new(Code::UntrustedChain, "no certificate was shown"))?;
        self.get().check_chain(leaf, Some(clock::unix()))
    }

    fn check_again(&self, certificate: &NodeCertificate) -> Result<(), Refusal> {
        let anchors = self.get();
        anchors.check_membership(&certificate.key)?;
        if anchors.issuer_of(certificate).is_none() {
            let why = "the signer of its certificate is none any more";
            return Err(Refusal::new(Code::UnknownIssuer, why));
        }
        certificate.check_dates(anchors.trust_time(clock::unix()))
    }
}

impl Running {
    /// This node's own record, as last published.
    pub(super) fn own_record(&self) -> Option<Arc<Record>> {
        self.node.own_record().cloned()
    }

    /// Tells the node what this host is now.
    pub(super) fn announce(&mut self, own: &Own, config: &Config, gossip_port: u16) {
        let draft = self.draft(own, config, gossip_port);
        self.node.update_self(draft, clock::now());
        self.pace.at_once(Instant::now());
    }

    fn draft(&self, own: &Own, config: &Config, gossip_port: u16) -> RecordDraft {
        let certificate = &self.identity.certificate;
        let ranges = self.devices.ranges(certificate, &own.prefixes);
        let lane =
            self.lane.to_wire(&certificate.mesh_id, &certificate.key, config.wireguard.port, 0);
        RecordDraft {
            lanes: vec![lane],
            mesh_addresses: certificate.mesh_addresses(),
            prefixes: own.prefixes.union(&ranges).copied().collect(),
            workloads: own.workloads.addresses.iter().copied().collect(),
            node_claims: self.node_claims(own, config),
            endpoints: own.endpoints(config, gossip_port),
            zone: config.node.zone.clone(),
            capabilities: Self::capabilities(config),
            via: self.via(config),
            left: false,
            node_addresses: own.node_addresses(config),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Carries out what the node wants done.
    pub(super) fn pump(
        &mut self,
        transport: &mut Transport,
        state: &StateDir,
        counters: &mut Counters,
        wants: &mut Wants,
    ) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Datagram { to, bytes } => {
                    let addresses = self.addresses(transport, &to);
                    transport.send_datagram(to, bytes, addresses);
                }
                Output::Frame { to, bytes } => {
                    let addresses = self.addresses(transport, &to);
                    if addresses.is_empty() && !transport.is_reachable(&to) {
                        self.node.handle_unreachable(to, clock::now());
                    } else {
                        transport.send_frame(to, bytes, addresses);
                    }
                }
                Output::Greet { to } => {
                    let addresses = self.addresses(transport, &to);
                    transport.greet(to, addresses);
                }
                Output::Contact { addr } => transport.contact(addr),
                Output::Store { key, bytes } => {
                    self.store_dirty = true;
                    if let Err(why) = self.store.put(&key, &bytes) {
                        self.store_failed(&why);
                    }
                }
                Output::SignerInvite { from, invite } => {
                    self.answer_invite(from, &invite, state, counters);
                }
                Output::SignerOffer { from, offer } => wants.offers.push((from, offer)),
                Output::StoreBundle(bytes) => {
                    wants.signership = true;
                    wants.check = true;
                    self.follow_anchors();
                    self.pace.at_once(Instant::now());
                    let saved = state
                        .save_bundle(&bytes)
                        .and_then(|()| state.save_root_certificate(self.node.anchors()));
                    if let Err(error) = saved {
                        self.store_failed(&error.to_string());
                    }
                }
                Output::StoreRevocations(bytes) => {
                    wants.check = true;
                    self.follow_anchors();
                    // Who is revoked does not wait for the distance between plans.
                    self.pace.at_once(Instant::now());
                    if let Err(error) = state.save_revocations(&bytes) {
                        self.store_failed(&error.to_string());
                    }
                }
                Output::Disconnect { key } => transport.close_soon(&key, "revoked"),
                Output::Forget { key } => {
                    self.reached.forget(&key);
                    self.store_dirty = true;
                    if let Err(why) = self.store.remove(&key) {
                        self.store_failed(&why);
                    }
                }
                Output::Changed => self.pace.soon(Instant::now()),
                Output::ReserveVersions { at_least } => match state.reserve_versions(at_least) {
                    Ok(block) => self.node.handle_versions(block, clock::now()),
                    Err(error) => self.store_failed(&error.to_string()),
                },
                Output::Left { to } => self.left = Some(to),
                Output::EnrolForward { from, id, request } => {
                    wants.requests.push((from, id, request));
                }
                Output::EnrolReply { from, id, reply } => wants.replies.push((from, id, reply)),
                Output::AskAtTheDoor { id, request } => wants.doors.push((id, request)),
                Output::Renewed { certificate } => {
                    self.renewed(&certificate, state, transport);
                    wants.announce = true;
                }
                Output::StoreTime(bytes) => {
                    self.follow_anchors();
                    if let Err(error) = state.save_time(&bytes) {
                        self.store_failed(&error.to_string());
                    }
                }
                Output::Event(event) => {
                    // What a dead process left behind must not swallow what is sent to the next.
                    if event.code == "member_down"
                        && let Some(key) = event.subject
                    {
                        transport.close(&key, "down");
                    }
                    self.events.emit(event);
                }
            }
        }
    }

    /// Connections and enrolments are judged by what the node knows now.
    pub(super) fn follow_anchors(&mut self) {
        let anchors = self.node.anchors().clone();
        if let Some(signer) = &mut self.signer {
            signer.set_anchors(anchors.clone());
        }
        self.anchors.set(anchors);
    }

    fn addresses(&self, transport: &Transport, to: &NodeKey) -> Vec<SocketAddr> {
        if transport.is_reachable(to) { Vec::new() } else { self.node.endpoints(to, clock::now()) }
    }

    /// A cache that cannot be written is no reason to stop: gossip goes on.
    pub(super) fn store_failed(&mut self, why: &str) {
        tracing::error!(%why, "cannot write the state directory");
        let line = format!("the state directory cannot be written: {why}");
        if !self.damage.contains(&line) && self.damage.len() < 16 {
            self.damage.push(line);
        }
    }

    /// Every member that was known before can be taken for known now.
    pub(super) fn knows_all(&self, now: Instant) -> bool {
        self.store_whole || self.node.is_thoroughly_synced(now)
    }

    /// Blocks until the records are on the disk.
    pub(super) fn sync_store(&self) -> Result<(), String> {
        let flusher = self.store.flusher();
        if self.knows_all(Instant::now()) { flusher.sync_whole() } else { flusher.sync() }
    }

    /// After a failed write sled never writes again: it is opened anew, and holds what is known now.
    pub(super) fn reopen_store(&mut self, path: &Path) {
        self.store.close();
        let opened = Store::open(path);
        self.store = opened.store;
        let directory = self.node.directory();
        // Of those who are members no more too, so that what was theirs stays refused.
        let kept: BTreeMap<_, _> =
            self.node.barred().chain(directory.iter()).map(|r| (r.key, &r.signed)).collect();
        let mut gone = opened.records.iter().map(|(key, _)| key).filter(|k| !kept.contains_key(k));
        // Without stamps: some were verified with another bundle than this one.
        let written = gone.try_for_each(|key| self.store.remove(key)).and_then(|()| {
            kept.iter()
                .try_for_each(|(key, signed)| self.store.put(key, &signed.encode_to_vec()))?;
            self.reached.iter().try_for_each(|(key, all)| self.store.put_reached(key, all))
        });
        if let Err(why) = written {
            tracing::error!(%why, "the record store was not written");
        }
    }

    /// What was lost has come back with the first exchange.
    pub(super) fn mend_revocations(&mut self, state: &StateDir) {
        let alone = self.node.directory().len() < 2;
        if self.revocations_lost.is_none() || !self.node.is_synced() || alone {
            return;
        }
        match state.save_revocations(&self.node.anchors().encode_revocations()) {
            Ok(()) => self.revocations_lost = None,
            Err(error) => self.store_failed(&error.to_string()),
        }
    }

    /// Starts the probe service, or says once why it cannot.
    pub(super) fn start_prober(&mut self) {
        if self.prober.is_some() || self.prober_failed {
            return;
        }
        let Some(device) = &self.plan.desired.device else { return };
        let (members, heard) = (self.members.clone(), self.heard.clone());
        match Prober::start(self.own_ula(), device.name.clone(), members, heard) {
            Ok(prober) => self.prober = Some(Arc::new(prober)),
            Err(error) => {
                self.prober_failed = true;
                tracing::warn!(%error, "the probe service cannot start");
            }
        }
    }

    /// This node's ULA.
    pub(super) fn own_ula(&self) -> Ipv6Addr {
        address::ula(&self.identity.certificate.mesh_id, &self.node.key())
    }

    /// Tells the age of the newest handshake with each member, for forgetting, and tries stale tunnels of those that are
    /// there.
    pub(super) fn tell_handshakes(&mut self) {
        let mut stale = BTreeSet::new();
        let ages: Vec<_> = self
            .node
            .directory()
            .iter()
            .filter_map(|record| {
                let lane = record.lanes.first()?;
                let health = self.tracker.health(&lane.public_key)?;
                if health.state == TunnelState::Stale && self.is_alive(&record.key) {
                    stale.insert(record.key);
                }
                Some((record.key, health.last_handshake))
            })
            .collect();
        for (key, age) in ages {
            self.node.handle_handshake_age(key, age, clock::now());
        }
        if let Some(prober) = &self.prober {
            let mesh = self.identity.certificate.mesh_id;
            for key in self.revival.due(&stale, Instant::now()) {
                prober.poke(address::ula(&mesh, &key));
            }
        }
    }

    fn is_alive(&self, key: &NodeKey) -> bool {
        self.node.liveness(key).is_some_and(|(liveness, _)| liveness == Liveness::Alive)
    }
}
