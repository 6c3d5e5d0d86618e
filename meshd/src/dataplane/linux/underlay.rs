//! Sysctls of others' interfaces: what they were is noted before they are changed.
//!
//! The notes are below `/run`, which lives as long as the sysctls do. Without a note nobody knows what was there: then a
//! value that is as wanted already stays for good.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
};

use super::sysctl;
use crate::dataplane::DataplaneError;

const NOTES: &str = "/run/meshd/sysctls";
/// Nobody has more interfaces.
const MOST: usize = 4_096;

/// Path below `/proc/sys` to what it was, one of ours a line: `net/ipv4/conf/eth0/src_valid_mark=0`.
fn notes() -> BTreeMap<String, String> {
    let text = fs::read_to_string(NOTES).unwrap_or_default();
    let lines = text.lines().take(MOST).filter_map(|line| line.split_once('='));
    lines
        .filter(|(path, _)| path.starts_with("net/ipv4/conf/") && path.ends_with("/src_valid_mark"))
        .map(|(path, value)| (path.to_owned(), value.to_owned()))
        .collect()
}

fn write(notes: &BTreeMap<String, String>) -> io::Result<()> {
    if notes.is_empty() {
        return match fs::remove_file(NOTES) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    fs::create_dir_all("/run/meshd")?;
    let text: String = notes.iter().map(|(path, value)| format!("{path}={value}\n")).collect();
    // A crash in between must not leave half a note.
    let next = PathBuf::from(format!("{NOTES}.next"));
    fs::write(&next, text)?;
    fs::rename(&next, NOTES)
}

/// What those of `wanted` are that exist, and which we have changed.
pub(super) fn observe(wanted: &BTreeSet<String>) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let read = |path: &String| sysctl::read(path).ok().map(|value| (path.clone(), value));
    (wanted.iter().filter_map(read).collect(), notes().into_keys().collect())
}

/// Sets it. An interface that is gone needs none.
pub(super) fn set(path: &str, value: &str) -> Result<(), DataplaneError> {
    let was = match sysctl::read(path) {
        Ok(was) => was,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(DataplaneError::Sysctl { action: "read", path: path.to_owned(), source });
        }
    };
    if was == value {
        return Ok(());
    }
    let mut notes = notes();
    // What was noted first is what others had set.
    if !notes.contains_key(path) {
        notes.insert(path.to_owned(), was);
        if let Err(error) = write(&notes) {
            tracing::warn!(path, %error, "what a sysctl was is not noted: it will not be set back");
        }
    }
    sysctl::write(path, value)
}

/// Sets it back to what was noted, once. Whatever others made of it meanwhile stays.
pub(super) fn restore(path: &str) -> Result<(), DataplaneError> {
    let mut notes = notes();
    let Some(was) = notes.remove(path) else { return Ok(()) };
    if sysctl::read(path).is_ok_and(|now| now == "1") {
        sysctl::write(path, &was)?;
    }
    write(&notes).map_err(|source| DataplaneError::Sysctl {
        action: "forget the note of",
        path: path.to_owned(),
        source,
    })
}
