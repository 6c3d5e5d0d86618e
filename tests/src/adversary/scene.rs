//! One attack from start to end: connect, learn what is held, lie, wait until the victim has read it, report.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use meshd_core::now::UnixTime;
use meshd_proto::{NodeKey, wire};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    attack::Attack,
    door, gossip, handshake,
    link::{Link, Sent},
    member::Member,
    records, renewals, signed, stolen, streams, swim,
};

/// Against whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// State directory of the host whose identity is used.
    pub state: PathBuf,
    /// QUIC port of the victim.
    pub victim: SocketAddr,
    /// The member about whom lies are told.
    pub other: NodeKey,
    /// A token that admits more identities, for [`Attack::PastDate`] and those that alter one.
    pub token: Option<String>,
    /// A token for one identity, for [`Attack::UsedToken`].
    pub single: Option<String>,
    /// A token whose time is over.
    pub expired: Option<String>,
    /// Where the identity of a member lies that was revoked.
    pub revoked: Option<PathBuf>,
    /// Where certificate and key of a signer lie.
    pub stolen: Option<PathBuf>,
    /// Where those of one lie that is none any more.
    pub former: Option<PathBuf>,
}

/// What was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which lie.
    pub attack: Attack,
    /// Whose identity was used.
    pub identity: NodeKey,
    /// To whom it was told.
    pub victim: NodeKey,
    /// About whom.
    pub other: NodeKey,
    /// The adversary's record that the victim held before.
    pub held_version: u64,
    /// What was sent, greeting and questions included.
    pub sent: Sent,
    /// How the victim ended the connection, if it did.
    pub closed: Option<String>,
}

/// All that is known before the attack.
pub(super) struct Scene {
    /// The adversary's own record, as the victim holds it.
    pub(super) own: wire::NodeRecord,
    pub(super) victim_key: NodeKey,
    pub(super) victim: wire::NodeRecord,
    pub(super) other_key: NodeKey,
    pub(super) other: wire::SignedRecord,
    pub(super) other_record: wire::NodeRecord,
}

impl Scene {
    async fn learn(link: &mut Link, member: &Member, target: &Target) -> Result<Self> {
        let (own_key, victim_key) = (member.identity.public(), link.peer(member)?);
        let held = link.pull(&[own_key, victim_key, target.other]).await?;
        let find = |key: NodeKey| -> Result<(wire::SignedRecord, wire::NodeRecord)> {
            for signed in &held {
                let record = wire::NodeRecord::decode(signed.payload.clone())?;
                if record.identity_key[..] == key.0 {
                    return Ok((signed.clone(), record));
                }
            }
            Err(anyhow::anyhow!("the victim holds no record of {key}"))
        };
        let (other, other_record) = find(target.other)?;
        Ok(Self {
            own: find(own_key)?.1,
            victim_key,
            victim: find(victim_key)?.1,
            other_key: target.other,
            other,
            other_record,
        })
    }
}

/// Tells one lie.
pub async fn attack(attack: Attack, target: &Target) -> Result<Report> {
    let member = Member::load(&target.state)?;
    let mut link = Link::open(&member, target.victim).await?;
    let scene = Scene::learn(&mut link, &member, target).await.context("before the attack")?;
    let mut handshake = Sent::default();
    let mut closed = None;
    match attack {
        Attack::OtherCaHandshake
        | Attack::NoCertificate
        | Attack::OthersCertificateHandshake
        | Attack::GarbageEnrolment
        | Attack::OversizedEnrolment => {
            (handshake, closed) = handshake::attack(attack, &member, &scene, target).await?;
        }
        Attack::ThirdPartyDown
        | Attack::VictimDown
        | Attack::InventedMembers
        | Attack::HugeGeneration
        | Attack::HugeIncarnation
        | Attack::SpoofedSource
        | Attack::GarbageDatagram
        | Attack::OversizedDatagram
        | Attack::DatagramFlood => swim::attack(attack, &member, &scene, &mut link).await?,
        Attack::MadeUpToken
        | Attack::AlteredGrant
        | Attack::OthersGrant
        | Attack::UsedToken
        | Attack::ExpiredToken
        | Attack::RevokedRenewal
        | Attack::RevokedConnection
        | Attack::SlowEnrolment
        | Attack::EnrolmentCrowd
        | Attack::EnrolmentFlood => {
            (handshake, closed) = door::attack(attack, &member, target).await?;
        }
        Attack::ForgedRevocation
        | Attack::MembersRevocation
        | Attack::OtherCasRevocation
        | Attack::RevocationUnderTime
        | Attack::MembersBundle
        | Attack::OldBundle
        | Attack::ForgedTime
        | Attack::MembersTime
        | Attack::ReplayedTime
        | Attack::ForgedInvitation
        | Attack::UnaskedOffer => signed::attack(attack, &member, &scene, &mut link).await?,
        Attack::ReplayedRenewal
        | Attack::RenewalFlood
        | Attack::OthersRenewal
        | Attack::OthersCertificateRenewal
        | Attack::OtherCasRenewal
        | Attack::WiderRenewal
        | Attack::RenamedRenewal
        | Attack::OlderCertificate => {
            renewals::attack(attack, &member, &scene, &mut link, target).await?;
        }
        Attack::ExpiredConnection
        | Attack::ExpiredRecord
        | Attack::FormerSignersCertificate
        | Attack::FormerSignersRevocation
        | Attack::FormerSignersTime
        | Attack::FutureTime => {
            closed = stolen::attack(attack, &member, &scene, &mut link, target).await?;
        }
        Attack::LyingDigest | Attack::InventedEntries | Attack::OversizedAnnouncement => {
            gossip::attack(attack, &mut link).await?;
        }
        Attack::OversizedFrame
        | Attack::SlowStream
        | Attack::GarbageFrame
        | Attack::TruncatedFrame
        | Attack::AbandonedFrame => {
            closed = streams::attack(attack, &member, &scene, &mut link).await?;
        }
        _ => {
            let push = records::forge(attack, &member, &scene, target).await?;
            link.send(wire::frame::Body::Push(push)).await?;
        }
    }
    if link.close_reason().is_none() {
        // The victim answers in turn: it has read all of it by then.
        link.settled(scene.victim_key).await.context("after the attack")?;
    }
    let mut sent = link.finish().await?;
    sent.frames += handshake.frames;
    sent.bytes += handshake.bytes;
    Ok(Report {
        attack,
        identity: member.identity.public(),
        victim: scene.victim_key,
        other: scene.other_key,
        held_version: scene.own.version,
        sent,
        closed,
    })
}

/// The wall clock.
pub(super) fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
