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
    /// A revocation of another in the signer's name, signed by the adversary.
    ForgedRevocation,
    /// A revocation of the victim, which the adversary signs as itself.
    MembersRevocation,
    /// A revocation of another by the signer of another CA.
    OtherCasRevocation,
    /// A revocation of another under the signature that the signer gave to the time.
    RevocationUnderTime,
    /// The bundle with a higher version, signed by the adversary.
    MembersBundle,
    /// An older bundle that the root has signed.
    OldBundle,
    /// A time a year ahead in the signer's name, signed by the adversary.
    ForgedTime,
    /// A time that the adversary signs as itself.
    MembersTime,
    /// The signer's time that is held, many times.
    ReplayedTime,
    /// An invitation to become a signer, signed by the adversary.
    ForgedInvitation,
    /// The offer to be a signer that nobody has asked for.
    UnaskedOffer,
    /// A record with the certificate that it had before its newest one.
    OlderCertificate,
    /// One request for renewal, twenty times.
    ReplayedRenewal,
    /// More requests for renewal than a member has reason to send.
    RenewalFlood,
    /// A request for renewal of another's certificate, signed by the adversary.
    OthersRenewal,
    /// A request for renewal of its own identity, to which another's certificate is attached.
    OthersCertificateRenewal,
    /// A request for renewal of a certificate by another CA.
    OtherCasRenewal,
    /// A request for renewal that wants everything, and what another has.
    WiderRenewal,
    /// A request for renewal under another's name.
    RenamedRenewal,
    /// A connection of a member that was revoked.
    RevokedConnection,
    /// A record of a member that was revoked.
    RevokedRecord,
    /// A request for renewal of a member that was revoked.
    RevokedRenewal,
    /// A connection with a certificate that a signer issued and that has ended.
    ExpiredConnection,
    /// A record with a certificate that has ended.
    ExpiredRecord,
    /// A time a year ahead, signed with a signer's own key.
    FutureTime,
    /// A record with a certificate by a signer that was taken out since.
    FormerSignersCertificate,
    /// A revocation of another by a signer that was taken out since.
    FormerSignersRevocation,
    /// A time by a signer that was taken out since.
    FormerSignersTime,
    /// A token that somebody made up.
    MadeUpToken,
    /// A token whose grant has more uses and prefixes than its signer has signed.
    AlteredGrant,
    /// Another's grant, without its token's key.
    OthersGrant,
    /// A token that has admitted as many as it may.
    UsedToken,
    /// A token whose time is over.
    ExpiredToken,
    /// A stream that is never ended.
    SlowStream,
    /// An enrolment request that is never sent.
    SlowEnrolment,
    /// More enrolments at once than are served.
    EnrolmentCrowd,
    /// More enrolments in a second than are looked at.
    EnrolmentFlood,
    /// A digest by which everything is newer elsewhere.
    LyingDigest,
    /// Entries of records that do not exist, more than may be asked after.
    InventedEntries,
    /// More records announced than fit a frame.
    OversizedAnnouncement,
}

/// How an attack ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The victim counts it.
    Counted(Expected),
    /// There is nothing to refuse, and nothing comes of it: what remains, which the adversary has looked at.
    Without(&'static str),
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

    /// What it is, in a line.
    pub fn description(self) -> String {
        let value = self.to_possible_value();
        let help = value.and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// It is about what only a signer decides.
    pub fn is_for_signers(self) -> bool {
        matches!(
            self,
            Self::ReplayedRenewal
                | Self::RenewalFlood
                | Self::OthersRenewal
                | Self::OthersCertificateRenewal
                | Self::OtherCasRenewal
                | Self::WiderRenewal
                | Self::RenamedRenewal
                | Self::OlderCertificate
                | Self::RevokedRenewal
                | Self::UsedToken
                | Self::ExpiredToken
        )
    }

    /// How it must end.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Honest | Self::AbandonedFrame => counted("meshd_records_accepted_total", None, 1),
            Self::OthersIdentity
            | Self::OthersRecordAltered
            | Self::NoSignature
            | Self::FlippedSignature
            | Self::FlippedPayload
            | Self::SignedForOtherMesh
            | Self::OtherCasBundle
            | Self::ForgedRevocation
            | Self::RevocationUnderTime
            | Self::MembersBundle
            | Self::ForgedTime => refused(Code::BadSignature),
            Self::MembersRevocation
            | Self::OtherCasRevocation
            | Self::MembersTime
            | Self::FormerSignersCertificate
            | Self::FormerSignersRevocation
            | Self::FormerSignersTime => refused(Code::UnknownIssuer),
            Self::ExpiredRecord => refused(Code::CertificateExpired),
            Self::ExpiredConnection => connection_refused(Code::CertificateExpired.as_str()),
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
            Self::FutureDate | Self::FutureTime => refused(Code::ClockSkew),
            Self::TooManyPrefixes
            | Self::OversizedRecord
            | Self::OversizedDatagram
            | Self::OversizedAnnouncement => refused(Code::TooLarge),
            Self::LoopbackEndpoint => refused(Code::EndpointRefused),
            Self::ThirdPartyDown | Self::VictimDown => refused(Code::SwimHearsayDown),
            // Many, and not all: a receiver that is busy may drop datagrams.
            Self::InventedMembers => {
                let reason = Code::SwimUnknownMember.as_str();
                counted("meshd_refusals_total", Some(reason), 1_000)
            }
            Self::HugeGeneration => refused(Code::SwimGeneration),
            Self::HugeIncarnation => refused(Code::SwimIncarnation),
            Self::SpoofedSource => refused(Code::SwimSpoofedSource),
            Self::DatagramFlood | Self::RenewalFlood | Self::InventedEntries => {
                refused(Code::RateLimited)
            }
            Self::OlderCertificate => refused(Code::SupersededCertificate),
            Self::RevokedRecord => refused(Code::Revoked),
            Self::RevokedConnection => connection_refused(Code::Revoked.as_str()),
            Self::SlowStream => connection_refused("slow_stream"),
            Self::SlowEnrolment => connection_refused("enrol_slow"),
            Self::EnrolmentCrowd => connection_refused("too_many_enrolments"),
            Self::EnrolmentFlood => enrolment_refused(Code::RateLimited),
            Self::RevokedRenewal => enrolment_refused(Code::Revoked),
            Self::OthersRenewal | Self::AlteredGrant | Self::OthersGrant => {
                enrolment_refused(Code::BadSignature)
            }
            Self::OthersCertificateRenewal => enrolment_refused(Code::IdentityMismatch),
            Self::OtherCasRenewal => enrolment_refused(Code::UnknownIssuer),
            Self::MadeUpToken => enrolment_refused(Code::TokenUnknown),
            Self::UsedToken => enrolment_refused(Code::TokenUsed),
            Self::ExpiredToken => enrolment_refused(Code::TokenExpired),
            Self::ForgedInvitation => signership_refused(Code::BadSignature.as_str()),
            Self::UnaskedOffer => signership_refused("not_invited"),
            Self::OversizedFrame => connection_refused("frame_too_large"),
            Self::OtherCaHandshake | Self::OthersCertificateHandshake => {
                connection_refused("handshake_failed")
            }
            Self::NoCertificate => connection_refused(Code::UntrustedChain.as_str()),
            Self::OversizedEnrolment => connection_refused("enrol_too_large"),
            Self::GarbageEnrolment => enrolment_refused(Code::Malformed),
            Self::OldBundle => Outcome::Without("the newer bundle stays"),
            Self::ReplayedTime => Outcome::Without("the same time stays"),
            Self::ReplayedRenewal => Outcome::Without("one certificate, the same each time"),
            Self::WiderRenewal => Outcome::Without("the rights that it had"),
            Self::RenamedRenewal => Outcome::Without("the name that it had"),
            Self::LyingDigest => Outcome::Without("an answer, and the records that there are"),
        }
    }
}

fn counted(counter: &'static str, reason: Option<&'static str>, at_least: u64) -> Outcome {
    Outcome::Counted(Expected { counter, reason, at_least })
}

fn refused(code: Code) -> Outcome {
    counted("meshd_refusals_total", Some(code.as_str()), 1)
}

fn connection_refused(reason: &'static str) -> Outcome {
    counted("meshd_connections_refused_total", Some(reason), 1)
}

fn enrolment_refused(code: Code) -> Outcome {
    counted("meshd_enrolments_refused_total", Some(code.as_str()), 1)
}

fn signership_refused(reason: &'static str) -> Outcome {
    counted("meshd_signerships_refused_total", Some(reason), 1)
}
