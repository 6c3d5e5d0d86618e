//! Who it was that asked for a certificate and was refused, for whoever reads the log.

use meshd_proto::{NodeKey, NodeName};

use super::{anchors::Anchors, renewal, request, terms::TokenId};

/// What a request proves of who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The identity, whose key signed the request.
    pub key: NodeKey,
    /// The name that it asked for, or has.
    pub name: NodeName,
    /// The token that it came with; none for a renewal.
    pub token: Option<TokenId>,
}

/// Who made an encoded `EnrolRequest`, when all its signatures are right. It may be refused all the same.
#[must_use]
pub fn asker(request: &[u8], anchors: &Anchors) -> Option<Asker> {
    match renewal::open_renewal(request, anchors) {
        Ok(Some(renewal)) => {
            let name = renewal.certificate.name.clone();
            Some(Asker { key: renewal.identity, name, token: None })
        }
        _ => {
            let request = request::open(request, anchors).ok()?;
            let token = Some(request.terms.id);
            Some(Asker { key: request.identity, name: request.name, token })
        }
    }
}
