//! The one setting of the whole host that WireGuard's module changes by itself.
//!
//! Bringing a kernel device up sets `net.ipv4.conf.all.send_redirects` to 0 (`wg_open` in
//! drivers/net/wireguard/device.c), and nothing sets it back: who goes from one peer to another through this host must not be
//! told that there is a shorter way. A userspace device needs the same. What it was is kept below `/run`, which lives as
//! long as the sysctl does, and restored when our device goes.

use std::{fs, path::PathBuf};

use super::sysctl;

const SYSCTL: &str = "net/ipv4/conf/all/send_redirects";

fn kept(interface: &str) -> PathBuf {
    PathBuf::from("/run/meshd").join(format!("{interface}.send_redirects"))
}

/// Notes the value before a device is made. Without the note the value stays as the module leaves it.
pub(super) fn note(interface: &str) {
    let path = kept(interface);
    if path.exists() {
        // Of the device that this one replaces: the value of now is the module's.
        return;
    }
    let write = |value: String| {
        fs::create_dir_all("/run/meshd")?;
        fs::write(&path, value)
    };
    if let Err(error) = sysctl::read(SYSCTL).and_then(write) {
        tracing::debug!(path = %path.display(), %error, "the value of send_redirects is not kept");
    }
}

/// Of a userspace device, whose sysctl is its own as well as that of all.
pub(super) fn stop(interface: &str) {
    for path in [SYSCTL.to_owned(), format!("net/ipv4/conf/{interface}/send_redirects")] {
        if let Err(error) = sysctl::write(&path, "0") {
            tracing::warn!(%error, "peers of this host may be told of a shorter way that they do not have");
        }
    }
}

/// Restores the value that was noted, once.
pub(super) fn restore(interface: &str) {
    let path = kept(interface);
    let Ok(value) = fs::read_to_string(&path) else { return };
    let value = value.trim();
    if matches!(value, "0" | "1")
        && let Err(error) = sysctl::write(SYSCTL, value)
    {
        tracing::warn!(%error, "send_redirects was not restored");
    }
    // A file that stays is overwritten by the next device.
    let _ = fs::remove_file(&path);
}
