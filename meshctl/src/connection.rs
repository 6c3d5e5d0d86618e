//! Connects to the daemon, and says exactly why not.

use std::{io, path::Path, sync::Mutex, time::Duration};

use hyper_util::rt::TokioIo;
use meshd_proto::control::control_client::ControlClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::failure::Failure;

/// Looking is a matter of milliseconds; longer means that the daemon hangs.
pub(crate) const LOOK: Duration = Duration::from_secs(10);
/// For calls that change something.
pub(crate) const CHANGE: Duration = Duration::from_secs(120);
/// Ten thousand peers are about 8 MiB.
const LARGEST_REPLY: usize = 64 << 20;

pub(crate) type Client = ControlClient<Channel>;

/// Connects to the daemon at `socket`. `timeout` is for each unary answer; streams have none.
pub(crate) async fn connect(socket: &Path, timeout: Option<Duration>) -> Result<Client, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| explain(socket, &error))?;
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    // The address is only there because HTTP wants one.
    let mut endpoint = Endpoint::from_static("http://meshd");
    if let Some(timeout) = timeout {
        endpoint = endpoint.timeout(timeout);
    }
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    let channel = tokio::time::timeout(LOOK, endpoint.connect_with_connector(connector)).await;
    let closed = |why: &str| {
        Failure::unreachable(
            format!("the daemon at {} did not answer", socket.display()),
            why,
            "look at its log: journalctl -u meshd -e",
        )
    };
    match channel {
        Ok(Ok(channel)) => Ok(ControlClient::new(channel).max_decoding_message_size(LARGEST_REPLY)),
        Ok(Err(_)) => Err(closed("it closed the connection")),
        Err(_) => Err(closed("it took too long")),
    }
}

fn explain(socket: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot reach the daemon at {}", socket.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::unreachable(
            what,
            "there is no such socket, so meshd is not running, or listens elsewhere",
            "start it with `systemctl enable --now meshd`, or name its socket with --socket or \
             MESHD_SOCKET",
        ),
        io::ErrorKind::PermissionDenied => Failure::unreachable(
            what,
            "permission denied: only root and members of group meshd may ask it",
            "run it with sudo, or add your user to the group (sudo usermod -aG meshd $USER) and \
             log in again",
        ),
        io::ErrorKind::ConnectionRefused => Failure::unreachable(
            what,
            "nobody listens on the socket, so meshd has stopped or crashed",
            "see why with `systemctl status meshd` and start it with `systemctl restart meshd`",
        ),
        _ => Failure::unreachable(
            what,
            error.to_string(),
            "check --socket and MESHD_SOCKET, and `systemctl status meshd`",
        ),
    }
}
