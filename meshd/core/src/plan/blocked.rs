//! Why a prefix of a member is not routed to it, in words and in stable codes.
//!
//! What follows for the kernel (no route at all, or `unreachable`) is written at each reason, since
//! it decides whether a host can be cut off.

use std::fmt;

use ipnet::IpNet;

/// A prefix, or a whole member, that is not programmed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocked {
    /// Which prefix; `None` is the member as a whole.
    pub prefix: Option<IpNet>,
    /// The stable reason.
    pub reason: BlockReason,
    /// What, why, and how to mend it.
    pub message: String,
}

/// Stable reason codes of the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockReason {
    /// The member has no WireGuard lane. No route: it is reached in the clear, as without a mesh.
    NoWireguard,
    /// The member's WireGuard key is this node's own, or another member's. `unreachable`: it could
    /// only go in the clear.
    WgKeyInUse,
    /// Another member claims the same prefix with the better right. No route of its own: the
    /// winner's stands.
    Contested,
    /// It lies within another member's prefix that rests on a longer grant. No route: an
    /// `unreachable` here would cut a hole into what is the other's.
    Nested,
    /// It holds loopback, link-local, multicast or reserved addresses, or everything. No route: an
    /// `unreachable` would cut this host off.
    Reserved,
    /// It lies within a prefix of this node. No route: its pods would be cut off from each other.
    OwnPrefix,
    /// It covers an address of this host outside the mesh. No route: an `unreachable` would take the
    /// host off its network.
    CoversUnderlay,
    /// It covers a gateway of this host. No route, as above.
    CoversGateway,
    /// It is the single address of a server that this host asks for names. No route, as above.
    CoversNameserver,
    /// It is a part of a network that this host is directly on. No route: neighbours on that link
    /// would be cut off.
    ConnectedNetwork,
    /// It covers the address at which a member was reached, or all at which its own claimant can
    /// be. No route: an `unreachable` would cut other programs off from that host.
    CoversEndpoint,
    /// It is IPv6, and the path to its member carries no 1,280 bytes. `unreachable`: those who try are told at once,
    /// and IPv4 goes on.
    PathTooSmall,
    /// A device of this host has it, and this host's certificate does not. No route: nobody would believe it.
    NotGranted,
    /// The gateway that its member names may not carry for it. The member is dealt with as reachable directly.
    GatewayOdd,
    /// It is a host's own address, and its member is reached through a gateway: that one's packets to the host itself
    /// would be taken for it. No route: it goes as without a mesh.
    BehindGateway,
    /// It overlaps the mesh's own addresses. `unreachable`: nothing of this host's network is within
    /// it (that was looked at first), and the mesh addresses have longer routes of their own.
    MeshRange,
}

impl BlockReason {
    /// The stable text: part of the JSON output, the metrics and the logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoWireguard => "no_wireguard",
            Self::WgKeyInUse => "wg_key_in_use",
            Self::Contested => "prefix_contested",
            Self::Nested => "prefix_nested",
            Self::Reserved => "prefix_reserved",
            Self::OwnPrefix => "prefix_is_local",
            Self::CoversUnderlay => "covers_underlay",
            Self::CoversGateway => "covers_gateway",
            Self::CoversNameserver => "covers_nameserver",
            Self::ConnectedNetwork => "connected_network",
            Self::CoversEndpoint => "covers_endpoint",
            Self::PathTooSmall => "path_too_small",
            Self::NotGranted => "prefix_not_granted",
            Self::GatewayOdd => "gateway_odd",
            Self::BehindGateway => "behind_gateway",
            Self::MeshRange => "covers_mesh_addresses",
        }
    }

    /// Whether traffic to it is refused here. Otherwise it has no route of ours, see each reason.
    #[must_use]
    pub fn is_unreachable(self) -> bool {
        matches!(self, Self::WgKeyInUse | Self::PathTooSmall | Self::MeshRange)
    }
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
