//! Reads the keys of an issuer: from a file, or from its address by HTTPS.
//!
//! Bounded in size and time, without redirects, cookies or proxies: one GET. Whether and when, the core says;
//! the loop starts it as a task, and `meshd check` runs it.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1,
    header::{ACCEPT, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use meshd_core::{limits, trust::issuer::KeySet};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{config::issuers::KeySource, trusted};

/// The joiner waits for it, and so does the member that it asked.
const PATIENCE: Duration = Duration::from_secs(6);
const HEADERS: usize = 16 << 10;
/// The CAs of all systems fit.
const CA_FILE: u64 = 1 << 20;

/// The keys that are there now.
///
/// # Errors
/// Why there are none, for a person.
pub async fn read(source: &KeySource) -> Result<KeySet, String> {
    let (place, answer) = match source {
        KeySource::File(path) => {
            let path = path.clone();
            let place = path.display().to_string();
            // A disk, or what is mounted there, may hang as well.
            let reading = tokio::task::spawn_blocking(move || read_file(&path));
            let answer = tokio::time::timeout(PATIENCE, reading).await;
            (place, answer.map(|read| read.unwrap_or_else(|error| Err(error.to_string()))))
        }
        KeySource::Url { url, ca_file } => {
            let fetching = fetch(url, ca_file.as_deref());
            (url.to_string(), tokio::time::timeout(PATIENCE, fetching).await)
        }
    };
    let bytes = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    bytes.and_then(|bytes| KeySet::read(&bytes)).map_err(|why| format!("{place}: {why}"))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    trusted::read(path, limits::IDENTITY_KEYS as u64).map_err(|error| error.to_string())
}

async fn fetch(url: &Uri, ca_file: Option<&Path>) -> Result<Vec<u8>, String> {
    let authority = url.authority().ok_or("it has no host")?;
    let ca_file = ca_file.map(Path::to_owned);
    let config = tokio::task::spawn_blocking(move || tls(ca_file.as_deref()));
    let config = config.await.map_err(|error| error.to_string())??;
    let host = authority.host().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(443)))
        .await
        .map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority.as_str())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            // A redirect could lead anywhere; the address in the file is the one that somebody chose.
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), limits::IDENTITY_KEYS).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|error| error.to_string())
    };
    // The connection lives as long as the answer is read, and no longer.
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // What was received before the end is still to be read.
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let failed = |why: String| format!("ca_file {}: {why}", path.display());
        let pem = trusted::read(path, CA_FILE).map_err(|error| failed(error.to_string()))?;
        if pem.len() as u64 > CA_FILE {
            return Err(failed("it is larger than 1 MiB".to_owned()));
        }
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(failed("it holds no certificate".to_owned()));
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                "this host has no CA certificates; install ca-certificates, or set ca_file"
                    .to_owned(),
            );
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
