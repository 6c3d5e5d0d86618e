//! Where members were reached, as connections outside the mesh have proved it. Outlives connections and, by the daemon's
//! store, the daemon: what was proved counts before anybody is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use meshd_proto::NodeKey;

use crate::{limits::DIRECTORY_MEMBERS, trust::Record};

/// Addresses of one member that are remembered.
const MOST: usize = 8;

/// Addresses at which members were reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached(BTreeMap<NodeKey, Vec<IpAddr>>);

impl Reached {
    /// `key` is connected by `address`: that is its path now. True when it was not before.
    pub fn connected(&mut self, key: NodeKey, address: IpAddr) -> bool {
        self.put(key, address, 0)
    }

    /// `key` is reached at `address`, too. True when that is new.
    pub fn also(&mut self, key: NodeKey, address: IpAddr) -> bool {
        let known = self.addresses(&key);
        let (new, place) = (!known.contains(&address), known.len().min(1));
        new && self.put(key, address, place)
    }

    fn put(&mut self, key: NodeKey, address: IpAddr, place: usize) -> bool {
        if self.0.len() >= DIRECTORY_MEMBERS && !self.0.contains_key(&key) {
            return false;
        }
        let all = self.0.entry(key).or_default();
        if all.get(place) == Some(&address) {
            return false;
        }
        all.retain(|known| *known != address);
        all.insert(place, address);
        all.truncate(MOST);
        true
    }

    /// Of a member that is known no more.
    pub fn forget(&mut self, key: &NodeKey) {
        self.0.remove(key);
    }

    /// All of `key`, its path first.
    #[must_use]
    pub fn addresses(&self, key: &NodeKey) -> &[IpAddr] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// By which `key` was connected last.
    #[must_use]
    pub fn path(&self, key: &NodeKey) -> Option<IpAddr> {
        self.addresses(key).first().copied()
    }

    /// The others, as far as its record says that they still are its own.
    #[must_use]
    pub fn others(&self, record: &Record) -> BTreeSet<IpAddr> {
        let named = |address: &&IpAddr| record.endpoints.iter().any(|e| e.ip() == **address);
        self.addresses(&record.key).iter().skip(1).filter(named).copied().collect()
    }

    /// Everything, for the store.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeKey, &[IpAddr])> {
        self.0.iter().map(|(key, all)| (key, all.as_slice()))
    }
}

impl FromIterator<(NodeKey, Vec<IpAddr>)> for Reached {
    fn from_iter<I: IntoIterator<Item = (NodeKey, Vec<IpAddr>)>>(all: I) -> Self {
        let mut reached = Self::default();
        for (key, addresses) in all {
            for address in addresses.into_iter().take(MOST).rev() {
                reached.connected(key, address);
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture;

    fn ip(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn the_last_path_comes_first_and_the_rest_is_bounded() {
        let (mut reached, key) = (Reached::default(), NodeKey([1; 32]));
        assert!(reached.also(key, ip(1)) && !reached.also(key, ip(1)));
        assert_eq!(reached.path(&key), Some(ip(1)), "there is no other");
        assert!(reached.also(key, ip(2)) && reached.also(key, ip(3)));
        assert_eq!(reached.addresses(&key), [ip(1), ip(3), ip(2)]);
        assert!(reached.connected(key, ip(2)) && !reached.connected(key, ip(2)));
        assert_eq!(reached.addresses(&key), [ip(2), ip(1), ip(3)]);
        let again: Reached = reached.iter().map(|(key, all)| (*key, all.to_vec())).collect();
        assert_eq!(again, reached);
        for n in 10..30 {
            reached.also(key, ip(n));
        }
        assert_eq!((reached.addresses(&key).len(), reached.path(&key)), (MOST, Some(ip(2))));
        reached.forget(&key);
        assert_eq!(reached, Reached::default());
    }

    #[test]
    fn an_address_that_its_member_names_no_more_is_not_its_own() {
        let mut record = (*fixture::record(1, "a", 1)).clone();
        record.endpoints = [1, 2].map(|n| (ip(n), 51800).into()).into();
        let mut reached = Reached::default();
        for n in [3, 2, 1] {
            reached.connected(record.key, ip(n));
        }
        assert_eq!(reached.others(&record), [ip(2)].into());
    }
}
