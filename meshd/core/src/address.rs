//! Addresses inside the mesh, and the checks that an address or prefix is one that may be used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use meshd_proto::{MeshId, NodeKey, wire};
use sha2::{Digest, Sha256};

use crate::refusal::{Code, Refusal};

/// The mesh's pool of IPv4 addresses unless `init` says otherwise: a part of the shared address
/// space (RFC 6598) that carriers use at their own edge only.
pub const DEFAULT_IPV4_POOL: &str = "100.112.0.0/16";

/// The /40 of all ULAs of a mesh: `fd` and 32 bits of the mesh id's hash, RFC 4193 style, then 88
/// bits for the nodes of which the top 8 are zero-free hash bits too.
///
/// The /48 that RFC 4193 asks for is `fd` plus 40 bits; the remaining 80 bits name the node.
#[must_use]
pub fn ula_prefix(mesh: &MeshId) -> Ipv6Net {
    let digest = Sha256::new().chain_update(b"meshd-ula-v1\0").chain_update(mesh.0).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}

/// A node's ULA: the mesh's /48 and 80 bits of its identity key's hash. Anyone can check it.
#[must_use]
pub fn ula(mesh: &MeshId, key: &NodeKey) -> Ipv6Addr {
    let mut octets = ula_prefix(mesh).network().octets();
    let digest = Sha256::new().chain_update(b"meshd-ula-node-v1\0").chain_update(key.0).finalize();
    octets[6..].copy_from_slice(&digest[..10]);
    Ipv6Addr::from(octets)
}

/// Reads a prefix from the wire: 4 or 16 bytes, a length that fits, no bits beyond it.
pub fn prefix_from_wire(prefix: &wire::IpPrefix) -> Result<IpNet, Refusal> {
    let malformed = |why: &str| Refusal::new(Code::Malformed, format!("prefix: {why}"));
    let address = address_from_wire(&prefix.address)?;
    let length = u8::try_from(prefix.length).map_err(|_| malformed("length above 128"))?;
    let net = IpNet::new(address, length).map_err(|_| malformed("length does not fit"))?;
    if net.addr() != net.network() {
        return Err(malformed("bits set beyond its length"));
    }
    Ok(net)
}

/// Writes a prefix for the wire, with bits beyond its length cleared.
#[must_use]
pub fn prefix_to_wire(prefix: &IpNet) -> wire::IpPrefix {
    wire::IpPrefix {
        address: address_to_wire(&prefix.network()).into(),
        length: u32::from(prefix.prefix_len()),
    }
}

/// Reads an address from the wire: 4 or 16 bytes; IPv4 inside IPv6 is refused, since it would be two
/// spellings of one thing.
pub fn address_from_wire(bytes: &[u8]) -> Result<IpAddr, Refusal> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(v4)));
    }
    match <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from) {
        Ok(v6) if v6.to_ipv4_mapped().is_none() => Ok(IpAddr::V6(v6)),
        Ok(_) => Err(Refusal::new(Code::Malformed, "address: IPv4 mapped into IPv6")),
        Err(_) => Err(Refusal::new(Code::Malformed, "address: not 4 or 16 bytes")),
    }
}

/// Writes an address for the wire.
#[must_use]
pub fn address_to_wire(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The prefix that holds one address.
#[must_use]
pub fn host_prefix(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, 32)),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, 128)),
    }
}

/// True for a prefix of one address.
#[must_use]
pub fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// True when the two share an address.
#[must_use]
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// True for an address that a host on a network can have: not unspecified, loopback, multicast,
/// broadcast, or link-local (which means nothing without a link).
#[must_use]
pub fn is_routable_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local()
                || a.octets()[0] == 0
                || a.octets()[0] >= 240)
        }
        IpAddr::V6(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some())
        }
    }
}

/// True when no node may ever claim `prefix`: it covers everything, or holds loopback, link-local,
/// multicast or reserved addresses.
#[must_use]
pub fn is_forbidden_prefix(prefix: &IpNet) -> bool {
    const FORBIDDEN: [&str; 9] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/127",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    prefix.prefix_len() == 0
        || FORBIDDEN.iter().filter_map(|f| f.parse().ok()).any(|f: IpNet| overlaps(prefix, &f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ula_is_inside_its_mesh_and_differs_by_key() {
        let mesh = MeshId([1; 16]);
        let (a, b) = (ula(&mesh, &NodeKey([1; 32])), ula(&mesh, &NodeKey([2; 32])));
        assert!(ula_prefix(&mesh).contains(&a) && ula_prefix(&mesh).contains(&b));
        assert_ne!(a, b);
        assert_eq!(a.octets()[0], 0xfd);
    }

    #[test]
    fn prefixes_read_back_and_bad_ones_are_refused() {
        for text in ["10.1.0.0/16", "fd00::/64", "192.0.2.1/32"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(prefix_from_wire(&prefix_to_wire(&net)), Ok(net));
        }
        for (address, length) in
            [(&[10, 0, 0, 1][..], 8), (&[10, 0, 0, 0], 33), (&[1, 2, 3], 8), (&[0; 16], 300)]
        {
            let wire = wire::IpPrefix { address: address.to_vec().into(), length };
            assert!(prefix_from_wire(&wire).is_err(), "{wire:?}");
        }
    }

    #[test]
    fn what_would_cut_a_host_off_is_forbidden() {
        for bad in ["0.0.0.0/0", "::/0", "127.0.0.0/16", "0.0.0.0/1", "fe80::/64", "224.0.0.0/24"] {
            assert!(is_forbidden_prefix(&bad.parse().unwrap()), "{bad}");
        }
        for good in ["10.0.0.0/8", "100.112.0.0/16", "fd00::/8", "2001:db8::/32"] {
            assert!(!is_forbidden_prefix(&good.parse().unwrap()), "{good}");
        }
    }
}
