//! What the metrics say, from the state of one moment: the cost of a scrape is here, and grows with the peers.

use meshd_proto::control::CountersReply;

use super::{Daemon, running::Running, status};
use crate::metrics::{CertificateEnd, Snapshot};

impl Daemon {
    /// Everything counted since start.
    pub(super) fn all_counters(&self) -> CountersReply {
        let node = self.running.as_ref().map(|running| running.node.counters());
        self.counters.reply(node, &self.events.counts())
    }

    /// Everything that the metrics say of now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let running = self.running.as_ref();
        Snapshot {
            status: status::status(self),
            peers: running.map(|r| status::figures(r, &self.transport)).unwrap_or_default(),
            counters: self.all_counters(),
            certificates: running.map(ends).unwrap_or_default(),
            records: running.map_or(0, |running| running.node.directory().len() as u64),
            connections: self.transport.connected_peers() as u64,
        }
    }
}

fn ends(running: &Running) -> Vec<CertificateEnd> {
    let own = &running.identity.certificate;
    let own = CertificateEnd { kind: "node", name: own.name.to_string(), at: own.not_after };
    let above = running.node.anchors().ends().into_iter().map(|(signer, at)| CertificateEnd {
        kind: if signer.is_some() { "signer" } else { "root" },
        name: signer.map(|name| name.to_string()).unwrap_or_default(),
        at,
    });
    std::iter::once(own).chain(above).collect()
}
