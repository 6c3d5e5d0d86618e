//! What `meshctl … -o json` prints, as its readers see it, and the waits that are built on it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::host::Host;
use super::place::Place;
use super::wait::wait_for;

/// `meshctl status -o json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `waiting`, `joining`, `running`, `degraded` or `stopping`.
    pub state: String,
    /// The mesh, once there is one.
    pub mesh: Option<String>,
    /// This host's name in it.
    pub node: Option<String>,
    /// This host's identity.
    pub id: Option<String>,
    /// `kernel` or `userspace`.
    pub backend: Option<String>,
    /// The WireGuard key.
    pub public_key: Option<String>,
    /// Addresses inside the mesh.
    #[serde(default)]
    pub mesh_addresses: Vec<String>,
    /// Prefixes that this host announces.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// How many peers.
    pub peers: Option<PeerTotals>,
    /// What is wrong, if anything.
    #[serde(default)]
    pub health: Vec<Health>,
    /// The gateway by which other zones reach this host.
    #[serde(default)]
    pub via: Option<String>,
    /// A hash over all records that are held.
    pub directory_hash: Option<String>,
    /// Whether records have been compared with anybody since the start.
    #[serde(default)]
    pub synced: bool,
    /// Of the configuration that is on trial.
    pub trial_seconds_left: Option<u32>,
    /// Its zone.
    pub zone: Option<String>,
}

/// Peers by state of the tunnel.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct PeerTotals {
    /// All.
    pub total: u32,
    /// With a recent handshake.
    pub up: u32,
    /// With an old handshake.
    pub stale: u32,
    /// Without.
    pub down: u32,
}

/// A line about the host's health.
#[derive(Debug, Clone, Deserialize)]
pub struct Health {
    /// Stable code.
    pub code: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// For people.
    pub message: String,
}

/// An element of `meshctl peers list -o json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its identity; empty for a device.
    #[serde(deserialize_with = "or_empty")]
    pub id: String,
    /// Its zone.
    pub zone: Option<String>,
    /// `alive`, `suspect`, `down` or `left`; empty for a device.
    #[serde(deserialize_with = "or_empty")]
    pub gossip: String,
    /// `up`, `stale`, `never` or `blocked`.
    pub tunnel: String,
    /// `direct`, `relay` or `none`.
    pub path: String,
    /// The gateway that carries to it.
    #[serde(default)]
    pub via: Option<String>,
    /// Where its packets go.
    pub endpoint: Option<String>,
    /// Seconds since the last handshake.
    pub last_handshake_seconds: Option<u64>,
    /// The WireGuard key.
    pub public_key: Option<String>,
    /// Addresses inside the mesh.
    #[serde(default)]
    pub mesh_addresses: Vec<String>,
    /// Prefixes behind it.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Why something of it is not programmed.
    pub reason: Option<String>,
}

fn or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl Host {
    /// This host's state as `meshctl` tells it.
    pub fn status(&self) -> Result<Status> {
        let out = self.meshctl(&["status", "-o", "json"])?.ok()?.stdout;
        serde_json::from_str(&out).with_context(|| format!("status of {}: {out}", self.name()))
    }

    /// The peers as `meshctl` tells them.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let out = self.meshctl(&["peers", "list", "-o", "json"])?.ok()?.stdout;
        serde_json::from_str(&out).with_context(|| format!("peers of {}: {out}", self.name()))
    }

    /// One peer by name.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let found = self.peers()?.into_iter().find(|p| p.name == name);
        found.with_context(|| format!("{} knows no peer {name}", self.name()))
    }

    /// The IPv4 and the IPv6 address inside the mesh.
    pub fn mesh_addresses(&self) -> Result<(String, String)> {
        let all = self.status()?.mesh_addresses;
        let plain = |a: &String| a.split('/').next().unwrap_or_default().to_owned();
        let find = |six: bool| all.iter().find(|a| a.contains(':') == six).map(plain);
        let (v4, v6) = (find(false), find(true));
        Ok((v4.context("no IPv4 mesh address")?, v6.context("no IPv6 mesh address")?))
    }

    /// Waits until this host runs and `count` tunnels of it are up.
    pub fn wait_up(&self, count: u32, limit: Duration) -> Result<()> {
        wait_for(&format!("{}: {count} tunnels up", self.name()), limit, || {
            self.check_daemon()?;
            let status = self.status()?;
            let totals = status.peers.context("no count of peers")?;
            ensure!(
                status.state == "running",
                "the state is {}: {:?}",
                status.state,
                status.health
            );
            ensure!(totals.up == count, "{totals:?}");
            Ok(())
        })
    }

    /// Waits until the daemon is in `state`.
    pub fn wait_state(&self, state: &str, limit: Duration) -> Result<Status> {
        wait_for(&format!("{} is {state}", self.name()), limit, || {
            self.check_daemon()?;
            let status = self.status()?;
            ensure!(status.state == state, "the state is {}: {:?}", status.state, status.health);
            Ok(status)
        })
    }
}
