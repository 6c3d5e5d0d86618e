//! What `-o json` and `-o yaml` print: stable, documented in `docs/cli.md`, and separate from the
//! messages of the socket. Unknown is `null`. Every text from the daemon passes `safe` here.

mod authority;
use std::{collections::BTreeMap, net::SocketAddr};

use meshd_proto::control as wire;
use serde::Serialize;

pub(crate) use self::authority::RootsView;

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
    pub(crate) health: Vec<HealthView>,
    pub(crate) version: String,
    pub(crate) signer: Option<bool>,
    pub(crate) zone: Option<String>,
    pub(crate) certificate_not_after: Option<String>,
    pub(crate) directory_hash: Option<String>,
    pub(crate) synced: bool,
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

impl From<wire::StatusReply> for StatusView {
    fn from(reply: wire::StatusReply) -> Self {
        let peers = reply.peers.unwrap_or_default();
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
            peers: PeerCountsView {
                total: peers.total,
                up: peers.up,
                stale: peers.stale,
                down: peers.down,
            },
            health: health.collect(),
            version: safe(&reply.version),
            signer: reply.signer,
            zone: optional(reply.zone.as_ref()),
            certificate_not_after: optional(reply.certificate_not_after.as_ref()),
            directory_hash: optional(reply.directory_hash.as_ref()),
            synced: reply.synced,
        }
    }
}

/// An element of `meshctl peers list`.
#[derive(Debug, Serialize)]
pub(crate) struct PeerView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) zone: Option<String>,
    pub(crate) gossip: String,
    pub(crate) tunnel: String,
    pub(crate) path: String,
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
                id: safe(&peer.id),
                zone: known(&peer.zone),
                gossip: safe(&peer.gossip),
                tunnel: safe(&peer.tunnel),
                path: safe(&peer.path),
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
            },
        }
    }
}

/// An element of `meshctl token list`.
#[derive(Debug, Serialize)]
pub(crate) struct TokenView {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) node: Option<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) allow: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) expires_at: String,
    pub(crate) uses: u32,
    pub(crate) used: u32,
    pub(crate) identity: Option<String>,
    pub(crate) audience: Option<String>,
}

impl From<wire::TokenInfo> for TokenView {
    fn from(info: wire::TokenInfo) -> Self {
        Self {
            id: safe(&info.id),
            state: safe(&info.state),
            node: known(&info.node_name),
            prefixes: safe_all(&info.prefixes),
            allow: safe_all(&info.allow),
            groups: safe_all(&info.groups),
            expires_at: safe(&info.expires_at),
            uses: info.uses,
            used: info.used,
            identity: info.identity.as_deref().map(safe),
            audience: info.audience.as_deref().map(safe),
        }
    }
}

/// `meshctl join --identity-audience`.
#[derive(Debug, Serialize)]
pub(crate) struct AudienceView {
    pub(crate) audience: String,
    pub(crate) issuer: String,
    pub(crate) id: String,
    pub(crate) bound_to_key: bool,
}

impl From<wire::IdentityAudienceReply> for AudienceView {
    fn from(reply: wire::IdentityAudienceReply) -> Self {
        Self {
            audience: safe(&reply.audience),
            issuer: safe(&reply.issuer),
            id: safe(&reply.id),
            bound_to_key: reply.bound_to_key,
        }
    }
}

/// `meshctl token create`.
#[derive(Debug, Serialize)]
pub(crate) struct NewTokenView {
    pub(crate) token: String,
    #[serde(flatten)]
    pub(crate) info: TokenView,
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

/// An element of `meshctl node list`.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) gossip: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) certificate_not_after: Option<String>,
    pub(crate) revoked_at: Option<String>,
    #[serde(rename = "self")]
    pub(crate) is_self: bool,
    pub(crate) version: Option<String>,
}

impl From<wire::NodeInfo> for NodeView {
    fn from(node: wire::NodeInfo) -> Self {
        Self {
            name: safe(&node.name),
            id: safe(&node.id),
            state: safe(&node.state),
            gossip: optional(node.gossip.as_ref()),
            zone: known(&node.zone),
            groups: safe_all(&node.groups),
            mesh_addresses: safe_all(&node.mesh_addresses),
            prefixes: safe_all(&node.prefixes),
            certificate_not_after: optional(node.certificate_not_after.as_ref()),
            revoked_at: optional(node.revoked_at.as_ref()),
            is_self: node.self_,
            version: known(&node.version),
        }
    }
}

/// `meshctl node revoke`.
#[derive(Debug, Serialize)]
pub(crate) struct RevokedView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) members: u32,
    pub(crate) before: bool,
}

impl From<wire::RevokeNodeReply> for RevokedView {
    fn from(reply: wire::RevokeNodeReply) -> Self {
        Self {
            name: safe(&reply.name),
            id: safe(&reply.id),
            members: reply.members,
            before: reply.before,
        }
    }
}

/// An element of `meshctl signer list`, and `meshctl signer add`.
#[derive(Debug, Serialize)]
pub(crate) struct SignerView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) state: String,
    #[serde(rename = "self")]
    pub(crate) is_self: bool,
}

impl From<wire::SignerInfo> for SignerView {
    fn from(signer: wire::SignerInfo) -> Self {
        Self {
            name: safe(&signer.name),
            id: safe(&signer.id),
            key: safe(&signer.key),
            state: safe(&signer.state),
            is_self: signer.self_,
        }
    }
}

/// `meshctl signer revoke`.
#[derive(Debug, Serialize)]
pub(crate) struct RevokedSignerView {
    #[serde(flatten)]
    pub(crate) signer: SignerView,
    pub(crate) users: u32,
}

impl From<wire::RevokeSignerReply> for RevokedSignerView {
    fn from(reply: wire::RevokeSignerReply) -> Self {
        Self { signer: reply.signer.unwrap_or_default().into(), users: reply.users }
    }
}

/// `meshctl cert renew`.
#[derive(Debug, Serialize)]
pub(crate) struct CertificateView {
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) prefixes: Vec<String>,
    pub(crate) renewed: bool,
}

impl From<wire::RenewCertificateReply> for CertificateView {
    fn from(reply: wire::RenewCertificateReply) -> Self {
        Self {
            not_before: safe(&reply.not_before),
            not_after: safe(&reply.not_after),
            prefixes: safe_all(&reply.prefixes),
            renewed: reply.renewed,
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
