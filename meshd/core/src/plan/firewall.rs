//! What our nftables table holds, and what of it follows from the plan.
//!
//! Rules change with the configuration only; what comes and goes with members is in sets, so that a change costs as
//! much as what changed. The rules themselves are the data plane's to write.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{input::PlanInput, planner::Destinations, prefixes::is_v6};
use crate::path_mtu::{BASE, OVERHEAD_V4};

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
    /// What is in [`FirewallSets::guarded`] neither leaves nor enters but through the device.
    pub guard: bool,
}

/// What leaves through the device with a source that is not ours inside the mesh (a socket bound to the node's own
/// address) gets the device's address, since the other side accepts no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceNat {
    /// Interface name.
    pub device: String,
    /// Sources that stay as they are.
    pub own_v4: BTreeSet<Ipv4Net>,
    /// Sources that stay as they are.
    pub own_v6: BTreeSet<Ipv6Net>,
}

/// Which packets carry DF: UDP from `port` with `mark`, not towards [`FirewallSets::fragmented`], unless they are larger
/// than [`DontFragment::LARGEST_FRAGMENTED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DontFragment {
    /// WireGuard's port.
    pub port: u16,
    /// Mark of the encrypted packets.
    pub mark: u32,
}

impl DontFragment {
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
}

impl FirewallSets {
    /// Nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.guarded.is_empty() && self.fragmented.is_empty()
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            guarded: self.guarded.difference(&other.guarded).copied().collect(),
            fragmented: self.fragmented.difference(&other.fragmented).copied().collect(),
        }
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
    fragmented: BTreeSet<Ipv4Addr>,
    lost: impl Fn(&IpNet) -> bool,
) -> Firewall {
    let measured = input.config.measures(input.local);
    let which = DontFragment { port: input.config.listen_port, mark: input.config.fwmark };
    let guarded = if input.config.strict { guarded(input, destinations) } else { BTreeSet::new() };
    Firewall {
        rules: FirewallRules {
            nat: source_nat(input, lost),
            clamp_mss: input.config.clamp_mss,
            dont_fragment: measured.then_some(which),
            guard: input.config.strict,
        },
        sets: FirewallSets {
            guarded,
            fragmented: if measured { fragmented } else { BTreeSet::new() },
        },
    }
}

/// What keeps its source: our mesh addresses, and our prefixes except those that others have won,
/// since nobody takes packets from those from us.
fn source_nat(input: &PlanInput<'_>, lost: impl Fn(&IpNet) -> bool) -> SourceNat {
    let (mut own_v4, mut own_v6) = (BTreeSet::new(), BTreeSet::new());
    for net in input.own.mesh_addresses.iter().chain(&input.own.prefixes) {
        match net.trunc() {
            prefix if lost(&prefix) => {}
            IpNet::V4(v4) => drop(own_v4.insert(v4)),
            IpNet::V6(v6) if input.local.ipv6 => drop(own_v6.insert(v6)),
            IpNet::V6(_) => {}
        }
    }
    SourceNat { device: input.config.interface.clone(), own_v4, own_v6 }
}

/// What must not go in the clear, less what stays on this host or goes as without a mesh.
fn guarded(input: &PlanInput<'_>, destinations: &Destinations) -> BTreeSet<IpNet> {
    let remote = destinations.tunnel.iter().chain(&destinations.unreachable);
    let own = input.own.prefixes.iter().chain(&input.own.mesh_addresses);
    let exempt: BTreeSet<IpNet> = own.chain(&destinations.clear).map(IpNet::trunc).collect();
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
