//! A QUIC connection with a victim, and what it tells: the records that it holds.
//!
//! One task per connection reads the victim's streams until the connection closes; its queue is unbounded, since the
//! victim is not the one that lies here.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use meshd_proto::{NodeKey, wire};
use prost::Message;
use quinn::{Connection, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{ClientConfig, RootCertStore, client::ResolvesClientCert};
use rustls_pki_types::TrustAnchor;
use tokio::sync::mpsc;
use wire::frame::Body;

use super::member::Member;

/// Between members.
pub(super) const MESH: &[u8] = b"meshd/1";
/// Between a joiner and a member.
pub(super) const ENROL: &[u8] = b"meshd-enrol/1";
/// What takes longer on this machine has gone wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Who was not answered asks again.
const AGAIN: Duration = Duration::from_secs(1);
/// Largest frame of the protocol, with room to spare.
const LARGEST: usize = 1 << 20;

/// What the adversary shows of itself.
pub(super) enum Shown {
    /// Nothing.
    Nothing,
    /// A certificate and a key, which need not belong together.
    Certificate(Arc<dyn ResolvesClientCert>),
}

/// Cryptography as the daemon uses it.
pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Dials `victim`, which must be of the mesh of `roots`.
pub(super) async fn dial(
    victim: SocketAddr,
    roots: Vec<TrustAnchor<'static>>,
    server_name: &str,
    alpn: &[u8],
    shown: Shown,
) -> Result<(Endpoint, Connection)> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore { roots });
    let mut tls = match shown {
        Shown::Nothing => builder.with_no_client_auth(),
        Shown::Certificate(resolver) => builder.with_client_cert_resolver(resolver),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let any = match victim {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = Endpoint::client(any)?;
    let connecting = endpoint.connect_with(config, victim, server_name)?;
    let connection = tokio::time::timeout(PATIENCE, connecting)
        .await
        .map_err(|_| anyhow!("{victim} does not answer"))?
        .with_context(|| format!("the handshake with {victim}"))?;
    Ok((endpoint, connection))
}

/// A connection as a member.
#[derive(Debug)]
pub(super) struct Link {
    endpoint: Endpoint,
    connection: Connection,
    frames: mpsc::UnboundedReceiver<Body>,
    pub(super) sent: Sent,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Sent {
    /// Streams.
    pub frames: u32,
    /// Datagrams.
    pub datagrams: u32,
    /// Bytes of both.
    pub bytes: u64,
}

impl Link {
    /// Connects as `member` and greets, as an honest daemon does.
    pub(super) async fn open(member: &Member, victim: SocketAddr) -> Result<Self> {
        let shown =
            Shown::Certificate(super::handshake::show(member.chain()?, &member.private_key())?);
        let anchors = &member.anchors;
        let (endpoint, connection) =
            dial(victim, anchors.trust_anchors(), &anchors.server_name(), MESH, shown).await?;
        let (queue, frames) = mpsc::unbounded_channel();
        tokio::spawn(read(connection.clone(), queue));
        let mut link = Self { endpoint, connection, frames, sent: Sent::default() };
        let hello = wire::Hello { observed: None, software_version: "0.1.0".to_owned() };
        link.send(Body::Hello(hello)).await?;
        Ok(link)
    }

    /// Who answered.
    pub(super) fn peer(&self, member: &Member) -> Result<NodeKey> {
        let identity =
            self.connection.peer_identity().context("the victim shows no certificate")?;
        let chain = identity
            .downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>()
            .map_err(|_| anyhow!("the victim's identity is no certificate"))?;
        let leaf = chain.first().context("an empty chain")?;
        Ok(member.anchors.check_chain(leaf, None)?.key)
    }

    /// Sends a frame.
    pub(super) async fn send(&mut self, body: Body) -> Result<()> {
        self.send_bytes(&wire::Frame { body: Some(body) }.encode_to_vec()).await
    }

    /// Sends bytes as a frame.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.count_frame(bytes.len());
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(bytes).await?;
        stream.finish()?;
        Ok(())
    }

    /// Sends bytes as a frame and gives the stream up before its end.
    pub(super) async fn send_and_abandon(&mut self, bytes: &[u8]) -> Result<()> {
        self.count_frame(bytes.len());
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(bytes).await?;
        stream.reset(quinn::VarInt::from_u32(9))?;
        Ok(())
    }

    fn count_frame(&mut self, bytes: usize) {
        self.sent.frames += 1;
        self.sent.bytes += bytes as u64;
    }

    /// Sends a datagram; waits when the queue is full.
    pub(super) async fn send_datagram(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.sent.datagrams += 1;
        self.sent.bytes += bytes.len() as u64;
        Ok(self.connection.send_datagram_wait(Bytes::from(bytes)).await?)
    }

    /// The records of `keys` that the victim holds. Frames are read in turn, so the answer also says that all that was
    /// sent before has been looked at.
    pub(super) async fn pull(&mut self, keys: &[NodeKey]) -> Result<Vec<wire::SignedRecord>> {
        let identity_keys = keys.iter().map(|key| Bytes::copy_from_slice(&key.0)).collect();
        self.send(Body::Pull(wire::Pull { identity_keys, ..Default::default() })).await?;
        let mut found: Vec<wire::SignedRecord> = Vec::new();
        let work = async {
            while found.len() < keys.len() {
                let body = self.frames.recv().await.context("the victim closed the connection")?;
                let Body::Push(push) = body else { continue };
                for record in push.records {
                    let key = wire::NodeRecord::decode(record.payload.clone())?.identity_key;
                    if keys.iter().any(|wanted| wanted.0[..] == key[..]) {
                        found.push(record);
                    }
                }
            }
            Ok(())
        };
        let ended: Result<Result<()>, _> = tokio::time::timeout(PATIENCE, work).await;
        ended
            .map_err(|_| anyhow!("the victim tells {} of {} records", found.len(), keys.len()))??;
        Ok(found)
    }

    /// Waits until the victim answers, which it does in turn: all that was sent before has been looked at. Whoever has
    /// spent its budget is asked to wait.
    pub(super) async fn settled(&mut self, victim: NodeKey) -> Result<()> {
        let own = |body| matches!(body, Body::Push(push) if !push.records.is_empty()).then_some(());
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let identity_keys = vec![Bytes::copy_from_slice(&victim.0)];
            self.send(Body::Pull(wire::Pull { identity_keys, ..Default::default() })).await?;
            match tokio::time::timeout(AGAIN, self.receive(own)).await {
                Ok(answer) => return answer,
                Err(_) if tokio::time::Instant::now() < end => {}
                Err(_) => return Err(anyhow!("the victim does not answer any more")),
            }
        }
    }

    /// The victim's answer to a request for a certificate, if it is a signer.
    pub(super) async fn enrol(&mut self, request: Bytes) -> Result<wire::EnrolReply> {
        let id = rand::random();
        self.send(Body::EnrolForward(wire::EnrolForward { id, request })).await?;
        let reply = |body| match body {
            Body::EnrolForwardReply(reply) if reply.id == id => Some(reply.reply),
            _ => None,
        };
        Ok(wire::EnrolReply::decode(self.receive(reply).await?)?)
    }

    /// Begins a frame and does not end it.
    pub(super) async fn send_without_end(&mut self, bytes: &[u8]) -> Result<quinn::SendStream> {
        self.count_frame(bytes.len());
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// The next frame that `wanted` takes.
    pub(super) async fn receive<T>(&mut self, wanted: impl Fn(Body) -> Option<T>) -> Result<T> {
        let work = async {
            loop {
                let body = self.frames.recv().await.context("the victim closed the connection")?;
                if let Some(found) = wanted(body) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| anyhow!("no answer came"))?
    }

    /// Waits until the victim closes the connection, and says why it did.
    pub(super) async fn closed(&self) -> Result<String> {
        let closed = tokio::time::timeout(PATIENCE, self.connection.closed()).await;
        Ok(closed.map_err(|_| anyhow!("the victim did not close the connection"))?.to_string())
    }

    /// Why the connection is closed, if it is.
    pub(super) fn close_reason(&self) -> Option<String> {
        self.connection.close_reason().map(|reason| reason.to_string())
    }

    /// Sends what waits and closes.
    pub(super) async fn finish(self) -> Result<Sent> {
        self.connection.close(quinn::VarInt::from_u32(0), b"");
        let idle = tokio::time::timeout(PATIENCE, self.endpoint.wait_idle()).await;
        ensure!(idle.is_ok(), "the connection does not end");
        Ok(self.sent)
    }
}

async fn read(connection: Connection, queue: mpsc::UnboundedSender<Body>) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let Ok(bytes) = stream.read_to_end(LARGEST).await else { continue };
        let Ok(frame) = wire::Frame::decode(bytes.as_slice()) else { continue };
        let Some(body) = frame.body else { continue };
        if queue.send(body).is_err() {
            return;
        }
    }
}
