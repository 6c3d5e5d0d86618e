//! One GET per connection, bounded in number, size and time: nobody can make the daemon hold more, and the newest
//! comer is always heard, so that those who connect and say nothing keep nobody out.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Mutex, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Source, page};

/// Open connections. A monitor needs one.
const CONNECTIONS: usize = 16;
/// From the connection to the end of the answer: Prometheus waits no longer by default.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a request: the least that hyper allows.
const REQUEST: usize = 8 << 10;
/// While the address cannot be had.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 10_000 });
/// Connections that wait to be accepted, as many as the standard library of Rust's async runtimes has.
const BACKLOG: u32 = 1024;
/// Whoever asks within this time gets the same page, so that asking often costs the loop nothing.
const FRESH: Duration = Duration::from_secs(1);
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/#overall-structure>
const TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Listens. Must run inside the runtime.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What a daemon before left in TIME_WAIT must not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves for ever; `failed` has why the address cannot be had.
pub(super) async fn run(
    address: SocketAddr,
    mut first: Option<TcpListener>,
    source: Arc<dyn Source>,
    failed: watch::Sender<Option<String>>,
) {
    let listener = loop {
        if let Some(listener) = first.take() {
            break listener;
        }
        sleep(RETRY).await;
        match bind(address) {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                first = Some(listener);
            }
            Err(error) => {
                let _ = failed.send(Some(error.to_string()));
            }
        }
    };
    let _ = failed.send(None);
    let pages = Arc::new(Pages { source, last: Mutex::new(None) });
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: do not spin until some are free.
                tracing::warn!(%error, "accepting a connection for metrics failed");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(serve(stream, pages.clone())).abort_handle());
    }
}

async fn serve(stream: TcpStream, pages: Arc<Pages>) {
    let answer = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(answer(&request, &pages).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST)
        // One limit for everything is below.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics"),
        Err(_) => tracing::debug!("a request for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, PLAIN);
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match pages.newest().await {
        Some(page) => {
            let mut response = Response::new(Full::new(page));
            response.headers_mut().insert(CONTENT_TYPE, TYPE);
            response
        }
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "meshd is stopping\n"),
    }
}

/// The page, made when it is asked for and not often.
struct Pages {
    source: Arc<dyn Source>,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Pages {
    async fn newest(&self) -> Option<Bytes> {
        // Held while the page is made: who asks meanwhile gets that one.
        let mut last = self.last.lock().await;
        if let Some((at, page)) = &*last
            && at.elapsed() < FRESH
        {
            return Some(page.clone());
        }
        let snapshot = self.source.snapshot().await?;
        let page = Bytes::from(page::text(snapshot).ok()?);
        *last = Some((Instant::now(), page.clone()));
        Some(page)
    }
}
