//! One rtnetlink connection with blocking calls: send and wait for the acknowledgement, or dump.
//!
//! Not for what the messages mean: that is beside us, by topic. Owns a current-thread runtime, since
//! rtnetlink is async; so it must not be used inside another runtime's worker.

use std::cell::{Cell, RefCell};

use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use tokio::{runtime::Runtime, task::JoinHandle};

use super::bulk::{self, Bulk};
use crate::dataplane::{DataplaneError, Ours};

/// A dump that the kernel changed under us is read again this often.
const DUMP_ATTEMPTS: usize = 5;

/// A connection to rtnetlink in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    runtime: Runtime,
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
    bulk: RefCell<Bulk>,
    broken: Cell<bool>,
}

impl Netlink {
    /// Connects, and says so to `ours`.
    pub(crate) fn open(ours: &Ours) -> Result<Self, DataplaneError> {
        let failed = |e: std::io::Error| DataplaneError::Netlink { reason: e.to_string() };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let inside = runtime.enter();
        // Strict checking makes the kernel filter dumps by table and protocol.
        let (mut connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        let socket = connection.socket_mut().socket_mut();
        let port = socket.bind_auto().map_err(failed)?.port_number();
        let (bulk, bulk_port) = Bulk::open().map_err(failed)?;
        ours.set_connections([port, bulk_port]);
        let connection = runtime.spawn(connection);
        drop(inside);
        Ok(Self { runtime, handle, connection, bulk: RefCell::new(bulk), broken: Cell::new(false) })
    }

    /// True when the connection is gone and has to be opened anew.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Sends a request with `flags` and waits until the kernel says yes or no.
    pub(crate) fn act(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Sends many requests with their flags, in order, and says of each how it went.
    pub(crate) fn act_all(
        &self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> Vec<Result<(), Errno>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter();
        loop {
            let chunk: Vec<_> = requests.by_ref().take(bulk::MOST).collect();
            if chunk.is_empty() {
                return outcomes;
            }
            let count = chunk.len();
            match self.bulk.borrow_mut().act(chunk) {
                Ok(done) => outcomes.extend(done),
                Err(error) => {
                    tracing::debug!(%error, "a netlink socket is of no use any more");
                    self.broken.set(true);
                    outcomes.extend(vec![Err(Errno::ECONNRESET); count]);
                }
            }
        }
    }

    /// Sends a request that is answered by one message.
    pub(crate) fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Errno> {
        // The acknowledgement ends the wait even when the answer cannot be decoded.
        Ok(self.exchange(message, NLM_F_REQUEST | NLM_F_ACK)?.0.pop())
    }

    /// Reads a whole table. Where the address family is switched off there is nothing to read.
    pub(crate) fn dump(
        &self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Ok((answers, false)) => return Ok(answers),
                Ok((_, true)) => {}
                // ENOENT: strict dumps say so for a table that nobody ever used.
                Err(
                    Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPFNOSUPPORT,
                ) => return Ok(Vec::new()),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The answers, and whether the kernel says that they do not fit together.
    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Errno> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut handle = self.handle.clone();
        let outcome = self.runtime.block_on(async move {
            let mut answers = Vec::new();
            let mut interrupted = false;
            let mut stream = handle.request(request).map_err(|_| Errno::ECONNRESET)?;
            while let Some(answer) = stream.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => match error.code {
                        Some(code) => return Err(Errno::from_raw(code.get().saturating_abs())),
                        None => return Ok((answers, interrupted)),
                    },
                    NetlinkPayload::Overrun(_) => return Err(Errno::ENOBUFS),
                    _ => {}
                }
            }
            Ok((answers, interrupted))
        });
        // rtnetlink keeps acknowledgements and ends of dumps to itself, so the end of the connection
        // looks the same as success.
        if self.connection.is_finished() || outcome == Err(Errno::ECONNRESET) {
            self.broken.set(true);
            return Err(Errno::ECONNRESET);
        }
        outcome
    }
}
