//! What the measured paths mean for routes, fragments and IPv6.
//!
//! A route's MTU is what the path was proved to carry, never more: our packets carry DF, and one that is too large
//! is lost without a word. Until it is measured a path gets what IPv6 must have. The kernel's WireGuard over IPv4 has a
//! path below that helped by fragments; over IPv6 nobody fragments on the way, so IPv6 inside is refused there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::{
    blocked::{BlockReason, Blocked},
    input::{Member, PlanInput},
    prefixes::is_v6,
};
use crate::path_mtu::{BASE, Small};

/// The MTU of each prefix's route, where it is not the device's.
pub(super) fn route_mtus(
    input: &PlanInput<'_>,
    members: &BTreeMap<NodeKey, &Member>,
    routed: &BTreeMap<NodeKey, BTreeSet<IpNet>>,
    device: u32,
) -> BTreeMap<IpNet, u32> {
    if !input.config.measures(input.local) {
        return BTreeMap::new();
    }
    let mut mtus = BTreeMap::new();
    for (key, prefixes) in routed {
        let measured = members.get(key).and_then(|member| member.path_mtu);
        let mtu = measured.map_or(BASE, |path| path.mtu);
        for prefix in prefixes {
            // A route for IPv6 has 1,280 at least (RFC 8200, 5).
            let mtu = if is_v6(prefix) { mtu.max(BASE) } else { mtu };
            if mtu < device {
                mtus.insert(*prefix, mtu);
            }
        }
    }
    mtus
}

/// Where encrypted packets may be fragmented.
pub(super) fn fragmented(members: &BTreeMap<NodeKey, &Member>) -> BTreeSet<Ipv4Addr> {
    members
        .values()
        .filter(|member| member.path_mtu.and_then(|path| path.small) == Some(Small::Fragmented))
        .filter_map(|member| match member.tunnel?.endpoint?.ip().to_canonical() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect()
}

/// Why `prefix` cannot be reached over a path that small. The mesh address stays: by it the path is measured.
pub(super) fn refuse(input: &PlanInput<'_>, member: &Member, prefix: &IpNet) -> Option<Blocked> {
    let path = member.path_mtu.filter(|path| path.small == Some(Small::NoIpv6))?;
    let own = member.record.mesh_addresses.contains(prefix);
    if !input.config.measures(input.local) || !is_v6(prefix) || own {
        return None;
    }
    let name = &member.record.name;
    let message = format!(
        "{prefix} of {name} is not reached; the path to it carries {} bytes, IPv6 needs {BASE}, and nobody \
         fragments on the way; use IPv4 to it, or raise the MTU of the network between",
        path.mtu
    );
    Some(Blocked { prefix: Some(*prefix), reason: BlockReason::PathTooSmall, message })
}
