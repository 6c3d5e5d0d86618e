//! Reads the facts over netlink, and from `/proc/sys` and the resolver's files.

use std::{collections::BTreeMap, net::IpAddr, thread};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
    },
};
use nix::errno::Errno;

use super::{
    facts::{ConnectedNetwork, DefaultRoute, Facts, InnerRoute, InnerTarget, Interface},
    nameservers,
};
use crate::dataplane::{
    DataplaneError, Ours,
    linux::{netlink::Netlink, sysctl},
};

/// Reads the facts of the network namespace of the calling thread. Blocks for some milliseconds; may be called
/// from anywhere.
///
/// # Errors
/// When the kernel does not answer; reading needs no privileges.
pub fn read() -> Result<Facts, DataplaneError> {
    // The connection brings a runtime of its own, which a runtime's worker may not enter: a thread of
    // its own may, and it inherits the network namespace.
    thread::scope(|scope| {
        scope.spawn(|| read_with(&Netlink::open(&Ours::default())?)).join().unwrap_or_else(|_| {
            Err(DataplaneError::Netlink { reason: "the reading thread ended early".to_owned() })
        })
    })
}

fn read_with(netlink: &Netlink) -> Result<Facts, DataplaneError> {
    let mut interfaces = interfaces(netlink)?;
    addresses(netlink, &mut interfaces)?;
    let routes = routes(netlink, &interfaces)?;
    let is_on = |path| sysctl::read(path).map(|value| value == "1");
    Ok(Facts {
        name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        interfaces: interfaces.into_values().collect(),
        default_routes: routes.defaults,
        nameservers: nameservers::read(),
        networks: routes.networks,
        inner_routes: routes.inner,
        forwarding_v4: is_on("net/ipv4/ip_forward").unwrap_or(false),
        forwarding_v6: is_on("net/ipv6/conf/all/forwarding").unwrap_or(true),
        tracked: sysctl::read("net/netfilter/nf_conntrack_count").is_ok_and(|count| count != "0"),
    })
}

/// Such routes that are looked at: a node has a few.
const INNER_ROUTES: usize = 1_024;

pub(super) fn dump(
    netlink: &Netlink,
    what: &str,
    request: &RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, DataplaneError> {
    let failed =
        |errno: Errno| DataplaneError::Kernel { action: "read", object: what.to_owned(), errno };
    netlink.dump(request).map_err(failed)
}

fn interfaces(netlink: &Netlink) -> Result<BTreeMap<u32, Interface>, DataplaneError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut interfaces = BTreeMap::new();
    for answer in dump(netlink, "the interfaces", &request)? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let mut interface = Interface {
            index: link.header.index,
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            ..Interface::default()
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::IfAlias(alias) => interface.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interfaces.insert(interface.index, interface);
    }
    Ok(interfaces)
}

fn addresses(
    netlink: &Netlink,
    interfaces: &mut BTreeMap<u32, Interface>,
) -> Result<(), DataplaneError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in dump(netlink, "the addresses", &request)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
        let (mut address, mut flags) = (None, AddressFlags::empty());
        for attribute in message.attributes {
            match attribute {
                // On a point-to-point link Address is the other end.
                AddressAttribute::Local(local) => address = Some(local),
                AddressAttribute::Address(ip) => address = address.or(Some(ip)),
                AddressAttribute::Flags(all) => flags = all,
                _ => {}
            }
        }
        let Some(ip) = address else { continue };
        let Ok(net) = IpNet::new(ip, message.header.prefix_len) else { continue };
        interface.addresses.insert(net);
        let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
        // For IPv6 the same bit says "temporary" (RFC 8981).
        let temporary = ip.is_ipv6() && flags.contains(AddressFlags::Secondary);
        if flags.intersects(unusable) || temporary {
            interface.passing.insert(ip);
        }
    }
    Ok(())
}

/// What the main table tells.
#[derive(Default)]
struct MainTable {
    defaults: Vec<DefaultRoute>,
    networks: Vec<ConnectedNetwork>,
    inner: Vec<InnerRoute>,
}

fn routes(
    netlink: &Netlink,
    interfaces: &BTreeMap<u32, Interface>,
) -> Result<MainTable, DataplaneError> {
    let MainTable { mut defaults, mut networks, mut inner } = MainTable::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        for answer in
            dump(netlink, "the main routing table", &RouteNetlinkMessage::GetRoute(request))?
        {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            if route.header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            inner.extend(inner_route(&route, interfaces).filter(|_| inner.len() < INNER_ROUTES));
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            let read = MainRoute::read(&route);
            let name = |index: Option<u32>| {
                index.and_then(|index| interfaces.get(&index)).map(|i| i.name.clone())
            };
            if route.header.destination_prefix_length == 0 {
                for (gateway, index) in read.hops {
                    let Some(interface) = name(index) else { continue };
                    defaults.push(DefaultRoute {
                        v6: family == AddressFamily::Inet6,
                        gateway,
                        interface,
                        metric: read.metric,
                        mtu: read.mtu,
                    });
                }
            } else if let (Some(destination), &[(None, index)]) = (read.destination, &read.hops[..])
                && let Ok(prefix) = IpNet::new(destination, route.header.destination_prefix_length)
                && let Some(through) = index.and_then(|index| interfaces.get(&index))
                // One for each pod, perhaps.
                && (prefix.prefix_len() < prefix.max_prefix_len() || !through.is_inward())
            {
                let interface = through.name.clone();
                networks.push(ConnectedNetwork { prefix: prefix.trunc(), interface });
            }
        }
    }
    defaults.sort_by_key(|route: &DefaultRoute| (route.v6, route.metric));
    Ok(MainTable { defaults, networks, inner })
}

/// A blackhole, or a network over an address of the very interface that it leads to. Single addresses are left out:
/// there may be one for each pod.
fn inner_route(route: &RouteMessage, interfaces: &BTreeMap<u32, Interface>) -> Option<InnerRoute> {
    let read = MainRoute::read(route);
    let prefix = IpNet::new(read.destination?, route.header.destination_prefix_length).ok()?;
    if prefix.prefix_len() == prefix.max_prefix_len() {
        return None;
    }
    let to = match (route.header.kind, &read.hops[..]) {
        (RouteType::BlackHole, _) => InnerTarget::Blackhole,
        (RouteType::Unicast, [(Some(gateway), Some(index))]) => {
            let interface = interfaces.get(index)?;
            let own = interface.addresses.iter().any(|net| net.addr() == *gateway);
            let (gateway, interface) = (*gateway, interface.name.clone());
            own.then_some(InnerTarget::OwnAddress { gateway, interface })?
        }
        _ => return None,
    };
    Some(InnerRoute { prefix: prefix.trunc(), protocol: route.header.protocol.into(), to })
}

/// What we need of a route.
struct MainRoute {
    destination: Option<IpAddr>,
    metric: u32,
    mtu: Option<u32>,
    /// Gateway and interface index; several for a multipath route.
    hops: Vec<(Option<IpAddr>, Option<u32>)>,
}

impl MainRoute {
    fn read(route: &RouteMessage) -> Self {
        let mut read = Self { destination: None, metric: 0, mtu: None, hops: Vec::new() };
        let hop = hop(&route.attributes);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(address) => read.destination = ip(address),
                RouteAttribute::Priority(metric) => read.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    read.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::MultiPath(hops) => {
                    read.hops.extend(
                        hops.iter().map(|next| {
                            (self::hop(&next.attributes).0, Some(next.interface_index))
                        }),
                    );
                }
                _ => {}
            }
        }
        if read.hops.is_empty() {
            read.hops.push(hop);
        }
        read
    }
}

fn hop(attributes: &[RouteAttribute]) -> (Option<IpAddr>, Option<u32>) {
    let (mut gateway, mut index) = (None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some((*v6).into()),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    (gateway, index)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
