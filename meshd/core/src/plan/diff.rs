//! The changes that lead from what the kernel holds to what it should hold, in an order in which no
//! step makes a hole, lets a packet out in the clear, or refers to what is not there.
//!
//! | step | why there |
//! |---|---|
//! | all rules, when none should remain | teardown: from here on nothing of ours is looked at |
//! | `unreachable` routes | whatever fails from here on, nothing leaves in the clear |
//! | a device of another name goes | it holds the UDP port; its routes go with it |
//! | device, key, port, mark, MTU, sysctls, addresses, up | IPv6 may be disabled before its sysctl; a route needs device, source address, and link up |
//! | peers: new ones, and allowed IPs added | adding moves an allowed IP without a gap; the packet needs a peer before the route |
//! | nftables, but for what leaves its sets | source NAT and guard stand before the first packet takes a new route |
//! | the mark of ARP, sysctls of the underlay | before the first route to a node address, or what its host sends in the clear is dropped |
//! | `throw` and device routes, the longest first | what is local or goes in the clear must not be taken along by a wider route, nor let out what is within it |
//! | among them `unreachable` within a device route | earlier it would be a hole until its own device route stands |
//! | rules, new before old | last of the setup: the table is complete |
//! | routes go, the shortest first, each `unreachable` before its device route | the other way round would be a hole, or a leak, where a wider route takes over |
//! | allowed IPs and peers go | no route leads to them any more |
//! | addresses go | no route has them as its source any more |
//! | elements leave nftables sets | the guard goes last, as long as anything else could leak |
//! | the mark of ARP and sysctls go | no route needs them any more |
//!
//! A data plane should stop at the first change that fails and observe again: every prefix of the
//! list leaves the kernel in a state without holes and leaks. If it goes on, later changes fail
//! too or are right, and the next diff mends the rest.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use ipnet::IpNet;
use meshd_proto::WgPublicKey;

use super::{
    firewall::{Firewall, FirewallRules, FirewallSets, ObservedFirewall},
    prefixes::PrefixMap,
    stays::Stays,
    types::{
        Change, Desired, Device, Observed, ObservedArp, ObservedDevice, ObservedPeer, Peer, Route,
        RouteKind,
    },
};
use crate::limits::HANDSHAKE_FRESH;

/// The ordered changes from `observed` to `desired`; empty when nothing is to be done.
///
/// An endpoint is compared only where `desired` gives one, and never set on a peer with a handshake
/// in the last 180 s: it works, and may have roamed since the plan was made.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let wanted = desired.device.as_ref();
    let (kept, doomed) = match &observed.device {
        Some(device) if wanted.is_some_and(|wanted| wanted.name == device.name) => {
            (Some(device), None)
        }
        other => (None, other.as_ref()),
    };
    let routes = RouteDiff::new(desired, observed, doomed);
    let mut changes = Vec::new();
    if desired.rules.is_empty() {
        remove_rules(desired, observed, &mut changes);
    }
    changes.extend(routes.early_unreachable());
    if let Some(device) = doomed {
        changes.push(Change::DeleteDevice { name: device.name.clone() });
    }
    let peers = wanted.map(|wanted| {
        configure(wanted, kept, &mut changes);
        PeerDiff::new(wanted, desired, kept.map(|_| &observed.peers), observed.firewall.as_ref())
    });
    changes.extend(peers.iter().flat_map(PeerDiff::puts));
    let firewall = desired
        .firewall
        .as_ref()
        .map(|wanted| FirewallDiff::new(wanted, observed.firewall.as_ref(), desired.additive));
    changes.extend(firewall.iter().filter_map(FirewallDiff::early));
    steer(desired, observed, &mut changes);
    changes.extend(routes.puts());
    if !desired.rules.is_empty() {
        changes.extend(desired.rules.difference(&observed.rules).cloned().map(Change::AddRule));
        remove_rules(desired, observed, &mut changes);
    }
    let stays = Stays::new(desired, observed);
    changes.extend(routes.removals().filter(|change| !stays.keeps(change)));
    let gone = peers.iter().flat_map(PeerDiff::removals);
    changes.extend(gone.filter(|change| !stays.keeps(change)));
    if let (Some(wanted), Some(kept)) = (wanted, kept) {
        let gone = kept.addresses.difference(&wanted.addresses);
        let name = || wanted.name.clone();
        changes
            .extend(gone.map(|address| Change::RemoveAddress { name: name(), address: *address }));
    }
    changes.extend(firewall.iter().filter_map(FirewallDiff::late));
    if desired.firewall.is_none() && observed.firewall.is_some() {
        changes.push(Change::RemoveFirewall);
    }
    if desired.arp.is_none() && observed.arp != ObservedArp::None {
        changes.push(Change::RemoveArp);
    }
    let ours = observed.changed_sysctls.iter();
    let restored = ours.filter(|path| !desired.underlay_sysctls.contains_key(*path));
    changes.extend(restored.map(|path| Change::RestoreSysctl { path: path.clone() }));
    changes
}

/// What lets other hosts' packets in that come in the clear though their way back is the tunnel.
fn steer(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    if let Some(wanted) = desired.arp
        && observed.arp != ObservedArp::Mark(wanted)
    {
        changes.push(Change::PutArp(wanted));
    }
    for (path, value) in &desired.underlay_sysctls {
        if observed.underlay_sysctls.get(path) != Some(value) {
            let (path, value) = (path.clone(), value.clone());
            changes.push(Change::SetUnderlaySysctl { path, value });
        }
    }
}

fn remove_rules(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    changes.extend(observed.rules.difference(&desired.rules).cloned().map(Change::RemoveRule));
}

/// Makes the device if there is none, and sets what differs on it.
fn configure(wanted: &Device, kept: Option<&ObservedDevice>, changes: &mut Vec<Change>) {
    let name = || wanted.name.clone();
    if kept.is_none() {
        changes.push(Change::CreateDevice { name: name() });
    }
    let differs =
        |same: fn(&Device, &ObservedDevice) -> bool| kept.is_none_or(|k| !same(wanted, k));
    let new_key = differs(|w, k| k.public_key == Some(w.public_key));
    let new_port = differs(|w, k| k.listen_port == w.listen_port);
    let new_mark = differs(|w, k| k.fwmark == w.fwmark);
    if new_key || new_port || new_mark {
        changes.push(Change::ConfigureDevice {
            name: name(),
            private_key: new_key.then(|| wanted.private_key.clone()),
            listen_port: new_port.then_some(wanted.listen_port),
            fwmark: new_mark.then_some(wanted.fwmark),
        });
    }
    if differs(|w, k| k.mtu == w.mtu) {
        changes.push(Change::SetMtu { name: name(), mtu: wanted.mtu });
    }
    for (path, value) in &wanted.sysctls {
        if kept.is_none_or(|kept| kept.sysctls.get(path) != Some(value)) {
            changes.push(Change::SetSysctl { path: path.clone(), value: value.clone() });
        }
    }
    for address in &wanted.addresses {
        if kept.is_none_or(|kept| !kept.addresses.contains(address)) {
            changes.push(Change::AddAddress { name: name(), address: *address });
        }
    }
    if kept.is_none_or(|kept| !kept.up) {
        changes.push(Change::SetUp { name: name() });
    }
}

/// What differs among the peers of a device that stays or was just made.
struct PeerDiff<'a> {
    device: &'a str,
    desired: &'a BTreeMap<WgPublicKey, Peer>,
    /// Devices that nothing keeps inside the mesh yet: the next look sees whether it does.
    waiting: Option<&'a BTreeSet<WgPublicKey>>,
    /// As they are once key and device are set.
    present: BTreeMap<WgPublicKey, &'a ObservedPeer>,
    /// Allowed IPs that go by themselves, since another peer gets them.
    moving: BTreeSet<IpNet>,
}

impl<'a> PeerDiff<'a> {
    fn new(
        device: &'a Device,
        desired: &'a Desired,
        observed: Option<&'a BTreeMap<WgPublicKey, ObservedPeer>>,
        firewall: Option<&ObservedFirewall>,
    ) -> Self {
        let forwarded = |rules: &FirewallRules| rules.forwarded.as_ref().map(|f| f.devices.clone());
        let wanted = desired.firewall.as_ref().and_then(|table| forwarded(&table.rules));
        let held = firewall.and_then(|table| table.rules.as_ref()).and_then(forwarded);
        let confines = held.is_some_and(|held| wanted.is_none_or(|w| held.is_superset(&w)));
        let mut present: BTreeMap<_, _> =
            observed.into_iter().flatten().map(|(key, peer)| (*key, peer)).collect();
        // A device does not keep a peer with its own key.
        present.remove(&device.public_key);
        let mut moving = BTreeSet::new();
        for (key, peer) in &desired.peers {
            let held = present.get(key).map(|peer| &peer.allowed_ips);
            moving
                .extend(peer.allowed_ips.iter().filter(|ip| held.is_none_or(|h| !h.contains(*ip))));
        }
        let waiting = (!confines).then_some(&desired.confined);
        Self { device: &device.name, desired: &desired.peers, waiting, present, moving }
    }

    fn puts(&self) -> impl Iterator<Item = Change> {
        let waits = |key: &WgPublicKey| self.waiting.is_some_and(|devices| devices.contains(key));
        let puts = self.desired.iter().filter(move |(key, _)| !waits(key));
        puts.filter_map(|(key, peer)| self.put(key, peer))
    }

    fn put(&self, key: &WgPublicKey, peer: &Peer) -> Option<Change> {
        let nothing = ObservedPeer::default();
        let present = self.present.get(key).copied();
        let held = present.unwrap_or(&nothing);
        let works = held.last_handshake.is_some_and(|age| age < HANDSHAKE_FRESH);
        let endpoint = peer.endpoint.filter(|new| !works && held.endpoint != Some(*new));
        let keepalive = peer.keepalive.filter(|wanted| *wanted != held.keepalive);
        let preshared_key =
            (peer.preshared_key != held.preshared_key).then(|| peer.preshared_key.clone());
        let add: BTreeSet<IpNet> =
            peer.allowed_ips.difference(&held.allowed_ips).copied().collect();
        let new = present.is_none();
        let same = endpoint.is_none() && keepalive.is_none() && preshared_key.is_none();
        if !new && same && add.is_empty() {
            return None;
        }
        Some(Change::PutPeer {
            device: self.device.to_owned(),
            public_key: *key,
            endpoint,
            keepalive,
            preshared_key,
            add_allowed_ips: add,
            new,
        })
    }

    fn removals(&self) -> impl Iterator<Item = Change> {
        self.present.iter().filter_map(|(key, held)| self.removal(key, held))
    }

    fn removal(&self, key: &WgPublicKey, held: &ObservedPeer) -> Option<Change> {
        let Some(peer) = self.desired.get(key) else {
            return Some(Change::RemovePeer { device: self.device.to_owned(), public_key: *key });
        };
        let extra = held.allowed_ips.difference(&peer.allowed_ips);
        let gone: BTreeSet<IpNet> =
            extra.filter(|ip| !self.moving.contains(*ip)).copied().collect();
        (!gone.is_empty()).then(|| Change::TakeAllowedIps {
            device: self.device.to_owned(),
            public_key: *key,
            allowed_ips: gone,
        })
    }
}

/// What differs in our nftables table.
struct FirewallDiff<'a> {
    wanted: &'a Firewall,
    /// The rules are as wanted, so that elements are all that may change.
    rules_stand: bool,
    add: FirewallSets,
    /// Elements that go together with those that come, since they overlap.
    replace: FirewallSets,
    remove: FirewallSets,
    /// Elements that stay although nobody wants them now.
    kept: FirewallSets,
}

impl<'a> FirewallDiff<'a> {
    fn new(wanted: &'a Firewall, observed: Option<&ObservedFirewall>, additive: bool) -> Self {
        let nothing = FirewallSets::default();
        let held = observed.map_or(&nothing, |observed| &observed.sets);
        let add = wanted.sets.without(held);
        let gone = held.without(&wanted.sets);
        // Prefixes either hold one another or have nothing in common.
        let coming: PrefixMap<()> = add.guarded.iter().copied().collect();
        let overlaps = |prefix: &IpNet| {
            coming.covering(prefix).next().is_some()
                || add.guarded.iter().any(|added| prefix.contains(added))
        };
        let (over, clear): (BTreeSet<IpNet>, _) = gone.guarded.iter().copied().partition(overlaps);
        let replace = FirewallSets { guarded: over, ..FirewallSets::default() };
        let own = FirewallSets { own: gone.own.clone(), ..FirewallSets::default() };
        let rest = FirewallSets { guarded: clear, ..gone };
        let (remove, kept) =
            if additive && (wanted.rules.guard.is_some() || wanted.rules.steering.is_some()) {
                (own, FirewallSets { own: BTreeSet::new(), ..rest })
            } else {
                (rest, FirewallSets::default())
            };
        let rules_stand = observed.is_some_and(|held| held.rules.as_ref() == Some(&wanted.rules));
        Self { wanted, rules_stand, add, replace, remove, kept }
    }

    fn early(&self) -> Option<Change> {
        if !self.rules_stand {
            let mut whole = self.wanted.clone();
            if whole.rules.guard.is_some() {
                whole.sets.guarded.extend(&self.kept.guarded);
            }
            if whole.rules.steering.is_some() {
                whole.sets.routed_nodes.extend(&self.kept.routed_nodes);
                if whole.rules.guard.is_some() {
                    whole.sets.guarded_nodes.extend(&self.kept.guarded_nodes);
                }
            }
            return Some(Change::PutFirewall(whole));
        }
        if self.add.is_empty() && self.replace.is_empty() {
            return None;
        }
        Some(Change::ChangeSets { add: self.add.clone(), remove: self.replace.clone() })
    }

    fn late(&self) -> Option<Change> {
        (self.rules_stand && !self.remove.is_empty()).then(|| Change::ChangeSets {
            add: FirewallSets::default(),
            remove: self.remove.clone(),
        })
    }
}

/// What differs among the routes.
struct RouteDiff<'a> {
    desired: &'a BTreeSet<Route>,
    from_the_clear: &'a BTreeSet<IpNet>,
    /// As they are once the device that goes has gone.
    present: BTreeSet<&'a Route>,
    /// Destinations of the device routes among them.
    through_device: PrefixMap<()>,
}

impl<'a> RouteDiff<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, doomed: Option<&ObservedDevice>) -> Self {
        let goes = |route: &Route| {
            let device = device_of(route);
            device.is_some() && device == doomed.map(|doomed| doomed.name.as_str())
        };
        let present: BTreeSet<&Route> =
            observed.routes.iter().filter(|route| !goes(route)).collect();
        let through_device = present.iter().filter(|route| device_of(route).is_some());
        let through_device = through_device.map(|route| route.destination).collect();
        let from_the_clear = &desired.from_the_clear;
        Self { desired: &desired.routes, from_the_clear, present, through_device }
    }

    fn missing(&self) -> impl Iterator<Item = &'a Route> {
        self.desired.iter().filter(|route| !self.present.contains(route))
    }

    /// A wider device route carries the destination now, and shall until its own one stands.
    fn is_within_tunnel(&self, route: &Route) -> bool {
        let mut covering = self.through_device.covering(&route.destination);
        covering.next().is_some_and(|(prefix, ())| prefix != route.destination)
    }

    /// `unreachable` would be a hole until the device route at its place stands.
    fn is_late(&self, route: &Route) -> bool {
        self.is_within_tunnel(route) || self.from_the_clear.contains(&route.destination)
    }

    fn early_unreachable(&self) -> impl Iterator<Item = Change> {
        self.missing()
            .filter(|route| is_unreachable(route) && !self.is_late(route))
            .cloned()
            .map(Change::PutRoute)
    }

    /// The longest first: what leaves the tunnel again within a wider prefix is there before that,
    /// and what is within that too before it.
    fn puts(&self) -> impl Iterator<Item = Change> {
        let mut late: Vec<&Route> =
            self.missing().filter(|route| !is_unreachable(route) || self.is_late(route)).collect();
        late.sort_by_key(|route| (Reverse(route.destination.prefix_len()), route.metric));
        late.into_iter().cloned().map(Change::PutRoute)
    }

    /// The other way round: the shortest first, and `unreachable` before the device route.
    fn removals(&self) -> impl Iterator<Item = Change> {
        let place = |route: &Route| (route.destination, route.table, route.metric);
        let replaced: BTreeSet<_> = self.desired.iter().map(place).collect();
        let gone = self.present.iter().copied().filter(|route| !replaced.contains(&place(route)));
        let mut gone: Vec<&Route> = gone.collect();
        gone.sort_by_key(|route| (route.destination.prefix_len(), Reverse(route.metric)));
        gone.into_iter().cloned().map(Change::RemoveRoute)
    }
}

fn device_of(route: &Route) -> Option<&str> {
    match &route.kind {
        RouteKind::Device { device, .. } => Some(device),
        RouteKind::Throw | RouteKind::Unreachable => None,
    }
}

fn is_unreachable(route: &Route) -> bool {
    route.kind == RouteKind::Unreachable
}
