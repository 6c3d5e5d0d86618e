//! What a signer's key would be good for: of one that still is a signer, and of one that was taken out.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use meshd_core::{
    now::UnixTime,
    trust::{Intermediate, NodeIdentity, NodeTerms, RevocationTerms},
};
use meshd_proto::wire;
use wire::frame::Body;

use super::{
    attack::Attack,
    door,
    foreign::MONTH,
    link::Link,
    member::{self, Member},
    records::{honest, sign},
    scene::{Scene, Target, unix_now},
};

/// Tells one lie; says how the victim ended the connection, where it does.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    link: &mut Link,
    target: &Target,
) -> Result<Option<String>> {
    let stolen = || signer(target.stolen.as_deref().context("this attack needs --stolen")?);
    let former = || signer(target.former.as_deref().context("this attack needs --former")?);
    let ended = || unix_now().plus(-30);
    let push = match attack {
        Attack::ExpiredConnection => {
            let identity = certified(&stolen()?, member, ended())?;
            return door::connects_as(&identity, member, target).await.map(Some);
        }
        Attack::ExpiredRecord => {
            let identity = certified(&stolen()?, member, ended())?;
            wire::Push { records: vec![record_with(identity, member, scene)], ..Default::default() }
        }
        Attack::FormerSignersCertificate => {
            let identity = certified(&former()?, member, unix_now().plus(MONTH))?;
            wire::Push { records: vec![record_with(identity, member, scene)], ..Default::default() }
        }
        Attack::FutureTime => {
            let time = stolen()?.sign_time(member.anchors.mesh_id(), unix_now().plus(12 * MONTH));
            wire::Push { time: Some(time), ..Default::default() }
        }
        Attack::FormerSignersTime => {
            let time = former()?.sign_time(member.anchors.mesh_id(), unix_now());
            wire::Push { time: Some(time), ..Default::default() }
        }
        Attack::FormerSignersRevocation => {
            let terms = RevocationTerms {
                key: scene.other_key,
                name: scene.other_record.name.parse()?,
                revoked_at: unix_now(),
                not_after: unix_now().plus(MONTH),
                subject: None,
            };
            let revocation = former()?.revoke(member.anchors.mesh_id(), &terms);
            wire::Push { revocations: vec![revocation], ..Default::default() }
        }
        _ => bail!("{} needs no signer's key", attack.name()),
    };
    link.send(Body::Push(push)).await?;
    Ok(None)
}

/// The authority of a signer, as its state directory holds it.
fn signer(from: &Path) -> Result<Intermediate> {
    let certificate = member::certificate(&from.join("intermediate.crt"))?;
    let seed = member::seed(&from.join("intermediate.key"))?;
    Ok(Intermediate::from_parts(&certificate, &seed)?)
}

/// The adversary's own name and rights in a certificate that ends at `not_after`.
fn certified(signer: &Intermediate, member: &Member, not_after: UnixTime) -> Result<NodeIdentity> {
    let own = &member.identity.certificate;
    let certificate = signer.issue_node(&NodeTerms {
        mesh: own.mesh.clone(),
        mesh_id: own.mesh_id,
        name: own.name.clone(),
        key: own.key,
        enrolment_id: own.enrolment_id,
        groups: own.groups.clone(),
        grants: own.grants.clone(),
        mesh_ipv4: own.mesh_ipv4,
        limits: own.limits.clone(),
        subject: own.subject,
        // Not older than the one that is held.
        not_before: own.not_before,
        not_after,
    })?;
    Ok(NodeIdentity::new(member.identity.key.clone(), Arc::new(certificate))?)
}

/// The adversary's next record, under that certificate.
fn record_with(identity: NodeIdentity, member: &Member, scene: &Scene) -> wire::SignedRecord {
    let mut record = honest(scene);
    record.certificate_hash = identity.certificate.hash.to_vec().into();
    let with = Member { identity, anchors: member.anchors.clone(), lane: member.lane.clone() };
    sign(&with, &record)
}
