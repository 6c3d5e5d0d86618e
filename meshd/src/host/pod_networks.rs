//! The pod prefixes of this host that no file names, from what a CNI has put into the kernel.
//!
//! Only what cannot mean anything else:
//!
//! | CNI | is told by |
//! |---|---|
//! | Calico with its own IPAM | blackhole routes of BIRD or Felix: this node's blocks |
//! | Cilium (`kubernetes`, `cluster-pool`) | the route over the address of `cilium_host` that holds this address: those to other nodes do not |
//! | Antrea | the address of `antrea-gw0`: the first of the node's range, with its length |
//! | OVN-Kubernetes | the address of `ovn-k8s-mp0`: the second of the node's range, with its length |
//!
//! Not for ranges that several nodes share: those say nothing of one of them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use meshd_core::address::is_forbidden_prefix;

use super::{
    cni::Plugins,
    facts::{Facts, InnerTarget},
};

/// `RTPROT_BIRD` (linux/rtnetlink.h), which Calico's BIRD uses.
const BIRD: u8 = 12;
/// What Felix marks its own routes with where there is no BIRD (VXLAN).
const FELIX: u8 = 80;
const CILIUM: &str = "cilium_host";
/// Interface of a CNI whose address is the `n`th of the node's range.
const GATEWAYS: [(&str, u128); 2] = [("antrea-gw0", 1), ("ovn-k8s-mp0", 2)];

/// What the kernel tells of this host's pod prefixes. `plugins`: those that the CNI's files name.
#[must_use]
pub fn pod_networks(facts: &Facts, plugins: Plugins) -> BTreeSet<IpNet> {
    let mut found = BTreeSet::new();
    for route in &facts.inner_routes {
        let ours = match &route.to {
            // A router may keep its networks by such routes of BIRD too.
            InnerTarget::Blackhole => plugins.calico_ipam && matches!(route.protocol, BIRD | FELIX),
            InnerTarget::OwnAddress { gateway, interface } => {
                interface == CILIUM && route.prefix.contains(gateway)
            }
        };
        if ours {
            found.insert(route.prefix);
        }
    }
    for interface in &facts.interfaces {
        let Some((_, nth)) = GATEWAYS.iter().find(|(name, _)| *name == interface.name) else {
            continue;
        };
        let nets = interface.addresses.iter();
        found.extend(nets.filter(|net| is_nth(net, *nth)).map(IpNet::trunc));
    }
    found.retain(|prefix| !is_forbidden_prefix(prefix));
    found
}

/// The address is the `nth` of its network, counted from the network's own.
fn is_nth(net: &IpNet, nth: u128) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    net.prefix_len() < net.max_prefix_len()
        && number(net.addr()).checked_sub(number(net.network())) == Some(nth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{InnerRoute, Interface};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(prefix: &str, protocol: u8, to: InnerTarget) -> InnerRoute {
        InnerRoute { prefix: net(prefix), protocol, to }
    }

    fn over(interface: &str, gateway: &str) -> InnerTarget {
        InnerTarget::OwnAddress { gateway: gateway.parse().unwrap(), interface: interface.into() }
    }

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| net(text)).collect();
        Interface { name: name.into(), addresses, ..Interface::default() }
    }

    fn found(facts: &Facts, calico_ipam: bool) -> Vec<String> {
        let found = pod_networks(facts, Plugins { calico_ipam });
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn blackholes_are_calicos_blocks_where_there_is_calico() {
        let facts = Facts {
            inner_routes: vec![
                route("10.244.1.0/26", BIRD, InnerTarget::Blackhole),
                route("10.244.9.64/26", FELIX, InnerTarget::Blackhole),
                route("203.0.113.0/24", 4, InnerTarget::Blackhole),
                route("fd00:244::40/122", BIRD, InnerTarget::Blackhole),
            ],
            ..Facts::default()
        };
        assert_eq!(found(&facts, true), ["10.244.1.0/26", "10.244.9.64/26", "fd00:244::40/122"]);
        assert!(found(&facts, false).is_empty(), "a router's own networks");
    }

    #[test]
    fn of_ciliums_routes_the_one_around_its_address_is_this_nodes() {
        // As `ip route` shows them on a node of a cluster in tunnel mode.
        let facts = Facts {
            inner_routes: vec![
                route("11.10.0.0/24", 2, over("cilium_host", "11.10.1.218")),
                route("11.10.1.0/24", 2, over("cilium_host", "11.10.1.218")),
                route("11.10.2.0/24", 2, over("cilium_host", "11.10.1.218")),
                route("fd00:10:244:1::/64", 2, over("cilium_host", "fd00:10:244:1::9f")),
                route("10.9.0.0/16", 4, over("tun0", "10.9.0.1")),
            ],
            ..Facts::default()
        };
        assert_eq!(found(&facts, false), ["11.10.1.0/24", "fd00:10:244:1::/64"]);
    }

    #[test]
    fn a_gateways_address_tells_the_nodes_range() {
        let facts = Facts {
            interfaces: vec![
                interface("antrea-gw0", &["10.10.1.1/24", "fd00:10:10:1::1/64", "fe80::1/64"]),
                interface("ovn-k8s-mp0", &["10.128.2.2/23"]),
                interface("eth0", &["192.0.2.1/24"]),
            ],
            ..Facts::default()
        };
        assert_eq!(found(&facts, false), ["10.10.1.0/24", "10.128.2.0/23", "fd00:10:10:1::/64"]);
        // Where the cloud owns the addresses, the gateway has a single one of the host.
        let policy_only = Facts {
            interfaces: vec![interface("antrea-gw0", &["10.240.0.4/32", "10.10.1.7/24"])],
            ..Facts::default()
        };
        assert!(found(&policy_only, false).is_empty());
    }
}
