//! `token`, and the audience of identity documents.

use meshd_proto::control as wire;
use serde::Serialize;

use crate::text::{known, safe, safe_all};

/// An element of `meshctl token list`.
#[derive(Debug, Serialize)]
pub(crate) struct TokenView {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) node: Option<String>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) allow: Vec<String>,
    pub(crate) workloads: Vec<String>,
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
            workloads: safe_all(&info.workloads),
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
