//! `peers`.

use std::net::SocketAddr;

use meshd_proto::control as wire;
use serde::Serialize;

use super::optional;
use crate::text::{known, safe, safe_all};

/// An element of `meshctl peers list`.
#[derive(Debug, Serialize)]
pub(crate) struct PeerView {
    pub(crate) name: String,
    /// `None`: a device, as is what else only members have.
    pub(crate) id: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) gossip: Option<String>,
    pub(crate) tunnel: String,
    pub(crate) path: String,
    /// The gateway that carries what is for it.
    pub(crate) via: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) last_handshake_seconds: Option<u64>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) mtu: Option<u32>,
    pub(crate) public_key: Option<String>,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) node_addresses: Vec<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) reason: Option<String>,
    pub(crate) version: Option<String>,
    /// What is known of a device that cannot run meshd; `None` of a member.
    pub(crate) device: Option<DeviceView>,
}

/// What only a device has.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    pub(crate) gateway: String,
    pub(crate) added_at: Option<String>,
    pub(crate) private_key_kept: bool,
    pub(crate) preshared_key: bool,
    pub(crate) config_shown_at: Option<String>,
    pub(crate) config_stale: bool,
    pub(crate) keepalive: u32,
    pub(crate) dns: Vec<String>,
}

impl From<wire::Device> for DeviceView {
    fn from(device: wire::Device) -> Self {
        Self {
            gateway: safe(&device.gateway),
            added_at: known(&device.added_at),
            private_key_kept: device.private_key_kept,
            preshared_key: device.preshared_key,
            config_shown_at: optional(device.config_shown_at.as_ref()),
            config_stale: device.config_stale,
            keepalive: device.keepalive,
            dns: safe_all(&device.dns),
        }
    }
}

/// `meshctl peers show`: the same and more.
#[derive(Debug, Serialize)]
pub(crate) struct PeerDetailView {
    #[serde(flatten)]
    pub(crate) peer: PeerView,
    pub(crate) allowed_ips: Vec<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) blocked: Vec<BlockedView>,
    pub(crate) record_version: u64,
    pub(crate) record_issued_at: Option<String>,
    pub(crate) certificate_not_after: Option<String>,
    pub(crate) mtu_state: Option<String>,
    pub(crate) mtu_since: Option<String>,
}

/// An element of `meshctl mtu`.
#[derive(Debug, Serialize)]
pub(crate) struct MtuView {
    pub(crate) name: String,
    pub(crate) underlay: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) mtu: Option<u32>,
    pub(crate) state: Option<String>,
    pub(crate) since: Option<String>,
}

impl From<&wire::Peer> for MtuView {
    fn from(peer: &wire::Peer) -> Self {
        let endpoint = optional(peer.endpoint.as_ref());
        let parsed = endpoint.as_ref().and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
        let family = |endpoint: SocketAddr| {
            if endpoint.ip().to_canonical().is_ipv4() { "ipv4" } else { "ipv6" }.to_owned()
        };
        Self {
            name: safe(&peer.name),
            underlay: parsed.map(family),
            endpoint,
            mtu: peer.mtu,
            state: optional(peer.mtu_state.as_ref()),
            since: optional(peer.mtu_since.as_ref()),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct BlockedView {
    pub(crate) prefix: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl From<wire::Peer> for PeerDetailView {
    fn from(peer: wire::Peer) -> Self {
        let blocked = peer.blocked.iter().map(|blocked| BlockedView {
            prefix: safe(&blocked.prefix),
            reason: safe(&blocked.reason),
            message: safe(&blocked.message),
        });
        Self {
            blocked: blocked.collect(),
            allowed_ips: safe_all(&peer.allowed_ips),
            endpoints: safe_all(&peer.endpoints),
            record_version: peer.record_version,
            record_issued_at: optional(peer.record_issued_at.as_ref()),
            certificate_not_after: optional(peer.certificate_not_after.as_ref()),
            mtu_state: optional(peer.mtu_state.as_ref()),
            mtu_since: optional(peer.mtu_since.as_ref()),
            peer: PeerView {
                name: safe(&peer.name),
                id: known(&peer.id),
                zone: known(&peer.zone),
                gossip: known(&peer.gossip),
                tunnel: safe(&peer.tunnel),
                path: safe(&peer.path),
                via: optional(peer.via.as_ref()),
                endpoint: optional(peer.endpoint.as_ref()),
                rtt_ms: peer.rtt_ms,
                last_handshake_seconds: peer.last_handshake_seconds,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
                mtu: peer.mtu,
                public_key: optional(peer.public_key.as_ref()),
                mesh_addresses: safe_all(&peer.mesh_addresses),
                node_addresses: safe_all(&peer.node_addresses),
                prefixes: safe_all(&peer.prefixes),
                groups: safe_all(&peer.groups),
                reason: optional(peer.reason.as_ref()),
                version: known(&peer.version),
                device: peer.device.map(DeviceView::from),
            },
        }
    }
}
