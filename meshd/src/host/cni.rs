//! The pod prefixes of this host, from the files that CNI plugins leave.
//!
//! Read: the network configurations of `/etc/cni/net.d` (host-local's `subnet` and `ranges`, as used by `bridge`,
//! `ptp`, kubenet, kindnet and others) and flannel's `subnet.env`. Files are other programs' and may be
//! half-written or broken: each is skipped with a warning, never an error.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use meshd_core::address::is_forbidden_prefix;
use serde_json::Value;

/// Largest file that is read.
const FILE_MAX: u64 = 1024 * 1024;
/// Files of the directory that are looked at, in order of their names.
const FILES_MAX: usize = 64;
/// Deepest delegation (`flannel` in a plugin list in …) that is followed.
const DEPTH_MAX: usize = 8;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniPaths {
    /// Directory of `*.conf`, `*.conflist` and `*.json`.
    pub directory: PathBuf,
    /// Flannel's environment file.
    pub flannel: PathBuf,
}

impl Default for CniPaths {
    fn default() -> Self {
        Self { directory: "/etc/cni/net.d".into(), flannel: "/run/flannel/subnet.env".into() }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPrefixes {
    /// Prefixes from which this host gives addresses to its pods.
    pub prefixes: BTreeSet<IpNet>,
    /// Files and entries that were skipped, and why.
    pub warnings: Vec<String>,
}

/// Reads the files; what is not there is not an error.
#[must_use]
pub fn detect(paths: &CniPaths) -> PodPrefixes {
    let mut found = PodPrefixes::default();
    match configurations(&paths.directory) {
        Ok(files) => {
            for file in files {
                read_configuration(&file, &mut found);
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => found.warn(&paths.directory, &e),
    }
    match read_bounded(&paths.flannel) {
        Ok(text) => read_flannel(&paths.flannel, &text, &mut found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => found.warn(&paths.flannel, &e),
    }
    found
}

impl PodPrefixes {
    fn warn(&mut self, file: &Path, why: &dyn std::fmt::Display) {
        self.warnings.push(format!("{} was skipped: {why}", file.display()));
    }

    fn add(&mut self, file: &Path, text: &str) {
        // host-local takes "10.1.0.5/24" for 10.1.0.0/24.
        match text.trim().parse::<IpNet>().map(|net| net.trunc()) {
            Ok(net) if is_forbidden_prefix(&net) => {
                self.warn(file, &format_args!("{net} cannot be a prefix of pods"));
            }
            Ok(net) => {
                self.prefixes.insert(net);
            }
            Err(_) => {
                let shown: String = text.chars().take(80).collect();
                self.warn(file, &format_args!("{shown:?} is no prefix"));
            }
        }
    }
}

fn configurations(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("conf" | "conflist" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    files.truncate(FILES_MAX);
    Ok(files)
}

fn read_configuration(file: &Path, found: &mut PodPrefixes) {
    match read_bounded(file) {
        Ok(text) => read_text(file, &text, found),
        Err(e) => found.warn(file, &e),
    }
}

fn read_text(file: &Path, text: &str, found: &mut PodPrefixes) {
    match serde_json::from_str::<Value>(text) {
        Ok(configuration) => read_plugin(file, &configuration, DEPTH_MAX, found),
        Err(e) => found.warn(file, &e),
    }
}

/// The text of a file of the directory.
#[cfg(feature = "fuzzing")]
pub(crate) fn from_configuration(text: &str) -> PodPrefixes {
    let mut found = PodPrefixes::default();
    read_text(Path::new("10-x.conf"), text, &mut found);
    found
}

/// The text of flannel's file.
#[cfg(feature = "fuzzing")]
pub(crate) fn from_flannel(text: &str) -> PodPrefixes {
    let mut found = PodPrefixes::default();
    read_flannel(Path::new("subnet.env"), text, &mut found);
    found
}

/// A plugin, or a list of them.
fn read_plugin(file: &Path, plugin: &Value, depth: usize, found: &mut PodPrefixes) {
    if depth == 0 {
        return found.warn(file, &"it nests too deeply");
    }
    for inner in plugin.get("plugins").and_then(Value::as_array).into_iter().flatten() {
        read_plugin(file, inner, depth - 1, found);
    }
    if let Some(delegate) = plugin.get("delegate") {
        read_plugin(file, delegate, depth - 1, found);
    }
    let Some(ipam) = plugin.get("ipam") else { return };
    if ipam.get("type").and_then(Value::as_str) != Some("host-local") {
        return;
    }
    // The single range of old, and sets of ranges.
    let sets = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
    let ranges = sets.filter_map(Value::as_array).flatten();
    for range in ranges.chain([ipam]) {
        if let Some(subnet) = range.get("subnet").and_then(Value::as_str) {
            // Filled in at run time by the kubelet.
            if subnet != "usePodCidr" {
                found.add(file, subnet);
            }
        }
    }
}

/// `FLANNEL_SUBNET=10.244.1.1/24`, and the same for IPv6.
fn read_flannel(file: &Path, text: &str, found: &mut PodPrefixes) {
    for line in text.lines() {
        if let Some(("FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET", value)) = line.trim().split_once('=')
        {
            found.add(file, value.trim_matches(['"', '\'']));
        }
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    // Before it is opened: opening a FIFO waits for a writer.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    fs::File::open(file)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(directory.path().join(name), text).unwrap();
            }
            Self(directory)
        }

        fn detect(&self) -> PodPrefixes {
            detect(&CniPaths {
                directory: self.0.path().to_owned(),
                flannel: self.0.path().join("subnet.env"),
            })
        }
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_and_subnets_of_host_local_are_found() {
        let host = Host::new(&[
            (
                "10-bridge.conflist",
                r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","ipam":
                {"type":"host-local","ranges":[[{"subnet":"10.10.1.0/24"}],[{"subnet":"fd10:1::/64"}]]}},
                {"type":"portmap"}]}"#,
            ),
            (
                "20-ptp.conf",
                r#"{"type":"ptp","ipam":{"type":"host-local","subnet":"10.10.2.9/24"}}"#,
            ),
            ("30-dhcp.conf", r#"{"type":"macvlan","ipam":{"type":"dhcp","subnet":"10.9.0.0/24"}}"#),
            ("99-loopback.conf", r#"{"type":"loopback"}"#),
            ("notes.txt", "not read"),
        ]);
        let found = host.detect();
        assert_eq!(found.prefixes, nets(&["10.10.1.0/24", "fd10:1::/64", "10.10.2.0/24"]));
        assert_eq!(found.warnings, Vec::<String>::new());
    }

    #[test]
    fn flannels_subnets_are_found() {
        let host = Host::new(&[(
            "subnet.env",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
             FLANNEL_IPV6_SUBNET=fd00:3::1/64\nFLANNEL_MTU=1450\n",
        )]);
        assert_eq!(host.detect().prefixes, nets(&["10.244.3.0/24", "fd00:3::/64"]));
    }

    #[test]
    fn broken_files_are_skipped_with_a_warning() {
        let deep = format!("{}1{}", r#"{"delegate":"#.repeat(20), "}".repeat(20));
        let large = " ".repeat(usize::try_from(FILE_MAX).unwrap() + 2);
        let host = Host::new(&[
            ("1.conf", "{"),
            ("2.conf", r#"{"ipam":{"type":"host-local","subnet":"ten"}}"#),
            ("3.conf", r#"{"ipam":{"type":"host-local","subnet":"0.0.0.0/0"}}"#),
            ("4.conf", &deep),
            ("5.conf", &large),
            ("6.conf", r#"{"ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}]]}}"#),
        ]);
        fs::create_dir(host.0.path().join("7.conf")).unwrap();
        let found = host.detect();
        assert_eq!(found.prefixes, nets(&["10.1.0.0/24"]));
        assert_eq!(found.warnings.len(), 6, "{:#?}", found.warnings);
    }

    #[test]
    fn a_host_without_cni_has_no_pods() {
        let none = CniPaths { directory: "/nonexistent".into(), flannel: "/nonexistent/x".into() };
        assert_eq!(detect(&none), PodPrefixes::default());
    }
}
