//! Tokens at their signer: made, listed, and looked at when somebody comes with one.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName, wire};
use rand::CryptoRng;
use zeroize::Zeroizing;

use super::{Signer, admission::departing};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{
        anchors::Anchors,
        extension::is_group,
        grants::{self, EnrolRefusal},
        issuer::{Binding, IssuerTerms},
        ledger::{LedgerEntry, LedgerEvent},
        request::Request,
        signing,
        terms::{IdentityTerms, TokenId, TokenTerms},
        token::{JoinToken, is_seed},
    },
};

/// What a token shall permit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenParams {
    /// The only name that it admits.
    pub node_name: Option<NodeName>,
    /// Granted exactly.
    pub prefixes: Vec<IpNet>,
    /// Within these, what the joiner detects is granted.
    pub allow: Vec<IpNet>,
    /// Of these the joiner may claim single addresses, together with others that have the same.
    pub pools: Vec<IpNet>,
    /// Groups of who joins with it.
    pub groups: Vec<String>,
    /// Where joiners ask, as `HOST:PORT`.
    pub seeds: Vec<String>,
    /// Life in seconds.
    pub ttl_seconds: i64,
    /// Distinct identities that it admits.
    pub uses: u32,
    /// It admits by documents of this issuer, which say what is granted.
    pub issuer: Option<IssuerTerms>,
}

/// A token as `token list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// What it permits.
    pub terms: TokenTerms,
    /// When it was made.
    pub created_at: UnixTime,
    /// Who was admitted with it.
    pub used_by: Vec<(NodeKey, NodeName)>,
    /// How many of its uses are taken.
    pub used: usize,
    /// Whether it still admits anybody.
    pub state: TokenState,
}

/// Whether a token still admits anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It does.
    Usable,
    /// Every use is taken.
    Used,
    /// Its time is over.
    Expired,
    /// It was revoked, or somebody who was admitted with it was.
    Revoked,
}

impl TokenState {
    /// `usable`, `used`, `expired` or `revoked`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) terms: TokenTerms,
    pub(super) payload: bytes::Bytes,
    pub(super) created_at: UnixTime,
    pub(super) used_by: BTreeMap<NodeKey, NodeName>,
    /// Of a token that admits by documents: whom they were about, and with which keys each has not left.
    pub(super) subjects: BTreeMap<[u8; 32], BTreeSet<NodeKey>>,
    pub(super) revoked: bool,
}

impl Signer {
    /// Every token, by id.
    pub fn tokens(&self, now: UnixTime) -> impl Iterator<Item = TokenInfo> {
        self.tokens.values().map(move |token| TokenInfo {
            terms: token.terms.clone(),
            created_at: token.created_at,
            used_by: token.used_by.iter().map(|(key, name)| (*key, name.clone())).collect(),
            used: token.used(&[]),
            state: token.state(&self.anchors, now),
        })
    }

    /// Makes a token. It admits somebody once the entry is on disk and applied.
    pub fn create_token(
        &self,
        params: TokenParams,
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<(JoinToken, LedgerEntry), EnrolRefusal> {
        self.check_params(&params)?;
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        let mut id = [0; 16];
        rng.fill_bytes(&mut id);
        let seed = SigningKey::from_bytes(&seed);
        let terms = TokenTerms {
            id: TokenId(id),
            token_key: seed.verifying_key().to_bytes(),
            signer: self.node,
            intermediate_key: self.intermediate.public(),
            expires_at: now.plus(params.ttl_seconds),
            uses: params.uses,
            node_name: params.node_name,
            prefixes: sorted(&params.prefixes),
            allow: sorted(&params.allow),
            pools: sorted(&params.pools),
            groups: params.groups,
            identity: params.issuer.as_ref().map(|issuer| IdentityTerms {
                issuer: issuer.name.clone(),
                seal_key: self.seal.public(),
                audience: match &issuer.binding {
                    Binding::Key => None,
                    Binding::FirstUse { audience } => Some(audience.clone()),
                },
            }),
        };
        let mesh = self.anchors.mesh_id();
        let payload = terms.encode(mesh);
        let signature = signing::sign(self.intermediate.key(), terms.kind(), mesh, &payload);
        let grant =
            wire::SignedGrant { payload: payload.into(), signature: signature.to_vec().into() };
        let event =
            LedgerEvent::TokenCreated { terms: Box::new(terms.clone()), grant: grant.clone() };
        let token = JoinToken::new(seed, &self.anchors, grant, terms, params.seeds);
        Ok((token, LedgerEntry { time: now, event }))
    }

    /// Ends what is left of a token's uses; nothing when it has none left.
    ///
    /// # Errors
    /// When there is no such token.
    pub fn revoke_token(
        &self,
        id: &TokenId,
        now: UnixTime,
    ) -> Result<Option<LedgerEntry>, EnrolRefusal> {
        let Some(token) = self.tokens.get(id) else {
            return Err(EnrolRefusal::new(
                Code::TokenUnknown,
                format!("this signer has made no token {id}"),
                "`meshctl token list` shows those that it has made",
            ));
        };
        let entry = LedgerEntry { time: now, event: LedgerEvent::TokenRevoked { id: *id } };
        Ok((!token.revoked).then_some(entry))
    }

    pub(super) fn check_params(&self, params: &TokenParams) -> Result<(), EnrolRefusal> {
        let refused = |why: &str, fix: &str| Err(EnrolRefusal::new(Code::BadTerms, why, fix));
        if !(1..=limits::TOKEN_SECONDS).contains(&params.ttl_seconds) {
            return refused("a token lives between a second and a year", "give --ttl, e.g. 1h");
        }
        if !(1..=limits::TOKEN_USES).contains(&params.uses) {
            return refused("a token has 1 to 10000 uses", "give --uses within that");
        }
        let grants = [
            params.prefixes.is_empty(),
            params.allow.is_empty(),
            params.pools.is_empty(),
            params.groups.is_empty(),
        ];
        if params.issuer.is_some() && grants.contains(&false) {
            return refused(
                "what nodes get that come with an identity document, the issuer's rules say",
                "leave --prefix, --allow, --workloads and --group away, and write them into the rules",
            );
        }
        let several = params.uses > 1;
        if several && (!params.prefixes.is_empty() || params.node_name.is_some()) {
            return refused(
                "a token for several nodes cannot give all of them one name or prefix",
                "use --allow instead of --prefix, or make a token for each node",
            );
        }
        let groups = &params.groups;
        if groups.len() > limits::GROUPS || !groups.iter().all(|g| is_group(g)) {
            return refused(
                "a group is a name of letters, digits and -_., and 16 are the most",
                "give other --group",
            );
        }
        let seeds = &params.seeds;
        if seeds.len() > limits::TOKEN_SEEDS || !seeds.iter().all(|s| is_seed(s)) {
            return refused("a seed is HOST:PORT, and 16 are the most", "give other --seed");
        }
        grants::check_count(&params.prefixes)?;
        grants::check_count(&params.allow)?;
        grants::check_count(&params.pools)?;
        for prefix in params.prefixes.iter().chain(&params.pools) {
            grants::check_grantable(prefix, self.anchors.mesh_id(), &self.pool)?;
        }
        params.allow.iter().try_for_each(|p| grants::check_allowed(p, self.anchors.mesh_id()))
    }
}

impl Token {
    /// A host that was revoked ends the uses of the token that let it in: who stole the one may hold the
    /// other. Not of a token that is no secret: there its subject ends.
    fn is_revoked(&self, anchors: &Anchors) -> bool {
        if self.terms.identity.is_some() {
            return self.revoked;
        }
        self.revoked || self.used_by.keys().any(|key| anchors.revocation(key).is_some())
    }

    fn state(&self, anchors: &Anchors, now: UnixTime) -> TokenState {
        if self.is_revoked(anchors) {
            TokenState::Revoked
        } else if self.used(&[]) >= self.terms.uses as usize {
            TokenState::Used
        } else if now > self.terms.expires_at {
            TokenState::Expired
        } else {
            TokenState::Usable
        }
    }

    /// Uses that are taken: each identity is one. Where documents admit, each subject is one, however often its
    /// machine leaves and comes back, so that it cannot use up a token that is for many; and each node more that a
    /// subject has at a time.
    fn used(&self, departures: &[LedgerEntry]) -> usize {
        if self.terms.identity.is_none() {
            return self.used_by.len();
        }
        self.subjects.values().map(|keys| staying(keys, departures).max(1)).sum()
    }

    /// Whether one more of this subject may come.
    pub(super) fn check_subject_room(
        &self,
        subject: &[u8; 32],
        key: &NodeKey,
        departures: &[LedgerEntry],
    ) -> Result<(), EnrolRefusal> {
        let more = match self.subjects.get(subject) {
            Some(keys) if keys.contains(key) => return Ok(()),
            Some(keys) if staying(keys, departures) == 0 => 0,
            _ => 1,
        };
        self.check_room(self.used(departures) + more)
    }

    fn check_room(&self, wanted: usize) -> Result<(), EnrolRefusal> {
        if wanted <= self.terms.uses as usize {
            return Ok(());
        }
        Err(super::explain(Refusal::new(
            Code::TokenUsed,
            format!("the token {} has admitted {} already", self.terms.id, self.terms.uses),
        )))
    }

    pub(super) fn check_usable(
        &self,
        request: &Request,
        anchors: &Anchors,
        now: UnixTime,
    ) -> Result<(), EnrolRefusal> {
        if self.is_revoked(anchors) {
            return Err(super::explain(Refusal::new(
                Code::TokenRevoked,
                format!("the token {} was revoked", self.terms.id),
            )));
        }
        if now > self.terms.expires_at {
            let ago = now.since(self.terms.expires_at);
            return Err(super::explain(Refusal::new(
                Code::TokenExpired,
                format!("the token {} expired {ago} s ago", self.terms.id),
            )));
        }
        // Of the others the document says whether it takes a use.
        let counted = self.used_by.contains_key(&request.identity);
        if self.terms.identity.is_none() && !counted {
            self.check_room(self.used(&[]) + 1)?;
        }
        match &self.terms.node_name {
            Some(only) if *only != request.name => Err(EnrolRefusal::new(
                Code::TokenName,
                format!("the token admits {only}, not {}", request.name),
                format!("join with --name {only}, or make a token for {}", request.name),
            )),
            _ => Ok(()),
        }
    }
}

/// How many of these have not left.
fn staying(keys: &BTreeSet<NodeKey>, departures: &[LedgerEntry]) -> usize {
    keys.iter().filter(|key| !departing(departures).any(|gone| gone == **key)).count()
}

fn sorted(prefixes: &[IpNet]) -> Vec<IpNet> {
    let sorted: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    sorted.into_iter().collect()
}
