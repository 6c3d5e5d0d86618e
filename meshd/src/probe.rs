//! Echo inside the tunnel: `meshctl ping`, and the poke that starts a new pair's first handshake.
//!
//! One UDP socket on this node's ULA, which only the tunnel carries. It answers members alone, with
//! as many bytes as it was sent, so that nobody gains by forging a source. One task reads it; it ends
//! when the [`Prober`] is dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::oneshot, task::JoinHandle};

/// UDP port of the echo, on mesh addresses only.
pub const PORT: u16 = 51_801;
/// Kind and nonce.
pub const HEADER: usize = 9;
/// Largest probe: an IPv6 packet of jumbo size less its headers.
pub const LARGEST: usize = 8_952;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Probes waiting for their answer.
const PENDING: usize = 1_024;

/// Mesh addresses that are answered.
pub type Members = Arc<RwLock<BTreeSet<Ipv6Addr>>>;

type Pending = Arc<Mutex<BTreeMap<u64, (Ipv6Addr, oneshot::Sender<Instant>)>>>;

/// The echo service of this node and the way to use that of others.
pub struct Prober {
    socket: Arc<UdpSocket>,
    pending: Pending,
    nonce: AtomicU64,
    reader: JoinHandle<()>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Prober {
    /// Opens the socket on `ula`, which need not be on a device yet, and starts to answer `members`.
    pub fn start(ula: Ipv6Addr, members: Members) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((ula, PORT)).into())?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let pending = Pending::default();
        let reader = tokio::spawn(read(socket.clone(), members, pending.clone()));
        // Nonces need only differ within this process; a guessed one gains its sender nothing.
        Ok(Self { socket, pending, nonce: AtomicU64::new(1), reader })
    }

    /// Sends one packet to `peer`, so that WireGuard starts a handshake. Nothing waits for an answer.
    pub fn poke(&self, peer: Ipv6Addr) {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        let socket = self.socket.clone();
        tokio::spawn(async move {
            // Not `try_send_to`: on a new socket that fails until the runtime has seen it writable.
            if let Err(error) = socket.send_to(&packet(REQUEST, nonce, HEADER), to(peer)).await {
                tracing::debug!(%peer, %error, "poke not sent");
            }
        });
    }

    /// Round-trip time of a probe of `size` bytes to `peer`; `None` when it was not answered in time.
    pub async fn ping(
        &self,
        peer: Ipv6Addr,
        size: usize,
        timeout: Duration,
    ) -> io::Result<Option<Duration>> {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.len() >= PENDING {
                return Err(io::Error::other("too many probes at once"));
            }
            pending.insert(nonce, (peer, answered));
        }
        let sent = Instant::now();
        let result = match self.socket.send_to(&packet(REQUEST, nonce, size), to(peer)).await {
            Ok(_) => Ok(tokio::time::timeout(timeout, answer)
                .await
                .ok()
                .and_then(Result::ok)
                .map(|at| at.duration_since(sent))),
            Err(error) => Err(error),
        };
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&nonce);
        result
    }
}

fn to(peer: Ipv6Addr) -> SocketAddr {
    SocketAddrV6::new(peer, PORT, 0, 0).into()
}

fn packet(kind: u8, nonce: u64, size: usize) -> Vec<u8> {
    let mut packet = vec![0; size.clamp(HEADER, LARGEST)];
    packet[0] = kind;
    packet[1..HEADER].copy_from_slice(&nonce.to_be_bytes());
    packet
}

async fn read(socket: Arc<UdpSocket>, members: Members, pending: Pending) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // ICMP errors of what was sent before come up here.
            Err(error) => {
                tracing::debug!(%error, "probe socket");
                continue;
            }
        };
        let SocketAddr::V6(from) = from else { continue };
        let known = members.read().unwrap_or_else(PoisonError::into_inner).contains(from.ip());
        let Some(header) = buffer[..length].first_chunk::<HEADER>() else { continue };
        if !known {
            continue;
        }
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&header[1..]);
        let nonce = u64::from_be_bytes(nonce);
        match header[0] {
            REQUEST => {
                let reply = packet(REPLY, nonce, length);
                // A full send buffer drops the answer, as a network would.
                let _ = socket.try_send_to(&reply, from.into());
            }
            REPLY => {
                let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
                if pending.get(&nonce).is_some_and(|(peer, _)| peer == from.ip())
                    && let Some((_, answered)) = pending.remove(&nonce)
                {
                    let _ = answered.send(Instant::now());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn members_are_answered_and_others_are_not() {
        let own = Ipv6Addr::LOCALHOST;
        let members = Members::default();
        let prober = Prober::start(own, members.clone()).unwrap();
        let wait = Duration::from_millis(200);
        assert_eq!(prober.ping(own, 100, wait).await.unwrap(), None);
        members.write().unwrap().insert(own);
        let long = Duration::from_secs(5);
        assert!(prober.ping(own, 100, long).await.unwrap().is_some());
        assert!(prober.ping(own, 0, long).await.unwrap().is_some());
    }
}
