//! Sets of prefixes that can be asked for what covers an address, in a handful of look-ups.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::address::host_prefix;

/// Prefixes with a value each. A look-up costs one step for each length in use, whatever the number
/// of prefixes.
#[derive(Debug, Clone)]
pub(super) struct PrefixMap<T> {
    entries: BTreeMap<IpNet, T>,
    /// Lengths in use, IPv4 first.
    lengths: BTreeSet<(bool, u8)>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), lengths: BTreeSet::new() }
    }
}

impl<T> PrefixMap<T> {
    /// Sets the value of `prefix`, bits beyond its length ignored.
    pub(super) fn insert(&mut self, prefix: IpNet, value: T) {
        let prefix = prefix.trunc();
        self.lengths.insert((is_v6(&prefix), prefix.prefix_len()));
        self.entries.insert(prefix, value);
    }

    /// All that hold the whole of `prefix`, itself included, the longest first.
    pub(super) fn covering(&self, prefix: &IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        let address = prefix.addr();
        let family = is_v6(prefix);
        self.lengths
            .range((family, 0)..=(family, prefix.prefix_len()))
            .rev()
            .filter_map(move |(_, length)| IpNet::new(address, *length).ok())
            .filter_map(|candidate| self.entries.get_key_value(&candidate.trunc()))
            .map(|(prefix, value)| (*prefix, value))
    }

    /// True when one of them holds `address`.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.covering(&host_prefix(address)).next().is_some()
    }
}

impl FromIterator<IpNet> for PrefixMap<()> {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let entries: BTreeMap<IpNet, ()> =
            prefixes.into_iter().map(|prefix| (prefix.trunc(), ())).collect();
        let lengths = entries.keys().map(|prefix| (is_v6(prefix), prefix.prefix_len())).collect();
        Self { entries, lengths }
    }
}

/// An address of `addresses` that lies in `prefix`.
pub(super) fn address_within(addresses: &BTreeSet<IpAddr>, prefix: &IpNet) -> Option<IpAddr> {
    addresses.range(prefix.network()..=prefix.broadcast()).next().copied()
}

/// True for IPv6.
pub(super) fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_prefixes_come_longest_first_and_within_one_family() {
        let set: PrefixMap<()> = ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "::/0", "fd00::/8"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let covering = |text: &str| -> Vec<String> {
            set.covering(&text.parse().unwrap()).map(|(prefix, ())| prefix.to_string()).collect()
        };
        assert_eq!(covering("10.1.0.0/16"), ["10.1.0.0/16", "10.0.0.0/8"]);
        assert_eq!(covering("10.1.1.7/32"), ["10.1.1.0/24", "10.1.0.0/16", "10.0.0.0/8"]);
        assert_eq!(covering("fd00::1/128"), ["fd00::/8", "::/0"]);
        assert!(covering("192.0.2.0/24").is_empty());
        assert!(set.holds("10.9.9.9".parse().unwrap()));
        assert!(!set.holds("11.0.0.1".parse().unwrap()));
    }

    #[test]
    fn addresses_are_found_within_a_prefix() {
        let addresses = ["10.0.0.5", "192.0.2.1", "fd00::1"].map(|a| a.parse().unwrap()).into();
        let within = |text: &str| address_within(&addresses, &text.parse().unwrap());
        assert_eq!(within("10.0.0.0/8"), "10.0.0.5".parse().ok());
        assert_eq!(within("10.1.0.0/16"), None);
        assert_eq!(within("fd00::/64"), "fd00::1".parse().ok());
        assert_eq!(within("0.0.0.0/0").map(|a| a.is_ipv4()), Some(true));
    }
}
