//! `node` and `signer`: who belongs, and who may admit.

use meshd_proto::control as wire;
use serde::Serialize;

use super::optional;
use crate::text::{known, safe, safe_all};

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
    pub(crate) prefixes: Vec<String>,
}

impl From<wire::RevokeNodeReply> for RevokedView {
    fn from(reply: wire::RevokeNodeReply) -> Self {
        Self {
            name: safe(&reply.name),
            id: safe(&reply.id),
            members: reply.members,
            before: reply.before,
            prefixes: reply.prefixes.iter().map(|prefix| safe(prefix)).collect(),
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
