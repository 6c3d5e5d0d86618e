//! Devices that cannot run meshd, for which this host is the gateway: peers of its own WireGuard device.
//!
//! To the other members their prefixes are this host's: it announces the ranges in which they lie, and others hold them
//! against its certificate. Here a device is a peer with its prefixes as allowed IPs, and a route for each. What a
//! range holds beside the devices that are there now is refused, never sent in the clear. A prefix counts only while
//! this host's record has its range: what others would not accept is not programmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName, WgPublicKey};

use super::{
    blocked::{BlockReason, Blocked},
    claims::Claims,
    endpoints::retry,
    input::{Member, PlanInput, TunnelHealth},
    planner::Destinations,
    prefixes::PrefixMap,
    types::{Peer, WgPresharedKey},
};
use crate::{
    address::{is_routable_unicast, overlaps},
    path_mtu::BASE,
};

/// The devices of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Externals {
    /// Each once.
    pub devices: Vec<External>,
    /// What this host announces for them, and for those whose files cannot be read: nothing in it is local.
    pub ranges: BTreeSet<IpNet>,
    /// Devices that were removed, and what was theirs: they go whatever else may be missing.
    pub removed: BTreeMap<WgPublicKey, BTreeSet<IpNet>>,
    /// A file cannot be read: what stands in the kernel within the ranges is not taken away, for it may be its.
    pub incomplete: bool,
    /// Nor is it known which ranges it may have: nothing is taken away.
    pub unknown: bool,
}

/// A device as the planner takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// What it is called on this host.
    pub name: NodeName,
    /// Its static key.
    pub public_key: WgPublicKey,
    /// What it shares with this host.
    pub preshared_key: WgPresharedKey,
    /// What it may send and is sent.
    pub prefixes: BTreeSet<IpNet>,
    /// Where it is, if it has a fixed place. It roams all the same.
    pub endpoint: Option<SocketAddr>,
    /// Its tunnel, when the kernel holds its peer.
    pub tunnel: Option<TunnelHealth>,
}

/// What a plan does for the devices.
#[derive(Debug, Default)]
pub(super) struct Placed {
    peers: BTreeMap<WgPublicKey, Peer>,
    /// Routed into a device's tunnel.
    routed: BTreeSet<IpNet>,
    /// Announced for devices, and nobody else's.
    ranges: BTreeSet<IpNet>,
    blocked: BTreeMap<NodeName, Vec<Blocked>>,
    /// Their endpoints, towards which packets may be fragmented: nothing measures those paths.
    fragmented: BTreeSet<Ipv4Addr>,
}

impl Placed {
    /// Decides which prefixes of which devices are programmed. `keys` are those of members.
    pub(super) fn new(
        input: &PlanInput<'_>,
        members: &BTreeMap<NodeKey, &Member>,
        claims: &Claims,
        keys: &BTreeSet<WgPublicKey>,
    ) -> Self {
        let mut placed = Self::default();
        if input.externals.ranges.is_empty() && input.externals.devices.is_empty() {
            return placed;
        }
        let winners: PrefixMap<NodeKey> = {
            let mut winners = PrefixMap::default();
            claims.winners.iter().for_each(|(prefix, key)| winners.insert(*prefix, *key));
            winners
        };
        let ours = |range: &IpNet| claims.winners.get(range) == Some(&input.own.key);
        placed.ranges =
            input.externals.ranges.iter().filter(|range| ours(range)).copied().collect();
        let needed = Needed::of(input, members);
        placed.ranges.retain(|range| needed.within(range).is_none());
        let mut taken: BTreeSet<WgPublicKey> = keys.clone();
        taken.insert(input.lane.public_key);
        let mut given: BTreeSet<IpNet> = BTreeSet::new();
        for device in &input.externals.devices {
            if !taken.insert(device.public_key) {
                placed.block(device, None, BlockReason::WgKeyInUse, "its key is in use by another");
                continue;
            }
            let mut allowed_ips = BTreeSet::new();
            for prefix in &device.prefixes {
                let prefix = prefix.trunc();
                match verdict(input, &placed.ranges, &winners, &needed, &prefix) {
                    Err((reason, why)) => placed.block(device, Some(prefix), reason, &why),
                    Ok(()) if !given.insert(prefix) => {
                        let why = "another device of this host has it";
                        placed.block(device, Some(prefix), BlockReason::Contested, why);
                    }
                    Ok(()) => drop(allowed_ips.insert(prefix)),
                }
            }
            placed.routed.extend(&allowed_ips);
            placed.peers.insert(
                device.public_key,
                Peer {
                    allowed_ips,
                    endpoint: device.endpoint.filter(|_| retry(device.tunnel).is_some()),
                    keepalive: Some(keepalive(input, device)),
                    preshared_key: device.preshared_key.clone(),
                },
            );
        }
        placed.fragmented = fragmented(input, members);
        placed
    }

    /// Adds what goes where.
    pub(super) fn route(&self, destinations: &mut Destinations) {
        destinations.tunnel.extend(&self.routed);
        destinations.unreachable.extend(self.ranges.difference(&self.routed));
    }

    /// Adds where encrypted packets may be fragmented.
    pub(super) fn add_fragmented(&self, fragmented: &mut BTreeSet<Ipv4Addr>) {
        fragmented.extend(&self.fragmented);
    }

    /// No device answers probes: its routes carry what IPv6 needs, which is what its own configuration says.
    pub(super) fn add_mtus(&self, mtus: &mut BTreeMap<IpNet, u32>, device: u32) {
        if device > BASE {
            mtus.extend(self.routed.iter().map(|prefix| (*prefix, BASE)));
        }
    }

    /// Hands over peers, and what is not programmed, by device.
    pub(super) fn into_parts(
        self,
    ) -> (BTreeMap<WgPublicKey, Peer>, BTreeMap<NodeName, Vec<Blocked>>) {
        (self.peers, self.blocked)
    }

    fn block(&mut self, device: &External, prefix: Option<IpNet>, reason: BlockReason, why: &str) {
        let what = prefix.map_or_else(String::new, |prefix| format!("{prefix} of "));
        let message = format!("{what}the device {} is not reached; {why}", device.name);
        let blocked = Blocked { prefix, reason, message };
        self.blocked.entry(device.name.clone()).or_default().push(blocked);
    }
}

impl PlanInput<'_> {
    /// Own prefixes behind which something of this host is: what devices have is not.
    pub(super) fn local_prefixes(&self) -> impl Iterator<Item = &IpNet> {
        self.own.prefixes.iter().filter(|prefix| !self.externals.ranges.contains(*prefix))
    }
}

/// Whether a device's prefix can be programmed.
fn verdict(
    input: &PlanInput<'_>,
    ranges: &BTreeSet<IpNet>,
    winners: &PrefixMap<NodeKey>,
    needed: &Needed,
    prefix: &IpNet,
) -> Result<(), (BlockReason, String)> {
    if let Some(what) = needed.within(prefix) {
        let why = format!("it would cut this host off from {what}; give the device another");
        return Err((BlockReason::CoversUnderlay, why));
    }
    match winners.covering(prefix).next() {
        Some((within, key)) if *key != input.own.key => {
            let why = format!("{within} belongs to another member; give the device another prefix");
            Err((BlockReason::Contested, why))
        }
        Some((within, _)) if ranges.contains(&within) => Ok(()),
        Some((within, _)) if input.externals.ranges.contains(&within) => {
            let what = needed.within(&within).map_or_else(String::new, |what| format!(" {what}"));
            let why = format!("{within} would cut this host off from{what}; use another range");
            Err((BlockReason::CoversUnderlay, why))
        }
        Some((within, _)) => {
            let why = format!("it lies within {within}, where this host's own pods are");
            Err((BlockReason::OwnPrefix, why))
        }
        None => match crate::devices::announced(&input.own.certificate, prefix) {
            Some(range) if input.own.prefixes.iter().any(|own| overlaps(own, &range)) => {
                let why = format!(
                    "this host's own pods are within {range}, which it would have to announce for it"
                );
                Err((BlockReason::OwnPrefix, why))
            }
            _ => {
                let why = "it is not in this host's certificate".to_owned();
                Err((BlockReason::NotGranted, why))
            }
        },
    }
}

/// Seconds between keepalives from here: only a device with a fixed place can be reached by them before it has spoken.
fn keepalive(input: &PlanInput<'_>, device: &External) -> u16 {
    let needed = device.endpoint.is_some() && input.local.behind_nat == Some(true);
    if needed { input.config.keepalive } else { 0 }
}

/// Endpoints of devices, but for those at which a member is too: its path is measured.
fn fragmented(input: &PlanInput<'_>, members: &BTreeMap<NodeKey, &Member>) -> BTreeSet<Ipv4Addr> {
    let v4 = |tunnel: Option<TunnelHealth>| match tunnel?.endpoint?.ip().to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let measured: BTreeSet<Ipv4Addr> =
        members.values().filter_map(|member| v4(member.tunnel)).collect();
    let devices = input.externals.devices.iter().filter_map(|device| v4(device.tunnel));
    devices.filter(|address| !measured.contains(address)).collect()
}

/// What this host must keep reaching outside the mesh.
struct Needed(BTreeSet<IpAddr>);

impl Needed {
    fn of(input: &PlanInput<'_>, members: &BTreeMap<NodeKey, &Member>) -> Self {
        let local = input.local.addresses.iter().map(IpNet::addr);
        let reached = members.values().filter_map(|member| member.path);
        let all = local.chain(input.local.gateways.iter().copied()).chain(reached);
        Self(all.filter(is_routable_unicast).collect())
    }

    fn within(&self, prefix: &IpNet) -> Option<IpAddr> {
        super::prefixes::address_within(&self.0, prefix)
    }
}
