//! What can go wrong between us and the kernel, said so that a person can mend it.

use std::{io, path::PathBuf, time::Duration};

use nix::errno::Errno;
use thiserror::Error;

/// A change or a reading that failed. The kernel is as it was before that change.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// The kernel refused.
    #[error("cannot {action} {object}: {}; {}", reason(*.errno), remedy(*.errno))]
    Kernel {
        /// What was tried, e.g. `add`.
        action: &'static str,
        /// To what, e.g. `address 100.112.0.1/32 on mesh0`.
        object: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The interface is not there.
    #[error("cannot {action}: interface {name} does not exist; meshd makes it again by itself")]
    NoInterface {
        /// What was tried.
        action: &'static str,
        /// Interface name.
        name: String,
    },
    /// An interface of that name is there and is not ours.
    #[error(
        "interface name {name} is taken: it is {what} that meshd did not make; remove it, or set \
         another name in [wireguard] interface"
    )]
    NameTaken {
        /// Interface name.
        name: String,
        /// What it is.
        what: String,
    },
    /// A name that no interface can have.
    #[error(
        "interface name {name:?} cannot be used; use 1 to 15 letters, digits, '-', '_' or '.', and not \
         'all' or 'default'"
    )]
    BadName {
        /// Interface name.
        name: String,
    },
    /// Somebody else's object stands where ours should.
    #[error(
        "cannot {action} {object}: an object of another program is there ({found}); remove it, or \
         set another {setting}"
    )]
    Foreign {
        /// What was tried.
        action: &'static str,
        /// To what.
        object: String,
        /// What stands there.
        found: String,
        /// The setting that avoids it.
        setting: &'static str,
    },
    /// The kernel has no WireGuard and nothing else may be used.
    #[error(
        "this kernel has no WireGuard ({}); load or install the wireguard module, or set [wireguard] \
         backend to auto and install wireguard-go", .errno.desc()
    )]
    NoKernelWireGuard {
        /// The kernel's answer.
        errno: Errno,
    },
    /// The userspace implementation did not start.
    #[error("cannot start userspace WireGuard for {name} ({program}): {reason}; {fix}")]
    Userspace {
        /// Interface name.
        name: String,
        /// What was started.
        program: String,
        /// What happened.
        reason: String,
        /// What to do.
        fix: &'static str,
    },
    /// The userspace implementation did not understand us, or we it.
    #[error(
        "cannot {action}: userspace WireGuard at {} answered {reason}; restart it, or use another implementation \
         (WG_USERSPACE_IMPLEMENTATION)", .socket.display()
    )]
    Uapi {
        /// What was tried.
        action: &'static str,
        /// Its control socket.
        socket: PathBuf,
        /// The answer.
        reason: String,
    },
    /// The nft program is not there.
    #[error(
        "cannot {action}: the nft program is in none of PATH, /usr/sbin, /sbin: there is no leak guard of nftables, packets with \
         this host's own address as source are not accepted by other members, and external devices are not served; install nftables"
    )]
    NftMissing {
        /// What was tried.
        action: &'static str,
    },
    /// The nft program failed.
    #[error("cannot {action}: nft says {reason}; {fix}")]
    Nft {
        /// What was tried.
        action: &'static str,
        /// First line of its stderr.
        reason: String,
        /// What to do.
        fix: &'static str,
    },
    /// There is no mark for ARP.
    #[error(
        "cannot mark ARP messages: nft says {reason}: traffic between node addresses over IPv4 stays in the clear, or \
         unreachable with strict leak protection; use a kernel with nftables for ARP (nf_tables, CONFIG_NF_TABLES_ARP)"
    )]
    ArpMark {
        /// First line of its stderr.
        reason: String,
    },
    /// A helper program did not end in time.
    #[error("cannot {action}: {program} did not answer within {within:?}; look at what holds it")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// Program.
        program: String,
        /// How long we waited.
        within: Duration,
    },
    /// A sysctl could not be read or written.
    #[error("cannot {action} sysctl {path}: {source}; {}", sysctl_remedy(.source))]
    Sysctl {
        /// `read` or `write`.
        action: &'static str,
        /// Path below `/proc/sys`.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The netlink connection itself failed.
    #[error(
        "cannot talk to the kernel over netlink: {reason}; this host must be Linux with netlink sockets allowed"
    )]
    Netlink {
        /// Why.
        reason: String,
    },
}

impl DataplaneError {
    /// A stable word for health lines and counters.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kernel { errno: Errno::EPERM, .. } => "no_permission",
            Self::Kernel { errno: Errno::EADDRINUSE, .. } => "port_in_use",
            Self::Kernel { .. } => "kernel_refused",
            Self::NoInterface { .. } => "interface_gone",
            Self::NameTaken { .. } => "interface_name_taken",
            Self::BadName { .. } => "interface_name_bad",
            Self::Foreign { .. } => "foreign_object",
            Self::NoKernelWireGuard { .. } => "no_kernel_wireguard",
            Self::Userspace { .. } => "userspace_not_started",
            Self::Uapi { .. } => "userspace_refused",
            Self::NftMissing { .. } => "nft_missing",
            Self::Nft { .. } => "nft_refused",
            Self::ArpMark { .. } => "arp_not_marked",
            Self::Timeout { .. } => "helper_timeout",
            Self::Sysctl { .. } => "sysctl_refused",
            Self::Netlink { .. } => "netlink_broken",
        }
    }
}

fn reason(errno: Errno) -> String {
    format!("{} ({errno:?})", errno.desc())
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => "meshd needs root or CAP_NET_ADMIN",
        Errno::EACCES => {
            "IPv6 may be switched off for this interface (sysctl disable_ipv6), or meshd lacks CAP_NET_ADMIN"
        }
        Errno::EINVAL => {
            "the kernel takes no such value, e.g. a source address that this host does not have"
        }
        Errno::EADDRINUSE => {
            "another program listens on this UDP port: stop it, or set another [wireguard] port"
        }
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
            "this kernel lacks the feature, or the address family is switched off"
        }
        Errno::ENODEV | Errno::ENXIO => "the interface went away; meshd makes it again by itself",
        Errno::EEXIST => "an object of another program is in the way; remove it",
        Errno::ENETDOWN | Errno::ENETUNREACH | Errno::EHOSTUNREACH => {
            "the interface is down; meshd brings it up by itself"
        }
        Errno::ENOMEM | Errno::ENOBUFS => "the kernel is short of memory; free some",
        Errno::EBUSY | Errno::EAGAIN | Errno::EINTR => "the kernel is busy; meshd tries again",
        _ => "meshd tries again; if it stays, run `meshctl bundle` and report it",
    }
}

fn sysctl_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "the interface or the address family is not there",
        io::ErrorKind::PermissionDenied => {
            "/proc/sys is read-only here: set ProtectKernelTunables=no in the unit, or set it by hand"
        }
        _ => "check the value that the kernel allows",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_says_what_why_and_what_to_do() {
        let refused = |errno| DataplaneError::Kernel {
            action: "add",
            object: "address 100.112.0.1/32 of mesh0".to_owned(),
            errno,
        };
        let text = refused(Errno::EPERM).to_string();
        assert_eq!(
            text,
            "cannot add address 100.112.0.1/32 of mesh0: Operation not permitted (EPERM); meshd needs root or \
             CAP_NET_ADMIN"
        );
        assert_eq!(refused(Errno::EPERM).code(), "no_permission");
        assert_eq!(refused(Errno::EADDRINUSE).code(), "port_in_use");
        let taken = DataplaneError::NameTaken { name: "mesh0".into(), what: "a bridge".into() };
        assert!(taken.to_string().contains("[wireguard] interface"), "{taken}");
    }
}
