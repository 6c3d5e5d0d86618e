//! A signer in memory: what its ledger says, entry after entry.
//!
//! Nothing else changes a signer. Called at the start for all entries, and for new ones once they are on disk.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::{Signer, tokens::Token};
use crate::{
    limits,
    now::UnixTime,
    refusal::Refusal,
    trust::{
        anchors::Anchors,
        ca::{CaError, Intermediate},
        ledger::{LedgerEntry, LedgerEvent},
        record::NodeCertificate,
        seal::SealKey,
        secret::IdentityKey,
        terms::TokenId,
    },
};

/// A signer that cannot work with what is stored. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignerError {
    /// Certificate and key of the intermediate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// An entry of the ledger.
    #[error("entry {number} of the signer's ledger is not usable: {why}")]
    Ledger {
        /// Counted from 1.
        number: usize,
        /// Why.
        why: Refusal,
    },
    /// A ledger without its first entry.
    #[error("the signer's ledger does not say what addresses the mesh has")]
    Unfounded,
    /// Nobody would believe what it signs.
    #[error("this signer's intermediate is not in the mesh's bundle; another signer must add it")]
    NotInBundle,
}

/// The newest certificate of an identity.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) token: Option<TokenId>,
    pub(super) certificate: Arc<NodeCertificate>,
    pub(super) not_granted: Vec<IpNet>,
    /// From when on the certificate counts that it was admitted with, before all renewals.
    pub(super) since: UnixTime,
    /// When what it was given is paid off: each certificate costs [`limits::RENEW_ANYWAY_SECONDS`].
    pub(super) paid_at: UnixTime,
    /// It has left, which is final: an identity does not come back.
    pub(super) departed: bool,
}

/// When one more certificate, given at `now`, is paid off. A clock that was ahead costs no more than all in a row do.
fn pay(owed: Option<UnixTime>, now: UnixTime) -> UnixTime {
    let most = now.plus(limits::RENEW_ANYWAY_SECONDS * limits::RENEW_IN_A_ROW);
    owed.unwrap_or(now).max(now).plus(limits::RENEW_ANYWAY_SECONDS).min(most)
}

impl Signer {
    /// A signer from its stored parts: `identity` is this host's, `ledger` all encoded entries in order.
    pub fn open<'a>(
        anchors: Anchors,
        intermediate: &[u8],
        intermediate_seed: &[u8; 32],
        identity: &IdentityKey,
        ledger: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, SignerError> {
        let intermediate = Intermediate::from_parts(intermediate, intermediate_seed)?;
        if !anchors.has_intermediate(&intermediate.public()) {
            return Err(SignerError::NotInBundle);
        }
        let mut entries = Vec::new();
        for (index, bytes) in ledger.into_iter().enumerate() {
            let entry = LedgerEntry::decode(bytes, anchors.mesh_id())
                .map_err(|why| SignerError::Ledger { number: index + 1, why })?;
            entries.push(entry);
        }
        let Some(LedgerEvent::Founded { ipv4_pool }) = entries.first().map(|entry| &entry.event)
        else {
            return Err(SignerError::Unfounded);
        };
        let mut signer = Self::found(anchors, intermediate, identity, *ipv4_pool);
        for entry in entries {
            signer.apply(entry);
        }
        Ok(signer)
    }

    /// A signer that has admitted nobody.
    pub(in crate::trust) fn found(
        anchors: Anchors,
        intermediate: Intermediate,
        identity: &IdentityKey,
        pool: Ipv4Net,
    ) -> Self {
        Self {
            anchors,
            intermediate,
            node: identity.public(),
            seal: SealKey::of(identity),
            pool,
            tokens: BTreeMap::new(),
            holders: BTreeMap::new(),
            documents: BTreeMap::new(),
            subjects: BTreeMap::new(),
        }
    }

    /// Takes an entry over that is on disk.
    pub fn apply(&mut self, entry: LedgerEntry) {
        match entry.event {
            // Only the first counts; `open` has read it.
            LedgerEvent::Founded { .. } => {}
            LedgerEvent::TokenCreated { terms, grant } => {
                let token = Token {
                    payload: grant.payload,
                    created_at: entry.time,
                    used_by: BTreeMap::new(),
                    subjects: BTreeMap::new(),
                    revoked: false,
                    terms: *terms,
                };
                self.tokens.entry(token.terms.id).or_insert(token);
            }
            LedgerEvent::Enrolled { token, certificate, not_granted, renewal, voucher } => {
                let key = certificate.key;
                if let Some(token) = token.and_then(|id| self.tokens.get_mut(&id)) {
                    token.used_by.insert(key, certificate.name.clone());
                    if let Some(subject) = certificate.subject {
                        token.subjects.entry(subject).or_default().insert(key);
                    }
                }
                if let Some(voucher) = voucher {
                    self.documents.entry(voucher.document).or_insert(key);
                }
                // Also of who was admitted by another signer, and only renewed here.
                if let Some(subject) = certificate.subject {
                    self.subjects.entry(subject).or_default().insert(key);
                }
                let before = self.holders.get(&key).filter(|_| renewal);
                let since = before.map_or(certificate.not_before, |before| before.since);
                let owed = self.holders.get(&key).map(|holder| holder.paid_at);
                let paid_at = pay(owed, entry.time);
                let holder =
                    Holder { token, certificate, not_granted, since, paid_at, departed: false };
                self.holders.insert(key, holder);
            }
            LedgerEvent::TokenRevoked { id } => {
                if let Some(token) = self.tokens.get_mut(&id) {
                    token.revoked = true;
                }
            }
            LedgerEvent::Departed { key } => {
                if let Some(holder) = self.holders.get_mut(&key) {
                    holder.departed = true;
                    let token = holder.token.and_then(|id| self.tokens.get_mut(&id));
                    for keys in token.into_iter().flat_map(|token| token.subjects.values_mut()) {
                        keys.remove(&key);
                    }
                }
            }
        }
    }
}
