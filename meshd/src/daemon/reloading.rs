//! Reading the configuration again: for good, or on trial until somebody confirms it.
//!
//! What ran before is on disk before anything of the new configuration is applied, so that it comes back whatever
//! becomes of this process, of the host, and of the connection of whoever asked.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command, time::Duration};

use anyhow::anyhow;
use meshd_core::{
    event::{Actor, Event},
    trial::{LONGEST, SHORTEST, Why, left},
};
use meshd_proto::control::{ConfirmReply, HealthLine, ReloadChange, ReloadReply, ReloadRequest};

use super::{Daemon, health, unlike::Unlike};
use crate::{
    chosen::{Chosen, HostClock},
    config::{Changes, Config, Difference, Sources, Texts},
    control::ControlError,
    state::{
        StateDir, StateError,
        trial::{Ended, SavedTrial},
    },
};

/// For how long a reload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// For good; if a trial goes on, as long as that.
    Good,
    /// Until it is confirmed, or this time is over.
    Trial(Duration),
}

const NOT_RELOADED: &str = "the configuration was not reloaded";

impl Daemon {
    /// SIGHUP.
    pub(super) fn on_hangup(&mut self) {
        if let Err(error) = self.reload(Lasts::Good, Actor::Daemon) {
            tracing::warn!("{error}");
        }
    }

    /// `meshctl reload`.
    pub(super) fn reload_by(
        &mut self,
        request: &ReloadRequest,
        by: Actor,
    ) -> Result<ReloadReply, ControlError> {
        let lasts = Duration::from_secs(u64::from(request.trial_seconds));
        let lasts = match lasts {
            Duration::ZERO if request.restart => {
                let why = "only a trial begins the daemon anew";
                let fix = "add --confirm, or use `systemctl restart meshd`";
                return Err(ControlError::new("bad_request", NOT_RELOADED, why, fix));
            }
            Duration::ZERO => Lasts::Good,
            lasts if (SHORTEST..=LONGEST).contains(&lasts) => Lasts::Trial(lasts),
            _ => {
                let why = "a trial lasts from 10s to 1h";
                return Err(ControlError::new(
                    "bad_request",
                    NOT_RELOADED,
                    why,
                    "say --confirm 2m",
                ));
            }
        };
        let mut reply = self.reload(lasts, by)?;
        if request.restart && !reply.needs_restart.is_empty() {
            self.restarting = true;
            reply.restarting = true;
        }
        Ok(reply)
    }

    /// Applies what can change at run time, and says what cannot.
    fn reload(&mut self, lasts: Lasts, by: Actor) -> Result<ReloadReply, ControlError> {
        self.notifier.reloading();
        let reloaded = self.read_again(lasts, by);
        if let Err(error) = &reloaded {
            let text = format!("the configuration in force stays: {}", error.why);
            let event = Event::error("config_refused", text).because(error.code.clone());
            self.events.emit(event.by(by));
        }
        self.look_at_handed_again();
        self.load_issuers();
        self.notifier.reloaded();
        reloaded
    }

    fn read_again(&mut self, lasts: Lasts, by: Actor) -> Result<ReloadReply, ControlError> {
        let (texts, config) = self.sources.read();
        let new = config.map_err(|errors| {
            self.reload_error = Some(errors.to_string());
            let fix = "`meshd check` shows the same; then reload again";
            ControlError::new("config_refused", NOT_RELOADED, errors.to_string(), fix)
        })?;
        self.prepare_trial(lasts, &new)?;
        self.reload_error = None;
        self.unlike = None;
        let changes = self.config.changes(&new);
        for change in &changes.restart {
            tracing::warn!(key = change.key, old = %change.old, new = %change.new,
                "this needs a restart: systemctl restart meshd");
        }
        for change in &changes.live {
            tracing::info!(key = change.key, old = %change.old, new = %change.new, "applied");
        }
        let trial = self.trial_seconds_left();
        let event = match trial {
            None => Event::info("config_reloaded", "the configuration was read again"),
            Some(seconds) => {
                let text = format!(
                    "the configuration was read again, on trial: what ran before comes back in {seconds} s"
                );
                Event::info("config_on_trial", text).with("seconds", seconds)
            }
        };
        let event = event.with("applied", keys(&changes.live));
        self.events.emit(event.with("needs_restart", keys(&changes.restart)).by(by));
        self.origin = self.origin.reload(texts);
        self.apply_live(new);
        Ok(ReloadReply {
            applied: shown(changes.live),
            needs_restart: shown(changes.restart),
            trial_seconds_left: trial,
            restarting: false,
        })
    }

    /// Has on disk what is to be there before anything is applied.
    fn prepare_trial(&mut self, lasts: Lasts, new: &Config) -> Result<(), ControlError> {
        let on_trial = self.on_trial();
        let moved = new.node.state_dir != self.config.node.state_dir;
        if moved && (on_trial || lasts != Lasts::Good) {
            return Err(ControlError::new(
                "not_for_trial",
                NOT_RELOADED,
                "node.state_dir differs, and in the state directory lies what ran before",
                "change node.state_dir by itself, without a trial",
            ));
        }
        match lasts {
            Lasts::Trial(time) => {
                // During a trial nothing newer was confirmed.
                let former = match &self.trial {
                    Some(trial) if on_trial => trial.former.clone(),
                    _ => self.origin.clone(),
                };
                let begun = HostClock::now().begin(time, former).map_err(|error| {
                    let fix = "reload without --confirm";
                    ControlError::new("not_for_trial", NOT_RELOADED, error.to_string(), fix)
                })?;
                begun.write(self.state.path()).map_err(|error| not_kept(&error))?;
                self.trial = Some(begun);
            }
            Lasts::Good if on_trial => {}
            // What was rejected is wanted all the same.
            Lasts::Good => self.forget_trial().map_err(|error| not_kept(&error))?,
        }
        Ok(())
    }

    /// Keeps what is on trial.
    pub(super) fn confirm(&mut self) -> Result<ConfirmReply, ControlError> {
        const WHAT: &str = "nothing was confirmed";
        let left = self.trial.as_ref().map(|trial| left(&trial.kept(), &HostClock::now().clock()));
        match (&self.trial, left) {
            (None, _) | (_, None) => {
                let fix = "`meshctl reload --confirm` begins a trial";
                return Err(ControlError::new(
                    "no_trial",
                    WHAT,
                    "no configuration is on trial",
                    fix,
                ));
            }
            (Some(SavedTrial { ended: Some(ended), .. }), _) => {
                let why = format!("the trial is over: {}", ended.text());
                return Err(ControlError::new("trial_over", WHAT, why, AGAIN));
            }
            (Some(_), Some(Err(why))) => {
                let why = format!("the trial is over: {}", why.text());
                return Err(ControlError::new("trial_over", WHAT, why, AGAIN));
            }
            (Some(_), Some(Ok(_))) => {}
        }
        self.forget_trial().map_err(|error| {
            let fix = "check the disk of the state directory and confirm again, in time";
            ControlError::new("state_dir", WHAT, error.to_string(), fix)
        })?;
        let changes = match self.origin.newest().config() {
            Ok(newest) => self.config.changes(&newest),
            Err(_) => Changes::default(),
        };
        let (mut differ, mut broken) = (Vec::new(), None);
        match self.compare_files().cloned() {
            Some(Unlike::Broken(why)) => broken = Some(why),
            Some(Unlike::Differ(all)) => differ = all,
            None => {}
        }
        Ok(ConfirmReply {
            needs_restart: shown(changes.restart),
            files_differ: shown(differ),
            files_broken: broken,
        })
    }

    pub(super) fn forget_trial(&mut self) -> Result<(), StateError> {
        if self.trial.is_some() {
            SavedTrial::forget(self.state.path())?;
            self.trial = None;
        }
        Ok(())
    }

    fn on_trial(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.ended.is_none())
    }

    /// Of a trial that goes on.
    pub(super) fn trial_seconds_left(&self) -> Option<u32> {
        let trial = self.trial.as_ref().filter(|trial| trial.ended.is_none())?;
        let left = left(&trial.kept(), &HostClock::now().clock()).unwrap_or_default();
        Some(u32::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX))
    }

    /// What runs before a trial runs again when its time is over.
    pub(super) fn end_trial_in_time(&mut self) {
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.ended.is_none()) else { return };
        let Err(why) = left(&trial.kept(), &HostClock::now().clock()) else { return };
        let former = match trial.former.config() {
            Ok(former) => former,
            // It was in force once, by this very program.
            Err(errors) => {
                tracing::error!(%errors, "what ran before the trial cannot run; the trial stands");
                self.trial = None;
                return;
            }
        };
        let (texts, on_disk) = self.sources.read();
        let same = on_disk.is_ok_and(|on_disk| on_disk == former);
        trial.ended = Some(Ended::new(why, "", texts.fingerprint()));
        let (trial, state_dir) = (trial.clone(), self.state.path());
        let kept = if same { SavedTrial::forget(state_dir) } else { trial.write(state_dir) };
        // A start finds by the clock what cannot be written now.
        if let Err(error) = kept {
            tracing::error!(%error, "the end of the trial was not kept");
        }
        self.notifier.reloading();
        let changes = self.config.changes(&former);
        self.events.emit(reverted(why, &changes));
        self.origin = trial.former;
        self.apply_live(former);
        self.restarting |= !changes.restart.is_empty();
        if same {
            self.trial = None;
        }
        if !self.restarting {
            self.notifier.reloaded();
        }
    }

    /// After the start: has on disk, and tells, what the start made of a trial.
    pub(super) fn note_trial(&mut self, changed: bool) {
        if !changed {
            return;
        }
        let kept = match &self.trial {
            Some(trial) => trial.write(self.state.path()),
            None => SavedTrial::forget(self.state.path()),
        };
        if let Err(error) = kept {
            tracing::error!(%error, "the end of the trial was not kept");
        }
        if let Some(ended) = self.trial.as_ref().and_then(|trial| trial.ended.as_ref()) {
            let event = reverted(ended.why(), &Changes::default());
            self.events.emit(event.with("detail", &ended.detail));
        }
    }

    /// What a trial means for this host.
    pub(super) fn trial_line(&self) -> Option<HealthLine> {
        let trial = self.trial.as_ref()?;
        Some(match &trial.ended {
            None => health::line(
                "config_on_trial",
                "warning",
                format!(
                    "the configuration is on trial: what ran before comes back in {} s",
                    self.trial_seconds_left().unwrap_or_default()
                ),
                "`meshctl confirm` keeps it",
            ),
            Some(ended) => health::line(
                "config_reverted",
                "warning",
                format!(
                    "the configuration on disk is not in force; what ran before its trial is. Reason: {}",
                    ended.text()
                ),
                AGAIN,
            ),
        })
    }
}

const AGAIN: &str = "correct the files, then `meshctl reload --confirm` (with --restart, if a key needs one) tries them \
                     again and `meshctl reload` takes them for good; `meshctl confirm` is too late";

fn not_kept(error: &StateError) -> ControlError {
    ControlError::new("state_dir", NOT_RELOADED, error.to_string(), "mend that and reload again")
}

fn reverted(why: Why, changes: &Changes) -> Event {
    let text = format!("the configuration that ran before the trial runs again: {}", why.text());
    Event::warning("config_reverted", text)
        .because(why.as_str())
        .with("applied", keys(&changes.live))
        .with("needs_restart", keys(&changes.restart))
}

fn keys(changes: &[Difference]) -> String {
    changes.iter().map(|change| change.key).collect::<Vec<_>>().join(",")
}

fn shown(changes: Vec<Difference>) -> Vec<ReloadChange> {
    changes
        .into_iter()
        .map(|Difference { key, old, new }| ReloadChange { key: key.to_owned(), old, new })
        .collect()
}

/// With what a daemon was started, for when it does not start.
pub(super) struct Started {
    on_trial: bool,
    state_dir: PathBuf,
}

impl Started {
    pub(super) fn of(chosen: &Chosen) -> Self {
        let on_trial = chosen.trial.as_ref().is_some_and(|trial| trial.ended.is_none());
        Self { on_trial, state_dir: chosen.config.node.state_dir.clone() }
    }

    /// Ends the trial of a configuration with which the daemon did not start. False where there is none, or where it
    /// could not be ended: then its time will.
    pub(super) fn reject(&self, sources: &Sources, error: &anyhow::Error) -> bool {
        if !self.on_trial {
            return false;
        }
        // Another daemon that runs there is no reason to end its trial.
        let Ok(state) = StateDir::open(&self.state_dir) else { return false };
        let Ok(Some(mut trial)) = SavedTrial::read(state.path()) else { return false };
        let (texts, _): (Texts, _) = sources.read();
        trial.ended = Some(Ended::new(Why::Failed, &format!("{error:#}"), texts.fingerprint()));
        trial.write(state.path()).is_ok()
    }
}

/// Runs this program anew in this process, as it was started; returns only when that fails. To systemd it is the same
/// daemon, and no supervisor is needed.
pub(super) fn begin_anew() -> anyhow::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "meshd".into());
    let error = Command::new(program()).arg0(name).args(arguments).exec();
    anyhow!("cannot run the daemon anew; {error}; start it with `systemctl start meshd`")
}

/// The file of this program, or what an upgrade has put in its place.
fn program() -> PathBuf {
    const GONE: &str = " (deleted)";
    let running = PathBuf::from("/proc/self/exe");
    let Ok(path) = std::env::current_exe() else { return running };
    let text = path.to_string_lossy();
    let path = text.strip_suffix(GONE).map_or(path.clone(), PathBuf::from);
    if path.is_file() { path } else { running }
}
