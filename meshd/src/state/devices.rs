//! The devices of this host on disk: a file each below `keys/devices`, with all that is known of it.
//!
//! One file, so that a device is there wholly or not at all, and so that damage to one costs that one. What cannot be read
//! stays as it is and is reported: the kernel keeps what it holds of it.

use std::{collections::BTreeSet, fmt, fs, io, net::SocketAddr, path::PathBuf};

use data_encoding::BASE64;
use ipnet::IpNet;
use meshd_proto::{MeshId, NodeName, WgPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{SMALL, StateDir, StateError, durable, durable::FileError};

/// Of this form; another is another program's.
const VERSION: u32 = 1;
const DIRECTORY: &str = "keys/devices";
/// No device's name begins with a dot.
const RANGES: &str = "keys/devices/.ranges";

/// 32 secret bytes. Zeroed on drop, never shown.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// As `wg` writes it.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| de::Error::custom("a key is not base64"))?;
        let bytes = <[u8; 32]>::try_from(bytes.as_slice());
        bytes.map(Self).map_err(|_| de::Error::custom("a key is not 32 bytes"))
    }
}

/// A device that cannot run meshd, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    version: u32,
    /// The mesh that it was added in.
    pub mesh: MeshId,
    /// What it is called on this host; the file's name too.
    pub name: NodeName,
    /// Its static key.
    pub public_key: WgPublicKey,
    /// Its private half, where this host made it and has not thrown it away.
    pub private_key: Option<Secret>,
    /// What it shares with this host, if anything.
    pub preshared_key: Option<Secret>,
    /// What it may send and is sent.
    pub prefixes: BTreeSet<IpNet>,
    /// Where it is, if it has a fixed place.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between its keepalives; 0 is never.
    pub keepalive: u16,
    /// Its resolvers and search domains.
    pub dns: Vec<String>,
    /// When it was added, in seconds after 1970.
    pub added_at: i64,
    /// When its configuration was last printed, and what it said.
    pub shown: Option<Shown>,
}

/// A printed configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// In seconds after 1970.
    pub at: i64,
    /// Of all that may change on this side.
    pub fingerprint: String,
}

impl SavedDevice {
    /// A device with nothing but names and keys.
    #[must_use]
    pub fn new(mesh: MeshId, name: NodeName, public_key: WgPublicKey, added_at: i64) -> Self {
        Self {
            version: VERSION,
            mesh,
            name,
            public_key,
            private_key: None,
            preshared_key: None,
            prefixes: BTreeSet::new(),
            endpoint: None,
            keepalive: 0,
            dns: Vec::new(),
            added_at,
            shown: None,
        }
    }
}

/// What the directory holds.
#[derive(Debug, Default)]
pub struct SavedDevices {
    /// Of this mesh and whole, by name.
    pub devices: Vec<SavedDevice>,
    /// Files that cannot be read: the name of each, and why.
    pub damaged: Vec<(String, String)>,
    /// Files that are no device's, by their names.
    pub stray: Vec<String>,
}

impl StateDir {
    /// The devices that were added in `mesh`.
    #[must_use]
    pub fn devices(&self, mesh: &MeshId) -> SavedDevices {
        let mut saved = SavedDevices::default();
        let names = match self.device_files() {
            Ok(names) => names,
            Err(error) => {
                saved.damaged.push((DIRECTORY.to_owned(), error.to_string()));
                return saved;
            }
        };
        for name in names {
            // Of such a name there never was a device: nothing in the kernel can be its.
            if name.parse::<NodeName>().is_err() {
                saved.stray.push(name);
                continue;
            }
            match self.read_device(&name) {
                Ok(device) if device.mesh == *mesh => saved.devices.push(device),
                Ok(_) => {
                    saved.damaged.push((name, "it belongs to another mesh".to_owned()));
                }
                Err(why) => saved.damaged.push((name, why)),
            }
        }
        saved
    }

    fn read_device(&self, name: &str) -> Result<SavedDevice, String> {
        let path = self.device_path(name);
        let text = durable::read(&path, SMALL).map_err(|error| error.to_string())?;
        let text = Zeroizing::new(text.ok_or("it is gone")?);
        let device: SavedDevice = serde_json::from_slice(&text).map_err(|why| {
            // Its own words may quote a key.
            format!("it is not what meshd wrote, from character {} on", why.column())
        })?;
        if device.version != VERSION {
            return Err(format!("it is of version {}, and this is {VERSION}", device.version));
        }
        if device.name.as_str() != name {
            return Err(format!("it is the file of {}", device.name));
        }
        let public =
            |key: &Secret| meshd_core::devices::public_key(&meshd_core::plan::WgPrivateKey(key.0));
        if device.private_key.as_ref().is_some_and(|key| public(key) != device.public_key) {
            return Err("its private key is not that of its public key".to_owned());
        }
        Ok(device)
    }

    /// Keeps a device; when this returns it survives a power loss.
    pub fn save_device(&self, device: &SavedDevice) -> Result<(), StateError> {
        let directory = self.file(DIRECTORY);
        super::private_directory(&directory)
            .map_err(|source| FileError::new("make", &directory, source))?;
        let path = self.device_path(device.name.as_str());
        let text = serde_json::to_vec(device).map(Zeroizing::new);
        let text = text.map_err(|why| StateError::damaged(&path, why))?;
        Ok(durable::write(&path, &text)?)
    }

    /// What was announced for devices: kept before it is announced, so that a start tells it from what is local.
    #[must_use]
    pub fn device_ranges(&self) -> BTreeSet<IpNet> {
        let read = durable::read(&self.file(RANGES), SMALL).ok().flatten();
        // Without it the start looks at what is there now, as it does on a host that never had one.
        read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Keeps what is announced for devices.
    pub fn save_device_ranges(&self, ranges: &BTreeSet<IpNet>) -> Result<(), StateError> {
        let path = self.file(RANGES);
        let directory = self.file(DIRECTORY);
        super::private_directory(&directory)
            .map_err(|source| FileError::new("make", &directory, source))?;
        let text = serde_json::to_vec(ranges).map_err(|why| StateError::damaged(&path, why))?;
        Ok(durable::write(&path, &text)?)
    }

    /// Removes a device, and what a crash while it was written left of it.
    pub fn remove_device(&self, name: &str) -> Result<(), StateError> {
        durable::remove(&self.file(DIRECTORY).join(format!(".{name}.new")))?;
        Ok(durable::remove(&self.device_path(name))?)
    }

    /// Removes all devices. The others are tried whatever becomes of one.
    pub fn forget_devices(&self) -> Result<(), StateError> {
        let mut all = Ok(());
        for name in self.device_files()? {
            let one = self.remove_device(&name);
            all = all.and(one);
        }
        all?;
        let directory = self.file(DIRECTORY);
        match fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("remove", &directory, source).into())
            }
            _ => Ok(()),
        }
    }

    fn device_path(&self, name: &str) -> PathBuf {
        self.file(DIRECTORY).join(name)
    }

    /// Names of the files, sorted; half-written ones are left out.
    fn device_files(&self) -> Result<Vec<String>, StateError> {
        let directory = self.file(DIRECTORY);
        let error = |source| FileError::new("read", &directory, source);
        let entries = match fs::read_dir(&directory) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(error)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(error)?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MESH: MeshId = MeshId([1; 16]);

    fn device(name: &str) -> SavedDevice {
        let (private, public) = meshd_core::devices::key_pair(&[5; 32]);
        SavedDevice {
            private_key: Some(Secret(private.0)),
            preshared_key: Some(Secret([6; 32])),
            prefixes: ["10.99.0.1/32".parse().unwrap()].into(),
            dns: vec!["10.99.0.53".to_owned()],
            ..SavedDevice::new(MESH, name.parse().unwrap(), public, 7)
        }
    }

    #[test]
    fn what_is_kept_is_read_private_and_gone_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.devices(&MESH).devices.is_empty());
        state.save_device(&device("phone")).unwrap();
        state.save_device(&device("laptop")).unwrap();
        let saved = state.devices(&MESH);
        assert_eq!(saved.devices, [device("laptop"), device("phone")]);
        assert!(saved.damaged.is_empty());
        let mode =
            |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("keys/devices"), mode("keys/devices/phone")), (0o700, 0o600));
        state.remove_device("phone").unwrap();
        state.remove_device("phone").unwrap();
        assert_eq!(state.devices(&MESH).devices.len(), 1);
        state.forget_membership().unwrap();
        assert!(!dir.path().join("keys/devices").exists(), "a leave takes them along");
    }

    #[test]
    fn damage_costs_one_device_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.save_device(&device("good")).unwrap();
        let text = fs::read_to_string(dir.path().join("keys/devices/good")).unwrap();
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join("keys/devices").join(name), text).unwrap();
        };
        let changed = |name: &str, from: &str, to: &str| {
            let text = text.replace("\"good\"", &format!("\"{name}\""));
            assert!(text.contains(from), "{text}");
            write(name, &text.replace(from, to));
        };
        write("cut", &text[..text.len() / 2]);
        write("empty", "");
        write("renamed", &text);
        changed("later", "\"version\":1", "\"version\":2");
        changed("foreign", &MESH.to_string(), &MeshId([2; 16]).to_string());
        let key = device("good").private_key.unwrap().text().to_string();
        changed("mixed", &key, &BASE64.encode(&[9; 32]));
        changed("short", &key, "AAAA");
        write(".half.new", "{");
        write("phone.bak", &text);
        write("Good", &text);
        write("good~", "");
        fs::create_dir(dir.path().join("keys/devices/directory")).unwrap();
        let saved = state.devices(&MESH);
        assert_eq!(saved.devices, [device("good")]);
        let names: Vec<&str> = saved.damaged.iter().map(|(name, _)| name.as_str()).collect();
        let all = [
            "cut",
            "directory",
            "empty",
            "foreign",
            "later",
            "mixed",
            "phone.bak",
            "renamed",
            "short",
        ];
        assert_eq!(names, all);
        assert_eq!(saved.stray, ["Good", "good~"], "of no device's name");
        let said = format!("{:?}", saved.damaged);
        assert!(!said.contains(&key), "{said}");
    }

    #[test]
    fn ranges_are_kept_beside_the_devices_and_go_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.device_ranges().is_empty());
        let ranges = ["10.99.0.0/24".parse().unwrap(), "fd99::/64".parse().unwrap()].into();
        state.save_device_ranges(&ranges).unwrap();
        assert_eq!(state.device_ranges(), ranges);
        let saved = state.devices(&MESH);
        assert!(saved.devices.is_empty() && saved.damaged.is_empty() && saved.stray.is_empty());
        state.forget_membership().unwrap();
        assert!(state.device_ranges().is_empty());
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", device("phone"));
        assert!(shown.contains("redacted") && !shown.contains("BQUFBQ"), "{shown}");
    }
}
