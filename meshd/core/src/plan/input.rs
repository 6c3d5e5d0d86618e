//! What the planner is given: plain values, the state of now and nothing of the past.
//!
//! The daemon fills a [`PlanInput`] from its configuration, the directory, SWIM, the network of
//! this host and [`TunnelTracker`](super::TunnelTracker). Reads nothing itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use meshd_proto::WgPublicKey;

use super::{external::Externals, types::WgPrivateKey};
pub use crate::node::Liveness;
use crate::{path_mtu::PathMtu, trust::Record};

/// Everything that [`plan`](super::plan()) decides from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// This node's own record, as it publishes it.
    pub own: &'a Record,
    /// The key pair of this node's first lane.
    pub lane: &'a LaneKeys,
    /// What the configuration says.
    pub config: &'a PlanConfig,
    /// What this host's network looks like without the mesh.
    pub local: &'a LocalNetwork,
    /// All others, in any order. This node itself is passed over; of two with the same identity the
    /// record with the higher version counts.
    pub members: &'a [Member],
    /// The last records of those who are members no more: what is theirs goes nowhere.
    pub barred: &'a [Arc<Record>],
    /// Devices that cannot run meshd, behind this host.
    pub externals: &'a Externals,
    /// False while members may be missing from `members` that were known before, as after a damaged
    /// store: nothing that stands in the kernel is taken away then.
    pub complete: bool,
    /// What the kernel held when it was last read, as far as routes to node addresses depend on it.
    pub steering: SteeringSeen,
}

/// What the kernel holds of what lets node addresses be routed into the tunnel. The default: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteeringSeen {
    /// Marks and sysctls stand, so that what comes in the clear over IPv4 passes reverse-path filters, ARP among it.
    pub v4: bool,
    /// The same over IPv6, where only the marks of nftables are needed: other firewalls look for them.
    pub v6: bool,
    /// Node addresses are routed into the tunnel.
    pub routes: bool,
}

/// A lane's WireGuard key pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneKeys {
    /// Static key.
    pub private_key: WgPrivateKey,
    /// Its public half.
    pub public_key: WgPublicKey,
}

/// The part of the configuration that steers the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanConfig {
    /// `[wireguard] interface`.
    pub interface: String,
    /// `[wireguard] port`.
    pub listen_port: u16,
    /// `[wireguard] fwmark`.
    pub fwmark: u32,
    /// `[network] table`.
    pub table: u32,
    /// `[network] rule_priority`.
    pub rule_priority: u32,
    /// `[network] mtu`; `None` is "auto". The configuration allows 1,280 to 65,455 only: Linux takes
    /// IPv6 away from a device below 1,280. Values outside are brought to the nearer end. With a number nothing is
    /// measured: it counts for all peers, and routers may fragment.
    pub mtu: Option<u32>,
    /// `[wireguard] persistent_keepalive` in seconds; 0 is never.
    pub keepalive: u16,
    /// `[network] leak_protection = "strict"`.
    pub strict: bool,
    /// `[network] mss_clamp`.
    pub clamp_mss: bool,
    /// `[network] route_source = "workloads"`: single addresses among our prefixes come and go.
    pub workloads: bool,
    /// `[network] encrypt = "pods+nodes"`.
    pub nodes: bool,
    /// The port of `[gossip] listen`.
    pub gossip_port: u16,
}

impl PlanConfig {
    /// The table behind [`Self::table`], for strict leak protection.
    #[must_use]
    pub fn second_table(&self) -> u32 {
        self.table.saturating_add(1)
    }

    /// Whether each peer's path is measured: probes go over IPv6.
    #[must_use]
    pub(super) fn measures(&self, local: &LocalNetwork) -> bool {
        self.mtu.is_none() && local.ipv6
    }

    /// Priority of its rules.
    #[must_use]
    pub fn second_priority(&self) -> u32 {
        self.rule_priority.saturating_add(1)
    }
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            interface: "mesh0".to_owned(),
            listen_port: 51820,
            fwmark: 0x10,
            table: 51820,
            rule_priority: 2600,
            mtu: None,
            keepalive: 25,
            strict: false,
            clamp_mss: true,
            workloads: false,
            nodes: false,
            gossip_port: 51800,
        }
    }
}

/// This host's network, the mesh device left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Every address of every interface with the length of its network, host bits kept
    /// (`10.0.0.5/24`). Loopback and link-local ones may be there; they are not looked at.
    pub addresses: BTreeSet<IpNet>,
    /// Single workloads on this host, whether or not they are announced: what is for them stays here.
    pub workloads: BTreeSet<IpNet>,
    /// Next hops of all routes of this host.
    pub gateways: BTreeSet<IpAddr>,
    /// Where this host asks for names. A member may route a network that one of them is in, and no single address that
    /// is one, unless that was granted by name.
    pub nameservers: BTreeSet<IpAddr>,
    /// MTU of the interface that leads to the other hosts (the smallest, where there are several);
    /// `None` counts as 1,500.
    pub underlay_mtu: Option<u32>,
    /// Others reach this host only where it has spoken first; `None` while nobody has said how they see it.
    pub behind_nat: Option<bool>,
    /// This host's own addresses as other hosts know them, best first.
    pub node_addresses: Vec<IpAddr>,
    /// Interfaces that lead to other hosts.
    pub underlay: BTreeSet<String>,
    /// Those of this host's own prefixes that may lie behind such an interface.
    pub behind: BTreeSet<IpNet>,
    /// The host can have IPv6 addresses (false with `ipv6.disable=1`).
    pub ipv6: bool,
    /// Whether sources need NAT, as far as it is known.
    pub sources: SourceFacts,
}

/// What is known of packets that leave into the mesh with a source that is not ours there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceFacts {
    /// The kernel tracks connections, for whomever. One that it tracks before there is NAT stays without, so there has to be
    /// NAT before the first such packet; and it costs little more.
    pub tracked: bool,
    /// There was one.
    pub seen: bool,
    /// The kernel would tell of one.
    pub told: bool,
}

impl SourceFacts {
    /// It is enough to look for such packets.
    #[must_use]
    pub fn watch(self) -> bool {
        self.told && !self.seen && !self.tracked
    }

    /// With what was found later: what was there once may come again, and a table that changes with it drops packets.
    #[must_use]
    pub fn and(self, tracked: bool) -> Self {
        Self { tracked: self.tracked || tracked, ..self }
    }
}

/// Another member as it is known now.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its verified record.
    pub record: Arc<Record>,
    /// What SWIM says.
    pub liveness: Liveness,
    /// How long it has been [`Liveness::Down`].
    pub down_for: Option<Duration>,
    /// The address at which a QUIC connection with it was last made, outside the mesh: never one
    /// whose packets came in through the mesh device, or a member could take another's prefix off
    /// this host by connecting from within it (`Node::proves_path`). Should stay when the connection
    /// ends, and over a restart ([`Reached`](crate::reached::Reached)): it is what was proved last, and a prefix that covers it is not routed.
    pub path: Option<IpAddr>,
    /// Other addresses of its record at which it was reached, in the same way. Nobody else's single address is one of them.
    pub reached: BTreeSet<IpAddr>,
    /// Its tunnel, when the kernel holds its peer.
    pub tunnel: Option<TunnelHealth>,
    /// What its path carries, as far as it was measured.
    pub path_mtu: Option<PathMtu>,
    /// Node addresses of this host that it takes from the tunnel, as it has said there (or, since before this start, as
    /// the routes in the kernel tell).
    pub accepts: BTreeSet<IpAddr>,
}

impl Member {
    /// One of whom nothing but the record is known.
    pub(super) fn gone(record: Arc<Record>, liveness: Liveness) -> Self {
        Self {
            record,
            liveness,
            down_for: None,
            path: None,
            reached: BTreeSet::new(),
            tunnel: None,
            path_mtu: None,
            accepts: BTreeSet::new(),
        }
    }
}

/// How a tunnel does, told from successive observations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelHealth {
    /// Up, stale or never.
    pub state: TunnelState,
    /// Where the kernel sends to.
    pub endpoint: Option<SocketAddr>,
    /// Age of the last handshake.
    pub last_handshake: Option<Duration>,
    /// How many endpoints were given enough time without an answer since the tunnel was last up.
    pub attempt: u32,
}

/// State of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelState {
    /// There was a handshake, and nothing that was sent stayed without an answer for long. An idle
    /// tunnel is up, whatever the age of its handshake.
    Up,
    /// Sent without an answer, and the last handshake is older than 180 s.
    Stale,
    /// No handshake yet.
    Never,
}

impl TunnelState {
    /// `up`, `stale` or `never`, as in `peers list`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Stale => "stale",
            Self::Never => "never",
        }
    }
}
