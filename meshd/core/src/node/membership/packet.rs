//! SWIM packets: from the wire, to the wire, and to and from foca's encoding. Checks form, not truth.

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec, Header, Member, Message, State};
use meshd_proto::{NodeHash, wire};
use prost::Message as _;

use super::identity::{FixedCodec, HEADER, MEMBER, PACKET, SwimId};
use crate::{
    limits,
    refusal::{Code, Refusal},
};

/// Updates that one packet may carry: as many as foca puts into one.
const UPDATES: usize = (PACKET - HEADER - 2) / MEMBER;

/// A packet whose form is right.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Packet {
    pub(super) header: Header<SwimId>,
    pub(super) updates: Vec<Member<SwimId>>,
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("SWIM packet: {why}"))
}

fn id_from_wire(id: Option<&wire::SwimIdentity>) -> Result<SwimId, Refusal> {
    let id = id.ok_or_else(|| malformed("an identity is missing"))?;
    let node = NodeHash::try_from(&*id.node).map_err(|e| malformed(&e.to_string()))?;
    Ok(SwimId { node, generation: id.generation })
}

/// The sender's need not say who it is.
fn source_from_wire(id: Option<&wire::SwimIdentity>, from: NodeHash) -> Result<SwimId, Refusal> {
    match id {
        Some(id) if id.node.is_empty() => Ok(SwimId { node: from, generation: id.generation }),
        id => id_from_wire(id),
    }
}

pub(super) fn id_to_wire(id: &SwimId) -> Option<wire::SwimIdentity> {
    let node = Bytes::copy_from_slice(&id.node.0);
    Some(wire::SwimIdentity { node, generation: id.generation })
}

/// Incarnations above the limit stay above it, whatever was sent.
fn incarnation(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Packet {
    /// A ping of our own, outside foca's probes. With a suspicion in it the answer refutes that.
    pub(super) fn question(
        own: SwimId,
        own_incarnation: u16,
        to: SwimId,
        suspected: bool,
        incarnation: u16,
    ) -> Self {
        let suspicion = Member::new(to, incarnation, State::Suspect);
        Self {
            header: Header {
                src: own,
                src_incarnation: own_incarnation,
                dst: to,
                message: Message::Ping(0),
            },
            updates: suspected.then_some(suspicion).into_iter().collect(),
        }
    }

    /// Reads a datagram that `from` sent to `own`.
    pub(super) fn from_wire(bytes: &[u8], from: NodeHash, own: SwimId) -> Result<Self, Refusal> {
        use wire::SwimKind as Kind;
        if bytes.len() > limits::SWIM_PACKET {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("SWIM packet of {} bytes, at most {}", bytes.len(), limits::SWIM_PACKET),
            ));
        }
        let packet = wire::SwimPacket::decode(bytes).map_err(|_| malformed("not Protobuf"))?;
        if packet.updates.len() > UPDATES {
            return Err(malformed("too many updates"));
        }
        let number = u8::try_from(packet.probe_number).map_err(|_| malformed("probe number"))?;
        let subject = || id_from_wire(packet.subject.as_ref());
        let message = match packet.kind() {
            Kind::Unspecified => return Err(malformed("unknown kind")),
            Kind::Ping => Message::Ping(number),
            Kind::Ack => Message::Ack(number),
            Kind::PingReq => Message::PingReq { target: subject()?, probe_number: number },
            Kind::IndirectPing => {
                Message::IndirectPing { origin: subject()?, probe_number: number }
            }
            Kind::IndirectAck => Message::IndirectAck { target: subject()?, probe_number: number },
            Kind::ForwardedAck => {
                Message::ForwardedAck { origin: subject()?, probe_number: number }
            }
            Kind::Announce => Message::Announce,
            Kind::Feed => Message::Feed,
            Kind::Gossip => Message::Gossip,
            Kind::TurnUndead => Message::TurnUndead,
        };
        let header = Header {
            src: source_from_wire(packet.source.as_ref(), from)?,
            src_incarnation: incarnation(packet.source_incarnation),
            // Who says nothing means whom the connection leads to.
            dst: match &packet.destination {
                None => own,
                id => id_from_wire(id.as_ref())?,
            },
            message,
        };
        let updates = packet
            .updates
            .iter()
            .map(|update| {
                let state = match update.state() {
                    wire::SwimState::Unspecified => return Err(malformed("unknown state")),
                    wire::SwimState::Alive => State::Alive,
                    wire::SwimState::Suspect => State::Suspect,
                    wire::SwimState::Down => State::Down,
                };
                let id = id_from_wire(update.id.as_ref())?;
                Ok(Member::new(id, incarnation(update.incarnation), state))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { header, updates })
    }

    /// Writes a datagram. It goes over a connection of the two whose packet it is: who they are needs no saying.
    pub(super) fn to_wire(&self) -> Bytes {
        use wire::SwimKind as Kind;
        let (kind, number, subject) = match &self.header.message {
            Message::Ping(number) => (Kind::Ping, *number, None),
            Message::Ack(number) => (Kind::Ack, *number, None),
            Message::PingReq { target, probe_number } => {
                (Kind::PingReq, *probe_number, id_to_wire(target))
            }
            Message::IndirectPing { origin, probe_number } => {
                (Kind::IndirectPing, *probe_number, id_to_wire(origin))
            }
            Message::IndirectAck { target, probe_number } => {
                (Kind::IndirectAck, *probe_number, id_to_wire(target))
            }
            Message::ForwardedAck { origin, probe_number } => {
                (Kind::ForwardedAck, *probe_number, id_to_wire(origin))
            }
            Message::Announce => (Kind::Announce, 0, None),
            Message::Feed => (Kind::Feed, 0, None),
            Message::Gossip | Message::Broadcast => (Kind::Gossip, 0, None),
            Message::TurnUndead => (Kind::TurnUndead, 0, None),
        };
        let updates = self.updates.iter().map(|member| wire::SwimMember {
            id: id_to_wire(member.id()),
            incarnation: member.incarnation().into(),
            state: match member.state() {
                State::Alive => wire::SwimState::Alive,
                State::Suspect => wire::SwimState::Suspect,
                State::Down => wire::SwimState::Down,
            }
            .into(),
        });
        let generation = self.header.src.generation;
        let source = wire::SwimIdentity { node: Bytes::new(), generation };
        wire::SwimPacket {
            source: Some(source),
            source_incarnation: self.header.src_incarnation.into(),
            destination: None,
            kind: kind.into(),
            probe_number: number.into(),
            subject,
            updates: updates.collect(),
        }
        .encode_to_vec()
        .into()
    }

    /// Writes what `foca::Foca::handle_data` reads.
    pub(super) fn to_foca(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 2 + MEMBER * self.updates.len());
        let mut codec = FixedCodec;
        // A vector is never too small.
        let _ = codec.encode_header(&self.header, &mut out);
        if self.header.message != Message::Announce && self.header.message != Message::TurnUndead {
            out.put_u16(u16::try_from(self.updates.len()).unwrap_or(0));
            for update in &self.updates {
                let _ = codec.encode_member(update, &mut out);
            }
        }
        out
    }

    /// Reads what foca hands out.
    pub(super) fn from_foca(mut data: &[u8]) -> Option<Self> {
        let mut codec = FixedCodec;
        let header = codec.decode_header(&mut data).ok()?;
        let mut updates = Vec::new();
        if data.remaining() >= 2 {
            let count = data.get_u16();
            for _ in 0..count {
                updates.push(codec.decode_member(&mut data).ok()?);
            }
        }
        Some(Self { header, updates })
    }
}
