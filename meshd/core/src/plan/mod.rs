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
mod endpoints;
mod firewall;
mod first;
mod health;
mod input;
mod model;
mod mtus;
mod planner;
mod prefixes;
mod preflight;
mod repairs;
mod routes;
#[cfg(test)]
mod tests;
mod types;

pub use blocked::{BlockReason, Blocked};
pub use claims::{Claimant, Claims, Contest, DERIVED, Lost, grant_length};
pub use diff::diff;
pub use firewall::{
    DontFragment, Firewall, FirewallRules, FirewallSets, ObservedFirewall, SourceNat,
};
pub use first::{Due, FirstHandshakes, renewals};
pub use health::TunnelTracker;
pub use input::{
    LaneKeys, Liveness, LocalNetwork, Member, PlanConfig, PlanInput, TunnelHealth, TunnelState,
};
pub use model::{Kernel, KernelError, Verdict};
pub use planner::{Plan, plan};
pub use repairs::RepairPace;
pub use routes::ROUTE_METRIC;
pub use types::{
    Backend, Change, Desired, Device, Family, LINK_ALIAS, Observed, ObservedDevice, ObservedPeer,
    PROTOCOL, Peer, Route, RouteKind, Rule, UNREACHABLE_METRIC, WgPrivateKey,
};
