//! What happens, and what a run amounted to.

use std::net::SocketAddr;

use bytes::Bytes;
use meshd_proto::NodeKey;

#[derive(Debug)]
pub(super) enum Event {
    Timer(usize),
    Datagram {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    Frame {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    /// An empty frame.
    Greeting {
        from: usize,
        to: usize,
    },
    /// `by` has a greeting of `to`.
    Acknowledged {
        by: usize,
        to: usize,
    },
    Dialled {
        from: usize,
        to: Option<usize>,
        addr: SocketAddr,
        expected: Option<NodeKey>,
    },
    Broken(usize, usize),
    /// It may have been idle for too long.
    Idle(usize, usize),
    /// What came of asking as a stranger.
    Door {
        host: usize,
        id: u64,
        reply: Option<Bytes>,
    },
}

/// What a run amounted to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events handled.
    pub events: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Frames sent.
    pub frames: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Handshakes.
    pub handshakes: u64,
    /// Dials that nobody answered.
    pub unanswered: u64,
    /// Hash of everything that every node put out, in order.
    pub trace: u64,
}
