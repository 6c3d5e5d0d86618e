//! The control API's server: gRPC over a unix socket, for `meshctl`.
//!
//! Responsible for the socket file, for who may call what, for limits, and for turning errors into
//! the form that `meshctl` shows. What a call does is the daemon's, behind [`ControlBackend`].

mod backend;
mod error;
mod filter;
mod permission;
mod server;
mod socket;

pub use backend::{ControlBackend, Reply, ReplyStream};
pub use error::ControlError;
pub use filter::PeerFilter;
pub use permission::{Caller, Readers};
pub use server::serve;
pub use socket::{ControlSocket, SocketError};
