//! Documents judged by themselves.

mod documents;
pub(in crate::trust) mod fake;
mod keysets;
mod told;
