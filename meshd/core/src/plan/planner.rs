//! From what is known now to what the kernel should hold.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::{blocked::Blocked, input::PlanInput, types::Desired};

/// What the kernel should hold, and what was left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For [`diff`](super::diff).
    pub desired: Desired,
    /// Per member the prefixes and mesh addresses that are routed into its tunnel.
    pub routed: BTreeMap<NodeKey, BTreeSet<IpNet>>,
    /// Per member what is not programmed, sorted. Under this node's own key: own prefixes that
    /// others hold with the better right.
    pub blocked: BTreeMap<NodeKey, Vec<Blocked>>,
}

/// Decides what the kernel should hold. A function of `input` alone, whatever came before.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let _ = input;
    Plan::default()
}
