//! Tells that something in the kernel changed, so that the daemon looks again at once.
//!
//! Owns one netlink socket in the groups of links, addresses, routes and rules, and where possible one of
//! nftables. Says only that something happened, never what: the kernel drops messages when it is busy, and
//! a fresh look is right in any case. What we changed ourselves is passed over. Used by the daemon's reconcile loop,
//! and with fewer groups by whoever follows the workloads.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use netlink_packet_route::route::RouteHeader;
use netlink_sys::{
    AsyncSocket, Socket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rtnetlink::MulticastGroup;

use tokio::time::Instant;

use super::{DataplaneError, Ours};

/// What comes within this time of the first message is one report.
const COALESCE: Duration = Duration::from_millis(50);
/// The same of workloads, which somebody waits for.
const COALESCE_WORKLOADS: Duration = Duration::from_millis(10);
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

const WORKLOAD_GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

/// Reports of changes.
pub struct Watch {
    /// Which messages of `routing` count.
    counts: fn(&[u8]) -> bool,
    coalesce: Duration,
    routing: TokioSocket,
    nftables: Option<TokioSocket>,
    ours: Ours,
    /// Something came, and was not reported yet.
    pending: bool,
    /// When it is to be reported.
    until: Option<Instant>,
}

impl Watch {
    /// Listens in the network namespace of the calling thread for what others than `ours` do. Must be called inside a
    /// tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new(ours: Ours) -> Result<Self, DataplaneError> {
        let routing = listen(NETLINK_ROUTE, &GROUPS.map(|group| group as u32))
            .map_err(|e| DataplaneError::Netlink { reason: e.to_string() })?;
        // Needs CAP_NET_ADMIN and a kernel with nftables; without it drift there is found at the next look.
        let nftables = listen(NETLINK_NETFILTER, &[NFTABLES_GROUP]).ok();
        let (counts, coalesce): (fn(&[u8]) -> bool, _) = (any, COALESCE);
        Ok(Self { counts, coalesce, routing, nftables, ours, pending: false, until: None })
    }

    /// Listens for what may be a workload that comes or goes: routes of the main table to single addresses, and links.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn of_workloads() -> Result<Self, DataplaneError> {
        let routing = listen(NETLINK_ROUTE, &WORKLOAD_GROUPS.map(|group| group as u32))
            .map_err(|e| DataplaneError::Netlink { reason: e.to_string() })?;
        let (counts, coalesce): (fn(&[u8]) -> bool, _) = (may_be_workload, COALESCE_WORKLOADS);
        let ours = Ours::default();
        Ok(Self { counts, coalesce, routing, nftables: None, ours, pending: false, until: None })
    }

    /// Waits until something changed. Changes in quick succession are one report. Cancel safe.
    pub async fn changed(&mut self) {
        while !self.pending {
            self.pending = match &self.nftables {
                None => receive(&self.routing, &self.ours, self.counts).await,
                Some(nftables) => tokio::select! {
                    changed = receive(&self.routing, &self.ours, self.counts) => changed,
                    changed = receive(nftables, &self.ours, names_our_table) => changed,
                },
            };
        }
        // Kept over a cancellation: in a busy loop a wait that begins anew would never end.
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.coalesce);
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

/// A link, or a route that is neither ours nor of another table nor to more than one address.
fn may_be_workload(message: &[u8]) -> bool {
    // struct nlmsghdr, then struct rtmsg (linux/netlink.h, linux/rtnetlink.h).
    let kind = message.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let is_route = matches!(kind, Some(libc::RTM_NEWROUTE | libc::RTM_DELROUTE));
    match (is_route, message.get(16..22)) {
        (true, Some([_, length, _, _, table, protocol])) => {
            matches!(length, 32 | 128)
                && *table == RouteHeader::RT_TABLE_MAIN
                && *protocol != meshd_core::plan::PROTOCOL
        }
        _ => true,
    }
}

fn names_our_table(message: &[u8]) -> bool {
    message.windows(NFTABLES_NAME.len()).any(|window| window == NFTABLES_NAME)
}

/// Waits for a message and says whether it counts.
async fn receive(socket: &TokioSocket, ours: &Ours, counts: fn(&[u8]) -> bool) -> bool {
    let mut buffer = Vec::with_capacity(BUFFER);
    poll_fn(|context| match socket.poll_recv(context, &mut buffer) {
        Poll::Ready(Ok(())) => Poll::Ready(!is_from(ours, &buffer) && counts(&buffer)),
        // ENOBUFS: the kernel dropped some, so something changed.
        Poll::Ready(Err(_)) => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Whether all that a datagram holds is from us: a message says so in the last four of the 16 bytes of its header, its
/// length is in the first four (`struct nlmsghdr`).
fn is_from(ours: &Ours, mut datagram: &[u8]) -> bool {
    let number = |bytes: Option<&[u8]>| {
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    };
    loop {
        if !ours.has(number(datagram.get(12..16))) {
            return false;
        }
        let length = usize::try_from(number(datagram.get(..4))).unwrap_or(usize::MAX);
        match datagram.get(length.max(16).saturating_add(3) & !3..) {
            Some(rest) if !rest.is_empty() => datagram = rest,
            _ => return true,
        }
    }
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::LinkMessage,
        route::{RouteMessage, RouteProtocol},
    };

    use super::*;

    fn counts(message: RouteNetlinkMessage) -> bool {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        may_be_workload(&bytes)
    }

    #[test]
    fn of_routes_only_what_may_be_a_workload_counts() {
        let route = |length: u8, table: u8, protocol: u8| {
            let mut route = RouteMessage::default();
            route.header.destination_prefix_length = length;
            route.header.table = table;
            route.header.protocol = RouteProtocol::from(protocol);
            route
        };
        for (route, is_one) in [
            (route(32, RouteHeader::RT_TABLE_MAIN, 3), true),
            (route(128, RouteHeader::RT_TABLE_MAIN, 3), true),
            (route(24, RouteHeader::RT_TABLE_MAIN, 3), false),
            (route(32, 255, 2), false),
            (route(32, RouteHeader::RT_TABLE_MAIN, meshd_core::plan::PROTOCOL), false),
        ] {
            assert_eq!(counts(RouteNetlinkMessage::NewRoute(route.clone())), is_one, "{route:?}");
            assert_eq!(counts(RouteNetlinkMessage::DelRoute(route.clone())), is_one, "{route:?}");
        }
        assert!(counts(RouteNetlinkMessage::DelLink(LinkMessage::default())));
        assert!(may_be_workload(&[]), "what cannot be read may be anything");
    }

    fn message(port: u32, payload: usize) -> Vec<u8> {
        let length = u32::try_from(16 + payload).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([0; 8]);
        bytes.extend(port.to_ne_bytes());
        bytes.resize((16 + payload).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_what_is_wholly_ours_is_passed_over() {
        let ours = Ours::default();
        ours.set_connections([7, 0]);
        let both = |first, second| [message(first, 5), message(second, 0)].concat();
        assert!(is_from(&ours, &message(7, 0)) && is_from(&ours, &both(7, 7)));
        assert!(!is_from(&ours, &both(7, 8)) && !is_from(&ours, &both(8, 7)));
        assert!(!is_from(&ours, &message(0, 0)), "the kernel's own");
        for broken in [&[][..], &[0; 15], &[0; 16], &[255; 40]] {
            assert!(!is_from(&ours, broken));
        }
    }
}
