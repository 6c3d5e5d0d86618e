//! Routes of our table.
//!
//! Ours are those with our protocol number. IPv4 and IPv6 both replace in place what has the same
//! destination, table and metric, whatever its kind, so that no packet ever meets a gap; and both
//! would replace another program's route as readily, which is why its place is looked at first.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use meshd_core::plan::{PROTOCOL, Route, RouteKind};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use super::{link, netlink::Netlink};
use crate::dataplane::DataplaneError;

/// One table as read.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Routes that carry our protocol number.
    pub(crate) ours: BTreeSet<Route>,
    /// Places (destination and metric) where another program's route stands, with its protocol.
    pub(crate) foreign: BTreeMap<(IpNet, u32), u8>,
}

/// Reads both families of a table.
pub(crate) fn read(netlink: &Netlink, table: u32) -> Result<Table, DataplaneError> {
    let mut found = Table::default();
    let mut names = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        set_table(&mut request, table);
        let answers = netlink.dump(&RouteNetlinkMessage::GetRoute(request)).map_err(|errno| {
            DataplaneError::Kernel { action: "read", object: format!("table {table}"), errno }
        })?;
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            // Kernels without strict checking (before 4.20) answer with every table.
            if table_of(&message) != table {
                continue;
            }
            let Some(place) = place_of(&message) else { continue };
            let protocol = u8::from(message.header.protocol);
            if protocol != PROTOCOL {
                found.foreign.insert(place, protocol);
            } else if let Some(route) = parse(&message, table, place, |index| {
                names.entry(index).or_insert_with(|| link::name_of(netlink, index)).clone()
            }) {
                found.ours.insert(route);
            }
        }
    }
    Ok(found)
}

/// Where a route stands: of those with the same table, destination and metric there is one.
pub(crate) type Place = (u32, IpNet, u32);

/// The place of a route.
pub(crate) fn place(route: &Route) -> Place {
    (route.table, route.destination, route.metric)
}

/// Adds the route, or replaces ours at its place in one step. `ours`: one of ours is known to stand there; where none
/// is, the kernel says if anything does, which costs nothing more. `device`: index of the device that it leads into.
pub(crate) fn put(
    netlink: &Netlink,
    route: &Route,
    ours: bool,
    device: Option<u32>,
) -> Result<(), DataplaneError> {
    let refused = |errno| DataplaneError::Kernel { action: "add", object: describe(route), errno };
    let message = RouteNetlinkMessage::NewRoute(new(route, device));
    if !ours {
        match netlink.act(message.clone(), NLM_F_CREATE | NLM_F_EXCL) {
            Err(Errno::EEXIST) => {}
            done => return done.map_err(refused),
        }
        // Ours of an earlier process, or another program's.
        if let Some(protocol) =
            read(netlink, route.table)?.foreign.get(&(route.destination, route.metric))
        {
            return Err(DataplaneError::Foreign {
                action: "add",
                object: describe(route),
                found: format!("protocol {protocol}"),
                setting: "[network] table",
            });
        }
    }
    netlink.act(message, NLM_F_CREATE | NLM_F_REPLACE).map_err(refused)
}

/// The request that adds the route, with its flags: one of ours at its place is replaced, and where none of `ours` stands
/// nothing is.
pub(crate) fn request(
    route: &Route,
    ours: bool,
    device: Option<u32>,
) -> (RouteNetlinkMessage, u16) {
    let flags = if ours { NLM_F_CREATE | NLM_F_REPLACE } else { NLM_F_CREATE | NLM_F_EXCL };
    (RouteNetlinkMessage::NewRoute(new(route, device)), flags)
}

fn new(route: &Route, device: Option<u32>) -> RouteMessage {
    let mut message = message(route);
    message.header.kind = kind(&route.kind);
    message.header.scope = match route.kind {
        RouteKind::Device { .. } => RouteScope::Link,
        RouteKind::Throw | RouteKind::Unreachable => RouteScope::Universe,
    };
    message.attributes.extend(device.map(RouteAttribute::Oif));
    if let RouteKind::Device { source, mtu, .. } = &route.kind {
        message.attributes.extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        message
            .attributes
            .extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    }
    message
}

/// Removes the route; gone already is fine.
pub(crate) fn remove(
    netlink: &Netlink,
    route: &Route,
    device: Option<u32>,
) -> Result<(), DataplaneError> {
    let mut message = message(route);
    message.header.kind = kind(&route.kind);
    // No scope given.
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(device.map(RouteAttribute::Oif));
    match netlink.act(RouteNetlinkMessage::DelRoute(message), 0) {
        Ok(()) | Err(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(errno) => {
            Err(DataplaneError::Kernel { action: "remove", object: describe(route), errno })
        }
    }
}

fn describe(route: &Route) -> String {
    let kind = match &route.kind {
        RouteKind::Device { device, .. } => format!("through {device}"),
        RouteKind::Throw => "throw".to_owned(),
        RouteKind::Unreachable => "unreachable".to_owned(),
    };
    format!("route {} {kind} in table {} metric {}", route.destination, route.table, route.metric)
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let address = route.destination.network();
    message.header.address_family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    set_table(&mut message, route.table);
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message
}

fn kind(kind: &RouteKind) -> RouteType {
    match kind {
        RouteKind::Device { .. } => RouteType::Unicast,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Unreachable => RouteType::Unreachable,
    }
}

fn set_table(message: &mut RouteMessage, table: u32) {
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(table));
}

fn table_of(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(message.header.table.into())
}

/// Destination and metric.
fn place_of(message: &RouteMessage) -> Option<(IpNet, u32)> {
    let mut address = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = (*v6).into(),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let net = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some((net, metric))
}

/// `None` for a route with our number that we never make, e.g. through a gateway: it counts as not
/// there, and is replaced.
fn parse(
    message: &RouteMessage,
    table: u32,
    (destination, metric): (IpNet, u32),
    mut name: impl FnMut(u32) -> Option<String>,
) -> Option<Route> {
    let kind = match message.header.kind {
        RouteType::Throw => RouteKind::Throw,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Unicast => {
            let (mut device, mut source, mut mtu) = (None, None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => device = name(*index),
                    RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => {
                        source = Some(IpAddr::from(*v4));
                    }
                    RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => {
                        source = Some(IpAddr::from(*v6));
                    }
                    RouteAttribute::Metrics(metrics) => {
                        mtu = metrics.iter().find_map(|metric| match metric {
                            RouteMetric::Mtu(mtu) => Some(*mtu),
                            _ => None,
                        });
                    }
                    RouteAttribute::Gateway(_)
                    | RouteAttribute::Via(_)
                    | RouteAttribute::MultiPath(_)
                    | RouteAttribute::NhId(_)
                    | RouteAttribute::Encap(_) => return None,
                    _ => {}
                }
            }
            RouteKind::Device { device: device?, source, mtu }
        }
        _ => return None,
    };
    Some(Route { destination, table, metric, kind })
}
