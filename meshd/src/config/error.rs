//! What can be wrong with a configuration, in words that say how to mend it.

use std::{fmt, path::PathBuf};

use thiserror::Error;

/// One thing that is wrong. The text has the form "what; why; what to do".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A file is there but cannot be read.
    #[error("{} cannot be read; {why}; correct it, or remove the file", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// A file is not TOML.
    #[error("{place} is not valid TOML; {why}; correct the file")]
    Syntax {
        /// The file.
        place: String,
        /// The parser's words, with line and column.
        why: String,
    },
    /// A section that does not exist.
    #[error("{place}: unknown section [{section}]; sections are {allowed}; {fix}")]
    UnknownSection {
        /// The file or environment variable.
        place: String,
        /// As it was written.
        section: String,
        /// The sections there are.
        allowed: String,
        /// The nearest, or "remove it".
        fix: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key {section}.{key}; [{section}] has {allowed}; {fix}")]
    UnknownKey {
        /// The file or environment variable.
        place: String,
        /// The section.
        section: String,
        /// As it was written.
        key: String,
        /// The keys there are.
        allowed: String,
        /// The nearest, or "remove it".
        fix: String,
    },
    /// A value that the key cannot have.
    #[error("{place}: {key} = {value} cannot be used; {why}; use {allowed}")]
    BadValue {
        /// The file or environment variable.
        place: String,
        /// `section.key`.
        key: String,
        /// As it was written, shortened.
        value: String,
        /// What is wrong with it.
        why: String,
        /// What is allowed.
        allowed: String,
    },
    /// A value of the design that this version cannot do yet.
    #[error(
        "{place}: {key} = {value} cannot be used; it is not built yet in this version of meshd; use {allowed}"
    )]
    NotBuilt {
        /// The file or environment variable.
        place: String,
        /// `section.key`.
        key: String,
        /// As it was written.
        value: String,
        /// What works in this version.
        allowed: String,
    },
    /// Two values that do not go together.
    #[error("{place}: {key} = {value} cannot be used; {why}; {fix}")]
    Conflict {
        /// Where the key has its value from.
        place: String,
        /// `section.key`.
        key: &'static str,
        /// The value in force.
        value: String,
        /// What it collides with.
        why: String,
        /// What to do.
        fix: String,
    },
}

/// Everything that is wrong, one per line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// The name among `known` that `given` was probably meant to be.
pub(super) fn nearest(given: &str, known: &[&str]) -> Option<String> {
    let given: String = given.chars().take(40).collect();
    known
        .iter()
        .map(|name| (distance(&given, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let change = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
