//! Whom this node watches: its neighbours on the rings, which in a small mesh are all.
//!
//! To probe a random member of a thousand is to make a connection for each probe. So foca knows the neighbours only, to
//! whom connections stand, and what is known of all others is what their watchers [report](crate::node::reports).
//!
//! | kind | is shown as |
//! |---|---|
//! | watched | what foca makes of it |
//! | not watched, silent when this node asked it | `Down` until heard, or until its next generation |
//! | not watched, reported by enough of its watchers | the same |
//! | not watched, not heard of in this start yet | `Suspect` until reports were compared with somebody |
//! | not watched otherwise | `Alive` |

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use foca::{Header, Member, Message, State};
use meshd_proto::{NodeHash, NodeKey};

use super::{Membership, checks::Purpose, identity::SwimId, packet::Packet, rings::Watch};
use crate::node::types::Liveness;

/// A new neighbour is asked within this, not all by all at one time.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(1);
/// A neighbour that was heard so lately is not asked.
const HEARD_LATELY: Duration = Duration::from_secs(10);

/// Members that have just started are counted in on the rings when no more came for so long, or after the second time at the
/// latest. As a whole mesh starts the neighbours of all change with each member, and each new one is a connection.
pub(super) const CALM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Rounds of finding out whom to watch, in one call: each may show that somebody else is down.
const ROUNDS: usize = 4;

/// A probe of foca's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub(super) node: NodeHash,
    pub(super) number: u8,
    /// When it was sent.
    pub(super) at: Instant,
}

/// One that is sent once more before others are asked to try.
#[derive(Debug)]
struct Again {
    at: Instant,
    probe: Probe,
    bytes: Bytes,
}

/// The state of it.
#[derive(Debug, Default)]
pub(super) struct Watching {
    /// Who is next, and whom to look after, may have changed.
    pub(super) stale: bool,
    pub(super) watch: Watch,
    /// Those who started a moment ago, and when the first and the last of them came.
    joined: BTreeSet<NodeHash>,
    came: Option<(Instant, Instant)>,
    again: Option<Again>,
    /// The last one.
    probed: Option<Probe>,
    /// When neighbours are looked at that were not heard.
    pub(super) look: Option<Instant>,
    /// What others report is known from then on.
    pub(super) informed: Option<Instant>,
    pub(super) trusts_reports: bool,
    /// What this node found out itself: who fell silent, and who was heard again.
    pub(super) verdicts: VecDeque<(NodeKey, bool)>,
}

impl Watching {
    /// A member left this node's questions unanswered.
    pub(super) fn say_down(&mut self, key: NodeKey) {
        self.verdicts.push_back((key, true));
    }

    /// It was heard again.
    pub(super) fn take_back(&mut self, key: NodeKey) {
        self.verdicts.push_back((key, false));
    }

    fn join(&mut self, node: NodeHash, now: Instant) {
        self.joined.insert(node);
        let (_, last) = self.came.get_or_insert((now, now));
        *last = now;
    }

    /// When no more are expected, and all are counted in.
    fn calm(&self) -> Option<Instant> {
        self.came.map(|(first, last)| (last + CALM.0).min(first + CALM.1))
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let informed = self.informed.filter(|_| !self.trusts_reports);
        let again = self.again.as_ref().map(|again| again.at);
        again.into_iter().chain(informed).chain(self.look).chain(self.calm()).min()
    }
}

impl Membership {
    /// Members that have just started: they may be nobody's neighbours yet.
    pub(in crate::node) fn joined(&self) -> impl Iterator<Item = NodeKey> {
        self.alive(&self.watching.joined)
    }

    pub(super) fn is_watched(&self, node: &NodeHash) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.watched)
    }

    /// Members that foca knows.
    pub(super) fn watched_count(&self) -> usize {
        self.watching.watch.near.len()
    }

    /// A neighbour, or one that is down on the way to one.
    pub(super) fn looks_after(&self, node: &NodeHash) -> bool {
        self.watching.watch.near.contains(node) || self.watching.watch.passed.contains(node)
    }

    /// The neighbours, those that are there, in the order of their hashes.
    pub(in crate::node) fn neighbours(&self) -> impl Iterator<Item = NodeKey> {
        self.alive(&self.watching.watch.near)
    }

    /// One of them on each ring, always on the same side: so each is somebody's on each. In the order of the rings.
    pub(in crate::node) fn neighbours_ahead(&self) -> impl Iterator<Item = NodeKey> {
        self.alive(&self.watching.watch.ahead)
    }

    fn alive<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a NodeHash>,
    ) -> impl Iterator<Item = NodeKey> {
        let there = nodes.into_iter().filter_map(|node| self.peers.get(node));
        there.filter(|peer| peer.liveness == Liveness::Alive).map(|peer| peer.key)
    }

    /// `fresh`: its owner has started a moment ago, and others may have with it.
    pub(super) fn join_rings(&mut self, key: &NodeKey, fresh: bool, now: Instant) {
        match (self.rings.insert(key), fresh) {
            (true, true) => self.watching.join(key.hash(), now),
            (true, false) => self.watching.stale = true,
            (false, _) => {}
        }
    }

    pub(super) fn leave_rings(&mut self, node: &NodeHash) {
        self.watching.stale |= self.rings.remove(node);
    }

    /// foca is about to ask others to try; its own probe goes out once more before.
    pub(super) fn note_probe(&mut self, probe: Probe, bytes: &Bytes, at: Instant) {
        self.watching.again = Some(Again { at, probe, bytes: bytes.clone() });
        self.watching.probed = Some(probe);
    }

    pub(super) fn note_answer(&mut self, node: &NodeHash, number: u8) {
        let is_it = |probe: &Probe| probe.node == *node && probe.number == number;
        self.watching.again.take_if(|again| is_it(&again.probe));
        self.watching.probed.take_if(|probe| is_it(probe));
    }

    /// foca is about to judge its last probe, long after it sent it: whoever was heard since has answered.
    pub(super) fn answer_for_who_was_heard(&mut self, now: Instant) {
        let Some(Probe { node, number, at }) = self.watching.probed.take() else { return };
        if !self.heard_since(&node, at) {
            return;
        }
        let Some(peer) = self.peers.get(&node) else { return };
        let header = Header {
            src: SwimId { node, generation: peer.generation },
            src_incarnation: peer.incarnation,
            dst: self.own,
            message: Message::Ack(number),
        };
        let data = Packet { header, updates: Vec::new() }.to_foca();
        self.drive(now, |foca, sink| foca.handle_data(&data, sink));
    }

    pub(super) fn ask_again(&mut self, now: Instant) {
        if let Some(again) = self.watching.again.take_if(|again| again.at <= now)
            && let Some(peer) = self.peers.get(&again.probe.node)
        {
            self.sends.push_back((peer.key, again.bytes));
        }
    }

    pub(super) fn doubt_soon(&mut self, node: NodeHash, within: Duration, now: Instant) {
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let spread = rand::RngExt::random_range(&mut self.rng, 0..=millis);
        let first = now + Duration::from_millis(spread);
        self.checks.open(node, Purpose::Doubt, first, self.pace(&node));
    }

    /// A member that is not watched was heard.
    pub(super) fn heard_unwatched(&mut self, node: &NodeHash, now: Instant) {
        self.checks.close(node);
        let Some(peer) = self.peers.get_mut(node) else { return };
        if std::mem::take(&mut peer.silent) {
            self.watching.verdicts.push_back((peer.key, false));
        }
        peer.reported = false;
        self.show(node, now);
        self.keep_watch(now);
    }

    /// A member that is not watched left this node's questions unanswered.
    pub(super) fn note_silence(&mut self, node: &NodeHash, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.silent = true;
        self.watching.verdicts.push_back((peer.key, true));
        self.show(node, now);
    }

    /// Shows a member that is not watched as what is known of it.
    pub(super) fn show(&mut self, node: &NodeHash, now: Instant) {
        let trusts = self.watching.trusts_reports;
        let Some(peer) = self.peers.get_mut(node).filter(|peer| !peer.watched) else { return };
        let liveness = match peer.liveness {
            Liveness::Left => return,
            _ if peer.silent || peer.reported => Liveness::Down,
            _ if peer.confirmed || trusts => {
                peer.confirmed = true;
                Liveness::Alive
            }
            _ => Liveness::Suspect,
        };
        self.set(node, liveness, now);
    }

    /// Gives a member to foca as it is known.
    pub(super) fn hand_to_foca(&mut self, node: &NodeHash, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.watched = true;
        let id = SwimId { node: *node, generation: peer.generation };
        let state = if peer.silent { State::Down } else { State::Alive };
        let member = Member::new(id, peer.incarnation, state);
        self.drive(now, |foca, sink| foca.apply_many([member].into_iter(), false, sink));
        self.resize();
    }

    fn adopt(&mut self, node: NodeHash, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node).filter(|p| p.liveness != Liveness::Left) else {
            return;
        };
        peer.silent |= peer.reported;
        peer.reported = false;
        let lately = |at: Instant| now.saturating_duration_since(at) < HEARD_LATELY;
        let ask = !peer.silent && !peer.heard.is_some_and(lately);
        self.hand_to_foca(&node, now);
        self.refresh(&BTreeSet::from([node]), now);
        if ask {
            self.checks.close(&node);
            self.doubt_soon(node, ASK_WITHIN, now);
        }
    }

    fn release(&mut self, node: NodeHash, now: Instant) {
        self.drop_from_foca(&node, now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.watched = false;
        }
        self.show(&node, now);
    }

    /// Brings what is watched in line with who is there.
    pub(super) fn keep_watch(&mut self, now: Instant) {
        if self.watching.calm().is_some_and(|at| at <= now) {
            self.watching.stale = true;
            self.watching.joined.clear();
            self.watching.came = None;
        }
        // What is adopted or released may turn out to be down or not: a few rounds settle it.
        for _ in 0..ROUNDS {
            if !std::mem::take(&mut self.watching.stale) {
                return;
            }
            let watch = self.rings.watch(&self.own.node, |node| self.is_down(node));
            let was = std::mem::replace(&mut self.watching.watch, watch.clone());
            for node in was.near.symmetric_difference(&watch.near) {
                match (watch.near.contains(node), self.is_watched(node)) {
                    (true, false) => self.adopt(*node, now),
                    (false, true) => self.release(*node, now),
                    _ => {}
                }
            }
            self.resize();
            for node in watch.passed.difference(&was.passed) {
                if self.peers.get(node).is_some_and(|peer| !peer.silent) {
                    self.doubt_soon(*node, ASK_WITHIN * 2, now);
                }
            }
        }
    }
}
