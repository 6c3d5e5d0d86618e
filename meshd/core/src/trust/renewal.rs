//! A member asks for its next certificate, and judges the answer.
//!
//! The request is that of a joiner with the certificate in the place of a token. Any member may carry it, to
//! any signer: there is no secret in it, and what comes back is of use to nobody else. It may also come
//! through the door of strangers, from a host whose certificate ended while it was off.

use std::sync::Arc;

use ipnet::IpNet;
use meshd_proto::{NodeKey, wire};
use prost::Message;

use super::{
    anchors::Anchors,
    identity::NodeIdentity,
    record::NodeCertificate,
    signing::{self, Kind},
    terms,
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Asks for the next certificate. `wanted` are the prefixes that this host routes for: those within the
/// certificate's limits are granted. `anyway`: though the one that is held would do. `nonce` is random.
#[must_use]
pub fn build_renewal(
    identity: &NodeIdentity,
    wanted: &[IpNet],
    anyway: bool,
    nonce: [u8; 16],
    now: UnixTime,
) -> wire::EnrolRequest {
    let mesh = &identity.certificate.mesh_id;
    let body = wire::EnrolBody {
        mesh_id: mesh.0.to_vec().into(),
        identity_key: identity.public().0.to_vec().into(),
        name: identity.certificate.name.to_string(),
        wanted: wanted.iter().take(limits::ENROL_PREFIXES).map(address::prefix_to_wire).collect(),
        grant: None,
        nonce: nonce.to_vec().into(),
        issued_at: now.0,
        certificate: identity.certificate.der.clone(),
        anyway,
        sealed_document: bytes::Bytes::new(),
    }
    .encode_to_vec();
    let signature = identity.key.sign(Kind::EnrolIdentity, mesh, &body);
    wire::EnrolRequest {
        body: body.into(),
        token_signature: bytes::Bytes::new(),
        identity_signature: signature.to_vec().into(),
    }
}

/// A request for renewal whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renewal {
    pub(super) identity: NodeKey,
    /// As shown: it may be out of date, and its issuer may be unknown here.
    pub(super) certificate: NodeCertificate,
    pub(super) wanted: Vec<IpNet>,
    pub(super) issued_at: UnixTime,
    pub(super) anyway: bool,
}

/// Reads a request for renewal; `None`: it is a joiner's.
pub(super) fn open_renewal(request: &[u8], anchors: &Anchors) -> Result<Option<Renewal>, Refusal> {
    if request.len() > limits::ENROL_MESSAGE {
        return Err(Refusal::new(Code::TooLarge, "renewal: the request is too large"));
    }
    let signed =
        wire::EnrolRequest::decode(request).map_err(|_| malformed("it is not decodable"))?;
    let body = wire::EnrolBody::decode(&signed.body[..])
        .map_err(|_| malformed("its body is not decodable"))?;
    if body.certificate.is_empty() {
        return Ok(None);
    }
    if body.grant.is_some() {
        return Err(malformed("it has both a token and a certificate"));
    }
    let mesh = anchors.mesh_id();
    if body.mesh_id[..] != mesh.0 {
        return Err(Refusal::new(Code::OtherMesh, "renewal: asked for in another mesh"));
    }
    let certificate = NodeCertificate::parse(&body.certificate)?;
    if certificate.key.0[..] != body.identity_key[..] {
        return Err(Refusal::new(
            Code::IdentityMismatch,
            "renewal: the certificate is for another key than the one that asks",
        ));
    }
    if certificate.mesh_id != *mesh || certificate.mesh != *anchors.mesh() {
        return Err(Refusal::new(Code::OtherMesh, "renewal: of another mesh's certificate"));
    }
    let key = &certificate.key.0;
    signing::verify(key, Kind::EnrolIdentity, mesh, &signed.body, &signed.identity_signature)?;
    if body.nonce.len() != 16 {
        return Err(malformed("its nonce is not 16 bytes"));
    }
    Ok(Some(Renewal {
        identity: certificate.key,
        certificate,
        wanted: terms::read_prefixes(&body.wanted)?,
        issued_at: UnixTime(body.issued_at),
        anyway: body.anyway,
    }))
}

/// What a signer gave.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// The certificate.
    pub certificate: Arc<NodeCertificate>,
    /// Prefixes that were asked for and not granted.
    pub not_granted: Vec<IpNet>,
    /// The signer's bundle, when it is another than the one that is held: to be installed first.
    pub bundle: Option<wire::SignedBundle>,
}

/// Takes an answer over when it is a later certificate for exactly this identity, name and mesh. `anchors`
/// become those of the answer if the root signed them.
///
/// It must have begun: one that begins years from now would put its node out, and no later one of another
/// signer could replace it.
pub fn accept_renewal(
    reply: &wire::EnrolReply,
    current: &NodeCertificate,
    anchors: &mut Anchors,
    now: UnixTime,
) -> Result<Renewed, Refusal> {
    let accepted = match &reply.result {
        Some(wire::enrol_reply::Result::Accepted(accepted)) => accepted,
        Some(wire::enrol_reply::Result::Refused(refused)) => {
            let known = Code::ALL.iter().find(|code| code.as_str() == refused.code);
            let code = known.copied().unwrap_or(Code::Malformed);
            let why: String =
                refused.message.chars().filter(|c| !c.is_control()).take(300).collect();
            return Err(Refusal::new(code, why));
        }
        None => return Err(malformed("the answer says nothing")),
    };
    let mut bundle = None;
    if let Some(signed) = &accepted.bundle
        && anchors.install_bundle(signed)?
    {
        bundle = Some(signed.clone());
    }
    let certificate = anchors.check_chain(&accepted.certificate, None)?;
    if certificate.key != current.key {
        return Err(Refusal::new(Code::IdentityMismatch, "its certificate is for another key"));
    }
    if certificate.name != current.name || certificate.enrolment_id != current.enrolment_id {
        return Err(Refusal::new(Code::NameMismatch, "its certificate is for another node"));
    }
    certificate.check_dates(anchors.trust_time(now))?;
    // What a signer that counts no more gave may be dated wrongly.
    let counts = anchors.issuer_of(current).is_some() && !anchors.is_from_retiring(current);
    if counts && certificate.not_before < current.not_before {
        return Err(Refusal::new(Code::SupersededCertificate, "it is older than the one held"));
    }
    let not_granted = terms::read_prefixes(&accepted.not_granted)?;
    Ok(Renewed { certificate, not_granted, bundle })
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("renewal: {why}"))
}
