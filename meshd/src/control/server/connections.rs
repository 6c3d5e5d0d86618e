//! Who is connected: each connection with its caller, bounded per user and altogether.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, future::ready, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

use crate::control::{Caller, ControlSocket, Readers};

/// Open connections per user, so that no reader can keep root out.
const CONNECTIONS_PER_USER: usize = 32;
/// Open connections of all users but root.
const CONNECTIONS: usize = 128;

/// Connections, each with its caller. Those above the limits are closed at once.
pub(super) fn incoming(
    socket: &ControlSocket,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    let open = Open::default();
    let readers = socket.readers();
    stream::unfold((), move |()| async move { Some((socket.listener().accept().await, ())) })
        .then(move |accepted| async move {
            if let Err(error) = &accepted {
                // Out of file descriptors, mostly: do not spin until some are free.
                tracing::warn!(%error, "accepting a control connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            accepted
        })
        .filter_map(move |accepted| ready(admit(accepted, readers, &open).map(Ok)))
}

fn admit(
    accepted: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>,
    readers: Readers,
    open: &Open,
) -> Option<Connection> {
    let (stream, _) = accepted.ok()?;
    let caller = Caller::of(&stream.peer_cred().ok()?, readers);
    let Some(slot) = open.take(&caller) else {
        tracing::warn!(uid = %caller.uid(), "too many control connections, one was closed");
        return None;
    };
    Some(Connection { stream, caller, _slot: slot })
}

/// How many connections each user has open.
#[derive(Debug, Clone, Default)]
struct Open(Arc<Mutex<BTreeMap<u32, usize>>>);

/// Counts as open until dropped.
#[derive(Debug)]
struct Slot {
    open: Open,
    uid: u32,
}

impl Open {
    fn take(&self, caller: &Caller) -> Option<Slot> {
        let uid = caller.uid().as_raw();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others: usize = counts.iter().filter(|(of, _)| **of != 0).map(|(_, n)| n).sum();
        let own = counts.get(&uid).copied().unwrap_or(0);
        if own >= CONNECTIONS_PER_USER || (uid != 0 && others >= CONNECTIONS) {
            return None;
        }
        *counts.entry(uid).or_default() += 1;
        Some(Slot { open: self.clone(), uid })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// A stream that knows who is at its other end.
pub(super) struct Connection {
    stream: UnixStream,
    caller: Caller,
    _slot: Slot,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
