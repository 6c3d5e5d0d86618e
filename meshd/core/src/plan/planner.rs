//! From what is known now to what the kernel should hold.
//!
//! Claims are settled first (`claims`), then each winner's prefix is looked at from this host
//! (`preflight`), then device, peers and routes follow. SWIM's word moves nothing here but
//! keepalives and contested prefixes: a peer goes only when its member has left, is no longer
//! among the members, or has another key.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName, WgPublicKey};

use super::{
    blocked::{BlockReason, Blocked},
    claims::{Claimant, Claims, Contest, DERIVED, Lost, grant_length},
    device,
    endpoints::{EndpointRules, choose},
    external::Placed,
    firewall, hops,
    input::{Liveness, Member, PlanInput, TunnelState},
    mtus,
    nodes::{self, CarriedNodes, Nodes},
    prefixes::{PrefixMap, is_v6},
    preflight::Preflight,
    routes,
    types::{Desired, Peer},
};
use crate::{
    address::is_single,
    limits::{CLAIM_DOWN_FOR, HANDSHAKE_FRESH, KEEPALIVE_OFF_AFTER_DOWN},
    trust::{LaneInfo, Record},
};

/// What the kernel should hold, and what was left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For [`diff`](super::diff()).
    pub desired: Arc<Desired>,
    /// Per member the prefixes and mesh addresses that are routed into its tunnel.
    pub routed: BTreeMap<NodeKey, BTreeSet<IpNet>>,
    /// Members whose packets go through a gateway, with that one.
    pub carried: BTreeMap<NodeKey, NodeKey>,
    /// Node addresses of members, apart from what is routed as a prefix.
    pub nodes: CarriedNodes,
    /// Per member what is not programmed, sorted. Under this node's own key: own prefixes that
    /// others hold with the better right.
    pub blocked: BTreeMap<NodeKey, Vec<Blocked>>,
    /// Per device of this host what is not programmed, sorted.
    pub externals: BTreeMap<NodeName, Vec<Blocked>>,
}

/// Decides what the kernel should hold. A function of `input` alone, whatever came before.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let members = present_members(input);
    let claims = settle_claims(input, &members);
    let mut plan = Plan::default();
    let additive = !input.complete || input.externals.unknown;
    let mut desired = Desired { additive, ..Desired::default() };
    let refused_keys = refuse_keys(input, &members, &mut plan);
    show_losers(input, &members, &claims, &mut plan);
    plan.carried = hops::carried(input, &members, &mut plan.blocked);

    let mesh_addresses = held_addresses(input, &members, &claims);
    let preflight = Preflight::new(input, members.values().copied(), mesh_addresses.clone());
    let mut destinations =
        decide_destinations(input, &members, &claims, &preflight, &refused_keys, &mut plan);
    let keys = members.values().filter_map(|member| first_lane(&member.record));
    let keys = keys.map(|lane| lane.public_key).collect();
    let placed = Placed::new(input, &members, &claims, &keys);
    placed.route(&mut destinations);
    desired.rules = input.config.rules(input.local.ipv6);

    let lost_own = |prefix: &IpNet| claims.lost.contains_key(&(input.own.key, *prefix));
    let nodes = Nodes::decide(input, &members, &claims, &preflight, &refused_keys, &mut plan);
    let mut fragmented = mtus::fragmented(&members);
    placed.add_fragmented(&mut fragmented);
    desired.firewall = Some(firewall::firewall(input, &destinations, &nodes, fragmented, lost_own));
    nodes.steer(input, &members, &mut desired);

    let inside = destinations.inside(input.own, &mesh_addresses);
    let endpoint_rules = EndpointRules::new(input, &inside);
    let mut families = device::Families::default();
    let held = hops::allowed_ips(&plan);
    for (key, member) in &members {
        let Some(lane) = first_lane(&member.record).filter(|_| !refused_keys.contains(key)) else {
            continue;
        };
        if plan.carried.contains_key(key) {
            continue;
        }
        let candidates = endpoint_rules.candidates(member, lane);
        let current = member.tunnel.and_then(|tunnel| tunnel.endpoint);
        candidates.iter().chain(&current).for_each(|endpoint| families.see(endpoint));
        let peer = Peer {
            allowed_ips: held.get(key).cloned().unwrap_or_default(),
            endpoint: choose(member, &candidates),
            keepalive: keepalive(input, member),
            ..Peer::default()
        };
        desired.peers.insert(lane.public_key, peer);
    }
    let device = device::device(input, families);
    let mut mtus = mtus::route_mtus(input, &members, &plan.routed, device.mtu);
    placed.add_mtus(&mut mtus, device.mtu);
    let (peers, blocked) = placed.into_parts();
    desired.confined = peers.keys().copied().collect();
    desired.peers.extend(peers);
    plan.externals = blocked;
    if input.externals.incomplete {
        desired.spared.clone_from(&input.externals.ranges);
    }
    if desired.additive || input.externals.incomplete {
        desired.departed = departed(input);
        desired.departed.retain(|key| !desired.peers.contains_key(key));
        for (key, prefixes) in &input.externals.removed {
            for prefix in prefixes {
                desired.withdrawn.entry(prefix.trunc()).or_default().insert(*key);
            }
        }
    }
    mtus.append(&mut mtus::route_mtus(input, &members, &plan.nodes.routed, device.mtu));
    desired.routes = routes::routes(input, &destinations, &nodes, &mtus);
    desired.device = Some(device);
    plan.desired = Arc::new(desired);
    for blocked in plan.blocked.values_mut().chain(plan.externals.values_mut()) {
        blocked.sort();
    }
    plan
}

/// What happens to each prefix that somebody holds by right.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    /// Into the tunnel, `unreachable` when that is gone.
    pub(super) tunnel: BTreeSet<IpNet>,
    /// Never in the clear, and no tunnel to go through.
    pub(super) unreachable: BTreeSet<IpNet>,
    /// As without a mesh.
    pub(super) clear: BTreeSet<IpNet>,
}

impl Destinations {
    /// Prefixes in which no endpoint can be: `mesh_addresses`, and what is wider than one address.
    fn inside(&self, own: &Record, mesh_addresses: &BTreeSet<IpAddr>) -> PrefixMap<()> {
        let own = own.prefixes.iter().chain(&own.mesh_addresses);
        let theirs = self.tunnel.iter().chain(&self.unreachable);
        let theirs = theirs.filter(|to| !is_single(to) || mesh_addresses.contains(&to.addr()));
        theirs.chain(own).copied().collect()
    }
}

/// The members that count: not ourselves, one record each, nobody who has left.
fn present_members<'a>(input: &PlanInput<'a>) -> BTreeMap<NodeKey, &'a Member> {
    let mut members: BTreeMap<NodeKey, &Member> = BTreeMap::new();
    for member in input.members.iter().filter(|member| member.record.key != input.own.key) {
        let held = members.entry(member.record.key).or_insert(member);
        if member.record.version > held.record.version {
            *held = member;
        }
    }
    members.retain(|_, member| !member.record.left && member.liveness != Liveness::Left);
    members
}

/// WireGuard keys of those who are known to be members no more.
fn departed(input: &PlanInput<'_>) -> BTreeSet<WgPublicKey> {
    let left = input.members.iter().map(|member| &member.record).filter(|record| record.left);
    let lanes = left.chain(input.barred).flat_map(|record| &record.lanes);
    lanes.map(|lane| lane.public_key).chain(input.externals.removed.keys().copied()).collect()
}

fn settle_claims(input: &PlanInput<'_>, members: &BTreeMap<NodeKey, &Member>) -> Claims {
    let mut contest = Contest::new(&input.own.certificate.mesh_id);
    let others = members.values().map(|member| (&*member.record, is_dead(member)));
    for (record, dead) in others.chain([(input.own, false)]) {
        let enrolment_id = record.certificate.enrolment_id;
        let claimant = Claimant { key: record.key, enrolment_id, dead };
        let granted = |prefix| grant_length(&record.certificate.grants, prefix);
        for address in &record.mesh_addresses {
            // A ULA follows from the key; an IPv4 address rests on its grant like any prefix.
            let granted = if is_v6(address) { Some(DERIVED) } else { granted(address) };
            contest.add(&claimant, *address, granted.unwrap_or(0));
        }
        for prefix in record.prefixes.iter().chain(&record.node_claims) {
            contest.add(&claimant, *prefix, granted(prefix).unwrap_or(0));
        }
    }
    contest.decide()
}

/// Dead enough to lose a contested prefix. A tunnel that is idle is not: something must have been
/// sent to it in vain.
fn is_dead(member: &Member) -> bool {
    let down = member.liveness == Liveness::Down
        && member.down_for.is_some_and(|down_for| down_for >= CLAIM_DOWN_FOR);
    down && member.tunnel.is_none_or(|tunnel| {
        tunnel.state != TunnelState::Up
            && tunnel.last_handshake.is_none_or(|age| age >= HANDSHAKE_FRESH)
    })
}

pub(super) fn first_lane(record: &Record) -> Option<&LaneInfo> {
    record.lanes.iter().find(|lane| lane.index == 0)
}

/// Members whose WireGuard key cannot be a peer: it is ours, or that of a member before them.
fn refuse_keys(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    plan: &mut Plan,
) -> BTreeSet<NodeKey> {
    let mut holders: BTreeMap<WgPublicKey, &Record> =
        BTreeMap::from([(input.lane.public_key, input.own)]);
    let mut refused = BTreeSet::new();
    for (key, member) in members {
        let name = &member.record.name;
        let (reason, message) = match first_lane(&member.record) {
            None => {
                let message = format!(
                    "{name} has no tunnel; its host has no WireGuard; install it there for \
                     encryption"
                );
                (BlockReason::NoWireguard, message)
            }
            Some(lane) => match holders.insert(lane.public_key, &member.record) {
                None => continue,
                Some(holder) => {
                    holders.insert(lane.public_key, holder);
                    refused.insert(*key);
                    let message = format!(
                        "{name} has no tunnel; its WireGuard key is that of {} too, as after a \
                         copied disk; remove its keys directory and let it join again",
                        holder.name
                    );
                    (BlockReason::WgKeyInUse, message)
                }
            },
        };
        plan.blocked.entry(*key).or_default().push(Blocked { prefix: None, reason, message });
    }
    refused
}

fn show_losers(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    claims: &Claims,
    plan: &mut Plan,
) {
    let name = |key: &NodeKey| {
        let record = members.get(key).map_or(input.own, |member| &*member.record);
        format!("{} ({})", record.name, record.key.short())
    };
    for ((loser, prefix), Lost { to, within }) in &claims.lost {
        let (loser_name, to) = (name(loser), name(to));
        let (reason, what) = if within == prefix {
            (BlockReason::Contested, format!("{to} claims it too and has the better right"))
        } else {
            (BlockReason::Nested, format!("it lies within {within} of {to} on a longer grant"))
        };
        let message = format!(
            "{prefix} of {loser_name} is not routed to it; {what}; take it from one of the two, or \
             grant it exactly to the one that should have it"
        );
        let blocked = Blocked { prefix: Some(*prefix), reason, message };
        plan.blocked.entry(*loser).or_default().push(blocked);
    }
}

fn decide_destinations(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    claims: &Claims,
    preflight: &Preflight<'_>,
    refused_keys: &BTreeSet<NodeKey>,
    plan: &mut Plan,
) -> Destinations {
    let mut destinations = Destinations::default();
    for (prefix, key) in &claims.winners {
        let Some(member) = members.get(key) else { continue };
        if nodes::is_node(&member.record, prefix) {
            continue;
        }
        if first_lane(&member.record).is_none() {
            destinations.clear.insert(*prefix);
        } else if let Some(blocked) = preflight.check(prefix, member) {
            if blocked.reason.is_unreachable() {
                destinations.unreachable.insert(*prefix);
            } else if blocked.reason != BlockReason::OwnPrefix {
                destinations.clear.insert(*prefix);
            }
            plan.blocked.entry(*key).or_default().push(blocked);
        } else if refused_keys.contains(plan.carried.get(key).unwrap_or(key)) {
            destinations.unreachable.insert(*prefix);
        } else if let Some(blocked) = mtus::refuse(input, member, prefix) {
            destinations.unreachable.insert(*prefix);
            plan.blocked.entry(*key).or_default().push(blocked);
        } else {
            destinations.tunnel.insert(*prefix);
            plan.routed.entry(*key).or_default().insert(*prefix);
        }
    }
    destinations.unreachable.extend(orphans(input, claims, preflight));
    destinations
}

/// What belonged to those who are members no more, and is now nobody's: it is refused rather than sent in the
/// clear, where that cuts off nothing else.
fn orphans(input: &PlanInput<'_>, claims: &Claims, preflight: &Preflight<'_>) -> BTreeSet<IpNet> {
    let won: PrefixMap<()> = claims.winners.keys().copied().collect();
    let mut orphans = BTreeSet::new();
    for record in input.barred.iter().filter(|record| !record.left) {
        let owner = Member::gone(record.clone(), Liveness::Down);
        for prefix in owner.record.prefixes.iter().chain(&owner.record.mesh_addresses) {
            let blocked = preflight.check(prefix, &owner);
            let refused = blocked.is_none_or(|blocked| blocked.reason.is_unreachable());
            if refused && won.covering(prefix).next().is_none() {
                orphans.insert(*prefix);
            }
        }
    }
    orphans
}

/// Mesh addresses that their nodes hold by right, ours among them.
fn held_addresses(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    claims: &Claims,
) -> BTreeSet<IpAddr> {
    let records = members.values().map(|member| &*member.record).chain([input.own]);
    records
        .flat_map(|record| record.mesh_addresses.iter().map(move |address| (record.key, address)))
        .filter(|(key, address)| claims.winners.get(address) == Some(key))
        .map(|(_, address)| address.addr())
        .collect()
}

/// Seconds between keepalives: only where we are hard to reach, towards who has answered before,
/// and not for ever towards the dead. A tunnel that works is kept open whatever SWIM says.
fn keepalive(input: &PlanInput<'_>, member: &Member) -> Option<u16> {
    let last_handshake = member.tunnel.and_then(|tunnel| tunnel.last_handshake);
    let behind_nat = input.local.behind_nat?;
    let Some(age) = last_handshake.filter(|_| behind_nat) else { return Some(0) };
    let long_down = member.liveness == Liveness::Down
        && member.down_for.is_some_and(|down_for| down_for >= KEEPALIVE_OFF_AFTER_DOWN);
    Some(if long_down && age >= HANDSHAKE_FRESH { 0 } else { input.config.keepalive })
}
