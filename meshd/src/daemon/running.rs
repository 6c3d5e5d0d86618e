//! A host that belongs to a mesh: the core's node with what carries out its outputs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use meshd_core::{
    address,
    node::{Event, Liveness, Node, Output, Severity},
    now::UnixTime,
    plan::{LaneKeys, Member, Observed, Plan, PlanConfig, PlanInput, TunnelTracker, plan},
    refusal::{Code, Refusal},
    trust::{Anchors, LaneKey, NodeCertificate, NodeIdentity, Record, RecordDraft, Signer},
};
use meshd_proto::NodeKey;
use rustls_pki_types::CertificateDer;

use super::{clock, counters::Counters, enrolment::Forwarded, own::Own};
use crate::{
    config::{Automatic, Config},
    dataplane::Scope,
    probe::{self, Prober},
    reconcile::Report,
    state::{StateDir, store::Store},
    transport::{ChainCheck, Transport},
};

/// Plans are made at most this often: a burst of records costs one.
const PLAN_INTERVAL: Duration = Duration::from_millis(50);
/// How much later the second side of a pair starts its handshake: longer than one takes on a busy host.
const POKE_SECOND: Duration = Duration::from_millis(400);

/// Everything that exists only while this host belongs to a mesh.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) identity: Arc<NodeIdentity>,
    pub(super) lane: LaneKey,
    pub(super) store: Store,
    pub(super) signer: Option<Signer>,
    pub(super) anchors: SharedAnchors,
    pub(super) seeds: Vec<String>,
    pub(super) prober: Option<Arc<Prober>>,
    pub(super) members: probe::Members,
    pub(super) tracker: TunnelTracker,
    pub(super) observed: Option<Observed>,
    pub(super) plan: Plan,
    pub(super) plan_number: u64,
    pub(super) plan_due: Option<Instant>,
    pub(super) planned_at: Option<Instant>,
    /// Address over which each member was last reached; outlives the connection.
    pub(super) paths: BTreeMap<NodeKey, IpAddr>,
    pub(super) dataplane_errors: Vec<(&'static str, String)>,
    pub(super) damage: Vec<String>,
    pub(super) forwarded: Forwarded,
    /// Set when the node has said whom its leave was sent to.
    pub(super) left: Option<Vec<NodeKey>>,
    /// Records were put that are not flushed yet.
    pub(super) store_dirty: bool,
    /// The device was seen to be as planned at least once.
    pub(super) programmed: bool,
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
}

impl Running {
    /// This node's own record, as last published.
    pub(super) fn own_record(&self) -> Option<Arc<Record>> {
        self.node.directory().get(&self.node.key()).cloned()
    }

    /// Tells the node what this host is now.
    pub(super) fn announce(&mut self, own: &Own, config: &Config, gossip_port: u16) {
        let draft = self.draft(own, config, gossip_port);
        self.node.update_self(draft, clock::now());
        self.plan_due.get_or_insert_with(Instant::now);
    }

    fn draft(&self, own: &Own, config: &Config, gossip_port: u16) -> RecordDraft {
        let certificate = &self.identity.certificate;
        let lane =
            self.lane.to_wire(&certificate.mesh_id, &certificate.key, config.wireguard.port, 0);
        RecordDraft {
            lanes: vec![lane],
            mesh_addresses: certificate.mesh_addresses(),
            prefixes: own.prefixes.iter().copied().collect(),
            endpoints: own.endpoints(config, gossip_port),
            zone: config.node.zone.clone(),
            capabilities: Vec::new(),
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
        replies: &mut Vec<(u64, Bytes)>,
        requests: &mut Vec<(NodeKey, u64, Bytes)>,
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
                Output::Contact { addr } => transport.contact(addr),
                Output::Store { key, bytes } => {
                    self.store_dirty = true;
                    if let Err(why) = self.store.put(&key, &bytes) {
                        self.store_failed(&why);
                    }
                }
                Output::StoreBundle(bytes) => {
                    let anchors = self.node.anchors().clone();
                    if let Some(signer) = &mut self.signer {
                        signer.set_anchors(anchors.clone());
                    }
                    self.anchors.set(anchors);
                    if let Err(error) = state.save_bundle(&bytes) {
                        self.store_failed(&error.to_string());
                    }
                }
                Output::Forget { key } => {
                    self.paths.remove(&key);
                    self.store_dirty = true;
                    if let Err(why) = self.store.remove(&key) {
                        self.store_failed(&why);
                    }
                }
                Output::Changed => {
                    self.plan_due.get_or_insert_with(|| match self.planned_at {
                        Some(at) => at + PLAN_INTERVAL,
                        None => Instant::now(),
                    });
                }
                Output::ReserveVersions { at_least } => match state.reserve_versions(at_least) {
                    Ok(block) => self.node.handle_versions(block, clock::now()),
                    Err(error) => self.store_failed(&error.to_string()),
                },
                Output::Left { to } => self.left = Some(to),
                Output::EnrolForward { from, id, request } => requests.push((from, id, request)),
                Output::EnrolReply { id, reply, .. } => replies.push((id, reply)),
                Output::Event(event) => {
                    log(&event, counters);
                    // What a dead process left behind must not swallow what is sent to the next.
                    if event.code == "member_down"
                        && let Some(key) = event.subject
                    {
                        transport.close(&key, "down");
                    }
                }
            }
        }
    }

    fn addresses(&self, transport: &Transport, to: &NodeKey) -> Vec<SocketAddr> {
        if transport.is_reachable(to) { Vec::new() } else { self.node.endpoints(to, clock::now()) }
    }

    /// A cache that cannot be written is no reason to stop: gossip goes on.
    fn store_failed(&mut self, why: &str) {
        tracing::error!(%why, "cannot write the state directory");
        let line = format!("the state directory cannot be written: {why}");
        if !self.damage.contains(&line) && self.damage.len() < 16 {
            self.damage.push(line);
        }
    }

    /// Plans from what is known now, and returns what the data plane is to keep.
    pub(super) fn replan(
        &mut self,
        own: &Own,
        config: &Config,
    ) -> Option<(Arc<meshd_core::plan::Desired>, Scope)> {
        self.plan_due = None;
        self.planned_at = Some(Instant::now());
        let own_record = self.own_record()?;
        let now = Instant::now();
        let members: Vec<Member> = self
            .node
            .directory()
            .iter()
            .filter(|record| record.key != own_record.key)
            .map(|record| self.member(record, now))
            .collect();
        let plan_config = plan_config(config);
        let lane =
            LaneKeys { private_key: self.lane.private_key(), public_key: self.lane.public_key() };
        let local = own.local_network(self.node.observed());
        let planned = plan(&PlanInput {
            own: &own_record,
            lane: &lane,
            config: &plan_config,
            local: &local,
            members: &members,
        });
        self.publish_members();
        self.node.set_routed(planned.routed.values().flatten().copied().collect());
        let desired = Arc::new(planned.desired.clone());
        let scope = scope(config, &desired);
        self.plan = planned;
        Some((desired, scope))
    }

    fn member(&self, record: &Arc<Record>, now: Instant) -> Member {
        let (liveness, since) = self.node.liveness(&record.key).unwrap_or((Liveness::Suspect, now));
        let tunnel = record.lanes.first().and_then(|lane| self.tracker.health(&lane.public_key));
        Member {
            record: record.clone(),
            liveness,
            down_for: (liveness == Liveness::Down).then(|| now.saturating_duration_since(since)),
            path: self.paths.get(&record.key).copied(),
            tunnel,
        }
    }

    fn publish_members(&self) {
        let mesh = self.identity.certificate.mesh_id;
        let addresses = self.node.directory().iter().map(|r| address::ula(&mesh, &r.key)).collect();
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Takes in what the data plane did.
    pub(super) fn take_report(&mut self, report: Report, counters: &mut Counters) {
        let mesh = self.identity.certificate.mesh_id;
        counters.changes_applied += report.applied.len() as u64;
        counters.changes_failed += report.errors.len() as u64;
        if report.repaired && !report.applied.is_empty() {
            counters.drift_repaired += report.applied.len() as u64;
            tracing::warn!(
                changes = report.applied.len(),
                "repaired what another program changed: {}",
                describe(&report.applied)
            );
        } else if !report.applied.is_empty() {
            tracing::debug!(changes = report.applied.len(), "data plane changed");
        }
        let errors: Vec<_> =
            report.errors.iter().map(|error| (error.code(), error.to_string())).collect();
        if errors != self.dataplane_errors {
            for (code, text) in &errors {
                tracing::error!(code, "{text}");
            }
        }
        if errors.is_empty() && report.plan == self.plan_number {
            self.programmed = true;
        }
        self.dataplane_errors = errors;
        let Some(observed) = report.observed else { return };
        if let Some(prober) = self.start_prober() {
            for key in new_peers(&report.applied) {
                let record =
                    self.node.directory().iter().find(|record| {
                        record.lanes.first().is_some_and(|lane| lane.public_key == key)
                    });
                if let Some(record) = record {
                    // Two first messages that cross undo each other, and WireGuard tries again only
                    // after five seconds: so one side of each pair goes first. The other follows, since
                    // it may be the one that was programmed last.
                    let after =
                        if self.node.key() < record.key { Duration::ZERO } else { POKE_SECOND };
                    prober.poke(address::ula(&mesh, &record.key), after);
                }
            }
        }
        let before = self.tunnel_states();
        self.tracker.observe(&observed.peers, report.at);
        if self.tunnel_states() != before {
            self.plan_due.get_or_insert_with(|| Instant::now() + PLAN_INTERVAL);
        }
        self.observed = Some(observed);
    }

    fn tunnel_states(&self) -> Vec<Option<(meshd_core::plan::TunnelState, u32)>> {
        self.node
            .directory()
            .iter()
            .map(|record| {
                let lane = record.lanes.first()?;
                self.tracker.health(&lane.public_key).map(|h| (h.state, h.attempt))
            })
            .collect()
    }

    fn start_prober(&mut self) -> Option<Arc<Prober>> {
        if self.prober.is_none() {
            match Prober::start(self.own_ula(), self.members.clone()) {
                Ok(prober) => self.prober = Some(Arc::new(prober)),
                Err(error) => tracing::warn!(%error, "the probe service cannot start"),
            }
        }
        self.prober.clone()
    }

    /// This node's ULA.
    pub(super) fn own_ula(&self) -> Ipv6Addr {
        address::ula(&self.identity.certificate.mesh_id, &self.node.key())
    }

    /// Age of the newest handshake with each member, for forgetting.
    pub(super) fn tell_handshakes(&mut self) {
        let ages: Vec<_> = self
            .node
            .directory()
            .iter()
            .filter_map(|record| {
                let lane = record.lanes.first()?;
                let health = self.tracker.health(&lane.public_key)?;
                Some((record.key, health.last_handshake))
            })
            .collect();
        for (key, age) in ages {
            self.node.handle_handshake_age(key, age, clock::now());
        }
    }

    /// When the certificate ends.
    pub(super) fn certificate_end(&self) -> UnixTime {
        self.identity.certificate.not_after
    }
}

fn new_peers(changes: &[meshd_core::plan::Change]) -> Vec<meshd_proto::WgPublicKey> {
    changes
        .iter()
        .filter_map(|change| match change {
            meshd_core::plan::Change::PutPeer { public_key, new: true, .. } => Some(*public_key),
            _ => None,
        })
        .collect()
}

fn describe(changes: &[meshd_core::plan::Change]) -> String {
    const SHOWN: usize = 4;
    let mut text =
        changes.iter().take(SHOWN).map(|change| format!("{change}")).collect::<Vec<_>>().join(", ");
    if changes.len() > SHOWN {
        text.push_str(&format!(" and {} more", changes.len() - SHOWN));
    }
    text
}

fn log(event: &Event, counters: &mut Counters) {
    counters.event(event.code);
    let subject = event.subject.map(|key| key.to_string()).unwrap_or_default();
    match event.severity {
        Severity::Info => tracing::info!(code = event.code, node = %subject, "{}", event.text),
        Severity::Warning => tracing::warn!(code = event.code, node = %subject, "{}", event.text),
        Severity::Error => tracing::error!(code = event.code, node = %subject, "{}", event.text),
    }
}

/// The part of the configuration that the planner takes.
pub(super) fn plan_config(config: &Config) -> PlanConfig {
    PlanConfig {
        interface: config.wireguard.interface.to_string(),
        listen_port: config.wireguard.port,
        fwmark: config.wireguard.fwmark,
        table: config.network.table,
        rule_priority: config.network.rule_priority,
        mtu: match config.network.mtu {
            Automatic::Auto => None,
            Automatic::Given(mtu) => Some(u32::from(mtu)),
        },
        keepalive: config.wireguard.persistent_keepalive,
    }
}

/// What the data plane is to look at for `desired`.
pub(super) fn scope(config: &Config, desired: &meshd_core::plan::Desired) -> Scope {
    Scope {
        interface: config.wireguard.interface.to_string(),
        table: config.network.table,
        rule_priority: config.network.rule_priority,
        sysctls: desired.device.iter().flat_map(|device| device.sysctls.keys().cloned()).collect(),
    }
}
