//! Packets of members that this node does not watch.
//!
//! Two members may differ for a while in who is next to whom, and indirect probes pass through members that
//! watch only one of the two. So whoever asks is answered; but foca, which would take the stranger for a
//! member to be probed, never sees it.

use std::time::Instant;

use foca::{Header, Member, Message};
use meshd_proto::NodeHash;

use super::{Membership, identity::SwimId, packet::Packet};

impl Membership {
    /// Answers what `source` asks, which [`Membership::filter`] found in order. What it says of others is passed over.
    pub(super) fn answer_stranger(
        &mut self,
        source: &NodeHash,
        message: &Message<SwimId>,
        updates: &[Member<SwimId>],
        now: Instant,
    ) {
        let own = self.own.node;
        let about_self: Vec<_> = updates
            .iter()
            .filter(|update| {
                update.id().node == own && update.incarnation() <= crate::limits::SWIM_INCARNATION
            })
            .filter_map(|update| self.filter_about_self(update))
            .collect();
        if !about_self.is_empty() {
            self.drive(now, |foca, sink| foca.apply_many(about_self.into_iter(), true, sink));
        }
        let subject = |node: &NodeHash| SwimId { node: *node, generation: 0 };
        match message {
            Message::Ping(number) => self.send_message(source, Message::Ack(*number)),
            Message::PingReq { target, probe_number } => {
                let message =
                    Message::IndirectPing { origin: subject(source), probe_number: *probe_number };
                self.send_message(&target.node, message);
            }
            Message::IndirectPing { origin, probe_number } => {
                let message = Message::IndirectAck { target: *origin, probe_number: *probe_number };
                self.send_message(source, message);
            }
            Message::IndirectAck { target, probe_number } => {
                let message =
                    Message::ForwardedAck { origin: subject(source), probe_number: *probe_number };
                self.send_message(&target.node, message);
            }
            Message::Ack(_)
            | Message::ForwardedAck { .. }
            | Message::Announce
            | Message::Feed
            | Message::Gossip
            | Message::Broadcast
            | Message::TurnUndead => {}
        }
    }

    /// Sends a packet of this node's own making, past foca.
    pub(super) fn send_message(&mut self, to: &NodeHash, mut message: Message<SwimId>) {
        let generation = |node: &NodeHash| self.peers.get(node).map_or(0, |peer| peer.generation);
        match &mut message {
            Message::IndirectPing { origin: subject, .. }
            | Message::ForwardedAck { origin: subject, .. }
            | Message::IndirectAck { target: subject, .. } => {
                subject.generation = generation(&subject.node);
            }
            _ => {}
        }
        let Some(peer) = self.peers.get(to) else { return };
        let header = Header {
            src: self.own,
            src_incarnation: self.own_incarnation,
            dst: SwimId { node: *to, generation: peer.generation },
            message,
        };
        let packet = Packet { header, updates: Vec::new() };
        self.sends.push_back((peer.key, packet.to_wire()));
    }
}
