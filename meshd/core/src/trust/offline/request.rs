//! What `meshctl cert issue` asks: a certificate for a key that it has made itself.
//!
//! It comes over the signer's own control socket, from root. So there is no token, and who asks may be granted
//! whatever it says; the signature only shows that somebody has the key. The body is that of an enrolment with
//! neither token nor certificate, which is refused everywhere else.

use meshd_proto::{MeshId, NodeKey, NodeName, wire};
use prost::Message;

use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{
        anchors::Anchors,
        secret::IdentityKey,
        signing::{self, Kind},
    },
};

/// Asks for a certificate for `identity` under `name`. `nonce` is random.
#[must_use]
pub fn build_issue_request(
    identity: &IdentityKey,
    mesh: &MeshId,
    name: &NodeName,
    nonce: [u8; 16],
    now: UnixTime,
) -> wire::EnrolRequest {
    let body = wire::EnrolBody {
        mesh_id: mesh.0.to_vec().into(),
        identity_key: identity.public().0.to_vec().into(),
        name: name.to_string(),
        nonce: nonce.to_vec().into(),
        issued_at: now.0,
        ..wire::EnrolBody::default()
    }
    .encode_to_vec();
    let signature = identity.sign(Kind::EnrolIdentity, mesh, &body);
    wire::EnrolRequest {
        body: body.into(),
        identity_signature: signature.to_vec().into(),
        ..wire::EnrolRequest::default()
    }
}

/// A request whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::trust) struct IssueRequest {
    pub(in crate::trust) identity: NodeKey,
    pub(in crate::trust) name: NodeName,
    pub(in crate::trust) issued_at: UnixTime,
}

/// Reads and verifies an encoded request.
pub(in crate::trust) fn open_issue_request(
    request: &[u8],
    anchors: &Anchors,
) -> Result<IssueRequest, Refusal> {
    if request.len() > limits::ENROL_MESSAGE {
        return Err(Refusal::new(Code::TooLarge, "the request is too large"));
    }
    let signed =
        wire::EnrolRequest::decode(request).map_err(|_| malformed("it is not decodable"))?;
    let body = wire::EnrolBody::decode(&signed.body[..])
        .map_err(|_| malformed("its body is not decodable"))?;
    let mesh = anchors.mesh_id();
    if body.mesh_id[..] != mesh.0 {
        return Err(Refusal::new(Code::OtherMesh, "the request is for another mesh"));
    }
    if body.grant.is_some() || !body.certificate.is_empty() {
        return Err(malformed("it is a join, or a renewal"));
    }
    let identity =
        NodeKey::try_from(&body.identity_key[..]).map_err(|error| malformed(&error.to_string()))?;
    let key = &identity.0;
    signing::verify(key, Kind::EnrolIdentity, mesh, &signed.body, &signed.identity_signature)?;
    if body.nonce.len() != 16 {
        return Err(malformed("its nonce is not 16 bytes"));
    }
    Ok(IssueRequest {
        identity,
        name: body.name.parse().map_err(|error| malformed(&format!("{error}")))?,
        issued_at: UnixTime(body.issued_at),
    })
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("the request to issue: {why}"))
}
