//! The data plane against a real kernel, in network namespaces of its own.
//!
//! `MESHD_TEST_BACKEND=kernel|userspace cargo test -p meshd --features kernel-tests --test dataplane_linux`, as
//! root. Where it cannot run it fails.

// A test is where to panic.
#![allow(clippy::unwrap_used)]

mod changes;
mod facts;
mod foreign;
mod host;
mod traffic;
mod watch;
