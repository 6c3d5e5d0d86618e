//! Keeps on disk what strict leak protection holds, so that it stands at the next boot before the daemon does.
//!
//! Written in a task, one at a time, and only when it changed: a disk may take its time.

use std::time::{Duration, Instant};

use meshd_core::plan::Desired;

use super::{Daemon, Done, planning::plan_config};
use crate::state::guard::SavedGuard;

/// Before the next attempt, where the disk refuses.
const AGAIN: Duration = Duration::from_secs(10);

/// What is on disk, as far as is known.
#[derive(Default)]
pub(super) struct Keeper {
    /// What was kept last; `None` at the start and after a failure.
    kept: Option<Option<SavedGuard>>,
    writing: bool,
    /// Not before, after a failure.
    due: Option<Instant>,
    /// Why it could not be kept the last time.
    pub(super) error: Option<String>,
}

impl Daemon {
    /// Keeps the guard of a plan, if it has one and it is another than before.
    pub(super) fn keep_guard(&mut self, desired: &Desired) {
        if self.guard.writing {
            return;
        }
        if self.guard.due.is_some_and(|due| Instant::now() < due) {
            return;
        }
        let mut wanted = SavedGuard::of(desired, &plan_config(&self.config));
        if desired.additive {
            let former = match &self.guard.kept {
                Some(kept) => kept.clone(),
                // What cannot be read is written anew.
                None => SavedGuard::read(self.state.path()).unwrap_or_default(),
            };
            wanted = wanted.map(|guard| match &former {
                Some(former) => guard.and_what_was(former),
                None => guard,
            });
        }
        if self.guard.kept.as_ref() == Some(&wanted) {
            return;
        }
        self.guard.writing = true;
        let (directory, done) = (self.state.path().to_owned(), self.done.clone());
        tokio::task::spawn_blocking(move || {
            let result = match &wanted {
                Some(guard) => guard.write(&directory),
                None => SavedGuard::forget(&directory),
            };
            let result = result.map(|()| wanted).map_err(|error| error.to_string());
            // The loop only goes away with the process.
            let _ = done.blocking_send(Done::GuardKept(Box::new(result)));
        });
    }

    pub(super) fn guard_kept(&mut self, result: Result<Option<SavedGuard>, String>) {
        self.guard.writing = false;
        match result {
            Ok(kept) => {
                self.guard.kept = Some(kept);
                (self.guard.due, self.guard.error) = (None, None);
            }
            Err(why) => {
                tracing::error!(%why, "the leak guard was not kept for the next boot");
                self.guard.kept = None;
                self.guard.due = Some(Instant::now() + AGAIN);
                self.guard.error = Some(why);
            }
        }
        match &self.running {
            // What changed meanwhile.
            Some(running) => {
                let desired = running.plan.desired.clone();
                self.keep_guard(&desired);
            }
            // This host has left while it was written.
            None => {
                if let Err(error) = SavedGuard::forget(self.state.path()) {
                    tracing::error!(%error, "the kept leak guard was not removed");
                }
            }
        }
    }
}
