//! The daemon: I/O around the core.

pub mod probe;
pub mod state;
pub mod transport;
