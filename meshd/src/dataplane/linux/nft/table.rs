//! Our nftables table as nft's JSON, written and read back.
//!
//! ```text
//! table inet meshd {
//!   set guarded4 { type ipv4_addr; flags interval; }   # and guarded6
//!   set fragmented { type ipv4_addr; }
//!   set own4 { type ipv4_addr; }                       # and own6: workloads
//!   chain guard_in { type filter hook prerouting priority -350;
//!     iifname "lo" accept; iifname "mesh0" accept
//!     icmpv6 type { nd-… } accept; udp dport { 51800, 51820, 51821 } fib daddr type local accept
//!     ip saddr @guarded4 counter drop; ip6 saddr @guarded6 counter drop }
//!   chain guard_out { type filter hook postrouting priority 300; …
//!     meta mark & 0x10 == 0x10 udp sport { 51800, 51820, 51821 } accept; … daddr … }
//! }
//! ```
//! What is there for what leaves is in `leaving`, for what is forwarded in `forwarding`, for node addresses in `nodes`.
//! The guard looks first at what comes in (before connection tracking, −200) and last at what goes out (after source NAT,
//! 100), so that no rule of others changes what it has seen.

mod forwarding;
mod leaving;
mod nodes;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use meshd_core::plan::{Firewall, FirewallRules, FirewallSets, ObservedFirewall, Steering};
use serde_json::{Value, json};

pub(super) const FAMILY: &str = "inet";
pub(super) const TABLE: &str = "meshd";

const GUARD_IN: &str = "guard_in";
const GUARD_OUT: &str = "guard_out";
const GUARDED_V4: &str = "guarded4";
const GUARDED_V6: &str = "guarded6";
const FRAGMENTED: &str = "fragmented";
const OWN: [&str; 2] = ["own4", "own6"];

/// What our table is to be thrown away and made anew with, in one transaction.
pub(super) fn whole(table: &Firewall) -> Value {
    let Shape { sets, chains, rules } = Shape::of(&table.rules);
    let mut commands = vec![add_table(), delete_table(), add_table()];
    let objects = [("set", sets), ("chain", chains), ("rule", rules)];
    for (kind, bodies) in objects {
        commands.extend(bodies.into_iter().map(|body| json!({"add": {kind: body}})));
    }
    commands.extend(elements("add", &table.sets));
    json!({"nftables": commands})
}

/// Elements that go and elements that come, in one transaction.
pub(super) fn changed(add: &FirewallSets, remove: &FirewallSets) -> Value {
    let commands: Vec<Value> =
        elements("delete", remove).into_iter().chain(elements("add", add)).collect();
    json!({"nftables": commands})
}

/// The table away. Adding first makes the deletion succeed also when somebody else was faster.
pub(super) fn removal() -> Value {
    json!({"nftables": [add_table(), delete_table()]})
}

fn add_table() -> Value {
    json!({"add": {"table": {"family": FAMILY, "name": TABLE}}})
}

fn delete_table() -> Value {
    json!({"delete": {"table": {"family": FAMILY, "name": TABLE}}})
}

/// Everything in the table but elements, as nft lists it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Shape {
    sets: Vec<Value>,
    chains: Vec<Value>,
    rules: Vec<Value>,
}

impl Shape {
    /// What `rules` make.
    pub(super) fn of(rules: &FirewallRules) -> Self {
        let mut shape = Self::default();
        let device = &rules.nat.device;
        shape.leaving(rules);
        if let Some(which) = rules.steering {
            shape.steering(device, which);
        }
        if let Some(which) = rules.guard {
            shape.guard(device, which);
            if rules.steering.is_some() {
                shape.guard_of_nodes();
            }
        }
        if let Some(forwarded) = &rules.forwarded {
            shape.forwarded(&rules.nat, forwarded);
        }
        shape
    }

    fn guard(&mut self, device: &str, which: Steering) {
        for (set, kind) in [(GUARDED_V4, "ipv4_addr"), (GUARDED_V6, "ipv6_addr")] {
            self.sets.push(json!({"family": FAMILY, "name": set, "table": TABLE, "type": kind,
                "flags": ["interval"]}));
        }
        for (chain, hook, priority, way, side) in [
            (GUARD_IN, "prerouting", -350, "iifname", "saddr"),
            (GUARD_OUT, "postrouting", 300, "oifname", "daddr"),
        ] {
            self.chain(chain, "filter", hook, priority);
            for inside in ["lo", device] {
                self.rule(chain, &[interface("==", way, inside), json!({"accept": null})]);
            }
            self.accept_ours(chain, which);
            for (protocol, set) in [("ip", GUARDED_V4), ("ip6", GUARDED_V6)] {
                self.drop_set(chain, protocol, side, set);
            }
        }
    }

    fn drop_set(&mut self, chain: &str, protocol: &str, side: &str, set: &str) {
        let is_one = field("==", protocol, side, &json!(format!("@{set}")));
        self.rule(chain, &[is_one, counter(), json!({"drop": null})]);
    }

    fn set(&mut self, name: &str, kind: &str) {
        self.sets.push(json!({"family": FAMILY, "name": name, "table": TABLE, "type": kind}));
    }

    fn chain(&mut self, name: &str, kind: &str, hook: &str, priority: i64) {
        self.chains.push(json!({"family": FAMILY, "table": TABLE, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept"}));
    }

    /// One that others lead to.
    fn regular_chain(&mut self, name: &str) {
        self.chains.push(json!({"family": FAMILY, "table": TABLE, "name": name}));
    }

    fn rule(&mut self, chain: &str, expr: &[Value]) {
        self.rules.push(json!({"family": FAMILY, "table": TABLE, "chain": chain, "expr": expr}));
    }

    /// Objects of the same names and kinds may be listed in another order than they were made in; rules of one chain
    /// may not.
    fn sorted(mut self) -> Self {
        for list in [&mut self.sets, &mut self.chains] {
            list.sort_by_key(|body| body.get("name").map(Value::to_string));
        }
        self.rules.sort_by_key(|body| body.get("chain").map(Value::to_string));
        self
    }

    fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain["name"] == name)
    }

    fn rules_of(&self, chain: &str) -> Vec<&Value> {
        self.rules.iter().filter(|rule| rule["chain"] == chain).map(|r| &r["expr"]).collect()
    }

    /// What these objects seem to mean; the caller makes them anew from it and compares.
    fn meaning(&self) -> Option<FirewallRules> {
        Some(FirewallRules {
            nat: self.meaning_of_nat()?,
            clamp_mss: self.clamps(),
            dont_fragment: self.meaning_of_dont_fragment()?,
            guard: self.meaning_of_guard()?,
            steering: self.meaning_of_steering()?,
            forwarded: self.meaning_of_forwarded()?,
        })
    }
}

/// A listing of our table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Listing {
    pub(super) shape: Shape,
    pub(super) sets: FirewallSets,
    /// Something is in it that we never make, or cannot read.
    foreign: bool,
}

impl Listing {
    /// Reads `nft -j list table`.
    pub(super) fn read(listing: &Value) -> Self {
        let mut read = Self::default();
        let Some(objects) = listing.get("nftables").and_then(Value::as_array) else {
            return Self { foreign: true, ..read };
        };
        for object in objects {
            if read.take(object).is_none() {
                read.foreign = true;
            }
        }
        read.shape = std::mem::take(&mut read.shape).sorted();
        read
    }

    fn take(&mut self, object: &Value) -> Option<()> {
        let (kind, body) = object.as_object()?.iter().next()?;
        let mut body = body.clone();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("handle");
        }
        match kind.as_str() {
            "metainfo" => {}
            // Flags would mean dormant: all there, and without effect.
            "table" if body.get("flags").is_none() => {}
            "set" => {
                let elements = body.as_object_mut()?.remove("elem");
                let name = body.get("name")?.as_str()?.to_owned();
                self.shape.sets.push(body);
                for element in elements.iter().filter_map(Value::as_array).flatten() {
                    self.take_element(&name, element)?;
                }
            }
            "chain" => self.shape.chains.push(body),
            "rule" => {
                for expr in body.get_mut("expr")?.as_array_mut()? {
                    if expr.get("counter").is_some() {
                        *expr = counter();
                    }
                }
                self.shape.rules.push(body);
            }
            _ => return None,
        }
        Some(())
    }

    fn take_element(&mut self, set: &str, element: &Value) -> Option<()> {
        let prefix = read_prefix(element)?;
        match (set, prefix.addr()) {
            (GUARDED_V4 | GUARDED_V6, _) => drop(self.sets.guarded.insert(prefix)),
            (FRAGMENTED, IpAddr::V4(address)) => drop(self.sets.fragmented.insert(address)),
            (set, address) if OWN.contains(&set) => drop(self.sets.own.insert(address)),
            (set, address) if nodes::ROUTED.contains(&set) => {
                self.sets.routed_nodes.insert(address);
            }
            (set, address) if nodes::GUARDED.contains(&set) => {
                self.sets.guarded_nodes.insert(address);
            }
            _ => return None,
        }
        Some(())
    }

    /// What it means. `known`: how this nft lists the rules that were written last, when that is not as we write them.
    pub(super) fn observed(self, known: Option<&(Shape, FirewallRules)>) -> ObservedFirewall {
        let rules = match known {
            Some((shape, rules)) if *shape == self.shape => Some(rules.clone()),
            _ => {
                let same = |rules: &FirewallRules| Shape::of(rules).sorted() == self.shape;
                self.shape.meaning().filter(same)
            }
        };
        ObservedFirewall { rules: rules.filter(|_| !self.foreign), sets: self.sets }
    }
}

fn interface(op: &str, key: &str, name: &str) -> Value {
    json!({"match": {"op": op, "left": {"meta": {"key": key}}, "right": name}})
}

fn field(op: &str, protocol: &str, name: &str, right: &Value) -> Value {
    let left = json!({"payload": {"protocol": protocol, "field": name}});
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn counter() -> Value {
    json!({"counter": {"packets": 0, "bytes": 0}})
}

fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

/// What the match at this place of a rule compares with.
fn right(rule: &Value, position: usize) -> Option<&Value> {
    rule.get(position)?.get("match")?.get("right")
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn protocol(net: &IpNet) -> &'static str {
    if net.addr().is_ipv4() { "ip" } else { "ip6" }
}

fn elements(verb: &str, sets: &FirewallSets) -> Vec<Value> {
    let of = |v6: bool| -> Vec<Value> {
        let guarded = sets.guarded.iter().filter(|net| net.addr().is_ipv6() == v6);
        guarded.map(prefix).collect()
    };
    let fragmented = sets.fragmented.iter().map(|address: &Ipv4Addr| json!(address.to_string()));
    let own = |v6: bool| -> Vec<Value> {
        let own = sets.own.iter().filter(|address| address.is_ipv6() == v6);
        own.map(|address| json!(address.to_string())).collect()
    };
    let of_nodes = [(nodes::ROUTED, &sets.routed_nodes), (nodes::GUARDED, &sets.guarded_nodes)];
    let of_nodes = of_nodes
        .into_iter()
        .flat_map(|(names, addresses)| names.into_iter().zip(nodes::elements(addresses)));
    let all = [
        (GUARDED_V4, of(false)),
        (GUARDED_V6, of(true)),
        (FRAGMENTED, fragmented.collect()),
        (OWN[0], own(false)),
        (OWN[1], own(true)),
    ];
    all.into_iter()
        .chain(of_nodes)
        .filter(|(_, elements)| !elements.is_empty())
        .map(|(set, elements)| {
            json!({verb: {"element": {
                "family": FAMILY, "table": TABLE, "name": set, "elem": elements,
            }}})
        })
        .collect()
}

fn prefix(net: &IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        json!(net.addr().to_string())
    } else {
        json!({"prefix": {"addr": net.network().to_string(), "len": net.prefix_len()}})
    }
}

fn read_prefix(value: &Value) -> Option<IpNet> {
    if let Some(address) = value.as_str() {
        return Some(IpNet::from(address.parse::<IpAddr>().ok()?));
    }
    let prefix = value.get("prefix")?;
    let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
    IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
}

#[cfg(test)]
mod tests;
