//! What a user of `meshctl` sees, with the real control server and no mesh behind it.

#![allow(clippy::unwrap_used)] // A failed step of a test is a failed test.

mod certificates;
mod changing;
mod devices;
mod events;
mod fake;
mod looking;
mod reloading;
mod serving;

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use fake::{Daemon, Script, stderr, stdout};
use meshd::control::{ControlError, ControlSocket, SocketError};
use meshd_proto::control::*;
use serde_json::{Value, json};

fn running() -> StatusReply {
    StatusReply {
        state: "running".into(),
        mesh: Some("demo".into()),
        node: Some("db-1".into()),
        id: Some("abcd".into()),
        interface: Some("mesh0".into()),
        backend: Some("kernel".into()),
        public_key: Some("KEY=".into()),
        listen_port: Some(51820),
        gossip_port: Some(51800),
        mesh_addresses: vec!["100.112.0.1".into(), "fd00::1".into()],
        prefixes: vec!["10.244.1.0/24".into()],
        peers: Some(PeerCounts { total: 3, up: 2, stale: 1, down: 0 }),
        health: vec![HealthLine {
            code: "forwarding_off".into(),
            severity: "warning".into(),
            message: "this host does not forward IPv4".into(),
            fix: "sysctl -w net.ipv4.ip_forward=1".into(),
        }],
        version: "0.1.0".into(),
        signer: Some(true),
        ..StatusReply::default()
    }
}

fn waiting() -> StatusReply {
    StatusReply { state: "waiting".into(), version: "0.1.0".into(), ..StatusReply::default() }
}

fn peer(name: &str) -> Peer {
    Peer {
        name: name.into(),
        id: "efgh".into(),
        zone: "aws".into(),
        gossip: "alive".into(),
        tunnel: "up".into(),
        path: "direct".into(),
        endpoint: Some("10.0.0.2:51820".into()),
        rtt_ms: Some(0.625),
        last_handshake_seconds: Some(75),
        rx_bytes: 1536,
        tx_bytes: 10,
        mtu: Some(1420),
        public_key: Some("KEY2=".into()),
        mesh_addresses: vec!["100.112.0.2".into()],
        node_addresses: vec!["10.0.0.2".into()],
        prefixes: vec!["10.244.2.0/24".into(), "fd00:2::/64".into()],
        groups: vec!["db".into()],
        version: "0.1.0".into(),
        ..Peer::default()
    }
}

fn with_peers(peers: Vec<Peer>) -> Daemon {
    Daemon::start(Script { status: running(), peers, ..Script::default() })
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn parsed(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}
