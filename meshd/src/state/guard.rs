//! What strict leak protection set last, so that it stands at the next boot before anything else does.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use meshd_core::plan::{
    Change, Desired, Firewall, FirewallRules, FirewallSets, PlanConfig, ROUTE_METRIC, Route,
    RouteKind, SourceNat, UNREACHABLE_METRIC,
};
use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, durable};

/// Of this form; another is another program's.
const VERSION: u32 = 1;
/// A prefix takes some 25 bytes, and there are three lists.
const LARGEST: u64 = 64 << 20;

/// The guard as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedGuard {
    version: u32,
    /// The device through which guarded prefixes may be reached.
    device: String,
    /// Sources that are not masqueraded on it.
    own: BTreeSet<IpNet>,
    clamp_mss: bool,
    /// Elements of the nftables sets.
    guarded: BTreeSet<IpNet>,
    /// Node addresses, which our own marked packets may reach.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    nodes: BTreeSet<IpAddr>,
    /// Routes of the second table.
    unreachable: BTreeSet<IpNet>,
    /// Routes of the second table.
    throw: BTreeSet<IpNet>,
}

impl SavedGuard {
    /// What is to be kept of a plan; `None` when it has no guard.
    #[must_use]
    pub fn of(desired: &Desired, config: &PlanConfig) -> Option<Self> {
        let Firewall { rules, sets } =
            desired.firewall.as_ref().filter(|f| f.rules.guard.is_some())?;
        let own = rules.nat.own_v4.iter().map(|net| IpNet::V4(*net));
        let own = own.chain(rules.nat.own_v6.iter().map(|net| IpNet::V6(*net)));
        let second = config.second_table();
        let of_kind = |kind: &RouteKind| -> BTreeSet<IpNet> {
            let routes = desired.routes.iter();
            routes
                .filter(|route| route.table == second && route.kind == *kind)
                .map(|route| route.destination)
                .collect()
        };
        Some(Self {
            version: VERSION,
            device: rules.nat.device.clone(),
            own: own.collect(),
            clamp_mss: rules.clamp_mss,
            guarded: sets.guarded.clone(),
            nodes: sets.guarded_nodes.clone(),
            unreachable: of_kind(&RouteKind::Unreachable),
            throw: of_kind(&RouteKind::Throw),
        })
    }

    /// With what `former` held besides: for a plan that may lack members, whose guard would have holes.
    #[must_use]
    pub fn and_what_was(mut self, former: &Self) -> Self {
        let overlaps = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
        let spare = |held: &BTreeSet<IpNet>, net: &IpNet| !held.iter().any(|h| overlaps(h, net));
        let lost: Vec<IpNet> = former
            .guarded
            .iter()
            .filter(|net| spare(&self.guarded, net) && spare(&self.throw, net))
            .copied()
            .collect();
        self.guarded.extend(lost);
        self.nodes.extend(&former.nodes);
        self.unreachable.extend(former.unreachable.difference(&self.throw));
        self
    }

    /// What sets it up in the kernel, the nftables guard first. Rules come from the configuration.
    #[must_use]
    pub fn changes(&self, config: &PlanConfig, ipv6: bool) -> Vec<Change> {
        let mut nat =
            SourceNat { watch: true, device: self.device.clone(), ..SourceNat::default() };
        for own in &self.own {
            match own {
                IpNet::V4(net) => drop(nat.own_v4.insert(*net)),
                IpNet::V6(net) => drop(nat.own_v6.insert(*net)),
            }
        }
        let rules = FirewallRules {
            nat,
            clamp_mss: self.clamp_mss,
            guard: Some(config.steering()),
            steering: (!self.nodes.is_empty()).then_some(config.steering()),
            ..FirewallRules::default()
        };
        let sets = FirewallSets {
            guarded: self.guarded.clone(),
            guarded_nodes: self.nodes.clone(),
            ..FirewallSets::default()
        };
        let route = |destination: &IpNet, metric: u32, kind: RouteKind| {
            let table = config.second_table();
            Change::PutRoute(Route { destination: *destination, table, metric, kind })
        };
        let throw = self.throw.iter().map(|net| route(net, ROUTE_METRIC, RouteKind::Throw));
        let unreachable = self
            .unreachable
            .iter()
            .map(|net| route(net, UNREACHABLE_METRIC, RouteKind::Unreachable));
        let rules_of_routing = config
            .rules(ipv6)
            .into_iter()
            .filter(|rule| rule.table == config.second_table())
            .map(Change::AddRule);
        [Change::PutFirewall(Firewall { rules, sets })]
            .into_iter()
            .chain(throw)
            .chain(unreachable)
            .chain(rules_of_routing)
            .collect()
    }

    /// How many prefixes it keeps out of the clear.
    #[must_use]
    pub fn prefixes(&self) -> usize {
        self.guarded.len() + self.nodes.len()
    }

    /// Reads what a state directory keeps, without holding it; `None` where there is nothing.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, StateError> {
        let path = path(state_dir);
        let Some(bytes) = durable::read(&path, LARGEST)? else { return Ok(None) };
        let kept: Self =
            serde_json::from_slice(&bytes).map_err(|why| StateError::damaged(&path, why))?;
        if kept.version != VERSION {
            let why = format!("it is of version {}, and this is {VERSION}", kept.version);
            return Err(StateError::damaged(&path, why));
        }
        Ok(Some(kept))
    }

    /// Keeps it; when this returns it survives a power loss. For a thread that may wait.
    pub fn write(&self, state_dir: &Path) -> Result<(), StateError> {
        let path = path(state_dir);
        let text = serde_json::to_vec(self).map_err(|why| StateError::damaged(&path, why))?;
        Ok(durable::write(&path, &text)?)
    }

    /// Removes what is kept, if anything is.
    pub fn forget(state_dir: &Path) -> Result<(), StateError> {
        Ok(durable::remove(&path(state_dir))?)
    }
}

impl StateDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("guard")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> SavedGuard {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        SavedGuard {
            version: VERSION,
            device: "mesh0".to_owned(),
            own: nets(&["10.1.0.0/24", "fd01::/64"]),
            clamp_mss: true,
            guarded: nets(&["10.2.0.0/24", "fd02::/64"]),
            nodes: BTreeSet::new(),
            unreachable: nets(&["10.2.0.0/24", "fd02::/64"]),
            throw: nets(&["10.1.0.0/24"]),
        }
    }

    #[test]
    fn what_is_kept_is_read_and_what_is_damaged_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SavedGuard::read(dir.path()).unwrap(), None);
        guard().write(dir.path()).unwrap();
        assert_eq!(SavedGuard::read(dir.path()).unwrap(), Some(guard()));
        for bad in ["", "{}", "[1]", r#"{"version":1,"device":"mesh0"}"#] {
            std::fs::write(dir.path().join("guard"), bad).unwrap();
            assert!(matches!(SavedGuard::read(dir.path()), Err(StateError::Damaged { .. })));
        }
        let other =
            serde_json::to_string(&guard()).unwrap().replace("\"version\":1", "\"version\":2");
        std::fs::write(dir.path().join("guard"), other).unwrap();
        assert!(SavedGuard::read(dir.path()).unwrap_err().to_string().contains("version 2"));
        SavedGuard::forget(dir.path()).unwrap();
        assert_eq!(SavedGuard::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn node_addresses_come_with_the_way_past_them_for_our_own_packets() {
        let text = serde_json::to_string(&guard()).unwrap();
        assert!(!text.contains("nodes"), "who has none writes what older versions read");
        let config = PlanConfig { strict: true, ..PlanConfig::default() };
        let firewall = |guard: &SavedGuard| match guard.changes(&config, true).remove(0) {
            Change::PutFirewall(firewall) => firewall,
            other => panic!("{other:?}"),
        };
        assert_eq!(firewall(&guard()).rules.steering, None);
        let nodes: BTreeSet<IpAddr> =
            ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap()).into();
        let with_nodes = SavedGuard { nodes: nodes.clone(), ..guard() };
        let Firewall { rules, sets } = firewall(&with_nodes);
        assert_eq!((rules.steering, sets.guarded_nodes), (Some(config.steering()), nodes));
        assert_eq!(with_nodes.prefixes(), guard().prefixes() + 2);
        let read = serde_json::from_str(&serde_json::to_string(&with_nodes).unwrap()).unwrap();
        assert_eq!(with_nodes, read);
        assert_eq!(guard().and_what_was(&with_nodes).nodes, with_nodes.nodes);
    }

    #[test]
    fn a_plan_that_may_lack_members_takes_nothing_away() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let now = SavedGuard {
            guarded: nets(&["10.2.0.0/25", "10.3.0.0/24"]),
            unreachable: nets(&["10.2.0.0/25", "10.3.0.0/24"]),
            throw: nets(&["10.1.0.0/24", "fd02::/64"]),
            ..guard()
        };
        let kept = now.and_what_was(&SavedGuard {
            guarded: nets(&["10.2.0.0/24", "10.9.0.0/24", "fd02::/64"]),
            unreachable: nets(&["10.2.0.0/24", "10.9.0.0/24", "fd02::/64"]),
            ..guard()
        });
        assert_eq!(kept.guarded, nets(&["10.2.0.0/25", "10.3.0.0/24", "10.9.0.0/24"]));
        let routes = nets(&["10.2.0.0/24", "10.2.0.0/25", "10.3.0.0/24", "10.9.0.0/24"]);
        assert_eq!(kept.unreachable, routes);
    }

    #[test]
    fn the_guard_comes_before_the_routes_and_the_rules_last() {
        let config = PlanConfig { strict: true, ..PlanConfig::default() };
        let changes = guard().changes(&config, true);
        assert!(matches!(&changes[0], Change::PutFirewall(f) if f.rules.guard.is_some()));
        let rules: Vec<_> = changes.iter().filter(|c| matches!(c, Change::AddRule(_))).collect();
        assert_eq!(rules.len(), 2);
        assert!(matches!(changes.last(), Some(Change::AddRule(rule)) if rule.priority == 2601));
        assert_eq!(changes.len(), 1 + 3 + 2);
    }
}
