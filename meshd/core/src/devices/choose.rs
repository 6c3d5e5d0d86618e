//! Addresses for a device of which nobody said which.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{Around, Refused, check, rejoin};
use crate::{address::host_prefix, limits};

/// Addresses of a range that are looked at: more than there can be devices.
const TRIED: u128 = 4 * limits::DEVICES as u128;
/// Limits of a certificate that a text names.
const SHOWN: usize = 4;

/// What a device is given of which nobody said what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// An address of each family in which one was free.
    pub prefixes: BTreeSet<IpNet>,
    /// The largest range of a family in which there are some, and all are full.
    pub full: Option<IpNet>,
}

/// The lowest free address of each family out of what is granted to this host and used by nothing else. Never out of what
/// it may only ask for: others may ask for the same.
///
/// # Errors
/// When nothing of the kind is granted, or all is taken.
pub fn assign(around: &Around<'_>) -> Result<Assigned, Refused> {
    let exact = around.certificate.grants.iter().filter(|grant| grant.claim_len.is_none());
    let ranges: BTreeSet<IpNet> = exact.map(|grant| grant.prefix.trunc()).collect();
    let spare = |range: &&IpNet| {
        let ours = around.own.iter().any(|own| crate::address::overlaps(own, range));
        !ours && !around.certificate.mesh_addresses().contains(range)
    };
    let ranges: Vec<&IpNet> = ranges.iter().filter(spare).collect();
    let mut prefixes = BTreeSet::new();
    let mut full = None;
    for v6 in [false, true] {
        let of_family = || ranges.iter().filter(|range| range.addr().is_ipv6() == v6);
        let free = |range: &&&IpNet| {
            hosts(range).map(host_prefix).find(|address| check(around, address).is_ok())
        };
        match of_family().filter_map(|range| free(&range)).next() {
            Some(address) => prefixes.extend([address]),
            None => {
                // Single addresses are granted for other ends too.
                let wide = of_family().filter(|range| range.prefix_len() < range.max_prefix_len());
                full = full.or(wide.min_by_key(|range| range.prefix_len()).copied());
            }
        }
    }
    if prefixes.is_empty() {
        let why = match ranges.first() {
            None => "this host's certificate grants no prefix beside its own pods'".to_owned(),
            Some(range) => format!("no address of {range} is free"),
        };
        let limits: Vec<String> =
            around.certificate.limits.iter().take(SHOWN).map(ToString::to_string).collect();
        let say = match &limits[..] {
            [] => "say which with --prefix".to_owned(),
            limits => format!(
                "say which with --prefix: inside {}, what nobody has is asked for by itself",
                limits.join(", ")
            ),
        };
        let fix = format!(
            "{say}; or give this host a range for devices: on a signer `meshctl token create --prefix CIDR`, then {}",
            rejoin(around)
        );
        return Err(Refused { code: "no_address", why, fix });
    }
    Ok(Assigned { prefixes, full: full.copied() })
}

/// The first addresses of a prefix that a host can have: neither its lowest nor, for IPv4, its highest, unless there are no
/// others.
fn hosts(range: &IpNet) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    let (first, end) = match (range, size) {
        (_, ..=2) => (0, size),
        (IpNet::V4(_), _) => (1, size - 1),
        (IpNet::V6(_), _) => (1, size),
    };
    let base = range.network();
    (first..end.min(first + TRIED)).map(move |offset| match base {
        // Both are below the range's size.
        #[allow(clippy::cast_possible_truncation)]
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + offset as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + offset).into()),
    })
}
