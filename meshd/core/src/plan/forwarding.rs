//! What this host forwards between the mesh and elsewhere.
//!
//! A member that forwards (a gateway of a zone, a host of pods) must not be a router into the mesh for everybody on its
//! network, nor one out of it for members: others would take what comes from there for this host's.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{input::PlanInput, prefixes::is_v6};

/// What may be forwarded; the rest is dropped and counted. What nobody forwards is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// This host's mesh addresses: what has them as its source and is forwarded into the mesh is forged.
    pub own: BTreeSet<IpNet>,
    /// Interfaces that lead to other hosts. From these only answers, what is translated to a service, and `behind` go
    /// into the mesh.
    pub outside: BTreeSet<String>,
    /// Prefixes of this host that are reached by such an interface.
    pub behind: BTreeSet<IpNet>,
    /// Prefixes of this host that members reach. Beside these and [`super::FirewallSets::own`], only answers and what is
    /// translated to a service leave the mesh.
    pub local: BTreeSet<IpNet>,
    /// What this host announces for devices: from these not even a service elsewhere is reached, nor what this host
    /// serves at other than its mesh addresses and `local`.
    pub devices: BTreeSet<IpNet>,
}

pub(super) fn forwarded(input: &PlanInput<'_>) -> Forwarded {
    let usable = |net: &&IpNet| input.local.ipv6 || !is_v6(net);
    let of = |nets: &mut dyn Iterator<Item = &IpNet>| -> BTreeSet<IpNet> {
        nets.filter(usable).map(IpNet::trunc).collect()
    };
    // Those of single workloads are in a set, for they come and go.
    let single = |net: &&IpNet| input.config.workloads && net.prefix_len() == net.max_prefix_len();
    let mut local = input.local_prefixes().filter(|net| !single(net));
    let mut behind = input.local_prefixes().filter(|net| input.local.behind.contains(&net.trunc()));
    Forwarded {
        own: of(&mut input.own.mesh_addresses.iter()),
        outside: input.local.underlay.clone(),
        behind: of(&mut behind),
        local: of(&mut local),
        devices: of(&mut input.externals.ranges.iter()),
    }
}
