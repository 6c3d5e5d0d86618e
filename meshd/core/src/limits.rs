//! Every limit and default interval of the protocol, in one place.
//!
//! Sizes are bytes unless the name says otherwise. The reasons are in `docs/protocol.md`.

use std::time::Duration;

/// Largest payload of a signed record.
pub const RECORD_PAYLOAD: usize = 16 * 1024;
/// Largest leaf or intermediate certificate (DER).
pub const CERTIFICATE: usize = 32 * 1024;
/// Prefixes that one record may claim.
pub const RECORD_PREFIXES: usize = 1_024;
/// Endpoints that one record may name.
pub const RECORD_ENDPOINTS: usize = 8;
/// Node addresses that one record may name.
pub const RECORD_NODE_ADDRESSES: usize = 32;
/// UDP port of QUIC on a node's ULA, inside the tunnel: for members between which a gateway carries.
pub const INSIDE_PORT: u16 = 51_802;
/// Lanes of one record: mesh0 and, during a rotation, mesh1.
pub const RECORD_LANES: usize = 2;
/// Capabilities of one record, each of at most [`CAPABILITY`] bytes.
pub const RECORD_CAPABILITIES: usize = 32;
/// Length of one capability's name.
pub const CAPABILITY: usize = 32;
/// Length of the software version that a record may carry.
pub const SOFTWARE_VERSION: usize = 64;
/// Intermediates of one bundle.
pub const BUNDLE_INTERMEDIATES: usize = 64;
/// Roots that a bundle names: who knows none of them must join again.
pub const BUNDLE_ROOTS: usize = 5;
/// Keys that signers had before, whose tokens still admit.
pub const BUNDLE_FORMER: usize = 64;
/// Revocations that one signer may make.
pub const REVOCATIONS: usize = 10_000;
/// Payload of one revocation.
pub const REVOCATION: usize = 512;
/// Payload of a signer's time.
pub const SIGNER_TIME: usize = 128;
/// Certificates may end for so long after the newest signer's time, by this host's clock alone.
pub const SIGNER_TIME_HOLDS_SECONDS: i64 = 24 * 3600;
/// Signers that said nothing for so long were silent: what ended meanwhile could not be renewed.
pub const SIGNERS_SILENT_SECONDS: i64 = 48 * 3600;
/// So long, by the signers' time, certificates count after such a silence as they did before.
pub const SIGNERS_GRACE_SECONDS: i64 = 72 * 3600;
/// How often a signer signs the time.
pub const SIGNER_TIME_EVERY_SECONDS: i64 = 3600;
/// The kernel keeps the peer of a member for so long after its certificate ended.
pub const EXPIRED_PEER_SECONDS: i64 = 72 * 3600;
/// A person gets a new certificate for a node at most this often.
pub const RENEW_ANYWAY_SECONDS: i64 = 30;
/// A signer gives one node so many certificates in a row, when it wants other prefixes each time, and from then on one in
/// [`RENEW_ANYWAY_SECONDS`]: every certificate is an entry of the ledger for ever.
pub const RENEW_IN_A_ROW: i64 = 6;
/// A certificate that ended longer ago is not renewed: that takes a new token.
pub const RENEW_AFTER_END_SECONDS: i64 = 90 * 24 * 3600;
/// Largest frame on a stream between members.
pub const FRAME: usize = 128 * 1024;
/// Largest reply of a signer: root, a whole bundle, and a certificate. Fits a frame, in which it may be handed on.
pub const ENROL_REPLY: usize = 96 * 1024;
/// Largest request on an enrolment stream.
pub const ENROL_MESSAGE: usize = 16 * 1024;
/// Largest SWIM datagram; fits QUIC's minimum path MTU with its overhead.
pub const SWIM_PACKET: usize = 1_100;
/// Payload of a report: two keys, two generations, a number, a state.
pub const REPORT: usize = 128;
/// Members whose reports are compared in one exchange.
pub const REPORT_DIGESTS: usize = 1_500;
/// Members that a directory holds at most.
pub const DIRECTORY_MEMBERS: usize = 20_000;

/// How far ahead of this host's clock a record may be dated.
pub const CLOCK_SKEW_SECONDS: i64 = 600;
/// How often a node signs its record anew though nothing changed.
pub const RESIGN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Versions reserved in one fsynced block.
pub const VERSION_BLOCK: u64 = 64;
/// At most one own update in this time, after the first.
pub const OWN_UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// Mean interval of anti-entropy; each is within ±20 %.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// How long a refused record counts as held, so that two who disagree do not exchange it for ever.
pub const REFUSED_HELD_FOR: Duration = Duration::from_secs(600);
/// SWIM incarnations above this are nonsense.
pub const SWIM_INCARNATION: u16 = 1_000;
/// At most one SWIM identity renewal in this time.
pub const SWIM_RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// A member that is down this long may lose a contested prefix.
pub const CLAIM_DOWN_FOR: Duration = Duration::from_secs(30);
/// A tunnel without a handshake this long is not up (WireGuard's REJECT_AFTER_TIME).
pub const HANDSHAKE_FRESH: Duration = Duration::from_secs(180);
/// A signed leave is remembered this long.
pub const TOMBSTONE_SECONDS: i64 = 7 * 24 * 3600;
/// Keepalive towards a member that is down is switched off after this.
pub const KEEPALIVE_OFF_AFTER_DOWN: Duration = Duration::from_secs(600);
/// QUIC connections kept at once.
pub const CONNECTIONS: usize = 256;

/// Validity of a node certificate; it is renewed at two thirds of that.
pub const NODE_CERTIFICATE_SECONDS: i64 = 30 * 24 * 3600;
/// Life of a certificate that is issued off-line.
pub const ISSUED_SECONDS: std::ops::RangeInclusive<i64> = 3600..=365 * 24 * 3600;
/// Thousandths of a certificate's life after which its node asks for the next one: not all at once.
pub const RENEWAL_SHARE: std::ops::Range<i64> = 600..700;
/// A day.
pub const DAY_SECONDS: i64 = 24 * 3600;
/// Validity of a root and its intermediates.
pub const CA_CERTIFICATE_SECONDS: i64 = 20 * 365 * 24 * 3600;
/// A certificate is valid from this long before it was issued: clocks differ.
pub const CERTIFICATE_BACKDATE_SECONDS: i64 = 600;

/// Grants of one certificate. A signer writes at most twice [`ENROL_PREFIXES`] and the mesh address, so
/// that its reply fits [`ENROL_MESSAGE`].
pub const GRANTS: usize = 256;
/// Groups of one certificate or token.
pub const GROUPS: usize = 16;
/// Prefixes that a token grants, that it allows, and that one enrolment asks for.
pub const ENROL_PREFIXES: usize = 64;
/// Seeds of one token, each of at most [`TOKEN_SEED`] bytes.
pub const TOKEN_SEEDS: usize = 16;
/// Length of one seed: a DNS name and a port.
pub const TOKEN_SEED: usize = 280;
/// Nodes that one token may admit.
pub const TOKEN_USES: u32 = 10_000;
/// Largest identity document: sealed and with 64 prefixes it fits [`ENROL_MESSAGE`].
pub const IDENTITY_DOCUMENT: usize = 8 * 1024;
/// Largest set of an issuer's keys.
pub const IDENTITY_KEYS: usize = 256 * 1024;
/// An issuer is asked for its keys at most this often.
pub const IDENTITY_KEYS_ASK_SECONDS: i64 = 30;
/// Keys that are older are asked for again when they are needed.
pub const IDENTITY_KEYS_FRESH_SECONDS: i64 = 3600;
/// The same of keys in a file, which nobody minds being read.
pub const IDENTITY_KEYS_FILE_FRESH_SECONDS: i64 = 30;
/// Keys that are older, because their issuer did not answer, count no more.
pub const IDENTITY_KEYS_HOLD_SECONDS: i64 = 24 * 3600;
/// An issuer's clock may differ by so much.
pub const IDENTITY_LEEWAY_SECONDS: i64 = 60;
/// Length of an audience that an issuer's file names.
pub const IDENTITY_AUDIENCE: usize = 512;
/// Devices that cannot run meshd, on one host.
pub const DEVICES: usize = 256;
/// Prefixes of one of them.
pub const DEVICE_PREFIXES: usize = 16;
/// Longest life of a token.
pub const TOKEN_SECONDS: i64 = 365 * 24 * 3600;
