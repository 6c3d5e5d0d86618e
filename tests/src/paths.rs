//! What a daemon does over and over, with a mesh of any size, to be timed and counted by the benchmarks.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use meshd::state::{StateDir, store::Store};
use meshd_core::node::{Node, NodeConfig, Output, VersionBlock};
use meshd_core::now::{Now, UnixTime};
use meshd_core::plan::{Change, Desired, Kernel, Observed, diff};
use meshd_core::trust::{NodeIdentity, RecordDraft, authenticate_bytes};
use meshd_proto::{BootId, wire};
use prost::Message as _;
use rand::{SeedableRng, rngs::StdRng};

use crate::many::Many;
use crate::sim::{Mesh, Weather, World, prefix};

/// When certificates begin, see `sim`.
const START: UnixTime = UnixTime(1_800_000_000);
const YEAR: i64 = 365 * 24 * 3600;
const BOOT: BootId = BootId([1; 16]);

/// The records of a mesh, as every member stores them, and the first member.
pub struct Stored {
    mesh: Mesh,
    own: Arc<NodeIdentity>,
    others: Vec<(Arc<NodeIdentity>, RecordDraft)>,
    records: Vec<Bytes>,
    begin: UnixTime,
    start: Instant,
}

impl Stored {
    /// `count` others, each with a prefix.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self::since(START, count)
    }

    /// Those of a mesh that was founded at `begin`.
    #[must_use]
    pub fn since(begin: UnixTime, count: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mesh = Mesh::since(begin, &mut rng, YEAR);
        let own = mesh.identity(0, &mut rng);
        let others: Vec<_> = (1..=count)
            .map(|number| {
                let identity = mesh.identity(number, &mut rng);
                let draft = mesh.draft(number, &identity);
                (identity, draft)
            })
            .collect();
        let sign = |(identity, draft): &(Arc<NodeIdentity>, RecordDraft)| {
            identity.sign_record(draft, 1, BOOT, 1, begin).encode_to_vec().into()
        };
        let records = others.iter().map(sign).collect();
        let mut stored = Self { mesh, own, others, records, begin, start: Instant::now() };
        stored.stamp();
        stored
    }

    /// Has the first member verify all records, as at its first start: it keeps them with its stamps. One that it does not
    /// believe stays as it is, and [`Self::open`] says so.
    fn stamp(&mut self) {
        let (mut node, now) = (self.node(), self.now(0));
        for record in &mut self.records {
            if node.restore(record, now).is_err() {
                continue;
            }
            while let Some(output) = node.poll_output() {
                if let Output::Store { bytes, .. } = output {
                    *record = bytes;
                }
            }
        }
    }

    fn now(&self, seconds: u32) -> Now {
        let mono = self.start + Duration::from_secs(seconds.into());
        Now { mono, unix: self.begin.plus(seconds.into()) }
    }

    /// Makes of `directory` the state of the first member's daemon.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let state = StateDir::open(directory)?;
        state.save_identity(&self.own.key)?;
        state.lane(&[1; 32])?;
        state.save_membership(&self.mesh.anchors, &self.own.certificate, &[])?;
        let store = Store::open(&state.store_path()).store;
        for ((identity, _), record) in self.others.iter().zip(&self.records) {
            store.put(&identity.public(), record).map_err(anyhow::Error::msg)?;
        }
        store.flusher().sync_whole().map_err(anyhow::Error::msg)
    }

    /// Verifies the first `count` records: certificate, signature, content.
    pub fn verify(&self, count: usize) -> Result<usize> {
        let mut prefixes = 0;
        for record in self.records.iter().take(count) {
            let record = authenticate_bytes(record, &self.mesh.anchors);
            prefixes += record.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?.prefixes.len();
        }
        Ok(prefixes)
    }

    /// The first `count` records in one frame, as they are pushed.
    pub fn frame(&self, count: usize) -> Result<wire::Frame> {
        let records = self.records.iter().take(count);
        let records = records.map(|bytes| wire::SignedRecord::decode(bytes.clone()));
        let push =
            wire::Push { records: records.collect::<Result<_, _>>()?, ..wire::Push::default() };
        Ok(wire::Frame { body: Some(wire::frame::Body::Push(push)) })
    }

    /// The first member, that knows nobody.
    fn node(&self) -> Node {
        let versions = VersionBlock { next: 1, end: 1 << 20 };
        let (own, anchors) = (Arc::clone(&self.own), self.mesh.anchors.clone());
        Node::new(NodeConfig::default(), own, anchors, [7; 32], versions, BOOT, self.now(0))
    }

    /// What a daemon does at its start: each record, which it has verified and stamped before, is judged and held.
    pub fn open(&self) -> Result<Node> {
        let mut node = self.node();
        for record in &self.records {
            node.restore(record, self.now(0)).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        ensure!(node.directory().len() == self.records.len(), "records are missing");
        node.update_self(self.mesh.draft(0, &self.own), self.now(0));
        drain(&mut node);
        Ok(node)
    }

    /// A frame with a record of the `member`th that has one prefix more; versions count from 1.
    pub fn change(&self, member: usize, version: u32) -> Result<Bytes> {
        let (identity, draft) = self.others.get(member).context("no such member")?;
        let mut draft = draft.clone();
        draft.prefixes.push(prefix(member + 1, 1));
        let issued = self.begin.plus(version.into());
        let record = identity.sign_record(&draft, u64::from(version) + 1, BOOT, 1, issued);
        let push = wire::Push { records: vec![record], ..wire::Push::default() };
        Ok(wire::Frame { body: Some(wire::frame::Body::Push(push)) }.encode_to_vec().into())
    }

    /// `node` hears of it from its owner, and has said what follows. Returns how many things it wants done.
    pub fn learn(
        &self,
        node: &mut Node,
        member: usize,
        version: u32,
        frame: &[u8],
    ) -> Result<usize> {
        let (identity, _) = self.others.get(member).context("no such member")?;
        node.handle_frame(identity.public(), frame, self.now(version));
        Ok(drain(node))
    }
}

fn drain(node: &mut Node) -> usize {
    std::iter::from_fn(|| node.poll_output()).count()
}

/// A plan for many members, and a kernel in memory that holds it.
pub struct Planned {
    many: Many,
    observed: Observed,
}

impl Planned {
    /// `count` members.
    pub fn new(count: u32) -> Result<Self> {
        let many = Many::new(count, "mesh0");
        let mut kernel = Kernel::default();
        for change in diff(&many.plan().0, &kernel.state()) {
            kernel.apply(&change)?;
        }
        let planned = Self { many, observed: kernel.state() };
        ensure!(planned.diff(&planned.plan()).is_empty(), "what was programmed is not as planned");
        Ok(planned)
    }

    /// From members to what the kernel should hold.
    #[must_use]
    pub fn plan(&self) -> Arc<Desired> {
        self.many.plan().0
    }

    /// From there to what is to be changed.
    #[must_use]
    pub fn diff(&self, desired: &Desired) -> Vec<Change> {
        diff(desired, &self.observed)
    }

    /// One member has a prefix more: what that changes.
    pub fn changed(&mut self, member: usize) -> Result<Vec<Change>> {
        self.many.change(member, true)?;
        let changes = self.diff(&self.plan());
        self.many.change(member, false)?;
        Ok(changes)
    }
}

/// A mesh that has formed and has nothing to do.
#[must_use]
pub fn idle(hosts: usize) -> World {
    let mut world = World::new(1, hosts, Weather::default());
    let first = world.hosts[0].draft.endpoints.clone();
    world.hosts.iter_mut().skip(1).for_each(|host| host.seeds.clone_from(&first));
    (0..hosts).for_each(|host| world.start(host));
    world.run(Duration::from_secs(30));
    world
}
