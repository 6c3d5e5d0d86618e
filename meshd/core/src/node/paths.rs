//! Where members are reached: connections, addresses that may be dialled, and how long not to.
//!
//! Endpoints are claims. A member could name a third party's address, so what is not unicast, ours, or inside
//! the mesh is never dialled, and an address that does not answer is left alone for longer and longer,
//! whoever names it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv6Net};
use meshd_proto::{MeshId, NodeKey, wire};
use rand::RngExt;

use super::sync::jitter;
use crate::{address, directory::Directory, limits, trust::Record};

/// First and longest pause before an address that did not answer is dialled again.
const DIAL_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Addresses whose failures are remembered.
const DIALS: usize = 4_096;
/// Members whose word about our own address is kept.
const OBSERVERS: usize = 32;

/// Ports of one host that rest before all of it does.
const PORTS: usize = 4;

#[derive(Debug)]
struct Dial {
    pause: Duration,
    next: Instant,
}

/// What is known of the ways to members.
#[derive(Debug)]
pub(super) struct Paths {
    mesh: Ipv6Net,
    connections: BTreeMap<NodeKey, SocketAddr>,
    last: BTreeMap<NodeKey, IpAddr>,
    dials: BTreeMap<SocketAddr, Dial>,
    observed: BTreeMap<NodeKey, SocketAddr>,
    routed: Vec<IpNet>,
}

impl Paths {
    pub(super) fn new(mesh: &MeshId) -> Self {
        Self {
            mesh: address::ula_prefix(mesh),
            connections: BTreeMap::new(),
            last: BTreeMap::new(),
            dials: BTreeMap::new(),
            observed: BTreeMap::new(),
            routed: Vec::new(),
        }
    }

    pub(super) fn set_routed(&mut self, routed: Vec<IpNet>) {
        self.routed = routed;
    }

    pub(super) fn connected(&self) -> impl Iterator<Item = &NodeKey> {
        self.connections.keys()
    }

    pub(super) fn is_connected(&self, key: &NodeKey) -> bool {
        self.connections.contains_key(key)
    }

    /// No connection to anybody.
    pub(super) fn is_isolated(&self) -> bool {
        self.connections.is_empty()
    }

    /// Gives whether the connection is the first to `key`.
    pub(super) fn opened(&mut self, key: NodeKey, remote: SocketAddr, outgoing: bool) -> bool {
        if outgoing {
            self.dials.remove(&remote);
        }
        if self.last.len() >= limits::DIRECTORY_MEMBERS && !self.last.contains_key(&key) {
            self.last.pop_first();
        }
        self.last.insert(key, remote.ip());
        self.connections.insert(key, remote).is_none()
    }

    pub(super) fn closed(&mut self, key: &NodeKey) {
        self.connections.remove(key);
        // How it saw us stays: an address does not change because a connection ends.
    }

    pub(super) fn forget(&mut self, key: &NodeKey) {
        self.last.remove(key);
        self.observed.remove(key);
    }

    pub(super) fn last(&self, key: &NodeKey) -> Option<IpAddr> {
        self.last.get(key).copied()
    }

    /// An address did not answer.
    pub(super) fn failed(&mut self, addr: SocketAddr, rng: &mut impl RngExt, now: Instant) {
        if self.dials.len() >= DIALS && !self.dials.contains_key(&addr) {
            self.dials.retain(|_, dial| dial.next > now);
            if self.dials.len() >= DIALS {
                self.dials.pop_first();
            }
        }
        let (first, longest) = DIAL_PAUSE;
        let dial = self.dials.entry(addr).or_insert(Dial { pause: first, next: now });
        if dial.next > now {
            return; // The failure of a dial that began before the last one's.
        }
        dial.next = now + jitter(dial.pause, rng);
        dial.pause = (dial.pause * 2).min(longest);
    }

    /// The owner of `record` was started anew, or answered those who hold it for down: where it was before it may
    /// be dialled at once. Elsewhere not, or a member could have a third party dialled for each generation that it signs.
    pub(super) fn excuse(&mut self, record: &Record) {
        let last = self.last(&record.key);
        for addr in record.endpoints.iter().filter(|addr| last == Some(addr.ip())) {
            self.dials.remove(addr);
        }
    }

    /// `from` says under which address it sees us.
    pub(super) fn observe(&mut self, from: NodeKey, endpoint: &wire::Endpoint) {
        let ip = address::address_from_wire(&endpoint.address);
        let (Ok(ip), Ok(port)) = (ip, u16::try_from(endpoint.port)) else { return };
        // What it sees of a connection through the tunnel says nothing of the networks outside.
        let inside = matches!(ip, IpAddr::V6(v6) if self.mesh.contains(&v6));
        if inside || !self.is_connected(&from) {
            return;
        }
        if self.observed.len() >= OBSERVERS && !self.observed.contains_key(&from) {
            let gone =
                self.observed.keys().find(|key| !self.connections.contains_key(*key)).copied();
            let Some(gone) = gone else { return };
            self.observed.remove(&gone);
        }
        self.observed.insert(from, SocketAddr::new(ip, port));
    }

    /// The address under which most see us.
    pub(super) fn observed(&self) -> Option<SocketAddr> {
        let mut votes: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for addr in self.observed.values() {
            *votes.entry(*addr).or_default() += 1;
        }
        votes
            .into_iter()
            .max_by_key(|(addr, count)| (*count, std::cmp::Reverse(*addr)))
            .map(|v| v.0)
    }

    /// Where to dial the owner of `record` through the tunnel: a gateway carries what is for it.
    pub(super) fn inside(&self, mesh: &MeshId, record: &Record, now: Instant) -> Vec<SocketAddr> {
        let address = SocketAddr::new(address::ula(mesh, &record.key).into(), limits::INSIDE_PORT);
        if self.is_resting(&address, now) { Vec::new() } else { vec![address] }
    }

    /// Where to dial the owner of `record`, the address that worked last first.
    pub(super) fn endpoints(
        &self,
        record: &Record,
        own: Option<&Record>,
        directory: &Directory,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let ours = own.map_or(&[][..], |own| &own.endpoints);
        let resting = |addr: &SocketAddr| self.is_resting(addr, now);
        let mut chosen: Vec<_> = record
            .endpoints
            .iter()
            .filter(|addr| !ours.contains(addr) && !resting(addr))
            .filter(|addr| self.may_dial(addr, directory))
            .copied()
            .collect();
        let last = self.last.get(&record.key);
        chosen.sort_by_key(|addr| Some(&addr.ip()) != last);
        chosen.dedup();
        chosen
    }

    /// An address that did not answer rests, and so does a host with several such ports: its members could
    /// name others for ever.
    fn is_resting(&self, addr: &SocketAddr, now: Instant) -> bool {
        let rests = |dial: &Dial| dial.next > now;
        let ports = SocketAddr::new(addr.ip(), 0)..=SocketAddr::new(addr.ip(), u16::MAX);
        let of_host = || self.dials.range(ports).filter(|(_, dial)| rests(dial)).count();
        self.dials.get(addr).is_some_and(rests)
            || (of_host() >= PORTS && !self.last.values().any(|ip| *ip == addr.ip()))
    }

    /// False for what nobody may make us dial.
    fn may_dial(&self, addr: &SocketAddr, directory: &Directory) -> bool {
        let ip = addr.ip();
        let inside = directory.is_mesh_address(&ip)
            || matches!(ip, IpAddr::V6(v6) if self.mesh.contains(&v6));
        addr.port() != 0
            && address::is_routable_unicast(&ip)
            && !inside
            && !self.routed.iter().any(|prefix| prefix.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture::{self, Origin};

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_is_made_to_dial_what_is_not_a_member() {
        let mesh = MeshId([1; 16]);
        let mut paths = Paths::new(&mesh);
        let now = Origin::default().now().mono;
        let mut record = (*fixture::record(1, "a", 1)).clone();
        record.mesh_addresses = vec!["100.112.0.9/32".parse().unwrap()];
        let inside = SocketAddr::new(address::ula(&mesh, &record.key).into(), 51800);
        let good = addr("192.0.2.1:51800");
        record.endpoints = vec![
            addr("127.0.0.1:51800"),
            addr("224.0.0.1:51800"),
            addr("100.112.0.9:51800"),
            addr("10.1.2.3:51800"),
            addr("192.0.2.9:51800"),
            inside,
            good,
        ];
        let mut own = (*fixture::record(2, "own", 1)).clone();
        own.endpoints = vec![addr("192.0.2.9:51800")];
        paths.set_routed(vec!["10.1.0.0/16".parse().unwrap()]);
        let mut directory = Directory::default();
        directory.insert(std::sync::Arc::new(record.clone()));
        assert_eq!(paths.endpoints(&record, Some(&own), &directory, now), [good]);
    }

    #[test]
    fn an_address_that_does_not_answer_rests_whoever_names_it() {
        let mut paths = Paths::new(&MeshId([1; 16]));
        let mut rng = fixture::rng();
        let start = Origin::default().now().mono;
        let target = addr("192.0.2.1:51800");
        let mut now = start;
        for _ in 0..12 {
            paths.failed(target, &mut rng, now);
            for i in 1..=3 {
                let mut record = (*fixture::record(i, "x", 1)).clone();
                record.endpoints = vec![target];
                assert!(paths.endpoints(&record, None, &Directory::default(), now).is_empty());
            }
            now = paths.dials[&target].next;
        }
        let pause = now - start;
        assert!(pause > Duration::from_secs(900), "{pause:?}");
        // A new generation excuses nobody who was never there.
        let mut record = (*fixture::record(1, "x", 1)).clone();
        record.endpoints = vec![target];
        let endpoints = |paths: &Paths, record: &Record, now| {
            paths.endpoints(record, None, &Directory::default(), now)
        };
        paths.failed(target, &mut rng, now);
        paths.excuse(&record);
        assert!(endpoints(&paths, &record, now).is_empty());
        paths.opened(record.key, target, false);
        assert!(endpoints(&paths, &record, now).is_empty());
        paths.excuse(&record);
        assert_eq!(endpoints(&paths, &record, now), [target]);
        paths.failed(target, &mut rng, now);
        paths.opened(NodeKey([1; 32]), target, true);
        assert!(!paths.dials.contains_key(&target));
    }

    #[test]
    fn a_host_whose_ports_do_not_answer_rests_as_a_whole_unless_a_member_was_there() {
        let mut paths = Paths::new(&MeshId([1; 16]));
        let mut rng = fixture::rng();
        let now = Origin::default().now().mono;
        let port = |port| SocketAddr::new([192, 0, 2, 1].into(), port);
        for i in 1..=4 {
            paths.failed(port(i), &mut rng, now);
        }
        let mut record = (*fixture::record(1, "x", 1)).clone();
        record.endpoints = vec![port(9)];
        assert!(paths.endpoints(&record, None, &Directory::default(), now).is_empty());
        paths.opened(NodeKey([7; 32]), port(51800), false);
        assert_eq!(paths.endpoints(&record, None, &Directory::default(), now), [port(9)]);
    }
}
