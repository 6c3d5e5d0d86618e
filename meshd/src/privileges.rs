//! What the daemon gives up before it starts: all that root can but what changing the network takes.
//!
//! Under systemd the unit has done so; a daemon that was started by hand does it itself. Capabilities are each
//! thread's own, so this runs while there is one.

use nix::unistd::{Gid, Group, getgroups, setgroups};
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set,
        capability_is_in_bounding_set, configure_capability_in_ambient_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};
use thiserror::Error;

use crate::config::Config;

/// Ports below need a capability of their own.
const FIRST_FREE_PORT: u16 = 1024;

/// A privilege that could not be given up. The daemon must not start.
#[derive(Debug, Error)]
#[error(
    "cannot give up the privileges that are not needed; {doing}: {source}; start it by its systemd unit"
)]
pub struct PrivilegeError {
    doing: &'static str,
    source: Errno,
}

/// Keeps what `config` needs and gives up the rest, for this thread, those that it starts, and other programs.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up(config: &Config) -> Result<(), PrivilegeError> {
    join_group(&config.control.group);
    let keep = needed(config);
    restrict(keep)?;
    tracing::debug!(?keep, "other privileges were given up");
    Ok(())
}

/// What the daemon, and the programs that it starts, need.
fn needed(config: &Config) -> CapabilitySet {
    let low = |port: u16| port < FIRST_FREE_PORT;
    let mut needed = CapabilitySet::NET_ADMIN;
    let metrics = config.metrics.listen.is_some_and(|address| low(address.port()));
    if low(config.gossip.listen.port()) || low(config.wireguard.port) || metrics {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    needed
}

/// So that the control socket can be given to the group without CAP_CHOWN, as the unit's
/// `SupplementaryGroups=` has it. Where it fails the socket is root's alone, which is said there.
fn join_group(name: &str) {
    let Ok(Some(Group { gid, .. })) = Group::from_name(name) else { return };
    let mut groups: Vec<Gid> = getgroups().unwrap_or_default();
    if !groups.contains(&gid) {
        groups.push(gid);
        if let Err(error) = setgroups(&groups) {
            tracing::debug!(%error, "not in the group of the control socket");
        }
    }
}

/// Leaves this thread no capability but `keep`, and no way to another.
fn restrict(keep: CapabilitySet) -> Result<(), PrivilegeError> {
    let failed = |doing| move |source| PrivilegeError { doing, source };
    set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    for one in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(one) {
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(source) => return Err(failed("bounding set")(source)),
            Ok(there) if !there || keep.contains(one) => {}
            Ok(_) => match remove_capability_from_bounding_set(one) {
                // Without CAP_SETPCAP it stays; no_new_privs makes it worthless.
                Ok(()) | Err(Errno::PERM) => {}
                Err(source) => return Err(failed("bounding set")(source)),
            },
        }
        if !keep.contains(one)
            && capability_is_in_ambient_set(one).map_err(failed("ambient set"))?
        {
            configure_capability_in_ambient_set(one, false).map_err(failed("ambient set"))?;
        }
    }
    let held = capabilities(None).map_err(failed("capget"))?;
    let kept = CapabilitySets {
        effective: held.effective & keep,
        permitted: held.permitted & keep,
        inheritable: held.inheritable & keep,
    };
    // The unit has taken all, and its filter of system calls keeps us from asking again.
    if kept == held { Ok(()) } else { set_capabilities(None, kept).map_err(failed("capset")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(value.trim_start_matches(':').trim(), 16).unwrap()
    }

    #[test]
    fn nothing_is_left_but_what_is_needed() {
        // Only this thread loses anything.
        let thread = std::thread::spawn(|| {
            let keep = CapabilitySet::NET_ADMIN;
            let (held, bounding) = (status("CapEff"), status("CapBnd"));
            let root = held & CapabilitySet::SETPCAP.bits() != 0;
            restrict(keep).unwrap();
            for set in ["CapEff", "CapPrm"] {
                assert_eq!(status(set), held & keep.bits(), "{set}");
            }
            assert_eq!(status("CapBnd"), if root { bounding & keep.bits() } else { bounding });
            assert_eq!((status("CapInh"), status("CapAmb")), (0, 0));
            assert_eq!(status("NoNewPrivs"), 1);
            // Again, as under the unit, nothing is left to be done.
            restrict(keep).unwrap();
        });
        thread.join().unwrap();
    }

    #[test]
    fn low_ports_need_one_more() {
        let mut config = Config::default();
        assert_eq!(needed(&config), CapabilitySet::NET_ADMIN);
        config.wireguard.port = 443;
        let both = CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE;
        assert_eq!(needed(&config), both);
        config = Config::default();
        config.gossip.listen.set_port(443);
        assert_eq!(needed(&config), both);
        config = Config::default();
        config.metrics.listen = Some(([127, 0, 0, 1], 80).into());
        assert_eq!(needed(&config), both);
    }
}
