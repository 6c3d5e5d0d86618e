//! The directory of an issued identity: made private, written so that a crash leaves nothing half.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use meshd_core::trust::IdentityFile;

use crate::failure::Failure;

/// A directory into which nobody has written yet.
#[derive(Debug)]
pub(super) struct OutDir {
    path: PathBuf,
    /// It was not there before.
    made: bool,
    written: Vec<IdentityFile>,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot {what} {}", path.display());
    Failure::local(what, error, "give a directory with --out that can be made and written")
}

impl OutDir {
    /// Makes the directory, or takes an empty one. Nothing is ever overwritten.
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        let made = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                check_empty(path)?;
                let private = Permissions::from_mode(0o700);
                fs::set_permissions(path, private)
                    .map_err(|error| failed("close", path, &error))?;
                false
            }
            Err(error) => return Err(failed("make", path, &error)),
        };
        Ok(Self { path: path.to_owned(), made, written: Vec::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file; when this returns it survives a power loss.
    pub(super) fn write(&mut self, file: IdentityFile, content: &[u8]) -> Result<(), Failure> {
        let path = self.path.join(file.name());
        let mode = if file == IdentityFile::Key { 0o600 } else { 0o644 };
        let write = || {
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create_new(true).mode(mode).open(&path)?;
            file.write_all(content)?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        // What is half there is taken away too.
        self.written.push(file);
        write().map_err(|error| failed("write", &path, &error))
    }

    /// The directory's own entry survives a power loss.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed("write", &self.path, &error))
    }

    /// Removes what was written, when there is nothing to go with it.
    pub(super) fn discard(self) -> Result<(), Failure> {
        for file in &self.written {
            let path = self.path.join(file.name());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, &error));
                }
                _ => {}
            }
        }
        if self.made {
            fs::remove_dir(&self.path).map_err(|error| failed("remove", &self.path, &error))?;
        }
        Ok(())
    }
}

fn check_empty(path: &Path) -> Result<(), Failure> {
    let first = fs::read_dir(path).map_err(|error| failed("read", path, &error))?.next();
    match first {
        None => Ok(()),
        Some(Err(error)) => Err(failed("read", path, &error)),
        Some(Ok(_)) => Err(Failure::local(
            format!("cannot write into {}", path.display()),
            "it is not empty, and nothing is overwritten",
            "give another directory with --out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_nothing_is_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db-1");
        let mut out = OutDir::make(&path).unwrap();
        out.write(IdentityFile::Key, b"secret").unwrap();
        out.write(IdentityFile::Certificate, b"public").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("identity.key")), 0o600);
        assert!(out.write(IdentityFile::Key, b"other").is_err());
        out.finish().unwrap();
        assert_eq!(fs::read(path.join("identity.key")).unwrap(), b"secret");
        let refused = OutDir::make(&path).unwrap_err().to_string();
        assert!(refused.contains("not empty"), "{refused}");
        assert!(OutDir::make(&home.path().join("none/db-1")).is_err());
    }

    #[test]
    fn what_is_discarded_leaves_what_was_there_before() {
        let home = tempfile::tempdir().unwrap();
        let fresh = home.path().join("fresh");
        let mut out = OutDir::make(&fresh).unwrap();
        out.write(IdentityFile::Key, b"secret").unwrap();
        out.discard().unwrap();
        assert!(!fresh.exists());
        let empty = home.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let mut out = OutDir::make(&empty).unwrap();
        out.write(IdentityFile::Key, b"secret").unwrap();
        out.discard().unwrap();
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    }
}
