//! What the kernel should hold, and the changes that lead there.
//!
//! ```text
//! PlanInput ── plan ──► Desired ─┐
//!     ▲                          ├─ diff ──► [Change] ──► data plane
//!     └── TunnelTracker ◄── Observed
//! ```
//! [`Desired`] is computed from current state only, [`Observed`] is what the data plane read, and
//! [`diff()`] orders the [`Change`]s between the two. After a successful apply the diff is empty.
//! Called by the daemon's loop and the simulator. Touches no kernel: [`Kernel`] is one in memory.

mod blocked;
mod claims;
mod device;
mod diff;
mod draining;
mod endpoints;
mod external;
mod firewall;
mod first;
mod forwarding;
mod health;
mod hops;
mod input;
mod mirror;
mod model;
mod mtus;
mod nodes;
mod pace;
mod planner;
mod prefixes;
mod preflight;
mod repairs;
mod revive;
mod routes;
mod stays;
mod taken;
#[cfg(test)]
mod tests;
mod types;
mod unchanged;

pub use blocked::{BlockReason, Blocked};
pub use claims::{Claimant, Claims, Contest, DERIVED, Lost, grant_length};
pub use diff::diff;
pub use draining::Draining;
pub use external::{External, Externals};
pub use firewall::{
    DontFragment, Firewall, FirewallRules, FirewallSets, ObservedFirewall, SourceNat, Steering,
};
pub use first::{Due, FirstHandshakes, renewals};
pub use forwarding::Forwarded;
pub use health::TunnelTracker;
pub use input::{
    LaneKeys, Liveness, LocalNetwork, Member, PlanConfig, PlanInput, SourceFacts, SteeringSeen,
    TunnelHealth, TunnelState,
};
pub use model::{Kernel, KernelError, Verdict};
pub use nodes::CarriedNodes;
pub use pace::PlanPace;
pub use planner::{Plan, plan};
pub use repairs::RepairPace;
pub use revive::Revival;
pub use routes::ROUTE_METRIC;
pub use taken::{Foreign, ForeignRule, Taken, taken};
pub use types::{
    ArpMark, Backend, Change, Desired, Device, Family, LINK_ALIAS, Observed, ObservedArp,
    ObservedDevice, ObservedPeer, PROTOCOL, Peer, Route, RouteKind, Rule, UNREACHABLE_METRIC,
    WgPresharedKey, WgPrivateKey,
};
pub use unchanged::are_set_as;
