//! The enrolment stream: the one thing that strangers can reach.

use std::net::SocketAddr;

use bytes::Bytes;
use meshd_core::limits::ENROL_MESSAGE;
use quinn::{Connection, Endpoint, VarInt};
use rustls_pki_types::TrustAnchor;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Event, Report, connection::canonical, dial::for_socket, limits, race::Race, tls};

/// Largest reply: certificate, root, bundle and a few records.
const REPLY: usize = 256 * 1024;

/// A stranger's request and the way to answer it.
#[derive(Debug)]
pub struct EnrolTicket {
    /// Encoded `EnrolRequest`.
    pub request: Bytes,
    /// Where it came from.
    pub remote: SocketAddr,
    reply: oneshot::Sender<Bytes>,
}

impl EnrolTicket {
    /// Sends the encoded `EnrolReply`. When the joiner is gone nothing happens.
    pub fn answer(self, reply: Bytes) {
        let _ = self.reply.send(reply);
    }
}

/// Serves one joiner: one request, one reply.
pub(super) async fn serve(
    connection: Connection,
    permit: OwnedSemaphorePermit,
    reports: mpsc::Sender<Report>,
) {
    let remote = canonical(connection.remote_address());
    let work = serve_one(&connection, &reports);
    match tokio::time::timeout(limits::ENROL_TIMEOUT, work).await {
        Ok(Ok(())) => {}
        Ok(Err(code)) => {
            connection.close(VarInt::from_u32(7), code.as_bytes());
            let _ = reports.try_send(Report::Event(Event::Refused {
                code,
                remote,
                why: String::new(),
            }));
        }
        Err(_) => connection.close(VarInt::from_u32(8), b"timeout"),
    }
    drop(permit);
}

async fn serve_one(
    connection: &Connection,
    reports: &mpsc::Sender<Report>,
) -> Result<(), &'static str> {
    let read = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(|_| "enrol_aborted")?;
        let request = receive.read_to_end(ENROL_MESSAGE).await.map_err(|_| "enrol_too_large")?;
        Ok::<_, &'static str>((send, request))
    };
    let (mut send, request) = tokio::time::timeout(limits::ENROL_REQUEST_TIMEOUT, read)
        .await
        .map_err(|_| "enrol_slow")??;
    let (reply, answer) = oneshot::channel();
    let remote = canonical(connection.remote_address());
    let ticket = EnrolTicket { request: request.into(), remote, reply };
    reports.send(Report::Event(Event::Enrol(ticket))).await.map_err(|_| "stopping")?;
    let answer = answer.await.map_err(|_| "enrol_unanswered")?;
    send.write_all(&answer).await.map_err(|_| "enrol_aborted")?;
    let _ = send.finish();
    // The joiner closes when it has read the reply.
    let _ = send.stopped().await;
    Ok(())
}

/// Why an enrolment through one seed failed before a reply came.
#[derive(Debug, Error)]
pub enum EnrolClientError {
    /// TLS could not be set up from the token.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Nobody answered, or not a member of this mesh.
    #[error("{0}: {1}")]
    Connection(SocketAddr, String),
}

/// The joiner's side.
#[derive(Clone)]
pub struct EnrolClient {
    endpoint: Endpoint,
}

impl EnrolClient {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Connects to the members at `addresses`, which are verified against the root that the token names.
    pub fn reach(
        &self,
        addresses: Vec<SocketAddr>,
        roots: &[TrustAnchor<'static>],
        server_name: &str,
    ) -> Result<Race, EnrolClientError> {
        Ok(Race::new(self.clone(), tls::enrol_client(roots)?, server_name, addresses))
    }

    /// Asks the member at `address` for the asker's own renewal: it may have a wrong clock, and so may the other.
    pub async fn renew(
        &self,
        address: SocketAddr,
        roots: &[TrustAnchor<'static>],
        server_name: &str,
        request: Bytes,
    ) -> Result<Bytes, EnrolClientError> {
        self.connect(address, tls::renew_client(roots)?, server_name).await?.ask(&request).await
    }

    /// A connection on which nothing was sent yet.
    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        config: quinn::ClientConfig,
        server_name: &str,
    ) -> Result<EnrolLink, EnrolClientError> {
        let failed = |why: String| EnrolClientError::Connection(address, why);
        let connection = self
            .endpoint
            .connect_with(config, for_socket(&self.endpoint, address), server_name)
            .map_err(|error| failed(error.to_string()))?;
        let connection = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connection)
            .await
            .map_err(|_| failed("no answer".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(EnrolLink { address, connection })
    }
}

/// A connection to a member that was verified.
#[derive(Debug)]
pub struct EnrolLink {
    address: SocketAddr,
    connection: Connection,
}

impl EnrolLink {
    /// Where the member is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends `request` and returns the reply.
    pub async fn ask(self, request: &[u8]) -> Result<Bytes, EnrolClientError> {
        let failed = |why: String| EnrolClientError::Connection(self.address, why);
        let reply =
            tokio::time::timeout(limits::ENROL_TIMEOUT, exchange(&self.connection, request))
                .await
                .map_err(|_| failed("no reply in time".to_owned()))?
                .map_err(failed)?;
        self.connection.close(VarInt::from_u32(0), b"done");
        Ok(reply)
    }
}

async fn exchange(connection: &Connection, request: &[u8]) -> Result<Bytes, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
    send.write_all(request).await.map_err(|e| e.to_string())?;
    let _ = send.finish();
    receive.read_to_end(REPLY).await.map(Bytes::from).map_err(|e| e.to_string())
}
