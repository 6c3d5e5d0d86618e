//! Everything of a host's network that a program could have changed, to compare before and after.

use std::collections::BTreeMap;

use anyhow::Result;

use super::host::Host;
use super::place::Place;

/// The state of links, addresses, routes of all tables, rules, neighbours, nftables, sysctls and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    parts: BTreeMap<&'static str, Vec<String>>,
}

/// Name and command of each part. What moves by itself is left out: counters, lifetimes, `nf_conntrack_count`.
const PARTS: [(&str, &str); 9] = [
    ("links", "ip -d -o link show | sed 's/ qlen [0-9]*//'"),
    ("addresses", "ip -o addr show"),
    ("routes", "ip -4 route show table all; ip -6 route show table all | sed 's/ expires [0-9]*sec//'"),
    ("rules", "ip -4 rule show; ip -6 rule show"),
    ("nftables", "nft -s list ruleset"),
    (
        "sysctls",
        "grep -rsH '' /proc/sys/net/ipv4 /proc/sys/net/ipv6 /proc/sys/net/netfilter \
         | grep -v -e nf_conntrack_count -e stable_secret",
    ),
    ("wireguard", "ls -A /run/wireguard; wg show interfaces"),
    ("state", "find /var/lib/meshd -mindepth 1 -maxdepth 2 | sort"),
    ("processes", "for p in /proc/[0-9]*; do [ $p/ns/net -ef /proc/self/ns/net ] && cat $p/comm; done 2>/dev/null | sort"),
];

impl Snapshot {
    /// The state of `host` now.
    pub fn take(host: &Host) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for (name, script) in PARTS {
            let out = host.run(&["sh", "-c", script])?;
            parts.insert(name, out.lines().map(str::to_owned).collect());
        }
        Ok(Self { parts })
    }

    /// What `later` has more (`+`) or less (`-`) than this, a line each; the parts named in `except` are not compared.
    pub fn differences(&self, later: &Self, except: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for (name, before) in self.parts.iter().filter(|(name, _)| !except.contains(name)) {
            let Some(after) = later.parts.get(name) else { continue };
            for (sign, from, to) in [('-', before, after), ('+', after, before)] {
                found.extend(from.iter().filter(|l| !to.contains(l)).map(|l| format!("{name}: {sign} {l}")));
            }
        }
        found
    }
}
