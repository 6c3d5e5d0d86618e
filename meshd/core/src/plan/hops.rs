//! Whose peer holds what: a member that is reached through a gateway has none of its own, and what is its own by right is
//! among the allowed IPs of the gateway's.
//!
//! Nothing is believed here that was not before: which prefixes are a member's is settled by its certificate and the
//! contest, and only it can say who carries for it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::{
    blocked::{BlockReason, Blocked},
    input::{Member, PlanInput},
    planner::Plan,
};
use crate::{
    gateway::{carrier, next_hop},
    trust::Record,
};

/// Members that are not their own next hop, and the gateway that is. What of a `via` does not count is shown.
pub(super) fn carried(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    blocked: &mut BTreeMap<NodeKey, Vec<Blocked>>,
) -> BTreeMap<NodeKey, NodeKey> {
    let find = |key: &NodeKey| -> Option<&Record> {
        if *key == input.own.key {
            return Some(input.own);
        }
        members.get(key).map(|member| &*member.record)
    };
    let mut carried = BTreeMap::new();
    for record in members.values().map(|member| &*member.record).chain([input.own]) {
        if let (Err(odd), Some(via)) = (carrier(record, find), record.via) {
            let gateway = find(&via).map_or_else(|| via.short(), |known| known.name.to_string());
            let why = odd.explain(record.name.as_str(), &gateway);
            let message = format!("{} is not reached through its gateway; {why}", record.name);
            let reason = BlockReason::GatewayOdd;
            blocked.entry(record.key).or_default().push(Blocked { prefix: None, reason, message });
        }
        let hop = next_hop(input.own, record, find);
        if hop != record.key && hop != input.own.key {
            carried.insert(record.key, hop);
        }
    }
    carried.remove(&input.own.key);
    carried
}

/// The allowed IPs of each peer.
pub(super) fn allowed_ips(plan: &Plan) -> BTreeMap<NodeKey, BTreeSet<IpNet>> {
    let mut held: BTreeMap<NodeKey, BTreeSet<IpNet>> = BTreeMap::new();
    for (key, prefixes) in plan.routed.iter().chain(&plan.nodes.accepted) {
        let peer = plan.carried.get(key).unwrap_or(key);
        held.entry(*peer).or_default().extend(prefixes);
    }
    held
}

/// Why a host's own address is not carried through a gateway.
pub(super) fn refuse_node(
    carried: &BTreeMap<NodeKey, NodeKey>,
    member: &Member,
    prefix: &IpNet,
) -> Option<Blocked> {
    carried.get(&member.record.key)?;
    let message = format!(
        "the node address {} of {} is not carried; one of the two hosts is behind a gateway, which would send it on \
         as its own packets; use its mesh address",
        prefix.addr(),
        member.record.name
    );
    Some(Blocked { prefix: Some(*prefix), reason: BlockReason::BehindGateway, message })
}
