//! The daemon's parts, as a library so that tests can drive each against a real kernel.

pub mod check;
pub mod chosen;
pub mod cleanup;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod guard;
pub mod host;
pub mod identity_dir;
pub mod jwks;
pub mod logging;
pub mod metrics;
pub mod privileges;
pub mod probe;
pub mod reconcile;
pub mod state;
pub mod transport;
mod trusted;
