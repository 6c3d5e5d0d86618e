//! One host: what survives a crash, and the node while it runs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use meshd_core::{
    event::Event,
    node::{Node, NodeConfig, VersionBlock},
    now::Now,
    trust::{Anchors, Known, NodeIdentity, RecordDraft, Signer},
};
use meshd_proto::{BootId, NodeKey, wire};
use prost::Message as _;
use rand::{Rng, rngs::StdRng};

use super::mesh::Mesh;

/// Versions in one block: small, so that blocks run out in every simulation.
const BLOCK: u64 = 8;
/// Events that are kept for a test to look at.
const EVENTS: usize = 10_000;

/// A host of the simulation.
#[derive(Debug)]
pub struct Host {
    /// Its daemon, while it runs.
    pub node: Option<Node>,
    /// Key and certificate, the newest.
    pub identity: Arc<NodeIdentity>,
    /// Whom it trusts: what a real host keeps below `pki/`.
    pub anchors: Anchors,
    /// What lets it admit and renew.
    pub signer: Option<Signer>,
    /// When it got its certificates.
    pub renewals: Vec<Instant>,
    /// What it says of itself.
    pub draft: RecordDraft,
    /// Where it begins to ask.
    pub seeds: Vec<SocketAddr>,
    /// What its store holds.
    pub store: BTreeMap<NodeKey, Bytes>,
    /// What its daemon reported, in this and earlier starts.
    pub events: VecDeque<Event>,
    /// How often it was started.
    pub starts: u64,
    /// Whom a leave was sent to, once that is done.
    pub left: Option<Vec<NodeKey>>,
    /// When the next timer event is in the queue.
    pub(super) timer: Option<Instant>,
    /// Timer events at one instant.
    pub(super) spins: (Option<Instant>, u32),
    /// Frames waiting for a dial.
    pub(super) waiting: BTreeMap<usize, Vec<Bytes>>,
    /// Dials under way.
    pub(super) dialling: BTreeSet<usize>,
    /// First version that was never reserved: what a real host keeps in an fsynced file.
    pub(super) versions: u64,
}

impl Host {
    pub(super) fn new(identity: Arc<NodeIdentity>, draft: RecordDraft, anchors: Anchors) -> Self {
        Self {
            node: None,
            identity,
            anchors,
            signer: None,
            renewals: Vec::new(),
            draft,
            seeds: Vec::new(),
            store: BTreeMap::new(),
            events: VecDeque::new(),
            starts: 0,
            left: None,
            timer: None,
            spins: (None, 0),
            waiting: BTreeMap::new(),
            dialling: BTreeSet::new(),
            versions: 1,
        }
    }

    /// Who it is.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.identity.public()
    }

    /// Loses what it knew of its own versions and of others: a restored backup from before its join.
    pub fn forget_versions(&mut self) {
        self.versions = 1;
        self.store.clear();
    }

    /// Reserves a block of versions from `at_least` on.
    pub(super) fn reserve(&mut self, at_least: u64) -> VersionBlock {
        let next = self.versions.max(at_least);
        self.versions = next + BLOCK;
        VersionBlock { next, end: self.versions }
    }

    /// Starts the daemon from what survived.
    pub(super) fn start(&mut self, mesh: &Mesh, config: NodeConfig, rng: &mut StdRng, now: Now) {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let mut boot_id = BootId([0; 16]);
        rng.fill_bytes(&mut boot_id.0);
        let versions = self.reserve(0);
        let identity = Arc::clone(&self.identity);
        let anchors = self.anchors.clone();
        let mut node = Node::new(config, identity, anchors, seed, versions, boot_id, now);
        node.share_cache(Arc::clone(&mesh.cache));
        for bytes in self.store.values() {
            node.restore(bytes, now).expect("a stored record is good");
        }
        node.set_seeds(self.seeds.clone(), now);
        node.update_self(self.draft.clone(), now);
        self.node = Some(node);
        self.starts += 1;
        self.timer = None;
    }

    /// What the node trusts now is kept, and the signer's rule.
    pub(super) fn keep_anchors(&mut self) {
        let Some(node) = &self.node else { return };
        self.anchors = node.anchors().clone();
        if let Some(signer) = &mut self.signer {
            signer.set_anchors(self.anchors.clone());
        }
    }

    /// The signer's decision on a request.
    pub(super) fn decide(&mut self, request: &[u8], now: Now, rng: &mut StdRng) -> Option<Bytes> {
        let node = self.node.as_ref()?;
        let members: Vec<_> = node.directory().iter().cloned().collect();
        let barred: Vec<_> = node.barred().cloned().collect();
        let known = Known { members: &members, barred: &barred, ..Known::default() };
        let signer = self.signer.as_mut()?;
        let result = match signer.enrol(request, known, &[], now.unix, rng) {
            Ok(enrolled) => {
                enrolled.entries.into_iter().for_each(|entry| signer.apply(entry));
                return Some(enrolled.reply.encode_to_vec().into());
            }
            Err(refused) => wire::EnrolRefused {
                code: refused.refusal.code.as_str().to_owned(),
                message: refused.refusal.detail,
                fix: refused.fix,
            },
        };
        let result = Some(wire::enrol_reply::Result::Refused(result));
        Some(wire::EnrolReply { result }.encode_to_vec().into())
    }

    /// Kills the daemon.
    pub(super) fn stop(&mut self) {
        self.node = None;
        self.timer = None;
        self.waiting.clear();
        self.dialling.clear();
    }

    pub(super) fn record_event(&mut self, event: Event) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}
