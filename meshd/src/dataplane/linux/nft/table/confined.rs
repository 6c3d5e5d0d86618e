//! Devices behind this host reach the mesh and this host's pods, and are not forwarded anywhere else.

use ipnet::IpNet;
use meshd_core::plan::Confined;
use serde_json::{Value, json};

use super::{Shape, field, interface, prefix, read_prefix};

pub(super) const CONFINED: &str = "confined";

impl Shape {
    pub(super) fn confined(&mut self, device: &str, confined: &Confined) {
        self.chain(CONFINED, "filter", "forward", 0);
        let back = || json!({"return": null});
        self.rule(CONFINED, &[interface("!=", "iifname", device), back()]);
        self.rule(CONFINED, &[interface("==", "oifname", device), back()]);
        for net in &confined.local {
            self.rule(CONFINED, &[field("==", protocol(net), "daddr", &prefix(net)), back()]);
        }
        for net in &confined.ranges {
            let from = field("==", protocol(net), "saddr", &prefix(net));
            let counter = json!({"counter": {"packets": 0, "bytes": 0}});
            self.rule(CONFINED, &[from, counter, json!({"drop": null})]);
        }
    }
}

/// What the rules of that chain seem to mean.
pub(super) fn confined_by(rules: &[&Value]) -> Option<Confined> {
    let mut confined = Confined::default();
    for rule in rules.get(2..)? {
        let condition = rule.get(0)?.get("match")?;
        let net = read_prefix(condition.get("right")?)?;
        match condition.get("left")?.get("payload")?.get("field")?.as_str()? {
            "daddr" => confined.local.insert(net),
            _ => confined.ranges.insert(net),
        };
    }
    Some(confined)
}

fn protocol(net: &IpNet) -> &'static str {
    if net.addr().is_ipv4() { "ip" } else { "ip6" }
}
