//! What a token permits, read and checked once.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use meshd_proto::{KeyError, MeshId, NodeKey, NodeName, wire};
use prost::Message;

use super::{extension::is_group, signing::Kind};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// A token's number: what `token list` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap_or_default();
        let got = bytes.len();
        <[u8; 16]>::try_from(bytes).map(Self).map_err(|_| KeyError {
            kind: "token id",
            want: 16,
            got,
        })
    }
}

/// What a token permits, as its signer signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTerms {
    /// The token.
    pub id: TokenId,
    /// Public key of the seed in it.
    pub token_key: [u8; 32],
    /// The node that signs for it.
    pub signer: NodeKey,
    /// The intermediate that signed these terms.
    pub intermediate_key: [u8; 32],
    /// Last second in which it admits anyone.
    pub expires_at: UnixTime,
    /// Distinct identities that it admits.
    pub uses: u32,
    /// The only name that it admits.
    pub node_name: Option<NodeName>,
    /// Granted exactly. Sorted.
    pub prefixes: Vec<IpNet>,
    /// What is asked for within these is granted. Sorted.
    pub allow: Vec<IpNet>,
    /// Single addresses of these may be claimed. Sorted.
    pub pools: Vec<IpNet>,
    /// Groups of who joins with it.
    pub groups: Vec<String>,
    /// It admits by identity documents only, which say the rest.
    pub identity: Option<IdentityTerms>,
}

/// By which identity documents a token admits. Nothing of such a token is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityTerms {
    /// The issuer's name on the signer.
    pub issuer: String,
    /// To which documents are sealed.
    pub seal_key: [u8; 32],
    /// The audience of documents; `None`: that of the joiner's key.
    pub audience: Option<String>,
}

impl IdentityTerms {
    fn decode(grant: &wire::IdentityGrant) -> Result<Self, Refusal> {
        if !is_issuer_name(&grant.issuer) || grant.audience.len() > limits::IDENTITY_AUDIENCE {
            return Err(malformed("its issuer or audience is no short name"));
        }
        let seal_key = <[u8; 32]>::try_from(&grant.seal_key[..])
            .map_err(|_| malformed("a key that is not 32 bytes"))?;
        let audience = (!grant.audience.is_empty()).then(|| grant.audience.clone());
        Ok(Self { issuer: grant.issuer.clone(), seal_key, audience })
    }
}

/// What an issuer's file may be called: as a group may.
pub(super) fn is_issuer_name(name: &str) -> bool {
    is_group(name)
}

impl TokenTerms {
    pub(super) fn encode(&self, mesh_id: &MeshId) -> Vec<u8> {
        wire::TokenGrant {
            mesh_id: mesh_id.0.to_vec().into(),
            id: self.id.0.to_vec().into(),
            token_key: self.token_key.to_vec().into(),
            signer: self.signer.0.to_vec().into(),
            intermediate_key: self.intermediate_key.to_vec().into(),
            expires_at: self.expires_at.0,
            uses: self.uses,
            node_name: self.node_name.as_ref().map(ToString::to_string).unwrap_or_default(),
            prefixes: self.prefixes.iter().map(address::prefix_to_wire).collect(),
            allow: self.allow.iter().map(address::prefix_to_wire).collect(),
            groups: self.groups.clone(),
            pools: self.pools.iter().map(address::prefix_to_wire).collect(),
            identity: self.identity.as_ref().map(|identity| wire::IdentityGrant {
                issuer: identity.issuer.clone(),
                seal_key: identity.seal_key.to_vec().into(),
                audience: identity.audience.clone().unwrap_or_default(),
            }),
        }
        .encode_to_vec()
    }

    /// What the signature over these terms is for.
    pub(super) fn kind(&self) -> Kind {
        if self.identity.is_some() { Kind::IdentityGrant } else { Kind::TokenGrant }
    }

    /// Reads terms of this mesh. Their signature is verified by the caller.
    pub(super) fn decode(payload: &[u8], mesh_id: &MeshId) -> Result<Self, Refusal> {
        let grant = wire::TokenGrant::decode(payload).map_err(|_| malformed("not decodable"))?;
        if grant.mesh_id[..] != mesh_id.0 {
            return Err(Refusal::new(Code::OtherMesh, "token: of another mesh"));
        }
        let key = |bytes: &[u8]| {
            <[u8; 32]>::try_from(bytes).map_err(|_| malformed("a key that is not 32 bytes"))
        };
        let id =
            <[u8; 16]>::try_from(&grant.id[..]).map_err(|_| malformed("its id is not 16 bytes"))?;
        let node_name = match grant.node_name.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error| malformed(&format!("{error}")))?),
        };
        if grant.groups.len() > limits::GROUPS || !grant.groups.iter().all(|g| is_group(g)) {
            return Err(malformed("too many groups, or one that is no name"));
        }
        if grant.expires_at < 0 || grant.uses == 0 {
            return Err(malformed("it admits nobody"));
        }
        Ok(Self {
            id: TokenId(id),
            token_key: key(&grant.token_key)?,
            signer: NodeKey(key(&grant.signer)?),
            intermediate_key: key(&grant.intermediate_key)?,
            expires_at: UnixTime(grant.expires_at),
            uses: grant.uses,
            node_name,
            prefixes: read_prefixes(&grant.prefixes)?,
            allow: read_prefixes(&grant.allow)?,
            pools: read_prefixes(&grant.pools)?,
            groups: grant.groups,
            identity: grant.identity.as_ref().map(IdentityTerms::decode).transpose()?,
        })
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("token: {why}"))
}

/// Prefixes of a token or a request: few, each well formed. Comes out sorted, each once.
pub(super) fn read_prefixes(prefixes: &[wire::IpPrefix]) -> Result<Vec<IpNet>, Refusal> {
    if prefixes.len() > limits::ENROL_PREFIXES {
        return Err(Refusal::new(
            Code::TooLarge,
            format!("{} prefixes, at most {} are taken", prefixes.len(), limits::ENROL_PREFIXES),
        ));
    }
    let mut read = prefixes.iter().map(address::prefix_from_wire).collect::<Result<Vec<_>, _>>()?;
    read.sort_unstable();
    read.dedup();
    Ok(read)
}
