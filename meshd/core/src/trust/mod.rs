//! Who is who: keys, certificates, tokens, enrolment, and which records are believed.
//!
//! Nothing here knows a clock, a file or a socket: bytes, times and random numbers come in, verdicts
//! and bytes go out.
//!
//! | module | responsible for |
//! |---|---|
//! | [`signing`], `secret`, `lane` | keys, and signatures bound to their use and mesh |
//! | `ca`, `certificate`, `extension`, `rfc3779` | making and reading certificates |
//! | `anchors`, `bundle`, `revocation`, `time` | which certificates chain to the mesh's root; whose count no more, and when |
//! | `succession`, `sealed` | roots that follow one another; their keys under a passphrase |
//! | `endings` | which certificates of the mesh itself end soon |
//! | `record`, `verify`, `admit`, `cache`, `stamp`, `identity` | which records are believed; the own ones |
//! | `terms`, `token`, `request`, `reply`, `asker` | joining: the token, what the joiner sends and believes |
//! | `issuer`, `seal` | admission by identity documents of an issuer outside |
//! | `renewal` | what a member sends for its next certificate, and believes |
//! | `offline`, [`pem`], `description` | identities that come as files; what a certificate says, for people |
//! | `signership` | becoming a signer, and ceasing to be one |
//! | `grants`, `signer`, `ledger`, `init` | admitting: who gets what, and what is kept of it |

mod admit;
mod anchors;
mod asker;
mod bundle;
mod ca;
mod cache;
mod certificate;
mod description;
mod endings;
mod extension;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grants;
mod identity;
mod init;
pub mod issuer;
mod lane;
mod ledger;
mod offline;
pub mod pem;
mod record;
mod renewal;
mod reply;
mod report;
mod request;
mod revocation;
mod rfc3779;
mod seal;
mod sealed;
mod secret;
mod signer;
mod signership;
pub mod signing;
pub(crate) mod stamp;
mod succession;
mod terms;
#[cfg(test)]
mod tests;
mod time;
mod token;
mod verify;

pub use admit::admit;
pub use anchors::{Anchors, root_from_key};
pub use asker::{Asker, asker};
pub use ca::{CaError, Intermediate, NodeTerms, RootCa};
pub use cache::VerifyCache;
pub use certificate::{server_name, spiffe_id, valid_moment};
pub use description::{CertificateKind, Description, NodeDescription, describe};
pub use endings::Ending;
pub use grants::EnrolRefusal;
pub use identity::{NodeIdentity, RecordDraft};
pub use init::{InitParams, MeshInit, init_mesh};
pub use lane::{LaneKey, check as check_lane};
pub use ledger::{LedgerEntry, LedgerEvent};
pub use offline::{
    IdentityFile, IdentityFiles, IssuedIdentity, Misfit, build_issue_request, identity_files,
    identity_key_file, read_bundle, read_certificate,
};
pub use record::{AdmitContext, Grant, LaneInfo, NodeCertificate, Record};
pub use renewal::{Renewed, accept_renewal, build_renewal};
pub use reply::{EnrolError, Enrolment, accept_reply};
pub use report::Report;
pub use request::{Decider, build_identity_request, build_request, decider};
pub use revocation::{Revocation, RevocationTerms};
pub use sealed::{SealError, StoredKey, open_key, read_key, seal_key};
pub use secret::IdentityKey;
pub use signer::{
    Enrolled, IssueTerms, Known, Signer, SignerError, TokenInfo, TokenParams, TokenState,
};
pub use signership::{Invitation, SignerEntry, build_offer, open_invite, open_offer, public_of};
pub use succession::{RootInfo, Succession};
pub use terms::{IdentityTerms, TokenId, TokenTerms};
pub use time::{Expiry, TrustTime};
pub use token::{JoinToken, TokenError};
pub(crate) use verify::read_stamped;
pub use verify::{LEAVE_VERSION, authenticate, authenticate_bytes};
