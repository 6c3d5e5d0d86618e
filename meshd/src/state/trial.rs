//! A configuration on trial, and the one that ran before it: one file, so that neither is there without the other.

use std::{path::Path, time::Duration};

use meshd_core::trial::{Kept, Why};
use serde::{Deserialize, Serialize};

use super::{StateError, durable};
use crate::config::Origin;

/// Of this form; another is another program's.
const VERSION: u32 = 1;
/// Larger configurations are not kept, nor tried.
const LARGEST: u64 = 8 << 20;

/// The trial as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTrial {
    version: u32,
    /// Of the start of the host in which it began.
    boot: String,
    /// On the clock of that start.
    ends_ms: u64,
    /// What runs again when nobody confirms.
    pub former: Origin,
    /// Once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// A stable code.
    code: String,
    /// More about it; may be empty.
    pub detail: String,
    /// The fingerprint of what was on disk then.
    pub rejected: String,
}

impl Ended {
    /// Ended for this reason, with this on disk.
    #[must_use]
    pub fn new(why: Why, detail: &str, rejected: String) -> Self {
        let detail = detail.chars().take(1_000).collect();
        Self { code: why.as_str().to_owned(), detail, rejected }
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> Why {
        Why::from_code(&self.code).unwrap_or(Why::Over)
    }

    /// Why, for a person.
    #[must_use]
    pub fn text(&self) -> String {
        let why = self.why().text();
        if self.detail.is_empty() { why.to_owned() } else { format!("{why}: {}", self.detail) }
    }
}

fn path(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("trial")
}

impl SavedTrial {
    /// One that begins in this start of the host and ends then.
    #[must_use]
    pub fn new(boot: &str, ends: Duration, former: Origin) -> Self {
        let ends_ms = u64::try_from(ends.as_millis()).unwrap_or(u64::MAX);
        Self { version: VERSION, boot: boot.to_owned(), ends_ms, former, ended: None }
    }

    /// For the rule.
    #[must_use]
    pub fn kept(&self) -> Kept<'_> {
        let ends = Duration::from_millis(self.ends_ms);
        Kept { boot: &self.boot, ends, ended: self.ended.is_some() }
    }

    /// The one that is kept, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is not what this program wrote.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, StateError> {
        let path = path(state_dir);
        let Some(bytes) = durable::read(&path, LARGEST)? else { return Ok(None) };
        let saved: Self =
            serde_json::from_slice(&bytes).map_err(|error| StateError::damaged(&path, error))?;
        if saved.version != VERSION {
            return Err(StateError::damaged(&path, "another version of meshd wrote it"));
        }
        Ok(Some(saved))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When that fails; what was kept before is still there.
    pub fn write(&self, state_dir: &Path) -> Result<(), StateError> {
        let path = path(state_dir);
        let bytes = serde_json::to_vec(self).map_err(|error| StateError::damaged(&path, error))?;
        if bytes.len() as u64 > LARGEST {
            return Err(StateError::damaged(&path, "the configuration is larger than 8 MiB"));
        }
        Ok(durable::write(&path, &bytes)?)
    }

    /// There is none any more.
    ///
    /// # Errors
    /// When it is still there.
    pub fn forget(state_dir: &Path) -> Result<(), StateError> {
        Ok(durable::remove(&path(state_dir))?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_kept_is_read_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SavedTrial::read(dir.path()).unwrap(), None);
        let mut trial = SavedTrial::new("boot", Duration::from_millis(1_500), Origin::default());
        trial.write(dir.path()).unwrap();
        let mode = std::fs::metadata(path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(SavedTrial::read(dir.path()).unwrap().as_ref(), Some(&trial));
        let kept = trial.kept();
        assert_eq!((kept.boot, kept.ends.as_millis(), kept.ended), ("boot", 1_500, false));
        trial.ended = Some(Ended::new(Why::Failed, "no such device", "00ff".into()));
        trial.write(dir.path()).unwrap();
        let again = SavedTrial::read(dir.path()).unwrap().unwrap();
        assert!(again.kept().ended && again == trial);
        assert!(again.ended.unwrap().text().ends_with(": no such device"));
        SavedTrial::forget(dir.path()).unwrap();
        assert_eq!(SavedTrial::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn what_another_program_wrote_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut trial = SavedTrial::new("boot", Duration::ZERO, Origin::default());
        trial.version = 2;
        trial.write(dir.path()).unwrap();
        assert!(matches!(SavedTrial::read(dir.path()), Err(StateError::Damaged { .. })));
        for text in ["", "{}", "[1]", "\0\0\0"] {
            std::fs::write(path(dir.path()), text).unwrap();
            assert!(SavedTrial::read(dir.path()).is_err(), "{text:?}");
        }
    }
}
