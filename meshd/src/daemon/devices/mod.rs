//! Devices that cannot run meshd, behind this host.
//!
//! A device is on disk before the kernel hears of it, and gone from disk before it goes from there. Who asked is answered
//! when the kernel was seen to follow, or told that it did not.
//!
//! | file | has |
//! |---|---|
//! | `mod` | what is kept of them, what is announced and planned for them, what is wrong with them |
//! | `wanted` | a request for one, read |
//! | `known` | which one is meant, and what is free |
//! | `calls` | adding and removing, and the answers |

mod calls;
mod known;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::{IpNet, Ipv4Net};
use meshd_core::{
    address::overlaps,
    devices::announced,
    plan::{BlockReason, External, Externals, Observed, RouteKind, TunnelTracker, WgPresharedKey},
    trust::NodeCertificate,
};
use meshd_proto::{NodeName, WgPublicKey, control::HealthLine};

use self::calls::Waiter;
use super::{health::line, running::Running};
use crate::state::{
    StateDir, StateError,
    devices::{SavedDevice, SavedDevices},
};

/// Health lines about devices: the rest is in `peers list`.
const LINES: usize = 8;

/// The devices of this host.
#[derive(Default)]
pub(super) struct Devices {
    kept: BTreeMap<NodeName, SavedDevice>,
    /// Files that cannot be read, and why.
    damaged: BTreeMap<String, String>,
    /// Files in their directory that are no device's.
    stray: Vec<String>,
    /// The kernel could not be asked what the damaged ones have.
    unknown: bool,
    /// What was announced for devices, as it is on disk: for the next start, which may come before what is announced now
    /// is on disk too.
    noted: BTreeSet<IpNet>,
    /// What was announced for the damaged ones before this start, as the kernel still has it.
    held: BTreeSet<IpNet>,
    /// Their peers go even while others may be missing.
    removed: BTreeMap<WgPublicKey, BTreeSet<IpNet>>,
    waiters: Vec<Waiter>,
    /// The mesh's IPv4 addresses, where this host is a signer and knows them.
    pub(super) pool: Option<Ipv4Net>,
}
impl Devices {
    pub(super) fn new(saved: SavedDevices) -> Self {
        for (name, why) in &saved.damaged {
            tracing::error!(%why, "the device {name} cannot be read");
        }
        Self {
            kept: saved.devices.into_iter().map(|d| (d.name.clone(), d)).collect(),
            damaged: saved.damaged.into_iter().collect(),
            stray: saved.stray,
            ..Self::default()
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Whether this was announced for a device, now or before this start.
    pub(super) fn was_range(&self, prefix: &IpNet) -> bool {
        self.noted.contains(prefix)
    }

    /// Has on disk that this is announced for devices, before it is.
    fn note_ranges(
        &mut self,
        more: BTreeSet<IpNet>,
        announced: &[IpNet],
        state: &StateDir,
    ) -> Result<(), StateError> {
        if more.is_subset(&self.noted) {
            return Ok(());
        }
        let mut noted = self.noted.clone();
        noted.retain(|range| announced.contains(range));
        noted.extend(more);
        state.save_device_ranges(&noted)?;
        self.noted = noted;
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SavedDevice> {
        self.kept.values()
    }

    /// Of what was announced before this start, what the kernel holds for devices is theirs: local prefixes have a
    /// `throw` there.
    pub(super) fn hold(&mut self, announced: &[IpNet], kernel: &Observed) {
        let has = |prefix: &IpNet, kind: &RouteKind| {
            kernel.routes.iter().any(|r| r.destination == *prefix && r.kind == *kind)
        };
        let theirs = |prefix: &&IpNet| {
            has(prefix, &RouteKind::Unreachable) && !has(prefix, &RouteKind::Throw)
        };
        self.held = announced.iter().filter(theirs).copied().collect();
    }

    /// Peers with nothing but what was announced for devices, and that are none any more, were removed. Members have
    /// addresses of the mesh.
    fn finish_removals(&mut self, noted: &BTreeSet<IpNet>, kernel: &Observed) {
        let known: BTreeSet<WgPublicKey> = self.kept.values().map(|d| d.public_key).collect();
        let theirs = |prefixes: &BTreeSet<IpNet>| {
            let noted = |prefix: &IpNet| noted.iter().any(|range| range.contains(prefix));
            !prefixes.is_empty() && prefixes.iter().all(noted)
        };
        let gone = kernel
            .peers
            .iter()
            .filter(|(key, peer)| !known.contains(*key) && theirs(&peer.allowed_ips));
        self.removed = gone.map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect();
    }

    /// What is to be announced for them. Never what overlaps this host's `own`, behind which pods may be.
    pub(super) fn ranges(
        &self,
        certificate: &NodeCertificate,
        own: &BTreeSet<IpNet>,
    ) -> BTreeSet<IpNet> {
        let prefixes = self.kept.values().flat_map(|device| &device.prefixes);
        let ranges = prefixes.filter_map(|prefix| announced(certificate, prefix));
        let mut ranges: BTreeSet<IpNet> = ranges.chain(self.held.iter().copied()).collect();
        ranges.retain(|range| !own.iter().any(|own| overlaps(own, range)));
        ranges
    }

    /// What the planner takes of them.
    pub(super) fn externals(
        &self,
        certificate: &NodeCertificate,
        own: &BTreeSet<IpNet>,
        tracker: &TunnelTracker,
    ) -> Externals {
        let device = |device: &SavedDevice| External {
            name: device.name.clone(),
            public_key: device.public_key,
            preshared_key: device
                .preshared_key
                .as_ref()
                .map_or_else(WgPresharedKey::default, |key| WgPresharedKey(key.0)),
            prefixes: device.prefixes.clone(),
            endpoint: device.endpoint,
            tunnel: tracker.health(&device.public_key),
        };
        Externals {
            devices: self.kept.values().map(device).collect(),
            ranges: self.ranges(certificate, own),
            removed: self.removed.clone(),
            incomplete: self.is_damaged(),
            unknown: self.is_damaged() && self.unknown,
        }
    }

    /// Where each is, as far as the kernel says: what the plan depends on.
    pub(super) fn places(&self, tracker: &TunnelTracker) -> Vec<Option<(SocketAddr, u32)>> {
        let health = |device: &SavedDevice| tracker.health(&device.public_key);
        let place = |device| health(device).and_then(|h| Some((h.endpoint?, h.attempt)));
        self.kept.values().map(place).collect()
    }
}
impl Running {
    /// Loads the devices that were kept. `kernel`, before this process changed anything, has what is left of others:
    /// of those whose files are damaged, and of one that was removed just before a crash.
    pub(super) fn load_devices(
        &mut self,
        state: &StateDir,
        announced: &[IpNet],
        kernel: Option<&Observed>,
    ) {
        self.devices = Devices::new(state.devices(&self.identity.certificate.mesh_id));
        self.devices.pool = state.ipv4_pool(&self.identity.certificate.mesh_id).ok();
        let before = state.device_ranges();
        match kernel {
            Some(kernel) if self.devices.is_damaged() => self.devices.hold(announced, kernel),
            Some(kernel) => self.devices.finish_removals(&before, kernel),
            None => self.devices.unknown = true,
        }
        // What is not announced any more is not asked for again.
        let ranges = self.devices.ranges(&self.identity.certificate, &BTreeSet::new());
        let mut noted = before.clone();
        noted.retain(|range| announced.contains(range));
        noted.extend(ranges);
        if noted != before
            && let Err(error) = state.save_device_ranges(&noted)
        {
            tracing::error!(%error, "what is announced for devices was not noted");
        }
        self.devices.noted = noted;
    }

    /// Health lines about devices.
    pub(super) fn device_lines(&self, lines: &mut Vec<HealthLine>) {
        for (name, why) in self.devices.damaged.iter().take(LINES) {
            lines.push(line(
                "device_damaged",
                "warning",
                format!(
                    "keys/devices/{name} cannot be read ({why}): the device is not shown, and the kernel keeps what it \
                     holds within this host's ranges for devices"
                ),
                format!(
                    "restore the file from a backup and restart meshd, or `meshctl peers remove {name}` and add the \
                     device again"
                ),
            ));
        }
        for name in self.devices.stray.iter().take(LINES) {
            lines.push(line(
                "device_stray_file",
                "warning",
                format!("keys/devices/{name} is no device's file: none can have that name; it is not read"),
                "move it elsewhere and restart meshd; it may hold a private key",
            ));
        }
        let blocked =
            self.plan.externals.iter().flat_map(|(name, all)| all.iter().map(move |b| (name, b)));
        for (name, blocked) in blocked.take(LINES) {
            let prefix = blocked.prefix.map_or_else(|| "CIDR".to_owned(), |net| net.to_string());
            let certificate = &self.identity.certificate;
            let range = blocked.prefix.and_then(|prefix| announced(certificate, &prefix));
            let asked = range.and_then(|range| self.asked_for(&range));
            let fix = match blocked.reason {
                BlockReason::NotGranted if asked.is_some() => asked.unwrap_or_default(),
                BlockReason::NotGranted if self.signer.is_some() => format!(
                    "`meshctl peers remove {name}` and add it on a host that is granted it; this one is a signer, which must \
                     not leave lightly"
                ),
                BlockReason::NotGranted => format!(
                    "on a signer `meshctl token create --prefix {prefix}`, then `meshctl leave` here and join with it; or \
                     `meshctl peers remove {name}` and add it on a host that is granted it"
                ),
                _ => format!("`meshctl peers remove {name}`, and add it with another --prefix"),
            };
            lines.push(line("device_not_reached", "warning", blocked.message.as_str(), fix));
        }
    }
}

#[cfg(test)]
mod tests {
    use meshd_core::plan::ObservedPeer;
    use meshd_proto::MeshId;

    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_crash_left_of_a_removed_device_goes_and_nothing_else() {
        let key = |number| WgPublicKey([number; 32]);
        let phone = SavedDevice::new(MeshId([1; 16]), "phone".parse().unwrap(), key(1), 0);
        let saved = SavedDevices { devices: vec![phone], ..SavedDevices::default() };
        let mut devices = Devices::new(saved);
        let peer = |prefixes: &[&str]| ObservedPeer {
            allowed_ips: nets(prefixes),
            ..ObservedPeer::default()
        };
        let kernel = Observed {
            peers: BTreeMap::from([
                (key(1), peer(&["10.99.0.1/32"])),
                (key(2), peer(&["10.99.0.2/32", "fd99::2/128"])),
                (key(3), peer(&["10.99.0.3/32", "fd00::3/128"])),
                (key(4), peer(&["10.244.2.0/24"])),
                (key(5), peer(&[])),
            ]),
            ..Observed::default()
        };
        devices.finish_removals(&nets(&["10.99.0.0/24", "fd99::/64"]), &kernel);
        let gone = BTreeMap::from([(key(2), nets(&["10.99.0.2/32", "fd99::2/128"]))]);
        assert_eq!(devices.removed, gone);
    }
}
