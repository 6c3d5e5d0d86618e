//! What `meshctl reload` and `meshctl confirm` print.

use meshd_proto::control as wire;
use serde::Serialize;

use crate::text::safe;

/// `meshctl reload`.
#[derive(Debug, Serialize)]
pub(crate) struct ReloadView {
    pub(crate) applied: Vec<ChangeView>,
    pub(crate) needs_restart: Vec<ChangeView>,
    pub(crate) trial_seconds_left: Option<u32>,
    pub(crate) restarting: bool,
}

/// `meshctl confirm`.
#[derive(Debug, Serialize)]
pub(crate) struct ConfirmView {
    pub(crate) needs_restart: Vec<ChangeView>,
    pub(crate) files_differ: Vec<ChangeView>,
    pub(crate) files_broken: Option<String>,
}

/// A key of the configuration, with its values as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ChangeView {
    pub(crate) key: String,
    pub(crate) old: String,
    pub(crate) new: String,
}

impl From<wire::ReloadChange> for ChangeView {
    fn from(change: wire::ReloadChange) -> Self {
        Self { key: safe(&change.key), old: safe(&change.old), new: safe(&change.new) }
    }
}

fn changes(changes: Vec<wire::ReloadChange>) -> Vec<ChangeView> {
    changes.into_iter().map(ChangeView::from).collect()
}

impl From<wire::ReloadReply> for ReloadView {
    fn from(reply: wire::ReloadReply) -> Self {
        Self {
            applied: changes(reply.applied),
            needs_restart: changes(reply.needs_restart),
            trial_seconds_left: reply.trial_seconds_left,
            restarting: reply.restarting,
        }
    }
}

impl From<wire::ConfirmReply> for ConfirmView {
    fn from(reply: wire::ConfirmReply) -> Self {
        Self {
            needs_restart: changes(reply.needs_restart),
            files_differ: changes(reply.files_differ),
            files_broken: reply.files_broken.as_deref().map(safe),
        }
    }
}
