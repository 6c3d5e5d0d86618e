//! Where to send a peer's packets first.
//!
//! The planner asks for an endpoint only while a tunnel does not work; a working one roams by itself
//! and is left alone. An endpoint is a claim: it is used only when it is a unicast address of a
//! family that this host has, not ours, and not inside the mesh or routed into it. So a member
//! cannot make others send to themselves, or loop packets into a tunnel. A single address that a member announces may be
//! the very one of another's host, though: it is tried, since our packets are marked and go past the tunnel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::Ipv6Net;

use super::{
    input::{Member, PlanInput, TunnelHealth, TunnelState},
    prefixes::PrefixMap,
};
use crate::{
    address::{is_routable_unicast, ula_prefix},
    trust::LaneInfo,
};

/// What an endpoint is judged by.
#[derive(Debug)]
pub(super) struct EndpointRules<'a> {
    /// What this host routes into the mesh or keeps for itself, single addresses of members left out.
    inside: &'a PrefixMap<()>,
    ulas: Ipv6Net,
    ours: BTreeSet<IpAddr>,
    /// Own endpoints as others see them: another host behind the same address has another port.
    own_sockets: BTreeSet<SocketAddr>,
    has_v4: bool,
    has_v6: bool,
}

impl<'a> EndpointRules<'a> {
    /// The rules of this host. `inside` are prefixes that are routed into the mesh, and our own.
    pub(super) fn new(input: &PlanInput<'_>, inside: &'a PrefixMap<()>) -> Self {
        let ulas = ula_prefix(&input.own.certificate.mesh_id);
        let ours: BTreeSet<IpAddr> =
            input.local.addresses.iter().map(|address| address.addr()).collect();
        let mut usable = ours.iter().filter(|address| is_routable_unicast(address));
        let port = input.config.listen_port;
        Self {
            inside,
            ulas,
            has_v4: usable.clone().any(|address| address.is_ipv4()),
            has_v6: usable.any(|address| matches!(address, IpAddr::V6(v6) if !ulas.contains(v6))),
            own_sockets: input.own.endpoints.iter().map(|e| (e.ip(), port).into()).collect(),
            ours,
        }
    }

    fn permits(&self, endpoint: &SocketAddr) -> bool {
        let address = endpoint.ip();
        let has_family = if address.is_ipv4() { self.has_v4 } else { self.has_v6 };
        has_family
            && endpoint.port() != 0
            && is_routable_unicast(&address)
            && !self.ours.contains(&address)
            && !self.own_sockets.contains(endpoint)
            && !matches!(address, IpAddr::V6(v6) if self.ulas.contains(&v6))
            && !self.inside.holds(address)
    }

    /// Where the lane of `member` may be, best first: the address at which gossip reached it, then
    /// what its record says in its order.
    pub(super) fn candidates(&self, member: &Member, lane: &LaneInfo) -> Vec<SocketAddr> {
        let addresses = member.record.endpoints.iter().map(SocketAddr::ip);
        let mut candidates: Vec<SocketAddr> = Vec::new();
        for address in member.path.into_iter().chain(addresses) {
            let endpoint = SocketAddr::new(address, lane.listen_port);
            if !candidates.contains(&endpoint) && self.permits(&endpoint) {
                candidates.push(endpoint);
            }
        }
        candidates
    }
}

/// Which attempt at an endpoint it is, or `None` where what the kernel has is to be left alone.
pub(super) fn retry(tunnel: Option<TunnelHealth>) -> Option<u32> {
    match tunnel {
        None => Some(0),
        Some(tunnel) if tunnel.endpoint.is_none() => Some(tunnel.attempt),
        Some(tunnel) => match tunnel.state {
            TunnelState::Up => None,
            TunnelState::Stale => tunnel.attempt.checked_sub(1),
            TunnelState::Never => Some(tunnel.attempt),
        },
    }
}

/// The endpoint to set, or `None` to leave what the kernel has.
///
/// A stale tunnel first keeps the endpoint that once worked. Then, as for a tunnel that never came
/// up, each failed attempt leads to the next candidate, round and round.
pub(super) fn choose(member: &Member, candidates: &[SocketAddr]) -> Option<SocketAddr> {
    let turn = usize::try_from(retry(member.tunnel)?).ok()?.checked_rem(candidates.len())?;
    candidates.get(turn).copied()
}
