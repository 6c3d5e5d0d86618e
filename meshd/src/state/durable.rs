//! Files that must not be lost: written whole, fsynced, then renamed into place.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A state file that could not be read or written.
#[derive(Debug, Error)]
#[error("cannot {doing} {}; {source}; check the owner, the mode and the free space of its directory", path.display())]
pub struct FileError {
    /// "read", "write", …
    pub doing: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self { doing, path: path.to_owned(), source }
    }
}

/// Replaces `path` by `bytes`, readable by its owner alone. When this returns, the bytes survive a
/// power loss; when it fails, the old content is still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let error = |source| FileError::new("write", path, source);
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.new"));
    // A leftover of a crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(error)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(source) = written.and_then(|()| fs::rename(&temporary, path)) {
        // A full disk is not to be filled further by what nobody reads.
        let _ = fs::remove_file(&temporary);
        return Err(error(source));
    }
    sync_directory(directory).map_err(error)
}

/// Appends `bytes` to `path` and fsyncs.
pub fn append(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let error = |source| FileError::new("append to", path, source);
    let fresh = !path.exists();
    let mut file =
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(error)?;
    let before = file.metadata().map_err(error)?.len();
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Half an entry would hide what is appended after it.
        let _ = file.set_len(before);
        return Err(error(source));
    }
    if fresh {
        sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(error)?;
    }
    Ok(())
}

/// Reads at most `limit` bytes; `None` when there is no such file.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let error = |source| FileError::new("read", path, source);
    let file = match File::open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(error)?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > limit {
        return Err(error(io::Error::other(format!("larger than {limit} bytes"))));
    }
    Ok(Some(bytes))
}

/// Removes `path` if it is there, durably.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let error = |source| FileError::new("remove", path, source);
    match fs::remove_file(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(error(source)),
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(error),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_cannot_be_written_leaves_the_old_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::create_dir_all(path.join("not empty")).unwrap();
        assert!(write(&path, b"one").is_err(), "a directory is not replaced by a file");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }

    #[test]
    fn what_was_written_is_read_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(read(&path, 10).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        append(&path, b"3").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"two3");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&path, 3).is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
