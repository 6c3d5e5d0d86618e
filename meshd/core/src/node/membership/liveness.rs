//! What is made of what foca holds and of what this node heard itself: asking, giving up, and how a member
//! is shown.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use foca::{Member, Message, State, Timer};
use meshd_proto::NodeHash;

use super::{
    Membership,
    checks::Purpose,
    identity::SwimId,
    packet::Packet,
    swim::{self, Sink, Swim},
    watching::Probe,
};
use crate::{node::types::Liveness, refusal::Code};

impl Membership {
    pub(super) fn heard_since(&self, node: &NodeHash, since: Instant) -> bool {
        let peer = self.peers.get(node);
        peer.and_then(|peer| peer.heard.max(peer.vouched)).is_some_and(|at| at > since)
    }

    pub(super) fn count(&mut self, code: Code) {
        *self.refusals.entry(code).or_default() += 1;
    }

    /// Asks a member whether it is there, telling it that it is suspected if it is.
    pub(super) fn ask(&mut self, node: &NodeHash, now: Instant) {
        let Some(peer) = self.peers.get_mut(node).filter(|p| p.liveness != Liveness::Left) else {
            return;
        };
        peer.told = Some(now);
        let id = SwimId { node: *node, generation: peer.generation };
        let (key, incarnation) = (peer.key, peer.incarnation);
        let state = self.foca.iter_membership_state().find(|member| *member.id() == id);
        let suspected = state.is_some_and(|member| member.state() == State::Suspect);
        let packet = Packet::question(self.own, self.own_incarnation, id, suspected, incarnation);
        self.sends.push_back((key, packet.to_wire()));
    }

    /// Tells a member that answers that it is suspected, so that it can say otherwise.
    pub(super) fn tell(&mut self, node: &NodeHash, now: Instant) {
        let told = self.peers.get(node).and_then(|peer| peer.told);
        if told.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.ask(node, now);
        }
    }

    pub(super) fn give_up(&mut self, node: &NodeHash, now: Instant) {
        let Some(peer) = self.peers.get(node) else { return };
        let recently = peer.heard.is_some_and(|at| now.duration_since(at) < self.patience());
        if recently || peer.liveness == Liveness::Left {
            return;
        }
        if !peer.watched {
            return self.note_silence(node, now);
        }
        if peer.liveness == Liveness::Down {
            return;
        }
        let id = SwimId { node: *node, generation: peer.generation };
        let down = Member::new(id, peer.incarnation, State::Down);
        self.drive(now, |foca, sink| foca.apply_many([down].into_iter(), true, sink));
        self.refresh(&BTreeSet::from([*node]), now);
    }

    pub(super) fn drop_from_foca(&mut self, node: &NodeHash, now: Instant) {
        self.checks.close(node);
        let Some(peer) = self.peers.get(node) else { return };
        let id = SwimId { node: *node, generation: peer.generation };
        self.drive(now, |foca, sink| {
            foca.apply_many([Member::down(id)].into_iter(), false, &mut *sink)?;
            foca.handle_timer(Timer::RemoveDown(id), sink)
        });
    }

    /// Calls foca and takes over what it wants done.
    pub(super) fn drive(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut Swim, &mut Sink) -> Result<(), foca::Error>,
    ) {
        let mut sink = Sink::default();
        if call(&mut self.foca, &mut sink).is_err() {
            // foca's errors say that a packet made no sense or came at a bad moment; its state is sound.
            self.count(Code::Malformed);
        }
        let probed = sink.timers.iter().find_map(|(timer, after)| match timer {
            Timer::SendIndirectProbe { probed_id, .. } => Some((probed_id.node, *after)),
            _ => None,
        });
        for (timer, after) in sink.timers {
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
                sink.touched.insert(member_id.node);
            }
            let rare = matches!(timer, Timer::ProbeRandomMember(_));
            let after = if rare { after * swim::RARER } else { after };
            self.sequence += 1;
            self.timers.insert((now + after, self.sequence), (timer, now));
        }
        for mut packet in sink.packets {
            self.own_incarnation = packet.header.src_incarnation;
            if let Some(peer) = self.peers.get(&packet.header.dst.node) {
                packet.header.dst.generation = peer.generation;
                let (key, bytes) = (peer.key, packet.to_wire());
                if let Some((node, after)) = probed
                    && packet.header.dst.node == node
                    && let Message::Ping(number) = packet.header.message
                {
                    self.note_probe(Probe { node, number, at: now }, &bytes, now + after / 2);
                }
                self.sends.push_back((key, bytes));
            }
        }
        self.wants_renewal |= sink.defunct;
        if !sink.touched.is_empty() {
            self.refresh(&sink.touched, now);
        }
    }

    /// Brings what is shown of `nodes` in line with what foca holds.
    pub(super) fn refresh(&mut self, nodes: &BTreeSet<NodeHash>, now: Instant) {
        if nodes.is_empty() {
            return;
        }
        let seen: Vec<_> = self
            .foca
            .iter_membership_state()
            .filter(|member| nodes.contains(&member.id().node))
            .map(|member| (member.id().node, member.incarnation(), member.state()))
            .collect();
        for (node, incarnation, state) in seen {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if peer.liveness == Liveness::Left || !peer.watched {
                continue;
            }
            peer.incarnation = incarnation;
            let liveness = match state {
                State::Down => {
                    peer.confirmed = false;
                    if !std::mem::replace(&mut peer.silent, true) {
                        self.watching.say_down(peer.key);
                    }
                    self.checks.close(&node);
                    Liveness::Down
                }
                State::Suspect => {
                    self.checks.open(node, Purpose::Doubt, now, self.pace(&node));
                    Liveness::Suspect
                }
                State::Alive if peer.confirmed => {
                    // Among neighbours foca's word may be another's: a doubt ends when it was heard, or given up.
                    let since = self.checks.since(&node);
                    if since.is_none_or(|since| self.heard_since(&node, since)) {
                        self.checks.close(&node);
                    }
                    Liveness::Alive
                }
                State::Alive => Liveness::Suspect,
            };
            self.set(&node, liveness, now);
        }
    }

    pub(super) fn set(&mut self, node: &NodeHash, liveness: Liveness, now: Instant) {
        if let Some(peer) = self.peers.get_mut(node)
            && peer.liveness != liveness
        {
            let gone = |liveness| matches!(liveness, Liveness::Down | Liveness::Left);
            self.watching.stale |= gone(peer.liveness) != gone(liveness);
            peer.liveness = liveness;
            peer.since = now;
            self.changes.push_back((peer.key, liveness));
        }
    }

    pub(super) fn resize(&mut self) {
        // Refused only for settings that `swim::config` never changes; a test sees to that.
        let _ = self.foca.set_config(self.swim_config());
    }

    fn swim_config(&self) -> foca::Config {
        swim::config(self.profile, self.watched_count())
    }

    pub(super) fn patience(&self) -> Duration {
        self.swim_config().suspect_to_down_after
    }

    /// SWIM's protocol period.
    pub(super) fn probe_period(&self) -> Duration {
        self.swim_config().probe_period
    }
}
