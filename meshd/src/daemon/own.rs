//! This host, as the mesh is told of it and as the planner must know it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use meshd_core::{
    address::{is_forbidden_prefix, is_routable_unicast},
    limits::{RECORD_ENDPOINTS, RECORD_NODE_ADDRESSES},
    plan::LocalNetwork,
};

use crate::{
    config::{Automatic, Config},
    dataplane::DataplaneError,
    host::{self, Facts, cni},
};

/// What was found on this host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// Interfaces, addresses, routes.
    pub(super) facts: Facts,
    /// Prefixes that this host routes for: configured, or found in the CNI's files.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// What could not be used, for a person.
    pub(super) warnings: Vec<String>,
}

impl Own {
    /// Looks at the host. Blocks for some milliseconds.
    pub(super) fn look(config: &Config) -> Result<Self, DataplaneError> {
        let facts = host::read()?;
        let mut warnings = Vec::new();
        let prefixes = match &config.network.pod_prefixes {
            Automatic::Given(prefixes) => prefixes.iter().map(IpNet::trunc).collect(),
            Automatic::Auto => {
                let found = cni::detect(&cni::CniPaths::default());
                warnings.extend(found.warnings);
                found.prefixes
            }
        };
        let (prefixes, forbidden): (BTreeSet<_>, BTreeSet<_>) =
            prefixes.into_iter().partition(|prefix: &IpNet| !is_forbidden_prefix(prefix));
        warnings.extend(forbidden.iter().map(|prefix| {
            format!("pod prefix {prefix} is not announced: it holds reserved addresses")
        }));
        Ok(Self { facts, prefixes, warnings })
    }

    /// Where others may reach this host's gossip port, best first.
    pub(super) fn endpoints(&self, config: &Config, gossip_port: u16) -> Vec<SocketAddr> {
        let mut endpoints = config.gossip.advertise.clone();
        for address in self.node_addresses(config) {
            endpoints.push(SocketAddr::new(address, gossip_port));
        }
        // A list that receivers refuse would keep the whole record from them.
        let mut seen = BTreeSet::new();
        endpoints.retain(|e| is_routable_unicast(&e.ip()) && seen.insert(*e));
        endpoints.truncate(RECORD_ENDPOINTS);
        endpoints
    }

    /// Addresses of this host on the underlay.
    pub(super) fn node_addresses(&self, config: &Config) -> Vec<IpAddr> {
        let listen = config.gossip.listen.ip();
        let mut addresses = match &config.network.node_addresses {
            Automatic::Given(given) => given.clone(),
            // Listening on one address means being reached there and nowhere else.
            Automatic::Auto if !listen.is_unspecified() => vec![listen],
            Automatic::Auto => {
                let best = self.facts.endpoint_addresses(&self.prefixes);
                if best.is_empty() { self.facts.addresses().into_iter().collect() } else { best }
            }
        };
        if listen.is_unspecified() && listen.is_ipv4() {
            addresses.retain(IpAddr::is_ipv4);
        }
        addresses.retain(is_routable_unicast);
        addresses.truncate(RECORD_NODE_ADDRESSES);
        addresses
    }

    /// What the planner must not cut off.
    pub(super) fn local_network(&self, observed: Option<SocketAddr>) -> LocalNetwork {
        let ours = |interface: &&host::Interface| !interface.is_ours();
        let addresses: BTreeSet<IpNet> = self
            .facts
            .interfaces
            .iter()
            .filter(ours)
            .flat_map(|interface| interface.addresses.iter().copied())
            .collect();
        let behind_nat =
            observed.is_some_and(|seen| !addresses.iter().any(|own| own.addr() == seen.ip()));
        LocalNetwork {
            ipv6: self
                .facts
                .interfaces
                .iter()
                .any(|i| i.addresses.iter().any(|address| matches!(address, IpNet::V6(_)))),
            gateways: self.facts.gateways(),
            underlay_mtu: Some(self.facts.underlay_mtu()),
            behind_nat,
            addresses,
        }
    }
}
