//! Reads the directory in which somebody has put an identity that was issued off-line.
//!
//! Only reads: it belongs to who put it there (an image, Ansible, a person). Files that others could have written,
//! or a key that others can read, are refused. Nothing blocks, whatever lies there. What the contents mean, the
//! core decides.

use std::{
    fs::Metadata,
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use meshd_core::trust::{IdentityFile, IdentityFiles, Misfit};
use zeroize::Zeroizing;

use crate::trusted;

/// None of the files is larger.
const LARGEST: u64 = 1 << 20;

/// What the directory looked like: another value means that it is worth reading again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp(Vec<(IdentityFile, [i64; 8])>);

impl Stamp {
    /// Of the directory as it is now.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        let stamps = IdentityFile::ALL.into_iter().filter_map(|file| {
            match std::fs::metadata(directory.join(file.name())) {
                Ok(found) => Some((file, stamp(&found))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                // Something is there that cannot be looked at: reading it tells why.
                Err(_) => Some((file, [0; 8])),
            }
        });
        Self(stamps.collect())
    }

    /// None of the files is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn stamp(of: &Metadata) -> [i64; 8] {
    let number = |unsigned: u64| i64::from_ne_bytes(unsigned.to_ne_bytes());
    [
        number(of.ino()),
        number(of.size()),
        of.mtime(),
        of.mtime_nsec(),
        of.ctime(),
        of.ctime_nsec(),
        i64::from(of.mode()),
        i64::from(of.uid()),
    ]
}

/// Reads the files that are there.
///
/// # Errors
/// The first that cannot be read, or must not be trusted.
pub fn read(directory: &Path) -> Result<IdentityFiles, Misfit> {
    let mut files = IdentityFiles::new();
    for file in IdentityFile::ALL {
        if let Some(content) = read_one(directory, file)? {
            files.insert(file, content);
        }
    }
    Ok(files)
}

fn read_one(directory: &Path, file: IdentityFile) -> Result<Option<Zeroizing<Vec<u8>>>, Misfit> {
    let path = directory.join(file.name());
    let failed = |error: io::Error| {
        let fix = format!("give it to root: chown -R root {}", directory.display());
        Misfit::new(file, error.to_string(), fix)
    };
    let opened = match trusted::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let found = opened.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(Misfit::new(file, "it is no regular file", "put a copy of the file there"));
    }
    check_owner(&path, file, &found)?;
    // As large as it may become: a buffer that grows leaves copies of a key behind.
    let room = usize::try_from(found.size().min(LARGEST)).unwrap_or_default() + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    opened.take(LARGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > LARGEST {
        return Err(Misfit::new(file, "it is larger than 1 MiB", "put the right file there"));
    }
    Ok(Some(content))
}

fn check_owner(path: &Path, file: IdentityFile, found: &Metadata) -> Result<(), Misfit> {
    let misfit = |why: String, command: &str| {
        Misfit::new(file, why, format!("{command} {}", path.display()))
    };
    let mode = found.mode() & 0o777;
    let untrusted = trusted::check(found).err();
    // For a key the one command mends both.
    if file == IdentityFile::Key
        && mode & 0o077 != 0
        && untrusted.as_ref().is_none_or(|untrusted| untrusted.command != "chown root")
    {
        return Err(misfit(
            format!("its mode is {mode:04o}: others than root may use it"),
            "chmod 600",
        ));
    }
    untrusted.map_or(Ok(()), |untrusted| Err(misfit(untrusted.why, untrusted.command)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_owned();
        for file in IdentityFile::ALL {
            put(&path, file, 0o600);
        }
        (home, path)
    }

    fn put(directory: &Path, file: IdentityFile, mode: u32) {
        let path = directory.join(file.name());
        fs::write(&path, file.name()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_there_is_read_and_nothing_else() {
        let (_home, path) = directory();
        fs::write(path.join("notes"), "x").unwrap();
        let files = read(&path).unwrap();
        assert_eq!(files.len(), 5);
        assert_eq!(files[&IdentityFile::Bundle].as_slice(), b"bundle");
        assert!(read(&path.join("none")).unwrap().is_empty());
        assert!(Stamp::of(&path.join("none")).is_empty() && !Stamp::of(&path).is_empty());
    }

    #[test]
    fn a_key_that_others_can_read_and_files_that_others_can_write_are_refused() {
        let (_home, path) = directory();
        for mode in [0o640, 0o604, 0o644, 0o660, 0o666, 0o610, 0o601] {
            put(&path, IdentityFile::Key, mode);
            let misfit = read(&path).unwrap_err();
            assert_eq!(misfit.file, IdentityFile::Key);
            assert!(misfit.why.contains(&format!("{mode:04o}")), "{misfit}");
            let key = path.join("identity.key");
            assert_eq!(misfit.fix, format!("chmod 600 {}", key.display()));
        }
        for mode in [0o400, 0o600, 0o700] {
            put(&path, IdentityFile::Key, mode);
            assert!(read(&path).is_ok(), "{mode:o}");
        }
        for mode in [0o664, 0o646, 0o666] {
            put(&path, IdentityFile::Root, mode);
            let misfit = read(&path).unwrap_err();
            assert!(misfit.file == IdentityFile::Root && misfit.fix.contains("go-w"), "{misfit}");
        }
        put(&path, IdentityFile::Root, 0o644);
        assert!(read(&path).is_ok());
    }

    #[test]
    fn pipes_directories_and_what_is_endless_do_not_hold_anybody_up() {
        let (_home, path) = directory();
        let seeds = path.join("seeds");
        let refused = |why: &str| {
            let misfit = read(&path).unwrap_err();
            assert!(misfit.file == IdentityFile::Seeds && misfit.why.contains(why), "{misfit}");
            assert!(!misfit.fix.is_empty());
        };
        fs::remove_file(&seeds).unwrap();
        nix::unistd::mkfifo(&seeds, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        refused("no regular file");
        fs::remove_file(&seeds).unwrap();
        fs::create_dir(&seeds).unwrap();
        refused("no regular file");
        fs::remove_dir(&seeds).unwrap();
        symlink("/dev/zero", &seeds).unwrap();
        refused("no regular file");
        fs::remove_file(&seeds).unwrap();
        fs::write(&seeds, vec![b'x'; (1 << 20) + 1]).unwrap();
        refused("larger than 1 MiB");
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_absent() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        fs::write(&path, "no directory").unwrap();
        assert!(!Stamp::of(&path).is_empty());
        let misfit = read(&path).unwrap_err();
        assert!(misfit.fix.contains("chown -R root"), "{misfit}");
    }

    #[test]
    fn every_change_shows() {
        let (_home, path) = directory();
        let mut last = Stamp::of(&path);
        assert_eq!(Stamp::of(&path), last);
        let mut changed = |what: &str| {
            let now = Stamp::of(&path);
            assert_ne!(now, last, "{what}");
            last = now;
        };
        put(&path, IdentityFile::Key, 0o644);
        changed("a mode");
        fs::write(path.join("node.crt"), "node.crX").unwrap();
        changed("a content of the same length");
        fs::remove_file(path.join("bundle")).unwrap();
        changed("a file that went");
        fs::write(path.join("new"), "seeds").unwrap();
        fs::rename(path.join("new"), path.join("seeds")).unwrap();
        changed("a file that was replaced");
    }
}
