//! Requests for a certificate: of a joiner with a token, and of a member that renews.

use arbitrary::Arbitrary;
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use meshd_core::trust::{IdentityKey, build_renewal, build_request, signing::Kind};
use meshd_proto::wire;
use prost::Message;

use crate::{
    record::Prefix,
    world::{NOW, World},
};

/// One change of a request.
#[derive(Debug, Clone, Arbitrary)]
pub enum Change {
    Name(String),
    NameOf(u8),
    Wanted(Vec<Prefix>),
    Nonce(Vec<u8>),
    IssuedLater(i32),
    Mesh([u8; 16]),
    IdentityOf(u8),
    CertificateOf(u8),
    NoGrant,
    Anyway(bool),
    GrantByte(u16, u8),
    GrantSignatureByte(u8, u8),
    Byte(u16, u8),
    TokenSignatureByte(u8, u8),
    IdentitySignatureByte(u8, u8),
}

/// Who asks, and how.
#[derive(Debug, Clone, Arbitrary)]
pub enum Asks {
    /// Somebody new, by number.
    Joiner(u8),
    /// A member.
    Member(u8),
}

/// A request.
#[derive(Debug, Clone, Arbitrary)]
pub struct Request {
    pub asks: Asks,
    pub changes: Vec<Change>,
}

impl Request {
    /// Signed by who asks, and by the token.
    pub fn encode(&self, world: &World) -> Vec<u8> {
        let (request, identity) = match self.asks {
            Asks::Joiner(number) => {
                let key = IdentityKey::from_seed(&[number | 0x80; 32]);
                let name = format!("joiner{number}").parse().expect("a name");
                let wanted = ["10.129.0.0/24".parse().expect("a prefix")];
                (build_request(&world.token, &key, &name, &wanted, [5; 16], NOW), key)
            }
            Asks::Member(number) => {
                let identity = &world.any(number).identity;
                let wanted = ["10.130.0.0/24".parse().expect("a prefix")];
                (build_renewal(identity, &wanted, false, [5; 16], NOW), identity.key.clone())
            }
        };
        self.sign(world, &request, &identity)
    }

    fn sign(&self, world: &World, before: &wire::EnrolRequest, identity: &IdentityKey) -> Vec<u8> {
        let mut body = wire::EnrolBody::decode(before.body.clone()).expect("a body");
        self.changes.iter().for_each(|change| apply(world, &mut body, change));
        let mut bytes = body.encode_to_vec();
        for change in &self.changes {
            if let Change::Byte(at, with) = change {
                flip(&mut bytes, usize::from(*at), *with);
            }
        }
        let mut signature = identity.sign(Kind::EnrolIdentity, world.mesh_id(), &bytes).to_vec();
        let mut token = if before.token_signature.is_empty() {
            Vec::new()
        } else {
            token_key(world).sign(Kind::EnrolToken, world.mesh_id(), &bytes).to_vec()
        };
        for change in &self.changes {
            match change {
                Change::IdentitySignatureByte(at, with) => {
                    flip(&mut signature, usize::from(*at), *with)
                }
                Change::TokenSignatureByte(at, with) => flip(&mut token, usize::from(*at), *with),
                _ => {}
            }
        }
        let request = wire::EnrolRequest {
            body: bytes.into(),
            token_signature: token.into(),
            identity_signature: signature.into(),
        };
        request.encode_to_vec()
    }
}

/// The token's own key: any Ed25519 seed signs alike.
fn token_key(world: &World) -> IdentityKey {
    let text = world.token.encode();
    let body = text.split_once('.').expect("a token").1;
    let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).expect("base64");
    let message = wire::Token::decode(&bytes[2..bytes.len() - 4]).expect("a token");
    IdentityKey::from_seed(&message.seed[..].try_into().expect("a seed"))
}

fn flip(bytes: &mut [u8], at: usize, with: u8) {
    if !bytes.is_empty() {
        let at = at % bytes.len();
        bytes[at] ^= with;
    }
}

fn apply(world: &World, body: &mut wire::EnrolBody, change: &Change) {
    let grant_byte = |bytes: &Bytes, at: usize, with: u8| {
        let mut bytes = bytes.to_vec();
        flip(&mut bytes, at, with);
        Bytes::from(bytes)
    };
    match change {
        Change::Name(name) => body.name.clone_from(name),
        Change::NameOf(number) => {
            body.name = world.any(*number).identity.certificate.name.to_string()
        }
        Change::Wanted(list) => body.wanted = list.iter().map(Prefix::to_wire).collect(),
        Change::Nonce(nonce) => body.nonce = nonce.clone().into(),
        Change::IssuedLater(by) => body.issued_at = NOW.plus(i64::from(*by)).0,
        Change::Mesh(id) => body.mesh_id = id.to_vec().into(),
        Change::IdentityOf(number) => {
            body.identity_key = world.any(*number).key().0.to_vec().into()
        }
        Change::CertificateOf(number) => {
            body.certificate = world.any(*number).signed.certificate.clone()
        }
        Change::NoGrant => body.grant = None,
        Change::Anyway(anyway) => body.anyway = *anyway,
        Change::GrantByte(at, with) => {
            if let Some(grant) = &mut body.grant {
                grant.payload = grant_byte(&grant.payload, usize::from(*at), *with);
            }
        }
        Change::GrantSignatureByte(at, with) => {
            if let Some(grant) = &mut body.grant {
                grant.signature = grant_byte(&grant.signature, usize::from(*at), *with);
            }
        }
        Change::Byte(..) | Change::TokenSignatureByte(..) | Change::IdentitySignatureByte(..) => {}
    }
}
