//! Tells that something in the kernel changed, so that the daemon looks again at once.
//!
//! Owns one netlink socket in the groups of links, addresses, routes and rules, and where possible one of
//! nftables. Says only that something happened, never what: the kernel drops messages when it is busy, and
//! a fresh look is right in any case. Our own changes are reported too and cost one look. Used by the
//! daemon's reconcile loop.

use std::{io, time::Duration};

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rtnetlink::MulticastGroup;
use tokio::io::unix::AsyncFd;

use super::DataplaneError;

/// What comes within this time of the first message is one report.
const COALESCE: Duration = Duration::from_millis(50);
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
    routing: AsyncFd<Socket>,
    nftables: Option<AsyncFd<Socket>>,
    /// Something came, and was not reported yet.
    pending: bool,
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
        Ok(Self { routing, nftables, pending: false })
    }

    /// Waits until something changed. Changes in quick succession are one report. Cancel safe.
    pub async fn changed(&mut self) {
        while !self.pending {
            self.pending = match &self.nftables {
                None => drain(&self.routing, any).await,
                Some(nftables) => tokio::select! {
                    changed = drain(&self.routing, any) => changed,
                    changed = drain(nftables, names_our_table) => changed,
                },
            };
        }
        tokio::time::sleep(COALESCE).await;
        // What came meanwhile is part of this report.
        empty(self.routing.get_ref(), any);
        if let Some(nftables) = &self.nftables {
            empty(nftables.get_ref(), names_our_table);
        }
        self.pending = false;
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(AsyncFd::register(socket)?)
}

fn any(_: &[u8]) -> bool {
    true
}

fn names_our_table(message: &[u8]) -> bool {
    message.windows(NFTABLES_NAME.len()).any(|window| window == NFTABLES_NAME)
}

/// Waits for messages, takes all that are there, and says whether one counts.
async fn drain(socket: &AsyncFd<Socket>, counts: fn(&[u8]) -> bool) -> bool {
    let Ok(mut ready) = socket.readable().await else {
        // The runtime is shutting down.
        return std::future::pending().await;
    };
    let changed = empty(socket.get_ref(), counts);
    ready.clear_ready();
    changed
}

/// Takes at most so many messages at once: a flood must not hold the loop up.
const BURST: usize = 10_000;

fn empty(socket: &Socket, counts: fn(&[u8]) -> bool) -> bool {
    let mut changed = false;
    let mut buffer = Vec::with_capacity(64 * 1024);
    for _ in 0..BURST {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => changed |= counts(&buffer),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // ENOBUFS: the kernel dropped some, so something changed.
            Err(_) => changed = true,
        }
    }
    changed
}
