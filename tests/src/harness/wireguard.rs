//! What WireGuard itself says: a witness beside the daemon's own words.

use anyhow::{Context, Result};

use super::host::Host;
use super::place::Place;

/// One peer of an interface, as `wg show … dump` prints it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WgPeer {
    /// Base64.
    pub public_key: String,
    /// `address:port`, or `(none)`.
    pub endpoint: String,
    /// Sorted.
    pub allowed_ips: Vec<String>,
    /// Unix time in seconds; 0 for never.
    pub handshake: u64,
}

impl Host {
    /// The peers that the interface `mesh0` has, sorted by key.
    pub fn wg_peers(&self) -> Result<Vec<WgPeer>> {
        let dump = self.run(&["wg", "show", "mesh0", "dump"])?;
        let mut peers = dump.lines().skip(1).map(peer).collect::<Result<Vec<_>>>()?;
        peers.sort();
        Ok(peers)
    }

    /// How many peers of `mesh0` have ever had a handshake, and how many there are.
    pub fn wg_handshakes(&self) -> Result<(usize, usize)> {
        let peers = self.wg_peers()?;
        Ok((peers.iter().filter(|p| p.handshake > 0).count(), peers.len()))
    }

    /// The routes of meshd's table, both families, sorted; without their MTUs, which are measured.
    pub fn mesh_routes(&self) -> Result<Vec<String>> {
        let script = "ip -4 route show table 51820; ip -6 route show table 51820";
        let mut routes: Vec<String> =
            self.run(&["sh", "-c", script])?.lines().map(without_mtu).collect();
        routes.sort();
        Ok(routes)
    }
}

fn without_mtu(route: &str) -> String {
    let mut words: Vec<&str> = route.split_whitespace().collect();
    if let Some(position) = words.iter().position(|word| *word == "mtu") {
        words.drain(position..(position + 2).min(words.len()));
    }
    words.join(" ")
}

fn peer(line: &str) -> Result<WgPeer> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [key, _psk, endpoint, allowed, handshake, ..] = fields.as_slice() else {
        anyhow::bail!("`wg show dump` printed {line:?}");
    };
    let mut allowed_ips: Vec<String> = allowed.split(',').map(str::to_owned).collect();
    allowed_ips.sort();
    Ok(WgPeer {
        public_key: (*key).to_owned(),
        endpoint: (*endpoint).to_owned(),
        allowed_ips,
        handshake: handshake.parse().with_context(|| format!("handshake time {handshake}"))?,
    })
}
