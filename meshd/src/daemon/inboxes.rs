//! What wakes the loop beside the transport.

use std::sync::Arc;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{bridge::Call, done::Done};
use crate::{
    dataplane::{sources::ForeignSources, watch::Watch},
    host::{watch_files::FileWatch, workloads::Workloads},
    probe::Heard,
    reconcile::Report,
};

/// All of it.
pub(super) struct Inboxes {
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) requests: mpsc::Receiver<Call>,
    pub(super) done: mpsc::Receiver<Done>,
    pub(super) hears: mpsc::Receiver<Heard>,
    pub(super) watch: Watch,
    /// Workloads, where it is their routes that count.
    pub(super) workloads: Option<watch::Receiver<Arc<Workloads>>>,
    /// Until the first one.
    pub(super) foreign: Option<ForeignSources>,
    pub(super) files: Option<FileWatch>,
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) hangup: Signal,
    pub(super) stop_control: watch::Sender<bool>,
    /// Serves the control socket.
    pub(super) served: JoinHandle<()>,
}

/// SIGTERM, SIGINT, SIGHUP.
pub(super) fn signals() -> std::io::Result<(Signal, Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    ))
}

/// The next set of workloads; never, where nobody follows them or that one is gone.
pub(super) async fn newest(
    inbox: &mut Option<watch::Receiver<Arc<Workloads>>>,
) -> Option<Arc<Workloads>> {
    if let Some(told) = inbox
        && told.changed().await.is_ok()
    {
        return Some(told.borrow_and_update().clone());
    }
    std::future::pending().await
}

/// A packet with a foreign source; never, where nobody tells of such or there was one.
pub(super) async fn foreign(told: &mut Option<ForeignSources>) {
    match told {
        Some(sources) => sources.seen().await,
        None => std::future::pending().await,
    }
    *told = None;
}

/// Some file changed that says which addresses are this host's; never, where none is watched.
pub(super) async fn changed(files: &mut Option<FileWatch>) {
    match files {
        Some(files) => files.changed().await,
        None => std::future::pending().await,
    }
}
