//! Addresses that a member announces, and that another names as its own endpoints. A claim takes nothing off anybody
//! (ADR 7), so the one that names it is asked there: who answers is there, and has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::Node;
use crate::{address::is_single, now::Now, reached::Reached};

/// Asked at one time.
const MOST: usize = 16;

impl Node {
    /// Whom to try where, since somebody else has it by `routed`. Each rests for longer and longer, whatever comes of it.
    pub fn doubts<'a>(
        &mut self,
        routed: impl IntoIterator<Item = (&'a NodeKey, &'a BTreeSet<IpNet>)>,
        reached: &Reached,
        now: Now,
    ) -> Vec<SocketAddr> {
        let routed =
            routed.into_iter().flat_map(|(key, all)| all.iter().map(move |net| (key, net)));
        let single = routed
            .filter(|(_, net)| is_single(net) && !self.directory.is_mesh_address(&net.addr()));
        let holders: BTreeMap<IpAddr, NodeKey> =
            single.map(|(key, net)| (net.addr(), *key)).collect();
        if holders.is_empty() {
            return Vec::new();
        }
        let (own, holders) = (self.own.key(), &holders);
        let doubtful = self.directory.iter().filter(|record| !record.left && record.key != own);
        let doubtful = doubtful.flat_map(|record| {
            let proved = reached.addresses(&record.key);
            record.endpoints.iter().filter(move |endpoint| {
                let ip = endpoint.ip();
                holders.get(&ip).is_some_and(|key| *key != record.key) && !proved.contains(&ip)
            })
        });
        let free = doubtful.filter(|addr| self.paths.is_free(addr, &self.directory, now.mono));
        let chosen: BTreeSet<SocketAddr> = free.copied().take(MOST).collect();
        for addr in &chosen {
            self.paths.failed(*addr, &mut self.rng, now.mono);
        }
        chosen.into_iter().collect()
    }

    /// Whether a connection with `address` proves that its member is there, on the underlay. Our QUIC packets are marked
    /// and go past the tunnel, so that one to a single address that another announces proves it: both cannot have it. What
    /// lies in a wider prefix of another may have been let out by its router.
    #[must_use]
    pub fn proves_path(&self, address: &IpAddr) -> bool {
        !self.paths.is_inside(address, &self.directory)
    }
}
