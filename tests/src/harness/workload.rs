//! Pods whose addresses the network behind the hosts gave out one by one, as in clouds: made by the real CNI plugin `ptp`,
//! with a route of their own on the host and no prefix around them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::host::Host;
use super::place::{Place, Space};
use super::pod::{SETUP, plugins};
use super::process::run;
use super::wait::pace;

/// The ranges that workloads have their addresses from: parts of the underlay's own networks.
pub const WORKLOAD_RANGES: [&str; 2] = ["192.0.2.128/25", "2001:db8:0:0:1::/80"];

/// A pod with addresses of its own.
#[derive(Debug)]
pub struct Workload {
    space: Space,
    number: u32,
    /// How long the plugin took.
    pub made_in: Duration,
}

impl Place for Workload {
    fn space(&self) -> &Space {
        &self.space
    }
}

impl Workload {
    fn new(host: &Host, name: &str, number: u32) -> Result<Self> {
        let space = Space::new(name, SETUP)?;
        let started = Instant::now();
        call(host, "ADD", &space, number)?;
        Ok(Self { space, number, made_in: started.elapsed() })
    }

    /// Its IPv4 address.
    pub fn address(&self) -> String {
        v4(self.number)
    }

    /// Its IPv6 address.
    pub fn address6(&self) -> String {
        v6(self.number)
    }

    /// Takes it away from its host, as a runtime does; its namespace stays until it is dropped.
    pub fn remove(&self, host: &Host) -> Result<()> {
        call(host, "DEL", &self.space, self.number).map(drop)
    }
}

impl Host {
    /// Makes a pod with the address 192.0.2.(130 + `number`), and the same in IPv6.
    pub fn workload(&self, name: &str, number: u32) -> Result<Workload> {
        Workload::new(self, name, number)
    }
}

fn v4(number: u32) -> String {
    format!("192.0.2.{}", 130 + number)
}

fn v6(number: u32) -> String {
    format!("2001:db8:0:0:1::{}", 130 + number)
}

fn call(host: &Host, verb: &str, pod: &Space, number: u32) -> Result<Value> {
    let range = |subnet: &str, gateway: &str, address: String| json!([{ "subnet": subnet, "gateway": gateway, "rangeStart": address, "rangeEnd": address }]);
    let plugin = json!({
        "cniVersion": "1.0.0",
        "name": format!("cloud-{number}"),
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "ranges": [
                range(WORKLOAD_RANGES[0], "192.0.2.129", v4(number)),
                range(WORKLOAD_RANGES[1], "2001:db8:0:0:1::129", v6(number)),
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    let directory = plugins()?;
    let mut command = host.command("env");
    command
        .args([&format!("CNI_COMMAND={verb}"), "CNI_IFNAME=eth0"])
        .arg(format!("CNI_CONTAINERID={}", pod.name()))
        .arg(format!("CNI_NETNS=/proc/{}/ns/net", pod.pid()))
        .arg(format!("CNI_PATH={}", directory.display()))
        .arg(directory.join("ptp"));
    let ran = run(command, &plugin.to_string(), pace(30))?.ok()?;
    if ran.stdout.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&ran.stdout).with_context(|| format!("the CNI plugin said {}", ran.stdout))
}
