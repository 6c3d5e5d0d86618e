//! The device of the first lane: its addresses, MTU and sysctls.

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;

use super::{input::PlanInput, prefixes::is_v6, types::Device};
use crate::{
    address::{is_routable_unicast, ula_prefix},
    path_mtu::{OVERHEAD_V4, OVERHEAD_V6},
};

/// Assumed of an underlay whose MTU is not known: Ethernet's.
const UNDERLAY_MTU: u32 = 1_500;
/// Linux takes IPv6 away from a device with less (RFC 8200, 5). An underlay too small for it carries
/// the encrypted packets in fragments.
const SMALLEST_MTU: u32 = 1_280;
/// The largest IP packet less the overhead.
const LARGEST_MTU: u32 = 65_535 - OVERHEAD_V6;

/// Of which families endpoints are that peers have, or may get.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    pub(super) fn see(&mut self, endpoint: &SocketAddr) {
        let is_v4 = endpoint.ip().to_canonical().is_ipv4();
        self.v4 |= is_v4;
        self.v6 |= !is_v4;
    }
}

/// The device.
pub(super) fn device(input: &PlanInput<'_>, endpoints: Families) -> Device {
    let has_family = |address: &&IpNet| input.local.ipv6 || !is_v6(address);
    Device {
        name: input.config.interface.clone(),
        private_key: input.lane.private_key.clone(),
        public_key: input.lane.public_key,
        listen_port: input.config.listen_port,
        fwmark: input.config.fwmark,
        mtu: mtu(input, endpoints),
        addresses: input.own.mesh_addresses.iter().filter(has_family).copied().collect(),
        sysctls: sysctls(input),
    }
}

/// The largest that a packet to any peer can have: with IPv4 to one of them 20 bytes more than with IPv6. Each route has its
/// own, as measured; where nothing is measured the host has no IPv6, or the MTU is configured.
fn mtu(input: &PlanInput<'_>, endpoints: Families) -> u32 {
    let ulas = IpNet::V6(ula_prefix(&input.own.certificate.mesh_id));
    let underlay_v6 = input.local.addresses.iter().any(|address| {
        is_v6(address) && is_routable_unicast(&address.addr()) && !ulas.contains(&address.addr())
    });
    let all_v6 = endpoints.v6 && !endpoints.v4 && underlay_v6;
    let overhead = if all_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    let underlay = input.local.underlay_mtu.unwrap_or(UNDERLAY_MTU);
    let mtu = input.config.mtu.unwrap_or_else(|| underlay.saturating_sub(overhead));
    mtu.clamp(SMALLEST_MTU, LARGEST_MTU)
}

/// - `rp_filter=2`: WireGuard has checked the source by itself, and a strict check would look for the
///   way back without the mark (2 wins over a strict `all`, since the kernel takes the larger).
/// - IPv4 `forwarding`: decided by the interface a packet came in by, so this is what lets remote
///   pods in. IPv6 asks `all` for that; on the device it makes this host a router, deaf to
///   redirects.
/// - `addr_gen_mode=1`: no link-local address of the kernel's making. The kernel's WireGuard does so
///   by itself, a TUN device does not.
/// - `accept_ra=0`: no member gives this host routes or addresses.
/// - `disable_ipv6=0`: hosts that disable IPv6 by default for new devices would have no ULA.
fn sysctls(input: &PlanInput<'_>) -> BTreeMap<String, String> {
    let v4 = [("rp_filter", "2"), ("forwarding", "1")];
    let v6 =
        [("disable_ipv6", "0"), ("forwarding", "1"), ("addr_gen_mode", "1"), ("accept_ra", "0")];
    let name = &input.config.interface;
    let path = |family: &str, key: &str| format!("net/{family}/conf/{name}/{key}");
    let v4 = v4.map(|(key, value)| (path("ipv4", key), value.to_owned()));
    let v6 = v6.map(|(key, value)| (path("ipv6", key), value.to_owned()));
    v4.into_iter().chain(v6.into_iter().filter(|_| input.local.ipv6)).collect()
}
