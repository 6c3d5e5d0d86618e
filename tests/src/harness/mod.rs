//! Several hosts on one machine, for tests that run the real, unmodified programs.
//!
//! A [`World`] is an underlay (a bridge with IPv4 and IPv6) and what it collects; a [`Host`] is a network, mount and
//! host-name namespace on it, in which `meshd` and `meshctl` find their default paths to themselves; a [`Pod`] is made
//! by the real CNI plugins. Nothing here knows how meshd works inside: it starts processes, reads what they print and
//! looks at the kernel with `ip`, `wg`, `nft` and `tcpdump`. Needs root.
//!
//! Every namespace is held by one process that ends at the end of its standard input, and ends whatever still runs in
//! its namespace before that. So a test that panics, or is killed, leaves nothing behind either.
//!
//! Used by the scenarios in `tests/tests/` and by the demo.

mod capture;
mod control;
mod counters;
mod daemon;
mod fence;
mod flow;
mod host;
mod issuer;
mod losses;
mod mesh;
mod monitor;
mod place;
mod pod;
mod process;
mod router;
mod snapshot;
mod wait;
mod wireguard;
mod workload;
mod world;

pub use capture::{Capture, Captured};
pub use control::{Health, Peer, PeerTotals, Status};
pub use counters::Counters;
pub use daemon::Daemon;
pub use fence::Fence;
pub use flow::{Direction, Flow, FlowReport, Gap};
pub use host::{Host, HostPlan};
pub use issuer::{TestIssuer, WebPki, unix_now};
pub use losses::{LOSSES, REBOOT};
pub use mesh::Mesh;
pub use monitor::Monitor;
pub use place::{Place, Space};
pub use pod::{Pod, PodPlan};
pub use process::{Ran, Running, run};
pub use router::Router;
pub use snapshot::Snapshot;
pub use wait::{in_vm, pace, wait_for};
pub use wireguard::WgPeer;
pub use workload::{WORKLOAD_RANGES, Workload};
pub use world::{Backend, World, crowded_scenario, scenario};
