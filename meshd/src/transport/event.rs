//! What the transport tells the loop, and what its tasks tell the transport.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use meshd_core::trust::NodeCertificate;
use meshd_proto::NodeKey;

use super::{EnrolTicket, Target, connection::Live};

/// What the loop hears.
#[derive(Debug)]
pub enum Event {
    /// A first connection with `peer` stands; its certificate was verified.
    Connected {
        /// Who it is.
        peer: NodeKey,
        /// The verified certificate.
        certificate: Arc<NodeCertificate>,
        /// Where it is.
        remote: SocketAddr,
        /// This side dialled.
        outgoing: bool,
    },
    /// One more connection with `peer` stands.
    Reached {
        /// Who it is.
        peer: NodeKey,
        /// Where it is, too.
        remote: SocketAddr,
    },
    /// The last connection with `peer` is gone.
    Disconnected {
        /// Who it was.
        peer: NodeKey,
    },
    /// A datagram.
    Datagram {
        /// From whom, as authenticated.
        peer: NodeKey,
        /// Its bytes.
        bytes: Bytes,
    },
    /// A whole frame of a stream.
    Frame {
        /// From whom, as authenticated.
        peer: NodeKey,
        /// Its bytes.
        bytes: Bytes,
    },
    /// What [`Transport::greet`](super::Transport::greet) sent has been acknowledged.
    Acknowledged {
        /// By whom, as authenticated.
        peer: NodeKey,
    },
    /// A dial failed.
    Unreachable {
        /// What was dialled.
        target: Target,
        /// Addresses that were tried.
        tried: Vec<SocketAddr>,
        /// Why, for a person.
        why: String,
    },
    /// Somebody without a certificate asks to enrol; answer on the ticket.
    Enrol(EnrolTicket),
    /// A handshake or stream was refused; counted by reason.
    Refused {
        /// Stable code.
        code: &'static str,
        /// From where.
        remote: SocketAddr,
        /// More of it for a person, or empty. May hold what the other side wrote.
        why: String,
    },
}

/// What the tasks report; the transport turns it into [`Event`]s.
pub(crate) enum Report {
    Up(Box<Live>),
    Closed { peer: NodeKey, stable_id: usize },
    DialFailed { target: Target, tried: Vec<SocketAddr>, why: String },
    Event(Event),
}
