//! The one UDP socket of the QUIC port, used for both roles.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// Why the gossip port could not be opened.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process has the port.
    #[error(
        "cannot listen on {0}; the UDP port is in use by another process; stop it (see \
         `ss -lunp`) or set [gossip] listen to a free port"
    )]
    InUse(SocketAddr),
    /// The address is not one of this host.
    #[error(
        "cannot listen on {0}; this host has no such address; set [gossip] listen to an address of \
         this host, or to [::]:51800 for all"
    )]
    NoSuchAddress(SocketAddr),
    /// The mark needs a capability.
    #[error(
        "cannot mark the gossip socket with {0:#x}; meshd lacks CAP_NET_ADMIN; run it as root or by \
         its systemd unit"
    )]
    NotPermitted(u32),
    /// Anything else.
    #[error("cannot open UDP {0}; {1}; check [gossip] listen")]
    Other(SocketAddr, io::Error),
}

/// Opens the socket on `listen`, dual-stack when that is `[::]`, marked so that its packets never
/// enter the tunnel.
pub(super) fn open(listen: SocketAddr, mark: u32) -> Result<UdpSocket, SocketError> {
    let other = |error| SocketError::Other(listen, error);
    let socket = match Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP)) {
        Ok(socket) => socket,
        // A host without IPv6: the default [::] means every address there is.
        Err(_) if listen.ip().is_unspecified() && listen.is_ipv6() => {
            let v4 = SocketAddr::from(([0, 0, 0, 0], listen.port()));
            return open(v4, mark);
        }
        Err(error) => return Err(other(error)),
    };
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified()).map_err(other)?;
    }
    socket.set_mark(mark).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => SocketError::NotPermitted(mark),
        _ => other(error),
    })?;
    socket.set_nonblocking(true).map_err(other)?;
    // Best effort: a small buffer only loses datagrams that are sent again.
    let _ = socket.set_recv_buffer_size(4 << 20);
    let _ = socket.set_send_buffer_size(1 << 20);
    socket.bind(&listen.into()).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => SocketError::InUse(listen),
        io::ErrorKind::AddrNotAvailable => SocketError::NoSuchAddress(listen),
        _ => other(error),
    })?;
    Ok(socket.into())
}
