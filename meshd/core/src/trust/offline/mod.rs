//! Issuing off-line: an identity that is copied to its host as files, instead of a token.
//!
//! `request` is what `meshctl cert issue` asks a signer (the signer decides in `signer::issuing`); `files` is
//! what lies in the directory afterwards, written by `meshctl` and read by the daemon.

mod files;
mod request;

pub(super) use self::request::open_issue_request;
pub use self::{
    files::{
        IdentityFile, IdentityFiles, IssuedIdentity, Misfit, identity_files, identity_key_file,
        read_bundle, read_certificate,
    },
    request::build_issue_request,
};
