//! The rules for what this host forwards.
//!
//! ```text
//!   chain forwarded { type filter hook forward priority 0; iifname "mesh0" goto from_mesh; oifname "mesh0" goto into_mesh }
//!   chain from_mesh { oifname "mesh0" return; ip daddr 10.1.0.0/24 return; ip daddr @own4 return
//!     ct state established,related return; ip saddr 10.9.0.0/24 counter drop; ct status dnat return; counter drop }
//!   chain into_mesh { ip saddr 100.112.0.1 counter drop; iifname "eth0" goto from_outside }
//!   chain from_outside { ip saddr 192.168.50.0/24 return; ct …; counter drop }
//!   chain served { type filter hook input priority 0; iifname != "mesh0" return    # only with devices
//!     ip daddr 100.112.0.1 return; ip daddr 10.1.0.0/24 return; ip saddr 10.9.0.0/24 counter drop }
//! ```
//! Where connections are not tracked there are no services and no answers to translated packets; what is dropped is told
//! then, since it may be the first of either.

use ipnet::IpNet;
use meshd_core::plan::{Forwarded, SourceNat};
use serde_json::{Value, json};

use super::{OWN, Shape, counter, field, goto, interface, prefix, protocol, read_prefix};

const FORWARDED: &str = "forwarded";
const FROM_MESH: &str = "from_mesh";
const INTO_MESH: &str = "into_mesh";
const FROM_OUTSIDE: &str = "from_outside";
const SERVED: &str = "served";

impl Shape {
    pub(super) fn forwarded(&mut self, nat: &SourceNat, what: &Forwarded) {
        let back = || json!({"return": null});
        let drop = || json!({"drop": null});
        let from = |net: &IpNet| field("==", protocol(net), "saddr", &prefix(net));
        let to = |net: &IpNet| field("==", protocol(net), "daddr", &prefix(net));
        self.chain(FORWARDED, "filter", "forward", 0);
        for (way, chain) in [("iifname", FROM_MESH), ("oifname", INTO_MESH)] {
            self.regular_chain(chain);
            self.rule(FORWARDED, &[interface("==", way, &nat.device), goto(chain)]);
        }
        self.rule(FROM_MESH, &[interface("==", "oifname", &nat.device), back()]);
        for net in &what.local {
            self.rule(FROM_MESH, &[to(net), back()]);
        }
        if nat.workloads {
            for (protocol, set) in ["ip", "ip6"].iter().zip(OWN) {
                let own = field("==", protocol, "daddr", &json!(format!("@{set}")));
                self.rule(FROM_MESH, &[own, back()]);
            }
        }
        self.of_tracked(FROM_MESH, nat, "state", &json!(["established", "related"]));
        for net in &what.devices {
            self.rule(FROM_MESH, &[from(net), counter(), drop()]);
        }
        self.of_tracked(FROM_MESH, nat, "status", &json!("dnat"));
        self.refuse(FROM_MESH, nat);

        for net in &what.own {
            self.rule(INTO_MESH, &[from(net), counter(), drop()]);
        }
        self.regular_chain(FROM_OUTSIDE);
        for name in &what.outside {
            self.rule(INTO_MESH, &[interface("==", "iifname", name), goto(FROM_OUTSIDE)]);
        }
        for net in &what.behind {
            self.rule(FROM_OUTSIDE, &[from(net), back()]);
        }
        self.of_tracked(FROM_OUTSIDE, nat, "state", &json!(["established", "related"]));
        self.of_tracked(FROM_OUTSIDE, nat, "status", &json!("dnat"));
        self.refuse(FROM_OUTSIDE, nat);

        if !what.devices.is_empty() {
            self.chain(SERVED, "filter", "input", 0);
            self.rule(SERVED, &[interface("!=", "iifname", &nat.device), back()]);
            for net in what.own.iter().chain(&what.local) {
                self.rule(SERVED, &[to(net), back()]);
            }
            for net in &what.devices {
                self.rule(SERVED, &[from(net), counter(), drop()]);
            }
        }
    }

    /// A rule that has connections tracked is there only where they are anyway.
    fn of_tracked(&mut self, chain: &str, nat: &SourceNat, key: &str, which: &Value) {
        if !nat.watch {
            let left = json!({"ct": {"key": key}});
            let is_one = json!({"match": {"op": "in", "left": left, "right": which}});
            self.rule(chain, &[is_one, json!({"return": null})]);
        }
    }

    fn refuse(&mut self, chain: &str, nat: &SourceNat) {
        if nat.watch {
            self.tell(chain);
        }
        self.rule(chain, &[counter(), json!({"drop": null})]);
    }

    /// What the rules seem to mean, see [`Shape::meaning`].
    pub(super) fn meaning_of_forwarded(&self) -> Option<Option<Forwarded>> {
        if !self.has_chain(FORWARDED) {
            return Some(None);
        }
        let mut meant = Forwarded::default();
        for rule in &self.rules {
            let Some(condition) = rule["expr"].get(0).and_then(|first| first.get("match")) else {
                continue;
            };
            let right = condition.get("right")?;
            let left = condition.get("left")?;
            let side = left.get("payload").and_then(|payload| payload.get("field")?.as_str());
            let key = left.get("meta").and_then(|meta| meta.get("key")?.as_str());
            let is_set = right.as_str().is_some_and(|text| text.starts_with('@'));
            let into = match (rule["chain"].as_str()?, side, key) {
                (FROM_MESH, Some("daddr"), _) if !is_set => &mut meant.local,
                (FROM_MESH, Some("saddr"), _) => &mut meant.devices,
                (INTO_MESH, Some("saddr"), _) => &mut meant.own,
                (FROM_OUTSIDE, Some("saddr"), _) => &mut meant.behind,
                (INTO_MESH, _, Some("iifname")) => {
                    meant.outside.insert(right.as_str()?.to_owned());
                    continue;
                }
                _ => continue,
            };
            into.insert(read_prefix(right)?);
        }
        Some(Some(meant))
    }
}
