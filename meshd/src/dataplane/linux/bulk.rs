//! Many rtnetlink requests in few system calls.
//!
//! The kernel takes any number of messages in one datagram, does them in order, and answers those that fail, and the
//! last one when that is asked for. One by one, ten thousand routes cost twenty thousand system calls.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// Messages in one datagram. The answers to as many failures fit into a socket's default receive buffer.
pub(crate) const MOST: usize = 64;
/// Largest datagram of answers that is read whole: each holds the request that it is about.
const ANSWERS: usize = 64 * 1024;

/// A blocking socket of its own.
#[derive(Debug)]
pub(crate) struct Bulk {
    socket: Socket,
    sequence: u32,
}

impl Bulk {
    /// Opens it in the network namespace of the calling thread; also gives its port.
    pub(crate) fn open() -> io::Result<(Self, u32)> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok((Self { socket, sequence: 0 }, port))
    }

    /// Sends `requests` (at most [`MOST`]) with their flags, and says of each how it went. An error: nobody knows what
    /// was done, and the socket is of no use any more.
    pub(crate) fn act(
        &mut self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<Result<(), Errno>>> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (index, (request, flags)) in requests.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(request);
            message.header.sequence_number = self.sequence;
            let acknowledged = if index + 1 == count { NLM_F_ACK } else { 0 };
            message.header.flags = NLM_F_REQUEST | flags | acknowledged;
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        if datagram.is_empty() {
            return Ok(Vec::new());
        }
        let sent = self.socket.send(&datagram, 0)?;
        if sent != datagram.len() {
            return Err(io::Error::other("the kernel took a part of a netlink datagram"));
        }
        let mut outcomes = vec![Ok(()); count];
        let mut answers = Vec::with_capacity(ANSWERS);
        loop {
            answers.clear();
            self.socket.recv(&mut answers, 0)?;
            for (sequence, outcome) in read(&answers)? {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                // An answer to none of these is a late one to nobody.
                let Some(place) = outcomes.get_mut(index) else { continue };
                *place = outcome;
                if index + 1 == count {
                    return Ok(outcomes);
                }
            }
        }
    }
}

/// Sequence number and outcome of each answer in a datagram.
fn read(mut datagram: &[u8]) -> io::Result<Vec<(u32, Result<(), Errno>)>> {
    let mut answers = Vec::new();
    while !datagram.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        if let NetlinkPayload::Error(error) = &message.payload {
            let outcome = match error.code {
                None => Ok(()),
                Some(code) => Err(Errno::from_raw(code.get().saturating_abs())),
            };
            answers.push((message.header.sequence_number, outcome));
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(16);
        datagram = datagram.get(length.saturating_add(3) & !3..).unwrap_or_default();
    }
    Ok(answers)
}
