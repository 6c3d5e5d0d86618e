//! Decoders that only certificates and tokens lead to, opened to `tests/fuzz`: behind a whole certificate, which must
//! be right to its last byte, they would hardly be reached.

use ipnet::IpNet;
use meshd_proto::MeshId;

use super::{extension::Grants, rfc3779, terms::TokenTerms};
use crate::refusal::Refusal;

/// Reads the private extension of a node certificate, and writes it again.
pub fn recode_extension(der: &[u8]) -> Result<Vec<u8>, Refusal> {
    Grants::decode(der).map(|grants| grants.encode())
}

/// The address blocks of a certificate that grants `prefixes`.
#[must_use]
pub fn address_blocks(prefixes: &[IpNet]) -> Vec<u8> {
    rfc3779::encode(prefixes)
}

/// Reads what a token permits, and writes it again.
pub fn recode_token_terms(payload: &[u8], mesh: &MeshId) -> Result<Vec<u8>, Refusal> {
    TokenTerms::decode(payload, mesh).map(|terms| terms.encode(mesh))
}
