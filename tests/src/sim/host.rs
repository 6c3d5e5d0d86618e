//! One host: what survives a crash, and the node while it runs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use meshd_core::{
    node::{Event, Node, NodeConfig, VersionBlock},
    now::Now,
    trust::{NodeIdentity, RecordDraft},
};
use meshd_proto::{BootId, NodeKey};
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
    /// Key and certificate.
    pub identity: Arc<NodeIdentity>,
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
    pub(super) fn new(identity: Arc<NodeIdentity>, draft: RecordDraft) -> Self {
        Self {
            node: None,
            identity,
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
        let anchors = mesh.anchors.clone();
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
