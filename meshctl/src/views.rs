//! What `-o json` and `-o yaml` print: stable, documented in `docs/cli.md`, and separate from the
//! messages of the socket. Unknown is `null`. Every text from the daemon passes `safe` here.

mod authority;
mod devices;
mod nodes;
mod peers;
mod reload;
mod tokens;
use std::collections::BTreeMap;

use meshd_proto::control as wire;
use serde::Serialize;

pub(crate) use self::{
    authority::RootsView,
    devices::{DeviceConfigView, DeviceRemovedView},
    nodes::{NodeView, RevokedSignerView, RevokedView, SignerView},
    peers::{DeviceView, MtuView, PeerDetailView, PeerView},
    reload::{ChangeView, ConfirmView, ReloadView},
    tokens::{AudienceView, NewTokenView, TokenView},
};

use crate::text::{known, safe, safe_all};

/// `meshctl status`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) state: String,
    pub(crate) mesh: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) public_key: Option<String>,
    pub(crate) listen_port: Option<u32>,
    pub(crate) gossip_port: Option<u32>,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) peers: PeerCountsView,
    pub(crate) devices: PeerCountsView,
    pub(crate) health: Vec<HealthView>,
    pub(crate) version: String,
    pub(crate) signer: Option<bool>,
    pub(crate) zone: Option<String>,
    /// The gateway by which other zones reach this host.
    pub(crate) via: Option<String>,
    pub(crate) certificate_not_after: Option<String>,
    pub(crate) directory_hash: Option<String>,
    pub(crate) synced: bool,
    pub(crate) trial_seconds_left: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PeerCountsView {
    pub(crate) total: u32,
    pub(crate) up: u32,
    pub(crate) stale: u32,
    pub(crate) down: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct HealthView {
    pub(crate) code: String,
    pub(crate) severity: String,
    pub(crate) message: String,
    pub(crate) fix: Option<String>,
}

fn optional(text: Option<&String>) -> Option<String> {
    text.and_then(|text| known(text))
}

impl From<wire::PeerCounts> for PeerCountsView {
    fn from(counts: wire::PeerCounts) -> Self {
        Self { total: counts.total, up: counts.up, stale: counts.stale, down: counts.down }
    }
}

impl From<wire::StatusReply> for StatusView {
    fn from(reply: wire::StatusReply) -> Self {
        let health = reply.health.into_iter().map(|line| HealthView {
            code: safe(&line.code),
            severity: safe(&line.severity),
            message: safe(&line.message),
            fix: known(&line.fix),
        });
        Self {
            state: safe(&reply.state),
            mesh: optional(reply.mesh.as_ref()),
            node: optional(reply.node.as_ref()),
            id: optional(reply.id.as_ref()),
            interface: optional(reply.interface.as_ref()),
            backend: optional(reply.backend.as_ref()),
            public_key: optional(reply.public_key.as_ref()),
            listen_port: reply.listen_port,
            gossip_port: reply.gossip_port,
            mesh_addresses: safe_all(&reply.mesh_addresses),
            prefixes: safe_all(&reply.prefixes),
            peers: reply.peers.unwrap_or_default().into(),
            devices: reply.devices.unwrap_or_default().into(),
            health: health.collect(),
            version: safe(&reply.version),
            signer: reply.signer,
            zone: optional(reply.zone.as_ref()),
            via: optional(reply.via.as_ref()),
            certificate_not_after: optional(reply.certificate_not_after.as_ref()),
            directory_hash: optional(reply.directory_hash.as_ref()),
            synced: reply.synced,
            trial_seconds_left: reply.trial_seconds_left,
        }
    }
}

/// `meshctl init` and `meshctl join`.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView {
    pub(crate) mesh: String,
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) not_granted: Vec<String>,
    pub(crate) peers: u32,
    pub(crate) synced: bool,
}

impl From<wire::InitReply> for MemberView {
    fn from(reply: wire::InitReply) -> Self {
        Self {
            mesh: safe(&reply.mesh),
            node: safe(&reply.node),
            id: safe(&reply.id),
            mesh_addresses: safe_all(&reply.mesh_addresses),
            prefixes: safe_all(&reply.prefixes),
            not_granted: safe_all(&reply.not_granted),
            peers: 0,
            synced: true,
        }
    }
}

impl From<wire::JoinDone> for MemberView {
    fn from(done: wire::JoinDone) -> Self {
        Self {
            mesh: safe(&done.mesh),
            node: safe(&done.node),
            id: safe(&done.id),
            mesh_addresses: safe_all(&done.mesh_addresses),
            prefixes: safe_all(&done.prefixes),
            not_granted: safe_all(&done.not_granted),
            peers: done.peers,
            synced: done.synced,
        }
    }
}

/// `meshctl leave`.
#[derive(Debug, Serialize)]
pub(crate) struct LeaveView {
    pub(crate) mesh: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) told: u32,
    pub(crate) removed: Vec<String>,
    pub(crate) authority: Option<String>,
}

impl From<wire::LeaveReply> for LeaveView {
    fn from(reply: wire::LeaveReply) -> Self {
        Self {
            mesh: known(&reply.mesh),
            node: known(&reply.node),
            told: reply.told,
            removed: safe_all(&reply.removed),
            authority: reply.authority.as_deref().and_then(known),
        }
    }
}

/// `meshctl cert renew`.
#[derive(Debug, Serialize)]
pub(crate) struct CertificateView {
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) prefixes: Vec<String>,
    pub(crate) renewed: bool,
    pub(crate) not_granted: Vec<String>,
    pub(crate) asked_in_seconds: Option<u32>,
}

impl From<wire::RenewCertificateReply> for CertificateView {
    fn from(reply: wire::RenewCertificateReply) -> Self {
        Self {
            not_before: safe(&reply.not_before),
            not_after: safe(&reply.not_after),
            prefixes: safe_all(&reply.prefixes),
            renewed: reply.renewed,
            not_granted: safe_all(&reply.not_granted),
            asked_in_seconds: reply.asked_in_seconds,
        }
    }
}

/// An element of `meshctl events`.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    pub(crate) number: u64,
    pub(crate) time: String,
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) node: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) actor: String,
    pub(crate) reason: Option<String>,
    pub(crate) message: String,
    pub(crate) count: u64,
    pub(crate) details: BTreeMap<String, String>,
}

impl From<wire::Event> for EventView {
    fn from(event: wire::Event) -> Self {
        Self {
            number: event.number,
            time: safe(&event.time),
            severity: safe(&event.severity),
            code: safe(&event.code),
            node: optional(event.node.as_ref()),
            name: optional(event.name.as_ref()),
            actor: safe(&event.actor),
            reason: optional(event.reason.as_ref()),
            message: safe(&event.message),
            count: event.count,
            details: event.details.iter().map(|(k, v)| (safe(k), safe(v))).collect(),
        }
    }
}

/// `meshctl ping`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PingView {
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) mtu: Option<u32>,
    pub(crate) sent: u32,
    pub(crate) received: u32,
    pub(crate) rtt_min_ms: Option<f64>,
    pub(crate) rtt_avg_ms: Option<f64>,
    pub(crate) rtt_max_ms: Option<f64>,
    pub(crate) replies: Vec<ProbeView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ProbeView {
    pub(crate) sequence: u32,
    pub(crate) rtt_ms: Option<f64>,
}
