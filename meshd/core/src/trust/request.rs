//! The request to enrol: made by a joiner, opened by whoever it meets.
//!
//! It carries no secret: a public key that is to be certified, what the token's signer granted, and
//! two signatures over both, by the token's key and by the identity. So any member may carry it, and
//! the most that a bad one can do is not to. An identity document is a secret and is sealed to the signer. Members open it before they carry it, so that a stranger
//! without a token costs the signer nothing.

use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName, wire};
use prost::Message;

use super::{
    anchors::Anchors,
    record::NodeCertificate,
    renewal,
    seal::Envelope,
    secret::IdentityKey,
    signing::{self, Kind},
    terms::{self, TokenTerms},
    token::JoinToken,
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Asks for a certificate for `identity`, whose key must be on disk by now.
///
/// `wanted` are the prefixes that this host routes for; the signer grants those within the token's
/// limits. More than 64 are cut off. `nonce` is random.
#[must_use]
pub fn build_request(
    token: &JoinToken,
    identity: &IdentityKey,
    name: &NodeName,
    wanted: &[IpNet],
    nonce: [u8; 16],
    now: UnixTime,
) -> wire::EnrolRequest {
    build(token, identity, name, wanted, bytes::Bytes::new(), nonce, now)
}

/// The same with a token that admits by identity documents, and such a document.
///
/// # Errors
/// When the token is none of that kind, or the document is too large.
pub fn build_identity_request(
    token: &JoinToken,
    identity: &IdentityKey,
    name: &NodeName,
    wanted: &[IpNet],
    document: &[u8],
    nonce: [u8; 16],
    now: UnixTime,
) -> Result<wire::EnrolRequest, Refusal> {
    let sealed = seal(token, identity, document)?.into();
    Ok(build(token, identity, name, wanted, sealed, nonce, now))
}

fn build(
    token: &JoinToken,
    identity: &IdentityKey,
    name: &NodeName,
    wanted: &[IpNet],
    sealed_document: bytes::Bytes,
    nonce: [u8; 16],
    now: UnixTime,
) -> wire::EnrolRequest {
    let body = wire::EnrolBody {
        mesh_id: token.mesh_id().0.to_vec().into(),
        identity_key: identity.public().0.to_vec().into(),
        name: name.to_string(),
        wanted: wanted.iter().take(limits::ENROL_PREFIXES).map(address::prefix_to_wire).collect(),
        grant: Some(token.grant().clone()),
        nonce: nonce.to_vec().into(),
        issued_at: now.0,
        certificate: bytes::Bytes::new(),
        anyway: false,
        sealed_document,
    }
    .encode_to_vec();
    let token_signature = signing::sign(token.seed(), Kind::EnrolToken, token.mesh_id(), &body);
    let identity_signature = identity.sign(Kind::EnrolIdentity, token.mesh_id(), &body);
    wire::EnrolRequest {
        body: body.into(),
        token_signature: token_signature.to_vec().into(),
        identity_signature: identity_signature.to_vec().into(),
    }
}

/// The document as only the token's signer can read it.
fn seal(token: &JoinToken, identity: &IdentityKey, document: &[u8]) -> Result<Vec<u8>, Refusal> {
    let Some(terms) = &token.terms().identity else {
        let why = "the token admits by itself: it takes no identity document";
        return Err(Refusal::new(Code::IdentityIssuer, why));
    };
    let document = document.trim_ascii();
    if document.is_empty() || document.len() > limits::IDENTITY_DOCUMENT {
        let why = "the identity document is empty, or larger than 8 KiB";
        return Err(Refusal::new(Code::IdentityMalformed, why));
    }
    let joiner = identity.public();
    let envelope = Envelope { mesh: token.mesh_id(), joiner: &joiner, token: &token.terms().id };
    envelope
        .seal(&terms.seal_key, document)
        .ok_or_else(|| malformed("the token's key for documents is no key"))
}

/// A request whose signatures are right and whose token an intermediate of this mesh signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) identity: NodeKey,
    pub(super) name: NodeName,
    pub(super) wanted: Vec<IpNet>,
    pub(super) grant: wire::SignedGrant,
    pub(super) terms: TokenTerms,
    pub(super) issued_at: UnixTime,
    /// Empty: none.
    pub(super) sealed_document: bytes::Bytes,
}

/// Who can decide on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decider {
    /// The signer of the token.
    Signer(NodeKey),
    /// Any: it is a renewal.
    Any,
}

/// Who can decide on a request, after all of it that any member can verify was verified. `known`: a certificate
/// that was seen here while its issuer counted.
pub fn decider(
    request: &[u8],
    anchors: &Anchors,
    known: impl Fn(&NodeCertificate) -> bool,
) -> Result<Decider, Refusal> {
    if let Some(renewal) = renewal::open_renewal(request, anchors)? {
        anchors.check_membership(&renewal.identity)?;
        if !known(&renewal.certificate) {
            anchors.check_chain(&renewal.certificate.der, None)?;
            if anchors.is_from_retiring(&renewal.certificate) {
                let why = "renewal: its certificate is from a signer that is retiring";
                return Err(Refusal::new(Code::UnknownIssuer, why));
            }
        }
        return Ok(Decider::Any);
    }
    open(request, anchors).map(|request| Decider::Signer(request.terms.signer))
}

/// Reads and verifies an encoded `EnrolRequest`.
pub(super) fn open(request: &[u8], anchors: &Anchors) -> Result<Request, Refusal> {
    if request.len() > limits::ENROL_MESSAGE {
        return Err(Refusal::new(Code::TooLarge, "enrolment: the request is too large"));
    }
    let signed =
        wire::EnrolRequest::decode(request).map_err(|_| malformed("it is not decodable"))?;
    let body = wire::EnrolBody::decode(&signed.body[..])
        .map_err(|_| malformed("its body is not decodable"))?;
    let mesh = anchors.mesh_id();
    if body.mesh_id[..] != mesh.0 {
        return Err(Refusal::new(Code::OtherMesh, "enrolment: asked for in another mesh"));
    }
    let identity =
        NodeKey::try_from(&body.identity_key[..]).map_err(|error| malformed(&error.to_string()))?;
    let grant = body.grant.ok_or_else(|| malformed("it has no token"))?;
    let terms = TokenTerms::decode(&grant.payload, mesh)?;
    if !anchors.may_have_granted(&terms.intermediate_key) {
        return Err(Refusal::new(
            Code::TokenUnknown,
            "enrolment: no signer of this mesh made the token",
        ));
    }
    let issuer = &terms.intermediate_key;
    signing::verify(issuer, terms.kind(), mesh, &grant.payload, &grant.signature)?;
    let token_key = &terms.token_key;
    signing::verify(token_key, Kind::EnrolToken, mesh, &signed.body, &signed.token_signature)?;
    let key = &identity.0;
    signing::verify(key, Kind::EnrolIdentity, mesh, &signed.body, &signed.identity_signature)?;
    if body.nonce.len() != 16 {
        return Err(malformed("its nonce is not 16 bytes"));
    }
    Ok(Request {
        identity,
        name: body.name.parse().map_err(|error| malformed(&format!("{error}")))?,
        wanted: terms::read_prefixes(&body.wanted)?,
        grant,
        terms,
        issued_at: UnixTime(body.issued_at),
        sealed_document: body.sealed_document,
    })
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("enrolment: {why}"))
}
