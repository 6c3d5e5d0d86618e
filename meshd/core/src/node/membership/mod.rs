//! SWIM: who is there. foca behind a filter, since members may lie.
//!
//! Responsible for liveness: what foca makes of honest packets, corrected by what this node hears itself.
//! A packet or frame from a member's own connection is always proof that it is there; a third party's word
//! only makes this node ask. Not for records: a member is known here when [`Membership::admit`] was called
//! with its verified record, and only then. Called by [`Node`](super::Node) alone.
//!
//! ```text
//!            record, not heard yet            answers, or others say so
//!   (none) ───────────────────────► Suspect ◄──────────────────────────► Alive
//!                                      │        doubted by anybody         │
//!                                      │ no answer                         │ signed leave
//!                                      ▼                                   ▼
//!                                    Down ───── anything heard ──► Alive  Left (from any state)
//! ```

mod attention;
mod checks;
mod filter;
mod identity;
mod liveness;
mod packet;
mod reported;
mod rings;
mod stranger;
mod swim;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use bytes::Bytes;
use foca::{Member, State, Timer};
use meshd_proto::{NodeHash, NodeKey};
use rand::{SeedableRng, rngs::StdRng};

use self::{
    checks::{Checks, Pace, Purpose, Step},
    identity::SwimId,
    packet::Packet,
    rings::Rings,
    swim::Swim,
    watching::Watching,
};
use super::{
    budget::Bucket,
    types::{Liveness, Profile, TimeoutReason},
};
use crate::{
    limits,
    refusal::{Code, Refusal},
    trust::Record,
};

/// What is known of one member's being there.
#[derive(Debug)]
struct Peer {
    key: NodeKey,
    /// The highest that it signed or used on its own connection.
    generation: u64,
    liveness: Liveness,
    since: Instant,
    /// As foca knows it, at the last look.
    incarnation: u16,
    /// Somebody heard it in this start: itself, others, or a record of a moment ago.
    confirmed: bool,
    /// When this node heard it itself.
    heard: Option<Instant>,
    /// When a neighbour reached it for this node, which did not.
    vouched: Option<Instant>,
    /// When it was last told that it is suspected.
    told: Option<Instant>,
    /// When it was last asked because others say that it is back.
    revived: Option<Instant>,
    /// How often it may make this node ask or answer a third one: each may cost a dial.
    relays: Bucket,
    /// foca knows it.
    watched: bool,
    /// It left this node's own questions unanswered, and was not heard since.
    silent: bool,
    /// Enough of its watchers say that it is down.
    reported: bool,
}

/// Indirect probes for one member: at once, and a second.
const RELAYS: (u64, u64) = (50, 10);

/// SWIM behind a filter.
pub(super) struct Membership {
    own: SwimId,
    own_incarnation: u16,
    profile: Profile,
    foca: Swim,
    timers: BTreeMap<(Instant, u64), (Timer<SwimId>, Instant)>,
    sequence: u64,
    peers: BTreeMap<NodeHash, Peer>,
    checks: Checks,
    sends: VecDeque<(NodeKey, Bytes)>,
    greetings: VecDeque<NodeKey>,
    changes: VecDeque<(NodeKey, Liveness)>,
    refusals: BTreeMap<Code, u64>,
    wants_renewal: bool,
    renewed: Option<Instant>,
    rings: Rings,
    watching: Watching,
    /// Spreads the first questions to members that are new here.
    rng: StdRng,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Membership {
    /// Knows nobody.
    pub(super) fn new(
        own: &NodeKey,
        generation: u64,
        profile: Profile,
        rng: &mut StdRng,
        now: Instant,
    ) -> Self {
        let mut rings = Rings::default();
        rings.insert(own);
        let own = SwimId { node: own.hash(), generation };
        Self {
            own,
            own_incarnation: 0,
            profile,
            foca: swim::new(own, profile, StdRng::from_rng(rng)),
            timers: BTreeMap::new(),
            sequence: 0,
            peers: BTreeMap::new(),
            checks: Checks::new(now),
            sends: VecDeque::new(),
            greetings: VecDeque::new(),
            changes: VecDeque::new(),
            refusals: BTreeMap::new(),
            wants_renewal: false,
            renewed: None,
            rings,
            watching: Watching::default(),
            rng: StdRng::from_rng(rng),
        }
    }

    /// A verified record came in. `fresh`: it was signed a moment ago, so its owner was there then.
    pub(super) fn admit(&mut self, record: &Record, fresh: bool, now: Instant) {
        let node = record.key.hash();
        if node == self.own.node {
            return;
        }
        if record.left {
            self.drop_from_foca(&node, now);
            self.leave_rings(&node);
            let peer = self.peers.entry(node).or_insert_with(|| new_peer(record, now));
            peer.generation = peer.generation.max(record.generation);
            peer.watched = false;
            self.set(&node, Liveness::Left, now);
            return self.keep_watch(now);
        }
        let known = self.peers.get(&node).filter(|peer| peer.liveness != Liveness::Left);
        match known.map(|peer| (peer.generation, peer.liveness)) {
            // The same start: nothing for foca. If it is held for down somebody should look.
            Some((generation, liveness)) if record.generation <= generation => {
                if fresh && liveness == Liveness::Down && self.looks_after(&node) {
                    let pace = Pace::few(self.patience());
                    self.checks.open(node, Purpose::Revive, now, pace);
                }
                return;
            }
            Some(_) => {}
            None => {
                self.peers.insert(node, new_peer(record, now));
            }
        }
        self.join_rings(&record.key, fresh, now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.generation = record.generation;
            peer.incarnation = 0;
            peer.confirmed = fresh;
            (peer.silent, peer.reported) = (false, false);
        }
        if !self.is_watched(&node) {
            self.show(&node, now);
            return self.keep_watch(now);
        }
        self.hand_to_foca(&node, now);
        if !fresh {
            self.doubt_soon(node, self.patience() / 4, now);
        }
        self.refresh(&BTreeSet::from([node]), now);
        self.keep_watch(now);
    }

    /// Forgets a member altogether.
    pub(super) fn remove(&mut self, key: &NodeKey, now: Instant) {
        let node = key.hash();
        self.drop_from_foca(&node, now);
        self.leave_rings(&node);
        self.peers.remove(&node);
        self.resize();
        self.keep_watch(now);
    }

    /// A datagram on a connection to `from`.
    pub(super) fn handle_packet(
        &mut self,
        from: &NodeKey,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Refusal> {
        let packet = Packet::from_wire(bytes, from.hash(), self.own)?;
        let Some(packet) = self.filter(from, packet, now)? else {
            self.heard(from, now);
            return Ok(());
        };
        self.heard(from, now);
        let node = from.hash();
        let mut touched: BTreeSet<_> = packet.updates.iter().map(|u| u.id().node).collect();
        let data = packet.to_foca();
        self.drive(now, |foca, sink| foca.handle_data(&data, sink));
        if self.peers.get(&node).is_some_and(|peer| peer.liveness != Liveness::Alive) {
            touched.insert(node);
        }
        self.refresh(&touched, now);
        if self.peers.get(&node).is_some_and(|peer| peer.liveness == Liveness::Suspect) {
            self.tell(&node, now);
        }
        self.keep_watch(now);
        Ok(())
    }

    /// Something came over `key`'s own connection: it is there.
    pub(super) fn heard(&mut self, key: &NodeKey, now: Instant) {
        let node = key.hash();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.heard = Some(now);
        peer.confirmed = true;
        if !peer.watched {
            return self.heard_unwatched(&node, now);
        }
        peer.reported = false;
        match peer.liveness {
            Liveness::Alive => self.checks.close(&node),
            Liveness::Left => {}
            Liveness::Suspect => {
                self.refresh(&BTreeSet::from([node]), now);
                if self.peers.get(&node).is_some_and(|p| p.liveness == Liveness::Suspect) {
                    self.tell(&node, now);
                }
            }
            Liveness::Down => {
                peer.silent = false;
                let id = SwimId { node, generation: peer.generation };
                let alive = Member::new(id, peer.incarnation, State::Alive);
                self.drive(now, |foca, sink| {
                    foca.handle_timer(Timer::RemoveDown(id), &mut *sink)?;
                    foca.apply_many([alive].into_iter(), true, sink)
                });
                self.refresh(&BTreeSet::from([node]), now);
                self.watching.take_back(*key);
                self.keep_watch(now);
            }
        }
    }

    /// Does what is due. Ask [`Self::take_renewal`] then.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.ask_again(now);
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let (timer, submitted) = entry.remove();
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer
                && self.heard_since(&member_id.node, submitted)
            {
                continue;
            }
            if matches!(timer, Timer::ProbeRandomMember(_)) {
                self.answer_for_who_was_heard(now);
            }
            self.drive(now, |foca, sink| foca.handle_timer(timer, sink));
        }
        while let Some(step) = self.checks.poll(now) {
            match step {
                Step::Ask(node, nth) => {
                    if !(nth == 1 && self.greet(&node)) {
                        self.ask(&node, now);
                    }
                    self.ask_through_others(&node, nth);
                }
                Step::GiveUp(_, Purpose::Revive) => {}
                Step::GiveUp(node, Purpose::Doubt) => self.give_up(&node, now),
            }
        }
        self.trust_reports_if_due(now);
        self.keep_watch(now);
        self.attend(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn next_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        // foca looks five times a second whether it has something to pass on. As long as it has nothing, that is done
        // along with whatever is due next.
        let quiet = self.foca.updates_backlog() == 0;
        let worth = |timer: &Timer<SwimId>| !(quiet && matches!(timer, Timer::PeriodicGossip(_)));
        let mut timers = self.timers.iter().filter(|(_, (timer, _))| worth(timer));
        let timer = timers.next().map(|(key, _)| (key.0, TimeoutReason::Membership));
        let check = self.checks.next().map(|at| (at, TimeoutReason::Check));
        let rested = |at: Instant| at + limits::SWIM_RENEW_INTERVAL;
        let renewal = self.renewed.filter(|_| self.wants_renewal).map(rested);
        let watching = self.watching.next_timeout();
        let others = renewal.into_iter().chain(watching);
        let others = others.map(|at| (at, TimeoutReason::Membership));
        timer.into_iter().chain(check).chain(others).min()
    }

    /// True when a new generation should be signed now: at most once in a while, whoever lies.
    pub(super) fn take_renewal(&mut self, now: Instant) -> bool {
        let rested =
            self.renewed.is_none_or(|at| now.duration_since(at) >= limits::SWIM_RENEW_INTERVAL);
        if self.wants_renewal && rested {
            self.renewed = Some(now);
            self.wants_renewal = false;
            return true;
        }
        false
    }

    /// Others hold this node for down: what answers them is a new generation.
    pub(super) fn want_renewal(&mut self) {
        self.wants_renewal = true;
    }

    /// The generation that this node signed.
    pub(super) fn set_generation(&mut self, generation: u64, now: Instant) {
        if generation == self.own.generation {
            return;
        }
        self.own.generation = generation;
        self.own_incarnation = 0;
        self.wants_renewal = false;
        let own = self.own;
        self.drive(now, |foca, sink| {
            foca.change_identity(own, &mut *sink)?;
            // With no updates this only makes foca active again.
            foca.apply_many(std::iter::empty(), false, sink)
        });
    }

    /// Datagrams to send.
    pub(super) fn poll_send(&mut self) -> Option<(NodeKey, Bytes)> {
        self.sends.pop_front()
    }

    /// Members to greet.
    pub(super) fn poll_greeting(&mut self) -> Option<NodeKey> {
        self.greetings.pop_front()
    }

    /// Changes of liveness.
    pub(super) fn poll_change(&mut self) -> Option<(NodeKey, Liveness)> {
        self.changes.pop_front()
    }

    /// Refusals of parts of packets since the last call.
    pub(super) fn take_refusals(&mut self) -> BTreeMap<Code, u64> {
        std::mem::take(&mut self.refusals)
    }

    /// Whether a member is there, and since when.
    pub(super) fn liveness(&self, key: &NodeKey) -> Option<(Liveness, Instant)> {
        self.peers.get(&key.hash()).map(|peer| (peer.liveness, peer.since))
    }

    /// The members of one liveness, in the order of their hashes.
    pub(super) fn members(&self, liveness: Liveness) -> impl Iterator<Item = NodeKey> {
        let peers = self.peers.values();
        peers.filter(move |peer| peer.liveness == liveness).map(|peer| peer.key)
    }
}

fn new_peer(record: &Record, now: Instant) -> Peer {
    Peer {
        key: record.key,
        generation: record.generation,
        liveness: Liveness::Suspect,
        since: now,
        incarnation: 0,
        confirmed: false,
        heard: None,
        vouched: None,
        told: None,
        revived: None,
        relays: Bucket::new(RELAYS.0, RELAYS.1, now),
        watched: false,
        silent: false,
        reported: false,
    }
}

#[cfg(test)]
mod tests;
