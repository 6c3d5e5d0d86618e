//! This host, as the mesh is told of it and as the planner must know it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_core::{
    address::{host_prefix, is_forbidden_prefix, is_routable_unicast, overlaps},
    limits::{RECORD_ENDPOINTS, RECORD_NODE_ADDRESSES},
    node::Observed,
    plan::{LocalNetwork, SourceFacts},
};

use crate::{
    config::{Automatic, Config, Encrypt},
    dataplane::DataplaneError,
    host::{self, Facts, cni, workloads::Workloads},
};

/// What was found on this host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// Interfaces, addresses, routes.
    pub(super) facts: Facts,
    /// Prefixes that this host routes for: configured, or the CNI's.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// Single workloads on this host, where it is their routes that count.
    pub(super) workloads: Arc<Workloads>,
    /// Whether sources need NAT.
    pub(super) sources: SourceFacts,
    /// What could not be used, for a person.
    pub(super) warnings: Vec<String>,
}

/// What others tell of this host by themselves.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The follower of routes.
    pub(super) workloads: Arc<Workloads>,
    /// nfnetlink_log, and every look before.
    pub(super) sources: SourceFacts,
}

/// A prefix that is gone from the CNI's files or routes is announced for this long all the same: a file may be
/// half-written, or missing while the CNI is upgraded, and its pods go on.
const WITHDRAW_AFTER: Duration = Duration::from_secs(60);

/// When each of the CNI's prefixes was last found.
#[derive(Debug, Default)]
pub(super) struct Found(BTreeMap<IpNet, Instant>);

impl Found {
    /// What was announced before this start counts as found now.
    pub(super) fn remember(&mut self, prefixes: impl IntoIterator<Item = IpNet>, now: Instant) {
        self.0.extend(prefixes.into_iter().map(|prefix| (prefix, now)));
    }

    fn refresh(&mut self, now: Instant) {
        self.0.values_mut().for_each(|seen| *seen = now);
    }

    /// The prefixes to announce at `now`, and those among them that are no longer found.
    fn update(
        &mut self,
        found: &BTreeSet<IpNet>,
        now: Instant,
    ) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
        self.remember(found.iter().copied(), now);
        self.0.retain(|_, seen| now.saturating_duration_since(*seen) < WITHDRAW_AFTER);
        let held: BTreeSet<IpNet> = self.0.keys().copied().collect();
        let missing = held.difference(found).copied().collect();
        (held, missing)
    }
}

impl Own {
    /// Looks at the host, at all but what it is told of. Blocks for some milliseconds.
    pub(super) fn look(
        config: &Config,
        found: &mut Found,
        told: Told,
        now: Instant,
    ) -> Result<Self, DataplaneError> {
        let facts = host::read()?;
        let (workloads, sources) = (told.workloads, told.sources.and(facts.tracked));
        let mut warnings = Vec::new();
        let prefixes = match &config.network.pod_prefixes {
            Automatic::Given(prefixes) => {
                found.0.clear();
                prefixes.iter().map(IpNet::trunc).collect()
            }
            Automatic::Auto => {
                let files = cni::detect(&cni::CniPaths::default());
                if !files.warnings.is_empty() {
                    // What cannot be read may still say the same.
                    found.refresh(now);
                }
                warnings.extend(files.warnings);
                let mut known = files.prefixes;
                known.extend(host::pod_networks(&facts, files.plugins));
                let (held, missing) = found.update(&known, now);
                warnings.extend(missing.iter().map(|prefix| {
                    format!("pod prefix {prefix} is no longer the CNI's and will be withdrawn")
                }));
                held
            }
        };
        let (prefixes, forbidden): (BTreeSet<_>, BTreeSet<_>) =
            prefixes.into_iter().partition(|prefix: &IpNet| !is_forbidden_prefix(prefix));
        warnings.extend(forbidden.iter().map(|prefix| {
            format!("pod prefix {prefix} is not announced: it holds reserved addresses")
        }));
        Ok(Self { facts, prefixes, workloads, sources, warnings })
    }

    /// What a look does not find.
    pub(super) fn told(&self) -> Told {
        Told { workloads: self.workloads.clone(), sources: self.sources }
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

    /// What a certificate of this host should grant.
    pub(super) fn wanted(&self, config: &Config) -> Vec<IpNet> {
        let nodes = match config.network.encrypt {
            Encrypt::Pods => Vec::new(),
            Encrypt::PodsAndNodes => self.claimed_addresses(config),
        };
        nodes.into_iter().map(host_prefix).chain(self.prefixes.iter().copied()).collect()
    }

    /// Those of them that traffic inside the mesh can have as its source: on an interface of this host.
    pub(super) fn claimed_addresses(&self, config: &Config) -> Vec<IpAddr> {
        let mut addresses = self.node_addresses(config);
        let interfaces = || self.facts.interfaces.iter().filter(|i| !i.is_ours() && !i.loopback);
        addresses.retain(|address| {
            interfaces().any(|i| i.addresses.iter().any(|net| net.addr() == *address))
        });
        addresses
    }

    /// Prefixes that may lie behind an interface that leads to other hosts: given by configuration, and not known to lead
    /// into this host. What the CNI's files say is this host's own.
    fn behind(&self, config: &Config) -> BTreeSet<IpNet> {
        match &config.network.pod_prefixes {
            Automatic::Auto => BTreeSet::new(),
            Automatic::Given(_) => {
                let inward = self.facts.inward();
                let leads_in = |net: &IpNet| inward.iter().any(|inner| overlaps(inner, net));
                self.prefixes.iter().filter(|net| !leads_in(net)).copied().collect()
            }
        }
    }

    /// What the planner must not cut off.
    pub(super) fn local_network(&self, config: &Config, observed: &[Observed]) -> LocalNetwork {
        let ours = |interface: &&host::Interface| !interface.is_ours();
        let addresses: BTreeSet<IpNet> = self
            .facts
            .interfaces
            .iter()
            .filter(ours)
            .flat_map(|interface| interface.addresses.iter().copied())
            .collect();
        let seen = observed.first().map(|seen| seen.address);
        let behind_nat = seen.map(|seen| !addresses.iter().any(|own| own.addr() == seen));
        LocalNetwork {
            ipv6: self
                .facts
                .interfaces
                .iter()
                .any(|i| i.addresses.iter().any(|address| matches!(address, IpNet::V6(_)))),
            gateways: self.facts.gateways(),
            nameservers: self.facts.nameservers.clone(),
            underlay_mtu: Some(self.facts.underlay_mtu()),
            behind_nat,
            addresses,
            workloads: self.workloads.addresses.clone(),
            node_addresses: self.claimed_addresses(config),
            behind: self.behind(config),
            underlay: self.facts.underlay(&self.node_addresses(config)),
            sources: self.sources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_is_gone_for_a_moment_is_not_withdrawn() {
        let prefix: IpNet = "10.244.1.0/24".parse().unwrap();
        let (both, none) = (BTreeSet::from([prefix]), BTreeSet::new());
        let (mut found, start) = (Found::default(), Instant::now());
        assert_eq!(found.update(&both, start), (both.clone(), none.clone()));
        let soon = start + WITHDRAW_AFTER / 2;
        assert_eq!(found.update(&none, soon), (both.clone(), both.clone()));
        let later = soon + WITHDRAW_AFTER;
        assert_eq!(found.update(&none, later), (none.clone(), none.clone()));
        found.remember([prefix], later);
        assert_eq!(found.update(&none, later), (both.clone(), both));
    }
}
