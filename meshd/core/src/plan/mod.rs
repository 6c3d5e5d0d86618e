//! What the kernel should hold, and the changes that lead there.
//!
//! [`Desired`] is computed from current state only, [`Observed`] is what the data plane read, and
//! `diff` orders the [`Change`]s between the two. After a successful apply the diff is empty.

mod types;

pub use types::{
    Backend, Change, Desired, Device, Family, ObservedDevice, ObservedPeer, Observed, Peer, Route,
    RouteKind, Rule, SourceNat, WgPrivateKey,
};
