//! Addresses of our device.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};
use nix::errno::Errno;

use super::netlink::Netlink;
use crate::dataplane::DataplaneError;

/// The addresses of a link, link-local ones left out: the kernel gives TUN devices one by itself.
pub(crate) fn list(netlink: &Netlink, index: u32) -> Result<BTreeSet<IpNet>, DataplaneError> {
    let mut request = AddressMessage::default();
    request.header.index = index;
    let answers = match netlink.dump(&RouteNetlinkMessage::GetAddress(request)) {
        Err(Errno::ENODEV) => Vec::new(),
        answers => answers.map_err(|errno| DataplaneError::Kernel {
            action: "read",
            object: "addresses".to_owned(),
            errno,
        })?,
    };
    let mut addresses = BTreeSet::new();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.index != index {
            continue;
        }
        let mut address = None;
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(local) => address = Some(local),
                AddressAttribute::Address(ip) => address = address.or(Some(ip)),
                _ => {}
            }
        }
        let Some(address) = address.filter(|a| !is_link_local(a)) else { continue };
        if let Ok(net) = IpNet::new(address, message.header.prefix_len) {
            addresses.insert(net);
        }
    }
    Ok(addresses)
}

/// Adds an address, IPv6 ready at once; already there is fine.
pub(crate) fn add(
    netlink: &Netlink,
    name: &str,
    index: u32,
    address: &IpNet,
) -> Result<(), DataplaneError> {
    let mut message = message(index, address);
    if address.addr().is_ipv6() {
        // There is nobody to ask on a WireGuard link, and a tentative address cannot be a source.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    match netlink.act(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(refused("add", name, address, errno)),
    }
}

/// Removes an address; gone already is fine.
pub(crate) fn remove(
    netlink: &Netlink,
    name: &str,
    index: u32,
    address: &IpNet,
) -> Result<(), DataplaneError> {
    match netlink.act(RouteNetlinkMessage::DelAddress(message(index, address)), 0) {
        Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(refused("remove", name, address, errno)),
    }
}

fn message(index: u32, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family =
        if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

fn refused(action: &'static str, name: &str, address: &IpNet, errno: Errno) -> DataplaneError {
    DataplaneError::Kernel { action, object: format!("address {address} of {name}"), errno }
}
