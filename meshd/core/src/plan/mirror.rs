//! What the kernel holds after changes of ours, without reading it again.
//!
//! A kernel of ten thousand peers takes long to read; a change of one of them should not cost that. So the reconciler
//! keeps what it read, follows its own changes here, and reads again when somebody else changed something.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    firewall::FirewallSets,
    types::{Change, Observed, ObservedPeer, Route, RouteKind},
};

impl Change {
    /// Whether what it leaves behind is known without reading: it concerns a peer, a route or elements of a set. What is
    /// done to the device itself, to rules or to the whole nftables table has consequences that only the kernel knows.
    #[must_use]
    pub fn can_be_followed(&self) -> bool {
        matches!(
            self,
            Self::PutPeer { .. }
                | Self::TakeAllowedIps { .. }
                | Self::RemovePeer { .. }
                | Self::PutRoute(_)
                | Self::RemoveRoute(_)
                | Self::ChangeSets { .. }
        )
    }
}

impl Observed {
    /// Makes this what the kernel holds after `change` has succeeded. What [cannot be
    /// followed](Change::can_be_followed) changes nothing.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::PutPeer {
                public_key,
                endpoint,
                keepalive,
                preshared_key,
                add_allowed_ips,
                ..
            } => {
                if self.device.as_ref().is_some_and(|d| d.public_key == Some(*public_key)) {
                    return;
                }
                self.take_allowed_ips(add_allowed_ips);
                let peer: &mut ObservedPeer = self.peers.entry(*public_key).or_default();
                peer.endpoint = endpoint.or(peer.endpoint);
                peer.keepalive = keepalive.unwrap_or(peer.keepalive);
                if let Some(preshared_key) = preshared_key {
                    peer.preshared_key = preshared_key.clone();
                }
                peer.allowed_ips.extend(add_allowed_ips);
            }
            Change::TakeAllowedIps { public_key, allowed_ips, .. } => {
                if let Some(peer) = self.peers.get_mut(public_key) {
                    peer.allowed_ips.retain(|ip| !allowed_ips.contains(ip));
                }
            }
            Change::RemovePeer { public_key, .. } => drop(self.peers.remove(public_key)),
            Change::PutRoute(route) => {
                let there: Vec<Route> = self.at_place_of(route).cloned().collect();
                for replaced in there {
                    self.routes.remove(&replaced);
                }
                self.routes.insert(route.clone());
            }
            Change::RemoveRoute(route) => drop(self.routes.remove(route)),
            Change::ChangeSets { add, remove } => {
                if let Some(firewall) = &mut self.firewall {
                    let mut sets: FirewallSets = firewall.sets.without(remove);
                    sets.guarded.extend(&add.guarded);
                    sets.fragmented.extend(&add.fragmented);
                    sets.own.extend(&add.own);
                    sets.routed_nodes.extend(&add.routed_nodes);
                    sets.guarded_nodes.extend(&add.guarded_nodes);
                    firewall.sets = sets;
                }
            }
            _ => {}
        }
    }

    /// Whatever kind of route stands where this one is to stand.
    fn at_place_of(&self, route: &Route) -> impl Iterator<Item = &Route> {
        let place = (route.destination, route.table, route.metric);
        let first = RouteKind::Device { device: String::new(), source: None, mtu: None };
        let first = Route { kind: first, ..route.clone() };
        self.routes
            .range(first..)
            .take_while(move |held| (held.destination, held.table, held.metric) == place)
    }

    fn take_allowed_ips(&mut self, moved: &BTreeSet<IpNet>) {
        for peer in self.peers.values_mut() {
            peer.allowed_ips.retain(|ip| !moved.contains(ip));
        }
    }
}
