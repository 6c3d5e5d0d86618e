//! The rules for what leaves: sources that others do not take, TCP's segment size, DF.
//!
//! ```text
//!   chain postrouting { type nat hook postrouting priority srcnat; oifname != "mesh0" return; SOURCES
//!     tcp flags & (syn | ack) != syn return      # translated in its midst, a connection would be another one
//!     masquerade }
//!   chain leaving { type filter hook postrouting priority 310
//!     meta mark & 0x10 == 0x10 ip length > 1340 udp sport 51820 ip frag-off set 0x4000 accept
//!     oifname "mesh0" goto inside
//!     meta mark & 0x10 == 0x10 ip length >= 636 udp sport 51820 ip daddr != @fragmented ip frag-off set 0x4000 }
//!   chain inside { tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu }
//! ```
//! SOURCES, which stay as they are:
//!
//! ```text
//!     ip saddr 10.1.0.0/24 return      # one per own prefix; prefixes that overlap do not fit into a set
//!     ip6 saddr fd00::/64 return
//!     ip saddr @own4 return; ip6 saddr @own6 return
//!     iifname "mesh0" return           # from a member to a device behind this host, or back
//! ```
//! Nearly all have a source of the first kind, so that comes first: each rule costs a round trip a hundredth.
//! While no other source was seen there is no `postrouting`, but at the end of `inside`: `SOURCES; limit rate 1/second log
//! group 51820`. All packets of the host pass `leaving`, so it is one chain; most bytes are in our large encrypted packets, which one
//! rule is enough for, the first: of TCP through the tunnel the hook takes a hundredth, each rule half of one.

use ipnet::IpNet;
use meshd_core::plan::{DontFragment, FirewallRules, SourceNat};
use serde_json::{Value, json};

use super::{FRAGMENTED, OWN, Shape, field, goto, interface, number, prefix, read_prefix, right};

pub(super) const NAT: &str = "postrouting";
const LEAVING: &str = "leaving";
const INSIDE: &str = "inside";

/// DF of the fragment field of IPv4 (RFC 791, 3.1).
const DF: u16 = 0x4000;

impl Shape {
    pub(super) fn leaving(&mut self, rules: &FirewallRules) {
        let FirewallRules { nat, clamp_mss, dont_fragment, .. } = rules;
        if nat.workloads {
            for (set, kind) in OWN.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
                self.set(set, kind);
            }
        }
        if !nat.watch {
            self.chain(NAT, "nat", "postrouting", 100);
            self.rule(NAT, &[interface("!=", "oifname", &nat.device), json!({"return": null})]);
            self.sources(NAT, nat);
            // What was ours a moment ago (a configuration on trial) may be ours again; until then the other end drops it.
            self.rule(NAT, &[flags("!=", ["syn", "ack"]), json!({"return": null})]);
            self.rule(NAT, &[json!({"masquerade": null})]);
        }
        let inside = *clamp_mss || nat.watch;
        if inside || dont_fragment.is_some() {
            // Behind what others do to the packet, and the guard.
            self.chain(LEAVING, "filter", "postrouting", 310);
        }
        if let Some(which) = dont_fragment {
            self.set(FRAGMENTED, "ipv4_addr");
            let large = field(">", "ip", "length", &json!(DontFragment::LARGEST_FRAGMENTED));
            self.dont_fragment(*which, large, &[set_df(), json!({"accept": null})]);
        }
        if inside {
            self.regular_chain(INSIDE);
            self.rule(LEAVING, &[interface("==", "oifname", &nat.device), goto(INSIDE)]);
        }
        if *clamp_mss {
            self.clamp();
        }
        if nat.watch {
            self.sources(INSIDE, nat);
            self.tell(INSIDE);
            // It goes on: at the other end nobody takes it, and nobody is told. Dropped here, its sender would be told EPERM.
        }
        if let Some(which) = dont_fragment {
            let probes = field(">=", "ip", "length", &json!(DontFragment::SMALLEST));
            let other = field("!=", "ip", "daddr", &json!(format!("@{FRAGMENTED}")));
            self.dont_fragment(*which, probes, &[other, set_df()]);
        }
    }

    /// What keeps its source.
    fn sources(&mut self, chain: &str, nat: &SourceNat) {
        let back = || json!({"return": null});
        let v4 = nat.own_v4.iter().map(|net| ("ip", IpNet::V4(*net)));
        let v6 = nat.own_v6.iter().map(|net| ("ip6", IpNet::V6(*net)));
        for (protocol, net) in v4.chain(v6) {
            self.rule(chain, &[field("==", protocol, "saddr", &prefix(&net)), back()]);
        }
        if nat.workloads {
            for (protocol, set) in ["ip", "ip6"].iter().zip(OWN) {
                let own = field("==", protocol, "saddr", &json!(format!("@{set}")));
                self.rule(chain, &[own, back()]);
            }
        }
        self.sources_of_nodes(chain, nat);
        // What came in through the mesh has a source that WireGuard has checked. Linux tells here where from since 5.7.
        self.rule(chain, &[interface("==", "iifname", &nat.device), back()]);
    }

    /// Has the daemon told of a packet, see `dataplane::sources`.
    pub(super) fn tell(&mut self, chain: &str) {
        let limit = json!({"limit": {"rate": 1, "burst": 5, "per": "second"}});
        self.rule(chain, &[limit, json!({"log": {"group": SourceNat::LOG_GROUP}})]);
    }

    /// SYN and SYN-ACK: each side says what it can be sent.
    fn clamp(&mut self) {
        self.rule(
            INSIDE,
            &[
                flags("==", ["syn", "rst"]),
                json!({"mangle": {
                    "key": {"tcp option": {"name": "maxseg", "field": "size"}},
                    "value": {"rt": {"key": "mtu"}},
                }}),
            ],
        );
    }

    /// What is done to our encrypted packets of such a size.
    fn dont_fragment(&mut self, which: DontFragment, size: Value, then: &[Value]) {
        let marked = json!({"&": [{"meta": {"key": "mark"}}, which.mark]});
        let ours = [
            json!({"match": {"op": "==", "left": marked, "right": which.mark}}),
            size,
            field("==", "udp", "sport", &json!(which.port)),
        ];
        self.rule(LEAVING, &[&ours, then].concat());
    }

    /// What the rules about sources seem to mean, see [`Shape::meaning`].
    pub(super) fn meaning_of_nat(&self) -> Option<SourceNat> {
        let watch = !self.has_chain(NAT);
        let of_nat = self.rules_of(NAT);
        let of_inside = self.rules_of(INSIDE);
        let (first, sources) = if watch {
            let of_leaving = self.rules_of(LEAVING);
            let into_inside = *of_leaving.iter().find(|rule| right(rule, 1).is_none())?;
            let clamped = usize::from(self.clamps());
            let end = of_inside.len().checked_sub(1)?;
            (into_inside, of_inside.get(clamped..end)?)
        } else {
            let end = of_nat.len().checked_sub(2)?;
            (*of_nat.first()?, of_nat.get(1..end)?)
        };
        let device = right(first, 0)?.as_str()?.to_owned();
        let mut nat = SourceNat { watch, device, ..SourceNat::default() };
        for rule in sources.split_last()?.1 {
            if right(rule, 1).is_some() {
                nat.own_nodes.insert(right(rule, 0)?.as_str()?.parse().ok()?);
                continue;
            }
            if right(rule, 0)?.as_str().is_some_and(|set| set.starts_with('@')) {
                nat.workloads = true;
                continue;
            }
            match read_prefix(right(rule, 0)?)? {
                IpNet::V4(net) => nat.own_v4.insert(net),
                IpNet::V6(net) => nat.own_v6.insert(net),
            };
        }
        Some(nat)
    }

    /// Whether the rules clamp, as it seems.
    pub(super) fn clamps(&self) -> bool {
        let is_clamp = |rule: &&Value| rule.get(1).is_some_and(|e| e.get("mangle").is_some());
        self.rules_of(INSIDE).first().is_some_and(is_clamp)
    }

    /// What the rule about DF seems to mean.
    pub(super) fn meaning_of_dont_fragment(&self) -> Option<Option<DontFragment>> {
        let Some(rule) = self.rules_of(LEAVING).pop().filter(|rule| right(rule, 1).is_some())
        else {
            return Some(None);
        };
        let (mark, port) = (number(right(rule, 0)?)?, number(right(rule, 2)?)?);
        Some(Some(DontFragment { mark, port: u16::try_from(port).ok()? }))
    }
}

/// DF, and no offset.
fn set_df() -> Value {
    json!({"mangle": {
        "key": {"payload": {"protocol": "ip", "field": "frag-off"}}, "value": DF,
    }})
}

/// Whether SYN is the one of these flags that is set.
fn flags(op: &str, which: [&str; 2]) -> Value {
    let left = json!({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, which]});
    json!({"match": {"op": op, "left": left, "right": "syn"}})
}
