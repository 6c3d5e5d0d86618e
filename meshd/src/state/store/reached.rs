//! Where each member was reached, beside the records: what was proved must count before anybody is asked, or a prefix
//! over another's address would be routed by then. Lost entries come back as members are reached.

use std::{collections::BTreeSet, net::IpAddr};

use meshd_core::address::{address_from_wire, address_to_wire};
use meshd_proto::NodeKey;

use super::{Failure, Handle, Store, guard, make_entry, read_entry};

pub(super) const TREE: &str = "reached";

impl Store {
    /// Puts where a member was reached; it goes with the member's record.
    pub fn put_reached(&self, key: &NodeKey, addresses: &[IpAddr]) -> Result<(), String> {
        let Ok(open) = &self.open else { return Ok(()) };
        let entry = make_entry(key, &encode(addresses));
        guard(|| open.reached.insert(key.as_bytes(), entry)).map(drop).map_err(|f| f.why)
    }
}

/// Each with its length before it.
fn encode(addresses: &[IpAddr]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in addresses.iter().map(address_to_wire) {
        bytes.extend(u8::try_from(address.len()));
        bytes.extend(address);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (address, rest) = rest.split_at_checked(usize::from(*length))?;
        addresses.push(address_from_wire(address).ok()?);
        bytes = rest;
    }
    Some(addresses)
}

/// Those of `members`. Others, and what is damaged, are removed.
pub(super) fn read(
    open: &Handle,
    members: &BTreeSet<NodeKey>,
) -> Result<Vec<(NodeKey, Vec<IpAddr>)>, Failure> {
    let (mut found, mut useless) = (Vec::new(), Vec::new());
    let mut entries = open.reached.iter();
    while let Some((key, entry)) = guard(|| entries.next().transpose())? {
        let read = read_entry(&key, &entry).ok().filter(|(member, _)| members.contains(member));
        match read.and_then(|(member, bytes)| Some((member, decode(&bytes)?))) {
            Some(read) => found.push(read),
            None => useless.push(key),
        }
    }
    for key in useless {
        guard(|| open.reached.remove(key))?;
    }
    Ok(found)
}
