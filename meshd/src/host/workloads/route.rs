//! Which route leads to a workload, and which only says so.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use meshd_core::{
    address::{host_prefix, is_routable_unicast},
    plan::PROTOCOL,
};
use netlink_packet_route::{
    link::{AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteType,
    },
};

/// A route that leads to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) workload: IpNet,
    /// Index of the interface.
    pub(super) interface: u32,
    /// Some CNIs say that their routes are the kernel's; those that a router advertisement made say it too.
    pub(super) by_kernel: bool,
}

/// Where a route leads: to a single address of the main table, reached directly over one interface that
/// `is_workloads`. Not through a gateway, over several ways, nor to an address that nobody else could use; nor by
/// what ICMP told the kernel.
pub(super) fn way(route: &RouteMessage, is_workloads: impl Fn(u32) -> bool) -> Option<Way> {
    let header = &route.header;
    let by_icmp = matches!(header.protocol, RouteProtocol::Ra | RouteProtocol::IcmpRedirect);
    if header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::from(PROTOCOL)
        || by_icmp
        || header.flags.intersects(RouteFlags::Dead | RouteFlags::Cloned)
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
    let interface = interface.filter(|index| is_workloads(*index))?;
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let workload = host_prefix(destination.filter(is_routable_unicast)?);
    let by_kernel = header.protocol == RouteProtocol::Kernel && matches!(workload, IpNet::V6(_));
    let way = Way { workload, interface, by_kernel };
    (header.destination_prefix_length == workload.prefix_len()).then_some(way)
}

/// Whether a router advertisement made a route, or could have: whoever is behind its interface chose where it leads.
/// `advertised` are those of which the kernel says so. That alone would miss one that is there for a moment, and what
/// the interface takes now says nothing of what it took before.
pub(super) fn is_doubtful(
    way: &Way,
    takes_advertisements: bool,
    advertised: &BTreeSet<Way>,
) -> bool {
    way.by_kernel && (takes_advertisements || advertised.contains(way))
}

/// Whether the kernel makes routes by the router advertisements that come in by a link (`ipv6_accept_ra` of Linux).
pub(super) fn takes_advertisements(link: &LinkMessage) -> bool {
    let specific = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(specific) => Some(specific),
        _ => None,
    });
    let v6 = specific.flatten().filter_map(|specific| match specific {
        AfSpecUnspec::Inet6(v6) => Some(v6),
        _ => None,
    });
    v6.flatten().any(|v6| match v6 {
        AfSpecInet6::DevConf(conf) => {
            let taken =
                if conf.forwarding == 0 { conf.accept_ra != 0 } else { conf.accept_ra == 2 };
            taken && conf.accept_ra_pinfo != 0
        }
        _ => false,
    })
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

    use netlink_packet_route::link::Inet6DevConf;

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
        way(route, |index| index == VETH).map(|way| way.workload.to_string())
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
        let mut learned = plain();
        learned.header.flags = RouteFlags::Cloned;
        let mut redirected = plain();
        redirected.header.protocol = RouteProtocol::IcmpRedirect;
        let mut advertised = route("fd00::5", 128);
        advertised.header.protocol = RouteProtocol::Ra;
        others.extend([
            ("ours", ours),
            ("a blackhole", blackhole),
            ("another interface", elsewhere),
            ("no interface", nowhere),
            ("a link that is down", dead),
            ("what the kernel learned of a path", learned),
            ("a redirect", redirected),
            ("a router advertisement", advertised),
        ]);
        for (what, route) in others {
            assert_eq!(found(&route), None, "{what}");
        }
    }

    #[test]
    fn what_a_router_advertisement_makes_is_no_workload() {
        let found = |address: &str, length, protocol| {
            let mut route = route(address, length);
            route.header.protocol = protocol;
            way(&route, |_| true).unwrap()
        };
        let (none, kernel) = (BTreeSet::new(), RouteProtocol::Kernel);
        let cilium = found("fd00::5", 128, kernel);
        assert!(!is_doubtful(&cilium, false, &none));
        assert!(is_doubtful(&cilium, true, &none), "it could be one");
        assert!(is_doubtful(&cilium, false, &BTreeSet::from([cilium])), "it is one");
        let elsewhere = Way { interface: VETH + 1, ..cilium };
        assert!(!is_doubtful(&cilium, false, &BTreeSet::from([elsewhere])));
        // An advertisement makes routes of one protocol, and to IPv6 alone.
        for way in [found("fd00::5", 128, RouteProtocol::Boot), found("10.240.0.5", 32, kernel)] {
            assert!(!is_doubtful(&way, true, &none), "{way:?}");
        }
    }

    #[test]
    fn whether_a_link_takes_router_advertisements_is_as_the_kernel_decides_it() {
        let takes = |forwarding, accept_ra, accept_ra_pinfo| {
            let mut conf = Inet6DevConf::default();
            (conf.forwarding, conf.accept_ra) = (forwarding, accept_ra);
            conf.accept_ra_pinfo = accept_ra_pinfo;
            let mut link = LinkMessage::default();
            let v6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::DevConf(conf)]);
            link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![v6])];
            takes_advertisements(&link)
        };
        for (forwarding, accept_ra, expected) in
            [(0, 0, false), (0, 1, true), (0, 2, true), (1, 0, false), (1, 1, false), (1, 2, true)]
        {
            assert_eq!(takes(forwarding, accept_ra, 1), expected, "{forwarding} {accept_ra}");
            assert!(!takes(forwarding, accept_ra, 0), "prefixes of advertisements are left aside");
        }
        assert!(!takes_advertisements(&LinkMessage::default()), "a link without IPv6");
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
