//! The daemon: I/O around the core.

pub mod state;
pub mod transport;
