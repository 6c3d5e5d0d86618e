//! Our nftables table: source NAT of what leaves through the device with a source that is not ours
//! inside the mesh.
//!
//! ```text
//! table inet meshd { chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!   oifname != "mesh0" return
//!   ip saddr 10.1.0.0/24 return      # one per own prefix; prefixes that overlap do not fit into a set
//!   ip6 saddr fd00::/64 return
//!   masquerade } }
//! ```

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::{Child, Command, Output, Stdio},
};

use ipnet::IpNet;
use meshd_core::plan::SourceNat;
use serde_json::{Value, json};

use crate::dataplane::DataplaneError;

const FAMILY: &str = "inet";
const TABLE: &str = "meshd";
const CHAIN: &str = "postrouting";
/// `srcnat`.
const PRIORITY: i64 = 100;

/// What stands in our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// Its meaning, when it is exactly what [`put`] makes.
    pub(crate) nat: Option<SourceNat>,
    /// The table is there.
    pub(crate) present: bool,
}

/// Our table being read by a program of its own, which takes its time while others are looked at.
pub(crate) struct Reading(Option<io::Result<Child>>);

impl Reading {
    /// Starts to read.
    pub(crate) fn start() -> Self {
        Self(Some(start(&["-j", "list", "table", FAMILY, TABLE])))
    }

    /// What was read. Where nft or nftables is missing, so is the table.
    pub(crate) fn finish(mut self) -> Result<Nat, DataplaneError> {
        let action = "read the nftables table inet meshd";
        let Some(started) = self.0.take() else { return Ok(Nat::default()) };
        let output = match started.and_then(|child| finish(child, "")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Nat::default()),
            output => output.map_err(|e| failed(action, &e.to_string()))?,
        };
        if output.status.success() {
            let nat = serde_json::from_slice(&output.stdout).ok().and_then(|v: Value| parse(&v));
            return Ok(Nat { nat, present: true });
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        if reason.contains("No such file or directory") || lacks_nftables(&reason) {
            return Ok(Nat::default());
        }
        Err(failed(action, &reason))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Nobody wants to know; it must not stay behind as a zombie.
        if let Some(Ok(mut child)) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes our table hold exactly `nat`, in one transaction.
pub(crate) fn put(nat: &SourceNat) -> Result<(), DataplaneError> {
    apply("set up source NAT", &script(nat))
}

/// Removes our table; gone already is fine.
pub(crate) fn remove() -> Result<(), DataplaneError> {
    if !Reading::start().finish()?.present {
        return Ok(());
    }
    // Adding first makes the deletion succeed also when somebody else was faster.
    apply("remove source NAT", &json!({"nftables": [add_table(), delete_table()]}))
}

fn apply(action: &'static str, script: &Value) -> Result<(), DataplaneError> {
    match start(&["-j", "-f", "-"]).and_then(|child| finish(child, &script.to_string())) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(DataplaneError::NftMissing { action }),
        Err(e) => Err(failed(action, &e.to_string())),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(action, &String::from_utf8_lossy(&output.stderr))),
    }
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn finish(mut child: Child, input: &str) -> io::Result<Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // A child that ended early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn lacks_nftables(reason: &str) -> bool {
    ["Protocol not supported", "Operation not supported", "not implemented"]
        .iter()
        .any(|text| reason.contains(text))
}

fn failed(action: &'static str, stderr: &str) -> DataplaneError {
    let reason: String = stderr
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let fix = if stderr.contains("Operation not permitted") {
        "meshd needs root or CAP_NET_ADMIN"
    } else if lacks_nftables(stderr) || stderr.contains("No such file or directory") {
        "this kernel lacks nftables NAT (nft_chain_nat, nft_masq): without it, packets with this host's own address as \
         source are not accepted by other members"
    } else {
        "look at `nft list ruleset`"
    };
    DataplaneError::Nft { action, reason, fix }
}

fn add_table() -> Value {
    json!({"add": {"table": {"family": FAMILY, "name": TABLE}}})
}

fn delete_table() -> Value {
    json!({"delete": {"table": {"family": FAMILY, "name": TABLE}}})
}

fn script(nat: &SourceNat) -> Value {
    let chain = json!({"add": {"chain": {
        "family": FAMILY, "table": TABLE, "name": CHAIN,
        "type": "nat", "hook": "postrouting", "prio": PRIORITY, "policy": "accept",
    }}});
    let mut commands = vec![add_table(), delete_table(), add_table(), chain];
    commands.extend(rules(nat).into_iter().map(|expr| {
        json!({"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": CHAIN, "expr": expr}}})
    }));
    json!({"nftables": commands})
}

/// The rules as nft writes them.
fn rules(nat: &SourceNat) -> Vec<Value> {
    let mut rules = vec![json!([
        {"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": nat.device}},
        {"return": null},
    ])];
    let v4 = nat.own_v4.iter().map(|net| ("ip", IpNet::V4(*net)));
    let v6 = nat.own_v6.iter().map(|net| ("ip6", IpNet::V6(*net)));
    rules.extend(v4.chain(v6).map(|(protocol, net)| {
        json!([
            {"match": {
                "op": "==",
                "left": {"payload": {"protocol": protocol, "field": "saddr"}},
                "right": prefix(&net),
            }},
            {"return": null},
        ])
    }));
    rules.push(json!([{"masquerade": null}]));
    rules
}

fn prefix(net: &IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        json!(net.addr().to_string())
    } else {
        json!({"prefix": {"addr": net.network().to_string(), "len": net.prefix_len()}})
    }
}

/// The meaning of a listing, if it is exactly what [`script`] makes.
fn parse(listing: &Value) -> Option<SourceNat> {
    let mut chains = 0;
    let mut found = Vec::new();
    for object in listing.get("nftables")?.as_array()? {
        let (kind, body) = object.as_object()?.iter().next()?;
        match kind.as_str() {
            "metainfo" => {}
            // Flags would mean dormant: all there, and without effect.
            "table" if body.get("flags").is_none() => {}
            "chain" => {
                let is = |key: &str, want: Value| body.get(key) == Some(&want);
                let ours = is("name", json!(CHAIN))
                    && is("type", json!("nat"))
                    && is("hook", json!("postrouting"))
                    && is("prio", json!(PRIORITY))
                    && is("policy", json!("accept"));
                chains += 1;
                if !ours {
                    return None;
                }
            }
            "rule" => found.push(body.get("expr")?.clone()),
            _ => return None,
        }
    }
    let nat = meaning(&found)?;
    (chains == 1 && rules(&nat) == found).then_some(nat)
}

/// What the rules seem to mean; the caller makes them anew from it and compares.
fn meaning(rules: &[Value]) -> Option<SourceNat> {
    let right = |rule: &Value| rule.get(0)?.get("match")?.get("right").cloned();
    let (first, rest) = rules.split_first()?;
    let (_, own) = rest.split_last()?;
    let device = right(first)?.as_str()?.to_owned();
    let mut nat = SourceNat { device, own_v4: BTreeSet::new(), own_v6: BTreeSet::new() };
    for rule in own {
        match read_prefix(&right(rule)?)? {
            IpNet::V4(net) => nat.own_v4.insert(net),
            IpNet::V6(net) => nat.own_v6.insert(net),
        };
    }
    Some(nat)
}

fn read_prefix(value: &Value) -> Option<IpNet> {
    if let Some(address) = value.as_str() {
        return Some(IpNet::from(address.parse::<std::net::IpAddr>().ok()?));
    }
    let prefix = value.get("prefix")?;
    let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
    IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat() -> SourceNat {
        SourceNat {
            device: "mesh0".to_owned(),
            own_v4: ["10.1.0.0/16", "10.1.2.0/24", "100.112.0.1/32"]
                .iter()
                .map(|net| net.parse().unwrap())
                .collect(),
            own_v6: ["fd00::1/128", "fd01::/64"].iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn listing(nat: &SourceNat) -> Value {
        let mut objects = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"table": {"family": FAMILY, "name": TABLE, "handle": 1}}),
            json!({"chain": {"family": FAMILY, "table": TABLE, "name": CHAIN, "handle": 1,
                "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}),
        ];
        for expr in rules(nat) {
            objects.push(json!({"rule": {"family": FAMILY, "table": TABLE, "chain": CHAIN,
                "handle": 2, "expr": expr}}));
        }
        json!({"nftables": objects})
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(parse(&listing(&nat())), Some(nat()));
        let empty =
            SourceNat { device: "m".to_owned(), own_v4: BTreeSet::new(), own_v6: BTreeSet::new() };
        assert_eq!(parse(&listing(&empty)), Some(empty));
    }

    #[test]
    fn anything_else_in_the_table_means_nothing() {
        let mut more = listing(&nat());
        more["nftables"].as_array_mut().unwrap().push(json!({"set": {"name": "x"}}));
        assert_eq!(parse(&more), None);

        let mut fewer = listing(&nat());
        fewer["nftables"].as_array_mut().unwrap().pop();
        assert_eq!(parse(&fewer), None, "the masquerade is missing");

        let mut other = listing(&nat());
        other["nftables"][2]["chain"]["policy"] = json!("drop");
        assert_eq!(parse(&other), None);

        for bad in [json!(null), json!({}), json!({"nftables": [1]}), json!({"nftables": []})] {
            assert_eq!(parse(&bad), None);
        }
    }
}
