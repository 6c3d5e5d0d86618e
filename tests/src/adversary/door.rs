//! What strangers can reach: enrolment, with tokens that admit nobody, too slowly, too often; and what a member that was
//! revoked still tries.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use data_encoding::HEXLOWER as HEX;
use meshd_core::trust::{
    IdentityKey, JoinToken, NodeCertificate, NodeIdentity, RecordDraft, build_request,
    signing::Kind,
};
use meshd_proto::wire;
use prost::Message;
use quinn::{Connection, Endpoint};
use rustls_pki_types::TrustAnchor;
use wire::enrol_reply::Result as Answer;

use super::{
    attack::Attack,
    handshake::show,
    link::{self, ENROL, MESH, PATIENCE, Sent, Shown},
    member::{Member, private_key},
    renewals,
    scene::{Target, unix_now},
    seed,
};

/// More than are served at once.
const CROWD: usize = 40;
/// More than are looked at in a second, in groups that are not too many at once.
const FLOOD: usize = 80;
const GROUP: usize = 20;

/// Tries one, and says how the victim ended it, where it does.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    target: &Target,
) -> Result<(Sent, Option<String>)> {
    let mut sent = Sent::default();
    let mut refused = async |request: Bytes| -> Result<Option<String>> {
        sent.frames += 1;
        sent.bytes += request.len() as u64;
        match answer(member, target.victim, &request).await?.result {
            Some(Answer::Refused(refused)) => Ok(Some(refused.code)),
            other => bail!("{} was answered with {other:?}", attack.name()),
        }
    };
    let token = |text: &Option<String>| -> Result<JoinToken> {
        Ok(JoinToken::parse(text.as_deref().context("this attack needs a token")?)?)
    };
    let closed = match attack {
        Attack::MadeUpToken => refused(made_up(&token(&target.token)?)?).await?,
        Attack::AlteredGrant => refused(altered(&token(&target.token)?)?).await?,
        Attack::OthersGrant => refused(others(&token(&target.token)?)?).await?,
        Attack::ExpiredToken => refused(joins(&token(&target.expired)?)?).await?,
        Attack::UsedToken => {
            let token = token(&target.single)?;
            // Who is first is admitted, if nobody was before.
            let _ = answer(member, target.victim, &joins(&token)?).await?;
            refused(joins(&token)?).await?
        }
        Attack::RevokedRenewal => refused(renewals::request(&revoked(target)?, true)).await?,
        Attack::RevokedConnection => Some(connects_as(&revoked(target)?, member, target).await?),
        Attack::SlowEnrolment => {
            let (_endpoint, connection) = stranger(member, target.victim).await?;
            let _unended = connection.open_bi().await?;
            Some(closed(&connection).await?)
        }
        Attack::EnrolmentCrowd => Some(crowd(member, target.victim).await?),
        Attack::EnrolmentFlood => {
            flood(member, target.victim).await?;
            None
        }
        _ => bail!("{} is not about the door", attack.name()),
    };
    Ok((sent, closed))
}

async fn stranger(member: &Member, victim: SocketAddr) -> Result<(Endpoint, Connection)> {
    let anchors = &member.anchors;
    let (roots, name) = (anchors.trust_anchors(), anchors.server_name());
    link::dial(victim, roots, &name, ENROL, Shown::Nothing).await
}

async fn closed(connection: &Connection) -> Result<String> {
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
    Ok(closed.context("the victim does not end the connection")?.to_string())
}

async fn answer(member: &Member, victim: SocketAddr, request: &[u8]) -> Result<wire::EnrolReply> {
    ask(victim, member.anchors.trust_anchors(), &member.anchors.server_name(), request).await
}

/// Asks as a stranger.
async fn ask(
    victim: SocketAddr,
    roots: Vec<TrustAnchor<'static>>,
    server_name: &str,
    request: &[u8],
) -> Result<wire::EnrolReply> {
    let (endpoint, connection) =
        link::dial(victim, roots, server_name, ENROL, Shown::Nothing).await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(request).await?;
    send.finish()?;
    let reply = tokio::time::timeout(PATIENCE, receive.read_to_end(1 << 20)).await??;
    connection.close(quinn::VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok(wire::EnrolReply::decode(reply.as_slice())?)
}

/// A request of somebody new, with a token.
fn joins(token: &JoinToken) -> Result<Bytes> {
    let key = IdentityKey::from_seed(&rand::random());
    let name = format!("n{}", &key.public().to_string()[..8]).parse()?;
    let request = build_request(token, &key, &name, &[], rand::random(), unix_now());
    Ok(request.encode_to_vec().into())
}

/// The same with the grant changed, which then nobody has signed, and the signatures that a thief can make.
fn changed(
    token: &JoinToken,
    change: impl FnOnce(&mut wire::TokenGrant, &IdentityKey),
    sign_anew: bool,
) -> Result<Bytes> {
    let thief = IdentityKey::from_seed(&rand::random());
    let mut request = wire::EnrolRequest::decode(joins(token)?)?;
    let mut body = wire::EnrolBody::decode(request.body)?;
    let grant = body.grant.as_mut().context("a request without a grant")?;
    let mut terms = wire::TokenGrant::decode(grant.payload.clone())?;
    change(&mut terms, &thief);
    grant.payload = terms.encode_to_vec().into();
    if sign_anew {
        grant.signature =
            thief.sign(Kind::TokenGrant, token.mesh_id(), &grant.payload).to_vec().into();
    }
    body.identity_key = thief.public().0.to_vec().into();
    let body = body.encode_to_vec();
    let sign = |kind| Bytes::from(thief.sign(kind, token.mesh_id(), &body).to_vec());
    request.token_signature = sign(Kind::EnrolToken);
    request.identity_signature = sign(Kind::EnrolIdentity);
    request.body = body.into();
    Ok(request.encode_to_vec().into())
}

/// A token that nobody has made, by a signer that nobody knows.
fn made_up(token: &JoinToken) -> Result<Bytes> {
    let change = |terms: &mut wire::TokenGrant, thief: &IdentityKey| {
        terms.id = rand::random::<[u8; 16]>().to_vec().into();
        terms.token_key = thief.public().0.to_vec().into();
        terms.intermediate_key = terms.token_key.clone();
    };
    changed(token, change, true)
}

fn altered(token: &JoinToken) -> Result<Bytes> {
    let change = |terms: &mut wire::TokenGrant, thief: &IdentityKey| {
        terms.token_key = thief.public().0.to_vec().into();
        terms.uses = 9_999;
        terms.prefixes = vec![wire::IpPrefix { address: vec![10, 0, 0, 0].into(), length: 8 }];
    };
    changed(token, change, false)
}

fn others(token: &JoinToken) -> Result<Bytes> {
    changed(token, |_, _| {}, false)
}

/// Joins with a token and keeps what it got: an identity that the signer can then revoke.
pub async fn enrol_and_keep(token: &str, name: &str, seed: SocketAddr, to: &Path) -> Result<()> {
    let secret: [u8; 32] = rand::random();
    let key = IdentityKey::from_seed(&secret);
    let identity = seed::enrol(token, key, seed, name).await?;
    std::fs::create_dir_all(to)?;
    std::fs::write(to.join("identity"), HEX.encode(&secret))?;
    Ok(std::fs::write(to.join("certificate"), &identity.certificate.der)?)
}

/// What [`enrol_and_keep`] has kept, and what was revoked since.
pub(super) fn revoked(target: &Target) -> Result<NodeIdentity> {
    let from = target.revoked.as_deref().context("this attack needs --revoked")?;
    let secret = HEX.decode(&std::fs::read(from.join("identity"))?)?;
    let secret: [u8; 32] = secret.try_into().ok().context("the identity is no seed")?;
    let certificate = NodeCertificate::parse(&std::fs::read(from.join("certificate"))?)?;
    Ok(NodeIdentity::new(IdentityKey::from_seed(&secret), Arc::new(certificate))?)
}

/// A record of the revoked member.
pub(super) fn revoked_record(target: &Target) -> Result<wire::SignedRecord> {
    let boot_id = meshd_proto::BootId(rand::random());
    Ok(revoked(target)?.sign_record(&RecordDraft::default(), 1, boot_id, 1, unix_now()))
}

/// Connects as a member with this certificate, and says how it ended.
pub(super) async fn connects_as(
    identity: &NodeIdentity,
    member: &Member,
    target: &Target,
) -> Result<String> {
    let issuer = member.anchors.issuer_of(&identity.certificate).context("no issuer")?;
    let chain = vec![identity.certificate.der.to_vec().into(), issuer.to_vec().into()];
    let shown = Shown::Certificate(show(chain, &private_key(&identity.key))?);
    let anchors = &member.anchors;
    let (roots, name) = (anchors.trust_anchors(), anchors.server_name());
    match link::dial(target.victim, roots, &name, MESH, shown).await {
        Ok((_endpoint, connection)) => closed(&connection).await,
        Err(why) => Ok(format!("{why:#}")),
    }
}

/// More connections than are served at once, none of which asks anything.
async fn crowd(member: &Member, victim: SocketAddr) -> Result<String> {
    let mut open = Vec::new();
    let mut turned_away = None;
    for _ in 0..CROWD {
        let (endpoint, connection) = stranger(member, victim).await?;
        open.push((endpoint, connection));
    }
    for (_, connection) in &open {
        let busy = |reason: &quinn::ConnectionError| reason.to_string().contains("busy");
        let gone = tokio::time::timeout(std::time::Duration::from_millis(20), connection.closed());
        if let Ok(reason) = gone.await
            && busy(&reason)
        {
            turned_away = Some(reason.to_string());
        }
    }
    for (_, connection) in &open {
        connection.close(quinn::VarInt::from_u32(0), b"");
    }
    turned_away.context("nobody was turned away")
}

/// More requests in a second than are looked at.
async fn flood(member: &Member, victim: SocketAddr) -> Result<()> {
    let mut answered = 0;
    for _ in 0..FLOOD / GROUP {
        let mut group = tokio::task::JoinSet::new();
        for _ in 0..GROUP {
            let (roots, name) = (member.anchors.trust_anchors(), member.anchors.server_name());
            group.spawn(async move { ask(victim, roots, &name, &[0xff; 200]).await });
        }
        answered += group.join_all().await.iter().filter(|one| one.is_ok()).count();
    }
    ensure!(answered > 0, "the victim answers nobody");
    Ok(())
}
