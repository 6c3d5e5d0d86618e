//! Where members are, as connections prove it, and asking those whose addresses others announce.

use std::{net::IpAddr, time::Instant};

use meshd_core::address::host_prefix;
use meshd_proto::NodeKey;

use super::{Daemon, clock, running::Running};

impl Running {
    /// Remembers where `peer` was reached, over a restart too; with `path` by its first connection.
    pub(super) fn note_reached(&mut self, peer: NodeKey, at: IpAddr, path: bool) {
        let proved = self.node.proves_path(&at);
        let new = proved
            && if path { self.reached.connected(peer, at) } else { self.reached.also(peer, at) };
        if !new {
            return;
        }
        self.store_dirty = true;
        if let Err(why) = self.store.put_reached(&peer, self.reached.addresses(&peer)) {
            self.store_failed(&why);
        }
        // Somebody else has it so far.
        let routes = &self.plan.desired.routes;
        if routes.iter().any(|route| route.destination == host_prefix(at)) {
            self.pace.with_others(Instant::now(), 1);
        }
    }
}

impl Daemon {
    /// Tries the addresses of members that others have by the plan.
    pub(super) fn settle_doubts(&mut self) {
        let Some(running) = &mut self.running else { return };
        let routed = running.plan.routed.iter().chain(&running.plan.nodes.routed);
        for addr in running.node.doubts(routed, &running.reached, clock::now()) {
            self.transport.contact(addr);
        }
    }
}
