//! One standing connection: its reader, its writer, what it is known by.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use meshd_core::{address, limits::FRAME, trust::NodeCertificate};
use meshd_proto::{NodeKey, wire};
use prost::Message;
use quinn::{Connection, SendStream, VarInt};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{Event, Report, limits};

/// Streams whose acknowledgement a flush waits for. Older ones were read, or there would be no newer ones.
const RECENT: usize = limits::STREAMS as usize;

/// A connection whose peer was authenticated.
pub(crate) struct Live {
    connection: Connection,
    certificate: Arc<NodeCertificate>,
    dialled: Option<SocketAddr>,
    queue: mpsc::Sender<Outgoing>,
    started: Instant,
    /// Milliseconds after `started` of the last use.
    used: Arc<AtomicU64>,
}

enum Outgoing {
    Frame(Bytes),
    Greeting,
    Flush(oneshot::Sender<()>),
}

impl Live {
    /// Starts the tasks of a connection that `certificate` authenticated, and greets the peer.
    pub(super) fn start(
        connection: Connection,
        certificate: &Arc<NodeCertificate>,
        dialled: Option<SocketAddr>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (queue, outgoing) = mpsc::channel(limits::FRAME_QUEUE);
        let used = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let live = Self {
            connection: connection.clone(),
            certificate: certificate.clone(),
            dialled,
            queue,
            started,
            used: used.clone(),
        };
        live.send_frame(hello(&connection));
        tokio::spawn(write(connection.clone(), certificate.key, outgoing, reports.clone()));
        tokio::spawn(read(connection, certificate.key, reports, started, used));
        live
    }

    pub(crate) fn peer(&self) -> NodeKey {
        self.certificate.key
    }

    pub(super) fn certificate(&self) -> Arc<NodeCertificate> {
        self.certificate.clone()
    }

    pub(super) fn dialled(&self) -> Option<SocketAddr> {
        self.dialled
    }

    pub(super) fn remote(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    pub(super) fn stable_id(&self) -> usize {
        self.connection.stable_id()
    }

    pub(super) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    pub(super) fn last_used(&self) -> Instant {
        self.started + Duration::from_millis(self.used.load(Ordering::Relaxed))
    }

    fn touch(&self) {
        touch(self.started, &self.used);
    }

    pub(super) fn send_datagram(&self, bytes: Bytes) {
        self.touch();
        if let Err(error) = self.connection.send_datagram(bytes) {
            // SWIM takes a lost datagram for what it is.
            tracing::debug!(peer = %self.peer(), %error, "datagram not sent");
        }
    }

    /// False when the peer is too slow and the frame was dropped.
    pub(super) fn send_frame(&self, bytes: Bytes) -> bool {
        self.touch();
        self.queue.try_send(Outgoing::Frame(bytes)).is_ok()
    }

    /// Sends an empty frame; that the peer has acknowledged it is reported.
    pub(super) fn greet(&self) {
        self.touch();
        // Behind a full queue the peer has other things to acknowledge.
        let _ = self.queue.try_send(Outgoing::Greeting);
    }

    /// Waits until the peer has acknowledged what was queued so far.
    pub(super) async fn flushed(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Outgoing::Flush(done)).await.is_ok() {
            // An error means that the connection is gone: nothing more to wait for.
            let _ = wait.await;
        }
    }

    /// Closes when what was queued has been sent, or shortly after.
    pub(super) fn close_soon(self, why: &'static str) {
        tokio::spawn(async move {
            // Who does not listen is not waited for.
            let _ = tokio::time::timeout(limits::LAST_WORDS, self.flushed()).await;
            self.close(why);
        });
    }

    pub(super) fn close(&self, why: &str) {
        self.connection.close(VarInt::from_u32(0), why.as_bytes());
    }
}

fn touch(started: Instant, used: &AtomicU64) {
    let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    used.store(elapsed, Ordering::Relaxed);
}

/// IPv4 addresses on a dual-stack socket come mapped into IPv6; everybody else sees them plain.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn hello(connection: &Connection) -> Bytes {
    let remote = canonical(connection.remote_address());
    let observed = wire::Endpoint {
        address: address::address_to_wire(&remote.ip()).into(),
        port: u32::from(remote.port()),
    };
    let body = wire::frame::Body::Hello(wire::Hello {
        observed: Some(observed),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    wire::Frame { body: Some(body) }.encode_to_vec().into()
}

/// One stream per frame: a lost packet of one does not hold up the next.
async fn write(
    connection: Connection,
    peer: NodeKey,
    mut outgoing: mpsc::Receiver<Outgoing>,
    reports: mpsc::Sender<Report>,
) {
    let mut recent: VecDeque<SendStream> = VecDeque::new();
    let mut greeting: Option<JoinHandle<()>> = None;
    while let Some(next) = outgoing.recv().await {
        let result = match next {
            Outgoing::Frame(bytes) => send_one(&connection, &bytes).await.map(|stream| {
                if recent.len() == RECENT {
                    recent.pop_front();
                }
                recent.push_back(stream);
            }),
            // One at a time: QUIC sends it again by itself, and who never acknowledges any would have them pile up.
            Outgoing::Greeting if greeting.as_ref().is_some_and(|task| !task.is_finished()) => {
                Ok(())
            }
            Outgoing::Greeting => send_one(&connection, &[]).await.map(|stream| {
                greeting = Some(tokio::spawn(acknowledged(stream, peer, reports.clone())));
            }),
            Outgoing::Flush(done) => {
                // An error means that the connection is gone: nothing more to wait for.
                for stream in recent.drain(..) {
                    let _ = stream.stopped().await;
                }
                let _ = done.send(());
                Ok(())
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended while writing");
            return;
        }
    }
}

async fn send_one(connection: &Connection, bytes: &[u8]) -> Result<SendStream, quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(bytes).await?;
    // Only fails when finished before.
    let _ = stream.finish();
    Ok(stream)
}

/// Waits until the peer has `stream`, or the connection is gone.
async fn acknowledged(stream: SendStream, peer: NodeKey, reports: mpsc::Sender<Report>) {
    if stream.stopped().await.is_ok() {
        // Nobody listens any more: the daemon ends.
        let _ = reports.send(Report::Event(Event::Acknowledged { peer })).await;
    }
}

/// Reads until the connection closes. Streams are read one at a time, which bounds the memory of a
/// connection to one frame and its flow-control window.
async fn read(
    connection: Connection,
    peer: NodeKey,
    reports: mpsc::Sender<Report>,
    started: Instant,
    used: Arc<AtomicU64>,
) {
    let stable_id = connection.stable_id();
    let streams = read_streams(&connection, peer, &reports, started, &used);
    let datagrams = read_datagrams(&connection, peer, &reports, started, &used);
    tokio::select! { () = streams => {}, () = datagrams => {} }
    connection.close(VarInt::from_u32(1), b"read ended");
    let _ = reports.send(Report::Closed { peer, stable_id }).await;
}

async fn read_streams(
    connection: &Connection,
    peer: NodeKey,
    reports: &mpsc::Sender<Report>,
    started: Instant,
    used: &AtomicU64,
) {
    while let Ok(mut stream) = connection.accept_uni().await {
        touch(started, used);
        let whole = tokio::time::timeout(limits::STREAM_TIMEOUT, stream.read_to_end(FRAME)).await;
        let event = match whole {
            Ok(Ok(bytes)) => Event::Frame { peer, bytes: bytes.into() },
            Ok(Err(quinn::ReadToEndError::TooLong)) => refused("frame_too_large", connection),
            Ok(Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(_)))) => return,
            // The peer reset the stream.
            Ok(Err(_)) => continue,
            Err(_) => refused("slow_stream", connection),
        };
        let abuse = matches!(event, Event::Refused { .. });
        if reports.send(Report::Event(event)).await.is_err() || abuse {
            return;
        }
    }
}

async fn read_datagrams(
    connection: &Connection,
    peer: NodeKey,
    reports: &mpsc::Sender<Report>,
    started: Instant,
    used: &AtomicU64,
) {
    while let Ok(bytes) = connection.read_datagram().await {
        touch(started, used);
        if reports.send(Report::Event(Event::Datagram { peer, bytes })).await.is_err() {
            return;
        }
    }
}

fn refused(code: &'static str, connection: &Connection) -> Event {
    Event::Refused { code, remote: canonical(connection.remote_address()), why: String::new() }
}
