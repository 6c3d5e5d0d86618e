//! Whether routing a prefix into the mesh would cut this host off from anything.
//!
//! Asked by the planner for each prefix that its claimant holds by right. "Covers" means: an address
//! that this host needs outside the mesh lies within the prefix. A neighbour of our pod network
//! (10.244.2.0/24 beside our 10.244.1.0/24) covers nothing; 10.0.0.0/8 on a host at 10.0.0.5 does.
//! What lies within our own prefixes needs no such care: their `throw` routes are longer.
//!
//! A single address (/32, /128) within a network that we are directly on is let through: that is a
//! workload whose address the cloud took from the hosts' subnet. Anything wider there is not. Such an address may be
//! that of a machine, too: where a member was reached it is that member's, whoever announces it, and a server that this
//! host asks for names is not taken from it unless that very address was granted by name. Of other machines nobody here knows.
//!
//! Endpoints that others merely claim do not count. If they did, a member could name an address
//! within another's pod prefix and so take that prefix off every host. Counted are the addresses
//! where a member was reached (`Member::path`), and a claimant's own endpoints against its own
//! prefixes. An endpoint that lies in a routed prefix is not used instead (`endpoints`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv6Net};
use meshd_proto::{NodeKey, NodeName};

use super::{
    blocked::{BlockReason, Blocked},
    input::{Member, PlanInput, TunnelState},
    prefixes::{PrefixMap, address_within, is_v6},
};
use crate::{
    address::{
        host_prefix, is_forbidden_prefix, is_routable_unicast, is_single, overlaps, ula_prefix,
    },
    trust::{Grant, Record},
};

/// What this host must keep reaching outside the mesh.
#[derive(Debug)]
pub(super) struct Preflight<'a> {
    /// Own prefixes, workloads and mesh addresses.
    own: PrefixMap<()>,
    gateways: BTreeSet<IpAddr>,
    nameservers: BTreeSet<IpAddr>,
    addresses: BTreeSet<IpAddr>,
    /// Networks that an interface is on, with its address.
    networks: PrefixMap<IpNet>,
    /// Where members were reached.
    reached: BTreeMap<IpAddr, &'a NodeName>,
    /// Where else they were: nobody else's single address.
    also: BTreeMap<IpAddr, &'a NodeName>,
    /// Both, and where tunnels that work end: all who are at each address.
    ends: BTreeMap<(IpAddr, NodeKey), &'a NodeName>,
    own_endpoints: BTreeSet<IpAddr>,
    ulas: Ipv6Net,
    /// Mesh addresses that their nodes hold by right.
    mesh_addresses: BTreeSet<IpAddr>,
}

impl<'a> Preflight<'a> {
    /// Collects what is to be kept reachable. `mesh_addresses` are those held by right, ours among
    /// them.
    pub(super) fn new(
        input: &PlanInput<'_>,
        members: impl IntoIterator<Item = &'a Member>,
        mesh_addresses: BTreeSet<IpAddr>,
    ) -> Self {
        let own = input.own.prefixes.iter().chain(&input.own.mesh_addresses);
        let own_nets = own.chain(&input.local.workloads).copied();
        let own: PrefixMap<()> = own_nets.collect();
        let ulas = ula_prefix(&input.own.certificate.mesh_id);
        let outside = |address: &IpAddr| {
            is_routable_unicast(address)
                && !own.holds(*address)
                && !mesh_addresses.contains(address)
                && !matches!(address, IpAddr::V6(v6) if ulas.contains(v6))
        };
        let local = input.local.addresses.iter().filter(|net| outside(&net.addr()));
        let mut networks = PrefixMap::default();
        for net in local.clone() {
            networks.insert(*net, *net);
        }
        let kept = |all: &BTreeSet<IpAddr>| all.iter().copied().filter(|a| outside(a)).collect();
        let (mut reached, mut also) = (BTreeMap::new(), BTreeMap::new());
        let mut ends = BTreeMap::new();
        for member in members {
            let path = member.path.filter(|path| outside(path));
            let works = member.tunnel.filter(|tunnel| tunnel.state == TunnelState::Up);
            let end = works.and_then(|tunnel| tunnel.endpoint).map(|e| e.ip().to_canonical());
            let name = &member.record.name;
            reached.extend(path.map(|path| (path, name)));
            let others = member.reached.iter().copied().filter(|address| outside(address));
            also.extend(others.clone().map(|address| (address, name)));
            let all = path.into_iter().chain(others).chain(end);
            ends.extend(all.map(|address| ((address, member.record.key), name)));
        }
        Self {
            gateways: kept(&input.local.gateways),
            nameservers: kept(&input.local.nameservers),
            addresses: local.map(IpNet::addr).collect(),
            networks,
            reached,
            also,
            ends,
            own_endpoints: input.own.endpoints.iter().map(|e| e.ip()).filter(outside).collect(),
            own,
            ulas,
            mesh_addresses,
        }
    }

    /// Why `prefix`, held by `claimant`, must not be routed into the mesh here; `None` when it may.
    /// Reasons that leave it without a route come before those that make it unreachable.
    pub(super) fn check(&self, prefix: &IpNet, claimant: &Member) -> Option<Blocked> {
        let name = &claimant.record.name;
        let narrow = || format!("narrow the prefix of {name}, or renumber");
        let (reason, what, fix) = if is_forbidden_prefix(prefix) {
            let what = "holds loopback, link-local, multicast or reserved addresses".to_owned();
            (BlockReason::Reserved, what, narrow())
        } else if let Some((own, ())) = self.own.covering(prefix).next() {
            let fix = format!("let only one of this node and {name} have it");
            (BlockReason::OwnPrefix, format!("lies within {own} of this node"), fix)
        } else if let Some(gateway) = address_within(&self.gateways, prefix) {
            (BlockReason::CoversGateway, format!("covers this host's gateway {gateway}"), narrow())
        } else if let Some(address) = address_within(&self.addresses, prefix) {
            (BlockReason::CoversUnderlay, format!("covers this host's address {address}"), narrow())
        } else if self.is_nameserver(prefix, &claimant.record) {
            let fix = format!(
                "take it from {name}; or, if names are to be asked for through the mesh, grant {name} that very address \
                 with --prefix and no --allow around it"
            );
            (BlockReason::CoversNameserver, "is this host's name server".to_owned(), fix)
        } else if let Some(network) = self.connected(prefix) {
            let what = format!("is a part of the network of this host's address {network}");
            (BlockReason::ConnectedNetwork, what, narrow())
        } else if let Some(what) = self.covered_endpoint(prefix, claimant) {
            (BlockReason::CoversEndpoint, what, narrow())
        } else if self.is_in_mesh_range(prefix, claimant) {
            let what = "overlaps the mesh's own addresses".to_owned();
            (BlockReason::MeshRange, what, narrow())
        } else {
            return None;
        };
        let message = format!("{prefix} of {name} is not routed; it {what}; {fix}");
        Some(Blocked { prefix: Some(*prefix), reason, message })
    }

    /// The same for an address of `claimant`'s own host on the underlay. There its own path and endpoints may be: our
    /// packets to them go past the tunnel. Those of anybody else may not.
    pub(super) fn check_node(&self, prefix: &IpNet, claimant: &Member) -> Option<Blocked> {
        let address = prefix.addr();
        let name = &claimant.record.name;
        let all_keys = (address, NodeKey([0; 32]))..=(address, NodeKey([u8::MAX; 32]));
        let mut there = self.ends.range(all_keys);
        // Who was itself reached there has it, whoever else comes from there: encrypted packets and QUIC to that one are
        // marked, and go past the tunnel. Where a tunnel ends its peer alone decides, and says nothing against it.
        let is_there = claimant.path == Some(address) || claimant.reached.contains(&address);
        let other = there.find(|((_, key), _)| *key != claimant.record.key && !is_there);
        let (reason, what) = if is_forbidden_prefix(prefix) {
            (BlockReason::Reserved, "is a reserved address".to_owned())
        } else if self.own.holds(address) {
            (BlockReason::OwnPrefix, "lies within a prefix of this node".to_owned())
        } else if self.gateways.contains(&address) {
            (BlockReason::CoversGateway, "is this host's gateway".to_owned())
        } else if self.addresses.contains(&address) || self.own_endpoints.contains(&address) {
            (BlockReason::CoversUnderlay, "is this host's own".to_owned())
        } else if let Some((_, other)) = other {
            (BlockReason::CoversEndpoint, format!("is where {other} was reached"))
        } else if matches!(address, IpAddr::V6(v6) if self.ulas.contains(&v6))
            || self.mesh_addresses.contains(&address)
        {
            (BlockReason::MeshRange, "is one of the mesh's own addresses".to_owned())
        } else {
            return None;
        };
        let message = format!(
            "the node address {address} of {name} is not carried; it {what}; take it out of [network] node_addresses \
             of {name}, or renumber"
        );
        Some(Blocked { prefix: Some(*prefix), reason, message })
    }

    /// A name server's own address that its claimant may ask for by itself: from a pool, or inside its limits.
    fn is_nameserver(&self, prefix: &IpNet, claimant: &Record) -> bool {
        let certificate = &claimant.certificate;
        let by_name =
            |grant: &Grant| grant.claim_len.is_none() && grant.prefix.trunc() == prefix.trunc();
        let given = certificate.grants.iter().any(by_name)
            && !certificate.limits.iter().any(|limit| limit.contains(prefix));
        is_single(prefix) && self.nameservers.contains(&prefix.addr()) && !given
    }

    fn connected(&self, prefix: &IpNet) -> Option<IpNet> {
        if is_single(prefix) {
            return None;
        }
        self.networks.covering(prefix).next().map(|(_, address)| *address)
    }

    fn covered_endpoint(&self, prefix: &IpNet, claimant: &Member) -> Option<String> {
        let mut reached = self.reached.range(prefix.network()..=prefix.broadcast());
        let also = || self.also.get_key_value(&prefix.addr()).filter(|_| is_single(prefix));
        if let Some((address, name)) = reached.next().or_else(also) {
            return Some(format!("covers {address}, where {name} was reached"));
        }
        if let Some(address) = address_within(&self.own_endpoints, prefix) {
            return Some(format!("covers {address}, an endpoint of this node"));
        }
        let tunnel = claimant.tunnel.filter(|tunnel| tunnel.state == TunnelState::Up);
        if let Some(endpoint) = tunnel.and_then(|tunnel| tunnel.endpoint)
            && prefix.contains(&endpoint.ip())
        {
            return Some(format!("covers {endpoint}, where its own tunnel ends"));
        }
        // A member that routes for the network that it is in is fine, as long as there is another
        // way to it.
        let mut endpoints =
            claimant.record.endpoints.iter().map(|e| e.ip()).filter(is_routable_unicast);
        let covered = endpoints.clone().find(|address| prefix.contains(address))?;
        let claimed: PrefixMap<()> = claimant.record.prefixes.iter().copied().collect();
        endpoints
            .all(|address| claimed.holds(address))
            .then(|| format!("covers {covered}, and its node has no endpoint outside"))
    }

    fn is_in_mesh_range(&self, prefix: &IpNet, claimant: &Member) -> bool {
        if claimant.record.mesh_addresses.contains(prefix) {
            return false;
        }
        (is_v6(prefix) && overlaps(prefix, &IpNet::V6(self.ulas)))
            || address_within(&self.mesh_addresses, prefix)
                .is_some_and(|address| host_prefix(address) != *prefix)
    }
}
