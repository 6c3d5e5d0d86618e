//! The daemon: I/O around the core.

pub mod config;
pub mod control;
pub mod state;
pub mod transport;
