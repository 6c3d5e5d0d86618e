//! What our nftables table holds, and what of it follows from the plan.
//!
//! Rules change with the configuration only; what comes and goes with members is in sets, so that a change costs as
//! much as what changed. The rules themselves are the data plane's to write.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    forwarding::{Forwarded, forwarded},
    input::{PlanConfig, PlanInput},
    nodes::Nodes,
    planner::Destinations,
    prefixes::is_v6,
};
use crate::path_mtu::{self, BASE, OVERHEAD_V4};

/// Our nftables table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// What is the same whoever is a member.
    pub rules: FirewallRules,
    /// What is not.
    pub sets: FirewallSets,
}

/// The rules of our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirewallRules {
    /// Source NAT of what leaves through the device.
    pub nat: SourceNat,
    /// TCP's segment size is clamped to the route's MTU on what leaves through the device, forwarded and local.
    pub clamp_mss: bool,
    /// Our encrypted packets over IPv4 carry DF.
    pub dont_fragment: Option<DontFragment>,
    /// What is in [`FirewallSets::guarded`] neither leaves nor enters but through the device, our own encrypted packets
    /// and QUIC's excepted: a prefix that holds another host's address must not cut the two off from each other.
    pub guard: Option<Steering>,
    /// Node addresses are carried.
    pub steering: Option<Steering>,
    /// What this host forwards; `None` before anything is known.
    pub forwarded: Option<Forwarded>,
}

/// What comes in the clear from hosts whose addresses are routed into the tunnel gets our mark: UDP to our own ports, and
/// what such a host sends while it has no route into the tunnel yet. Reverse-path filters then look past the tunnel.
/// [`FirewallSets::guarded_nodes`] may send and be sent such UDP, and IPv6 neighbour discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    /// Mark of the encrypted packets.
    pub mark: u32,
    /// QUIC's port.
    pub gossip: u16,
    /// WireGuard's first port; the one above it is the second lane's.
    pub wireguard: u16,
}

/// What leaves through the device with a source that is not ours inside the mesh (a socket bound to the node's own
/// address) gets the device's address, since the other side accepts no other.
///
/// Source NAT makes the kernel track every connection of the host, which costs each packet a few percent. So where nobody
/// else has it track connections, such packets are looked for first, and translated from the first one on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceNat {
    /// Not translated yet: told to [`SourceNat::LOG_GROUP`].
    pub watch: bool,
    /// Interface name.
    pub device: String,
    /// Sources that stay as they are.
    pub own_v4: BTreeSet<Ipv4Net>,
    /// Sources that stay as they are.
    pub own_v6: BTreeSet<Ipv6Net>,
    /// So do those of [`FirewallSets::own`], which come and go.
    pub workloads: bool,
    /// Sources that stay as they are towards [`FirewallSets::routed_nodes`].
    pub own_nodes: BTreeSet<IpAddr>,
}

impl SourceNat {
    /// Group of nfnetlink_log that is told of foreign sources.
    pub const LOG_GROUP: u16 = 51_820;
}

/// Which packets carry DF: UDP from `port` with `mark`, of [`DontFragment::SMALLEST`] bytes or more, not towards
/// [`FirewallSets::fragmented`], unless they are larger than [`DontFragment::LARGEST_FRAGMENTED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DontFragment {
    /// WireGuard's port.
    pub port: u16,
    /// Mark of the encrypted packets.
    pub mark: u32,
}

impl DontFragment {
    /// No probe is smaller. Most packets are, and no path fragments them: they are spared the rule.
    pub const SMALLEST: u32 = path_mtu::SMALLEST + OVERHEAD_V4;
    /// No route towards [`FirewallSets::fragmented`] lets a larger packet through: it is a probe, which measures
    /// nothing if it is fragmented.
    pub const LARGEST_FRAGMENTED: u32 = BASE + OVERHEAD_V4;
}

/// The sets of our table. A set that no rule asks for is empty and not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirewallSets {
    /// Prefixes that are reached through the mesh or not at all. No two of them overlap.
    pub guarded: BTreeSet<IpNet>,
    /// Addresses towards which encrypted packets may be fragmented.
    pub fragmented: BTreeSet<Ipv4Addr>,
    /// Workloads of this host, whose packets keep their source.
    pub own: BTreeSet<IpAddr>,
    /// Node addresses that are routed into the tunnel.
    pub routed_nodes: BTreeSet<IpAddr>,
    /// Node addresses that are reached through the mesh or not at all.
    pub guarded_nodes: BTreeSet<IpAddr>,
}

impl FirewallSets {
    /// Nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            guarded: self.guarded.difference(&other.guarded).copied().collect(),
            fragmented: self.fragmented.difference(&other.fragmented).copied().collect(),
            own: self.own.difference(&other.own).copied().collect(),
            routed_nodes: self.routed_nodes.difference(&other.routed_nodes).copied().collect(),
            guarded_nodes: self.guarded_nodes.difference(&other.guarded_nodes).copied().collect(),
        }
    }
}

impl PlanConfig {
    /// Our ports and mark.
    #[must_use]
    pub fn steering(&self) -> Steering {
        let (gossip, wireguard) = (self.gossip_port, self.listen_port);
        Steering { mark: self.fwmark, gossip, wireguard }
    }
}

/// Our table as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedFirewall {
    /// Its rules, when they are exactly what [`FirewallRules`] make.
    pub rules: Option<FirewallRules>,
    /// Its sets, whatever the rules are.
    pub sets: FirewallSets,
}

/// The table for what goes where. `fragmented`: endpoints whose paths are too small for IPv6; `lost`: prefixes of ours
/// that others have won.
pub(super) fn firewall(
    input: &PlanInput<'_>,
    destinations: &Destinations,
    nodes: &Nodes,
    fragmented: BTreeSet<Ipv4Addr>,
    lost: impl Fn(&IpNet) -> bool,
) -> Firewall {
    let measured = input.config.measures(input.local);
    let which = DontFragment { port: input.config.listen_port, mark: input.config.fwmark };
    let mut sets =
        FirewallSets { routed_nodes: nodes.routed_addresses(), ..FirewallSets::default() };
    if measured {
        sets.fragmented = fragmented;
    }
    if input.config.strict {
        sets.guarded = guarded(input, destinations, nodes);
        sets.guarded_nodes = nodes.guarded.iter().map(IpNet::addr).collect();
    }
    let steering = nodes.steered.then(|| input.config.steering());
    let (nat, own) = source_nat(input, nodes, lost);
    sets.own = own;
    Firewall {
        rules: FirewallRules {
            nat,
            clamp_mss: input.config.clamp_mss,
            dont_fragment: measured.then_some(which),
            guard: input.config.strict.then(|| input.config.steering()),
            steering,
            forwarded: Some(forwarded(input)),
        },
        sets,
    }
}

/// What keeps its source: our mesh addresses, and our prefixes except those that others have won,
/// since nobody takes packets from those from us. Beside it the workloads among them.
fn source_nat(
    input: &PlanInput<'_>,
    nodes: &Nodes,
    lost: impl Fn(&IpNet) -> bool,
) -> (SourceNat, BTreeSet<IpAddr>) {
    let workloads = input.config.workloads;
    let single = |net: &IpNet| workloads && net.prefix_len() == net.max_prefix_len();
    let (mut own_v4, mut own_v6, mut own) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mesh_addresses = input.own.mesh_addresses.iter().map(|net| (net, false));
    let prefixes = input.own.prefixes.iter().map(|net| (net, single(net)));
    for (net, single) in mesh_addresses.chain(prefixes) {
        match net.trunc() {
            prefix if lost(&prefix) => {}
            IpNet::V6(_) if !input.local.ipv6 => {}
            prefix if single => drop(own.insert(prefix.addr())),
            IpNet::V4(v4) => drop(own_v4.insert(v4)),
            IpNet::V6(v6) => drop(own_v6.insert(v6)),
        }
    }
    let own_nodes =
        if nodes.steered { nodes.own.iter().copied().collect() } else { BTreeSet::new() };
    let device = input.config.interface.clone();
    // From a node address that is carried, answers go to pods too, which only tracking tells from other packets.
    let watch = input.local.sources.watch() && !nodes.steered;
    (SourceNat { watch, device, own_v4, own_v6, workloads, own_nodes }, own)
}

/// What must not go in the clear, less what stays on this host or goes as without a mesh.
fn guarded(input: &PlanInput<'_>, destinations: &Destinations, nodes: &Nodes) -> BTreeSet<IpNet> {
    let remote = destinations.tunnel.iter().chain(&destinations.unreachable);
    let own = input.local_prefixes().chain(&input.own.mesh_addresses);
    let own = own.chain(&input.local.workloads);
    let exempt = own.chain(&destinations.clear).chain(&nodes.guarded);
    let exempt: BTreeSet<IpNet> = exempt.map(IpNet::trunc).collect();
    let mut guarded = carve(&remote.map(IpNet::trunc).collect(), &exempt);
    guarded.retain(|prefix| input.local.ipv6 || !is_v6(prefix));
    guarded
}

/// The addresses whose longest prefix among both sets is one of `covered`, as prefixes that do not overlap. What is in
/// both sets is exempt.
fn carve(covered: &BTreeSet<IpNet>, exempt: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let mut all: Vec<(IpNet, bool)> = covered
        .difference(exempt)
        .map(|prefix| (*prefix, true))
        .chain(exempt.iter().map(|prefix| (*prefix, false)))
        .collect();
    // By address, the shorter first, so that what lies within a prefix follows it.
    all.sort_by_key(|(prefix, _)| (prefix.network(), prefix.prefix_len()));
    let mut out = BTreeSet::new();
    for everything in [Ipv4Addr::UNSPECIFIED.into(), IpAddr::from([0; 16])] {
        let Ok(root) = IpNet::new(everything, 0) else { continue };
        let of_family: Vec<_> =
            all.iter().filter(|(prefix, _)| is_v6(prefix) == is_v6(&root)).copied().collect();
        carve_within(root, false, &of_family, &mut out);
    }
    out
}

/// `within`: sorted, and all inside `prefix`.
fn carve_within(
    prefix: IpNet,
    inherited: bool,
    within: &[(IpNet, bool)],
    out: &mut BTreeSet<IpNet>,
) {
    let (covered, within) = match within.split_first() {
        Some(((first, covered), rest)) if *first == prefix => (*covered, rest),
        _ => (inherited, within),
    };
    if within.iter().all(|(_, other)| *other == covered) {
        if covered {
            out.insert(prefix);
        }
        return;
    }
    let Ok(halves) = prefix.subnets(prefix.prefix_len() + 1) else { return };
    let mut rest = within;
    for half in halves {
        let (inside, after) =
            rest.split_at(rest.partition_point(|(inner, _)| half.contains(inner)));
        rest = after;
        carve_within(half, covered, inside, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_exempt_is_cut_out_and_what_is_covered_within_it_is_not() {
        let carved = |covered: &[&str], exempt: &[&str]| carve(&nets(covered), &nets(exempt));
        assert_eq!(carved(&["10.0.0.0/8", "10.1.0.0/16"], &[]), nets(&["10.0.0.0/8"]));
        assert_eq!(
            carved(&["10.0.0.0/22"], &["10.0.1.0/24"]),
            nets(&["10.0.0.0/24", "10.0.2.0/23"])
        );
        assert_eq!(
            carved(&["10.0.0.0/22", "10.0.1.128/32"], &["10.0.1.0/24"]),
            nets(&["10.0.0.0/24", "10.0.1.128/32", "10.0.2.0/23"])
        );
        assert_eq!(carved(&["10.0.0.0/24"], &["10.0.0.0/24"]), nets(&[]));
        assert_eq!(carved(&["fd00::/127"], &["fd00::1/128", "0.0.0.0/0"]), nets(&["fd00::/128"]));
        assert_eq!(
            carved(&["10.0.0.0/25", "10.0.0.128/25"], &[]),
            nets(&["10.0.0.0/25", "10.0.0.128/25"]),
            "each stays an element of its own, so that one can go without the other"
        );
    }
}
