//! Identity documents: tokens of an issuer outside (OIDC) that admit nodes instead of a secret.
//!
//! Responsible for what a document says and whether it admits: signature, dates, audience, rules. Not for
//! fetching keys (the daemon's), nor for whether a document was used before (the signer's ledger). Called by
//! `signer`; [`Document::read`] is what strangers' bytes meet first.
//!
//! A JWT is a bearer secret, so it is bound to the joiner's identity key: by its audience, which names that
//! key, or, where the issuer cannot do that, by its first use. See `docs/adr/0015-identity-documents.md`.

mod document;
mod json;
mod keys;
mod rule;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;

use ipnet::IpNet;
use meshd_proto::{MeshId, NodeKey, NodeName};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::{
    document::Document,
    keys::KeySet,
    rule::{Naming, Pointer, Rule, Template, Wanted},
};
use self::{document::malformed, keys::Cache};
use super::grants::EnrolRefusal;
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Algorithms by which a document may be signed, as an issuer's file names them.
pub const ALGORITHMS: [&str; 5] = ["RS256", "PS256", "ES256", "ES384", "EdDSA"];

/// How a document is bound to the key of who shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Its audience is [`audience`] of that key: worth nothing to anybody else.
    Key,
    /// The first key that shows it is the only one that it admits.
    FirstUse {
        /// Its one audience.
        audience: String,
    },
}

/// The audience of a document for one key.
#[must_use]
pub fn audience(mesh: &MeshId, key: &NodeKey) -> String {
    format!("{}:{key}", mesh_audience(mesh))
}

/// The audience of a document for any key, unless an issuer's file names another.
#[must_use]
pub fn mesh_audience(mesh: &MeshId) -> String {
    format!("meshd:{mesh}")
}

/// An issuer as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerTerms {
    /// Its name on this host.
    pub name: String,
    /// The claim `iss`, to the letter.
    pub issuer: String,
    /// How its documents are bound to a key.
    pub binding: Binding,
    /// Of [`ALGORITHMS`].
    pub algorithms: Vec<String>,
    /// How old a document may be, counted from its claim `iat`.
    pub max_age_seconds: i64,
    /// Its keys are asked for again, when they are needed, once they are so old.
    pub keys_fresh_seconds: i64,
    /// The first that fits decides.
    pub rules: Vec<Rule>,
}

/// Who asks to be admitted by a document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Joiner<'a> {
    pub(super) mesh: &'a MeshId,
    pub(super) key: &'a NodeKey,
    pub(super) name: &'a NodeName,
}

/// The times by which a document is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// This host's clock: whether a document has begun, and how old keys are.
    pub(super) wall: UnixTime,
    /// The later of that and the signers' time: whether a document has ended, or is too old.
    pub(super) latest: UnixTime,
}

/// What a document admits to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vouched {
    pub(super) voucher: Voucher,
    /// What it is about, as its claims say.
    pub(super) subject: String,
    /// The subject admits one node at a time.
    pub(super) once: bool,
    pub(super) prefixes: Vec<IpNet>,
    pub(super) allow: Vec<IpNet>,
    pub(super) pools: Vec<IpNet>,
    pub(super) groups: Vec<String>,
}

/// By which document a node was admitted; its hashes, since the ledger is no place for bearer secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voucher {
    /// The issuer's name on the signer.
    pub issuer: String,
    /// The rule that fitted.
    pub rule: String,
    /// Of mesh, issuer and what the document is about.
    pub subject: [u8; 32],
    /// Of the issuer and the document's number.
    pub document: [u8; 32],
}

/// The issuers that a signer believes, with their keys.
#[derive(Debug, Clone, Default)]
pub struct Issuers(BTreeMap<String, (IssuerTerms, Cache)>);

impl Issuers {
    /// These, of whom no keys are known yet.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = IssuerTerms>) -> Self {
        let all = all.into_iter().map(|terms| (terms.name.clone(), (terms, Cache::default())));
        Self(all.collect())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// One of them.
    #[must_use]
    pub fn terms(&self, name: &str) -> Option<&IssuerTerms> {
        self.0.get(name).map(|(terms, _)| terms)
    }

    /// Whose keys could not be had when they were asked for last, why, and since when.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str, UnixTime)> {
        self.0.iter().filter_map(|(name, (_, cache))| {
            let (why, since) = cache.problem()?;
            Some((name.as_str(), why, since))
        })
    }

    /// True when the answer of `name` should be waited for before `document` is judged.
    pub(super) fn wants_keys(&self, name: &str, document: &[u8], now: UnixTime) -> bool {
        let Some((terms, cache)) = self.0.get(name) else { return false };
        Document::read(document).is_ok_and(|document| {
            terms.check_issuer(&document).is_ok()
                && cache.wants(&document, terms.keys_fresh_seconds, now)
        })
    }

    /// Notes that the keys of `name` are being asked for; [`Self::take_keys`] ends that.
    pub fn asked(&mut self, name: &str, now: UnixTime) {
        if let Some((_, cache)) = self.0.get_mut(name) {
            cache.asked(now);
        }
    }

    /// Takes over what came of asking. Keys that are held stay when it failed.
    pub fn take_keys(&mut self, name: &str, answer: Result<KeySet, String>, now: UnixTime) {
        if let Some((_, cache)) = self.0.get_mut(name) {
            cache.take(answer, now);
        }
    }

    /// Judges a document by itself: whether it was used before is for the caller to say.
    pub(super) fn judge(
        &self,
        name: &str,
        document: &[u8],
        joiner: Joiner<'_>,
        now: Clock,
    ) -> Result<Vouched, EnrolRefusal> {
        let Some((terms, cache)) = self.0.get(name) else {
            return Err(EnrolRefusal::new(
                Code::IdentityIssuer,
                format!("the signer knows no issuer {name} any more"),
                "put its file back below issuers.d on the signer, or join with another token",
            ));
        };
        let explain = |refusal| terms.explain(refusal);
        let document = Document::read(document).map_err(explain)?;
        terms.check_issuer(&document).map_err(explain)?;
        if !terms.takes(&document) {
            let why =
                format!("identity document: {name} may not sign with {:?}", document.algorithm);
            return Err(explain(Refusal::new(Code::IdentityAlgorithm, why)));
        }
        cache.usable(now.wall).and_then(|keys| keys.verify(&document)).map_err(explain)?;
        // From here on its issuer has said all of it.
        terms.check_dates(&document, now).map_err(explain)?;
        terms.check_audience(&document, joiner)?;
        let rule = terms.rule_for(&document.claims).map_err(explain)?;
        rule.check_name(&document.claims, joiner.name)
            .map_err(|(refusal, fix)| EnrolRefusal { refusal, fix })?;
        let subject = rule.subject.fill(&document.claims, "the subject").map_err(explain)?;
        Ok(Vouched {
            voucher: Voucher {
                issuer: terms.name.clone(),
                rule: rule.name.clone(),
                subject: subject_hash(joiner.mesh, &terms.issuer, &subject),
                document: document.number(&terms.issuer),
            },
            subject,
            once: rule.once,
            prefixes: rule.prefixes.clone(),
            allow: rule.allow.clone(),
            pools: rule.pools.clone(),
            groups: rule.groups.clone(),
        })
    }
}

impl IssuerTerms {
    fn takes(&self, document: &Document) -> bool {
        self.algorithms.iter().any(|name| document::algorithm_of(name) == Some(document.algorithm))
    }

    fn check_issuer(&self, document: &Document) -> Result<(), Refusal> {
        let found = document.text("iss")?;
        if found == self.issuer {
            return Ok(());
        }
        let (found, wanted) = (shown(found), &self.issuer);
        let why = format!("identity document: it is from {found}, not from {wanted}");
        Err(Refusal::new(Code::IdentityIssuer, why))
    }

    fn check_dates(&self, document: &Document, now: Clock) -> Result<(), Refusal> {
        const LEEWAY: i64 = limits::IDENTITY_LEEWAY_SECONDS;
        let refused =
            |code, why: String| Err(Refusal::new(code, format!("identity document: {why}")));
        let claim = |name| document.time(name);
        let ends = claim("exp")?.ok_or_else(|| malformed("it has no claim exp"))?;
        let made = claim("iat")?.ok_or_else(|| malformed("it has no claim iat"))?;
        let begins = claim("nbf")?.unwrap_or(made).max(made);
        if now.latest.since(ends) >= LEEWAY {
            let ago = now.latest.since(ends);
            return refused(Code::IdentityExpired, format!("it ended {ago} s ago"));
        }
        if begins.since(now.wall) > LEEWAY {
            let ahead = begins.since(now.wall);
            return refused(Code::IdentityNotYetValid, format!("it begins in {ahead} s"));
        }
        let age = now.latest.since(made);
        if age > self.max_age_seconds + LEEWAY {
            let most = self.max_age_seconds;
            return refused(
                Code::IdentityExpired,
                format!("it is {age} s old, {most} s are the most"),
            );
        }
        Ok(())
    }

    fn check_audience(&self, document: &Document, joiner: Joiner<'_>) -> Result<(), EnrolRefusal> {
        let found = document.audience().map_err(|refusal| self.explain(refusal))?;
        let (fits, wanted) = match &self.binding {
            Binding::Key => {
                let wanted = audience(joiner.mesh, joiner.key);
                (found.contains(&wanted.as_str()), wanted)
            }
            // Whoever else it is for could come here first.
            Binding::FirstUse { audience } => (found == [audience.as_str()], audience.clone()),
        };
        if fits {
            return Ok(());
        }
        let others = found.len() > 1 && self.binding != Binding::Key;
        let why = match &self.binding {
            _ if others => "it is for others too:",
            Binding::Key => "its audience is not this mesh and this host's key, but",
            Binding::FirstUse { .. } => "it is for another audience,",
        };
        let why = format!("identity document: {why} {}", shown(&found.join(", ")));
        Err(EnrolRefusal::new(
            Code::IdentityAudience,
            why,
            format!("ask its issuer for one whose only audience is {wanted}"),
        ))
    }

    fn rule_for(&self, claims: &Value) -> Result<&Rule, Refusal> {
        let mut missed = Vec::new();
        for rule in &self.rules {
            match rule.misses(claims) {
                None => return Ok(rule),
                // What the rule wants there is nobody's business.
                Some(claim) => missed.push(format!("{} wants another {claim}", rule.name)),
            }
        }
        missed.truncate(5);
        let why = format!("no rule of {} admits this document: {}", self.name, missed.join(", "));
        Err(Refusal::new(Code::IdentityRule, why))
    }

    /// What a joiner can do about a document that is not believed.
    fn explain(&self, refusal: Refusal) -> EnrolRefusal {
        let fix = match refusal.code {
            Code::IdentityExpired => "get a new document and join with it at once",
            Code::IdentityNotYetValid => "set the clock of the signer, or wait",
            Code::IdentityKeysUnavailable => {
                "try again in a minute; `meshctl status` on the signer says what is wrong with them"
            }
            Code::IdentityKeyUnknown => {
                "try again in a minute; if the issuer has new keys, replace jwks_file on the signer"
            }
            Code::IdentitySignature => {
                "get a document from the issuer that the token names; if it is from there, jwks_file or \
                 jwks_url on the signer names the keys of another"
            }
            Code::IdentityRule => {
                "have a rule for this document added on the signer, or use another"
            }
            Code::IdentityAlgorithm => {
                let fix = format!(
                    "have the issuer sign with {}, which is what {} may on the signer",
                    self.algorithms.join(" or "),
                    self.name
                );
                return EnrolRefusal { refusal, fix };
            }
            _ => "get a document from the issuer that the token names",
        };
        EnrolRefusal { refusal, fix: fix.into() }
    }
}

/// Text of a document, for an error: escaped, and no more than a line of it.
fn shown(text: &str) -> String {
    const MOST: usize = 100;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_default).collect();
    if shown.len() > MOST || text.chars().nth(MOST).is_some() {
        // What is escaped is ASCII.
        shown.truncate(MOST - 1);
        shown.push('…');
    }
    if shown.is_empty() { "nobody".to_owned() } else { shown }
}

fn subject_hash(mesh: &MeshId, issuer: &str, subject: &str) -> [u8; 32] {
    Sha256::new_with_prefix(b"meshd-identity-subject-v1\0")
        .chain_update(mesh.0)
        .chain_update(Sha256::digest(issuer.as_bytes()))
        .chain_update(subject.as_bytes())
        .finalize()
        .into()
}
