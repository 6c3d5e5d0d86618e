//! What only the root and signers may sign: revocations, bundles, times, invitations.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use meshd_core::trust::{RevocationTerms, build_offer, signing::Kind};
use meshd_proto::wire;
use prost::Message;
use wire::frame::Body;

use super::{
    attack::Attack,
    foreign::{Foreign, MONTH},
    link::Link,
    member::Member,
    scene::{Scene, unix_now},
};

/// How often what is held is said again.
const REPEATED: usize = 50;

/// Tells one lie.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    link: &mut Link,
) -> Result<()> {
    let push = match attack {
        Attack::ForgedRevocation | Attack::MembersRevocation | Attack::OtherCasRevocation => {
            let revocation = revocation(attack, member, scene)?;
            wire::Push { revocations: vec![revocation], ..Default::default() }
        }
        Attack::RevocationUnderTime => {
            let payload = terms(scene, &signers_key(member)?).encode_to_vec().into();
            let signature = held_time(link).await?.signature;
            let revocation = wire::SignedRevocation { payload, signature };
            wire::Push { revocations: vec![revocation], ..Default::default() }
        }
        Attack::MembersBundle => {
            let held = &member.anchors.signed_bundle().payload;
            let mut bundle = wire::IntermediateBundle::decode(held.clone())?;
            bundle.version += 1_000;
            let (payload, signature) = sign(member, Kind::Bundle, &bundle);
            let bundle = Some(wire::SignedBundle { payload, signature });
            wire::Push { bundle, ..Default::default() }
        }
        Attack::OldBundle => return old_bundle(member, link).await,
        Attack::ForgedTime | Attack::MembersTime => {
            let signer = match attack {
                Attack::ForgedTime => signers_key(member)?,
                _ => member.identity.public().0,
            };
            let ahead = if attack == Attack::ForgedTime { 12 * MONTH } else { 0 };
            let time = unix_now().plus(ahead).0;
            let time = wire::SignerTime { signer_key: signer.to_vec().into(), time };
            let (payload, signature) = sign(member, Kind::Time, &time);
            let time = Some(wire::SignedTime { payload, signature });
            wire::Push { time, ..Default::default() }
        }
        Attack::ReplayedTime => return replayed_time(link).await,
        Attack::ForgedInvitation => {
            let invitation = wire::SignerInvitation {
                identity_key: scene.victim_key.0.to_vec().into(),
                nonce: vec![7; 16].into(),
                issued_at: unix_now().0,
                ipv4_pool: Some(wire::IpPrefix { address: vec![10, 0, 0, 0].into(), length: 8 }),
            };
            let (payload, signature) = sign(member, Kind::SignerInvite, &invitation);
            let invite = wire::SignerInvite { payload, signature };
            return link.send(Body::SignerInvite(invite)).await;
        }
        Attack::UnaskedOffer => {
            let (key, mesh) = (&member.identity.key, member.anchors.mesh_id());
            let offer = build_offer(key, mesh, &[7; 16], &rand::random());
            return link.send(Body::SignerOffer(offer)).await;
        }
        _ => bail!("{} is not about what signers sign", attack.name()),
    };
    link.send(Body::Push(push)).await
}

/// Signs as the adversary what it has no right to.
fn sign(member: &Member, kind: Kind, what: &impl Message) -> (Bytes, Bytes) {
    let payload = what.encode_to_vec();
    let signature = member.identity.key.sign(kind, member.anchors.mesh_id(), &payload);
    (payload.into(), signature.to_vec().into())
}

/// Public key of a signer that is in the bundle.
fn signers_key(member: &Member) -> Result<[u8; 32]> {
    let signers = member.anchors.signers();
    Ok(signers.first().context("the bundle names no signer")?.key)
}

fn terms(scene: &Scene, signer: &[u8; 32]) -> wire::Revocation {
    wire::Revocation {
        identity_key: scene.other_key.0.to_vec().into(),
        signer_key: signer.to_vec().into(),
        name: scene.other_record.name.clone(),
        revoked_at: unix_now().0,
        not_after: unix_now().plus(MONTH).0,
        ..wire::Revocation::default()
    }
}

fn revocation(attack: Attack, member: &Member, scene: &Scene) -> Result<wire::SignedRevocation> {
    if attack == Attack::OtherCasRevocation {
        let terms = RevocationTerms {
            key: scene.other_key,
            name: scene.other_record.name.parse()?,
            revoked_at: unix_now(),
            not_after: unix_now().plus(MONTH),
            subject: None,
        };
        return Ok(Foreign::of_same_mesh(member)?.revoke(&terms));
    }
    let signer = match attack {
        Attack::ForgedRevocation => signers_key(member)?,
        _ => member.identity.public().0,
    };
    let mut revocation = terms(scene, &signer);
    if attack == Attack::MembersRevocation {
        revocation.identity_key = scene.victim_key.0.to_vec().into();
        revocation.name.clone_from(&scene.victim.name);
    }
    let (payload, signature) = sign(member, Kind::Revocation, &revocation);
    Ok(wire::SignedRevocation { payload, signature })
}

/// Says that it knows nothing: a victim then tells its bundle and its time.
pub(super) async fn ask_for_all(link: &mut Link) -> Result<()> {
    link.send(Body::SyncRoot(wire::SyncRoot { exchange: rand::random(), ..Default::default() }))
        .await
}

async fn held_time(link: &mut Link) -> Result<wire::SignedTime> {
    ask_for_all(link).await?;
    let time = |body| if let Body::Push(push) = body { push.time } else { None };
    link.receive(time).await.context("the victim's time")
}

async fn held_bundle(link: &mut Link) -> Result<wire::IntermediateBundle> {
    ask_for_all(link).await?;
    let bundle = |body| if let Body::Push(push) = body { push.bundle } else { None };
    let held = link.receive(bundle).await.context("the victim's bundle")?;
    Ok(wire::IntermediateBundle::decode(held.payload)?)
}

/// The bundle that this host had before it was shut down.
async fn old_bundle(member: &Member, link: &mut Link) -> Result<()> {
    let (old, before) = (member.anchors.bundle_version(), held_bundle(link).await?);
    ensure!(old < before.version, "bundle {old} of this host is not older than {}", before.version);
    let bundle = Some(member.anchors.signed_bundle().clone());
    link.send(Body::Push(wire::Push { bundle, ..Default::default() })).await?;
    let after = held_bundle(link).await?;
    ensure!(after == before, "bundle {} gave way to {}", before.version, after.version);
    Ok(())
}

async fn replayed_time(link: &mut Link) -> Result<()> {
    let before = held_time(link).await?;
    for _ in 0..REPEATED {
        let push = wire::Push { time: Some(before.clone()), ..Default::default() };
        link.send(Body::Push(push)).await?;
    }
    let time = |time: wire::SignedTime| wire::SignerTime::decode(time.payload);
    let (before, after) = (time(before)?.time, time(held_time(link).await?)?.time);
    // Meanwhile the signer may have signed a newer one.
    ensure!(after >= before, "the time went back from {before} to {after}");
    Ok(())
}
