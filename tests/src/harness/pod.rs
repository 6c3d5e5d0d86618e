//! Pods as a container runtime makes them: a network namespace that the real CNI plugins `bridge` and `host-local`
//! connect to the host.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::host::Host;
use super::place::{Place, Space};
use super::process::run;
use super::wait::pace;

/// Without waiting whether somebody else has a pod's address, for which plugins wait two seconds.
pub(super) const SETUP: &str = "ip link set lo up
for f in all default; do echo 0 >/proc/sys/net/ipv6/conf/$f/accept_dad; done";

/// What a pod shall be.
#[derive(Debug, Clone)]
pub struct PodPlan {
    name: String,
    masquerade: bool,
}

impl PodPlan {
    /// A pod whose packets keep their source address.
    pub fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), masquerade: false }
    }

    /// A pod whose packets get an address of the host when they leave the pod range (`ipMasq`).
    pub fn masqueraded(name: &str) -> Self {
        Self { name: name.to_owned(), masquerade: true }
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    space: Space,
    v4: String,
    v6: String,
}

impl Place for Pod {
    fn space(&self) -> &Space {
        &self.space
    }
}

impl Pod {
    pub(super) fn new(host: &Host, plan: &PodPlan) -> Result<Self> {
        ensure!(
            !host.pod_prefixes().is_empty(),
            "{} is not a node: it has no pod range",
            host.name()
        );
        let space = Space::new(&plan.name, SETUP)?;
        let reply = add(host, &space, plan.masquerade)?;
        let addresses: Vec<String> = reply["ips"]
            .as_array()
            .context("the CNI plugin names no addresses")?
            .iter()
            .filter_map(|ip| ip["address"].as_str())
            .filter_map(|address| address.split('/').next())
            .map(str::to_owned)
            .collect();
        let find = |six: bool| addresses.iter().find(|a| a.contains(':') == six).cloned();
        Ok(Self {
            v4: find(false).context("the CNI plugin gave no IPv4 address")?,
            v6: find(true).context("the CNI plugin gave no IPv6 address")?,
            space,
        })
    }

    /// Its IPv4 address.
    pub fn address(&self) -> &str {
        &self.v4
    }

    /// Its IPv6 address.
    pub fn address6(&self) -> &str {
        &self.v6
    }
}

/// The pod ranges of host `number`: IPv4, IPv6.
pub(super) fn ranges(number: u32) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
}

/// The network configuration list that a cluster would have put into `/etc/cni/net.d`.
pub(super) fn conflist(number: u32, masquerade: bool) -> String {
    let ranges: Vec<Value> =
        ranges(number).iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "isDefaultGateway": true,
            "ipMasq": masquerade,
            "ipam": { "type": "host-local", "ranges": ranges },
        }],
    });
    format!("{list:#}\n")
}

/// Calls the first plugin of the list, as a runtime does: network name and version merged into its part.
fn add(host: &Host, pod: &Space, masquerade: bool) -> Result<Value> {
    let list: Value = serde_json::from_str(&conflist(host.number(), masquerade))?;
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    let directory = plugins()?;
    let mut command = host.command("env");
    command
        .args(["CNI_COMMAND=ADD", "CNI_IFNAME=eth0"])
        .arg(format!("CNI_CONTAINERID={}", pod.name()))
        .arg(format!("CNI_NETNS=/proc/{}/ns/net", pod.pid()))
        .arg(format!("CNI_PATH={}", directory.display()))
        .arg(directory.join("bridge"));
    let ran = run(command, &plugin.to_string(), pace(30))?.ok()?;
    serde_json::from_str(&ran.stdout).with_context(|| format!("the CNI plugin said {}", ran.stdout))
}

/// Where the plugins are: Debian's place, or the one of the upstream archive.
pub(super) fn plugins() -> Result<PathBuf> {
    let places = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    let found =
        places.into_iter().find(|p| p.join("bridge").is_file() && p.join("host-local").is_file());
    found.context(
        "no CNI plugins in /usr/lib/cni or /opt/cni/bin; install containernetworking-plugins",
    )
}
