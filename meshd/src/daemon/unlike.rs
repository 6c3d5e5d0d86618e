//! Files of the configuration that say something else than what was confirmed: the next start would take them.
//!
//! A trial may be confirmed while somebody writes the files anew. Looked at when a trial is confirmed, and from then on
//! until they are the same, or are read again.

use std::time::{Duration, Instant};

use meshd_proto::control::HealthLine;

use super::{Daemon, health};
use crate::config::{Config, ConfigErrors, Difference};

/// How often files that differ are looked at.
const LOOK: Duration = Duration::from_secs(10);
const FIX: &str = "correct the files, or `meshctl reload --confirm` tries them";

/// How the files differ from what was confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unlike {
    /// They cannot be read.
    Broken(String),
    /// They say other things.
    Differ(Vec<Difference>),
}

impl Unlike {
    fn of(confirmed: &Config, files: Result<Config, ConfigErrors>) -> Option<Self> {
        let files = match files {
            Ok(files) => files,
            Err(errors) => return Some(Self::Broken(errors.to_string())),
        };
        let changes = confirmed.changes(&files);
        let all: Vec<_> = changes.live.into_iter().chain(changes.restart).collect();
        (!all.is_empty()).then_some(Self::Differ(all))
    }

    fn message(&self) -> String {
        match self {
            Self::Broken(why) => {
                format!("the files on disk cannot be read, and a restart would fail: {why}")
            }
            Self::Differ(all) => {
                let keys: Vec<_> = all.iter().map(|one| one.key).collect();
                let keys = keys.join(", ");
                format!(
                    "the files on disk differ from what was confirmed, and a restart would take them: {keys}"
                )
            }
        }
    }
}

/// Since when the files differ, and when they are looked at again.
#[derive(Debug)]
pub(super) struct Watched {
    unlike: Unlike,
    again: Instant,
}

impl Daemon {
    /// Compares the files with what was read last and is in force.
    pub(super) fn compare_files(&mut self) -> Option<&Unlike> {
        let confirmed = self.origin.newest().config();
        let confirmed = confirmed.as_ref().unwrap_or(&self.config);
        let unlike = Unlike::of(confirmed, self.sources.read().1);
        self.unlike = unlike.map(|unlike| Watched { unlike, again: Instant::now() + LOOK });
        self.unlike.as_ref().map(|watched| &watched.unlike)
    }

    /// Looks now and then whether somebody has corrected them.
    pub(super) fn look_at_files(&mut self) {
        if self.unlike.as_ref().is_some_and(|watched| watched.again <= Instant::now()) {
            self.compare_files();
        }
    }

    /// For `status`; what a reload refused is said there already.
    pub(super) fn files_line(&self) -> Option<HealthLine> {
        let watched = self.unlike.as_ref().filter(|_| self.reload_error.is_none())?;
        Some(health::line("config_files_differ", "warning", watched.unlike.message(), FIX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigErrors> {
        Config::from_text("meshd.toml", text)
    }

    #[test]
    fn files_that_were_changed_or_broken_since_the_trial_are_named() {
        let confirmed = read("[node]\nzone = \"a\"").unwrap();
        assert_eq!(Unlike::of(&confirmed, read("[node]\nzone = \"a\" # the same")), None);
        let other = read("[node]\nzone = \"b\"\n[wireguard]\nport = 4000");
        let unlike = Unlike::of(&confirmed, other).unwrap();
        let message = unlike.message();
        assert!(
            message.ends_with("a restart would take them: node.zone, wireguard.port"),
            "{message}"
        );
        let broken = Unlike::of(&confirmed, read("[node")).unwrap();
        assert!(matches!(broken, Unlike::Broken(_)), "{broken:?}");
        assert!(broken.message().contains("a restart would fail"), "{broken:?}");
    }
}
