//! Routes of our tables and the rules that lead to them.
//!
//! With strict leak protection a second table stands behind the first, with `unreachable` for all that must not go in the
//! clear: it holds where somebody flushes the first, and where the nftables guard was flushed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    input::{PlanConfig, PlanInput},
    nodes::Nodes,
    planner::Destinations,
    prefixes::{PrefixMap, is_v6},
    types::{Family, Route, RouteKind, Rule, UNREACHABLE_METRIC},
};

/// Metric of device and `throw` routes. Not 0, which IPv6 would turn into this very number.
pub const ROUTE_METRIC: u32 = 1_024;

/// Routes for all destinations, and `throw` for our own prefixes.
///
/// What goes as without a mesh has no route, except where a wider prefix would take it along: there
/// a `throw` lets it out again. `mtus`: where it is not the device's.
pub(super) fn routes(
    input: &PlanInput<'_>,
    destinations: &Destinations,
    nodes: &Nodes,
    mtus: &BTreeMap<IpNet, u32>,
) -> BTreeSet<Route> {
    let source = |v6: bool| -> Option<IpAddr> {
        let addresses = input.own.mesh_addresses.iter();
        addresses.map(IpNet::addr).find(|address| address.is_ipv6() == v6)
    };
    let sources = [source(false), source(true)];
    let table = input.config.table;
    let second = input.config.strict.then(|| input.config.second_table());
    let route = |table: u32, destination: &IpNet, metric: u32, kind: RouteKind| Route {
        destination: destination.trunc(),
        table,
        metric,
        kind,
    };
    let mut routes = Vec::new();
    for prefix in &destinations.tunnel {
        let kind = RouteKind::Device {
            device: input.config.interface.clone(),
            source: sources[usize::from(is_v6(prefix))],
            mtu: mtus.get(prefix).copied(),
        };
        routes.push(route(table, prefix, ROUTE_METRIC, kind));
    }
    for (prefix, source) in &nodes.routed {
        let kind = RouteKind::Device {
            device: input.config.interface.clone(),
            source: Some(*source),
            mtu: mtus.get(prefix).copied(),
        };
        routes.push(route(table, prefix, ROUTE_METRIC, kind));
    }
    let refused = destinations.tunnel.iter().chain(&destinations.unreachable);
    for prefix in refused.chain(nodes.routed.keys()).chain(&nodes.guarded) {
        for table in second.into_iter().chain([table]) {
            routes.push(route(table, prefix, UNREACHABLE_METRIC, RouteKind::Unreachable));
        }
    }
    let mut throws: BTreeSet<&IpNet> = input.local_prefixes().collect();
    // What is not announced needs a way out only where another's prefix would take it along.
    let local = destinations.clear.iter().chain(&input.local.workloads);
    let caught: PrefixMap<()> =
        destinations.tunnel.iter().chain(&destinations.unreachable).copied().collect();
    for prefix in local {
        if caught.covering(prefix).next().is_some() {
            throws.insert(prefix);
        }
    }
    for prefix in throws {
        for table in second.into_iter().chain([table]) {
            routes.push(route(table, prefix, ROUTE_METRIC, RouteKind::Throw));
        }
    }
    let possible = |route: &Route| input.local.ipv6 || !is_v6(&route.destination);
    routes.into_iter().filter(possible).collect()
}

impl PlanConfig {
    /// One rule for each table, and for each family that the host has.
    #[must_use]
    pub fn rules(&self, ipv6: bool) -> BTreeSet<Rule> {
        let first = (self.rule_priority, self.table);
        let second = self.strict.then(|| (self.second_priority(), self.second_table()));
        let families = [Some(Family::V4), ipv6.then_some(Family::V6)];
        let fwmark = self.fwmark;
        [Some(first), second]
            .into_iter()
            .flatten()
            .flat_map(|(priority, table)| {
                let rule = move |family| Rule { family, priority, table, fwmark };
                families.into_iter().flatten().map(rule)
            })
            .collect()
    }
}
