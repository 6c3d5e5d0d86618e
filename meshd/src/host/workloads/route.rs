//! Which route leads to a workload.

use std::net::IpAddr;

use ipnet::IpNet;
use meshd_core::{
    address::{host_prefix, is_routable_unicast},
    plan::PROTOCOL,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

/// The workload that a route leads to: a single address of the main table, reached directly over one interface that
/// `is_workloads`. Not through a gateway, over several ways, nor to an address that nobody else could use.
pub(super) fn workload(route: &RouteMessage, is_workloads: impl Fn(u32) -> bool) -> Option<IpNet> {
    let header = &route.header;
    if header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::from(PROTOCOL)
        || header.flags.contains(RouteFlags::Dead)
    {
        return None;
    }
    let mut table = u32::from(header.table);
    let (mut destination, mut interface) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                destination = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                destination = Some(IpAddr::V6(*v6));
            }
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return None;
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || !interface.is_some_and(is_workloads) {
        return None;
    }
    let workload = host_prefix(destination.filter(is_routable_unicast)?);
    (header.destination_prefix_length == workload.prefix_len()).then_some(workload)
}

/// Whether a name fits a pattern in which `*` stands for any letters, or none.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let Some(end) = parts.pop() else { return true };
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const VETH: u32 = 7;

    /// `ip route add ADDRESS/LENGTH dev veth`.
    fn route(address: &str, length: u8) -> RouteMessage {
        let address: IpAddr = address.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.header.destination_prefix_length = length;
        route.attributes = vec![
            RouteAttribute::Destination(match address {
                IpAddr::V4(v4) => RouteAddress::Inet(v4),
                IpAddr::V6(v6) => RouteAddress::Inet6(v6),
            }),
            RouteAttribute::Oif(VETH),
        ];
        route
    }

    fn found(route: &RouteMessage) -> Option<String> {
        workload(route, |index| index == VETH).map(|net| net.to_string())
    }

    #[test]
    fn a_route_to_a_single_address_is_a_workload() {
        assert_eq!(found(&route("10.240.0.5", 32)).as_deref(), Some("10.240.0.5/32"));
        assert_eq!(found(&route("fd00::5", 128)).as_deref(), Some("fd00::5/128"));
    }

    #[test]
    fn no_other_route_is_one() {
        let plain = || route("10.240.0.5", 32);
        let with = |attribute: RouteAttribute| {
            let mut route = plain();
            route.attributes.push(attribute);
            route
        };
        let mut others = vec![
            ("a network", route("10.240.0.0", 24)),
            ("link-local", route("169.254.1.1", 32)),
            ("link-local", route("fe80::1", 128)),
            ("loopback", route("127.0.0.1", 32)),
            ("multicast", route("224.0.0.1", 32)),
            ("another table", with(RouteAttribute::Table(51_820))),
            (
                "a gateway",
                with(RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)))),
            ),
            ("several ways", with(RouteAttribute::MultiPath(Vec::new()))),
        ];
        let mut ours = plain();
        ours.header.protocol = RouteProtocol::from(PROTOCOL);
        let mut blackhole = plain();
        blackhole.header.kind = RouteType::BlackHole;
        let mut elsewhere = plain();
        elsewhere.attributes[1] = RouteAttribute::Oif(VETH + 1);
        let mut nowhere = plain();
        nowhere.attributes.pop();
        let mut dead = plain();
        dead.header.flags = RouteFlags::Dead;
        others.extend([
            ("ours", ours),
            ("a blackhole", blackhole),
            ("another interface", elsewhere),
            ("no interface", nowhere),
            ("a link that is down", dead),
        ]);
        for (what, route) in others {
            assert_eq!(found(&route), None, "{what}");
        }
    }

    #[test]
    fn names_match_patterns() {
        for (pattern, name, fits) in [
            ("cali*", "cali1a2b3c", true),
            ("cali*", "cali", true),
            ("cali*", "vxlan.calico", false),
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("*pod", "mypod", true),
            ("*pod", "pods", false),
            ("v*-*x", "veth-1x", true),
            ("v*-*x", "veth1x", false),
            ("a*a", "a", false),
            ("*", "anything", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} and {name}");
        }
    }
}
