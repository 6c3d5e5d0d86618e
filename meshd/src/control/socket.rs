//! The socket file: made whole before anybody can connect, one daemon at a time.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::{Group, chown},
};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::UnixListener;

use super::Readers;

/// Longest path of a unix socket: `sun_path` without its final zero (unix(7)).
const LONGEST_PATH: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the socket cannot be made.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody serves there.
    #[error(
        "another meshd is running; {} is in use; stop it first (systemctl stop meshd) or set \
         control.socket", path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error(
        "the control socket {} cannot be made; something that is no socket is there; remove it or \
         set control.socket", path.display()
    )]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system does not allow a path of that length.
    #[error(
        "the control socket {} cannot be made; its path with a suffix of 4 is longer than \
         {LONGEST_PATH} bytes; set a shorter control.socket", path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Another failure of the system.
    #[error(
        "the control socket {} cannot be made; {doing}: {source}; make sure that its directory can \
         be written by root only", path.display()
    )]
    System {
        /// The socket.
        path: PathBuf,
        /// Which step failed.
        doing: &'static str,
        /// The system's words.
        source: io::Error,
    },
}

/// A bound socket. The file is removed and the lock given up when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    readers: Readers,
    /// What the administrator should know, e.g. that the group does not exist.
    warning: Option<String>,
    path: PathBuf,
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Makes the socket at `path`, mode 0660 for members of `group`; without such a group 0600 and a
    /// [`warning`](Self::warning). Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a daemon serves there already, or the file cannot be made.
    pub fn bind(path: &Path, group: &str) -> Result<Self, SocketError> {
        let failed = |doing: &'static str| {
            let path = path.to_owned();
            move |source: io::Error| SocketError::System { path, doing, source }
        };
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let temporary = beside(".new");
        if temporary.as_os_str().len() > LONGEST_PATH {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        make_directory(path)?;
        let lock = take_lock(path, &beside(".lock"))?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            // A daemon of another version might serve there without our lock.
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            _ => {}
        }
        let (readers, mode, mut warning) = readers(group);
        // Left by a daemon that died in the lines below.
        let _ = fs::remove_file(&temporary);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket"))?;
        socket
            .bind(&SockAddr::unix(&temporary).map_err(failed("bind"))?)
            .map_err(failed("bind"))?;
        let mut mode = mode;
        if let Some(gid) = readers.group
            && let Err(error) = chown(&temporary, None, Some(gid))
        {
            mode = 0o600;
            warning = Some(format!(
                "the control socket could not be given to group {group} ({error}); only root can \
                 use meshctl; let the daemon run with SupplementaryGroups={group}"
            ));
        }
        fs::set_permissions(&temporary, Permissions::from_mode(mode)).map_err(failed("chmod"))?;
        // Nobody can connect before this, so nobody saw another mode.
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        socket.set_nonblocking(true).map_err(failed("fcntl"))?;
        fs::rename(&temporary, path).map_err(failed("rename"))?;
        let listener = UnixListener::from_std(socket.into()).map_err(failed("register"))?;
        Ok(Self { listener, readers, warning, path: path.to_owned(), _lock: lock })
    }

    /// What the administrator should know.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn readers(&self) -> Readers {
        self.readers
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held, so this is our own file and not a successor's.
        let _ = fs::remove_file(&self.path);
    }
}

/// systemd makes `/run/meshd`; where there is no systemd nobody else does.
fn make_directory(path: &Path) -> Result<(), SocketError> {
    let Some(directory) = path.parent().filter(|directory| !directory.exists()) else {
        return Ok(());
    };
    let made = fs::create_dir(directory);
    // Whoever is in the group must get through, whatever the umask.
    let open = || fs::set_permissions(directory, Permissions::from_mode(0o755));
    made.and_then(|()| open()).map_err(|source| SocketError::System {
        path: path.to_owned(),
        doing: "make its directory",
        source,
    })
}

/// Held as long as the daemon lives; the kernel gives it up when the process dies.
fn take_lock(path: &Path, lock: &Path) -> Result<Flock<File>, SocketError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(lock)
        .map_err(|source| SocketError::System {
            path: path.to_owned(),
            doing: "open its lock",
            source,
        })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => SocketError::InUse { path: path.to_owned() },
        other => SocketError::System { path: path.to_owned(), doing: "lock", source: other.into() },
    })
}

fn readers(group: &str) -> (Readers, u32, Option<String>) {
    match Group::from_name(group) {
        Ok(Some(found)) => (Readers { group: Some(found.gid) }, 0o660, None),
        Ok(None) => (
            Readers { group: None },
            0o600,
            Some(format!(
                "group {group} does not exist, so only root can use meshctl; create it (groupadd \
                 --system {group}) and restart meshd"
            )),
        ),
        Err(error) => (
            Readers { group: None },
            0o600,
            Some(format!(
                "group {group} could not be looked up ({error}), so only root can use meshctl"
            )),
        ),
    }
}
