//! Neighbours of whom nothing was heard are asked, so that a crash is found within a time that has a bound.
//!
//! foca probes neighbours in random order, so one may have to wait. What bounds it is
//! how long a neighbour may be silent: connections to neighbours stand, so asking costs two small packets, and
//! whatever is heard puts it off. Nearly always one of two neighbours asks before the other has to.
//!
//! ```text
//! heard ─ 2½ protocol periods ─► asked nine times ─ no answer, not through others either ──► Down, and reported
//!   ▲         (or 3: one of the two)     │ any packet, or a neighbour that reaches it
//!   └────────────────────────────────────┘
//! ```

use std::time::{Duration, Instant};

use foca::Message;
use meshd_proto::NodeHash;

use super::{
    Membership, Peer,
    checks::{Pace, Purpose},
    identity::SwimId,
};
use crate::node::types::Liveness;

/// Neighbours are looked at no more often than this.
const LOOKS: Duration = Duration::from_millis(100);
/// Questions before a member is given up: where one packet in ten is lost, none of so many is answered once in three
/// million times.
const QUESTIONS: u8 = 9;
/// From this question on others are asked to try, too: only our link may be down.
const THROUGH_OTHERS_FROM: u8 = 4;
/// So many, the same for all questions: the first may only have made them connect.
const THROUGH: usize = 3;

impl Membership {
    /// How a member is asked before it is given up.
    pub(super) fn pace(&self, node: &NodeHash) -> Pace {
        let patience = self.patience();
        if self.is_watched(node) {
            Pace { questions: QUESTIONS, patience }
        } else {
            Pace::few(patience)
        }
    }

    /// Asks the neighbours that were silent for too long.
    pub(super) fn attend(&mut self, now: Instant) {
        if self.watching.look.is_some_and(|look| look > now) {
            return;
        }
        let silence = self.probe_period() * 5 / 2;
        let mut next = now + silence;
        let mut silent = Vec::new();
        for node in &self.watching.watch.near {
            let Some(peer) = self.peers.get(node).filter(|peer| !gone(peer.liveness)) else {
                continue;
            };
            let last = peer.heard.max(peer.vouched).unwrap_or(peer.since);
            // One of two begins, and what the other hears is enough for it.
            let due = last + if self.own.node < *node { silence } else { silence * 6 / 5 };
            if due <= now {
                silent.push(*node);
            } else {
                next = next.min(due);
            }
        }
        for node in silent {
            self.checks.open(node, Purpose::Doubt, now, self.pace(&node));
        }
        self.watching.look = Some(next.max(now + LOOKS));
    }

    /// Asks a neighbour that nobody doubts by an empty frame: that it is acknowledged is an answer, which costs no packet
    /// more. False if a question is in order.
    pub(super) fn greet(&mut self, node: &NodeHash) -> bool {
        let alive = |peer: &&Peer| peer.watched && peer.liveness == Liveness::Alive;
        let Some(peer) = self.peers.get(node).filter(alive) else { return false };
        self.greetings.push_back(peer.key);
        true
    }

    /// The `nth` question that a neighbour leaves open.
    pub(super) fn ask_through_others(&mut self, node: &NodeHash, nth: u8) {
        if nth < THROUGH_OTHERS_FROM || !self.is_watched(node) {
            return;
        }
        let Some(peer) = self.peers.get(node) else { return };
        let message = Message::PingReq {
            target: SwimId { node: *node, generation: peer.generation },
            probe_number: nth,
        };
        let near = &self.watching.watch.near;
        let after = near.range(*node..).chain(near.range(..*node));
        let others = after.filter(|other| {
            let there = |liveness| liveness == Liveness::Alive;
            *other != node && self.peers.get(*other).is_some_and(|peer| there(peer.liveness))
        });
        let others: Vec<_> = others.copied().take(THROUGH).collect();
        for other in others {
            self.send_message(&other, message.clone());
        }
    }

    /// A neighbour reached a member that this node asks in vain. That is enough as long as not many say otherwise:
    /// one that lies about it is not to hide a crash.
    pub(super) fn vouched(&mut self, node: &NodeHash, now: Instant) {
        if !self.checks.is_doubted(node) {
            return;
        }
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.watched && !peer.reported)
        else {
            return;
        };
        peer.vouched = Some(now);
        peer.confirmed = true;
        let suspected = peer.liveness == Liveness::Suspect;
        self.checks.close(node);
        if suspected {
            // foca waits for the member's own word, which cannot come.
            self.drop_from_foca(node, now);
            self.hand_to_foca(node, now);
        }
    }
}

fn gone(liveness: Liveness) -> bool {
    matches!(liveness, Liveness::Down | Liveness::Left)
}
