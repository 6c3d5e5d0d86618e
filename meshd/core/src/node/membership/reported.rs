//! Where membership and [reports](crate::node::reports) meet: what a report may be about, what enough of them do to a
//! member, and what this node found out that others want to know.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use meshd_proto::{NodeHash, NodeKey};

use super::{
    Membership,
    checks::{Pace, Purpose},
    watching::ASK_WITHIN,
};
use crate::node::types::Liveness;

/// Reports follow the exchange in which they were found lacking: so long members that were not heard of are not
/// taken for alive.
const REPORTS_COME: Duration = Duration::from_secs(2);
/// Down for all when so many watchers say so: two that lie are not enough.
const QUORUM: usize = 3;

impl Membership {
    /// Whether `watcher`'s word about `watched` counts.
    pub(in crate::node) fn may_watch(&self, watcher: &NodeKey, watched: &NodeKey) -> bool {
        self.rings.may_watch(&watcher.hash(), &watched.hash())
    }

    /// How many watchers of `key` must say that it is down: fewer where fewer are there.
    pub(in crate::node) fn quorum(&self, key: &NodeKey) -> usize {
        let mut there = BTreeSet::new();
        for node in self.rings.watchers(&key.hash()) {
            if !self.is_down(&node) && there.insert(node) && there.len() == QUORUM {
                break;
            }
        }
        there.len().max(1)
    }

    /// Those about whom `watcher`'s word counts.
    pub(in crate::node) fn watched_by(&self, watcher: &NodeKey) -> Vec<NodeKey> {
        let nodes: BTreeSet<_> = self.rings.watchers(&watcher.hash()).collect();
        nodes.iter().filter_map(|node| self.peers.get(node)).map(|peer| peer.key).collect()
    }

    pub(in crate::node) fn is_down(&self, node: &NodeHash) -> bool {
        let gone = |liveness| matches!(liveness, Liveness::Down | Liveness::Left);
        *node != self.own.node && self.peers.get(node).is_none_or(|peer| gone(peer.liveness))
    }

    /// What this node found out itself since the last call.
    pub(in crate::node) fn poll_verdict(&mut self) -> Option<(NodeKey, bool)> {
        self.watching.verdicts.pop_front()
    }

    /// Whom this node itself found silent.
    pub(in crate::node) fn silent(&self) -> impl Iterator<Item = NodeKey> {
        self.peers.values().filter(|peer| peer.silent).map(|peer| peer.key)
    }

    /// Enough watchers say that `key` is down, or not any more.
    pub(in crate::node) fn set_reported(&mut self, key: &NodeKey, down: bool, now: Instant) {
        let node = key.hash();
        let (patience, pace) = (self.patience(), self.pace(&node));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.watched {
            // This node sees for itself.
            peer.reported = down;
            if down && !peer.silent {
                let heard = peer.heard.is_some_and(|at| now.duration_since(at) < patience / 3);
                if !heard {
                    self.checks.open(node, Purpose::Doubt, now, pace);
                }
            }
            return;
        }
        if down && peer.heard.is_some_and(|at| now.duration_since(at) < patience) {
            self.checks.open(node, Purpose::Doubt, now, pace);
            return;
        }
        peer.reported = down;
        self.show(&node, now);
        self.keep_watch(now);
    }

    /// One watcher, but not enough, says that a neighbour is down: it is asked at once.
    pub(in crate::node) fn doubt(&mut self, key: &NodeKey, now: Instant) {
        let (node, patience) = (key.hash(), self.patience());
        let lately = |heard: Option<Instant>| {
            heard.is_some_and(|at| now.saturating_duration_since(at) < patience / 3)
        };
        let answered = self.peers.get(&node).is_none_or(|peer| lately(peer.heard));
        if !answered && self.looks_after(&node) && !self.is_down(&node) {
            self.checks.open(node, Purpose::Doubt, now, self.pace(&node));
        }
    }

    /// Somebody else said something of `key` in this node's name: what this node itself found is said again.
    pub(in crate::node) fn restate(&mut self, key: &NodeKey) {
        let silent = self.peers.get(&key.hash()).is_some_and(|peer| peer.silent);
        self.watching.verdicts.push_back((*key, silent));
    }

    /// Talks to a member that says that this node is down.
    pub(in crate::node) fn speak_to(&mut self, key: &NodeKey, now: Instant) {
        self.checks.open(key.hash(), Purpose::Revive, now, Pace::few(self.patience()));
    }

    /// Too few watchers of a member that is down are left who say so: this node looks, if it is one.
    pub(in crate::node) fn look_again(&mut self, key: &NodeKey, now: Instant) {
        let node = key.hash();
        let down = self.peers.get(&node).is_some_and(|peer| peer.liveness == Liveness::Down);
        if !down || !self.looks_after(&node) {
            return;
        }
        self.doubt_soon(node, ASK_WITHIN, now);
    }

    /// This node was held for down by others: it was cut off, and believes nothing of what it saw meanwhile.
    pub(in crate::node) fn start_over(&mut self, now: Instant) {
        let unwatched: Vec<_> = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| !peer.watched)
            .map(|(node, peer)| {
                (peer.silent, peer.reported, peer.confirmed) = (false, false, true);
                *node
            })
            .collect();
        for node in unwatched {
            self.show(&node, now);
        }
        self.keep_watch(now);
    }

    /// The first exchange of this start came to its end.
    pub(in crate::node) fn informed(&mut self, now: Instant) {
        self.watching.informed.get_or_insert(now + REPORTS_COME);
    }

    pub(super) fn trust_reports_if_due(&mut self, now: Instant) {
        if self.watching.trusts_reports || self.watching.informed.is_none_or(|at| at > now) {
            return;
        }
        self.watching.trusts_reports = true;
        let unwatched = self.peers.iter().filter(|(_, peer)| !peer.watched);
        let unwatched: Vec<_> = unwatched.map(|(node, _)| *node).collect();
        unwatched.iter().for_each(|node| self.show(node, now));
    }
}
