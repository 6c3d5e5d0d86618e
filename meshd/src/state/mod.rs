//! What the daemon keeps on disk.

pub mod durable;
pub mod store;
