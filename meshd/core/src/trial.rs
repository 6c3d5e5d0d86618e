//! A configuration on trial: which one runs, the new one or the one that ran before.
//!
//! Responsible for the rule alone. Not for the files in which a trial is kept, nor for carrying a change out. The start
//! of the daemon, the leak guard of the boot and the daemon's tick ask it.
//!
//! ```text
//!            reload --confirm                confirm
//!   (none) ───────────────────► on trial ───────────────► (none)
//!                                  │ time over, host started anew,
//!                                  │ files broken, start failed
//!                                  ▼
//!                               ended: what ran before runs, until a reload
//!                               or other files end that too ──► (none)
//! ```

use std::time::Duration;

/// Shorter ones are over before somebody has typed `meshctl confirm`.
pub const SHORTEST: Duration = Duration::from_secs(10);
/// Longer ones are forgotten.
pub const LONGEST: Duration = Duration::from_secs(3_600);

/// What is kept of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<'a> {
    /// Of the start of the host in which it began.
    pub boot: &'a str,
    /// When it ends, on a clock that begins with that start and also counts while the host sleeps.
    pub ends: Duration,
    /// It has ended, and nobody had confirmed it.
    pub ended: bool,
}

/// Now, on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock<'a> {
    /// Which start of the host this is.
    pub boot: &'a str,
    /// Since that start, sleep included.
    pub now: Duration,
}

/// What the configuration's files say now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Nothing that could be run.
    Broken,
    /// What ran before the trial.
    Former,
    /// What was on disk when the trial ended.
    Rejected,
    /// Something else.
    Other,
}

/// Why a trial ended without a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody confirmed it in time.
    Over,
    /// The host was started anew: whoever could have confirmed it may be cut off.
    Rebooted,
    /// The files cannot be read.
    Broken,
    /// The daemon could not start with them.
    Failed,
}

impl Why {
    /// Stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Over => "not_confirmed",
            Self::Rebooted => "rebooted",
            Self::Broken => "config_refused",
            Self::Failed => "start_failed",
        }
    }

    /// The one with this code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        [Self::Over, Self::Rebooted, Self::Broken, Self::Failed]
            .into_iter()
            .find(|why| why.as_str() == code)
    }

    /// For a person, about the configuration.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Over => "nobody confirmed it in time",
            Self::Rebooted => "this host was started anew before anybody confirmed it",
            Self::Broken => "it cannot be read",
            Self::Failed => "the daemon could not start with it",
        }
    }
}

/// What is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// What the files say, and no trial any more.
    Files,
    /// What the files say, for so long.
    Trial(Duration),
    /// What ran before, since the trial has just ended.
    Ended(Why),
    /// What ran before, since the trial ended some time ago and nobody has done anything about it.
    Former,
}

/// How long a trial goes on; `None` when it does not.
///
/// # Errors
/// Why it is over.
pub fn left(kept: &Kept<'_>, clock: &Clock<'_>) -> Result<Duration, Why> {
    if kept.boot != clock.boot {
        return Err(Why::Rebooted);
    }
    match kept.ends.checked_sub(clock.now) {
        // More than there ever was: not what this program wrote, or not this clock.
        Some(left) if left > Duration::ZERO && left <= LONGEST => Ok(left),
        _ => Err(Why::Over),
    }
}

/// What runs at a start of the daemon, and what the guard of the boot goes by.
#[must_use]
pub fn choose(kept: Option<&Kept<'_>>, clock: &Clock<'_>, files: Files) -> Choice {
    let Some(kept) = kept else { return Choice::Files };
    match (kept.ended, files) {
        // There is nothing left to choose between.
        (_, Files::Former) => Choice::Files,
        (true, Files::Broken | Files::Rejected) => Choice::Former,
        // Somebody has corrected them since.
        (true, Files::Other) => Choice::Files,
        (false, _) => match (left(kept, clock), files) {
            (Err(why), _) => Choice::Ended(why),
            (Ok(_), Files::Broken) => Choice::Ended(Why::Broken),
            (Ok(left), _) => Choice::Trial(left),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [Files; 4] = [Files::Broken, Files::Former, Files::Rejected, Files::Other];

    fn at(seconds: u64) -> Clock<'static> {
        Clock { boot: "this", now: Duration::from_secs(seconds) }
    }

    fn kept(boot: &str, ended: bool) -> Kept<'_> {
        Kept { boot, ends: Duration::from_secs(1_000), ended }
    }

    #[test]
    fn without_a_trial_the_files_count() {
        for files in FILES {
            assert_eq!(choose(None, &at(1), files), Choice::Files, "{files:?}");
        }
    }

    #[test]
    fn a_trial_goes_on_until_its_time_is_over() {
        let trial = kept("this", false);
        for (now, files, want) in [
            (900, Files::Other, Choice::Trial(Duration::from_secs(100))),
            (999, Files::Rejected, Choice::Trial(Duration::from_secs(1))),
            (1_000, Files::Other, Choice::Ended(Why::Over)),
            (5_000, Files::Other, Choice::Ended(Why::Over)),
            (900, Files::Broken, Choice::Ended(Why::Broken)),
            (1_000, Files::Broken, Choice::Ended(Why::Over)),
            (900, Files::Former, Choice::Files),
            (1_000, Files::Former, Choice::Files),
        ] {
            assert_eq!(choose(Some(&trial), &at(now), files), want, "{now} {files:?}");
        }
    }

    #[test]
    fn a_start_of_the_host_ends_it_whatever_the_clock_says() {
        let trial = kept("another", false);
        for now in [0, 900, 1_000, 5_000] {
            for files in [Files::Broken, Files::Rejected, Files::Other] {
                let chosen = choose(Some(&trial), &at(now), files);
                assert_eq!(chosen, Choice::Ended(Why::Rebooted), "{now} {files:?}");
            }
        }
    }

    #[test]
    fn nothing_lasts_longer_than_a_trial_can() {
        let trial = kept("this", false);
        let trial = Kept { ends: Duration::MAX, ..trial };
        assert_eq!(left(&trial, &at(1)), Err(Why::Over));
        let most = Kept { ends: LONGEST + Duration::from_secs(1), ..trial };
        assert_eq!(left(&most, &at(1)), Ok(LONGEST));
    }

    #[test]
    fn what_was_rejected_stays_so_until_somebody_corrects_it() {
        for boot in ["this", "another"] {
            let ended = kept(boot, true);
            for now in [0, 900, 5_000] {
                for (files, want) in [
                    (Files::Broken, Choice::Former),
                    (Files::Rejected, Choice::Former),
                    (Files::Former, Choice::Files),
                    (Files::Other, Choice::Files),
                ] {
                    assert_eq!(choose(Some(&ended), &at(now), files), want, "{boot} {now}");
                }
            }
        }
    }

    #[test]
    fn reasons_have_codes() {
        for why in [Why::Over, Why::Rebooted, Why::Broken, Why::Failed] {
            assert_eq!(Why::from_code(why.as_str()), Some(why));
            assert!(!why.text().is_empty());
        }
        assert_eq!(Why::from_code("x"), None);
    }
}
