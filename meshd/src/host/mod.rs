//! Facts of this host: its interfaces, addresses, gateways, name servers and name, the pod prefixes that its CNI was given, and its
//! workloads.
//!
//! Only reads. Not for what follows from the facts (preflight, plan, health): that is decided by the
//! callers, the daemon's configuration and `meshd check`.

pub mod cni;
mod facts;
mod load;
mod nameservers;
mod pod_networks;
mod read;
pub mod watch_files;
pub mod workloads;

pub use facts::{ConnectedNetwork, DefaultRoute, Facts, InnerRoute, InnerTarget, Interface};
pub use load::Load;
pub use pod_networks::pod_networks;
pub use read::read;
