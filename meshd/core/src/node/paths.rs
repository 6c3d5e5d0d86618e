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

/// How others see this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The address of its QUIC packets.
    pub address: IpAddr,
    /// Two members say so at least, or the only other one there is, and more than say anything else.
    pub agreed: bool,
}

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
    /// Wider than one address, all of them.
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

    /// What is routed into the mesh. Single addresses are passed over: a member may announce the very one of another's host,
    /// and our packets are marked and go past the tunnel.
    pub(super) fn set_routed(&mut self, routed: impl IntoIterator<Item = IpNet>) {
        self.routed = routed.into_iter().filter(|prefix| !address::is_single(prefix)).collect();
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

    /// The address of each family under which most of `members` others see us, that of which more say so first. Ports say
    /// nothing: some NAT boxes give each way another.
    pub(super) fn observed(&self, members: usize) -> Vec<Observed> {
        let mut votes: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for addr in self.observed.values() {
            *votes.entry(addr.ip()).or_default() += 1;
        }
        let most = |v4: bool| {
            let of_family = || votes.iter().filter(|(address, _)| address.is_ipv4() == v4);
            let (address, most) = of_family().rev().max_by_key(|(_, count)| **count)?;
            let undisputed = of_family().filter(|(_, count)| *count == most).count() == 1;
            let agreed = undisputed && *most >= members.clamp(1, 2);
            Some((*most, Observed { address: *address, agreed }))
        };
        let mut seen: Vec<_> = [most(true), most(false)].into_iter().flatten().collect();
        seen.sort_by_key(|(votes, _)| std::cmp::Reverse(*votes));
        seen.into_iter().map(|(_, seen)| seen).collect()
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
        let mut chosen: Vec<_> = record
            .endpoints
            .iter()
            .filter(|addr| !ours.contains(addr) && self.is_free(addr, directory, now))
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

    /// It may be dialled now.
    pub(super) fn is_free(&self, addr: &SocketAddr, directory: &Directory, now: Instant) -> bool {
        !self.is_resting(addr, now) && self.may_dial(addr, directory)
    }

    /// False for what nobody may make us dial.
    fn may_dial(&self, addr: &SocketAddr, directory: &Directory) -> bool {
        let ip = addr.ip();
        addr.port() != 0 && address::is_routable_unicast(&ip) && !self.is_inside(&ip, directory)
    }

    /// True for addresses of the mesh, and for what is routed into it as a part of a prefix.
    pub(super) fn is_inside(&self, ip: &IpAddr, directory: &Directory) -> bool {
        directory.is_mesh_address(ip)
            || matches!(ip, IpAddr::V6(v6) if self.mesh.contains(v6))
            || self.routed.iter().any(|prefix| prefix.contains(ip))
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
        let good = [good, addr("192.0.2.7:51800")];
        record.endpoints = vec![
            addr("127.0.0.1:51800"),
            addr("224.0.0.1:51800"),
            addr("100.112.0.9:51800"),
            addr("10.1.2.3:51800"),
            addr("192.0.2.9:51800"),
            inside,
            good[0],
            good[1],
        ];
        let mut own = (*fixture::record(2, "own", 1)).clone();
        own.endpoints = vec![addr("192.0.2.9:51800")];
        // Whoever announces a host's own address keeps nobody from it.
        paths.set_routed(["10.1.0.0/16", "192.0.2.7/32"].map(|text| text.parse().unwrap()));
        let mut directory = Directory::default();
        directory.insert(std::sync::Arc::new(record.clone()));
        assert_eq!(paths.endpoints(&record, Some(&own), &directory, now), good);
        let inside = |text| paths.is_inside(&addr(text).ip(), &directory);
        assert!(inside("10.1.2.3:1") && inside("100.112.0.9:1") && !inside("192.0.2.7:1"));
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

    /// What is made of what members 1, 2, … say, in a mesh of `members` others.
    fn seen_as(said: &[&str], members: usize) -> Vec<(String, bool)> {
        let mut paths = Paths::new(&MeshId([1; 16]));
        for (addr, number) in said.iter().copied().map(addr).zip(1..) {
            let key = NodeKey([number; 32]);
            paths.opened(key, addr, true);
            let address = address::address_to_wire(&addr.ip()).into();
            paths.observe(key, &wire::Endpoint { address, port: addr.port().into() });
        }
        let seen = paths.observed(members);
        seen.into_iter().map(|seen| (seen.address.to_string(), seen.agreed)).collect()
    }

    #[test]
    fn one_member_alone_does_not_say_where_this_host_is() {
        let expect = |said: &[&str], members, address: &str, agreed| {
            assert_eq!(seen_as(said, members), [(address.to_owned(), agreed)], "{said:?}");
        };
        let [here, port, lie] = ["192.0.2.9:1024", "192.0.2.9:2048", "1.1.1.1:51800"];
        expect(&[here, port, lie], 3, "192.0.2.9", true);
        expect(&[lie, here], 2, "1.1.1.1", false);
        expect(&[lie], 2, "1.1.1.1", false);
        expect(&[here], 1, "192.0.2.9", true);
        expect(&[lie, "1.1.1.1:2", here, port], 4, "1.1.1.1", false);
        assert_eq!(seen_as(&[], 1), []);
    }

    #[test]
    fn each_family_is_counted_by_itself() {
        let [v4, v6] = ["192.0.2.9", "2001:db8::9"].map(str::to_owned);
        let by_v6 = "[2001:db8::9]:1";
        let seen = seen_as(&["192.0.2.9:1", "192.0.2.9:2", by_v6, by_v6], 4);
        assert_eq!(seen, [(v4.clone(), true), (v6.clone(), true)]);
        let seen = seen_as(&["192.0.2.9:1", by_v6, by_v6], 3);
        assert_eq!(seen, [(v6, true), (v4, false)]);
    }
}
