//! What a signer must never forget, entry by entry.
//!
//! Entries are appended and fsynced by the daemon before anybody is told of what they say. An entry
//! of a kind that this version does not know is an error: who skipped it might grant twice.

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{MeshId, NodeKey, wire};
use prost::Message;

use super::{
    issuer::Voucher,
    record::NodeCertificate,
    terms::{self, TokenId, TokenTerms},
};
use crate::{
    address,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// One entry of a signer's ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    /// When.
    pub time: UnixTime,
    /// What.
    pub event: LedgerEvent,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum LedgerEvent {
    /// The first entry of every ledger.
    Founded {
        /// IPv4 addresses inside the mesh.
        ipv4_pool: Ipv4Net,
    },
    /// A token was made.
    TokenCreated {
        /// What it permits.
        terms: Box<TokenTerms>,
        /// The same, as signed.
        grant: wire::SignedGrant,
    },
    /// A node was admitted.
    Enrolled {
        /// With which token; `None` for the host that founded the mesh, and for what was issued off-line.
        token: Option<TokenId>,
        /// What it got.
        certificate: Arc<NodeCertificate>,
        /// What it did not get.
        not_granted: Vec<IpNet>,
        /// It was a member, and this is its next certificate.
        renewal: bool,
        /// By which identity document, if by one.
        voucher: Option<Voucher>,
    },
    /// What was left of a token's uses ended.
    TokenRevoked {
        /// Which.
        id: TokenId,
    },
    /// A node's signed leave was seen.
    Departed {
        /// Whose.
        key: NodeKey,
    },
}

impl LedgerEntry {
    /// The entry as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::ledger_entry::Event;
        let event = match &self.event {
            LedgerEvent::Founded { ipv4_pool } => Event::Founded(wire::LedgerFounded {
                ipv4_pool: Some(address::prefix_to_wire(&IpNet::V4(*ipv4_pool))),
            }),
            LedgerEvent::TokenCreated { grant, .. } => {
                Event::TokenCreated(wire::LedgerTokenCreated { grant: Some(grant.clone()) })
            }
            LedgerEvent::Enrolled { token, certificate, not_granted, renewal, voucher } => {
                Event::Enrolled(wire::LedgerEnrolled {
                    token_id: token.map(|id| id.0.to_vec()).unwrap_or_default().into(),
                    certificate: certificate.der.clone(),
                    not_granted: not_granted.iter().map(address::prefix_to_wire).collect(),
                    renewal: *renewal,
                    voucher: voucher.as_ref().map(|voucher| wire::LedgerVoucher {
                        issuer: voucher.issuer.clone(),
                        rule: voucher.rule.clone(),
                        subject: voucher.subject.to_vec().into(),
                        document: voucher.document.to_vec().into(),
                    }),
                })
            }
            LedgerEvent::TokenRevoked { id } => {
                Event::TokenRevoked(wire::LedgerTokenRevoked { token_id: id.0.to_vec().into() })
            }
            LedgerEvent::Departed { key } => {
                Event::Departed(wire::LedgerDeparted { identity_key: key.0.to_vec().into() })
            }
        };
        wire::LedgerEntry { time: self.time.0, event: Some(event) }.encode_to_vec()
    }

    /// Reads an entry of this mesh's ledger.
    pub fn decode(bytes: &[u8], mesh: &MeshId) -> Result<Self, Refusal> {
        use wire::ledger_entry::Event;
        let entry =
            wire::LedgerEntry::decode(bytes).map_err(|_| malformed("an entry is not decodable"))?;
        let event = entry.event.ok_or_else(|| {
            malformed("it has an entry of a later version of meshd; install that")
        })?;
        let event = match event {
            Event::Founded(founded) => {
                let pool = founded.ipv4_pool.ok_or_else(|| malformed("it has no pool"))?;
                match address::prefix_from_wire(&pool)? {
                    IpNet::V4(ipv4_pool) => LedgerEvent::Founded { ipv4_pool },
                    IpNet::V6(_) => return Err(malformed("its pool is not IPv4")),
                }
            }
            Event::TokenCreated(created) => {
                let grant = created.grant.ok_or_else(|| malformed("a token without a grant"))?;
                let terms = Box::new(TokenTerms::decode(&grant.payload, mesh)?);
                LedgerEvent::TokenCreated { terms, grant }
            }
            Event::Enrolled(enrolled) => LedgerEvent::Enrolled {
                token: match &enrolled.token_id[..] {
                    [] => None,
                    id => Some(token_id(id)?),
                },
                certificate: Arc::new(NodeCertificate::parse(&enrolled.certificate)?),
                not_granted: terms::read_prefixes(&enrolled.not_granted)?,
                renewal: enrolled.renewal,
                voucher: enrolled.voucher.map(read_voucher).transpose()?,
            },
            Event::TokenRevoked(revoked) => {
                LedgerEvent::TokenRevoked { id: token_id(&revoked.token_id)? }
            }
            Event::Departed(departed) => LedgerEvent::Departed {
                key: NodeKey::try_from(&departed.identity_key[..])
                    .map_err(|error| malformed(&error.to_string()))?,
            },
        };
        Ok(Self { time: UnixTime(entry.time), event })
    }
}

fn read_voucher(voucher: wire::LedgerVoucher) -> Result<Voucher, Refusal> {
    let hash = |bytes: &[u8]| {
        <[u8; 32]>::try_from(bytes).map_err(|_| malformed("a document's hash is not 32 bytes"))
    };
    Ok(Voucher {
        subject: hash(&voucher.subject)?,
        document: hash(&voucher.document)?,
        issuer: voucher.issuer,
        rule: voucher.rule,
    })
}

fn token_id(bytes: &[u8]) -> Result<TokenId, Refusal> {
    bytes.try_into().map(TokenId).map_err(|_| malformed("a token id that is not 16 bytes"))
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("ledger: {why}"))
}
