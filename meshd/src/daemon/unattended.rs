//! Joining with a token file or a systemd credential: tried for ever, and not too often.
//!
//! ```text
//! what can pass (network, clock, an issuer's keys) ── 1 s, doubling to 60 s ──────────────────► again
//! the identity document is refused ────────────────── until its file changes, at most 10 min ──► again
//! any other refusal ───────────────────────────────── 10 min ──────────────────────────────────► again
//! ```
//! Half as much more or less, so that a fleet does not ask as one. No refusal is final: who said it was reached
//! by an address alone, and one liar on the way must not keep a host out for good. A document or token that changes
//! ends every wait.

use std::{path::PathBuf, time::Duration};

use meshd_core::refusal::Code;
use tokio::time::{Instant, sleep};

use super::{
    Daemon, Done,
    document::{Document, Stamp},
    joining::{Joined, Joining, failed},
    root_key::credential,
};
use crate::{control::ControlError, state::StateError};

/// Refusals that most likely stay what they are until a person changes something.
const LASTING: [&str; 11] = [
    "token_unknown",
    "token_expired",
    "token_used",
    "token_revoked",
    "token_name",
    "name_taken",
    "prefix_taken",
    "bad_terms",
    "bad_signature",
    "other_mesh",
    "revoked",
];
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
/// The document is looked at so often while it is waited for.
const LOOK: Duration = Duration::from_secs(1);

/// When to try again.
struct Retries {
    next: Duration,
}

impl Retries {
    fn new() -> Self {
        Self { next: RETRY_FIRST }
    }

    /// How long to wait after an error with this code; `share` is random, from 0 to 1.
    fn after(&mut self, code: &str, share: f64) -> Duration {
        // The issuer's keys may come, or be new to the signer.
        let passing = [Code::IdentityKeysUnavailable.as_str(), Code::IdentityKeyUnknown.as_str()]
            .contains(&code);
        let of_document = code.starts_with("identity_") && !passing;
        let wait = if of_document || LASTING.contains(&code) {
            LONG
        } else {
            let wait = self.next;
            self.next = (wait * 2).min(RETRY_LAST);
            wait
        };
        // A document is waited for this long at most, so that the half more is taken off there.
        let share = if of_document { share / 2.0 } else { share };
        wait.mul_f64(0.5 + share)
    }
}

/// Waits, though not on while there is another document than the one that was tried.
async fn pause(wait: Duration, document: &Document, seen: Option<&Stamp>) {
    let until = Instant::now() + wait;
    while let Some(left) =
        until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        sleep(left.min(LOOK)).await;
        let now = document.stamp();
        if now.is_some() && now.as_ref() != seen {
            return;
        }
    }
}

/// Waits until the file holds something else than what was `tried`.
async fn changed(file: &Document, tried: Option<&Stamp>) {
    loop {
        sleep(LOOK).await;
        let now = file.stamp();
        if now.is_some() && now.as_ref() != tried {
            return;
        }
    }
}

impl Daemon {
    /// With a token file or a systemd credential. An identity that lies beside the configuration comes first, and
    /// is waited for while it is copied.
    pub(super) fn join_unattended(&mut self) {
        if self.running.is_some() || self.handed.is_there() {
            return;
        }
        let Some(path) = self.token_file() else { return };
        let file = Document::File(path.clone());
        let tried = file.stamp();
        let token = match std::fs::read_to_string(&path) {
            Ok(token) => token,
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                let fix =
                    "put the token there, or correct [gossip] join_token_file and restart meshd";
                self.unattended_failed(failed("join_token_file", why, fix));
                self.wait_for_a_token(file, tried);
                return;
            }
        };
        if self.has_left_with(tried.as_ref()) {
            tracing::info!(
                path = %path.display(),
                "this host has left, and does not join again with the token found there; put another one there, or run \
                 `meshctl join TOKEN`"
            );
            return self.wait_for_a_token(file, tried);
        }
        let document = self.identity_file().map_or(Document::None, Document::File);
        match self.prepare_join(token.trim(), "", document) {
            Ok(attempt) => {
                tracing::info!(path = %path.display(), "joining with the token found there");
                let done = self.done.clone();
                let task = tokio::spawn(async move {
                    let mut retries = Retries::new();
                    let result = loop {
                        let seen = attempt.document.stamp();
                        let error = match attempt.run(None).await {
                            Ok(joined) => break Ok(joined),
                            Err(error) => error,
                        };
                        let wait = retries.after(&error.code, rand::random());
                        tracing::warn!("{error}; trying again in {} s", wait.as_secs());
                        // The loop only goes away with the process.
                        let _ = done.send(Done::NotJoinedYet(error)).await;
                        tokio::select! {
                            () = pause(wait, &attempt.document, seen.as_ref()) => {}
                            () = changed(&file, tried.as_ref()) => {
                                let _ = done.send(Done::TokenChanged).await;
                                return;
                            }
                        }
                    };
                    let _ =
                        done.send(Done::Joined(Box::new(Joined { result, answers: None }))).await;
                });
                self.joining = Some(Joining::Unattended(task.abort_handle()));
            }
            Err(error) => {
                self.unattended_failed(error);
                self.wait_for_a_token(file, tried);
            }
        }
    }

    /// What the file holds is no token; somebody may put a better one there.
    fn wait_for_a_token(&mut self, file: Document, tried: Option<Stamp>) {
        let done = self.done.clone();
        let task = tokio::spawn(async move {
            changed(&file, tried.as_ref()).await;
            // The loop only goes away with the process.
            let _ = done.send(Done::TokenChanged).await;
        });
        self.token_wait = Some(task.abort_handle());
    }

    /// The token file holds something else now.
    pub(super) fn try_the_new_token(&mut self) {
        let by_hand = matches!(self.joining, Some(Joining::ByHand(_)));
        if self.running.is_none() && !by_hand {
            self.stop_unattended();
            self.join_error = None;
            tracing::info!("the token file has changed; joining with what it holds now");
            self.join_unattended();
        }
    }

    /// A person decides otherwise than the token file.
    pub(super) fn stop_unattended(&mut self) {
        if let Some(task) = self.token_wait.take() {
            task.abort();
        }
        if let Some(Joining::Unattended(task)) = self.joining.take() {
            task.abort();
        }
    }

    /// A leave is final: the token that lies in the file now does not bring this host back.
    pub(super) fn note_left_token(&self) -> Result<(), StateError> {
        let stamp = self.token_file().and_then(|path| Document::File(path).stamp());
        stamp.map_or(Ok(()), |stamp| self.state.note_left_token(&stamp.0))
    }

    fn has_left_with(&self, token: Option<&Stamp>) -> bool {
        match self.state.left_token() {
            Ok(left) => left.is_some() && left.as_ref() == token.map(|stamp| &stamp.0),
            Err(error) => {
                // Nobody wants a host to join that may have left.
                tracing::error!("{error}");
                true
            }
        }
    }

    /// Whether this host tries to join with a token file, or waits for another one.
    pub(super) fn is_joining_unattended(&self) -> bool {
        self.token_wait.is_some() || matches!(self.joining, Some(Joining::Unattended(_)))
    }

    pub(super) fn unattended_failed(&mut self, error: ControlError) {
        tracing::error!("{error}");
        self.join_error = Some(error);
    }

    fn token_file(&self) -> Option<PathBuf> {
        self.config.gossip.join_token_file.clone().or_else(|| credential("meshd.token"))
    }

    fn identity_file(&self) -> Option<PathBuf> {
        self.config.gossip.join_identity_file.clone().or_else(|| credential("meshd.identity"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(retries: &mut Retries, code: &str, share: f64) -> u64 {
        retries.after(code, share).as_secs()
    }

    #[test]
    fn what_can_pass_is_tried_again_soon_then_every_minute_and_never_in_step() {
        let mut retries = Retries::new();
        let waits: Vec<u64> =
            (0..9).map(|_| seconds(&mut retries, "seed_unreachable", 0.5)).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        for code in
            ["identity_keys_unavailable", "identity_key_unknown", "rate_limited", "no_signer"]
        {
            assert_eq!(seconds(&mut retries, code, 0.0), 30, "{code}");
            assert_eq!(seconds(&mut retries, code, 1.0), 90, "{code}");
        }
    }

    #[test]
    fn a_refused_document_is_not_shown_again_and_again() {
        let mut retries = Retries::new();
        for code in ["identity_expired", "identity_rule", "identity_used", "identity_malformed"] {
            assert_eq!(seconds(&mut retries, code, 0.0), 300, "{code}");
            assert_eq!(seconds(&mut retries, code, 1.0), 600, "{code}: ten minutes are the most");
        }
        assert_eq!(seconds(&mut retries, "seed_unreachable", 0.5), 1, "another thing");
    }

    #[test]
    fn no_refusal_is_final_since_a_liar_may_have_said_it() {
        let mut retries = Retries::new();
        for code in Code::ALL.iter().map(|code| code.as_str()).chain(["refused", ""]) {
            let wait = retries.after(code, 0.5);
            assert!(wait <= Duration::from_secs(600), "{code}: {wait:?}");
        }
        assert_eq!(seconds(&mut retries, "token_expired", 0.0), 300);
        assert_eq!(seconds(&mut retries, "token_expired", 1.0), 900);
    }

    #[tokio::test]
    async fn another_document_ends_every_wait_and_the_same_none() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("document");
        let document = Document::File(path.clone());
        let short = Duration::from_millis(1_200);
        let took = async |wait, seen: Option<&Stamp>| {
            let begin = Instant::now();
            pause(wait, &document, seen).await;
            begin.elapsed()
        };
        // None is there yet, and then one.
        assert!(took(short, None).await >= short);
        std::fs::write(&path, "one").unwrap();
        assert!(took(LONG, None).await < LONG);
        let seen = document.stamp();
        std::fs::write(&path, "one\n").unwrap();
        assert!(took(short, seen.as_ref()).await >= short, "written anew, and the same");
        std::fs::write(&path, "two").unwrap();
        assert!(took(LONG, seen.as_ref()).await < LONG);
    }
}
