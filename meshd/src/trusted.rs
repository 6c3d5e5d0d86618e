//! Files by which others could decide whom this host believes or who it is: read only when nobody else may write
//! them.
//!
//! Only the file itself is looked at, behind all symlinks. Nothing blocks, whatever lies there. Used for identities
//! that were issued off-line, and for issuers of identity documents with their keys.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Why a file is not trusted, and the beginning of the command that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Untrusted {
    pub(crate) why: String,
    pub(crate) command: &'static str,
}

/// Refuses what another user than root and the daemon's owns or can change.
pub(crate) fn check(found: &Metadata) -> Result<(), Untrusted> {
    judge(found.uid(), found.mode() & 0o777, nix::unistd::geteuid().as_raw())
}

fn judge(owner: u32, mode: u32, own: u32) -> Result<(), Untrusted> {
    if owner != 0 && owner != own {
        let why = format!("it belongs to user {owner}, who may change it");
        return Err(Untrusted { why, command: "chown root" });
    }
    if mode & 0o022 != 0 {
        let why = format!("its mode is {mode:04o}: others than root may change it");
        return Err(Untrusted { why, command: "chmod go-w" });
    }
    Ok(())
}

/// A pipe that nobody writes to must not hold the daemon up.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// The content of a file that only root can have written, of at most `most` bytes and one more, by which the caller
/// tells that it is too large.
///
/// # Errors
/// As "why; what to do" when it is not to be trusted.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file; put a copy of the file there"));
    }
    check(&found).map_err(|Untrusted { why, command }| {
        io::Error::other(format!("{why}; {command} {}", path.display()))
    })?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    #[test]
    fn what_others_can_write_is_not_read() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys.json");
        fs::write(&path, "12345").unwrap();
        for mode in [0o664, 0o646, 0o666, 0o620] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let why = read(&path, 9).unwrap_err().to_string();
            assert!(why.contains(&format!("{mode:04o}")), "{why}");
            assert!(why.ends_with(&format!("; chmod go-w {}", path.display())), "{why}");
        }
        for mode in [0o400, 0o600, 0o644, 0o755] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, 9).unwrap(), b"12345");
        }
        assert_eq!(read(&path, 3).unwrap(), b"1234", "one more than it may be");
        let link = home.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(read(&link, 9).unwrap(), b"12345");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(read(&link, 9).is_err(), "it is the file behind a link that counts");
    }

    #[test]
    fn what_belongs_to_another_user_is_refused_whatever_its_mode() {
        for mode in [0o400, 0o644, 0o666] {
            let refused = judge(1000, mode, 0).unwrap_err();
            assert!(refused.why.contains("user 1000") && refused.command == "chown root");
        }
        assert_eq!(judge(0, 0o644, 0), Ok(()));
        assert_eq!(judge(0, 0o644, 1000), Ok(()), "root's, and the daemon is not root");
        assert_eq!(judge(1000, 0o644, 1000), Ok(()), "the daemon's own");
    }

    #[test]
    fn pipes_and_directories_hold_nobody_up() {
        let home = tempfile::tempdir().unwrap();
        let pipe = home.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        for path in [pipe.as_path(), home.path()] {
            assert!(read(path, 9).unwrap_err().to_string().contains("no regular file"));
        }
        assert_eq!(read(&home.path().join("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
