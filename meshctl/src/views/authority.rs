//! What `meshctl cert ca` prints.

use meshd_proto::control as wire;
use serde::Serialize;

use super::SignerView;
use crate::text::safe;

/// `meshctl cert ca show`, and `rotate`.
#[derive(Debug, Serialize)]
pub(crate) struct RootsView {
    pub(crate) roots: Vec<RootView>,
    pub(crate) to_move: Vec<SignerView>,
    pub(crate) to_renew: u32,
    pub(crate) key_state: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct RootView {
    pub(crate) key: String,
    pub(crate) state: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
}

impl From<wire::RootsReply> for RootsView {
    fn from(reply: wire::RootsReply) -> Self {
        let root = |root: wire::RootInfo| RootView {
            key: safe(&root.key),
            state: safe(&root.state),
            not_before: safe(&root.not_before),
            not_after: safe(&root.not_after),
        };
        Self {
            roots: reply.roots.into_iter().map(root).collect(),
            to_move: reply.to_move.into_iter().map(SignerView::from).collect(),
            to_renew: reply.to_renew,
            key_state: safe(&reply.key_state),
        }
    }
}
