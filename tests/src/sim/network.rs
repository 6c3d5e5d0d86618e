//! What nodes want done, done: packets, frames, dials, stores. And the check of what they hold.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use meshd_core::{
    limits::CONNECTIONS,
    node::{Output, Unreachable},
    trust::{NodeIdentity, authenticate_bytes},
};
use meshd_proto::NodeKey;
use rand::seq::IteratorRandom;
use sha2::{Digest, Sha256};

use super::{event::Event, mesh, world::World};

/// A dial that nobody answers ends after this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that carried nothing for this long ends, as with the daemon's transport.
const IDLE: Duration = Duration::from_secs(60);
/// UDP payload of a handshake with mutual certificates and a hybrid key exchange, measured between two daemons.
const HANDSHAKE_BYTES: u64 = 6_600;
/// QUIC lets an acknowledgement wait for so long (RFC 9000, 18.2).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// Packets of it of which none may be lost.
const HANDSHAKE_PACKETS: usize = 5;
/// What a packet of a handshake is given to be answered: thrice the round trip that QUIC begins with (RFC 9002, 6.2.2).
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// A stored record that was verified.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    owner: NodeKey,
    version: u64,
    /// One copy for the stores of all hosts.
    bytes: Bytes,
}

impl World {
    pub(super) fn disconnected(&mut self, a: usize, b: usize) {
        for (one, other) in [(a, b), (b, a)] {
            let key = self.hosts[other].key();
            self.with(one, |node, now| node.handle_disconnected(key, now));
        }
    }

    pub(super) fn dialled(
        &mut self,
        from: usize,
        to: Option<usize>,
        addr: SocketAddr,
        expected: Option<NodeKey>,
    ) {
        if let Some(to) = to {
            self.hosts[from].dialling.remove(&to);
        }
        let answers = to.filter(|to| self.hosts[*to].node.is_some() && self.links.reach(from, *to));
        let waiting = to.and_then(|to| self.hosts[from].waiting.remove(&to)).unwrap_or_default();
        let Some(to) = answers else {
            self.report.unanswered += 1;
            self.with(from, |node, now| {
                node.handle_unreachable(addr, now);
                if let Some(key) = expected {
                    node.handle_unreachable(Unreachable::Member(key), now);
                }
            });
            return;
        };
        if self.hosts[from].node.is_none() {
            return;
        }
        let (key, own) = (self.hosts[to].key(), self.hosts[from].key());
        if from == to {
            self.with(from, |node, now| node.handle_connected(key, addr, true, now));
            return;
        }
        if self.links.connect(from, to, self.now()) {
            self.report.handshakes += 1;
            self.report.bytes += HANDSHAKE_BYTES;
            self.push(IDLE, Event::Idle(from, to));
            self.with(from, |node, now| node.handle_connected(key, addr, true, now));
            let remote = mesh::address(from);
            self.with(to, |node, now| node.handle_connected(own, remote, false, now));
        }
        for bytes in waiting {
            self.frame(from, to, bytes);
        }
        for host in [from, to] {
            if let Some(peer) = self.links.superfluous(host, CONNECTIONS) {
                self.links.disconnect(host, peer);
                self.disconnected(host, peer);
            }
        }
    }

    /// Ends a connection over which nothing passed for long, or looks again when that may be so.
    pub(super) fn end_if_idle(&mut self, a: usize, b: usize) {
        let Some(last) = self.links.last_used(a, b) else { return };
        let idle = self.now().saturating_duration_since(last);
        if idle < IDLE {
            self.push(IDLE.saturating_sub(idle), Event::Idle(a, b));
        } else if self.links.disconnect(a, b) {
            self.disconnected(a, b);
        }
    }

    pub(super) fn carry_out(&mut self, host: usize, output: Output) {
        match output {
            Output::Datagram { to, bytes } => {
                let Some(to) = self.holder(host, &to) else { return };
                if self.links.is_connected(host, to) {
                    self.report.datagrams += 1;
                    self.report.bytes += bytes.len() as u64;
                    self.links.touch(host, to, self.now());
                    if !self.links.loses(&mut self.rng) {
                        let delay = self.links.delay(&mut self.rng);
                        self.push(delay, Event::Datagram { from: host, to, bytes });
                    }
                } else {
                    self.dial(host, to);
                }
            }
            Output::Frame { to, bytes } => {
                let Some(to) = self.holder(host, &to) else { return };
                if self.links.is_connected(host, to) {
                    self.frame(host, to, bytes);
                } else {
                    self.hosts[host].waiting.entry(to).or_default().push(bytes);
                    self.dial(host, to);
                }
            }
            Output::Greet { to } => {
                let Some(to) = self.holder(host, &to) else { return };
                if self.links.is_connected(host, to) {
                    self.report.frames += 1;
                    self.links.touch(host, to, self.now());
                    let delay =
                        self.links.delay_until_it_arrives(self.links.patience(), &mut self.rng);
                    self.push(delay, Event::Greeting { from: host, to });
                } else {
                    self.dial(host, to);
                }
            }
            Output::Contact { addr } => {
                let to = self.host_at(&addr);
                self.dial_address(host, to, addr, None);
            }
            Output::Store { key, bytes } => self.store(host, key, bytes),
            Output::Forget { key } => {
                self.hosts[host].store.remove(&key);
                self.floors[host].remove(&key);
            }
            Output::ReserveVersions { at_least } => {
                let block = self.hosts[host].reserve(at_least);
                self.with(host, |node, now| node.handle_versions(block, now));
            }
            Output::Left { to } => self.hosts[host].left = Some(to),
            Output::Event(event) => self.hosts[host].record_event(event),
            Output::StoreBundle(_) | Output::StoreRevocations(_) | Output::StoreTime(_) => {
                self.hosts[host].keep_anchors();
            }
            Output::Disconnect { key } => {
                for to in self.by_key.get(&key).cloned().unwrap_or_default() {
                    if self.links.disconnect(host, to) {
                        self.disconnected(host, to);
                    }
                }
            }
            Output::Renewed { certificate } => {
                let at = self.now.mono;
                let host = &mut self.hosts[host];
                let key = host.identity.key.clone();
                host.identity = Arc::new(NodeIdentity { key, certificate });
                host.renewals.push(at);
            }
            Output::EnrolForward { from, id, request } => {
                let now = self.now;
                if let Some(reply) = self.hosts[host].decide(&request, now, &mut self.rng) {
                    self.with(host, |node, now| node.reply_enrolment(from, id, reply, now));
                }
            }
            Output::AskAtTheDoor { id, request } => self.ask_at_the_door(host, id, &request),
            Output::Changed
            | Output::EnrolReply { .. }
            | Output::SignerInvite { .. }
            | Output::SignerOffer { .. } => {}
        }
    }

    /// Some member that runs hands the request to a signer that runs, as real ones do.
    fn ask_at_the_door(&mut self, host: usize, id: u64, request: &[u8]) {
        let signer = (0..self.hosts.len()).find(|to| {
            let other = &self.hosts[*to];
            other.node.is_some() && other.signer.is_some() && self.links.reach(host, *to)
        });
        let now = self.now;
        let reply = signer.and_then(|to| self.hosts[to].decide(request, now, &mut self.rng));
        let delay = self.links.delay(&mut self.rng);
        self.push(delay * 4, Event::Door { host, id, reply });
    }

    fn host_at(&self, address: &SocketAddr) -> Option<usize> {
        mesh::host_at(address).filter(|host| *host < self.hosts.len())
    }

    /// The host that a packet for `key` goes to: with clones, any of those that are connected.
    pub(super) fn holder(&mut self, from: usize, key: &NodeKey) -> Option<usize> {
        let holders = self.by_key.get(key)?;
        if let [only] = holders[..] {
            return Some(only);
        }
        let connected = holders.iter().filter(|to| self.links.is_connected(from, **to));
        connected.choose(&mut self.rng).or(holders.first()).copied()
    }

    pub(super) fn frame(&mut self, from: usize, to: usize, bytes: Bytes) {
        self.report.frames += 1;
        self.report.bytes += bytes.len() as u64;
        self.links.touch(from, to, self.now());
        let delay = self.links.delay_until_it_arrives(self.links.patience(), &mut self.rng);
        self.push(delay, Event::Frame { from, to, bytes });
    }

    pub(super) fn greeted(&mut self, from: usize, to: usize) {
        if self.links.reach(from, to) && self.hosts[to].node.is_some() {
            let key = self.hosts[from].key();
            self.with(to, |node, now| node.handle_frame(key, &[], now));
            let delay = self.links.delay_until_it_arrives(self.links.patience(), &mut self.rng);
            self.push(ACK_DELAY + delay, Event::Acknowledged { by: to, to: from });
        }
    }

    pub(super) fn acknowledged(&mut self, by: usize, to: usize) {
        if self.links.reach(by, to) {
            let key = self.hosts[by].key();
            self.with(to, |node, now| node.handle_acknowledged(key, now));
        }
    }

    /// Dials a member at what its record names, once at a time.
    pub(super) fn dial(&mut self, from: usize, to: usize) {
        let key = self.hosts[to].key();
        let Some(node) = &self.hosts[from].node else { return };
        let Some(addr) = node.endpoints(&key, self.now).first().copied() else {
            self.hosts[from].waiting.remove(&to);
            self.with(from, |node, now| node.handle_unreachable(key, now));
            return;
        };
        let place = self.host_at(&addr);
        self.dial_address(from, place, addr, Some(key));
    }

    pub(super) fn dial_address(
        &mut self,
        from: usize,
        to: Option<usize>,
        addr: SocketAddr,
        expected: Option<NodeKey>,
    ) {
        if let Some(to) = to
            && !self.hosts[from].dialling.insert(to)
        {
            return;
        }
        let answers =
            to.is_some_and(|to| self.hosts[to].node.is_some() && self.links.reach(from, to));
        let delay = if answers {
            let lost = (0..HANDSHAKE_PACKETS).filter(|_| self.links.loses(&mut self.rng)).count();
            let again = FIRST_PATIENCE * u32::try_from(lost).unwrap_or(0);
            self.links.delay(&mut self.rng) + self.links.delay(&mut self.rng) + again
        } else {
            DIAL_TIMEOUT
        };
        self.push(delay, Event::Dialled { from, to, addr, expected });
    }

    /// What a node holds must be authentic, the newest that it ever held, and the owner's own.
    pub(super) fn store(&mut self, host: usize, key: NodeKey, bytes: Bytes) {
        let seed = self.seed;
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let Verified { owner, version, bytes } = self
            .verified
            .entry(hash)
            .or_insert_with(|| {
                let record =
                    authenticate_bytes(&bytes, &self.mesh.anchors).unwrap_or_else(|error| {
                        panic!("seed {seed}: n{host} holds a bad record: {error}")
                    });
                Verified { owner: record.key, version: record.version, bytes }
            })
            .clone();
        assert_eq!(owner, key, "seed {seed}: n{host} holds a record under another's key");
        let floor = self.floors[host].entry(key).or_default();
        assert!(version >= *floor, "seed {seed}: a version went back at n{host}");
        *floor = version;
        let now = self.now();
        if let Some(watched) = &mut self.watched
            && watched.key == key
            && version > watched.after
        {
            watched.arrivals.entry(host).or_insert(now);
        }
        self.hosts[host].store.insert(key, bytes);
    }
}
