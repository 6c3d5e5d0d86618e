//! What the daemon keeps on disk, below `[node] state_dir` (mode 0700).
//!
//! ```text
//! lock               held while a daemon runs
//! versions           end of the block of record versions that is reserved
//! keys/identity      Ed25519 seed of this node's identity (hex)
//! keys/reset         key of QUIC's stateless resets
//! keys/lane0         seed of the WireGuard key
//! keys/devices/      devices that cannot run meshd, a file each (JSON) with their keys
//! pki/root.crt       the mesh's root certificate (PEM), pki/node.crt this node's
//! pki/bundle         the intermediates in force, as the root signed them
//! pki/revocations    whose membership was ended
//! pki/time           the newest time that a signer has signed
//! pki/seeds          where to ask first, from the token
//! pki/root.key       on the host that made the mesh
//! pki/intermediate.{crt,key}, pki/ledger      on a signer
//! pki/pending.{key,pool}      on a host that is becoming one
//! guard              what strict leak protection holds, for the next boot
//! trial              a configuration on trial, and the one that ran before it
//! left               identities that have left from here, which no file brings back
//! left-token         hash of the token in the token file when this host left, which brings it back no more
//! db/                sled: the records of all members, a cache
//! ```
//!
//! Responsible for reading and writing these whole and durably. Not for what they mean.

pub mod devices;
pub mod durable;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod guard;
mod ledger;
mod left;
mod membership;
mod root_key;
mod signership;
pub mod store;
pub mod trial;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use meshd_core::{limits::VERSION_BLOCK, node::VersionBlock};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use self::durable::FileError;
pub use self::{
    membership::{Authority, Membership},
    signership::Pending,
};

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another daemon runs on it.
    #[error(
        "the state directory {} is in use; another meshd runs with it; stop that one, or set [node] \
         state_dir", .0.display()
    )]
    InUse(PathBuf),
    /// A file's content cannot be what this program wrote.
    #[error(
        "cannot use {}; {why}; restore it from a backup, or run `meshd cleanup`, move the state \
         directory away and join again", path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl StateError {
    fn damaged(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.to_string() }
    }
}

/// The state directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Small files only: nothing here is large but the ledger and the store.
const SMALL: u64 = 1 << 20;

impl StateDir {
    /// Makes the directory if need be, private, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        for directory in [path.to_owned(), path.join("keys"), path.join("pki")] {
            private_directory(&directory)
                .map_err(|source| FileError::new("make", &directory, source))?;
        }
        let file = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(|source| FileError::new("open", &file, source))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateError::InUse(path.to_owned())),
            Err((_, errno)) => Err(FileError::new("lock", &file, errno.into()).into()),
        }
    }

    /// Where the record store lies.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.path.join("db")
    }

    /// The key of stateless resets (RFC 9000, 10.3), kept so that a restarted daemon can tell peers at once
    /// that their old connections are gone. `fresh` becomes the key when there is none yet.
    pub fn reset_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], StateError> {
        let path = self.file("keys/reset");
        match durable::read(&path, SMALL)?.and_then(|kept| kept.try_into().ok()) {
            Some(kept) => Ok(kept),
            None => {
                durable::write(&path, &fresh)?;
                Ok(fresh)
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reserves a block of record versions from `at_least` on, durably, before any is used.
    pub fn reserve_versions(&self, at_least: u64) -> Result<VersionBlock, StateError> {
        let path = self.file("versions");
        let reserved = match durable::read(&path, SMALL)? {
            None => 1,
            Some(text) => String::from_utf8_lossy(&text)
                .trim()
                .parse::<u64>()
                .map_err(|error| StateError::damaged(&path, error))?,
        };
        let next = reserved.max(at_least);
        let end = next.saturating_add(VERSION_BLOCK);
        durable::write(&path, format!("{end}\n").as_bytes())?;
        Ok(VersionBlock { next, end })
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_cannot_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::InUse(_))));
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn versions_are_never_handed_out_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let a = state.reserve_versions(0).unwrap();
        let b = state.reserve_versions(0).unwrap();
        assert_eq!(a.end, b.next);
        let far = state.reserve_versions(1_000_000).unwrap();
        assert_eq!(far.next, 1_000_000);
        assert_eq!(state.reserve_versions(0).unwrap().next, far.end);
        fs::write(dir.path().join("versions"), "what").unwrap();
        assert!(matches!(state.reserve_versions(0), Err(StateError::Damaged { .. })));
    }
}
