//! What a joiner gets: which prefixes, which name, which address.
//!
//! Decides from what others hold, by this signer's ledger and by the records that it knows (of
//! members that other signers admitted too). Called by `signer`, and by `init` for the first host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{MeshId, NodeKey, NodeName};
use sha2::{Digest, Sha256};

use super::{
    record::{Grant, NodeCertificate, Record},
    verify::is_never_granted,
};
use crate::{
    address, limits,
    refusal::{Code, Refusal},
};

/// A refusal and what its receiver can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}; {fix}")]
pub struct EnrolRefusal {
    /// Why.
    pub refusal: Refusal,
    /// What to do.
    pub fix: String,
}

impl EnrolRefusal {
    pub(super) fn new(code: Code, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { refusal: Refusal::new(code, why), fix: fix.into() }
    }
}

/// Smallest and largest pool: from three nodes to sixteen million.
const POOL_LENGTHS: std::ops::RangeInclusive<u8> = 8..=29;

/// What others than one joiner hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    names: BTreeMap<NodeName, NodeKey>,
    /// Exact grants and what rests on them, with who has them.
    prefixes: Vec<(IpNet, NodeName)>,
    /// Pools, with who may claim pieces of them.
    pools: Vec<(IpNet, NodeName)>,
    addresses: BTreeSet<Ipv4Addr>,
    /// Addresses of those who have left: used again only when no other is free, since some members
    /// may not have heard of the leave.
    resting: BTreeSet<Ipv4Addr>,
}

impl Held {
    /// Adds what a certificate gives to its holder.
    pub(super) fn add_certificate(&mut self, certificate: &NodeCertificate, departed: bool) {
        if departed {
            self.resting.extend(certificate.mesh_ipv4);
            return;
        }
        self.names.insert(certificate.name.clone(), certificate.key);
        self.addresses.extend(certificate.mesh_ipv4);
        for grant in &certificate.grants {
            let to = if grant.claim_len.is_none() { &mut self.prefixes } else { &mut self.pools };
            to.push((grant.prefix, certificate.name.clone()));
        }
    }

    /// Adds what a member claims.
    pub(super) fn add_record(&mut self, record: &Record) {
        self.add_certificate(&record.certificate, record.left);
        if !record.left {
            // Pieces of a pool are where the pool is.
            let claims = record.whole_prefixes().into_iter();
            self.prefixes.extend(claims.map(|prefix| (prefix, record.name.clone())));
        }
    }

    /// What the records of others than `key` hold.
    pub(super) fn add_members(&mut self, members: &[Arc<Record>], key: &NodeKey) {
        for record in members.iter().filter(|record| record.key != *key) {
            self.add_record(record);
        }
    }

    pub(super) fn is_free(&self, address: Ipv4Addr) -> bool {
        !self.addresses.contains(&address)
    }

    /// Whoever has something that an exact grant of `prefix` would take away.
    fn holder(&self, prefix: &IpNet) -> Option<&(IpNet, NodeName)> {
        let mut held = self.prefixes.iter().chain(&self.pools);
        held.find(|(held, _)| address::overlaps(held, prefix))
    }

    /// Whoever has an exact grant in `pool`; that others have the same pool does not matter.
    fn exact_holder(&self, pool: &IpNet) -> Option<&(IpNet, NodeName)> {
        self.prefixes.iter().find(|(held, _)| address::overlaps(held, pool))
    }

    pub(super) fn check_name(&self, name: &NodeName) -> Result<(), EnrolRefusal> {
        match self.names.get(name) {
            None => Ok(()),
            Some(key) => Err(EnrolRefusal::new(
                Code::NameTaken,
                format!("the name {name} belongs to the node {}…", key.short()),
                "choose another with --name, or run `meshctl leave` on the host that has it; if that host is \
                 gone, `meshctl node revoke NAME` on a signer",
            )),
        }
    }
}

/// What is to be granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Must be granted.
    pub(super) exact: &'a [IpNet],
    /// Limits of what may be granted besides.
    pub(super) allow: &'a [IpNet],
    /// Must be granted as pools of single addresses.
    pub(super) pools: &'a [IpNet],
    /// What the joiner detected.
    pub(super) wanted: &'a [IpNet],
    /// `exact` is held already, by right: whoever contests it, it stays.
    pub(super) keep: bool,
}

/// Decides on prefixes: the grants, and what of `wanted` is not among them.
pub(super) fn decide(
    asked: Asked<'_>,
    held: &Held,
    mesh: &MeshId,
    pool: &Ipv4Net,
) -> Result<(Vec<Grant>, Vec<IpNet>), EnrolRefusal> {
    for prefix in asked.exact {
        if asked.keep {
            continue;
        }
        check_grantable(prefix, mesh, pool)?;
        if let Some(other) = held.holder(prefix) {
            return Err(taken(prefix, other, "--prefix"));
        }
    }
    for prefix in asked.pools {
        check_grantable(prefix, mesh, pool)?;
        if let Some(other) = held.exact_holder(prefix) {
            return Err(taken(prefix, other, "--workloads"));
        }
    }
    let mut granted: BTreeSet<IpNet> = asked.exact.iter().copied().collect();
    let mut not_granted = Vec::new();
    for prefix in asked.wanted {
        let allowed = asked.allow.iter().any(|limit| limit.contains(prefix));
        let free = held.holder(prefix).is_none();
        if granted.contains(prefix) {
            continue;
        } else if allowed && free && check_grantable(prefix, mesh, pool).is_ok() {
            granted.insert(*prefix);
        } else {
            not_granted.push(*prefix);
        }
    }
    let exact = granted.into_iter().map(|prefix| Grant { prefix, claim_len: None });
    let single = |prefix: &IpNet| Some(prefix.max_prefix_len());
    let pools = asked.pools.iter().map(|p| Grant { prefix: p.trunc(), claim_len: single(p) });
    Ok((exact.chain(pools).collect(), not_granted))
}

fn taken(prefix: &IpNet, (other, name): &(IpNet, NodeName), option: &str) -> EnrolRefusal {
    EnrolRefusal::new(
        Code::PrefixTaken,
        format!("{prefix} overlaps {other} of {name}"),
        format!(
            "make a token with another {option}, or run `meshctl leave` on {name}; if that host is \
             gone, `meshctl node revoke {name}` on a signer"
        ),
    )
}

/// Refuses what nobody may have: reserved addresses, the mesh's ULAs, and its pool.
pub(super) fn check_grantable(
    prefix: &IpNet,
    mesh: &MeshId,
    pool: &Ipv4Net,
) -> Result<(), EnrolRefusal> {
    let refused = |why: &str| {
        EnrolRefusal::new(
            Code::BadTerms,
            format!("{prefix} {why}"),
            "grant the pod prefixes or networks behind the node, nothing wider",
        )
    };
    if is_never_granted(prefix, mesh) {
        return Err(refused("holds reserved addresses"));
    }
    if address::overlaps(prefix, &IpNet::V4(*pool)) {
        return Err(refused(&format!("overlaps the mesh's own addresses ({pool})")));
    }
    Ok(())
}

/// Refuses a limit that would let a joiner have everything, or of which nothing can be granted.
pub(super) fn check_allowed(prefix: &IpNet, mesh: &MeshId) -> Result<(), EnrolRefusal> {
    let inside_ula = IpNet::V6(address::ula_prefix(mesh)).contains(prefix);
    if inside_ula || address::is_forbidden_prefix(prefix) {
        return Err(EnrolRefusal::new(
            Code::BadTerms,
            format!("{prefix} is everything, or holds reserved addresses"),
            "allow the range that pod prefixes are cut from",
        ));
    }
    Ok(())
}

/// Refuses a pool of IPv4 addresses that cannot serve a mesh.
pub(super) fn check_pool(pool: &Ipv4Net) -> Result<(), EnrolRefusal> {
    let refused = |why: &str| {
        EnrolRefusal::new(
            Code::BadTerms,
            format!("the pool {pool} {why}"),
            format!("give --ipv4-pool an unused network, e.g. {}", address::DEFAULT_IPV4_POOL),
        )
    };
    if pool.addr() != pool.network() {
        return Err(refused("has bits set beyond its length"));
    }
    if !POOL_LENGTHS.contains(&pool.prefix_len()) {
        return Err(refused("is not between /8 and /29"));
    }
    if address::is_forbidden_prefix(&IpNet::V4(*pool)) {
        return Err(refused("holds reserved addresses"));
    }
    Ok(())
}

/// Refuses more prefixes than a token can hold.
pub(super) fn check_count(prefixes: &[IpNet]) -> Result<(), EnrolRefusal> {
    if prefixes.len() <= limits::ENROL_PREFIXES {
        return Ok(());
    }
    Err(EnrolRefusal::new(
        Code::BadTerms,
        format!("{} prefixes are too many", prefixes.len()),
        format!("give at most {}, or a wider one that holds them", limits::ENROL_PREFIXES),
    ))
}

/// A free address of the pool: first the one that follows from the key, so that a host that enrols
/// again somewhere else tends to keep it. The first and the last address are no host's.
pub(super) fn allocate(
    pool: &Ipv4Net,
    mesh: &MeshId,
    key: &NodeKey,
    held: &Held,
) -> Result<Ipv4Addr, EnrolRefusal> {
    let usable = (1_u64 << (32 - pool.prefix_len())).saturating_sub(2);
    let first = u64::from(pool.network().to_bits()) + 1;
    let digest = Sha256::new()
        .chain_update(b"meshd-ipv4-v1\0")
        .chain_update(mesh.0)
        .chain_update(key.0)
        .finalize();
    let mut start = [0; 8];
    start.copy_from_slice(&digest[..8]);
    let start = u64::from_be_bytes(start) % usable.max(1);
    for rest_too in [false, true] {
        for step in 0..usable {
            let number = first + (start + step) % usable;
            let address = Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX));
            let resting = !rest_too && held.resting.contains(&address);
            if !held.addresses.contains(&address) && !resting {
                return Ok(address);
            }
        }
    }
    Err(EnrolRefusal::new(
        Code::PoolExhausted,
        format!("all {usable} addresses of {pool} are given out"),
        "let members that are gone `meshctl leave`; a mesh's pool is chosen at `meshctl init`",
    ))
}
