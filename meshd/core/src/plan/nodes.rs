//! Traffic between the hosts' own addresses on the underlay (`encrypt = "pods+nodes"`), in two steps.
//!
//! | step | who | what |
//! |---|---|---|
//! | accept | every host, for each member that publishes node addresses by right | they are among the peer's allowed IPs |
//! | route | of a pair that both publish, who was told by the other that it accepts | routes to the other's node addresses, this host's own as source |
//!
//! A route before the other accepts would be a hole; so would a route on one side alone where reverse-path filters are
//! strict, but for the marks (`firewall::Steering`, [`ArpMark`], `src_valid_mark`), by which what the other still sends in
//! the clear is let in. So the two sides may switch in any order.
//!
//! A node address is the address at which its own member is reached: our encrypted packets and QUIC are marked and go past
//! the tunnel. For any other member, and for what this host needs, `Preflight::check_node` stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::{
    blocked::{BlockReason, Blocked},
    claims::Claims,
    hops,
    input::{Liveness, Member, PlanInput},
    mtus,
    planner::{Plan, first_lane},
    prefixes::is_v6,
    preflight::Preflight,
    types::{ArpMark, Desired},
};
use crate::{address::host_prefix, trust::Record};

/// Node addresses of members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CarriedNodes {
    /// Per member what is taken from its tunnel: what it is to be told of.
    pub accepted: BTreeMap<NodeKey, BTreeSet<IpNet>>,
    /// Per member what is routed into its tunnel.
    pub routed: BTreeMap<NodeKey, BTreeSet<IpNet>>,
    /// This host's own, as members may accept them, best first.
    pub own: Vec<IpAddr>,
}

/// What the kernel needs for them.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Routed into the tunnel, with the source of this host's own packets.
    pub(super) routed: BTreeMap<IpNet, IpAddr>,
    /// With strict leak protection: through the tunnel or not at all.
    pub(super) guarded: BTreeSet<IpNet>,
    /// This host's own, best first.
    pub(super) own: Vec<IpAddr>,
    /// Marks and sysctls are wanted: node addresses are carried, or routes to them are still there.
    pub(super) steered: bool,
}

/// True for an underlay address of the member itself that is not also one of its prefixes.
pub(super) fn is_node(record: &Record, prefix: &IpNet) -> bool {
    record.node_claims.contains(prefix) && !record.prefixes.contains(prefix)
}

impl Nodes {
    /// Decides for the node addresses that their members hold by right.
    pub(super) fn decide(
        input: &PlanInput<'_>,
        members: &BTreeMap<NodeKey, &Member>,
        claims: &Claims,
        preflight: &Preflight<'_>,
        refused_keys: &BTreeSet<NodeKey>,
        plan: &mut Plan,
    ) -> Self {
        let own = own_addresses(input, claims);
        let steered = input.config.nodes || input.steering.routes;
        let mut nodes = Self { own: own.clone(), steered, ..Self::default() };
        plan.nodes.own = own;
        for (prefix, key) in &claims.winners {
            let Some(member) = members.get(key).copied() else { continue };
            let has_tunnel = first_lane(&member.record).is_some();
            let has_family = input.local.ipv6 || !is_v6(prefix);
            if !is_node(&member.record, prefix) || !has_tunnel || !has_family {
                continue;
            }
            let behind = || hops::refuse_node(&plan.carried, member, prefix);
            let blocked = preflight.check_node(prefix, member).or_else(behind);
            // Where another member's packets come from is no reason to send these in the clear: those are marked.
            let elsewhere =
                |blocked: &Blocked| matches!(blocked.reason, BlockReason::CoversEndpoint);
            if input.config.nodes && input.config.strict && blocked.iter().all(elsewhere) {
                nodes.guarded.insert(*prefix);
            }
            if refused_keys.contains(key) {
                continue;
            }
            if let Some(blocked) = blocked {
                // Where none are carried nobody misses it.
                if input.config.nodes {
                    plan.blocked.entry(*key).or_default().push(blocked);
                }
                continue;
            }
            plan.nodes.accepted.entry(*key).or_default().insert(*prefix);
            let Some(source) = nodes.source(input, member, prefix.addr()) else { continue };
            if let Some(blocked) = mtus::refuse(input, member, prefix) {
                plan.blocked.entry(*key).or_default().push(blocked);
                continue;
            }
            nodes.routed.insert(*prefix, source);
            plan.nodes.routed.entry(*key).or_default().insert(*prefix);
        }
        if input.config.nodes && input.config.strict {
            nodes.guarded.extend(orphans(input, claims, preflight));
        }
        nodes
    }

    /// The source of this host's packets to `address` of `member`, when it may be routed: the other side takes all our
    /// addresses of that family, and what it sends meanwhile in the clear comes in.
    fn source(&self, input: &PlanInput<'_>, member: &Member, address: IpAddr) -> Option<IpAddr> {
        let stands = if address.is_ipv4() { input.steering.v4 } else { input.steering.v6 };
        if !input.config.nodes || !stands {
            return None;
        }
        let of_family = || self.own.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
        if !of_family().all(|own| member.accepts.contains(own)) {
            return None;
        }
        let beside = |own: &&IpAddr| {
            let networks = input.local.addresses.iter().filter(|net| net.addr() == **own);
            networks.into_iter().any(|net| net.contains(&address))
        };
        of_family().find(beside).or_else(|| of_family().next()).copied()
    }

    /// What stands beside the routes.
    pub(super) fn steer(
        &self,
        input: &PlanInput<'_>,
        members: &BTreeMap<NodeKey, &Member>,
        desired: &mut Desired,
    ) {
        if desired.additive {
            for member in members.values() {
                let lanes = member.record.lanes.iter().map(|lane| lane.public_key);
                let claims = member.record.node_claims.iter();
                let claims = claims.filter(|claim| is_node(&member.record, claim));
                for claim in claims.filter(|claim| !self.routed.contains_key(*claim)) {
                    desired.withdrawn.entry(*claim).or_default().extend(lanes.clone());
                }
            }
        }
        if !input.config.strict {
            desired.from_the_clear = self.routed.keys().copied().collect();
        }
        if !self.steered {
            return;
        }
        desired.arp = Some(ArpMark { mark: input.config.fwmark });
        // The check of the way back takes the mark into account. IPv6 has no such check.
        let path = |interface: &String| format!("net/ipv4/conf/{interface}/src_valid_mark");
        let interfaces = input.local.underlay.iter();
        desired.underlay_sysctls = interfaces.map(|i| (path(i), "1".to_owned())).collect();
    }

    pub(super) fn routed_addresses(&self) -> BTreeSet<IpAddr> {
        self.routed.keys().map(IpNet::addr).collect()
    }
}

/// Those that this host publishes, has by right, and has on an interface: a route's source must be there.
fn own_addresses(input: &PlanInput<'_>, claims: &Claims) -> Vec<IpAddr> {
    let ours = |address: &&IpAddr| {
        let prefix = host_prefix(**address);
        input.own.node_claims.contains(&prefix)
            && claims.winners.get(&prefix) == Some(&input.own.key)
            && input.local.addresses.iter().any(|net| net.addr() == **address)
    };
    input.local.node_addresses.iter().filter(ours).copied().collect()
}

/// Those of hosts that are members no more.
fn orphans(input: &PlanInput<'_>, claims: &Claims, preflight: &Preflight<'_>) -> BTreeSet<IpNet> {
    let mut orphans = BTreeSet::new();
    for record in input.barred.iter().filter(|record| !record.left) {
        let owner = Member::gone(record.clone(), Liveness::Down);
        let claimed = record.node_claims.iter().filter(|claim| is_node(record, claim));
        let free = claimed.filter(|claim| !claims.winners.contains_key(*claim));
        let family = free.filter(|claim| input.local.ipv6 || !is_v6(claim));
        orphans.extend(family.filter(|claim| preflight.check_node(claim, &owner).is_none()));
    }
    orphans
}
