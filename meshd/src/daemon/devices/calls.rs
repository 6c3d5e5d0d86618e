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
    limits,
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
        Daemon, bridge::Answer, clock, deeds, requests::not_a_member, running::Running, status,
    },
    Devices,
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
    Added(NodeName, Answer<AddDeviceReply>),
    Removed(RemoveDeviceReply, Answer<RemoveDeviceReply>),
}
fn no_such_device(doing: &str, name: &str) -> ControlError {
    let shown: String = name.chars().take(80).collect();
    ControlError::new(
        "device_not_found",
        format!("cannot {doing} {shown:?}"),
        "this host has no device of that name",
        "`meshctl peers list` shows the devices of this host; others have theirs",
    )
}

impl Daemon {
    /// `peers add`: answered when the kernel has the device.
    pub(in crate::daemon) fn add_device(
        &mut self,
        request: &AddDeviceRequest,
        by: Actor,
        to: Answer<AddDeviceReply>,
    ) {
        let added = self.keep_device(request);
        self.note(by, &added, deeds::device_added);
        match added {
            // An answer whose caller went away is nobody's loss.
            Err(error) => drop(to.send(Err(error))),
            Ok(device) => self.follow(device.public_key, Waiting::Added(device.name, to)),
        }
    }

    /// Looks whether it may be, and keeps it on disk.
    fn keep_device(&mut self, request: &AddDeviceRequest) -> Result<SavedDevice, ControlError> {
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
        };
        let no = |Refused { code, why, fix }| refused(&request.name, code, why, fix);
        let prefixes = if wanted.prefixes.is_empty() {
            assign(&around).map_err(no)?
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
        let devices = &mut running.devices;
        let kept = name.parse::<NodeName>().ok().filter(|name| devices.kept.contains_key(name));
        if kept.is_none() && !devices.damaged.contains_key(name) {
            return Err(no_such_device(doing, name));
        }
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
        let device = running.devices.find_mut("forget the key of", name)?;
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
        running.plan_due = Some(Instant::now());
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

impl Devices {
    pub(in crate::daemon) fn find_mut(
        &mut self,
        doing: &str,
        name: &str,
    ) -> Result<&mut SavedDevice, ControlError> {
        let found = name.parse::<NodeName>().ok().and_then(|name| self.kept.get_mut(&name));
        found.ok_or_else(|| no_such_device(doing, name))
    }
}

impl Running {
    fn may_name(&self, name: &NodeName) -> Result<(), ControlError> {
        let devices = &self.devices;
        if devices.kept.contains_key(name) {
            let why = "this host has a device of that name".to_owned();
            let fix = format!("choose another name, or `meshctl peers remove {name}` first");
            return Err(refused(name.as_str(), "name_taken", why, fix));
        }
        if devices.damaged.contains_key(name.as_str()) {
            let why = "a device of that name has a file that cannot be read".to_owned();
            let fix = format!("restore its file, or `meshctl peers remove {name}` first");
            return Err(refused(name.as_str(), "name_taken", why, fix));
        }
        if self.node.directory().iter().any(|record| record.name == *name && !record.left) {
            let why = "a member of the mesh has that name".to_owned();
            return Err(refused(name.as_str(), "name_taken", why, "choose another name"));
        }
        if devices.kept.len() + devices.damaged.len() >= limits::DEVICES {
            let why = format!("this host has {} devices, which is all it takes", limits::DEVICES);
            let fix = "remove one, or add it on another host";
            return Err(refused(name.as_str(), "too_many_devices", why, fix));
        }
        Ok(())
    }

    fn may_have_key(&self, name: &NodeName, key: &WgPublicKey) -> Result<(), ControlError> {
        let member =
            self.node.directory().iter().find(|record| {
                !record.left && record.lanes.iter().any(|lane| lane.public_key == *key)
            });
        let device = self.devices.kept.values().find(|device| device.public_key == *key);
        let holder = match (member, device) {
            (Some(record), _) => format!("the member {}", record.name),
            (None, Some(device)) => format!("the device {}", device.name),
            (None, None) if self.lane.public_key() == *key => "this host".to_owned(),
            (None, None) => return Ok(()),
        };
        let why = format!("its public key is that of {holder}");
        Err(refused(name.as_str(), "key_taken", why, "make a key pair of its own for the device"))
    }

    fn has_followed(&self, waiter: &Waiter) -> bool {
        let Some(observed) = &self.observed else { return false };
        match &waiter.of {
            Waiting::Removed(..) => !observed.peers.contains_key(&waiter.key),
            Waiting::Added(name, _) => {
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
            Waiting::Added(name, to) => {
                let Some(device) = self.devices.kept.get(&name) else { return };
                let there = observed.is_some_and(|observed| observed.peers.contains_key(&key));
                let missing = self.not_granted(device);
                if there && (followed || !missing.is_empty()) {
                    let peer = Some(status::device(self, observed, device, None));
                    drop(to.send(Ok(AddDeviceReply { peer, not_granted: missing })));
                } else {
                    let what = format!("the device {name} is kept, but is not programmed yet");
                    drop(to.send(Err(late(what))));
                }
            }
        }
    }

    /// What of a device no signer has granted yet.
    fn not_granted(&self, device: &SavedDevice) -> Vec<String> {
        let blocked = self.plan.externals.get(&device.name);
        let blocked = blocked.into_iter().flatten();
        blocked
            .filter(|blocked| blocked.reason == BlockReason::NotGranted)
            .filter_map(|blocked| Some(blocked.prefix?.to_string()))
            .collect()
    }
}
