//! What of a packet reaches foca.
//!
//! foca was made for members that tell the truth. Here a packet's source is the identity of its
//! connection, a generation is believed only from the member itself, and a third party can at most
//! raise a doubt, which this node then settles by asking.

use std::time::Instant;

use foca::{Member, Message, State};
use meshd_proto::{NodeHash, NodeKey};

use super::{
    Liveness, Membership,
    checks::{Pace, Purpose},
    identity::SwimId,
    packet::Packet,
};
use crate::{
    limits,
    refusal::{Code, Refusal},
};

impl Membership {
    /// The packet as foca may see it; `None` if nothing is left of it.
    pub(super) fn filter(
        &mut self,
        from: &NodeKey,
        packet: Packet,
        now: Instant,
    ) -> Result<Option<Packet>, Refusal> {
        let Packet { mut header, updates } = packet;
        let source = from.hash();
        if header.src.node != source {
            return Err(Refusal::new(
                Code::SwimSpoofedSource,
                format!("SWIM packet of {} on a connection of {source}", header.src.node),
            ));
        }
        let Some(peer) = self.peers.get_mut(&source).filter(|p| p.liveness != Liveness::Left)
        else {
            return Err(Refusal::new(
                Code::SwimUnknownMember,
                format!("SWIM packet of {source}, which has no admitted record"),
            ));
        };
        if header.src.generation < peer.generation {
            return Err(Refusal::new(
                Code::SwimGeneration,
                format!("SWIM packet of an earlier start of {source}"),
            ));
        }
        if header.src_incarnation > limits::SWIM_INCARNATION {
            return Err(Refusal::new(
                Code::SwimIncarnation,
                format!("SWIM incarnation {} of {source}", header.src_incarnation),
            ));
        }
        if header.dst.node != self.own.node {
            return Err(Refusal::new(Code::Malformed, "SWIM packet for another node"));
        }
        peer.generation = header.src.generation;
        if matches!(header.message, Message::PingReq { .. } | Message::IndirectAck { .. })
            && !peer.relays.take(1, now)
        {
            self.count(Code::RateLimited);
            return Ok(None);
        }
        // The sender may not know our newest generation yet; the answer tells it.
        header.dst = self.own;
        if let Message::Ack(number) = header.message {
            self.note_answer(&source, number);
        }

        match &mut header.message {
            Message::TurnUndead => {
                // It holds us for down: what it needs is a word of ours, not a new identity.
                self.tell(&source, now);
                return Ok(None);
            }
            Message::PingReq { target: subject, .. }
            | Message::IndirectPing { origin: subject, .. }
            | Message::IndirectAck { target: subject, .. }
            | Message::ForwardedAck { origin: subject, .. } => {
                if subject.node == self.own.node || subject.node == source {
                    return Err(Refusal::new(Code::Malformed, "SWIM packet in a circle"));
                }
                let Some(known) = self.known(&subject.node) else {
                    self.count(Code::SwimUnknownMember);
                    return Ok(None);
                };
                *subject = known;
            }
            Message::Ping(_)
            | Message::Ack(_)
            | Message::Announce
            | Message::Feed
            | Message::Gossip
            | Message::Broadcast => {}
        }
        if !self.is_watched(&source) {
            self.answer_stranger(&source, &header.message, &updates, now);
            return Ok(None);
        }
        if let Message::ForwardedAck { origin, .. } = header.message {
            self.vouched(&origin.node, now);
        }
        let updates = if header.message == Message::Announce {
            Vec::new()
        } else {
            updates.into_iter().filter_map(|u| self.filter_update(&source, &u, now)).collect()
        };
        Ok(Some(Packet { header, updates }))
    }

    fn known(&self, node: &NodeHash) -> Option<SwimId> {
        let peer = self.peers.get(node).filter(|peer| peer.liveness != Liveness::Left)?;
        Some(SwimId { node: *node, generation: peer.generation })
    }

    fn filter_update(
        &mut self,
        source: &NodeHash,
        update: &Member<SwimId>,
        now: Instant,
    ) -> Option<Member<SwimId>> {
        let id = *update.id();
        if id.node == *source {
            return None; // The header said it, with its generation.
        }
        if update.incarnation() > limits::SWIM_INCARNATION {
            self.count(Code::SwimIncarnation);
            return None;
        }
        if id.node == self.own.node {
            return self.filter_about_self(update);
        }
        let Some(known) = self.known(&id.node) else {
            self.count(Code::SwimUnknownMember);
            return None;
        };
        if id.generation != known.generation {
            if id.generation > known.generation {
                self.count(Code::SwimGeneration);
            }
            return None;
        }
        if update.state() == State::Down {
            self.count(Code::SwimHearsayDown);
        }
        if !self.is_watched(&id.node) {
            return None; // Whoever watches it says so in a report.
        }
        let patience = self.patience();
        let fresh = self.probe_period();
        let peer = self.peers.get_mut(&id.node)?;
        match (update.state(), peer.liveness) {
            // foca would not believe it; the member itself is asked, now and then.
            (State::Alive, Liveness::Down) => {
                let again = peer.revived.is_none_or(|at| now.duration_since(at) >= patience);
                if again {
                    peer.revived = Some(now);
                    self.checks.open(id.node, Purpose::Revive, now, Pace::few(patience));
                }
                None
            }
            (State::Alive, _) => {
                peer.confirmed = true;
                Some(update.clone())
            }
            (State::Suspect | State::Down, Liveness::Down) => None,
            (State::Suspect | State::Down, _) => {
                let heard = peer.heard.is_some_and(|at| now.duration_since(at) < fresh);
                (!heard).then(|| Member::new(id, update.incarnation(), State::Suspect))
            }
        }
    }

    /// A suspicion of ourselves is answered with the next incarnation; where those end, with a new
    /// generation, which others believe because it is signed.
    pub(super) fn filter_about_self(&mut self, update: &Member<SwimId>) -> Option<Member<SwimId>> {
        match update.state() {
            State::Alive => return None,
            State::Suspect => {}
            State::Down => self.count(Code::SwimHearsayDown),
        }
        if update.id().generation != self.own.generation {
            return None;
        }
        if update.incarnation() >= limits::SWIM_INCARNATION {
            self.wants_renewal = true;
            return None;
        }
        Some(Member::new(self.own, update.incarnation(), State::Suspect))
    }
}
