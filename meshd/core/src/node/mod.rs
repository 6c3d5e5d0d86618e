//! One member of the mesh, without I/O: what it knows, what it tells whom, and when.
//!
//! Responsible for gluing the [directory](crate::directory), SWIM, dissemination and anti-entropy
//! together behind `handle_*`, `poll_output` and `poll_timeout`. Not for sockets, connections, files
//! or the kernel: the daemon's loop and the simulator call it and carry its [`Output`]s out.

mod types;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ipnet::IpNet;
use meshd_proto::{BootId, NodeKey};

pub use self::types::{
    Counters, Event, Liveness, NodeConfig, Output, Profile, Severity, SharedRecord, TimeoutReason,
    Traffic, Unreachable, VersionBlock,
};
use crate::{directory::Directory, now::Now, refusal::Refusal};

/// Stand-ins with the names of the trust module's types, until those are here.
pub mod standin {
    /// See `trust::NodeIdentity`.
    #[derive(Debug)]
    pub struct NodeIdentity;
    /// See `trust::Anchors`.
    #[derive(Debug)]
    pub struct Anchors;
    /// See `trust::RecordDraft`.
    #[derive(Debug)]
    pub struct RecordDraft;
}
use standin::{Anchors, NodeIdentity, RecordDraft};

/// One member of the mesh.
#[derive(Debug)]
pub struct Node {
    directory: Directory,
    counters: Counters,
}

#[allow(unused_variables, clippy::needless_pass_by_value)]
impl Node {
    /// A node that knows only itself and has published nothing yet. Call [`Self::restore`] for each
    /// stored record, then [`Self::set_seeds`], then [`Self::update_self`].
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
        Self { directory: Directory::default(), counters: Counters::default() }
    }

    /// Takes a record from the store, verified as if it came from outside.
    ///
    /// # Errors
    /// Why it is not believed; the store should drop it.
    pub fn restore(&mut self, bytes: &[u8], now: Now) -> Result<(), Refusal> {
        Ok(())
    }

    /// The addresses to try when no member answers, resolved by the daemon (again, whenever it likes).
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>, now: Now) {}

    /// The prefixes that this host routes into the mesh now: endpoints inside them are not dialled.
    pub fn set_routed(&mut self, routed: Vec<IpNet>) {}

    /// What this node says of itself from now on. The first goes out at once, later ones at most once
    /// a second; one that says nothing new is not published.
    pub fn update_self(&mut self, draft: RecordDraft, now: Now) {}

    /// Signs and pushes that this node leaves for good. [`Output::Left`] follows.
    pub fn leave(&mut self, now: Now) {}

    /// The answer to [`Output::ReserveVersions`].
    pub fn handle_versions(&mut self, versions: VersionBlock, now: Now) {}

    /// A connection to `key` is up, its certificate verified. `outgoing` if this host dialled.
    pub fn handle_connected(&mut self, key: NodeKey, remote: SocketAddr, outgoing: bool, now: Now) {
    }

    /// The last connection to `key` is gone.
    pub fn handle_disconnected(&mut self, key: NodeKey, now: Now) {}

    /// A datagram on a connection to `from`.
    pub fn handle_datagram(&mut self, from: NodeKey, bytes: &[u8], now: Now) {}

    /// A whole stream on a connection to `from`.
    pub fn handle_frame(&mut self, from: NodeKey, bytes: &[u8], now: Now) {}

    /// A dial or a send failed.
    pub fn handle_unreachable(&mut self, target: impl Into<Unreachable>, now: Now) {}

    /// How long ago the kernel saw a WireGuard handshake with `key`; `None`: never.
    pub fn handle_handshake_age(&mut self, key: NodeKey, age: Option<Duration>, now: Now) {}

    /// Time has come to what [`Self::poll_timeout`] said. Early or late calls are harmless.
    pub fn handle_timeout(&mut self, now: Now) {}

    /// When to call [`Self::handle_timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        None
    }

    /// What to do next. Call until `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// Hands a joiner's request to the signer `to`; [`Output::EnrolReply`] with `id` may follow.
    pub fn forward_enrolment(&mut self, to: NodeKey, id: u64, request: Bytes) {}

    /// Answers [`Output::EnrolForward`].
    pub fn reply_enrolment(&mut self, to: NodeKey, id: u64, reply: Bytes) {}

    /// All verified records.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether `key` is there, and since when it is so. `None` if it has no record or is this node.
    #[must_use]
    pub fn liveness(&self, key: &NodeKey) -> Option<(Liveness, Instant)> {
        None
    }

    /// This node's identity.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        NodeKey([0; 32])
    }

    /// The mesh's root and bundle as known now.
    #[must_use]
    pub fn anchors(&self) -> Option<&Anchors> {
        None
    }

    /// True after the first completed exchange of this start, or when there is nobody to ask.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        false
    }

    /// Counters since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The address at which QUIC reached `key` last.
    #[must_use]
    pub fn path(&self, key: &NodeKey) -> Option<IpAddr> {
        None
    }

    /// This host's own QUIC address as most others see it.
    #[must_use]
    pub fn observed(&self) -> Option<SocketAddr> {
        None
    }

    /// Where to dial `key` now, best first: what its record names, without what must not be dialled
    /// and what is backing off. Empty: do not dial.
    #[must_use]
    pub fn endpoints(&self, key: &NodeKey, now: Now) -> Vec<SocketAddr> {
        Vec::new()
    }

    /// What the receivers would refuse in this node's own record, and was therefore left out of it.
    #[must_use]
    pub fn own_refusals(&self) -> &[Refusal] {
        &[]
    }
}
