//! Who may call: root and the daemon's own user may change, members of the group may read.
//!
//! The socket's mode already keeps others out; this is what holds when somebody widens the mode.

use std::fs;

use meshd_core::event::Actor;
use nix::unistd::{Gid, Uid};
use tokio::net::unix::UCred;

use super::ControlError;

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readers {
    /// The group, when it exists.
    pub group: Option<Gid>,
}

/// The process at the other end of a connection, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    uid: Uid,
    pid: Option<i32>,
    login: Option<u32>,
    may_read: bool,
    may_change: bool,
}

impl Caller {
    /// Judges the credentials of a connection when it is made, while the process is there.
    #[must_use]
    pub fn of(credentials: &UCred, readers: Readers) -> Self {
        let uid = Uid::from_raw(credentials.uid());
        let may_change = uid.is_root() || uid == Uid::effective();
        let in_group = readers.group.is_some_and(|group| {
            Gid::from_raw(credentials.gid()) == group
                || credentials.pid().is_some_and(|pid| supplementary_groups(pid).contains(&group))
        });
        let pid = credentials.pid();
        let login = pid.and_then(login_uid);
        Self { uid, pid, login, may_read: may_change || in_group, may_change }
    }

    /// As events name it.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor::User { uid: self.uid.as_raw(), pid: self.pid, login: self.login }
    }

    /// The user, for limits and logs.
    #[must_use]
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// Whether this is root or the daemon's own user.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.may_change
    }

    /// # Errors
    /// Unless the caller may read.
    pub fn check_read(&self) -> Result<(), ControlError> {
        if self.may_read {
            return Ok(());
        }
        Err(ControlError::new(
            "permission_denied",
            "the daemon refused to answer",
            format!("user {} is neither root nor in the daemon's group", self.uid),
            "run it with sudo, or add the user to the group (usermod -aG meshd USER) and log in again",
        ))
    }

    /// # Errors
    /// Unless the caller may change things.
    pub fn check_change(&self, what: &str) -> Result<(), ControlError> {
        if self.may_change {
            return Ok(());
        }
        Err(ControlError::new(
            "permission_denied",
            format!("the daemon refused to {what}"),
            format!("only root may change this host's mesh, and this is user {}", self.uid),
            "run it with sudo",
        ))
    }
}

/// The groups of a process. `UCred` has only the primary one, and the standard library and nix have
/// no safe call for `SO_PEERGROUPS`.
fn supplementary_groups(pid: i32) -> Vec<Gid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().filter_map(|id| id.parse().ok()).map(Gid::from_raw).collect()
}

/// Who logged in, whatever they have become since (`audit_setuid`(3)); nobody for what no login began.
fn login_uid(pid: i32) -> Option<u32> {
    const NOBODY: u32 = u32::MAX;
    let text = fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    text.trim().parse().ok().filter(|uid| *uid != NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_daemons_own_user_may_do_everything() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let caller = Caller::of(&ours.peer_cred().unwrap(), Readers { group: None });
        assert!(caller.check_read().is_ok() && caller.check_change("leave").is_ok());
        let uid = nix::unistd::geteuid().as_raw();
        let ours = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(caller.actor(), Actor::User { uid: of, pid: Some(pid), .. } if of == uid && pid == ours),
            "{:?}",
            caller.actor()
        );
    }

    #[test]
    fn a_stranger_is_told_why_and_what_to_do() {
        let uid = Uid::from_raw(1234);
        let stranger = Caller { uid, pid: None, login: None, may_read: false, may_change: false };
        let error = stranger.check_read().unwrap_err();
        assert_eq!(error.code, "permission_denied");
        assert!(error.to_string().contains("usermod -aG meshd"), "{error}");
        assert!(stranger.check_change("leave the mesh").unwrap_err().to_string().contains("1234"));
    }

    #[test]
    fn groups_of_a_process_are_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let ours = nix::unistd::getgroups().unwrap();
        assert_eq!(supplementary_groups(pid).len(), ours.len());
        assert!(supplementary_groups(i32::MAX).is_empty());
    }
}
