//! Every lie by name, and how a receiver that does not believe it counts it.

use clap::ValueEnum;
use meshd_core::refusal::Code;
use serde::{Deserialize, Serialize};

/// What the adversary says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// No lie: its own record, right and newer. Must be taken, or all the rest proves nothing.
    Honest,
    /// A record of another's identity, signed by the adversary.
    OthersIdentity,
    /// Its own record under another's name.
    OthersName,
    /// Its own record, to which another's certificate is attached.
    OthersCertificate,
    /// The same, and the record says that it goes with that certificate.
    OthersCertificateNamed,
    /// Another's own record, with a prefix taken out, under the signature that it had.
    OthersRecordAltered,
    /// Another's WireGuard key, with a proof by the adversary's key.
    OthersWireguardKey,
    /// Another's WireGuard key with the proof that its owner published.
    OthersLane,
    /// A prefix that another was granted.
    OthersPrefix,
    /// The default routes.
    DefaultRoute,
    /// The address that another's identity has inside the mesh, as a prefix.
    OthersUla,
    /// The underlay address of a victim, as a prefix.
    VictimsUnderlay,
    /// Another's IPv4 address inside the mesh.
    OthersMeshAddress,
    /// No signature.
    NoSignature,
    /// A signature with one bit turned over.
    FlippedSignature,
    /// A payload with one bit turned over, under the signature that it had.
    FlippedPayload,
    /// A good record, signed as if for another mesh.
    SignedForOtherMesh,
    /// A record and certificate of another mesh of the same name.
    OtherMesh,
    /// A certificate by another CA that has this mesh's name and id, and grants everything.
    OtherCa,
    /// Its own certificate with another's address written into it.
    AlteredCertificate,
    /// A bundle that makes the other CA's intermediate one of this mesh.
    OtherCasBundle,
    /// A version below the one that is held.
    OldVersion,
    /// A version that nothing could ever follow.
    LastVersion,
    /// The record of a member that nobody holds, dated a month ago.
    PastDate,
    /// A record dated a day ahead.
    FutureDate,
    /// One prefix more than a record may have.
    TooManyPrefixes,
    /// A payload that is too large.
    OversizedRecord,
    /// An endpoint on the loopback.
    LoopbackEndpoint,
    /// SWIM: another member is down.
    ThirdPartyDown,
    /// SWIM: the victim itself is down.
    VictimDown,
    /// SWIM: thousands of members that do not exist.
    InventedMembers,
    /// SWIM: another member in generation 2^64 - 1.
    HugeGeneration,
    /// SWIM: another member in an incarnation that nobody reaches.
    HugeIncarnation,
    /// SWIM: a packet that says it is from another.
    SpoofedSource,
    /// SWIM: bytes that are no packet.
    GarbageDatagram,
    /// SWIM: a packet larger than any.
    OversizedDatagram,
    /// More packets than a member has reason to send.
    DatagramFlood,
    /// A frame larger than any.
    OversizedFrame,
    /// Bytes that are no frame.
    GarbageFrame,
    /// A frame that lacks its end.
    TruncatedFrame,
    /// A frame whose stream is given up in the middle. Nothing to refuse: the next frame must be taken.
    AbandonedFrame,
    /// A handshake with another CA's certificate for this mesh.
    OtherCaHandshake,
    /// A handshake between members without a certificate.
    NoCertificate,
    /// A handshake with another's certificate and the adversary's key.
    OthersCertificateHandshake,
    /// An enrolment request that is none.
    GarbageEnrolment,
    /// An enrolment request larger than any.
    OversizedEnrolment,
}

/// The counter that must rise at the victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Name of the counter, as the control API has it.
    pub counter: &'static str,
    /// Value of its label `reason`, if it has one.
    pub reason: Option<&'static str>,
    /// By how much at least.
    pub at_least: u64,
}

impl Attack {
    /// Every attack; [`Attack::Honest`] first.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What the victim must count.
    pub fn expected(self) -> Expected {
        match self {
            Self::Honest | Self::AbandonedFrame => {
                Expected { counter: "meshd_records_accepted_total", reason: None, at_least: 1 }
            }
            Self::OthersIdentity
            | Self::OthersRecordAltered
            | Self::NoSignature
            | Self::FlippedSignature
            | Self::FlippedPayload
            | Self::SignedForOtherMesh
            | Self::OtherCasBundle => refused(Code::BadSignature),
            Self::OthersName => refused(Code::NameMismatch),
            Self::OthersCertificate => refused(Code::CertificateMismatch),
            Self::OthersCertificateNamed => refused(Code::IdentityMismatch),
            Self::OthersWireguardKey | Self::OthersLane => refused(Code::WgKeyUnproven),
            Self::OthersPrefix | Self::DefaultRoute | Self::OthersUla | Self::VictimsUnderlay => {
                refused(Code::PrefixNotGranted)
            }
            Self::OthersMeshAddress => refused(Code::AddressNotGranted),
            Self::OtherMesh => refused(Code::OtherMesh),
            Self::OtherCa => refused(Code::UnknownIssuer),
            Self::AlteredCertificate => refused(Code::UntrustedChain),
            Self::OldVersion => refused(Code::OldVersion),
            Self::LastVersion
            | Self::GarbageDatagram
            | Self::GarbageFrame
            | Self::TruncatedFrame => refused(Code::Malformed),
            Self::PastDate => refused(Code::PastDate),
            Self::FutureDate => refused(Code::ClockSkew),
            Self::TooManyPrefixes | Self::OversizedRecord | Self::OversizedDatagram => {
                refused(Code::TooLarge)
            }
            Self::LoopbackEndpoint => refused(Code::EndpointRefused),
            Self::ThirdPartyDown | Self::VictimDown => refused(Code::SwimHearsayDown),
            // Many, and not all: a receiver that is busy may drop datagrams.
            Self::InventedMembers => {
                Expected { at_least: 1_000, ..refused(Code::SwimUnknownMember) }
            }
            Self::HugeGeneration => refused(Code::SwimGeneration),
            Self::HugeIncarnation => refused(Code::SwimIncarnation),
            Self::SpoofedSource => refused(Code::SwimSpoofedSource),
            Self::DatagramFlood => refused(Code::RateLimited),
            Self::OversizedFrame => connection_refused("frame_too_large"),
            Self::OtherCaHandshake | Self::OthersCertificateHandshake => {
                connection_refused("handshake_failed")
            }
            Self::NoCertificate => connection_refused(Code::UntrustedChain.as_str()),
            Self::OversizedEnrolment => connection_refused("enrol_too_large"),
            Self::GarbageEnrolment => Expected {
                counter: "meshd_enrolments_refused_total",
                reason: Some(Code::Malformed.as_str()),
                at_least: 1,
            },
        }
    }
}

fn refused(code: Code) -> Expected {
    Expected { counter: "meshd_refusals_total", reason: Some(code.as_str()), at_least: 1 }
}

fn connection_refused(reason: &'static str) -> Expected {
    Expected { counter: "meshd_connections_refused_total", reason: Some(reason), at_least: 1 }
}
