//! Echo inside the tunnel: `meshctl ping`, the poke that starts a new pair's first handshake, and probes of a size.
//!
//! UDP sockets on this node's ULA. Both take only what comes out of the tunnel: a host takes packets to any of its
//! addresses on every interface, so a member's source alone proves nothing. One answers members alone, with as many bytes
//! as it was sent; a probe of a size is answered by a short packet, so that it measures one direction. The other sends
//! those probes whole, larger than the route's MTU. A task reads each; both end when the [`Prober`] is dropped.

mod inside;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use meshd_core::accord::Statement;
use meshd_proto::NodeKey;
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv6DontFrag, Ipv6RecvPacketInfo},
};
use rustix::net::sockopt::{Ipv6PathMtuDiscovery, set_ipv6_mtu_discover};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use self::inside::Received;

/// UDP port of the echo, on mesh addresses only.
pub const PORT: u16 = 51_801;
/// Kind and nonce.
pub const HEADER: usize = 9;
/// Largest probe: an IPv6 packet of jumbo size less its headers.
pub const LARGEST: usize = 8_952;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Of any size, answered by [`MEASURED`] without filling.
const MEASURE: u8 = 3;
const MEASURED: u8 = 4;
/// A statement of `meshd_core::accord`, and the answer to one.
const STATEMENT: u8 = 5;
const ANSWER: u8 = 6;
/// IPv6 and UDP headers.
const HEADERS: u32 = 48;
/// What WireGuard adds to a packet as it counts bytes (WireGuard, 5.4.6).
const WIREGUARD: u64 = 32;
/// A member that sends much is told of once in a while.
const HEARD_EVERY: Duration = Duration::from_secs(1);
/// Probes waiting for their answer.
const PENDING: usize = 1_024;

/// Mesh addresses that are answered, and whose they are.
pub type Members = Arc<RwLock<BTreeMap<Ipv6Addr, NodeKey>>>;

/// What came in from a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The answer to [`Prober::measure`].
    Answer {
        /// Who answers.
        from: NodeKey,
        /// What it was given.
        id: u64,
    },
    /// What of our node addresses it takes from the tunnel.
    Statement {
        /// Who says so.
        from: NodeKey,
        /// Of the question.
        id: u64,
        /// It answers one of ours.
        is_answer: bool,
        /// What it says.
        statement: Statement,
    },
    /// Something: the tunnel works.
    Anything {
        /// From whom.
        from: NodeKey,
    },
}

type Pending = Arc<Mutex<BTreeMap<u64, (Ipv6Addr, oneshot::Sender<Instant>)>>>;

/// The echo service of this node and the way to use that of others.
pub struct Prober {
    socket: Arc<UdpSocket>,
    pending: Pending,
    nonce: AtomicU64,
    /// Sends without asking the runtime, which learns late that a new socket is writable.
    measuring: std::net::UdpSocket,
    sent: Sent,
    readers: [JoinHandle<()>; 2],
}

/// Bytes sent to each address by us, as WireGuard counts them.
type Sent = Arc<Mutex<BTreeMap<Ipv6Addr, u64>>>;

impl Drop for Prober {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

impl Prober {
    /// Opens the sockets on `ula`, which need not be on a device yet, and starts to answer `members`. Nothing counts but
    /// what comes out of `interface`. What is heard goes to `heard`; where that is full, it is lost.
    pub fn start(
        ula: Ipv6Addr,
        interface: String,
        members: Members,
        heard: mpsc::Sender<Heard>,
    ) -> io::Result<Self> {
        let answering = bound(ula, PORT)?;
        setsockopt(&answering, Ipv6RecvPacketInfo, &true)?;
        let socket = Arc::new(UdpSocket::from_std(answering.into())?);
        let measuring = bound(ula, 0)?;
        // Sizes above the route's MTU go out whole; what the device does not take is an error, and no fragments.
        set_ipv6_mtu_discover(&measuring, Ipv6PathMtuDiscovery::PROBE)?;
        setsockopt(&measuring, Ipv6DontFrag, &true)?;
        setsockopt(&measuring, Ipv6RecvPacketInfo, &true)?;
        let measuring = std::net::UdpSocket::from(measuring);
        let answers = UdpSocket::from_std(measuring.try_clone()?)?;
        let (pending, sent) = (Pending::default(), Sent::default());
        let measured = Measured {
            interface: interface.clone(),
            members: members.clone(),
            heard: heard.clone(),
        };
        let answering = Answering {
            socket: socket.clone(),
            interface,
            members,
            pending: pending.clone(),
            heard,
            told: BTreeMap::new(),
            sent: sent.clone(),
        };
        let readers = [tokio::spawn(answering.read()), tokio::spawn(measured.read(answers))];
        // Nonces need only differ within this process; a guessed one gains its sender nothing.
        Ok(Self { socket, pending, nonce: AtomicU64::new(1), measuring, sent, readers })
    }

    /// Sends a packet of exactly `size` bytes, IPv6 header included, to `peer`. Its answer comes as [`Heard::Answer`].
    pub fn measure(&self, peer: Ipv6Addr, id: u64, size: u32) {
        let length = size.saturating_sub(HEADERS) as usize;
        let mut packet = vec![0; length.max(HEADER)];
        write_header(&mut packet, MEASURE, id);
        match self.measuring.send_to(&packet, to(peer)) {
            Ok(length) => count(&self.sent, peer, length),
            // A size that the device does not take is one that is not carried.
            Err(error) => tracing::debug!(%peer, size, %error, "probe not sent"),
        }
    }

    /// Bytes that this sent to `peer` through the tunnel, as WireGuard counts them.
    pub fn sent(&self, peer: &Ipv6Addr) -> u64 {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied().unwrap_or(0)
    }

    /// Forgets what was sent to others than `peers`.
    pub fn forget_but(&self, peers: impl Fn(&Ipv6Addr) -> bool) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.retain(|address, _| peers(address));
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

    /// Sends `statement` to `peer`, as the answer to its statement `id` or as the one of ours with that number.
    pub fn state(&self, peer: Ipv6Addr, id: u64, is_answer: bool, statement: &Statement) {
        let kind = if is_answer { ANSWER } else { STATEMENT };
        let mut packet = packet(kind, id, HEADER);
        packet.extend(statement.encode());
        let (socket, sent) = (self.socket.clone(), self.sent.clone());
        tokio::spawn(async move {
            match socket.send_to(&packet, to(peer)).await {
                Ok(length) => count(&sent, peer, length),
                // It is said again.
                Err(error) => tracing::debug!(%peer, %error, "statement not sent"),
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

fn bound(ula: Ipv6Addr, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_freebind_v6(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((ula, port)).into())?;
    Ok(socket)
}

fn to(peer: Ipv6Addr) -> SocketAddr {
    SocketAddrV6::new(peer, PORT, 0, 0).into()
}

fn packet(kind: u8, nonce: u64, size: usize) -> Vec<u8> {
    let mut packet = vec![0; size.clamp(HEADER, LARGEST)];
    write_header(&mut packet, kind, nonce);
    packet
}

fn write_header(packet: &mut [u8], kind: u8, nonce: u64) {
    packet[0] = kind;
    packet[1..HEADER].copy_from_slice(&nonce.to_be_bytes());
}

/// Kind and nonce.
fn read_header(packet: &[u8]) -> Option<(u8, u64)> {
    let (kind, rest) = packet.split_first()?;
    Some((*kind, u64::from_be_bytes(*rest.first_chunk()?)))
}

/// A packet with `payload` bytes went to `peer`.
fn count(sent: &Sent, peer: Ipv6Addr, payload: usize) {
    let inside = payload as u64 + u64::from(HEADERS);
    let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
    *sent.entry(peer).or_default() += inside.next_multiple_of(16) + WIREGUARD;
}

/// The answering socket's reader.
struct Answering {
    socket: Arc<UdpSocket>,
    interface: String,
    members: Members,
    pending: Pending,
    heard: mpsc::Sender<Heard>,
    /// When each member was last told of.
    told: BTreeMap<NodeKey, Instant>,
    sent: Sent,
}

impl Answering {
    async fn read(mut self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            match inside::receive(&self.socket, &mut buffer).await {
                Ok(received) => self.take(&buffer[..received.length], &received),
                // ICMP errors of what was sent before come up here.
                Err(error) => tracing::debug!(%error, "probe socket"),
            }
        }
    }

    fn take(&mut self, packet: &[u8], received: &Received) {
        let from = received.from;
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = members.get(from.ip()).copied() else { return };
        drop(members);
        if !received.is_from(&self.interface) {
            return;
        }
        let Some((kind, nonce)) = read_header(packet) else { return };
        self.tell(member);
        match kind {
            REQUEST => self.reply(REPLY, nonce, packet.len(), from),
            MEASURE => self.reply(MEASURED, nonce, HEADER, from),
            REPLY => {
                let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
                if pending.get(&nonce).is_some_and(|(peer, _)| peer == from.ip())
                    && let Some((_, answered)) = pending.remove(&nonce)
                {
                    let _ = answered.send(Instant::now());
                }
            }
            STATEMENT | ANSWER => {
                let Some(statement) = Statement::decode(&packet[HEADER..]) else { return };
                let (from, id, is_answer) = (member, nonce, kind == ANSWER);
                let _ = self.heard.try_send(Heard::Statement { from, id, is_answer, statement });
            }
            _ => {}
        }
    }

    fn reply(&self, kind: u8, nonce: u64, size: usize, to: SocketAddrV6) {
        // A full send buffer drops the answer, as a network would.
        if let Ok(length) = self.socket.try_send_to(&packet(kind, nonce, size), to.into()) {
            count(&self.sent, *to.ip(), length);
        }
    }

    fn tell(&mut self, from: NodeKey) {
        let now = Instant::now();
        let known = self.members.read().unwrap_or_else(PoisonError::into_inner).len();
        if self.told.len() > known {
            self.told.retain(|_, at| now.duration_since(*at) < HEARD_EVERY);
        }
        if self.told.get(&from).is_none_or(|at| now.duration_since(*at) >= HEARD_EVERY) {
            self.told.insert(from, now);
            let _ = self.heard.try_send(Heard::Anything { from });
        }
    }
}

/// The measuring socket's reader.
struct Measured {
    interface: String,
    members: Members,
    heard: mpsc::Sender<Heard>,
}

impl Measured {
    async fn read(self, socket: UdpSocket) {
        let mut buffer = [0; HEADER];
        loop {
            match inside::receive(&socket, &mut buffer).await {
                Ok(received) => self.take(&buffer[..received.length], &received),
                Err(error) => tracing::debug!(%error, "probe socket"),
            }
        }
    }

    fn take(&self, packet: &[u8], received: &Received) {
        let from = received.from;
        if packet.len() != HEADER || from.port() != PORT || !received.is_from(&self.interface) {
            return;
        }
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(from), Some((MEASURED, id))) =
            (members.get(from.ip()).copied(), read_header(packet))
        {
            let _ = self.heard.try_send(Heard::Answer { from, id });
        }
    }
}

#[cfg(test)]
mod tests;
