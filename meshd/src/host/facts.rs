//! What was read, and what follows from it by itself.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use meshd_core::{address::is_routable_unicast, limits::RECORD_ENDPOINTS, plan::LINK_ALIAS};

/// Smallest MTU that an underlay can have and still carry IPv6.
const UNDERLAY_MTU_MIN: u32 = 1_280;
/// MTU where nothing is known.
const UNDERLAY_MTU_DEFAULT: u32 = 1_500;

/// Facts of this host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `gethostname`, as it is; may be no valid node name.
    pub name: String,
    /// Every interface, by index.
    pub interfaces: Vec<Interface>,
    /// Default routes of the main table; the preferred one of each family first.
    pub default_routes: Vec<DefaultRoute>,
    /// Servers that this host asks for names.
    pub nameservers: BTreeSet<IpAddr>,
    /// Prefixes that are on-link by the main table, those of single pods left out.
    pub networks: Vec<ConnectedNetwork>,
    /// Routes of the main table by which a CNI keeps what is its own.
    pub inner_routes: Vec<InnerRoute>,
    /// `net.ipv4.ip_forward`.
    pub forwarding_v4: bool,
    /// `net.ipv6.conf.all.forwarding`; also true where IPv6 is switched off, since there is nothing to forward.
    pub forwarding_v6: bool,
    /// The kernel tracks connections here (`net.netfilter.nf_conntrack_count` is not 0).
    pub tracked: bool,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Index in this network namespace.
    pub index: u32,
    /// Name, e.g. `eth0`.
    pub name: String,
    /// Kind of a virtual device (`veth`, `bridge`, `wireguard`…); `None` for hardware.
    pub kind: Option<String>,
    /// `ip link … alias`.
    pub alias: Option<String>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It is the loopback.
    pub loopback: bool,
    /// Its addresses with the length of their subnet; host bits are kept.
    pub addresses: BTreeSet<IpNet>,
    /// Those of them that are no use to others: IPv6 privacy addresses, tentative or failed ones.
    pub passing: BTreeSet<IpAddr>,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// IPv6.
    pub v6: bool,
    /// Next hop, or none on a point-to-point link.
    pub gateway: Option<IpAddr>,
    /// Interface name.
    pub interface: String,
    /// Lower is preferred.
    pub metric: u32,
    /// MTU metric of the route itself.
    pub mtu: Option<u32>,
}

/// A prefix that is reached without a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedNetwork {
    /// The prefix.
    pub prefix: IpNet,
    /// Interface name.
    pub interface: String,
}

/// A route of the main table that stays on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// Where to.
    pub to: InnerTarget,
}

/// Where such a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InnerTarget {
    /// Nowhere: what no longer prefix takes is dropped.
    Blackhole,
    /// To this address, which is one of this very interface.
    OwnAddress {
        /// The address.
        gateway: IpAddr,
        /// Interface name.
        interface: String,
    },
}

impl Facts {
    /// Bytes that a packet of the underlay may have: the smaller of link and route MTU on the interface of the
    /// preferred default route; without a default route the largest of the up interfaces that are neither
    /// loopback nor lead inward. At least 1,280.
    #[must_use]
    pub fn underlay_mtu(&self) -> u32 {
        let by_route = self.default_routes.iter().find_map(|route| {
            let link = self.interface(&route.interface)?.mtu;
            Some(route.mtu.map_or(link, |mtu| mtu.min(link)))
        });
        let outward = self.interfaces.iter().filter(|i| i.up && !i.loopback && !i.is_inward());
        by_route
            .or_else(|| outward.map(|i| i.mtu).max())
            .unwrap_or(UNDERLAY_MTU_DEFAULT)
            .max(UNDERLAY_MTU_MIN)
    }

    /// Bytes that a packet to `to` may have on the link that it leaves by, as far as connected networks and default
    /// routes tell.
    #[must_use]
    pub fn mtu_towards(&self, to: IpAddr) -> u32 {
        let connected = self.networks.iter().filter(|network| network.prefix.contains(&to));
        let connected = connected.max_by_key(|network| network.prefix.prefix_len());
        let link = |name: &str| self.interface(name).map(|interface| interface.mtu);
        let by_default = || {
            let mut routes = self.default_routes.iter().filter(|route| route.v6 == to.is_ipv6());
            let route = routes.next()?;
            Some(link(&route.interface)?.min(route.mtu.unwrap_or(u32::MAX)))
        };
        connected
            .and_then(|network| link(&network.interface))
            .or_else(by_default)
            .unwrap_or_else(|| self.underlay_mtu())
    }

    /// Gateways of the default routes.
    #[must_use]
    pub fn gateways(&self) -> BTreeSet<IpAddr> {
        self.default_routes.iter().filter_map(|route| route.gateway).collect()
    }

    /// Every address of this host that others could use, whatever the interface; ours left out.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.interfaces
            .iter()
            .filter(|i| !i.loopback && !i.is_ours())
            .flat_map(|i| i.addresses.iter().map(IpNet::addr))
            .filter(is_routable_unicast)
            .collect()
    }

    /// Addresses at which other members can try this host, best first, at most
    /// [`RECORD_ENDPOINTS`].
    ///
    /// Those of the interfaces with a default route come first. Left out: interfaces that are down, loopback,
    /// and, unless they have a default route, interfaces that lead inward: WireGuard devices and other tunnels,
    /// ports into containers (veth), bridges (docker0, cni0…); addresses inside `pod_prefixes`.
    #[must_use]
    pub fn endpoint_addresses(&self, pod_prefixes: &BTreeSet<IpNet>) -> Vec<IpAddr> {
        let mut ranked = Vec::new();
        for interface in &self.interfaces {
            let routed = self.default_routes.iter().position(|r| r.interface == interface.name);
            if !interface.up || interface.loopback || (routed.is_none() && interface.is_inward()) {
                continue;
            }
            for net in &interface.addresses {
                let address = net.addr();
                let is_pod = pod_prefixes.iter().any(|p| p.contains(&address));
                if is_pod || !is_routable_unicast(&address) || interface.passing.contains(&address)
                {
                    continue;
                }
                ranked.push((routed.unwrap_or(usize::MAX), address.is_ipv6(), address));
            }
        }
        ranked.sort_unstable();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (_, _, address) in ranked {
            if addresses.len() < RECORD_ENDPOINTS && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Interfaces that packets of other hosts come in by: those with a default route or one of `node_addresses`, and all
    /// that are neither loopback nor lead inward.
    #[must_use]
    pub fn underlay(&self, node_addresses: &[IpAddr]) -> BTreeSet<String> {
        let is_underlay = |interface: &&Interface| {
            let routed = self.default_routes.iter().any(|r| r.interface == interface.name);
            let holds = interface.addresses.iter().any(|n| node_addresses.contains(&n.addr()));
            interface.up
                && !interface.loopback
                && !interface.is_ours()
                && (routed || holds || !interface.is_inward())
        };
        self.interfaces.iter().filter(is_underlay).map(|i| i.name.clone()).collect()
    }

    /// Prefixes that the main table keeps on this host, on an interface that leads into it or nowhere.
    #[must_use]
    pub fn inward(&self) -> BTreeSet<IpNet> {
        let is_inward = |name: &str| self.interface(name).is_some_and(Interface::is_inward);
        let connected = self.networks.iter().filter(|network| is_inward(&network.interface));
        let inner = self.inner_routes.iter().map(|route| route.prefix);
        connected.map(|network| network.prefix).chain(inner).collect()
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }
}

impl Interface {
    /// A device that meshd made.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(LINK_ALIAS)
            && matches!(self.kind.as_deref(), Some("wireguard" | "tun"))
    }

    /// Leads into this host (containers) or through a tunnel, not to the network that others share with it.
    pub(super) fn is_inward(&self) -> bool {
        self.is_ours()
            || matches!(
                self.kind.as_deref(),
                Some(
                    "bridge"
                        | "dummy"
                        | "geneve"
                        | "gre"
                        | "ifb"
                        | "ip6tnl"
                        | "ipip"
                        | "netkit"
                        | "nlmon"
                        | "sit"
                        | "tun"
                        | "veth"
                        | "vxlan"
                        | "wireguard"
                )
            )
    }
}
