//! What crosses a wire between meshd programs.
//!
//! The messages are generated from `proto/meshd/v1/*.proto`; the checked types that they carry as
//! bytes or strings ([`NodeKey`], [`NodeName`], …) are here, so that what has been parsed once needs
//! no second look. This crate decides nothing and does no I/O.

mod keys;
mod names;

pub use keys::{BootId, KeyError, MeshId, NodeHash, NodeKey, WgPublicKey};
pub use names::{MeshName, NameError, NodeName, Zone};

/// Records, gossip frames and enrolment: what hosts say to one another.
#[allow(missing_docs, unreachable_pub, clippy::all)] // Generated; the .proto files hold the docs.
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/meshd.v1.rs"));
}

/// The control API: what `meshctl` and the daemon say to one another.
#[cfg(feature = "control")]
#[allow(missing_docs, unreachable_pub, clippy::all)] // Generated; the .proto files hold the docs.
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/control/meshd.v1.rs"));
}
