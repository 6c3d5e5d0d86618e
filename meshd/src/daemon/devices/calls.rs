//! Adding a device, removing one, throwing its key away: on disk first, then in the kernel, then the answer.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_core::{
    address::overlaps,
    devices::{Around, Refused, announced, assign, check, key_pair},
    event::Actor,
    plan::BlockReason,
    trust::Record,
};
use meshd_proto::{
    NodeName, WgPublicKey,
    control::{AddDeviceReply, AddDeviceRequest, ForgetDeviceKeyReply, RemoveDeviceReply},
};
use zeroize::Zeroizing;

use super::{
    super::{
        Daemon, bridge::Answer, clock, deeds, renewing::seconds, requests::not_a_member,
        running::Running, status,
    },
    wanted::{Wanted, refused},
};
use crate::{
    control::ControlError,
    state::{
        StateError,
        devices::{SavedDevice, Secret},
    },
};

/// Longer than a record takes to be signed, a signer to grant a prefix, and the kernel to follow.
const PATIENCE: Duration = Duration::from_secs(8);
/// Keys of removed devices that are remembered until everything is known of the members.
const REMOVED: usize = 1_024;

/// Somebody who wants to know that the kernel followed.
pub(super) struct Waiter {
    key: WgPublicKey,
    until: Instant,
    of: Waiting,
}

enum Waiting {
    /// With what is to be said besides.
    Added(NodeName, Vec<String>, Answer<AddDeviceReply>),
    Removed(RemoveDeviceReply, Answer<RemoveDeviceReply>),
}

impl Daemon {
    /// `peers add`: answered when the kernel has the device.
    pub(in crate::daemon) fn add_device(
        &mut self,
        request: &AddDeviceRequest,
        by: Actor,
        to: Answer<AddDeviceReply>,
    ) {
        let mut remarks = Vec::new();
        let added = self.keep_device(request, &mut remarks);
        self.note(by, &added, deeds::device_added);
        match added {
            // An answer whose caller went away is nobody's loss.
            Err(error) => drop(to.send(Err(error))),
            Ok(device) => self.follow(device.public_key, Waiting::Added(device.name, remarks, to)),
        }
    }

    /// Looks whether it may be, and keeps it on disk.
    fn keep_device(
        &mut self,
        request: &AddDeviceRequest,
        remarks: &mut Vec<String>,
    ) -> Result<SavedDevice, ControlError> {
        let pool = self.mesh_pool();
        let running = self.running.as_mut().ok_or_else(|| not_a_member("add a device"))?;
        let wanted = Wanted::read(request)?;
        running.may_name(&wanted.name)?;
        let own = running.node.key();
        let directory = running.node.directory();
        let members: Vec<&Record> = directory
            .iter()
            .filter(|record| record.key != own && !record.left)
            .map(AsRef::as_ref)
            .collect();
        let local = self.own.local_network(&self.config, &running.node.observed());
        let devices = running.devices.kept.values();
        let around = Around {
            certificate: &running.identity.certificate,
            own: &self.own.prefixes,
            local: &local,
            members,
            devices: devices.map(|device| (&device.name, &device.prefixes)).collect(),
            pool,
            signer: running.signer.is_some(),
        };
        let no = |Refused { code, why, fix }| refused(&request.name, code, why, fix);
        let prefixes = if wanted.prefixes.is_empty() {
            let assigned = assign(&around).map_err(no)?;
            remarks.extend(assigned.full.map(|full| {
                let has = if full.addr().is_ipv4() { "IPv6" } else { "IPv4" };
                format!("{full} has no free address: {} has {has} only", wanted.name)
            }));
            assigned.prefixes
        } else {
            let mut prefixes = BTreeSet::new();
            for prefix in &wanted.prefixes {
                check(&around, prefix).map_err(no)?;
                if prefixes.iter().any(|other| overlaps(other, prefix)) {
                    let why = format!("{prefix} overlaps another of its prefixes");
                    return Err(refused(&request.name, "bad_request", why, "name each once"));
                }
                prefixes.insert(*prefix);
            }
            prefixes
        };
        let (mesh, now) = (running.identity.certificate.mesh_id, clock::unix().0);
        let mut device = match wanted.public_key {
            Some(key) => {
                running.may_have_key(&wanted.name, &key)?;
                SavedDevice::new(mesh, wanted.name, key, now)
            }
            None => {
                let (private, public) = key_pair(&Zeroizing::new(rand::random()));
                let mut device = SavedDevice::new(mesh, wanted.name, public, now);
                device.private_key = Some(Secret(private.0));
                device
            }
        };
        device.preshared_key = wanted.preshared.then(|| Secret(rand::random()));
        device.prefixes = prefixes;
        device.endpoint = wanted.endpoint;
        device.keepalive = wanted.keepalive;
        device.dns = wanted.dns;
        let not_kept = |error: StateError| {
            let fix = "check the disk of the state directory";
            refused(&request.name, "state_dir", error.to_string(), fix)
        };
        let certificate = &running.identity.certificate;
        let ranges = device.prefixes.iter().filter_map(|prefix| announced(certificate, prefix));
        let ranges = ranges.collect();
        let record = running.own_record().map(|own| own.prefixes.clone()).unwrap_or_default();
        running.devices.note_ranges(ranges, &record, &self.state).map_err(not_kept)?;
        self.state.save_device(&device).map_err(not_kept)?;
        running.devices.removed.remove(&device.public_key);
        running.devices.kept.insert(device.name.clone(), device.clone());
        self.announce();
        Ok(device)
    }

    /// `peers remove`: answered when the kernel is without the device.
    pub(in crate::daemon) fn remove_device(
        &mut self,
        name: &str,
        by: Actor,
        to: Answer<RemoveDeviceReply>,
    ) {
        let removed = self.drop_device(name);
        self.note(by, &removed, deeds::device_removed);
        match removed {
            Err(error) => drop(to.send(Err(error))),
            Ok(reply) => match reply.public_key.parse() {
                Ok(key) => self.follow(key, Waiting::Removed(reply, to)),
                // Whose file was damaged: what it was is not known.
                Err(_) => drop(to.send(Ok(reply))),
            },
        }
    }

    fn drop_device(&mut self, name: &str) -> Result<RemoveDeviceReply, ControlError> {
        let doing = "remove the device";
        let running = self.running.as_mut().ok_or_else(|| not_a_member("remove a device"))?;
        let known = |name: &NodeName| running.devices.kept.contains_key(name);
        let kept = name.parse::<NodeName>().ok().filter(known);
        if kept.is_none() && !running.devices.damaged.contains_key(name) {
            return Err(running.no_device(doing, name));
        }
        let devices = &mut running.devices;
        self.state.remove_device(name).map_err(|error| {
            let fix = "check the disk of the state directory; until then the device stays";
            let what = format!("the device {name} was not removed");
            ControlError::new("state_dir", what, error.to_string(), fix)
        })?;
        devices.damaged.remove(name);
        if devices.damaged.is_empty() {
            devices.held.clear();
        }
        let device = kept.and_then(|name| devices.kept.remove(&name));
        if let Some(device) = &device
            && devices.removed.len() < REMOVED
        {
            devices.removed.insert(device.public_key, device.prefixes.clone());
        }
        self.announce();
        if let (Some(device), Some(running)) = (&device, &mut self.running) {
            running.node.give_back(device.prefixes.iter().copied(), clock::now());
        }
        let prefixes = device.iter().flat_map(|d| d.prefixes.iter().map(ToString::to_string));
        Ok(RemoveDeviceReply {
            name: name.to_owned(),
            prefixes: prefixes.collect(),
            public_key: device.map(|d| d.public_key.to_string()).unwrap_or_default(),
        })
    }

    /// `peers config --forget-key`.
    pub(in crate::daemon) fn forget_device_key(
        &mut self,
        name: &str,
    ) -> Result<ForgetDeviceKeyReply, ControlError> {
        let running = self.running.as_mut().ok_or_else(|| not_a_member("forget a key"))?;
        let device = running.find_device("forget the key of", name)?;
        let mut without = device.clone();
        without.private_key = None;
        let forgotten = device.private_key.is_some();
        if forgotten {
            self.state.save_device(&without).map_err(|error| {
                let what = format!("the private key of {name} was not thrown away");
                let fix = "check the disk of the state directory";
                ControlError::new("state_dir", what, error.to_string(), fix)
            })?;
            *device = without;
        }
        Ok(ForgetDeviceKeyReply { forgotten })
    }

    /// Has the kernel follow, and answers then.
    fn follow(&mut self, key: WgPublicKey, of: Waiting) {
        let Some(running) = &mut self.running else { return };
        running.pace.at_once(Instant::now());
        let until = Instant::now() + PATIENCE;
        running.devices.waiters.push(Waiter { key, until, of });
    }

    /// Answers whoever waits for what the kernel has done by now.
    pub(in crate::daemon) fn answer_devices(&mut self) {
        let Some(running) = &mut self.running else { return };
        if running.devices.waiters.is_empty() {
            return;
        }
        let now = Instant::now();
        let waiters = std::mem::take(&mut running.devices.waiters);
        let (ready, rest): (Vec<_>, Vec<_>) = waiters
            .into_iter()
            .partition(|waiter| waiter.until <= now || running.has_followed(waiter));
        running.devices.waiters = rest;
        for waiter in ready {
            running.answer_device(waiter);
        }
    }
}

impl Running {
    fn has_followed(&self, waiter: &Waiter) -> bool {
        let Some(observed) = &self.observed else { return false };
        match &waiter.of {
            Waiting::Removed(..) => !observed.peers.contains_key(&waiter.key),
            Waiting::Added(name, ..) => {
                let Some(device) = self.devices.kept.get(name) else { return true };
                let peer = observed.peers.get(&waiter.key);
                let routed =
                    |prefix: &IpNet| observed.routes.iter().any(|r| r.destination == *prefix);
                peer.is_some_and(|peer| {
                    peer.allowed_ips == device.prefixes && device.prefixes.iter().all(routed)
                })
            }
        }
    }

    fn answer_device(&self, waiter: Waiter) {
        let followed = self.has_followed(&waiter);
        let (key, observed) = (waiter.key, self.observed.as_ref());
        let late = |what: String| {
            let why = "the kernel did not follow in time";
            let fix = "`meshctl status` says why; it is tried again by itself";
            ControlError::new("dataplane", what, why, fix)
        };
        // An answer whose caller went away is nobody's loss.
        match waiter.of {
            Waiting::Removed(reply, to) if followed => drop(to.send(Ok(reply))),
            Waiting::Removed(reply, to) => {
                let what =
                    format!("the device {} was removed, but the kernel still has it", reply.name);
                drop(to.send(Err(late(what))));
            }
            Waiting::Added(name, remarks, to) => {
                let Some(device) = self.devices.kept.get(&name) else { return };
                let there = observed.is_some_and(|observed| observed.peers.contains_key(&key));
                let missing = self.not_granted(device);
                if there && (followed || !missing.is_empty()) {
                    let peer = Some(status::device(self, observed, device, None));
                    let reply = AddDeviceReply {
                        peer,
                        not_granted: missing.iter().map(ToString::to_string).collect(),
                        asked_in_seconds: self.asked_in(&missing),
                        remarks,
                    };
                    drop(to.send(Ok(reply)));
                } else {
                    let what = format!("the device {name} is kept, but is not programmed yet");
                    drop(to.send(Err(late(what))));
                }
            }
        }
    }

    /// When a signer is asked for one of these, which are not granted.
    fn asked_in(&self, missing: &[IpNet]) -> Option<u32> {
        let (certificate, now) = (&self.identity.certificate, Instant::now());
        let ranges = missing.iter().filter_map(|prefix| announced(certificate, prefix));
        let times = ranges.filter_map(|range| self.node.asks_for_in(&range, now));
        times.max().map(seconds)
    }

    /// What of a device no signer has granted yet.
    fn not_granted(&self, device: &SavedDevice) -> Vec<IpNet> {
        let blocked = self.plan.externals.get(&device.name);
        let blocked = blocked.into_iter().flatten();
        blocked
            .filter(|blocked| blocked.reason == BlockReason::NotGranted)
            .filter_map(|blocked| blocked.prefix)
            .collect()
    }
}
