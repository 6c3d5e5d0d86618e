//! Requests for renewal that should bring nothing, and what is done with a certificate that was replaced.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use data_encoding::BASE64;
use meshd_core::trust::{NodeCertificate, NodeIdentity, build_renewal, signing::Kind};
use meshd_proto::wire;
use prost::Message;
use wire::{enrol_reply::Result as Answer, frame::Body};

use super::{
    attack::Attack,
    foreign::Foreign,
    link::Link,
    member::Member,
    records::{honest, sign},
    scene::{Scene, Target, unix_now},
};

/// How often one request is played.
const REPLAYED: usize = 20;
/// More than a member's budget of work.
const FLOOD: u64 = 300;
/// A signer gives a member no second certificate within half a minute.
const PATIENCE: Duration = Duration::from_secs(45);

/// Sends one, to a signer.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    link: &mut Link,
    target: &Target,
) -> Result<()> {
    let own = &member.identity.certificate;
    match attack {
        Attack::ReplayedRenewal => {
            let request = request(&member.identity, true);
            let mut certificates = BTreeSet::new();
            for _ in 0..REPLAYED {
                let given = accepted(link.enrol(request.clone()).await?)?;
                certificates.insert(given.der);
            }
            ensure!(certificates.len() == 1, "{} certificates for one request", certificates.len());
        }
        Attack::RenewalFlood => {
            for id in 0..FLOOD {
                let request = request(&member.identity, true);
                link.send(Body::EnrolForward(wire::EnrolForward { id, request })).await?;
            }
        }
        Attack::OthersRenewal => {
            let other = NodeCertificate::parse(&scene.other.certificate)?;
            refused(
                link,
                altered(member, |body| {
                    body.identity_key = other.key.0.to_vec().into();
                    body.certificate = other.der.clone();
                })?,
            )
            .await?;
        }
        Attack::OthersCertificateRenewal => {
            let certificate = scene.other.certificate.clone();
            refused(link, altered(member, |body| body.certificate = certificate)?).await?;
        }
        Attack::OtherCasRenewal => {
            let identity = Foreign::of_same_mesh(member)?.identity(member)?;
            refused(link, request(&identity, true)).await?;
        }
        Attack::WiderRenewal => {
            let others = scene.other_record.prefixes.clone();
            let request = altered(member, |body| {
                body.wanted = others;
                for address in [[0, 0, 0, 0], [10, 0, 0, 0]] {
                    let length = if address[0] == 0 { 0 } else { 8 };
                    let address = address.to_vec().into();
                    body.wanted.push(wire::IpPrefix { address, length });
                }
            })?;
            let given = accepted(link.enrol(request).await?)?;
            ensure!(given.grants == own.grants, "{:?} became {:?}", own.grants, given.grants);
        }
        Attack::RenamedRenewal => {
            let name = scene.other_record.name.clone();
            let request = altered(member, |body| body.name = name)?;
            let given = accepted(link.enrol(request).await?)?;
            ensure!(given.name == own.name, "{} is called {} now", own.name, given.name);
        }
        Attack::OlderCertificate => older(member, scene, link, target).await?,
        _ => bail!("{} is not about renewals", attack.name()),
    }
    Ok(())
}

/// An honest request of `identity`.
pub(super) fn request(identity: &NodeIdentity, anyway: bool) -> Bytes {
    build_renewal(identity, &[], anyway, rand::random(), unix_now()).encode_to_vec().into()
}

/// The adversary's request with changes, signed by the adversary.
fn altered(member: &Member, change: impl FnOnce(&mut wire::EnrolBody)) -> Result<Bytes> {
    let mut request = wire::EnrolRequest::decode(request(&member.identity, true))?;
    let mut body = wire::EnrolBody::decode(request.body)?;
    change(&mut body);
    let body = body.encode_to_vec();
    let (key, mesh) = (&member.identity.key, member.anchors.mesh_id());
    request.identity_signature = key.sign(Kind::EnrolIdentity, mesh, &body).to_vec().into();
    request.body = body.into();
    Ok(request.encode_to_vec().into())
}

fn accepted(reply: wire::EnrolReply) -> Result<NodeCertificate> {
    match reply.result {
        Some(Answer::Accepted(accepted)) => Ok(NodeCertificate::parse(&accepted.certificate)?),
        other => bail!("the signer said {other:?}"),
    }
}

async fn refused(link: &mut Link, request: Bytes) -> Result<()> {
    match link.enrol(request).await?.result {
        Some(Answer::Refused(_)) => Ok(()),
        other => bail!("the signer said {other:?}"),
    }
}

/// Gets its next certificate and publishes it; then comes with the one before.
async fn older(member: &Member, scene: &Scene, link: &mut Link, target: &Target) -> Result<()> {
    let before = &member.identity.certificate;
    let start = std::time::Instant::now();
    let next = loop {
        let next = accepted(link.enrol(request(&member.identity, true)).await?)?;
        if next.not_before > before.not_before {
            break next;
        }
        ensure!(start.elapsed() < PATIENCE, "the signer gives no newer certificate");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    keep(&target.state, &next)?;
    let identity = NodeIdentity::new(member.identity.key.clone(), Arc::new(next))?;
    let newer = Member { identity, anchors: member.anchors.clone(), lane: member.lane.clone() };
    let mut record = honest(scene);
    record.certificate_hash = newer.identity.certificate.hash.to_vec().into();
    let honest = sign(&newer, &record);
    record.version += 1;
    record.certificate_hash = before.hash.to_vec().into();
    let records = vec![honest, sign(member, &record)];
    link.send(Body::Push(wire::Push { records, ..Default::default() })).await
}

/// What the host's own daemon shall come back with: the newest certificate.
fn keep(state: &Path, certificate: &NodeCertificate) -> Result<()> {
    let body = BASE64.encode(&certificate.der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(std::str::from_utf8)
        .collect::<Result<_, _>>()
        .context("base64 is text")?;
    let pem =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    let path = state.join("pki/node.crt");
    std::fs::write(&path, pem).with_context(|| path.display().to_string())
}
