//! Our nftables table for ARP.
//!
//! ```text
//! table arp meshd {
//!   chain input { type filter hook input priority 0; meta mark set meta mark | 0x10; }
//! }
//! ```
//! The kernel checks the way back to the sender of each ARP message as it checks that of packets. Where it leads into the
//! tunnel, a strict filter drops the message, and the host behind it is not found any more.

use std::io;

use meshd_core::plan::{ArpMark, ObservedArp};
use serde_json::{Value, json};

use super::{Nft, Reading, table::TABLE};
use crate::dataplane::DataplaneError;

pub(super) const FAMILY: &str = "arp";
const CHAIN: &str = "input";

/// Makes it hold exactly this.
pub(super) fn put(nft: &Nft, mark: ArpMark) -> Result<(), DataplaneError> {
    let mut commands = removal();
    commands.push(json!({"add": {"table": {"family": FAMILY, "name": TABLE}}}));
    commands.push(json!({"add": {"chain": chain()}}));
    commands.push(json!({"add": {"rule": rule(mark)}}));
    nft.apply_script(&json!({"nftables": commands})).map_err(|why| {
        let reason = match why {
            Ok(said) => super::first_line(&said),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                "the nft program is missing".to_owned()
            }
            Err(e) => e.to_string(),
        };
        DataplaneError::ArpMark { reason }
    })
}

/// Removes it; gone already is fine.
pub(super) fn remove(nft: &Nft) -> Result<(), DataplaneError> {
    if observe(&mut Reading::start(FAMILY, &nft.kernel))? == ObservedArp::None {
        return Ok(());
    }
    nft.apply("remove the nftables table arp meshd", &json!({"nftables": removal()}))
}

/// What stands in it.
pub(super) fn observe(reading: &mut Reading) -> Result<ObservedArp, DataplaneError> {
    Ok(reading.finish()?.map_or(ObservedArp::None, |listing| read(&listing)))
}

fn removal() -> Vec<Value> {
    let table = json!({"table": {"family": FAMILY, "name": TABLE}});
    vec![json!({"add": table}), json!({"delete": table})]
}

fn chain() -> Value {
    json!({"family": FAMILY, "table": TABLE, "name": CHAIN, "type": "filter", "hook": "input",
        "prio": 0, "policy": "accept"})
}

fn rule(mark: ArpMark) -> Value {
    let set = json!({"mangle": {
        "key": {"meta": {"key": "mark"}},
        "value": {"|": [{"meta": {"key": "mark"}}, mark.mark]},
    }});
    json!({"family": FAMILY, "table": TABLE, "chain": CHAIN, "expr": [set]})
}

fn read(listing: &Value) -> ObservedArp {
    let mark = || {
        let objects = listing.get("nftables")?.as_array()?;
        let mut found = Vec::new();
        for object in objects {
            let (kind, body) = object.as_object()?.iter().next()?;
            let mut body = body.clone();
            body.as_object_mut()?.remove("handle");
            match kind.as_str() {
                "metainfo" => {}
                // Flags would mean dormant.
                "table" if body.get("flags").is_none() => {}
                "chain" | "rule" => found.push(body),
                _ => return None,
            }
        }
        let [first, second] = &found[..] else { return None };
        let value = second.pointer("/expr/0/mangle/value/|/1")?.as_u64()?;
        let mark = ArpMark { mark: u32::try_from(value).ok()? };
        (*first == chain() && *second == rule(mark)).then_some(mark)
    };
    mark().map_or(ObservedArp::Other, ObservedArp::Mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(objects: &[Value]) -> Value {
        let mut all = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"table": {"family": "arp", "name": "meshd", "handle": 1}}),
        ];
        all.extend_from_slice(objects);
        json!({"nftables": all})
    }

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        let mark = ArpMark { mark: 0x10 };
        let (mut chain, mut rule) = (chain(), rule(mark));
        (chain["handle"], rule["handle"]) = (json!(2), json!(3));
        let good = [json!({"chain": chain}), json!({"rule": rule})];
        assert_eq!(read(&listing(&good)), ObservedArp::Mark(mark));
        let mut more = good.to_vec();
        more.push(good[1].clone());
        rule["expr"] = json!([{"accept": null}]);
        let other = [good[0].clone(), json!({"rule": rule})];
        for bad in [&good[..1], &more[..], &other[..], &[]] {
            assert_eq!(read(&listing(bad)), ObservedArp::Other, "{bad:?}");
        }
    }
}
