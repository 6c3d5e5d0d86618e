//! What the kernel holds, nobody wants now, and stays all the same: it may be somebody's who is not known again yet.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::types::{Change, Desired, Observed};

/// Which removals are not made.
pub(super) struct Stays<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    /// Destinations that were withdrawn, and that another peer holds.
    others: BTreeSet<IpNet>,
}

impl<'a> Stays<'a> {
    pub(super) fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let mut others = BTreeSet::new();
        if !desired.withdrawn.is_empty() {
            for (key, peer) in &observed.peers {
                let held = peer.allowed_ips.iter().filter(|prefix| {
                    desired.withdrawn.get(*prefix).is_some_and(|owners| !owners.contains(key))
                });
                others.extend(held.copied());
            }
        }
        Self { desired, observed, others }
    }

    /// Whether this removal is not made.
    pub(super) fn keeps(&self, change: &Change) -> bool {
        let Desired { additive, departed, withdrawn, spared, .. } = self.desired;
        match change {
            Change::RemovePeer { public_key, .. } => {
                let held = || self.observed.peers.get(public_key).map(|peer| &peer.allowed_ips);
                let spare = || held().is_some_and(|ips| ips.iter().any(|ip| within(spared, ip)));
                !departed.contains(public_key) && (*additive || spare())
            }
            // Of a peer that is known all is known.
            Change::TakeAllowedIps { .. } => *additive,
            Change::RemoveRoute(route) => {
                let to = &route.destination;
                let goes = withdrawn.contains_key(to) && !self.others.contains(to);
                !goes && (*additive || within(spared, to))
            }
            _ => false,
        }
    }
}

fn within(ranges: &BTreeSet<IpNet>, prefix: &IpNet) -> bool {
    ranges.iter().any(|range| range.contains(prefix))
}
