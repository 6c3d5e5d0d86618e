//! A member through which others join, and that wants more of it than it should get.
//!
//! It is no signer. It takes the joiner's request as any member does, keeps its bytes, and hands it on to the signer. Asked
//! to lie, it first answers with a certificate that is not the joiner's. Then it tries to use what it has read: the
//! same request again, and the same for a key of its own.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use meshd_core::trust::{
    IdentityKey, JoinToken, NodeCertificate, NodeIdentity, accept_reply, build_request,
    signing::Kind,
};
use meshd_proto::{NodeKey, NodeName, wire};
use prost::Message;
use quinn::{Endpoint, crypto::rustls::QuicServerConfig};
use serde::{Deserialize, Serialize};
use wire::enrol_reply::Result as Outcome;

use super::{
    link::{self, ENROL, Link, PATIENCE, Shown, provider},
    member::Member,
    scene::unix_now,
};

/// Largest message that is read.
const LARGEST: usize = 1 << 20;

/// What the seed shall do.
#[derive(Debug, Clone)]
pub struct SeedPlan {
    /// State directory of the host whose identity is used.
    pub state: std::path::PathBuf,
    /// Where joiners come.
    pub listen: SocketAddr,
    /// QUIC port of the signer.
    pub signer: SocketAddr,
    /// Answer the first joiner with the seed's own certificate.
    pub lie_first: bool,
}

/// What it has read, and what it could do with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeedReport {
    /// The joiner's request, hexadecimal.
    pub request: String,
    /// The signer's answer, hexadecimal.
    pub reply: String,
    /// Attempts to use the request.
    pub replays: Vec<Replay>,
}

/// One attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replay {
    /// What was changed.
    pub change: String,
    /// `accepted`, or the code of the refusal.
    pub answer: String,
    /// For whom a certificate came.
    pub certificate_for: Option<NodeKey>,
}

/// Serves joiners until one was answered honestly; calls `ready` when it listens.
pub async fn serve(plan: &SeedPlan, ready: impl FnOnce()) -> Result<SeedReport> {
    let member = Member::load(&plan.state)?;
    let mut link = Link::open(&member, plan.signer).await?;
    ensure!(link.peer(&member)? != member.identity.public(), "the signer is this host");
    let endpoint = Endpoint::server(config(&member)?, plan.listen)
        .with_context(|| format!("cannot listen on {}", plan.listen))?;
    ready();
    let mut lie = plan.lie_first;
    let (request, reply) = loop {
        let incoming = endpoint.accept().await.context("the port is closed")?;
        let served = answer(incoming, &member, &mut link, lie).await;
        match served {
            Ok(_) if lie => lie = false,
            Ok(both) => break both,
            // Other members look for the daemon that ran here; they are no joiners.
            Err(why) => eprintln!("not a joiner: {why:#}"),
        }
    };
    let mut replays = Vec::new();
    for (change, altered) in alterations(&member, &request)? {
        let reply = forward(&mut link, altered).await?;
        replays.push(outcome(change, &reply)?);
    }
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    Ok(SeedReport { request: hex(&request), reply: hex(&reply), replays })
}

fn config(member: &Member) -> Result<quinn::ServerConfig> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(member.chain()?, member.private_key())?;
    tls.alpn_protocols = vec![ENROL.to_vec()];
    Ok(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?)))
}

/// One joiner: its request and the signer's reply.
async fn answer(
    incoming: quinn::Incoming,
    member: &Member,
    link: &mut Link,
    lie: bool,
) -> Result<(Bytes, Bytes)> {
    let connection = tokio::time::timeout(PATIENCE, incoming.accept()?)
        .await
        .map_err(|_| anyhow!("the handshake takes too long"))??;
    let (mut send, mut receive) = tokio::time::timeout(PATIENCE, connection.accept_bi())
        .await
        .map_err(|_| anyhow!("no request came"))??;
    let request = Bytes::from(receive.read_to_end(LARGEST).await?);
    let reply = forward(link, request.clone()).await?;
    let told = if lie { with_certificate_of(member, &reply)? } else { reply.clone() };
    send.write_all(&told).await?;
    send.finish()?;
    let _ = send.stopped().await;
    Ok((request, reply))
}

/// Hands a request on to the signer, as any member does.
async fn forward(link: &mut Link, request: Bytes) -> Result<Bytes> {
    let number = rand::random();
    let forward = wire::EnrolForward { id: number, request };
    link.send(wire::frame::Body::EnrolForward(forward)).await?;
    link.receive(|body| match body {
        wire::frame::Body::EnrolForwardReply(reply) if reply.id == number => Some(reply.reply),
        _ => None,
    })
    .await
}

/// The reply, with the seed's own certificate in place of the joiner's.
fn with_certificate_of(member: &Member, reply: &Bytes) -> Result<Bytes> {
    let mut reply = wire::EnrolReply::decode(reply.clone())?;
    let Some(Outcome::Accepted(accepted)) = &mut reply.result else {
        bail!("the signer refused");
    };
    accepted.certificate = member.identity.certificate.der.clone();
    Ok(reply.encode_to_vec().into())
}

fn outcome(change: &str, reply: &Bytes) -> Result<Replay> {
    let change = change.to_owned();
    match wire::EnrolReply::decode(reply.clone())?.result {
        Some(Outcome::Accepted(accepted)) => {
            let certificate = NodeCertificate::parse(&accepted.certificate)?;
            let certificate_for = Some(certificate.key);
            Ok(Replay { change, answer: "accepted".to_owned(), certificate_for })
        }
        Some(Outcome::Refused(refused)) => {
            Ok(Replay { change, answer: refused.code, certificate_for: None })
        }
        None => bail!("the signer's reply to {change:?} says nothing"),
    }
}

/// What a thief would try.
fn alterations(member: &Member, request: &Bytes) -> Result<Vec<(&'static str, Bytes)>> {
    let captured = wire::EnrolRequest::decode(request.clone())?;
    let body = wire::EnrolBody::decode(captured.body.clone())?;
    let mesh = member.anchors.mesh_id();
    let thief = IdentityKey::from_seed(&rand::random());
    let signed = |body: &wire::EnrolBody, token: Option<&IdentityKey>, by: Option<&IdentityKey>| {
        let body = body.encode_to_vec();
        let sign = |key: &IdentityKey, kind| Bytes::from(key.sign(kind, mesh, &body).to_vec());
        let token_signature = token
            .map_or_else(|| captured.token_signature.clone(), |key| sign(key, Kind::EnrolToken));
        let identity_signature = by.map_or_else(
            || captured.identity_signature.clone(),
            |key| sign(key, Kind::EnrolIdentity),
        );
        let request =
            wire::EnrolRequest { body: body.clone().into(), token_signature, identity_signature };
        Bytes::from(request.encode_to_vec())
    };
    let for_thief =
        wire::EnrolBody { identity_key: thief.public().0.to_vec().into(), ..body.clone() };
    let renamed = wire::EnrolBody { name: "thief".to_owned(), ..body.clone() };
    let wider = wire::EnrolBody {
        wanted: vec![wire::IpPrefix { address: vec![10, 0, 0, 0].into(), length: 8 }],
        ..body.clone()
    };
    let mut granted = for_thief.clone();
    if let Some(grant) = &mut granted.grant {
        let mut terms = wire::TokenGrant::decode(grant.payload.clone())?;
        terms.token_key = thief.public().0.to_vec().into();
        grant.payload = terms.encode_to_vec().into();
    }
    Ok(vec![
        ("nothing", request.clone()),
        ("another identity, signed by it", signed(&for_thief, None, Some(&thief))),
        (
            "another identity, and a token key of its own",
            signed(&for_thief, Some(&thief), Some(&thief)),
        ),
        (
            "another identity, and a grant to a token key of its own",
            signed(&granted, Some(&thief), Some(&thief)),
        ),
        ("another name", signed(&renamed, None, None)),
        ("a wider prefix", signed(&wider, None, None)),
        ("no signature by the token", {
            let mut bare = captured.clone();
            bare.token_signature = Bytes::new();
            bare.encode_to_vec().into()
        }),
        ("no signature by the identity", {
            let mut bare = captured.clone();
            bare.identity_signature = Bytes::new();
            bare.encode_to_vec().into()
        }),
    ])
}

/// Joins with a token, as an honest joiner does, under a name that nobody has.
pub(super) async fn enrol(
    token: &str,
    key: IdentityKey,
    seed: SocketAddr,
    name: &str,
) -> Result<NodeIdentity> {
    let token = JoinToken::parse(token)?;
    let name: NodeName = match token.node_name() {
        Some(name) => name.clone(),
        None => name.parse()?,
    };
    let request = build_request(&token, &key, &name, &[], rand::random(), unix_now());
    let (endpoint, connection) =
        link::dial(seed, vec![token.trust_anchor()], &token.server_name(), ENROL, Shown::Nothing)
            .await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&request.encode_to_vec()).await?;
    send.finish()?;
    let reply = wire::EnrolReply::decode(receive.read_to_end(LARGEST).await?.as_slice())?;
    connection.close(quinn::VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    let enrolment = accept_reply(&reply, &token, &key.public(), &name)?;
    Ok(NodeIdentity::new(key, Arc::new(enrolment.certificate))?)
}
