//! The rules for node addresses.
//!
//! ```text
//!   set routed4 { type ipv4_addr; }   # and routed6, guarded_nodes4, guarded_nodes6
//!   chain postrouting { … ip saddr 192.0.2.1 ip daddr @routed4 return … }
//!   chain steer { type filter hook prerouting priority raw;
//!     iifname != "mesh0" udp dport { 51800, 51820, 51821 } fib daddr type local meta mark set meta mark | 0x10
//!     iifname != "mesh0" ip saddr @routed4 fib daddr type local meta mark set meta mark | 0x10    # and ip6
//!   }
//!   chain guard_in { …
//!     ip saddr @guarded_nodes4 counter drop; ip6 saddr @guarded_nodes6 counter drop }
//!   chain guard_out { … daddr … }
//! ```
//! The marks come before other programs' checks of the way back (firewalld's is at −290), and only on what this host takes
//! for itself: what a pod sends to another host's ports is none of ours, and must not get past the tunnel.

use std::{collections::BTreeSet, net::IpAddr};

use meshd_core::plan::{SourceNat, Steering};
use serde_json::{Value, json};

use super::{GUARD_IN, GUARD_OUT, Shape, field, interface, number, right};

const STEER: &str = "steer";
pub(super) const ROUTED: [&str; 2] = ["routed4", "routed6"];
pub(super) const GUARDED: [&str; 2] = ["guarded_nodes4", "guarded_nodes6"];
const PROTOCOLS: [&str; 2] = ["ip", "ip6"];

impl Shape {
    /// Our own node addresses stay as they are towards those that take them.
    pub(super) fn sources_of_nodes(&mut self, chain: &str, nat: &SourceNat) {
        for own in &nat.own_nodes {
            let family = usize::from(own.is_ipv6());
            let source = field("==", PROTOCOLS[family], "saddr", &json!(own.to_string()));
            let set = json!(format!("@{}", ROUTED[family]));
            let destination = field("==", PROTOCOLS[family], "daddr", &set);
            self.rule(chain, &[source, destination, json!({"return": null})]);
        }
    }

    /// The marks of what comes in the clear.
    pub(super) fn steering(&mut self, device: &str, which: Steering) {
        self.node_sets(ROUTED);
        self.chain(STEER, "filter", "prerouting", -300);
        let outside = interface("!=", "iifname", device);
        let mark = json!({"mangle": {
            "key": {"meta": {"key": "mark"}},
            "value": {"|": [{"meta": {"key": "mark"}}, which.mark]},
        }});
        let ports = field("==", "udp", "dport", &ports(which));
        self.rule(STEER, &[outside.clone(), ports, is_local(), mark.clone()]);
        for (protocol, set) in PROTOCOLS.iter().zip(ROUTED) {
            let from = field("==", protocol, "saddr", &json!(format!("@{set}")));
            self.rule(STEER, &[outside.clone(), from, is_local(), mark.clone()]);
        }
    }

    /// What goes in the clear all the same: neighbour discovery, and what is encrypted or QUIC's.
    pub(super) fn accept_ours(&mut self, chain: &str, which: Steering) {
        let accept = json!({"accept": null});
        self.rule(chain, &[discovery(), accept.clone()]);
        if chain == GUARD_IN {
            let to_us = field("==", "udp", "dport", &ports(which));
            self.rule(chain, &[to_us, is_local(), accept]);
        } else {
            let marked = json!({"&": [{"meta": {"key": "mark"}}, which.mark]});
            let marked = json!({"match": {"op": "==", "left": marked, "right": which.mark}});
            self.rule(chain, &[marked, field("==", "udp", "sport", &ports(which)), accept]);
        }
    }

    /// Hosts that are reached through the tunnel or not at all.
    pub(super) fn guard_of_nodes(&mut self) {
        self.node_sets(GUARDED);
        for (chain, side) in [(GUARD_IN, "saddr"), (GUARD_OUT, "daddr")] {
            for (protocol, set) in PROTOCOLS.iter().zip(GUARDED) {
                self.drop_set(chain, protocol, side, set);
            }
        }
    }

    fn node_sets(&mut self, names: [&str; 2]) {
        for (name, kind) in names.iter().zip(["ipv4_addr", "ipv6_addr"]) {
            self.set(name, kind);
        }
    }

    /// What the rules seem to mean, see [`Shape::meaning`].
    pub(super) fn meaning_of_steering(&self) -> Option<Option<Steering>> {
        let mut rules = self.rules.iter().filter(|rule| rule["chain"] == STEER);
        let Some(rule) = rules.next() else { return Some(None) };
        let expr = &rule["expr"];
        let mark = number(expr.get(3)?.get("mangle")?.get("value")?.get("|")?.get(1)?)?;
        Some(Some(read_ports(right(expr, 1)?, mark)?))
    }

    /// What the guard's rules seem to mean.
    pub(super) fn meaning_of_guard(&self) -> Option<Option<Steering>> {
        let is_ours = |rule: &&&Value| rule.get(2).is_some_and(|e| e.get("accept").is_some());
        match self.rules_of(GUARD_OUT).iter().find(is_ours) {
            None => Some(None),
            Some(rule) => Some(Some(read_ports(right(rule, 1)?, number(right(rule, 0)?)?)?)),
        }
    }
}

/// Two that follow each other are WireGuard's. Where three do, the caller's comparison does not tell which is which: the
/// rules are the same.
fn read_ports(set: &Value, mark: u32) -> Option<Steering> {
    let ports: Vec<u16> = set
        .get("set")?
        .as_array()?
        .iter()
        .map(|port| number(port).and_then(|port| u16::try_from(port).ok()))
        .collect::<Option<_>>()?;
    let second = ports
        .iter()
        .position(|port| port.checked_add(1).is_some_and(|next| ports.contains(&next)))?;
    let wireguard = *ports.get(second)?;
    let gossip = ports.iter().find(|port| **port != wireguard && **port != wireguard + 1);
    Some(Steering { mark, gossip: *gossip?, wireguard })
}

/// Ascending, as nft lists them.
fn ports(which: Steering) -> Value {
    let second = which.wireguard.saturating_add(1);
    let ports = BTreeSet::from([which.gossip, which.wireguard, second]);
    json!({"set": ports})
}

fn is_local() -> Value {
    let left = json!({"fib": {"result": "type", "flags": ["daddr"]}});
    json!({"match": {"op": "==", "left": left, "right": "local"}})
}

/// IPv6 finds link addresses by it.
fn discovery() -> Value {
    let types = json!([
        "nd-router-solicit",
        "nd-router-advert",
        "nd-neighbor-solicit",
        "nd-neighbor-advert"
    ]);
    field("==", "icmpv6", "type", &json!({"set": types}))
}

/// Elements of a pair of sets.
pub(super) fn elements(addresses: &BTreeSet<IpAddr>) -> [Vec<Value>; 2] {
    [false, true].map(|v6| {
        let of_family = addresses.iter().filter(|address| address.is_ipv6() == v6);
        of_family.map(|address| json!(address.to_string())).collect()
    })
}
