//! The pod prefixes of this host, from the files that CNI plugins leave.
//!
//! Read: of each directory of network configurations the one that container runtimes use, the first by name
//! (host-local's `subnet` and `ranges`, as used by `bridge`, `ptp`, kubenet, kindnet, kube-router and others), and
//! flannel's `subnet.env`. Others may be leftovers, such as CRI-O's own bridge, whose prefix is the same on every host. Files
//! are other programs' and may be half-written or broken: each is skipped with a warning, never an error.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use meshd_core::address::is_forbidden_prefix;
use serde_json::Value;

use super::watch_files::{Names, Place};

/// Files of the directory that are read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// Largest file that is read.
const FILE_MAX: u64 = 1024 * 1024;
/// Files of the directory that are looked at, in order of their names.
const FILES_MAX: usize = 64;
/// Deepest delegation (`flannel` in a plugin list in …) that is followed.
const DEPTH_MAX: usize = 8;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniPaths {
    /// Directories of `*.conf`, `*.conflist` and `*.json`.
    pub directories: Vec<PathBuf>,
    /// Flannel's environment file.
    pub flannel: PathBuf,
}

impl Default for CniPaths {
    fn default() -> Self {
        // The usual one, and those of distributions with a runtime of their own: k3s, MicroK8s.
        let directories = [
            "/etc/cni/net.d",
            "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            "/var/snap/microk8s/current/args/cni-network",
        ];
        Self {
            directories: directories.map(PathBuf::from).to_vec(),
            flannel: "/run/flannel/subnet.env".into(),
        }
    }
}

impl CniPaths {
    /// Where changes of what is read show.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let names = Names::Extensions(&EXTENSIONS);
        let directories = self.directories.iter();
        directories
            .map(|directory| Place { directory: directory.clone(), names: names.clone() })
            .chain(Place::file(&self.flannel))
            .collect()
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPrefixes {
    /// Prefixes from which this host gives addresses to its pods.
    pub prefixes: BTreeSet<IpNet>,
    /// What the files say of plugins whose prefixes are elsewhere.
    pub plugins: Plugins,
    /// Files and entries that were skipped, and why.
    pub warnings: Vec<String>,
}

/// Plugins that pods of this host get their addresses from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plugins {
    /// Calico with its own IPAM.
    pub calico_ipam: bool,
}

/// Reads the files; what is not there is not an error.
#[must_use]
pub fn detect(paths: &CniPaths) -> PodPrefixes {
    let mut found = PodPrefixes::default();
    for directory in &paths.directories {
        match configurations(directory) {
            Ok(files) => {
                // The first that is a network of its own.
                let _ = files.iter().any(|file| read_configuration(file, &mut found));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => found.warn(directory, &e),
        }
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
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            files.push(path);
        }
    }
    files.sort();
    files.truncate(FILES_MAX);
    Ok(files)
}

/// True when it is the network that pods get.
fn read_configuration(file: &Path, found: &mut PodPrefixes) -> bool {
    match read_bounded(file) {
        Ok(text) => read_text(file, &text, found),
        Err(e) => {
            found.warn(file, &e);
            false
        }
    }
}

fn read_text(file: &Path, text: &str, found: &mut PodPrefixes) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(configuration) => {
            let kind = |value: &Value| value.get("type").and_then(Value::as_str).map(str::to_owned);
            let plugins = configuration.get("plugins").and_then(Value::as_array);
            let first = plugins.and_then(|plugins| plugins.first()).unwrap_or(&configuration);
            match kind(first).as_deref() {
                None => {
                    found.warn(file, &"it names no plugin");
                    return false;
                }
                Some("loopback") => return false,
                // Calls others: the first of its delegates, or whatever is configured beside it.
                Some("multus" | "multus-shim") => {
                    let delegates = first.get("delegates").and_then(Value::as_array);
                    let Some(delegate) = delegates.and_then(|all| all.first()) else {
                        return false;
                    };
                    read_plugin(file, delegate, DEPTH_MAX, found);
                }
                Some(_) => read_plugin(file, &configuration, DEPTH_MAX, found),
            }
            true
        }
        Err(e) => {
            found.warn(file, &e);
            false
        }
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
    // Those that follow change what the first has made; an address that one of them gives is for its own purposes.
    let plugins = plugin.get("plugins").and_then(Value::as_array);
    if let Some(first) = plugins.and_then(|plugins| plugins.first()) {
        read_plugin(file, first, depth - 1, found);
    }
    if let Some(delegate) = plugin.get("delegate") {
        read_plugin(file, delegate, depth - 1, found);
    }
    let Some(ipam) = plugin.get("ipam") else { return };
    let is = |value: &Value, name: &str| value.get("type").and_then(Value::as_str) == Some(name);
    found.plugins.calico_ipam |= is(plugin, "calico") && is(ipam, "calico-ipam");
    if !is(ipam, "host-local") {
        return;
    }
    // The single range of old, and sets of ranges.
    let sets = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
    let ranges = sets.filter_map(Value::as_array).flatten();
    for range in ranges.chain([ipam]) {
        if let Some(subnet) = range.get("subnet").and_then(Value::as_str) {
            // Filled in at run time by the kubelet.
            if !matches!(subnet, "usePodCidr" | "usePodCidrIPv6") {
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
                directories: vec![self.0.path().to_owned(), self.0.path().join("none")],
                flannel: self.0.path().join("subnet.env"),
            })
        }
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_and_subnets_of_host_local_are_found_in_the_first_network() {
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
        assert_eq!(found.prefixes, nets(&["10.10.1.0/24", "fd10:1::/64"]));
        assert_eq!(found.warnings, Vec::<String>::new());
    }

    /// What a plugin's own installer or manifest writes, shortened by what is not looked at.
    #[test]
    fn files_of_well_known_plugins_are_read() {
        let kubenet = r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","plugins":[{"type":"ptp","mtu":1460,
            "ipam":{"type":"host-local","ranges":[[{"subnet":"10.4.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
            {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let kuberouter = r#"{"cniVersion":"0.3.0","name":"mynet","plugins":[{"bridge":"kube-bridge","hairpinMode":true,
            "ipam":{"subnet":"10.42.1.0/24","type":"host-local"},"isDefaultGateway":true,"name":"kubernetes",
            "type":"bridge"},{"type":"portmap"}]}"#;
        let kindnet = r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[{"type":"ptp","ipMasq":false,
            "ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state","routes":[{"dst":"0.0.0.0/0"}],
            "ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:10:244::/64"}]]}}]}"#;
        let flannel = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel",
            "delegate":{"hairpinMode":true,"forceAddress":true,"isDefaultGateway":true}},{"type":"portmap"}]}"#;
        let calico = r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","mtu":0,
            "ipam":{"type":"calico-ipam"},"policy":{"type":"k8s"}},{"type":"bandwidth"}]}"#;
        let calico_host_local = r#"{"name":"k8s-pod-network","plugins":[{"type":"calico",
            "ipam":{"type":"host-local","ranges":[[{"subnet":"usePodCidr"}],[{"subnet":"usePodCidrIPv6"}]]}}]}"#;
        let azure = r#"{"cniVersion":"0.3.0","name":"azure","plugins":[{"type":"azure-vnet","mode":"transparent",
            "ipsToRouteViaHost":["169.254.20.10"],"ipam":{"type":"azure-vnet-ipam"}},{"type":"portmap"}]}"#;
        let aws = r#"{"cniVersion":"1.0.0","name":"aws-cni","plugins":[{"name":"aws-cni","type":"aws-cni",
            "vethPrefix":"eni","mtu":"9001"},{"name":"egress-cni","type":"egress-cni","ipam":{"type":"host-local",
            "ranges":[[{"subnet":"169.254.172.0/22"}]]}}]}"#;
        let cilium = r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni"}]}"#;
        let multus =
            format!(r#"{{"name":"multus-cni-network","type":"multus","delegates":[{kubenet}]}}"#);
        let crio = r#"{"cniVersion":"1.0.0","name":"crio","plugins":[{"type":"bridge","bridge":"cni0",
            "ipam":{"type":"host-local","ranges":[[{"subnet":"10.85.0.0/16"}]]}}]}"#;
        let shim = r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","clusterNetwork":"x"}"#;
        for (first, prefixes, calico_ipam) in [
            (kubenet, &["10.4.1.0/24"][..], false),
            (kuberouter, &["10.42.1.0/24"], false),
            (kindnet, &["10.244.0.0/24", "fd00:10:244::/64"], false),
            (flannel, &[], false),
            (calico, &[], true),
            (calico_host_local, &[], false),
            (azure, &[], false),
            (aws, &[], false),
            (cilium, &[], false),
            (&multus, &["10.4.1.0/24"], false),
            (shim, &["10.85.0.0/16"], false),
        ] {
            // A leftover that runtimes do not look at either.
            let host = Host::new(&[("10-first.conflist", first), ("100-crio.conflist", crio)]);
            let found = host.detect();
            assert_eq!(found.prefixes, nets(prefixes), "{first}");
            assert_eq!(found.plugins, Plugins { calico_ipam }, "{first}");
            assert_eq!(found.warnings, Vec::<String>::new(), "{first}");
        }
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
        let good =
            r#"{"type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}]]}}"#;
        let deep = format!(
            r#"{{"type":"x","delegate":{}1{}}}"#,
            r#"{"delegate":"#.repeat(20),
            "}".repeat(20)
        );
        let large = " ".repeat(usize::try_from(FILE_MAX).unwrap() + 2);
        for (broken, is_network) in [
            ("{", false),
            ("{}", false),
            ("[]", false),
            (&large, false),
            (r#"{"type":"ptp","ipam":{"type":"host-local","subnet":"ten"}}"#, true),
            (r#"{"type":"ptp","ipam":{"type":"host-local","subnet":"0.0.0.0/0"}}"#, true),
            (&deep, true),
        ] {
            let shown: String = broken.chars().take(60).collect();
            let found = Host::new(&[("1.conf", broken), ("2.conf", good)]).detect();
            let next = if is_network { nets(&[]) } else { nets(&["10.1.0.0/24"]) };
            assert_eq!(found.prefixes, next, "{shown}");
            assert_eq!(found.warnings.len(), 1, "{shown}: {:#?}", found.warnings);
        }
        let host = Host::new(&[("2.conf", good)]);
        fs::create_dir(host.0.path().join("1.conf")).unwrap();
        assert_eq!(host.detect().prefixes, nets(&["10.1.0.0/24"]));
        assert_eq!(host.detect().warnings.len(), 1);
    }

    #[test]
    fn a_host_without_cni_has_no_pods() {
        let none =
            CniPaths { directories: vec!["/nonexistent".into()], flannel: "/nonexistent/x".into() };
        assert_eq!(detect(&none), PodPrefixes::default());
    }
}
