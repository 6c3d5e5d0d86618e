//! What goes into and comes out of a [`Node`](super::Node): plain values, no decisions.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use meshd_proto::NodeKey;

use crate::event::Event;

/// How patient SWIM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// Round trips below 500 ms: a crash is seen within seconds.
    #[default]
    Lan,
    /// Round trips up to 3 s: a crash is seen within a minute.
    Wan,
}

/// What a node is told once.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// How patient SWIM is.
    pub profile: Profile,
    /// A member that never said that it leaves is forgotten when it was down, without a WireGuard
    /// handshake and without a new record for this long.
    pub forget_after: Duration,
    /// How often a node signs its record anew though nothing changed: the same on all.
    pub resign_every: Duration,
    /// Sent to peers when a connection opens.
    pub software_version: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Lan,
            forget_after: Duration::from_secs(7 * 24 * 3600),
            resign_every: crate::limits::RESIGN_EVERY,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl NodeConfig {
    /// A record older than this is nobody's who is there: what `forget_after` says, if that is not less than
    /// the time in which a living member surely signs anew.
    pub(super) fn longest_silence(&self) -> Duration {
        self.forget_after.max(self.resign_every * 2)
    }
}

/// Record versions that this host may use: the daemon has fsynced that `end` is taken before it hands
/// the block over, so that no version is ever used twice. The default holds none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VersionBlock {
    /// First version of the block.
    pub next: u64,
    /// First version after the block.
    pub end: u64,
}

/// What is known of a member being there. Steers display, failover and whom to sync with; it never
/// removes a peer from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Heard of, by itself or through others, and nobody doubts it.
    Alive,
    /// Not heard in this start yet, or doubted by somebody.
    Suspect,
    /// Did not answer; its record and its peer stay.
    Down,
    /// Signed that it left.
    Left,
}

impl Liveness {
    /// `alive`, `suspect`, `down` or `left`, as in `peers list`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

/// What a node wants done. The daemon does each in order and never has to answer at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send an unreliable datagram; dial the member's [`endpoints`](super::Node::endpoints) first if
    /// there is no connection. May be dropped.
    Datagram {
        /// Receiver.
        to: NodeKey,
        /// An encoded `SwimPacket`, at most [`limits::SWIM_PACKET`](crate::limits::SWIM_PACKET).
        bytes: Bytes,
    },
    /// Send a frame on a stream of its own; dial as for a datagram. If it cannot be sent call
    /// [`handle_unreachable`](super::Node::handle_unreachable).
    Frame {
        /// Receiver.
        to: NodeKey,
        /// An encoded `Frame`, at most [`limits::FRAME`](crate::limits::FRAME).
        bytes: Bytes,
    },
    /// Send an empty frame; dial as for a datagram. When the member has acknowledged it, call
    /// [`handle_acknowledged`](super::Node::handle_acknowledged).
    Greet {
        /// Receiver.
        to: NodeKey,
    },
    /// Connect to an address of which only the mesh is known, e.g. a seed.
    Contact {
        /// Where.
        addr: SocketAddr,
    },
    /// Keep a record for the next start.
    Store {
        /// Whose.
        key: NodeKey,
        /// An encoded `StoredRecord`; [`restore`](super::Node::restore) takes it.
        bytes: Bytes,
    },
    /// Keep a bundle of intermediates for the next start: an encoded `SignedBundle`.
    StoreBundle(Bytes),
    /// Keep the revocations for the next start, before anything else is done: all of them, encoded;
    /// [`Anchors::restore_revocations`](crate::trust::Anchors::restore_revocations) takes them.
    StoreRevocations(Bytes),
    /// Keep the signers' time for the next start, encoded; [`Anchors::restore_time`](crate::trust::Anchors::restore_time) takes it.
    StoreTime(Bytes),
    /// Keep this node's new certificate for the next start, and show it to peers from now on.
    Renewed {
        /// It.
        certificate: Arc<crate::trust::NodeCertificate>,
    },
    /// Ask some member as a stranger does, whoever answers, and call
    /// [`handle_renewal_reply`](super::Node::handle_renewal_reply).
    AskAtTheDoor {
        /// To be given back with the reply.
        id: u64,
        /// An encoded `EnrolRequest`.
        request: Bytes,
    },
    /// The holder of the root, or who says so, asks this node to become a signer; answer with
    /// [`send_offer`](super::Node::send_offer).
    SignerInvite {
        /// Who passed it on.
        from: NodeKey,
        /// As received.
        invite: meshd_proto::wire::SignerInvite,
    },
    /// The answer to [`send_invite`](super::Node::send_invite).
    SignerOffer {
        /// Whose.
        from: NodeKey,
        /// As received.
        offer: meshd_proto::wire::SignerOffer,
    },
    /// Close every connection with this node, and take no other: its membership was ended.
    Disconnect {
        /// Whom.
        key: NodeKey,
    },
    /// Delete a member's record and whatever else is kept of it.
    Forget {
        /// Whose.
        key: NodeKey,
    },
    /// The directory or a liveness changed: plan again. At most one is queued.
    Changed,
    /// Fsync a block of versions that starts at `at_least` or later and hand it to
    /// [`handle_versions`](super::Node::handle_versions).
    ReserveVersions {
        /// Lowest version that is of use.
        at_least: u64,
    },
    /// The signed leave has been put into the frames before this one: wait until those to these
    /// members were sent, or a few seconds, and stop.
    Left {
        /// Whom it was sent to.
        to: Vec<NodeKey>,
    },
    /// A member hands over a request for a certificate, or this node its own; answer with
    /// [`reply_enrolment`](super::Node::reply_enrolment).
    EnrolForward {
        /// Who forwards it.
        from: NodeKey,
        /// To be given back with the reply.
        id: u64,
        /// An encoded `EnrolRequest`.
        request: Bytes,
    },
    /// The reply to [`forward_enrolment`](super::Node::forward_enrolment).
    EnrolReply {
        /// The signer.
        from: NodeKey,
        /// As given with the request.
        id: u64,
        /// An encoded `EnrolReply`.
        reply: Bytes,
    },
    /// For the log and `events`.
    Event(Event),
}

/// What could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unreachable {
    /// None of a member's endpoints answered, or it has none: what was queued for it was dropped.
    Member(NodeKey),
    /// A dial of this address failed, or another identity than expected answered.
    Address(SocketAddr),
}

impl From<NodeKey> for Unreachable {
    fn from(key: NodeKey) -> Self {
        Self::Member(key)
    }
}

impl From<SocketAddr> for Unreachable {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// Why [`handle_timeout`](super::Node::handle_timeout) wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeoutReason {
    /// SWIM probes and suspicions.
    Membership,
    /// A member that nobody answers for has to be asked.
    Check,
    /// The next anti-entropy exchange, or the end of one that is stuck.
    Sync,
    /// Seeds are tried again.
    Seeds,
    /// The own record is due to be signed.
    Publish,
    /// The own certificate is due to be renewed.
    Renewal,
    /// New records are told together.
    Spread,
    /// Forgetting what is long gone.
    Housekeeping,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Refusals by code, see [`crate::refusal::Code`].
    pub refusals: std::collections::BTreeMap<&'static str, u64>,
    /// Datagrams received and sent.
    pub datagrams: Traffic,
    /// Frames received and sent.
    pub frames: Traffic,
    /// Records that were new when they came.
    pub records_accepted: u64,
    /// Records that were held already.
    pub records_known: u64,
    /// Exchanges that this node opened and that came to their end.
    pub syncs_completed: u64,
    /// Exchanges that this node opened and that did not.
    pub syncs_failed: u64,
    /// SWIM identities that this node gave up for a newer one.
    pub renewals: u64,
    /// Records that this node signed.
    pub published: u64,
    /// Attempts to renew this node's certificate that nobody granted.
    pub certificate_renewals_failed: u64,
}

/// Messages and bytes, both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages received.
    pub received: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Messages handed out to be sent.
    pub sent: u64,
    /// Bytes handed out to be sent.
    pub sent_bytes: u64,
}

/// A record shared with whoever reads the directory.
pub type SharedRecord = Arc<crate::trust::Record>;
