//! How foca names a member, and the encoding between foca and the filter.
//!
//! The encoding never leaves the process. Its sizes are those that the Protobuf form can need at most,
//! so that foca, which fills its packets up, never makes one too large for a datagram.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};
use meshd_proto::NodeHash;

/// A member at one start (or renewal): addresses come from records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SwimId {
    /// Who.
    pub(crate) node: NodeHash,
    /// The higher one is the newer one.
    pub(crate) generation: u64,
}

impl Identity for SwimId {
    type Addr = NodeHash;

    /// Never by itself: foca would do it as often as anybody asks for it.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeHash {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.generation > other.generation
    }
}

/// Bytes of an encoded header: two identities of 31, a subject of 31, incarnation, kind, probe number.
pub(super) const HEADER: usize = 104;
/// Bytes of an encoded member: an identity of 31, incarnation, state, and two of framing.
pub(super) const MEMBER: usize = 40;
/// Largest packet that foca may make: as many members as fit into a datagram in any case.
pub(super) const PACKET: usize =
    HEADER + 2 + (crate::limits::SWIM_PACKET - HEADER) / MEMBER * MEMBER;

const ID: usize = 24;

/// The encoding between foca and the filter.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedCodec;

/// A buffer that is too small, or not ours.
#[derive(Debug, thiserror::Error)]
#[error("not a packet of this process")]
pub(super) struct CodecError;

fn put_id(id: &SwimId, buf: &mut impl BufMut) {
    buf.put_slice(&id.node.0);
    buf.put_u64(id.generation);
}

fn take_id(buf: &mut impl Buf) -> SwimId {
    let mut node = [0; 16];
    buf.copy_to_slice(&mut node);
    SwimId { node: NodeHash(node), generation: buf.get_u64() }
}

impl Codec<SwimId> for FixedCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<SwimId>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        if buf.remaining_mut() < HEADER {
            return Err(CodecError);
        }
        let none = SwimId { node: NodeHash([0; 16]), generation: 0 };
        let (kind, number, subject) = match &header.message {
            Message::Ping(number) => (1, *number, none),
            Message::Ack(number) => (2, *number, none),
            Message::PingReq { target, probe_number } => (3, *probe_number, *target),
            Message::IndirectPing { origin, probe_number } => (4, *probe_number, *origin),
            Message::IndirectAck { target, probe_number } => (5, *probe_number, *target),
            Message::ForwardedAck { origin, probe_number } => (6, *probe_number, *origin),
            Message::Announce => (7, 0, none),
            Message::Feed => (8, 0, none),
            Message::Gossip => (9, 0, none),
            Message::TurnUndead => (10, 0, none),
            Message::Broadcast => (11, 0, none),
        };
        buf.put_u8(kind);
        buf.put_u8(number);
        put_id(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_id(&header.dst, &mut buf);
        put_id(&subject, &mut buf);
        buf.put_bytes(0, HEADER - 3 * ID - 4);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<SwimId>, CodecError> {
        if buf.remaining() < HEADER {
            return Err(CodecError);
        }
        let (kind, probe_number) = (buf.get_u8(), buf.get_u8());
        let src = take_id(&mut buf);
        let src_incarnation = buf.get_u16();
        let dst = take_id(&mut buf);
        let subject = take_id(&mut buf);
        buf.advance(HEADER - 3 * ID - 4);
        let message = match kind {
            1 => Message::Ping(probe_number),
            2 => Message::Ack(probe_number),
            3 => Message::PingReq { target: subject, probe_number },
            4 => Message::IndirectPing { origin: subject, probe_number },
            5 => Message::IndirectAck { target: subject, probe_number },
            6 => Message::ForwardedAck { origin: subject, probe_number },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::TurnUndead,
            11 => Message::Broadcast,
            _ => return Err(CodecError),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &Member<SwimId>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        if buf.remaining_mut() < MEMBER {
            return Err(CodecError);
        }
        put_id(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        buf.put_bytes(0, MEMBER - ID - 3);
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<SwimId>, CodecError> {
        if buf.remaining() < MEMBER {
            return Err(CodecError);
        }
        let id = take_id(&mut buf);
        let incarnation = buf.get_u16();
        let state = match buf.get_u8() {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            _ => return Err(CodecError),
        };
        buf.advance(MEMBER - ID - 3);
        Ok(Member::new(id, incarnation, state))
    }
}
