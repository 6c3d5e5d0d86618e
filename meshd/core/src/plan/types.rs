//! The values that planning, diffing and the data plane share. Plain and sorted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use meshd_proto::WgPublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    firewall::{Firewall, FirewallSets, ObservedFirewall},
    taken::Foreign,
};

/// Routes and rules of meshd carry this protocol number (`ip route … proto 109`), so that they are
/// known as ours after a restart with no memory.
pub const PROTOCOL: u8 = 109;
/// The alias (`ip link show`) that marks a device as ours.
pub const LINK_ALIAS: &str = "meshd";
/// Metric of the `unreachable` route behind each device route: it takes over, instead of the main
/// table, when the device goes away.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// A WireGuard private key. Zeroed on drop, never shown.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct WgPrivateKey(pub [u8; 32]);

impl fmt::Debug for WgPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WgPrivateKey(redacted)")
    }
}

/// A pre-shared key of WireGuard; all zero is none. Zeroed on drop, never shown.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct WgPresharedKey(pub [u8; 32]);

impl fmt::Debug for WgPresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == [0; 32] { "none" } else { "WgPresharedKey(redacted)" })
    }
}

/// Who runs WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's module.
    Kernel,
    /// A userspace process behind a TUN device.
    Userspace,
}

impl Backend {
    /// `kernel` or `userspace`, as in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// Address family of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Everything that should be in the kernel. The default is nothing: what `leave` and `cleanup` want.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The WireGuard device, or none.
    pub device: Option<Device>,
    /// Its peers.
    pub peers: BTreeMap<WgPublicKey, Peer>,
    /// Those of them that come only where the nftables table holds what keeps them inside the mesh: devices.
    pub confined: BTreeSet<WgPublicKey>,
    /// Routes of our table.
    pub routes: BTreeSet<Route>,
    /// Policy rules.
    pub rules: BTreeSet<Rule>,
    /// Destinations among them that go in the clear until their device route stands: `unreachable` comes after it.
    pub from_the_clear: BTreeSet<IpNet>,
    /// Our nftables table.
    pub firewall: Option<Firewall>,
    /// Our nftables table for ARP.
    pub arp: Option<ArpMark>,
    /// Sysctls of others' interfaces, path below `/proc/sys` to value. What they were is noted and comes back.
    pub underlay_sysctls: BTreeMap<String, String>,
    /// Peers and routes that are not in here stay: they may belong to members that are not known again yet.
    pub additive: bool,
    /// Peers that go even then: their members have left, or were revoked.
    pub departed: BTreeSet<WgPublicKey>,
    /// Destinations whose routes go even then, unless another peer than these holds them: node addresses of members
    /// that are known and not carried, and what devices of this host had, of which nobody else knows.
    pub withdrawn: BTreeMap<IpNet, BTreeSet<WgPublicKey>>,
    /// What is within these stays in any case, unless its peer has departed: it may belong to a device of this host
    /// whose file cannot be read.
    pub spared: BTreeSet<IpNet>,
}

/// ARP messages get this mark as they come in, so that the check of the way back to their sender leaves the tunnel
/// alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpMark {
    /// The mark of the encrypted packets.
    pub mark: u32,
}

/// The WireGuard device of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Interface name, e.g. `mesh0`.
    pub name: String,
    /// Static key.
    pub private_key: WgPrivateKey,
    /// Its public half.
    pub public_key: WgPublicKey,
    /// UDP port.
    pub listen_port: u16,
    /// Mark of the encrypted packets.
    pub fwmark: u32,
    /// Bytes.
    pub mtu: u32,
    /// Addresses of the device, each a host prefix.
    pub addresses: BTreeSet<IpNet>,
    /// Per-device sysctls, path below `/proc/sys` to value, e.g. `net/ipv4/conf/mesh0/rp_filter`.
    pub sysctls: BTreeMap<String, String>,
}

/// A WireGuard peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// What it may send and is sent.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Where to reach it; `None` leaves what the kernel has (it roams by itself).
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; 0 is off, `None` leaves what the kernel has.
    pub keepalive: Option<u16>,
    /// Mixed into every handshake; the other side must have the same.
    pub preshared_key: WgPresharedKey,
}

/// A route of one of our tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Routing table.
    pub table: u32,
    /// Lower wins.
    pub metric: u32,
    /// What happens to the packet.
    pub kind: RouteKind,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Into a device.
    Device {
        /// Interface name.
        device: String,
        /// Preferred source of this host's own packets.
        source: Option<IpAddr>,
        /// MTU metric, or the device's.
        mtu: Option<u32>,
    },
    /// On to the next rule: a local prefix.
    Throw,
    /// Refused with an ICMP error: what must not go in the clear.
    Unreachable,
}

/// `not fwmark MARK/MARK lookup TABLE` at a priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Address family.
    pub family: Family,
    /// Position among the rules.
    pub priority: u32,
    /// Table to look in.
    pub table: u32,
    /// Mark (and mask) of the packets that the rule leaves alone.
    pub fwmark: u32,
}

/// What the data plane read: only objects that are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device, when it exists and is ours.
    pub device: Option<ObservedDevice>,
    /// Its peers.
    pub peers: BTreeMap<WgPublicKey, ObservedPeer>,
    /// Routes with our protocol number in our table.
    pub routes: BTreeSet<Route>,
    /// Rules with our protocol number.
    pub rules: BTreeSet<Rule>,
    /// Our nftables table, when there is one.
    pub firewall: Option<ObservedFirewall>,
    /// What others have in our places.
    pub foreign: Foreign,
    /// Our nftables table for ARP.
    pub arp: ObservedArp,
    /// Nftables could not be read: that a table is not here does not mean that it is not there.
    pub unread: bool,
    /// Those of the sysctls of others' interfaces that were asked for and exist, as they are.
    pub underlay_sysctls: BTreeMap<String, String>,
    /// Sysctls of others' interfaces that we have changed.
    pub changed_sysctls: BTreeSet<String>,
}

/// Our nftables table for ARP as read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ObservedArp {
    /// There is none, or nobody looked.
    #[default]
    None,
    /// Exactly what an [`ArpMark`] makes.
    Mark(ArpMark),
    /// Something else is in it.
    Other,
}

/// The device as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface name.
    pub name: String,
    /// Who runs it.
    pub backend: Backend,
    /// Public key, when one is set.
    pub public_key: Option<WgPublicKey>,
    /// UDP port.
    pub listen_port: u16,
    /// Mark of the encrypted packets.
    pub fwmark: u32,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Its addresses, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
    /// The sysctls that were asked for, as they are.
    pub sysctls: BTreeMap<String, String>,
}

/// A peer as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// What it may send and is sent.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Where the kernel sends to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// As set.
    pub preshared_key: WgPresharedKey,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// One step towards [`Desired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Makes the device.
    CreateDevice {
        /// Interface name.
        name: String,
    },
    /// Removes the device and all that hangs on it.
    DeleteDevice {
        /// Interface name.
        name: String,
    },
    /// Sets those of key, port and mark that are given.
    ConfigureDevice {
        /// Interface name.
        name: String,
        /// New static key.
        private_key: Option<WgPrivateKey>,
        /// New port.
        listen_port: Option<u16>,
        /// New mark.
        fwmark: Option<u32>,
    },
    /// Sets the MTU.
    SetMtu {
        /// Interface name.
        name: String,
        /// Bytes.
        mtu: u32,
    },
    /// Brings the device up.
    SetUp {
        /// Interface name.
        name: String,
    },
    /// Writes a per-device sysctl.
    SetSysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// Value.
        value: String,
    },
    /// Adds an address (IPv6 without duplicate address detection).
    AddAddress {
        /// Interface name.
        name: String,
        /// Host prefix.
        address: IpNet,
    },
    /// Removes an address.
    RemoveAddress {
        /// Interface name.
        name: String,
        /// Host prefix.
        address: IpNet,
    },
    /// Adds a peer or changes it; allowed IPs are only added (the kernel moves them from whoever had
    /// them, without a gap).
    PutPeer {
        /// Interface name.
        device: String,
        /// Which peer.
        public_key: WgPublicKey,
        /// New endpoint.
        endpoint: Option<SocketAddr>,
        /// New keepalive.
        keepalive: Option<u16>,
        /// New pre-shared key; all zero takes it away.
        preshared_key: Option<WgPresharedKey>,
        /// Allowed IPs to add.
        add_allowed_ips: BTreeSet<IpNet>,
        /// The peer was not there: its tunnel is to be poked.
        new: bool,
    },
    /// Takes allowed IPs from a peer that nobody else gets, without a gap for those that stay.
    TakeAllowedIps {
        /// Interface name.
        device: String,
        /// Which peer.
        public_key: WgPublicKey,
        /// Those that go.
        allowed_ips: BTreeSet<IpNet>,
    },
    /// Removes a peer.
    RemovePeer {
        /// Interface name.
        device: String,
        /// Which peer.
        public_key: WgPublicKey,
    },
    /// Adds or replaces a route (same destination, table and metric) in one step.
    PutRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    RemoveRule(Rule),
    /// Makes our nftables table hold exactly this, in one transaction.
    PutFirewall(Firewall),
    /// Changes elements of our table's sets, in one transaction.
    ChangeSets {
        /// Elements that come.
        add: FirewallSets,
        /// Elements that go.
        remove: FirewallSets,
    },
    /// Removes our nftables table.
    RemoveFirewall,
    /// Makes our nftables table for ARP hold exactly this.
    PutArp(ArpMark),
    /// Removes our nftables table for ARP.
    RemoveArp,
    /// Sets a sysctl of another's interface, and notes what it was.
    SetUnderlaySysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// Value.
        value: String,
    },
    /// Sets a sysctl back to what was noted.
    RestoreSysctl {
        /// Path below `/proc/sys`.
        path: String,
    },
}

impl fmt::Display for Change {
    /// What is done to what, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDevice { name } => write!(f, "create {name}"),
            Self::DeleteDevice { name } => write!(f, "delete {name}"),
            Self::ConfigureDevice { name, .. } => write!(f, "configure {name}"),
            Self::SetMtu { name, mtu } => write!(f, "set the MTU of {name} to {mtu}"),
            Self::SetUp { name } => write!(f, "set {name} up"),
            Self::SetSysctl { path, value } => write!(f, "set {path} to {value}"),
            Self::AddAddress { name, address } => write!(f, "add {address} to {name}"),
            Self::RemoveAddress { name, address } => write!(f, "remove {address} from {name}"),
            Self::PutPeer { public_key, new: true, .. } => write!(f, "add peer {public_key}"),
            Self::PutPeer { public_key, .. } => write!(f, "change peer {public_key}"),
            Self::TakeAllowedIps { public_key, .. } => {
                write!(f, "take allowed IPs from {public_key}")
            }
            Self::RemovePeer { public_key, .. } => write!(f, "remove peer {public_key}"),
            Self::PutRoute(route) => {
                write!(f, "route {} in table {}", route.destination, route.table)
            }
            Self::RemoveRoute(route) => {
                write!(f, "remove route {} from table {}", route.destination, route.table)
            }
            Self::AddRule(rule) => write!(f, "add rule {} to table {}", rule.priority, rule.table),
            Self::RemoveRule(rule) => {
                write!(f, "remove rule {} to table {}", rule.priority, rule.table)
            }
            Self::PutFirewall(_) => f.write_str("set the nftables table inet meshd"),
            Self::ChangeSets { .. } => f.write_str("change sets of the nftables table inet meshd"),
            Self::RemoveFirewall => f.write_str("remove the nftables table inet meshd"),
            Self::PutArp(_) => f.write_str("set the nftables table arp meshd"),
            Self::RemoveArp => f.write_str("remove the nftables table arp meshd"),
            Self::SetUnderlaySysctl { path, value } => write!(f, "set {path} to {value}"),
            Self::RestoreSysctl { path } => write!(f, "set {path} back"),
        }
    }
}
