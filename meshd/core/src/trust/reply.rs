//! The answer to a request to enrol, as the joiner sees it.
//!
//! It may have passed through a member that lies. So nothing in it is believed that the token's root
//! key does not vouch for, and a certificate counts only for the very key and name that asked.

use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName, wire};
use thiserror::Error;

use super::{anchors::Anchors, record::NodeCertificate, terms, token::JoinToken};
use crate::refusal::{Code, Refusal};

/// Records in a reply that are looked at.
const RECORDS: usize = 16;
/// Characters of each text of a refusal that are shown.
const TEXT: usize = 300;

/// A host that was admitted.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The mesh's root and its intermediates.
    pub anchors: Anchors,
    /// The certificate.
    pub certificate: NodeCertificate,
    /// Records to start from. Not verified yet.
    pub records: Vec<wire::SignedRecord>,
    /// Prefixes that were asked for and not granted.
    pub not_granted: Vec<IpNet>,
}

/// Why a reply did not admit this host. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}; {}", self.why(), self.fix())]
pub enum EnrolError {
    /// The signer refused.
    Refused {
        /// Stable code.
        code: String,
        /// Why.
        message: String,
        /// What to do.
        fix: String,
    },
    /// What came is not from the token's mesh, or for somebody else.
    NotBelieved(Refusal),
}

impl EnrolError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::NotBelieved(refusal) => refusal.code.as_str(),
        }
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            Self::NotBelieved(refusal) => {
                format!("the answer is not believed: {}", refusal.detail)
            }
        }
    }

    /// What to do.
    #[must_use]
    pub fn fix(&self) -> &str {
        match self {
            Self::Refused { fix, .. } => fix,
            Self::NotBelieved(_) => "try another seed; the member that answered may be lying",
        }
    }
}

/// Takes a reply over when it is for exactly this key and name, in the mesh of the token.
pub fn accept_reply(
    reply: &wire::EnrolReply,
    token: &JoinToken,
    key: &NodeKey,
    name: &NodeName,
) -> Result<Enrolment, EnrolError> {
    match &reply.result {
        Some(wire::enrol_reply::Result::Accepted(accepted)) => {
            believe(accepted, token, key, name).map_err(EnrolError::NotBelieved)
        }
        Some(wire::enrol_reply::Result::Refused(refused)) => Err(EnrolError::Refused {
            code: code(&refused.code),
            message: plain(&refused.message),
            fix: plain(&refused.fix),
        }),
        None => Err(EnrolError::NotBelieved(Refusal::new(Code::Malformed, "it says nothing"))),
    }
}

fn believe(
    accepted: &wire::EnrolAccepted,
    token: &JoinToken,
    key: &NodeKey,
    name: &NodeName,
) -> Result<Enrolment, Refusal> {
    let mut anchors = Anchors::from_root(&accepted.root)?;
    if anchors.mesh() != token.mesh() || anchors.mesh_id() != token.mesh_id() {
        return Err(Refusal::new(Code::OtherMesh, "its root is another mesh's"));
    }
    let bundle = accepted
        .bundle
        .as_ref()
        .ok_or_else(|| Refusal::new(Code::Malformed, "it has no bundle of intermediates"))?;
    anchors.install_bundle(bundle)?;
    // Until here nothing was believed: the root, or one that follows it, is the token's.
    if !anchors.follows(token.root_key()) {
        return Err(Refusal::new(Code::UntrustedChain, "its root is not the one in the token"));
    }
    let certificate = anchors.check_chain(&accepted.certificate, None)?;
    if certificate.key != *key {
        return Err(Refusal::new(Code::IdentityMismatch, "its certificate is for another key"));
    }
    if certificate.name != *name {
        return Err(Refusal::new(
            Code::NameMismatch,
            format!("its certificate is for {}, and {name} was asked for", certificate.name),
        ));
    }
    Ok(Enrolment {
        anchors,
        certificate: (*certificate).clone(),
        records: accepted.records.iter().take(RECORDS).cloned().collect(),
        not_granted: terms::read_prefixes(&accepted.not_granted)?,
    })
}

/// A code of ours, or `refused`: codes go into metrics and scripts.
fn code(text: &str) -> String {
    let known = Code::ALL.iter().find(|code| code.as_str() == text);
    known.map_or("refused", |code| code.as_str()).to_owned()
}

/// A line that no terminal takes for anything else.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT).collect()
}
