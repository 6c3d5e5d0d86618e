//! What the fuzz targets share: a small mesh with real keys, a member of it under test, and plans of messages that are
//! right but for what the fuzzer changes. Not for the targets' properties, which are theirs.
//!
//! Everything follows from fixed seeds and a fixed date, so that an input always does the same.

pub mod authority;
pub mod der;
pub mod enrol;
pub mod message;
pub mod record;
pub mod victim;
pub mod world;
