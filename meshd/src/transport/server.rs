//! Incoming handshakes: who is let in, and as what.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use ipnet::{IpNet, Ipv6Net};
use meshd_core::{refusal::Refusal, trust::NodeCertificate};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};

use super::{
    Event, Report,
    connection::{Live, canonical},
    enrol, limits, tls,
};

/// Says whose certificate chain this is, or why it is not believed. TLS has verified possession of
/// the key; this verifies the rest, in date and not revoked included.
pub trait ChainCheck: Send + Sync {
    /// The leaf of `chain`, verified.
    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<NodeCertificate>, Refusal>;

    /// Whether what [`Self::check`] said of a certificate still holds.
    fn check_again(&self, certificate: &NodeCertificate) -> Result<(), Refusal>;
}

/// Whether, and by what check, others are let in at present.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<RwLock<Option<Arc<dyn ChainCheck>>>>);

impl Gate {
    pub(super) fn open(&self, check: Arc<dyn ChainCheck>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(check);
    }

    pub(super) fn shut(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn check(&self) -> Option<Arc<dyn ChainCheck>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes handshakes until the endpoint closes, with `only` from nowhere else.
pub(super) async fn accept(
    endpoint: Endpoint,
    gate: Gate,
    reports: mpsc::Sender<Report>,
    only: Option<Ipv6Net>,
) {
    let pending = Arc::new(AtomicUsize::new(0));
    let enrolments = Arc::new(Semaphore::new(limits::ENROLMENTS));
    while let Some(incoming) = endpoint.accept().await {
        let Some(check) = gate.check() else {
            incoming.refuse();
            continue;
        };
        let from = incoming.remote_address().ip();
        if only.is_some_and(|net| !IpNet::V6(net).contains(&from)) {
            incoming.ignore();
            continue;
        }
        let now = pending.load(Ordering::Relaxed);
        if now >= limits::HANDSHAKES {
            let remote = canonical(incoming.remote_address());
            incoming.refuse();
            refuse(&reports, "too_many_handshakes", remote, String::new());
            continue;
        }
        if now >= limits::HANDSHAKES_BEFORE_RETRY && !incoming.remote_address_validated() {
            // Fails only for addresses that were validated.
            let _ = incoming.retry();
            continue;
        }
        pending.fetch_add(1, Ordering::Relaxed);
        let (reports, pending, enrolments) = (reports.clone(), pending.clone(), enrolments.clone());
        tokio::spawn(async move {
            let done = handshake(incoming, &reports).await;
            pending.fetch_sub(1, Ordering::Relaxed);
            if let Some(connection) = done {
                admit(connection, check, enrolments, reports).await;
            }
        });
    }
}

fn refuse(reports: &mpsc::Sender<Report>, code: &'static str, remote: SocketAddr, why: String) {
    // A flood must not be able to block on its own counting.
    let _ = reports.try_send(Report::Event(Event::Refused { code, remote, why }));
}

async fn handshake(incoming: Incoming, reports: &mpsc::Sender<Report>) -> Option<Connection> {
    let remote = canonical(incoming.remote_address());
    let connecting = incoming.accept().ok()?;
    match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            refuse(reports, "handshake_failed", remote, error.to_string());
            None
        }
        Err(_) => {
            refuse(reports, "handshake_timeout", remote, String::new());
            None
        }
    }
}

/// Reads ALPN and certificate, and hands the connection to where it belongs.
async fn admit(
    connection: Connection,
    check: Arc<dyn ChainCheck>,
    enrolments: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
) {
    let remote = canonical(connection.remote_address());
    match alpn(&connection).as_deref() {
        Some(tls::ALPN_MESH) => match verify(&connection, check.as_ref()) {
            Ok(certificate) => {
                let live = Live::start(connection, &certificate, None, reports.clone());
                let _ = reports.send(Report::Up(Box::new(live))).await;
            }
            Err(refusal) => {
                connection.close(VarInt::from_u32(2), refusal.code.as_str().as_bytes());
                refuse(&reports, refusal.code.as_str(), remote, refusal.detail);
            }
        },
        Some(tls::ALPN_ENROL) => match enrolments.try_acquire_owned() {
            Ok(permit) => enrol::serve(connection, permit, reports).await,
            Err(_) => {
                connection.close(VarInt::from_u32(3), b"busy");
                refuse(&reports, "too_many_enrolments", remote, String::new());
            }
        },
        _ => connection.close(VarInt::from_u32(4), b"alpn"),
    }
}

fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// The identity behind a connection.
pub(super) fn verify(
    connection: &Connection,
    check: &dyn ChainCheck,
) -> Result<Arc<NodeCertificate>, Refusal> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .unwrap_or_default();
    check.check(&chain)
}
