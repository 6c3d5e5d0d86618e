//! The identity document with which this host joins: from a person, a file or a systemd credential.

use std::{io::Read as _, path::PathBuf};

use meshd_core::limits;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::joining::failed;
use crate::control::ControlError;

/// Where the identity document comes from, for a token that wants one.
pub(super) enum Document {
    /// The token admits by itself.
    None,
    /// From a person. A bearer secret: wiped when it is dropped.
    Given(Zeroizing<String>),
    /// A file, which whoever issues documents replaces now and then.
    File(PathBuf),
}

/// What tells a document from the one before. Not the document: a secret is not kept longer than it must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp(pub(super) [u8; 32]);

impl Document {
    /// Of the document as it is now, if it can be read.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let text = self.read().ok().flatten()?;
        Some(Stamp(Sha256::digest(text.trim().as_bytes()).into()))
    }

    /// The document as it is now.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<String>>, ControlError> {
        match self {
            Self::None => Ok(None),
            Self::Given(text) => Ok(Some(text.clone())),
            Self::File(path) => {
                let mut text = Zeroizing::new(String::new());
                let most = limits::IDENTITY_DOCUMENT as u64 + 1;
                let file = std::fs::File::open(path);
                let read = file.and_then(|file| file.take(most).read_to_string(&mut text));
                read.map(|_| Some(text)).map_err(|error| {
                    let why = format!("{}: {error}", path.display());
                    let fix = "put the document there, or correct [gossip] join_identity_file";
                    failed("join_identity_file", why, fix)
                })
            }
        }
    }
}
