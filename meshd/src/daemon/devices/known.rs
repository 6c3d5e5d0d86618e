//! Which device a name means, and whether a name or a key is free.

use meshd_core::limits;
use meshd_proto::{NodeName, WgPublicKey};

use super::{super::running::Running, wanted::refused};
use crate::{control::ControlError, state::devices::SavedDevice};

impl Running {
    pub(in crate::daemon) fn find_device(
        &mut self,
        doing: &str,
        name: &str,
    ) -> Result<&mut SavedDevice, ControlError> {
        let error = self.no_device(doing, name);
        let found = name.parse::<NodeName>().ok().and_then(|name| self.devices.kept.get_mut(&name));
        found.ok_or(error)
    }

    pub(super) fn no_device(&self, doing: &str, name: &str) -> ControlError {
        let members = self.node.directory().by_name(name);
        let shown: String = name.chars().take(80).collect();
        let (why, fix) = match members.iter().any(|record| !record.left) {
            true => (
                "it is a member of the mesh, which runs meshd itself, and no device",
                format!(
                    "`meshctl peers show {name}` shows it; `meshctl node revoke {name}` on a signer puts it out"
                ),
            ),
            false => (
                "this host has no device of that name",
                "`meshctl peers list` shows the devices of this host; others have theirs"
                    .to_owned(),
            ),
        };
        ControlError::new("device_not_found", format!("cannot {doing} {shown:?}"), why, fix)
    }

    pub(super) fn may_name(&self, name: &NodeName) -> Result<(), ControlError> {
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

    pub(super) fn may_have_key(
        &self,
        name: &NodeName,
        key: &WgPublicKey,
    ) -> Result<(), ControlError> {
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
}
