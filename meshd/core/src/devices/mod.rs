//! Devices that cannot run meshd: which addresses they may have on this host, and what their configuration says.
//!
//! A device hangs on one host, its gateway, and its addresses lie in what that host's certificate grants: exactly, inside
//! a larger prefix that is granted whole, or inside the certificate's limits, where it is asked for. What is announced to the
//! mesh is the *range*: the granted prefix, not the single device. Called by the daemon; what the kernel gets is the planner's.

mod choose;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{NodeName, WgPublicKey};
use zeroize::Zeroizing;

pub use self::choose::{Assigned, assign};
use crate::{
    address::{is_forbidden_prefix, is_routable_unicast, overlaps, ula_prefix},
    plan::{LocalNetwork, WgPrivateKey},
    trust::{NodeCertificate, Record},
};

/// What a host knows of itself and others when it takes a device.
#[derive(Debug, Clone)]
pub struct Around<'a> {
    /// This host's.
    pub certificate: &'a NodeCertificate,
    /// What this host announces for itself, such as its pods.
    pub own: &'a BTreeSet<IpNet>,
    /// Its network without the mesh.
    pub local: &'a LocalNetwork,
    /// Records of the other members that have not left.
    pub members: Vec<&'a Record>,
    /// The devices that it has, and what is theirs.
    pub devices: Vec<(&'a NodeName, &'a BTreeSet<IpNet>)>,
    /// The mesh's IPv4 addresses, where they are known: every signer keeps them from being granted.
    pub pool: Option<Ipv4Net>,
    /// It is a signer, which must not leave lightly.
    pub signer: bool,
}

/// How a host comes by a certificate that grants more.
fn rejoin(around: &Around<'_>) -> &'static str {
    match around.signer {
        true => "`meshctl signer add` another host, `meshctl leave` here and join with that token",
        false => "`meshctl leave` here and join with that token",
    }
}

/// Why a device cannot have a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Stable.
    pub code: &'static str,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Refused {
    fn new(code: &'static str, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, why: why.into(), fix: fix.into() }
    }
}

/// What the host announces so that `prefix` is its own: the smallest that its certificate lets it claim, or, inside the
/// limits, `prefix` itself. `None`: it has no right to it.
#[must_use]
pub fn announced(certificate: &NodeCertificate, prefix: &IpNet) -> Option<IpNet> {
    let claimed = certificate.grants.iter().filter(|grant| grant.prefix.contains(prefix));
    let claimed = claimed.filter_map(|grant| match grant.claim_len {
        None => Some(grant.prefix.trunc()),
        Some(length) if length <= prefix.prefix_len() => {
            IpNet::new(prefix.network(), length).ok().map(|net| net.trunc())
        }
        Some(_) => None,
    });
    let allowed = || certificate.limits.iter().any(|limit| limit.contains(prefix));
    claimed.max_by_key(IpNet::prefix_len).or_else(|| allowed().then(|| prefix.trunc()))
}

/// Whether a device of this host may have `prefix`.
///
/// # Errors
/// Why not.
pub fn check(around: &Around<'_>, prefix: &IpNet) -> Result<(), Refused> {
    let narrower = "give the device another prefix";
    if prefix.addr() != prefix.network() {
        let why = format!("{prefix} has bits beyond its length");
        let fix =
            format!("write {} for all of it, or {} for one address", prefix.trunc(), prefix.addr());
        return Err(Refused::new("bad_request", why, fix));
    }
    if is_forbidden_prefix(prefix) {
        let why = format!("{prefix} holds loopback, link-local, multicast or reserved addresses");
        return Err(Refused::new("prefix_reserved", why, narrower));
    }
    mesh_addresses(around, prefix)?;
    if let Some(own) = around.own.iter().find(|own| overlaps(own, prefix)) {
        let why = format!("{prefix} overlaps {own} of this host's own pods");
        return Err(Refused::new("prefix_is_local", why, narrower));
    }
    for (name, theirs) in &around.devices {
        if let Some(held) = theirs.iter().find(|held| overlaps(held, prefix)) {
            let why = format!("{prefix} overlaps {held} of the device {name}");
            let fix = format!("give it another prefix, or `meshctl peers remove {name}` first");
            return Err(Refused::new("prefix_taken", why, fix));
        }
    }
    for record in &around.members {
        if let Some(held) = record.prefixes.iter().find(|held| overlaps(held, prefix)) {
            let why = format!("{prefix} overlaps {held} of the member {}", record.name);
            return Err(Refused::new("prefix_taken", why, narrower));
        }
    }
    local_network(around, prefix)?;
    let Some(range) = announced(around.certificate, prefix) else {
        return Err(not_granted(around, prefix));
    };
    // A range is announced whole, and whatever of it is not a device's goes nowhere.
    if let Some(own) = around.own.iter().find(|own| overlaps(own, &range)) {
        let why = format!(
            "{prefix} is granted as part of {range} only, which cannot be announced for devices: {own} of this host's own \
             pods is in it"
        );
        let fix = format!(
            "add the device on a host whose pods are elsewhere; or on a signer `meshctl token create --prefix {prefix}`, \
             with a --prefix for the pods too, then {}",
            rejoin(around)
        );
        return Err(Refused::new("range_holds_pods", why, fix));
    }
    Ok(())
}

fn not_granted(around: &Around<'_>, prefix: &IpNet) -> Refused {
    let why = format!("{prefix} is not in this host's certificate, nor inside what it may ask for");
    let fix = format!(
        "add the device on a host that is granted it; or on a signer `meshctl token create --prefix {prefix}`, then {}",
        rejoin(around)
    );
    Refused::new("prefix_not_granted", why, fix)
}

/// The addresses of the mesh itself are nobody's to give away.
fn mesh_addresses(around: &Around<'_>, prefix: &IpNet) -> Result<(), Refused> {
    let ulas = IpNet::V6(ula_prefix(&around.certificate.mesh_id));
    let pool = around.pool.map(IpNet::V4);
    let range = pool.into_iter().chain([ulas]).find(|range| overlaps(range, prefix));
    let fix =
        "give the device another prefix; it reaches members by their mesh addresses all the same";
    if let Some(range) = range {
        let why = format!("{prefix} overlaps the mesh's own addresses {range}");
        return Err(Refused::new("covers_mesh_addresses", why, fix));
    }
    let own = around.certificate.mesh_addresses();
    let theirs = around.members.iter().flat_map(|record| &record.mesh_addresses);
    if let Some(address) = own.iter().chain(theirs).find(|address| overlaps(address, prefix)) {
        let why = format!("{prefix} overlaps the mesh address {}", address.addr());
        return Err(Refused::new("covers_mesh_addresses", why, fix));
    }
    Ok(())
}

/// What this host reaches without the mesh must stay reachable, and on-link neighbours are none of ours.
fn local_network(around: &Around<'_>, prefix: &IpNet) -> Result<(), Refused> {
    let fix = "give the device a prefix that is used nowhere else";
    let usable = |address: &IpAddr| is_routable_unicast(address);
    let addresses = around.local.addresses.iter().filter(|net| usable(&net.addr()));
    if let Some(net) = addresses.clone().find(|net| overlaps(&net.trunc(), prefix)) {
        let why = format!("{prefix} overlaps the network of this host's address {net}");
        return Err(Refused::new("covers_underlay", why, fix));
    }
    let endpoints =
        around.members.iter().flat_map(|record| record.endpoints.iter().map(|e| e.ip()));
    let needed = around.local.gateways.iter().chain(&around.local.nameservers).copied();
    if let Some(address) = needed.chain(endpoints).find(|address| prefix.contains(address)) {
        let why = format!("{prefix} covers {address}, which this host reaches without the mesh");
        return Err(Refused::new("covers_endpoint", why, fix));
    }
    Ok(())
}

/// What a device sends into its tunnel: what the mesh has, with neighbours joined.
#[must_use]
pub fn allowed_ips(parts: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let parts: Vec<IpNet> = parts.into_iter().map(|net| net.trunc()).collect();
    IpNet::aggregate(&parts)
}

/// A device's key pair from 32 random bytes, clamped as WireGuard has it.
#[must_use]
pub fn key_pair(random: &[u8; 32]) -> (WgPrivateKey, WgPublicKey) {
    let mut scalar = Zeroizing::new(*random);
    scalar[0] &= 248;
    scalar[31] &= 127;
    scalar[31] |= 64;
    let private = WgPrivateKey(*scalar);
    let public = public_key(&private);
    (private, public)
}

/// The public half of a private key.
#[must_use]
pub fn public_key(private: &WgPrivateKey) -> WgPublicKey {
    let secret = x25519_dalek::StaticSecret::from(private.0);
    WgPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

/// Whether a key of a device can be one: not zero, and not of small order, with which WireGuard makes no handshake.
#[must_use]
pub fn is_usable_key(key: &WgPublicKey) -> bool {
    let secret = x25519_dalek::StaticSecret::from([0x77; 32]);
    let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(key.0));
    shared.was_contributory()
}
