//! QUIC between members: who is connected, and bytes to and from them.
//!
//! Responsible for: the endpoint, its limits, TLS, the cache of connections, dialling. Not for: what
//! the bytes mean, or whom to talk to (the core's `Node` says that). Called by the daemon's loop,
//! which owns the [`Transport`]; nothing here is shared between threads.
//!
//! Tasks, each ended with its connection or with the endpoint:
//! - `accept`: one; takes incoming handshakes, at most `limits::HANDSHAKES` at once.
//! - per connection a reader (streams and datagrams) and a writer (queue of
//!   `limits::FRAME_QUEUE` frames); both stop when the connection closes. One task more while a greeting was not
//!   acknowledged yet.
//! - per dial one task, bounded by `limits::HANDSHAKE_TIMEOUT`.
//!
//! All of them report into one bounded channel that the loop drains with [`Transport::recv`]; a full
//! channel slows the readers down, and through flow control the peers.

mod connection;
mod dates;
mod dial;
mod enrol;
mod event;
mod inside;
mod limits;
mod race;
mod server;
mod socket;
mod tls;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::hmac;
use bytes::Bytes;
use meshd_core::{limits::CONNECTIONS, refusal::Refusal};
use meshd_proto::NodeKey;
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use tokio::{sync::mpsc, task::JoinSet};

pub(crate) use self::event::Report;
use self::{connection::Live, inside::Inside, server::Gate};
pub use self::{
    dial::Target,
    enrol::{EnrolClient, EnrolClientError, EnrolLink, EnrolTicket},
    event::Event,
    race::Race,
    server::ChainCheck,
    socket::SocketError,
    tls::{TlsError, TlsIdentity},
};

/// Connections with one peer.
const PER_PEER: usize = 4;

/// Connections, by peer.
pub struct Transport {
    endpoint: Endpoint,
    endpoint_config: EndpointConfig,
    inside: Inside,
    member: Option<Member>,
    gate: Gate,
    live: BTreeMap<NodeKey, Vec<Live>>,
    dialling: BTreeMap<Target, Dial>,
    /// The tasks that dial.
    dials: JoinSet<()>,
    reports: mpsc::Sender<Report>,
    inbox: mpsc::Receiver<Report>,
    ready: VecDeque<Event>,
    dropped_frames: u64,
}

/// What is needed to talk as a member.
struct Member {
    server: quinn::ServerConfig,
    client: quinn::ClientConfig,
    server_name: String,
    check: Arc<dyn ChainCheck>,
}

/// A dial in progress and what waits for it.
#[derive(Default)]
struct Dial {
    frames: VecDeque<Bytes>,
    datagrams: VecDeque<Bytes>,
}

impl Transport {
    /// Opens the port. Nobody is let in before [`Transport::become_member`].
    /// `reset_key` outlives the process: peers learn from it that a restart ended their connections.
    pub fn open(listen: SocketAddr, mark: u32, reset_key: &[u8; 32]) -> Result<Self, SocketError> {
        let socket = socket::open(listen, mark)?;
        let reset = hmac::Key::new(hmac::HMAC_SHA256, reset_key);
        let mut config = EndpointConfig::new(Arc::new(reset));
        // The peers' MTU discovery may go to jumbo frames; ours too.
        let _ = config.max_udp_payload_size(9_000);
        let endpoint = Endpoint::new(config.clone(), None, socket, Arc::new(TokioRuntime))
            .map_err(|error| SocketError::Other(listen, error))?;
        let (reports, inbox) = mpsc::channel(limits::EVENT_QUEUE);
        let gate = Gate::default();
        tokio::spawn(server::accept(endpoint.clone(), gate.clone(), reports.clone(), None));
        Ok(Self {
            endpoint,
            endpoint_config: config,
            inside: Inside::default(),
            member: None,
            gate,
            live: BTreeMap::new(),
            dialling: BTreeMap::new(),
            dials: JoinSet::new(),
            reports,
            inbox,
            ready: VecDeque::new(),
            dropped_frames: 0,
        })
    }

    /// Starts to accept and to dial as the member that `identity` says.
    pub fn become_member(
        &mut self,
        identity: &TlsIdentity,
        server_name: String,
        check: Arc<dyn ChainCheck>,
    ) -> Result<(), TlsError> {
        let server = tls::server(identity)?;
        let client = tls::client(identity)?;
        self.gate.open(check.clone());
        self.endpoint.set_server_config(Some(server.clone()));
        self.inside.set_server(Some(server.clone()));
        self.member = Some(Member { server, client, server_name, check });
        Ok(())
    }

    /// Closes every connection and refuses new ones: after a leave.
    pub fn stop_member(&mut self) {
        self.endpoint.set_server_config(None);
        self.inside.set_server(None);
        self.gate.shut();
        self.member = None;
        self.dialling.clear();
        // What was dialled as this member must not come up as the next one.
        self.dials.abort_all();
        while let Ok(report) = self.inbox.try_recv() {
            if let Report::Up(live) = report {
                live.close("left");
            }
        }
        for live in std::mem::take(&mut self.live).into_values().flatten() {
            live.close("left");
        }
    }

    /// The port in use.
    #[must_use]
    pub fn local_port(&self) -> Option<u16> {
        self.endpoint.local_addr().ok().map(|address| address.port())
    }

    /// Frames dropped because a peer was too slow.
    #[must_use]
    pub fn dropped_frames(&self) -> u64 {
        self.dropped_frames
    }

    /// Peers with which a connection stands.
    #[must_use]
    pub fn connected_peers(&self) -> usize {
        self.live.len()
    }

    /// True when a connection with `peer` stands: no addresses are needed to send.
    #[must_use]
    pub fn is_connected(&self, peer: &NodeKey) -> bool {
        self.live.contains_key(peer)
    }

    /// True when `peer` is connected or being dialled: what is sent now needs no addresses.
    #[must_use]
    pub fn is_reachable(&self, peer: &NodeKey) -> bool {
        self.is_connected(peer) || self.dialling.contains_key(&Target::Node(*peer))
    }

    /// Waits until the last connection is closed, or `limit` has passed.
    pub async fn wait_closed(&self, limit: Duration) {
        // After the limit the peers notice by themselves.
        let _ = tokio::time::timeout(limit, async {
            tokio::join!(self.endpoint.wait_idle(), self.inside.wait_idle())
        })
        .await;
    }

    /// Round-trip time to `peer` on the underlay, as QUIC measures it.
    #[must_use]
    pub fn rtt(&self, peer: &NodeKey) -> Option<Duration> {
        self.live.get(peer)?.last().map(Live::rtt)
    }

    /// The address of `peer` on its newest connection.
    #[must_use]
    pub fn remote(&self, peer: &NodeKey) -> Option<IpAddr> {
        self.live.get(peer)?.last().map(|live| live.remote().ip())
    }

    /// Sends a datagram; `addresses` are dialled when there is no connection. Best effort.
    pub fn send_datagram(&mut self, to: NodeKey, bytes: Bytes, addresses: Vec<SocketAddr>) {
        if let Some(live) = self.newest(&to) {
            live.send_datagram(bytes);
        } else if let Some(dial) = self.dial(Target::Node(to), addresses) {
            push_bounded(&mut dial.datagrams, bytes);
        }
    }

    /// Sends a frame on a stream of its own; `addresses` are dialled when there is no connection.
    pub fn send_frame(&mut self, to: NodeKey, bytes: Bytes, addresses: Vec<SocketAddr>) {
        if let Some(live) = self.newest(&to) {
            if !live.send_frame(bytes) {
                self.dropped_frames += 1;
            }
        } else if let Some(dial) = self.dial(Target::Node(to), addresses)
            && !push_bounded(&mut dial.frames, bytes)
        {
            self.dropped_frames += 1;
        }
    }

    /// Sends an empty frame and reports when it was acknowledged; `addresses` are dialled when there is no connection.
    pub fn greet(&mut self, to: NodeKey, addresses: Vec<SocketAddr>) {
        if let Some(live) = self.newest(&to) {
            live.greet();
        } else {
            // That a connection stands says as much.
            self.dial(Target::Node(to), addresses);
        }
    }

    /// Dials a seed whose identity is not known.
    pub fn contact(&mut self, address: SocketAddr) {
        self.dial(Target::Address(address), vec![address]);
    }

    /// Closes every connection with `peer`.
    pub fn close(&mut self, peer: &NodeKey, why: &str) {
        if let Some(all) = self.live.remove(peer) {
            for live in all {
                live.close(why);
            }
            self.ready.push_back(Event::Disconnected { peer: *peer });
        }
    }

    /// The same, when what was queued for it has been sent.
    pub fn close_soon(&mut self, peer: &NodeKey, why: &'static str) {
        if let Some(all) = self.live.remove(peer) {
            all.into_iter().for_each(|live| live.close_soon(why));
            self.ready.push_back(Event::Disconnected { peer: *peer });
        }
    }

    /// Closes the connections that would not be let in now; returns whose.
    pub fn check_again(&mut self) -> Vec<(NodeKey, Refusal)> {
        let Some(check) = self.member.as_ref().map(|member| member.check.clone()) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for (peer, all) in &self.live {
            let refused = all.iter().find_map(|live| check.check_again(&live.certificate()).err());
            out.extend(refused.map(|refusal| (*peer, refusal)));
        }
        for (peer, _) in &out {
            self.close_soon(peer, "certificate");
        }
        out
    }

    /// Waits until `peers` have acknowledged what was queued to them, or `limit` has passed; returns how many have.
    pub async fn flush(&self, peers: &[NodeKey], limit: Duration) -> usize {
        let writers = peers.iter().filter_map(|peer| self.live.get(peer)?.last());
        let all = writers.map(|live| tokio::time::timeout(limit, live.flushed()));
        futures::future::join_all(all).await.into_iter().filter(Result::is_ok).count()
    }

    /// A joiner's enrolment through `address`: one request, one reply.
    pub fn enrol_client(&self) -> EnrolClient {
        EnrolClient::new(self.endpoint.clone())
    }

    /// The next thing that happened. Cancel safe.
    pub async fn recv(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            // The sender is a field of `self`: the channel never closes.
            if let Some(report) = self.inbox.recv().await {
                self.take(report);
            }
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Event(event) => self.ready.push_back(event),
            Report::Up(live) => self.up(*live),
            Report::Closed { peer, stable_id } => {
                if let Some(all) = self.live.get_mut(&peer) {
                    all.retain(|live| live.stable_id() != stable_id);
                    if all.is_empty() {
                        self.live.remove(&peer);
                        self.ready.push_back(Event::Disconnected { peer });
                    }
                }
            }
            Report::DialFailed { target, tried, why } => {
                self.dialling.remove(&target);
                self.ready.push_back(Event::Unreachable { target, tried, why });
            }
        }
    }

    fn up(&mut self, live: Live) {
        if self.member.is_none() {
            live.close("left");
            return;
        }
        let peer = live.peer();
        let mut waiting = self.dialling.remove(&Target::Node(peer)).unwrap_or_default();
        if let Some(address) = live.dialled()
            && let Some(dial) = self.dialling.remove(&Target::Address(address))
        {
            waiting.frames.extend(dial.frames);
        }
        for bytes in waiting.datagrams {
            live.send_datagram(bytes);
        }
        for bytes in waiting.frames {
            if !live.send_frame(bytes) {
                self.dropped_frames += 1;
            }
        }
        let first = !self.live.contains_key(&peer);
        let (certificate, remote) = (live.certificate(), live.remote());
        let outgoing = live.dialled().is_some();
        let all = self.live.entry(peer).or_default();
        all.push(live);
        // Both sides may dial at once, a seed by address and by name. What is in flight on the older ones
        // must get through: they end by being idle, and only of many the oldest goes at once.
        if all.len() > PER_PEER {
            all.remove(0).close("superseded");
        }
        self.ready.push_back(match first {
            true => Event::Connected { peer, certificate, remote, outgoing },
            false => Event::Reached { peer, remote },
        });
        self.evict(&peer);
    }

    /// Keeps the number of connections bounded: the one idle longest goes.
    fn evict(&mut self, newest: &NodeKey) {
        while self.live.len() > CONNECTIONS {
            let idle = self
                .live
                .iter()
                .filter(|(peer, _)| *peer != newest)
                .min_by_key(|(_, all)| all.iter().map(Live::last_used).max())
                .map(|(peer, _)| *peer);
            let Some(peer) = idle else { return };
            self.close(&peer, "idle");
        }
    }

    fn newest(&self, peer: &NodeKey) -> Option<&Live> {
        self.live.get(peer)?.last()
    }

    /// The dial of `target`, begun now if there is none; `None` when there is no address to try.
    fn dial(&mut self, target: Target, addresses: Vec<SocketAddr>) -> Option<&mut Dial> {
        let member = self.member.as_ref()?;
        if !self.dialling.contains_key(&target) {
            if addresses.is_empty() || self.dialling.len() >= limits::HANDSHAKES {
                return None;
            }
            while self.dials.try_join_next().is_some() {}
            let endpoint_of = |address: SocketAddr| {
                let endpoint = self.inside.endpoint_for(&address).unwrap_or(&self.endpoint);
                (address, endpoint.clone())
            };
            self.dials.spawn(dial::dial(
                dial::Plan {
                    target: target.clone(),
                    addresses: addresses.into_iter().map(endpoint_of).collect(),
                    client: member.client.clone(),
                    server_name: member.server_name.clone(),
                    check: member.check.clone(),
                },
                self.reports.clone(),
            ));
        }
        Some(self.dialling.entry(target).or_default())
    }
}

fn push_bounded(queue: &mut VecDeque<Bytes>, bytes: Bytes) -> bool {
    let room = queue.len() < limits::DIAL_QUEUE;
    if room {
        queue.push_back(bytes);
    }
    room
}
