//! A kernel in memory, as far as the data plane uses one.
//!
//! For tests, and for the daemon's fake data plane. It does what Linux does where it matters for the
//! order of changes: an allowed IP that is added to a peer leaves another, a device takes its peers,
//! addresses and routes along, a link that goes down loses its routes and IPv6 addresses, a route
//! needs a device that is up and a source address that exists, and nothing can be made twice or
//! removed when it is not there. Every single call can be made to fail. It has no clock: handshakes
//! and counters are what a test sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use meshd_proto::WgPublicKey;
use thiserror::Error;

use super::{
    firewall::{Firewall, FirewallSets, ObservedFirewall},
    prefixes::{PrefixMap, is_v6},
    taken::Foreign,
    types::{
        ArpMark, Backend, Change, Family, Observed, ObservedArp, ObservedDevice, ObservedPeer,
        Route, RouteKind, Rule, WgPrivateKey,
    },
};
use crate::address::host_prefix;

/// What WireGuard gives a new device.
const DEFAULT_MTU: u32 = 1_420;

/// A call that did not succeed. The kernel's state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KernelError {
    /// The test asked for it.
    #[error("call {call} was made to fail")]
    Injected {
        /// Number of the call since the kernel was made, from 1.
        call: u64,
    },
    /// Like EEXIST.
    #[error("{0} exists already")]
    Exists(String),
    /// Like ENODEV, ENOENT, ESRCH, EADDRNOTAVAIL.
    #[error("{0} does not exist")]
    Missing(String),
    /// Like ENETDOWN.
    #[error("{0} is down")]
    Down(String),
}

/// Where a packet of this host would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As without a mesh.
    Clear,
    /// Refused by a route or by the guard.
    Unreachable,
    /// Into the device, which has no peer for it: refused.
    NoPeer,
    /// Encrypted, to this peer.
    Tunnel(WgPublicKey),
}

/// The kernel.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    links: BTreeMap<String, Link>,
    routes: BTreeMap<(u32, IpNet, u32), RouteKind>,
    rules: BTreeSet<Rule>,
    firewall: Option<Firewall>,
    arp: Option<ArpMark>,
    /// Sysctls of others' interfaces, and what those were that we changed.
    sysctls: BTreeMap<String, String>,
    noted: BTreeMap<String, String>,
    /// Addresses of others' interfaces.
    addresses: BTreeSet<IpAddr>,
    calls: u64,
    failing: BTreeSet<u64>,
}

#[derive(Debug, Clone, Default)]
struct Link {
    public_key: Option<WgPublicKey>,
    listen_port: u16,
    fwmark: u32,
    mtu: u32,
    up: bool,
    addresses: BTreeSet<IpNet>,
    sysctls: BTreeMap<String, String>,
    peers: BTreeMap<WgPublicKey, ObservedPeer>,
}

impl Kernel {
    /// Makes calls fail, counted from now: 1 is the next call of [`Self::observe`] or
    /// [`Self::apply`].
    pub fn fail_calls(&mut self, calls: impl IntoIterator<Item = u64>) {
        self.failing.extend(calls.into_iter().map(|call| self.calls.saturating_add(call)));
    }

    /// How many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// What a data plane reads: the state, unless this call was to fail.
    pub fn observe(&mut self) -> Result<Observed, KernelError> {
        self.count_call()?;
        Ok(self.state())
    }

    /// What [`Self::observe`] would read; cannot fail and is not counted.
    #[must_use]
    pub fn state(&self) -> Observed {
        let link = self.links.iter().next();
        Observed {
            device: link.map(|(name, link)| ObservedDevice {
                name: name.clone(),
                backend: Backend::Kernel,
                public_key: link.public_key,
                listen_port: link.listen_port,
                fwmark: link.fwmark,
                mtu: link.mtu,
                up: link.up,
                addresses: link.addresses.clone(),
                sysctls: link.sysctls.clone(),
            }),
            peers: link.map(|(_, link)| link.peers.clone()).unwrap_or_default(),
            routes: self.routes().collect(),
            rules: self.rules.clone(),
            firewall: self
                .firewall
                .clone()
                .map(|table| ObservedFirewall { rules: Some(table.rules), sets: table.sets }),
            foreign: Foreign::default(),
            arp: self.arp.map_or(ObservedArp::None, ObservedArp::Mark),
            unread: false,
            underlay_sysctls: self.sysctls.clone(),
            changed_sysctls: self.noted.keys().cloned().collect(),
        }
    }

    /// Does one change, or fails and leaves all as it was.
    pub fn apply(&mut self, change: &Change) -> Result<(), KernelError> {
        self.count_call()?;
        match change {
            Change::CreateDevice { name } => {
                if self.links.contains_key(name) {
                    return Err(KernelError::Exists(name.clone()));
                }
                self.links.insert(name.clone(), Link { mtu: DEFAULT_MTU, ..Link::default() });
            }
            Change::DeleteDevice { name } => {
                self.links.remove(name).ok_or_else(|| KernelError::Missing(name.clone()))?;
                self.drop_routes_of(name, |_| true);
            }
            Change::ConfigureDevice { name, private_key, listen_port, fwmark } => {
                let link = self.link(name)?;
                if let Some(private_key) = private_key {
                    let public_key = public_key(private_key);
                    link.public_key = Some(public_key);
                    link.peers.remove(&public_key);
                }
                link.listen_port = listen_port.unwrap_or(link.listen_port);
                link.fwmark = fwmark.unwrap_or(link.fwmark);
            }
            Change::SetMtu { name, mtu } => self.link(name)?.mtu = *mtu,
            Change::SetUp { name } => self.link(name)?.up = true,
            Change::SetSysctl { path, value } => {
                let name = path.split('/').nth(3).unwrap_or_default();
                self.link(name)?.sysctls.insert(path.clone(), value.clone());
            }
            Change::AddAddress { name, address } => {
                if !self.link(name)?.addresses.insert(*address) {
                    return Err(KernelError::Exists(address.to_string()));
                }
            }
            Change::RemoveAddress { name, address } => {
                if !self.link(name)?.addresses.remove(address) {
                    return Err(KernelError::Missing(address.to_string()));
                }
                // IPv6 forgets the source; IPv4 drops the route, at least in the main table. A plan
                // that survives the worse of the two survives both.
                let gone = address.addr();
                self.drop_routes_of(
                    name,
                    |kind| matches!(kind, RouteKind::Device { source, .. } if *source == Some(gone)),
                );
            }
            Change::PutPeer { .. } | Change::TakeAllowedIps { .. } | Change::RemovePeer { .. } => {
                self.apply_to_peers(change)?;
            }
            Change::PutRoute(route) => self.put_route(route)?,
            Change::RemoveRoute(route) => {
                let place = (route.table, route.destination, route.metric);
                if self.routes.get(&place) != Some(&route.kind) {
                    return Err(KernelError::Missing(format!("route {}", route.destination)));
                }
                self.routes.remove(&place);
            }
            Change::AddRule(rule) => {
                if !self.rules.insert(rule.clone()) {
                    return Err(KernelError::Exists(format!("rule {}", rule.priority)));
                }
            }
            Change::RemoveRule(rule) => {
                if !self.rules.remove(rule) {
                    return Err(KernelError::Missing(format!("rule {}", rule.priority)));
                }
            }
            Change::PutFirewall(table) => self.firewall = Some(table.clone()),
            Change::ChangeSets { add, remove } => {
                let missing = || KernelError::Missing("nftables table".to_owned());
                let sets = &mut self.firewall.as_mut().ok_or_else(missing)?.sets;
                let mut changed = sets.without(remove);
                changed.guarded.extend(&add.guarded);
                changed.fragmented.extend(&add.fragmented);
                changed.own.extend(&add.own);
                changed.routed_nodes.extend(&add.routed_nodes);
                changed.guarded_nodes.extend(&add.guarded_nodes);
                let guarded: PrefixMap<()> = changed.guarded.iter().copied().collect();
                // Like EEXIST: elements of an interval set do not overlap.
                if let Some(twice) =
                    changed.guarded.iter().find(|prefix| guarded.covering(prefix).count() > 1)
                {
                    return Err(KernelError::Exists(twice.to_string()));
                }
                *sets = changed;
            }
            Change::RemoveFirewall => {
                let missing = || KernelError::Missing("nftables table".to_owned());
                self.firewall.take().ok_or_else(missing)?;
            }
            Change::PutArp(mark) => self.arp = Some(*mark),
            Change::RemoveArp => {
                let missing = || KernelError::Missing("nftables table for ARP".to_owned());
                self.arp.take().ok_or_else(missing)?;
            }
            Change::SetUnderlaySysctl { path, value } => {
                let was = self.sysctls.insert(path.clone(), value.clone());
                self.noted.entry(path.clone()).or_insert(was.unwrap_or_else(|| "0".to_owned()));
            }
            Change::RestoreSysctl { path } => {
                let missing = || KernelError::Missing(path.clone());
                let was = self.noted.remove(path).ok_or_else(missing)?;
                self.sysctls.insert(path.clone(), was);
            }
        }
        Ok(())
    }

    /// `ip link set NAME down`, by somebody else: the link keeps IPv4 addresses and peers, and loses
    /// IPv6 addresses and all its routes.
    pub fn take_down(&mut self, name: &str) {
        if let Some(link) = self.links.get_mut(name) {
            link.up = false;
            link.addresses.retain(|address| !is_v6(address));
            self.drop_routes_of(name, |_| true);
        }
    }

    /// Gives another's interface an address, which a route may have as its source.
    pub fn have_address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    /// A peer, for a test to set its endpoint, handshake and counters.
    pub fn peer_mut(&mut self, device: &str, key: &WgPublicKey) -> Option<&mut ObservedPeer> {
        self.links.get_mut(device)?.peers.get_mut(key)
    }

    /// Where a packet of this host to `destination` without our mark goes.
    #[must_use]
    pub fn verdict(&self, destination: IpAddr) -> Verdict {
        let family = if destination.is_ipv4() { Family::V4 } else { Family::V6 };
        let mut rules: Vec<&Rule> =
            self.rules.iter().filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            match self.route_to(rule.table, destination) {
                None | Some(RouteKind::Throw) => {}
                Some(RouteKind::Unreachable) => return Verdict::Unreachable,
                Some(RouteKind::Device { device, .. }) => {
                    let peer = self.links.get(device).and_then(|link| link.peer_for(destination));
                    return peer.map_or(Verdict::NoPeer, Verdict::Tunnel);
                }
            }
        }
        let guard = self.firewall.iter().filter(|table| table.rules.guard.is_some());
        let is_guarded = |sets: &FirewallSets| {
            sets.guarded.iter().any(|prefix| prefix.contains(&destination))
                || sets.guarded_nodes.contains(&destination)
        };
        if guard.into_iter().any(|table| is_guarded(&table.sets)) {
            return Verdict::Unreachable;
        }
        Verdict::Clear
    }

    fn count_call(&mut self) -> Result<(), KernelError> {
        self.calls = self.calls.saturating_add(1);
        if self.failing.remove(&self.calls) {
            return Err(KernelError::Injected { call: self.calls });
        }
        Ok(())
    }

    fn link(&mut self, name: &str) -> Result<&mut Link, KernelError> {
        self.links.get_mut(name).ok_or_else(|| KernelError::Missing(name.to_owned()))
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().map(|((table, destination, metric), kind)| Route {
            destination: *destination,
            table: *table,
            metric: *metric,
            kind: kind.clone(),
        })
    }

    fn drop_routes_of(&mut self, name: &str, which: impl Fn(&RouteKind) -> bool) {
        self.routes.retain(|_, kind| {
            !matches!(kind, RouteKind::Device { device, .. } if device == name) || !which(kind)
        });
    }

    fn put_route(&mut self, route: &Route) -> Result<(), KernelError> {
        if let RouteKind::Device { device, source, .. } = &route.kind {
            let link = self.link(device)?;
            if !link.up {
                return Err(KernelError::Down(device.clone()));
            }
            let has = |source: &IpAddr| link.addresses.iter().any(|a| a.addr() == *source);
            let has = source.is_none_or(|source| has(&source));
            if let Some(source) = source.filter(|source| !has && !self.addresses.contains(source)) {
                return Err(KernelError::Missing(format!("source {source}")));
            }
        }
        self.routes.insert((route.table, route.destination, route.metric), route.kind.clone());
        Ok(())
    }

    fn apply_to_peers(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::PutPeer {
                device,
                public_key,
                endpoint,
                keepalive,
                preshared_key,
                add_allowed_ips,
                ..
            } => {
                let link = self.link(device)?;
                if link.public_key == Some(*public_key) {
                    return Ok(()); // The kernel passes over a peer with the device's own key.
                }
                link.take_allowed_ips(add_allowed_ips);
                let peer = link.peers.entry(*public_key).or_default();
                peer.endpoint = endpoint.or(peer.endpoint);
                peer.keepalive = keepalive.unwrap_or(peer.keepalive);
                if let Some(preshared_key) = preshared_key {
                    peer.preshared_key = preshared_key.clone();
                }
                peer.allowed_ips.extend(add_allowed_ips);
            }
            Change::TakeAllowedIps { device, public_key, allowed_ips } => {
                let peer = self.link(device)?.peer(public_key)?;
                peer.allowed_ips.retain(|ip| !allowed_ips.contains(ip));
            }
            Change::RemovePeer { device, public_key } => {
                let link = self.link(device)?;
                link.peer(public_key)?;
                link.peers.remove(public_key);
            }
            _ => {}
        }
        Ok(())
    }

    /// The longest match in a table; of equal length the lowest metric.
    fn route_to(&self, table: u32, destination: IpAddr) -> Option<&RouteKind> {
        let in_table = self.routes.range(..).filter(|((t, ..), _)| *t == table);
        in_table
            .filter(|((_, prefix, _), _)| prefix.contains(&destination))
            .max_by_key(|((_, prefix, metric), _)| {
                (prefix.prefix_len(), std::cmp::Reverse(*metric))
            })
            .map(|(_, kind)| kind)
    }
}

impl Link {
    fn peer(&mut self, key: &WgPublicKey) -> Result<&mut ObservedPeer, KernelError> {
        self.peers.get_mut(key).ok_or_else(|| KernelError::Missing(format!("peer {key}")))
    }

    fn take_allowed_ips(&mut self, moved: &BTreeSet<IpNet>) {
        for peer in self.peers.values_mut() {
            peer.allowed_ips.retain(|ip| !moved.contains(ip));
        }
    }

    /// The peer with the longest allowed IP that holds `destination`.
    fn peer_for(&self, destination: IpAddr) -> Option<WgPublicKey> {
        let mut owners = PrefixMap::default();
        for (key, peer) in &self.peers {
            for ip in &peer.allowed_ips {
                owners.insert(*ip, *key);
            }
        }
        owners.covering(&host_prefix(destination)).next().map(|(_, key)| *key)
    }
}

fn public_key(private_key: &WgPrivateKey) -> WgPublicKey {
    let secret = x25519_dalek::StaticSecret::from(private_key.0);
    WgPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}
