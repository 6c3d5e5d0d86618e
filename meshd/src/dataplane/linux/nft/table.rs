//! Our nftables table as nft's JSON, written and read back.
//!
//! ```text
//! table inet meshd {
//!   set guarded4 { type ipv4_addr; flags interval; }   # and guarded6
//!   set fragmented { type ipv4_addr; }
//!   set own4 { type ipv4_addr; }                       # and own6: workloads
//!   chain postrouting { type nat hook postrouting priority srcnat;
//!     oifname != "mesh0" return
//!     iifname "mesh0" return           # from a member to a device behind this host, or back
//!     ip saddr 10.1.0.0/24 return      # one per own prefix; prefixes that overlap do not fit into a set
//!     ip6 saddr fd00::/64 return
//!     ip saddr @own4 return; ip6 saddr @own6 return
//!     masquerade }                     # or, while no such packet was seen, in a chain of type filter:
//!                                      # limit rate 1/second log group 51820; drop
//!   chain clamp { type filter hook postrouting priority mangle;
//!     oifname "mesh0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu }
//!   chain guard_in { type filter hook prerouting priority -350;
//!     iifname "lo" accept; iifname "mesh0" accept
//!     ip saddr @guarded4 counter drop; ip6 saddr @guarded6 counter drop }
//!   chain guard_out { type filter hook postrouting priority 300; … daddr … }
//!   chain confined { type filter hook forward priority 0;       # only with devices, see `confined`
//!     iifname != "mesh0" return; oifname "mesh0" return; ip daddr 10.1.0.0/24 return
//!     ip saddr 10.9.0.0/24 counter drop }
//!   chain dont_fragment { type filter hook postrouting priority 310;
//!     meta mark & 0x10 == 0x10 udp sport 51820 ip length > 1340 ip frag-off set 0x4000 accept
//!     meta mark & 0x10 == 0x10 udp sport 51820 ip daddr != @fragmented ip frag-off set 0x4000 }
//! }
//! ```
//! What is there for node addresses is in `nodes`. The guard looks first at what comes in (before connection tracking,
//! −200) and last at what goes out (after source NAT, 100), so that no rule of others changes what it has seen.

mod nodes;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use meshd_core::plan::{
    DontFragment, Firewall, FirewallRules, FirewallSets, ObservedFirewall, SourceNat,
};
use serde_json::{Value, json};

use self::confined::{CONFINED, confined_by};

pub(super) const FAMILY: &str = "inet";
pub(super) const TABLE: &str = "meshd";

const NAT: &str = "postrouting";
const CLAMP: &str = "clamp";
const GUARD_IN: &str = "guard_in";
const GUARD_OUT: &str = "guard_out";
const DONT_FRAGMENT: &str = "dont_fragment";
const GUARDED_V4: &str = "guarded4";
const GUARDED_V6: &str = "guarded6";
const FRAGMENTED: &str = "fragmented";
const OWN_V4: &str = "own4";
const OWN_V6: &str = "own6";

/// DF of the fragment field of IPv4 (RFC 791, 3.1).
const DF: u16 = 0x4000;

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
        shape.nat(&rules.nat);
        if let Some(which) = rules.steering {
            shape.steering(&rules.nat.device, which);
        }
        if rules.clamp_mss {
            shape.clamp(&rules.nat.device);
        }
        if rules.guard {
            shape.guard(&rules.nat.device);
            rules.steering.into_iter().for_each(|which| shape.guard_of_nodes(which));
        }
        if let Some(which) = rules.dont_fragment {
            shape.dont_fragment(which);
        }
        if let Some(confined) = &rules.confined {
            shape.confined(&rules.nat.device, confined);
        }
        shape
    }

    fn nat(&mut self, nat: &SourceNat) {
        // After NAT of others, where none of ours is.
        let (kind, priority) = if nat.watch { ("filter", 250) } else { ("nat", 100) };
        self.chain(NAT, kind, "postrouting", priority);
        self.rule(NAT, &[interface("!=", "oifname", &nat.device), json!({"return": null})]);
        // What came in through the mesh has a source that WireGuard has checked. Linux tells here where from since 5.7.
        self.rule(NAT, &[interface("==", "iifname", &nat.device), json!({"return": null})]);
        let v4 = nat.own_v4.iter().map(|net| ("ip", IpNet::V4(*net)));
        let v6 = nat.own_v6.iter().map(|net| ("ip6", IpNet::V6(*net)));
        for (protocol, net) in v4.chain(v6) {
            let own = field("==", protocol, "saddr", &prefix(&net));
            self.rule(NAT, &[own, json!({"return": null})]);
        }
        if nat.workloads {
            for (protocol, set, kind) in [("ip", OWN_V4, "ipv4_addr"), ("ip6", OWN_V6, "ipv6_addr")]
            {
                self.set(json!({"family": FAMILY, "name": set, "table": TABLE, "type": kind}));
                let own = field("==", protocol, "saddr", &json!(format!("@{set}")));
                self.rule(NAT, &[own, json!({"return": null})]);
            }
        }
        self.nat_of_nodes(nat);
        if nat.watch {
            let limit = json!({"limit": {"rate": 1, "burst": 5, "per": "second"}});
            self.rule(NAT, &[limit, json!({"log": {"group": SourceNat::LOG_GROUP}})]);
            // Nobody would take it; and if it is tracked, what repeats it must not go on as it is.
            self.rule(NAT, &[json!({"drop": null})]);
        } else {
            self.rule(NAT, &[json!({"masquerade": null})]);
        }
    }

    /// SYN and SYN-ACK: each side says what it can be sent.
    fn clamp(&mut self, device: &str) {
        self.chain(CLAMP, "filter", "postrouting", -150);
        let flags = json!({"&": [
            {"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"],
        ]});
        self.rule(
            CLAMP,
            &[
                interface("==", "oifname", device),
                json!({"match": {"op": "==", "left": flags, "right": "syn"}}),
                json!({"mangle": {
                    "key": {"tcp option": {"name": "maxseg", "field": "size"}},
                    "value": {"rt": {"key": "mtu"}},
                }}),
            ],
        );
    }

    fn guard(&mut self, device: &str) {
        for (set, kind) in [(GUARDED_V4, "ipv4_addr"), (GUARDED_V6, "ipv6_addr")] {
            self.set(json!({"family": FAMILY, "name": set, "table": TABLE, "type": kind,
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
            for (protocol, set) in [("ip", GUARDED_V4), ("ip6", GUARDED_V6)] {
                self.drop_set(chain, protocol, side, set);
            }
        }
    }

    fn drop_set(&mut self, chain: &str, protocol: &str, side: &str, set: &str) {
        self.rule(
            chain,
            &[
                field("==", protocol, side, &json!(format!("@{set}"))),
                json!({"counter": {"packets": 0, "bytes": 0}}),
                json!({"drop": null}),
            ],
        );
    }

    fn dont_fragment(&mut self, which: DontFragment) {
        self.set(
            json!({"family": FAMILY, "name": FRAGMENTED, "table": TABLE, "type": "ipv4_addr"}),
        );
        self.chain(DONT_FRAGMENT, "filter", "postrouting", 310);
        let marked = json!({"&": [{"meta": {"key": "mark"}}, which.mark]});
        let fits = json!(DontFragment::LARGEST_FRAGMENTED);
        // Most bytes are in large packets: one rule is enough for those.
        for (condition, end) in [
            (field(">", "ip", "length", &fits), Some(json!({"accept": null}))),
            (field("!=", "ip", "daddr", &json!(format!("@{FRAGMENTED}"))), None),
        ] {
            let mut rule = vec![
                json!({"match": {"op": "==", "left": marked, "right": which.mark}}),
                field("==", "udp", "sport", &json!(which.port)),
                condition,
                json!({"mangle": {
                    "key": {"payload": {"protocol": "ip", "field": "frag-off"}}, "value": DF,
                }}),
            ];
            rule.extend(end);
            self.rule(DONT_FRAGMENT, &rule);
        }
    }

    fn set(&mut self, body: Value) {
        self.sets.push(body);
    }

    fn chain(&mut self, name: &str, kind: &str, hook: &str, priority: i64) {
        self.chains.push(json!({"family": FAMILY, "table": TABLE, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept"}));
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

    /// What these objects seem to mean; the caller makes them anew from it and compares.
    fn meaning(&self) -> Option<FirewallRules> {
        let has = |name: &str| self.chains.iter().any(|chain| chain["name"] == name);
        let of = |chain: &str| -> Vec<&Value> {
            self.rules.iter().filter(|rule| rule["chain"] == chain).map(|r| &r["expr"]).collect()
        };
        let right = |rule: &Value, position: usize| -> Option<Value> {
            rule.get(position)?.get("match")?.get("right").cloned()
        };
        let rules = of(NAT);
        let (first, rest) = rules.split_first()?;
        let (last, own) = rest.get(1..)?.split_last()?;
        let device = right(first, 0)?.as_str()?.to_owned();
        let watch = last.get(0)?.get("drop").is_some();
        let own = if watch { own.split_last()?.1 } else { own };
        let mut nat = SourceNat { watch, device, ..SourceNat::default() };
        for rule in own {
            if right(rule, 1).is_some() {
                nat.own_nodes.insert(right(rule, 0)?.as_str()?.parse().ok()?);
                continue;
            }
            if right(rule, 0)?.as_str().is_some_and(|set| set.starts_with('@')) {
                nat.workloads = true;
                continue;
            }
            match read_prefix(&right(rule, 0)?)? {
                IpNet::V4(net) => nat.own_v4.insert(net),
                IpNet::V6(net) => nat.own_v6.insert(net),
            };
        }
        let number = |value: Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let dont_fragment = match of(DONT_FRAGMENT).first() {
            None => None,
            Some(rule) => Some(DontFragment {
                mark: number(right(rule, 0)?)?,
                port: u16::try_from(number(right(rule, 1)?)?).ok()?,
            }),
        };
        let steering = self.meaning_of_steering()?;
        let confined = match has(CONFINED) {
            true => Some(confined_by(&of(CONFINED))?),
            false => None,
        };
        let (clamp_mss, guard) = (has(CLAMP), has(GUARD_IN));
        Some(FirewallRules { nat, clamp_mss, dont_fragment, guard, steering, confined })
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
                    if let Some(counter) = expr.get_mut("counter") {
                        *counter = json!({"packets": 0, "bytes": 0});
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
            (OWN_V4 | OWN_V6, address) => drop(self.sets.own.insert(address)),
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
        (OWN_V4, own(false)),
        (OWN_V6, own(true)),
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

mod confined;
#[cfg(test)]
mod tests;
