//! Which interface a packet came in by: an address inside the mesh as its source proves nothing by itself, since a host
//! takes packets to any of its addresses on every interface.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddrV6,
    os::fd::AsRawFd,
};

use nix::{
    libc::in6_pktinfo,
    net::if_::if_nametoindex,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg},
};
use tokio::{io::Interest, net::UdpSocket};

/// A packet as it came in.
pub(super) struct Received {
    pub(super) length: usize,
    pub(super) from: SocketAddrV6,
    /// Index of the interface.
    pub(super) interface: Option<u32>,
}

impl Received {
    /// It came out of the device `name` that there is now.
    pub(super) fn is_from(&self, name: &str) -> bool {
        self.interface.is_some_and(|index| if_nametoindex(name).is_ok_and(|now| now == index))
    }
}

/// The next packet of a socket that tells interfaces (`IPV6_RECVPKTINFO`).
pub(super) async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    socket
        .async_io(Interest::READABLE, || {
            let mut slices = [IoSliceMut::new(buffer)];
            let mut told = nix::cmsg_space!(in6_pktinfo);
            let (descriptor, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let message = recvmsg::<SockaddrIn6>(descriptor, &mut slices, Some(&mut told), flags)?;
            let interface = message.cmsgs()?.find_map(|told| match told {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
                _ => None,
            });
            let from = message.address.ok_or_else(|| io::Error::other("a packet of nobody"))?;
            Ok(Received { length: message.bytes, from: from.into(), interface })
        })
        .await
}
