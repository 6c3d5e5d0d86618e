//! Device and peers, the same for the kernel's WireGuard (`wireguard-control`) and a userspace
//! process (its control socket).
//!
//! Peers are changed one by one and only by what differs; nothing here ever replaces all peers or all
//! allowed IPs, since both lose packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use meshd_core::plan::{Backend, ObservedPeer, WgPresharedKey, WgPrivateKey};
use meshd_proto::WgPublicKey;
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use wireguard_control::{
    Backend as WgBackend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder,
};

use super::{link, netlink::Netlink};
use crate::dataplane::{DataplaneError, userspace::uapi};

/// Allowed IPs of one message: more than about 200 do not fit.
const CHUNK: usize = 128;

/// A device that is ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
    pub(crate) backend: Backend,
}

/// The WireGuard side of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) public_key: Option<WgPublicKey>,
    pub(crate) listen_port: u16,
    pub(crate) fwmark: u32,
    pub(crate) peers: BTreeMap<WgPublicKey, ObservedPeer>,
}

/// What changes at the device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Configuration<'a> {
    pub(crate) private_key: Option<&'a WgPrivateKey>,
    pub(crate) listen_port: Option<u16>,
    pub(crate) fwmark: Option<u32>,
}

/// What changes at a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerUpdate {
    pub(crate) public_key: WgPublicKey,
    pub(crate) remove: bool,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
    /// All zero takes it away.
    pub(crate) preshared_key: Option<WgPresharedKey>,
    /// At most [`CHUNK`].
    pub(crate) add_allowed_ips: Vec<IpNet>,
}

impl PeerUpdate {
    fn of(public_key: WgPublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            endpoint: None,
            keepalive: None,
            preshared_key: None,
            add_allowed_ips: Vec::new(),
        }
    }

    /// Removes the peer.
    pub(crate) fn removal(public_key: WgPublicKey) -> Self {
        Self { remove: true, ..Self::of(public_key) }
    }

    /// Adds or changes the peer: several updates when there are many allowed IPs.
    pub(crate) fn put(
        public_key: WgPublicKey,
        endpoint: Option<SocketAddr>,
        keepalive: Option<u16>,
        preshared_key: Option<&WgPresharedKey>,
        add_allowed_ips: &BTreeSet<IpNet>,
    ) -> Vec<Self> {
        let all: Vec<IpNet> = add_allowed_ips.iter().copied().collect();
        let mut updates: Vec<Self> = all
            .chunks(CHUNK)
            .map(|chunk| Self { add_allowed_ips: chunk.to_vec(), ..Self::of(public_key) })
            .collect();
        if updates.is_empty() {
            updates.push(Self::of(public_key));
        }
        updates[0].endpoint = endpoint;
        updates[0].keepalive = keepalive;
        updates[0].preshared_key = preshared_key.cloned();
        updates
    }
}

/// Reads device and peers.
pub(crate) fn read(target: Target<'_>) -> Result<State, DataplaneError> {
    match target.backend {
        Backend::Userspace => uapi::read(target.name),
        Backend::Kernel => {
            let device = Device::get(&interface(target.name)?, WgBackend::Kernel)
                .map_err(|e| refused("read", target, &e))?;
            Ok(from_kernel(device))
        }
    }
}

/// Sets key, port and mark, those that are given.
pub(crate) fn configure(
    netlink: &Netlink,
    target: Target<'_>,
    configuration: &Configuration<'_>,
) -> Result<(), DataplaneError> {
    match target.backend {
        Backend::Userspace => uapi::configure(target.name, configuration),
        Backend::Kernel => {
            let mut update = DeviceUpdate::new();
            if let Some(key) = configuration.private_key {
                update = update.set_private_key(Key(key.0));
            }
            if let Some(port) = configuration.listen_port {
                update = update.set_listen_port(port);
            }
            if let Some(mark) = configuration.fwmark {
                update = update.set_fwmark(mark);
            }
            apply(netlink, target, update)
        }
    }
}

/// Applies updates of peers in order.
pub(crate) fn update_peers(
    netlink: &Netlink,
    target: Target<'_>,
    updates: &[PeerUpdate],
) -> Result<(), DataplaneError> {
    if updates.is_empty() {
        return Ok(());
    }
    match target.backend {
        Backend::Userspace => uapi::update_peers(target.name, updates),
        Backend::Kernel => {
            let update = updates
                .iter()
                .fold(DeviceUpdate::new(), |update, peer| update.add_peer(builder(peer)));
            apply(netlink, target, update)
        }
    }
}

/// Takes allowed IPs from a peer without a gap for those that stay: what goes is moved to a dummy peer, which is then
/// removed. Replacing the set would empty it for a moment.
pub(crate) fn take_allowed_ips(
    netlink: &Netlink,
    target: Target<'_>,
    public_key: &WgPublicKey,
    gone: &BTreeSet<IpNet>,
) -> Result<(), DataplaneError> {
    let dummy = dummy_of(public_key);
    let mut updates = PeerUpdate::put(dummy, None, None, None, gone);
    updates.push(PeerUpdate::removal(dummy));
    update_peers(netlink, target, &updates)
}

/// A key that nobody has. Derived, so that one that a crash left behind is met again and removed as
/// any peer that should not be there.
fn dummy_of(public_key: &WgPublicKey) -> WgPublicKey {
    let digest = Sha256::new().chain_update(b"meshd-dummy-peer-v1\0").chain_update(public_key.0);
    WgPublicKey(digest.finalize().into())
}

/// Sends an update to a device that exists. `wireguard-control` makes the interface when it has just
/// gone: such a one is taken away again, since nobody would know it as ours.
fn apply(
    netlink: &Netlink,
    target: Target<'_>,
    update: DeviceUpdate,
) -> Result<(), DataplaneError> {
    let is_there = |link: Option<link::Link>| link.is_some_and(|l| l.index == target.index);
    let gone = || DataplaneError::NoInterface { action: "configure", name: target.name.to_owned() };
    if !is_there(link::find(netlink, target.name)?) {
        return Err(gone());
    }
    let outcome = update.apply(&interface(target.name)?, WgBackend::Kernel);
    match link::find(netlink, target.name)? {
        Some(link) if link.index != target.index && link.own_backend().is_none() => {
            link::delete(netlink, target.name, link.index)?;
            Err(gone())
        }
        _ => outcome.map_err(|e| refused("configure", target, &e)),
    }
}

fn interface(name: &str) -> Result<InterfaceName, DataplaneError> {
    name.parse().map_err(|_| DataplaneError::BadName { name: name.to_owned() })
}

fn refused(action: &'static str, target: Target<'_>, error: &io::Error) -> DataplaneError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => DataplaneError::NoInterface { action, name: target.name.to_owned() },
        Some(errno) => DataplaneError::Kernel {
            action,
            object: format!("WireGuard device {}", target.name),
            errno,
        },
        None => DataplaneError::Netlink { reason: error.to_string() },
    }
}

fn builder(update: &PeerUpdate) -> PeerConfigBuilder {
    let mut peer = PeerConfigBuilder::new(&Key(update.public_key.0));
    if update.remove {
        return peer.remove();
    }
    if let Some(endpoint) = update.endpoint {
        peer = peer.set_endpoint(endpoint);
    }
    if let Some(keepalive) = update.keepalive {
        peer = peer.set_persistent_keepalive_interval(keepalive);
    }
    if let Some(key) = &update.preshared_key {
        peer = peer.set_preshared_key(Key(key.0));
    }
    for net in &update.add_allowed_ips {
        peer = peer.add_allowed_ip(net.addr(), net.prefix_len());
    }
    peer
}

fn from_kernel(device: Device) -> State {
    let now = SystemTime::now();
    let mut peers: BTreeMap<WgPublicKey, ObservedPeer> = BTreeMap::new();
    for info in device.peers {
        // A peer with many allowed IPs comes in several pieces; only the first has the rest.
        let peer = peers.entry(WgPublicKey(info.config.public_key.0)).or_default();
        for ip in info.config.allowed_ips {
            peer.allowed_ips.extend(IpNet::new(ip.address, ip.cidr));
        }
        peer.endpoint = info.config.endpoint.or(peer.endpoint);
        peer.keepalive = info.config.persistent_keepalive_interval.unwrap_or(peer.keepalive);
        if let Some(key) = info.config.preshared_key {
            peer.preshared_key = WgPresharedKey(key.0);
        }
        peer.last_handshake =
            info.stats.last_handshake_time.map(|at| since(at, now)).or(peer.last_handshake);
        peer.rx_bytes = peer.rx_bytes.max(info.stats.rx_bytes);
        peer.tx_bytes = peer.tx_bytes.max(info.stats.tx_bytes);
    }
    State {
        public_key: device.public_key.map(|key| WgPublicKey(key.0)),
        listen_port: device.listen_port.unwrap_or(0),
        fwmark: device.fwmark.unwrap_or(0),
        peers,
    }
}

/// Zero when the wall clock was set back in between.
pub(crate) fn since(at: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_allowed_ips_go_in_pieces_and_settings_once() {
        let many: BTreeSet<IpNet> = (0..300_u16)
            .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap())
            .collect();
        let updates = PeerUpdate::put(WgPublicKey([1; 32]), None, Some(25), None, &many);
        assert_eq!(updates.len(), 3);
        assert!(updates.iter().all(|u| u.add_allowed_ips.len() <= CHUNK));
        assert_eq!(updates.iter().filter(|u| u.keepalive.is_some()).count(), 1);
        let all: BTreeSet<IpNet> = updates.into_iter().flat_map(|u| u.add_allowed_ips).collect();
        assert_eq!(all, many);
        assert_eq!(
            PeerUpdate::put(WgPublicKey([1; 32]), None, None, None, &BTreeSet::new()).len(),
            1
        );
    }
}
