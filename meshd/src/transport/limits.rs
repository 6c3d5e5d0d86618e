//! Limits of the QUIC port. quinn's defaults are far larger than a stranger should be given.

use std::{sync::Arc, time::Duration};

use quinn::{IdleTimeout, TransportConfig, VarInt};

/// Handshakes that may be pending before newcomers must prove their address (Retry).
pub(super) const HANDSHAKES_BEFORE_RETRY: usize = 16;
/// What is queued for a peer that is out has so long to be sent.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);
/// Handshakes that may be pending at all.
pub(super) const HANDSHAKES: usize = 256;
/// Bytes buffered for handshakes that were not accepted yet.
pub(super) const INCOMING_BUFFER: u64 = 4 << 20;
/// A handshake, client hello to application hello, takes no longer.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Enrolments in progress at once.
pub(super) const ENROLMENTS: usize = 32;
/// A joiner has this long to send its request.
pub(super) const ENROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The whole enrolment, with a signer elsewhere, takes no longer.
pub(super) const ENROL_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer has this long to send a whole frame once it began.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that carries nothing is closed after this.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// Frames waiting for one peer; beyond it they are dropped and anti-entropy makes up for it.
pub(super) const FRAME_QUEUE: usize = 256;
/// Frames and datagrams waiting for the loop.
pub(super) const EVENT_QUEUE: usize = 1024;
/// Messages kept for a peer while it is dialled.
pub(super) const DIAL_QUEUE: usize = 64;
/// Unidirectional streams that a peer may have open. One that is read is made up for when an eighth of them were: fewer
/// would cost a packet every other time.
pub(super) const STREAMS: u32 = 32;
/// Bytes in flight towards us per connection, and per stream.
const WINDOW: u32 = 256 << 10;
const DATAGRAM_BUFFER: usize = 64 << 10;
/// A first packet that is lost is sent again after three times as long; RFC 9002, 6.2.2, has 333 ms, and a host whose
/// daemon starts a moment before its seed's would wait a second. Where a path is slower, a packet is sent twice.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// What every path carries (RFC 9000, 14). Larger packets are not tried: to find out what a path carries costs more bytes
/// than most connections ever carry.
const MTU: u16 = 1_200;

/// The transport parameters of both roles.
pub(super) fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(WINDOW))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .initial_mtu(MTU)
        .mtu_discovery_config(None)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        // Some drivers answer segmentation offload with EIO; gossip does not need the speed.
        .enable_segmentation_offload(false);
    Arc::new(config)
}
