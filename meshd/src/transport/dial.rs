//! Outgoing connections.

use std::{net::SocketAddr, sync::Arc};

use meshd_core::limits::FRAME;
use meshd_proto::{NodeKey, wire};
use prost::Message;
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::mpsc;

use super::{
    Event, Report,
    connection::Live,
    limits,
    server::{ChainCheck, verify},
};

/// What is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A member; somebody else at its address is refused.
    Node(NodeKey),
    /// A seed: whoever of this mesh answers.
    Address(SocketAddr),
}

pub(super) struct Plan {
    pub(super) target: Target,
    /// Each with the endpoint that reaches it.
    pub(super) addresses: Vec<(SocketAddr, Endpoint)>,
    pub(super) client: quinn::ClientConfig,
    pub(super) server_name: String,
    pub(super) check: Arc<dyn ChainCheck>,
}

/// Tries the addresses in turn and reports the first that is the target, or that none is.
pub(super) async fn dial(plan: Plan, reports: mpsc::Sender<Report>) {
    let mut why = Vec::new();
    for (address, endpoint) in &plan.addresses {
        let attempt = connect(endpoint, &plan, *address, &reports);
        let outcome = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, attempt).await;
        match outcome.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok((live, hello)) => {
                let peer = live.peer();
                let _ = reports.send(Report::Up(Box::new(live))).await;
                let frame = Event::Frame { peer, bytes: hello.into() };
                let _ = reports.send(Report::Event(frame)).await;
                return;
            }
            Err(error) => why.push(format!("{address}: {error}")),
        }
    }
    let tried = plan.addresses.into_iter().map(|(address, _)| address).collect();
    let failed = Report::DialFailed { target: plan.target, tried, why: why.join(", ") };
    let _ = reports.send(failed).await;
}

/// A connection counts when the other side has said hello: TLS 1.3 lets a client believe in a
/// connection that the server is about to refuse.
async fn connect(
    endpoint: &Endpoint,
    plan: &Plan,
    address: SocketAddr,
    reports: &mpsc::Sender<Report>,
) -> Result<(Live, Vec<u8>), String> {
    let to = for_socket(endpoint, address);
    let connection = endpoint
        .connect_with(plan.client.clone(), to, &plan.server_name)
        .map_err(|error| error.to_string())?
        .await
        .map_err(|error| error.to_string())?;
    let certificate = verify(&connection, plan.check.as_ref()).map_err(|refusal| {
        connection.close(VarInt::from_u32(2), refusal.code.as_str().as_bytes());
        refusal.to_string()
    })?;
    if let Target::Node(wanted) = plan.target
        && wanted != certificate.key
    {
        connection.close(VarInt::from_u32(5), b"not who was dialled");
        return Err(format!("answered by {} instead", certificate.name));
    }
    let hello = first_frame(&connection).await?;
    Ok((Live::start(connection, &certificate, Some(address), reports.clone()), hello))
}

async fn first_frame(connection: &Connection) -> Result<Vec<u8>, String> {
    let mut stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
    let bytes = stream.read_to_end(FRAME).await.map_err(|error| error.to_string())?;
    match wire::Frame::decode(bytes.as_slice()).ok().and_then(|frame| frame.body) {
        Some(wire::frame::Body::Hello(_)) => Ok(bytes),
        _ => {
            connection.close(VarInt::from_u32(6), b"no hello");
            Err("no hello".to_owned())
        }
    }
}

/// IPv4 addresses are dialled mapped when the socket is dual-stack.
pub(super) fn for_socket(endpoint: &Endpoint, address: SocketAddr) -> SocketAddr {
    let dual = endpoint.local_addr().is_ok_and(|local| local.is_ipv6());
    match address {
        SocketAddr::V4(v4) if dual => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        other => other,
    }
}
