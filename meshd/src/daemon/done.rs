//! What tasks of the loop bring back.

use std::time::Instant;

use bytes::Bytes;
use meshd_core::{
    plan::Observed,
    trust::{SealError, issuer::KeySet},
};
use meshd_proto::control::RootsReply;
use zeroize::Zeroizing;

use super::{
    Daemon, SYNC_DELAY,
    bridge::Request,
    clock,
    joining::{Joined, Joining},
    resolve::Resolved,
    root_key::{Asked, Sealing},
};
use crate::{control::ControlError, state::guard::SavedGuard};

/// What tasks of the loop report.
pub(super) enum Done {
    Resolved(Resolved),
    Joined(Box<Joined>),
    NotJoinedYet(ControlError),
    /// The token file holds another token than the one that was tried.
    TokenChanged,
    /// What a member answered to this node as to a stranger.
    Renewal(u64, Option<Bytes>),
    Flushed(Result<(), String>),
    /// What strict leak protection holds is on disk.
    GuardKept(Box<Result<Option<SavedGuard>, String>>),
    /// The root's key, and the passphrase that opened it.
    Opened(Result<Zeroizing<[u8; 32]>, SealError>, Zeroizing<Vec<u8>>, Asked<RootsReply>),
    /// A root's key under a passphrase.
    Sealed(Result<Zeroizing<String>, SealError>, Box<Sealing>),
    /// The keys of an issuer, by the number of the question.
    Keys(u64, String, Result<KeySet, String>),
    /// What the kernel holds now, if it said so in time, for an answer.
    Looked(Option<Box<(Observed, Instant)>>, Box<Request>),
}

impl Daemon {
    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Resolved(resolved) => {
                for why in &resolved.failed {
                    tracing::warn!(%why, "a seed could not be resolved");
                }
                if let Some(running) = &mut self.running {
                    // A resolver that fails must not take away what worked before.
                    if resolved.failed.is_empty() || !resolved.addresses.is_empty() {
                        running.node.set_seeds(resolved.addresses, clock::now());
                    }
                }
            }
            Done::Joined(joined) => self.finish_join(*joined),
            Done::NotJoinedYet(error) => {
                if matches!(self.joining, Some(Joining::Unattended(_))) {
                    self.join_error = Some(error);
                }
            }
            Done::TokenChanged => self.try_the_new_token(),
            Done::Renewal(id, reply) => {
                if let Some(running) = &mut self.running {
                    running.node.handle_renewal_reply(id, reply.as_deref(), clock::now());
                }
            }
            Done::Keys(asked, name, keys) => self.take_keys(asked, &name, keys),
            Done::GuardKept(result) => self.guard_kept(*result),
            Done::Flushed(result) => {
                self.flushing = false;
                if result.is_err() {
                    self.flush_due.get_or_insert(Instant::now() + SYNC_DELAY);
                }
                if let Some(running) = &mut self.running {
                    running.flush_error = result.err();
                }
            }
            Done::Opened(seed, passphrase, to) => {
                self.root_opened(seed, passphrase, to);
            }
            Done::Sealed(text, then) => self.root_sealed(text, *then),
            Done::Looked(observed, request) => {
                if let Some(running) = &mut self.running
                    && let Some((observed, at)) = observed.map(|looked| *looked)
                {
                    running.see_asked(observed, at);
                    self.watch_paths();
                }
                self.answer_peers(*request);
            }
        }
    }
}
