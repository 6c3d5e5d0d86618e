//! What is known of each member: one verified record per identity.
//!
//! Responsible for looking members up by key, hash and name, and for the digests that anti-entropy
//! compares. Not for believing anything: [`node`](crate::node) puts in only what the trust module
//! verified and admitted. Read by planning and by the control API.

mod digest;
mod refused;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use meshd_proto::{NodeHash, NodeKey, NodeName};

pub use self::digest::BUCKETS;
pub(crate) use self::{digest::bucket_of, refused::Refused};
use crate::trust::Record;

/// One verified record per identity, this node's own among them, the signed leaves too.
#[derive(Debug, Default)]
pub struct Directory {
    members: BTreeMap<NodeKey, Arc<Record>>,
    by_hash: BTreeMap<NodeHash, NodeKey>,
    by_name: BTreeMap<NodeName, BTreeSet<NodeKey>>,
    /// How many members have each address inside the mesh.
    by_address: BTreeMap<IpAddr, usize>,
    digest: digest::Digest,
}

impl Directory {
    /// The record of one identity.
    #[must_use]
    pub fn get(&self, key: &NodeKey) -> Option<&Arc<Record>> {
        self.members.get(key)
    }

    /// The record of the identity that SWIM packets call `hash`.
    #[must_use]
    pub fn by_hash(&self, hash: &NodeHash) -> Option<&Arc<Record>> {
        self.members.get(self.by_hash.get(hash)?)
    }

    /// Everybody who is meant by `NAME` or `NAME~ab12`: empty if nobody, several if the name alone does
    /// not tell. Those who left are named only where nobody present is.
    #[must_use]
    pub fn by_name(&self, text: &str) -> Vec<&Arc<Record>> {
        let (name, short) = text.split_once('~').map_or((text, ""), |(name, short)| (name, short));
        let Ok(name) = name.parse::<NodeName>() else { return Vec::new() };
        let holders = self.by_name.get(&name).into_iter().flatten();
        let all: Vec<_> = holders
            .filter(|key| key.to_string().starts_with(short))
            .filter_map(|key| self.members.get(key))
            .collect();
        if all.iter().all(|record| record.left) {
            return all;
        }
        all.into_iter().filter(|record| !record.left).collect()
    }

    /// `NAME`, or `NAME~ab12` where another identity holds the same name.
    #[must_use]
    pub fn display_name(&self, key: &NodeKey) -> String {
        let Some(record) = self.members.get(key) else { return format!("?~{}", key.short()) };
        let contested = self.by_name.get(&record.name).into_iter().flatten().any(|other| {
            other != key && (record.left || self.members.get(other).is_some_and(|r| !r.left))
        });
        if contested { format!("{}~{}", record.name, key.short()) } else { record.name.to_string() }
    }

    /// Another than `own` whose certificate grants what overlaps `prefix`, as its very own and not out of a pool.
    #[must_use]
    pub fn granted_to(&self, prefix: &IpNet, own: &NodeKey) -> Option<&Arc<Record>> {
        let has_it = |record: &&Arc<Record>| {
            record.key != *own && !record.left && record.certificate.grants_some_of(prefix)
        };
        self.members.values().find(has_it)
    }

    /// True for an address inside the mesh of some member.
    pub(crate) fn is_mesh_address(&self, address: &IpAddr) -> bool {
        self.by_address.contains_key(address)
    }

    /// All records, sorted by key.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Record>> {
        self.members.values()
    }

    /// How many identities are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True when nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// SHA-256 over the 256 bucket hashes: equal on two nodes that hold the same records.
    #[must_use]
    pub fn root_hash(&self) -> [u8; 32] {
        self.digest.root()
    }

    /// The bucket hashes, concatenated.
    pub(crate) fn bucket_hashes(&self) -> Vec<u8> {
        self.digest.hashes().concat()
    }

    /// The records of one bucket, sorted by key.
    pub(crate) fn bucket(&self, bucket: u8) -> impl Iterator<Item = &Arc<Record>> {
        self.members.range(digest::range_of(bucket)).map(|(_, record)| record)
    }

    /// Puts a verified and admitted record in the place of whatever was held for its identity.
    pub(crate) fn insert(&mut self, record: Arc<Record>) -> Option<Arc<Record>> {
        let key = record.key;
        let name = record.name.clone();
        for address in &record.mesh_addresses {
            *self.by_address.entry(address.addr()).or_default() += 1;
        }
        let old = self.members.insert(key, record);
        if let Some(old) = &old {
            self.drop_addresses(old);
        }
        if let Some(old) = old.as_ref().filter(|old| old.name != name) {
            self.drop_name(&old.name.clone(), &key);
        }
        self.by_hash.insert(key.hash(), key);
        self.by_name.entry(name).or_default().insert(key);
        self.rehash(&key);
        old
    }

    /// Forgets an identity.
    pub(crate) fn remove(&mut self, key: &NodeKey) -> Option<Arc<Record>> {
        let old = self.members.remove(key)?;
        self.by_hash.remove(&key.hash());
        self.drop_name(&old.name, key);
        self.drop_addresses(&old);
        self.rehash(key);
        Some(old)
    }

    fn drop_addresses(&mut self, record: &Record) {
        for address in &record.mesh_addresses {
            if let Entry::Occupied(mut entry) = self.by_address.entry(address.addr()) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    fn drop_name(&mut self, name: &NodeName, key: &NodeKey) {
        if let Some(holders) = self.by_name.get_mut(name) {
            holders.remove(key);
            if holders.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    fn rehash(&mut self, key: &NodeKey) {
        let bucket = bucket_of(key);
        let records = self.members.range(digest::range_of(bucket)).map(|(_, record)| &**record);
        self.digest.set(bucket, digest::hash(records));
    }
}

#[cfg(test)]
mod tests;
