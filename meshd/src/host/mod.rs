//! Facts of this host: its interfaces, addresses, gateways and name, and the pod prefixes that its CNI
//! was given.
//!
//! Only reads. Not for what follows from the facts (preflight, plan, health): that is decided by the
//! callers, the daemon's configuration and `meshd check`.

pub mod cni;
mod facts;
mod read;

pub use facts::{ConnectedNetwork, DefaultRoute, Facts, Interface};
pub use read::read;
