//! The daemon's parts, as a library so that tests can drive each against a real kernel.

pub mod dataplane;
pub mod host;
