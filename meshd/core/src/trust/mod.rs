//! Who is who: keys, certificates, tokens, enrolment, and which records are believed.
//!
//! Nothing here knows a clock, a file or a socket: bytes, times and random numbers come in, verdicts
//! and bytes go out.
//!
//! | module | responsible for |
//! |---|---|
//! | [`signing`], `secret`, `lane` | keys, and signatures bound to their use and mesh |
//! | `ca`, `certificate`, `extension`, `rfc3779` | making and reading certificates |
//! | `anchors` | which certificates chain to the mesh's root |
//! | `record`, `verify`, `admit`, `cache`, `identity` | which records are believed; the own ones |

mod admit;
mod anchors;
mod ca;
mod cache;
mod certificate;
mod extension;
#[cfg(test)]
pub(crate) mod fixture;
mod identity;
mod lane;
mod record;
mod rfc3779;
mod secret;
pub mod signing;
#[cfg(test)]
mod tests;
mod verify;

pub use admit::admit;
pub use anchors::{Anchors, root_from_key};
pub use ca::{CaError, Intermediate, NodeTerms, RootCa};
pub use cache::VerifyCache;
pub use certificate::{server_name, spiffe_id};
pub use identity::{NodeIdentity, RecordDraft};
pub use lane::{LaneKey, check as check_lane};
pub use record::{AdmitContext, Grant, LaneInfo, NodeCertificate, Record};
pub use secret::IdentityKey;
pub use verify::{HIGHEST_VERSION, authenticate, authenticate_bytes};
