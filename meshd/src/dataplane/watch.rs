//! Tells that something in the kernel changed, so that the daemon looks again at once.
//!
//! Owns one netlink socket in the groups of links, addresses, routes and rules, and where possible one of
//! nftables. Says only that something happened, never what: the kernel drops messages when it is busy, and
//! a fresh look is right in any case. Our own changes are reported too and cost one look. Used by the
//! daemon's reconcile loop.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use netlink_sys::{
    AsyncSocket, Socket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rtnetlink::MulticastGroup;

use tokio::time::Instant;

use super::DataplaneError;

/// What comes within this time of the first message is one report.
const COALESCE: Duration = Duration::from_millis(50);
/// Largest message that is read whole; of a larger one only the start counts.
const BUFFER: usize = 32 * 1024;
/// Messages taken at once at most: a flood must not hold the loop up.
const BURST: usize = 10_000;
/// Changes of nftables (`NFNLGRP_NFTABLES`).
const NFTABLES_GROUP: u32 = 7;
/// Other programs change their own tables all the time: only messages with our table's name count.
const NFTABLES_NAME: &[u8] = b"meshd\0";
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Reports of changes.
pub struct Watch {
    routing: TokioSocket,
    nftables: Option<TokioSocket>,
    /// Something came, and was not reported yet.
    pending: bool,
    /// When it is to be reported.
    until: Option<Instant>,
}

impl Watch {
    /// Listens in the network namespace of the calling thread. Must be called inside a tokio runtime with I/O and
    /// time.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new() -> Result<Self, DataplaneError> {
        let routing = listen(NETLINK_ROUTE, &GROUPS.map(|group| group as u32))
            .map_err(|e| DataplaneError::Netlink { reason: e.to_string() })?;
        // Needs CAP_NET_ADMIN and a kernel with nftables; without it drift there is found at the next look.
        let nftables = listen(NETLINK_NETFILTER, &[NFTABLES_GROUP]).ok();
        Ok(Self { routing, nftables, pending: false, until: None })
    }

    /// Waits until something changed. Changes in quick succession are one report. Cancel safe.
    pub async fn changed(&mut self) {
        while !self.pending {
            self.pending = match &self.nftables {
                None => receive(&self.routing, any).await,
                Some(nftables) => tokio::select! {
                    changed = receive(&self.routing, any) => changed,
                    changed = receive(nftables, names_our_table) => changed,
                },
            };
        }
        // Kept over a cancellation: in a busy loop a wait that begins anew would never end.
        let until = *self.until.get_or_insert_with(|| Instant::now() + COALESCE);
        tokio::time::sleep_until(until).await;
        self.until = None;
        // What came meanwhile is part of this report.
        empty(self.routing.socket_ref());
        if let Some(nftables) = &self.nftables {
            empty(nftables.socket_ref());
        }
        self.pending = false;
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = <TokioSocket as AsyncSocket>::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_ref().add_membership(*group)?;
    }
    Ok(socket)
}

fn any(_: &[u8]) -> bool {
    true
}

fn names_our_table(message: &[u8]) -> bool {
    message.windows(NFTABLES_NAME.len()).any(|window| window == NFTABLES_NAME)
}

/// Waits for a message and says whether it counts.
async fn receive(socket: &TokioSocket, counts: fn(&[u8]) -> bool) -> bool {
    let mut buffer = Vec::with_capacity(BUFFER);
    poll_fn(|context| match socket.poll_recv(context, &mut buffer) {
        Poll::Ready(Ok(())) => Poll::Ready(counts(&buffer)),
        // ENOBUFS: the kernel dropped some, so something changed.
        Poll::Ready(Err(_)) => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Takes what is there and forgets it.
fn empty(socket: &Socket) {
    let mut buffer = Vec::with_capacity(BUFFER);
    for _ in 0..BURST {
        buffer.clear();
        if socket.recv(&mut buffer, 0).is_err() {
            break;
        }
    }
}
