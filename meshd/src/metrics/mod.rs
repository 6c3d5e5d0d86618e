//! Prometheus metrics: one page of text for whoever monitors this host.
//!
//! Responsible for the listener, its limits, and the form of the page ([OpenMetrics 1.0][spec]). Not for what is
//! counted: that is the daemon's, behind [`Source`].
//!
//! | task | does | ends |
//! |---|---|---|
//! | listener | accepts; tries every ten seconds while the address cannot be had | with the process |
//! | a connection each, 16 at most | one request, one answer | after ten seconds, or when newer ones need its place |
//!
//! [spec]: https://prometheus.io/docs/specs/om/open_metrics_spec/

mod page;
mod process;
mod server;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use meshd_core::now::UnixTime;
use meshd_proto::control::{CountersReply, StatusReply};
use tokio::sync::watch;

/// What the page says, as it was at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// As `meshctl status` has it.
    pub status: StatusReply,
    /// All members but this one and those that left.
    pub peers: Vec<PeerFigures>,
    /// Everything counted since start.
    pub counters: CountersReply,
    /// When certificates end.
    pub certificates: Vec<CertificateEnd>,
    /// Records held, this node's own among them.
    pub records: u64,
    /// Members with which a QUIC connection stands.
    pub connections: u64,
}

/// What is measured of one member.
#[derive(Debug, Clone, Default)]
pub struct PeerFigures {
    /// As `meshctl peers list` has it: no two have the same.
    pub name: String,
    /// `alive`, `suspect` or `down`.
    pub gossip: &'static str,
    /// `up`, `stale`, `never` or `blocked`.
    pub tunnel: &'static str,
    /// Seconds ago.
    pub last_handshake: Option<f64>,
    /// Through the tunnel since it was made.
    pub rx_bytes: u64,
    /// Likewise.
    pub tx_bytes: u64,
    /// Of the QUIC connection, in seconds.
    pub rtt: Option<f64>,
}

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEnd {
    /// `node` (this one's), `signer` or `root`.
    pub kind: &'static str,
    /// Whose; empty for the root's.
    pub name: String,
    /// The last second of its life.
    pub at: UnixTime,
}

/// Where the page's figures come from.
pub trait Source: Send + Sync + 'static {
    /// The figures of now; `None`: the daemon stops.
    fn snapshot(&self) -> BoxFuture<'_, Option<Snapshot>>;
}

/// The handle of the listener, which goes on by itself.
#[derive(Debug)]
pub struct Metrics {
    address: SocketAddr,
    failed: watch::Receiver<Option<String>>,
}

impl Metrics {
    /// Starts to serve on `address`. Must run inside the runtime.
    pub fn start(address: SocketAddr, source: Arc<dyn Source>) -> Self {
        let (tell, failed) = watch::channel(None);
        let first = server::bind(address);
        if let Err(error) = &first {
            tracing::warn!(%error, %address, "metrics are not served");
            let _ = tell.send(Some(error.to_string()));
        } else {
            tracing::info!(%address, "metrics are served");
        }
        if let Some(warning) = exposure(address) {
            tracing::warn!("{warning}");
        }
        tokio::spawn(server::run(address, first.ok(), source, tell));
        Self { address, failed }
    }

    /// Why the address cannot be listened on, and what to do about it, if so.
    #[must_use]
    pub fn problem(&self) -> Option<(String, &'static str)> {
        let why = self.failed.borrow().clone()?;
        let message = format!("metrics are not served on {}: {why}", self.address);
        Some((message, "free that address, or set [metrics] listen to another, and restart meshd"))
    }
}

/// What somebody should know who lets others than this host read `address`.
#[must_use]
pub fn exposure(address: SocketAddr) -> Option<String> {
    // A daemon that listens on ::ffff:127.0.0.1 is as private as one on 127.0.0.1.
    (!address.ip().to_canonical().is_loopback()).then(|| {
        format!(
            "whoever reaches {address} can read the metrics, which name the members of the mesh; let a firewall \
             admit only who monitors"
        )
    })
}
