//! A signer: makes tokens, certificates for those who come with one, and such as are issued off-line.
//!
//! Its state is what its ledger says. Nothing here changes it but [`Signer::apply`]: a decision comes
//! out with the entries that record it, the daemon fsyncs them, applies them, and only then tells
//! anybody. A crash in between leaves a decision that nobody heard of. Called by the daemon's loop, one
//! request at a time.

mod admission;
mod issuing;
mod renewals;
mod state;
mod tokens;
mod vouching;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{NodeKey, NodeName, wire};
use prost::Message;
use rand::CryptoRng;

pub(in crate::trust) use self::admission::Admission;
use self::{admission::departing, state::Holder, tokens::Token};
pub use self::{
    issuing::IssueTerms,
    state::SignerError,
    tokens::{TokenInfo, TokenParams, TokenState},
};
use super::{
    anchors::Anchors,
    ca::Intermediate,
    grants::{Asked, EnrolRefusal},
    issuer::{Issuers, Voucher},
    ledger::LedgerEntry,
    record::{NodeCertificate, Record},
    renewal::open_renewal,
    request::{self, Request},
    revocation::RevocationTerms,
    seal::SealKey,
    terms::TokenId,
};
use crate::{
    address, limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// What a signer's host knows of others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// The admitted records of the directory: names and prefixes that other signers gave out, and who has
    /// left.
    pub members: &'a [Arc<Record>],
    /// Those who are members no more, some of them only because their signer is none any more.
    pub barred: &'a [Arc<Record>],
    /// Whose identity documents admit here.
    pub issuers: Option<&'a Issuers>,
}

/// A node that is admitted once `entries` are on disk and applied.
#[derive(Debug, Clone)]
#[must_use]
pub struct Enrolled {
    /// To be sent, afterwards.
    pub reply: wire::EnrolReply,
    /// The node's name.
    pub name: NodeName,
    /// The node.
    pub key: NodeKey,
    /// Empty when the same request was answered before.
    pub entries: Vec<LedgerEntry>,
    /// It was a member before.
    pub renewal: bool,
    /// By which identity document, if by one.
    pub voucher: Option<Voucher>,
    /// What that document is about, for the log: it is kept nowhere else.
    pub subject: Option<String>,
}

/// A host that may admit others.
#[derive(Debug)]
pub struct Signer {
    anchors: Anchors,
    intermediate: Intermediate,
    node: NodeKey,
    /// Opens identity documents.
    seal: SealKey,
    pool: Ipv4Net,
    tokens: BTreeMap<TokenId, Token>,
    holders: BTreeMap<NodeKey, Holder>,
    /// The key that each identity document has admitted.
    documents: BTreeMap<[u8; 32], NodeKey>,
    /// The keys that each subject of such documents was admitted with.
    subjects: BTreeMap<[u8; 32], BTreeSet<NodeKey>>,
}

impl Signer {
    /// Ends a membership. `known` is the newest certificate that is known of it.
    #[must_use]
    pub fn revoke(
        &self,
        key: NodeKey,
        name: NodeName,
        known: Option<&NodeCertificate>,
        now: UnixTime,
    ) -> wire::SignedRevocation {
        // Another signer may renew it before it hears of this, or may have issued one that nobody has seen yet.
        let latest = now.plus(limits::ISSUED_SECONDS.end() + limits::DAY_SECONDS);
        let known = known.or_else(|| self.holders.get(&key).map(|holder| &*holder.certificate));
        let not_after = known.map_or(latest, |known| known.not_after.max(latest));
        let subject = known.and_then(|known| known.subject);
        let terms = RevocationTerms { key, name, revoked_at: now, not_after, subject };
        self.intermediate.revoke(self.anchors.mesh_id(), &terms)
    }

    /// Signs that it is `now`.
    #[must_use]
    pub fn sign_time(&self, now: UnixTime) -> wire::SignedTime {
        self.intermediate.sign_time(self.anchors.mesh_id(), now)
    }

    /// Everybody who was admitted here under a name, the newest last.
    pub fn admitted_as(
        &self,
        name: &NodeName,
    ) -> impl DoubleEndedIterator<Item = &Arc<NodeCertificate>> {
        let named = self.holders.values().filter(move |holder| holder.certificate.name == *name);
        let mut all: Vec<_> = named.map(|holder| &holder.certificate).collect();
        all.sort_by_key(|certificate| certificate.not_before);
        all.into_iter()
    }

    /// The name under which `key` was admitted here, if it was.
    #[must_use]
    pub fn name_of(&self, key: &NodeKey) -> Option<&NodeName> {
        self.holders.get(key).map(|holder| &holder.certificate.name)
    }

    /// Follows a newer bundle of intermediates, and revocations.
    pub fn set_anchors(&mut self, anchors: Anchors) {
        self.anchors = anchors;
    }

    /// Public key of this signer's intermediate.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.intermediate.public()
    }

    /// Addresses of nodes inside the mesh.
    #[must_use]
    pub fn ipv4_pool(&self) -> Ipv4Net {
        self.pool
    }

    /// Decides on an encoded `EnrolRequest`.
    ///
    /// `own` are this host's records, for the joiner to start from.
    pub fn enrol(
        &self,
        request: &[u8],
        known: Known<'_>,
        own: &[wire::SignedRecord],
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Enrolled, EnrolRefusal> {
        if let Some(renewal) = open_renewal(request, &self.anchors).map_err(explain)? {
            self.anchors.check_membership(&renewal.identity).map_err(explain)?;
            return self.renew(&renewal, known, own, now, rng);
        }
        let request = request::open(request, &self.anchors).map_err(explain)?;
        self.anchors.check_membership(&request.identity).map_err(explain)?;
        self.check_fresh(request.issued_at, now, limits::CLOCK_SKEW_SECONDS)?;
        let members = known.members;
        let token = self.known_token(&request)?;
        let mut entries = self.departures(members, now);
        self.check_not_departed(&request.identity, known, &entries)?;
        if let Some(holder) = self.admitted_before(&request, &entries)
            && now < holder.certificate.not_after
        {
            let certificate = holder.certificate.clone();
            check_same_name(&request, &certificate)?;
            let reply = self.reply(&certificate, &holder.not_granted, own)?;
            let name = certificate.name.clone();
            let key = certificate.key;
            let (entries, voucher, subject) = (Vec::new(), None, None);
            return Ok(Enrolled { reply, name, key, entries, renewal: false, voucher, subject });
        }
        token.check_usable(&request, &self.anchors, now)?;
        let vouched = self.vouch(&request, token, known, &entries, now)?;
        let terms = &token.terms;
        let (groups, prefixes, allow, pools) = match &vouched {
            Some(vouched) => (&vouched.groups, &vouched.prefixes, &vouched.allow, &vouched.pools),
            None => (&terms.groups, &terms.prefixes, &terms.allow, &terms.pools),
        };
        let admission = Admission {
            key: request.identity,
            name: &request.name,
            token: Some(terms.id),
            groups,
            asked: Asked { exact: prefixes, allow, pools, wanted: &request.wanted, keep: false },
            before: None,
            voucher: vouched.as_ref().map(|vouched| &vouched.voucher),
        };
        let admitted = self.admit(&admission, &entries, members, now, rng)?;
        let reply = self.reply(&admitted.certificate, &admitted.not_granted, own)?;
        entries.push(admitted.entry);
        let (name, key) = (request.name, request.identity);
        let (voucher, subject) = vouched.map(|vouched| (vouched.voucher, vouched.subject)).unzip();
        Ok(Enrolled { reply, name, key, entries, renewal: false, voucher, subject })
    }

    fn check_fresh(
        &self,
        issued_at: UnixTime,
        now: UnixTime,
        oldest: i64,
    ) -> Result<(), EnrolRefusal> {
        let age = now.since(issued_at);
        let (code, when) = match age {
            age if age > oldest => (Code::PastDate, format!("{age} s old")),
            age if age < -limits::CLOCK_SKEW_SECONDS => {
                (Code::ClockSkew, format!("dated {} s ahead", -age))
            }
            _ => return Ok(()),
        };
        Err(EnrolRefusal::new(
            code,
            format!("the request is {when} by the signer's clock"),
            "set the clock of the host that asks, or the signer's, and try again",
        ))
    }

    fn known_token(&self, request: &Request) -> Result<&Token, EnrolRefusal> {
        self.tokens
            .get(&request.terms.id)
            .filter(|token| token.payload == request.grant.payload)
            .filter(|_| self.anchors.may_have_granted(&request.terms.intermediate_key))
            .ok_or_else(|| {
                explain(Refusal::new(
                    Code::TokenUnknown,
                    format!("this signer does not know the token {}", request.terms.id),
                ))
            })
    }

    /// A leave is final. Whoever forwarded the request that let an identity in could play it again after it left;
    /// the host itself makes a new identity when it joins the next time.
    fn check_not_departed(
        &self,
        key: &NodeKey,
        known: Known<'_>,
        departures: &[LedgerEntry],
    ) -> Result<(), EnrolRefusal> {
        let noted = self.holders.get(key).is_some_and(|holder| holder.departed)
            || departing(departures).any(|gone| gone == *key);
        let mut records = known.members.iter().chain(known.barred);
        if !noted && !records.any(|record| record.left && record.key == *key) {
            return Ok(());
        }
        Err(EnrolRefusal::new(
            Code::Revoked,
            "this identity has left the mesh, and does not come back",
            "on the joining host, stop meshd, remove keys/ and pki/ below its state directory, start meshd and join \
             again: it makes a new identity",
        ))
    }

    /// The same identity with the same token: it lost the reply, and gets it again.
    fn admitted_before(&self, request: &Request, departures: &[LedgerEntry]) -> Option<&Holder> {
        self.holders.get(&request.identity).filter(|holder| {
            holder.token == Some(request.terms.id)
                && !holder.departed
                && !departing(departures).any(|key| key == request.identity)
        })
    }

    fn reply(
        &self,
        certificate: &NodeCertificate,
        not_granted: &[IpNet],
        own: &[wire::SignedRecord],
    ) -> Result<wire::EnrolReply, EnrolRefusal> {
        let mut accepted = wire::EnrolAccepted {
            certificate: certificate.der.clone(),
            root: self.anchors.root_der().to_vec().into(),
            bundle: Some(self.anchors.signed_bundle().clone()),
            records: own.to_vec(),
            not_granted: not_granted.iter().map(address::prefix_to_wire).collect(),
        };
        // The joiner syncs with its seed at once: without a record to start from it loses little.
        while accepted.encoded_len() + 8 > limits::ENROL_MESSAGE && accepted.records.pop().is_some()
        {
        }
        // The bundle of many signers that move at once is as large as that.
        if accepted.encoded_len() + 8 > limits::ENROL_REPLY {
            return Err(EnrolRefusal::new(
                Code::TooLarge,
                "the certificate does not fit a reply",
                "make a token that grants fewer prefixes",
            ));
        }
        Ok(wire::EnrolReply { result: Some(wire::enrol_reply::Result::Accepted(accepted)) })
    }
}

fn check_same_name(request: &Request, held: &NodeCertificate) -> Result<(), EnrolRefusal> {
    if request.name == held.name {
        return Ok(());
    }
    Err(EnrolRefusal::new(
        Code::TokenName,
        format!("this host was admitted as {} with this token", held.name),
        format!("join with --name {}, or make a new token", held.name),
    ))
}

/// What a joiner can do about a request that is not believed.
fn explain(refusal: Refusal) -> EnrolRefusal {
    let fix = match refusal.code {
        Code::OtherMesh => "use a token of this mesh, or a seed of the token's mesh",
        Code::TooLarge => "ask for fewer prefixes",
        Code::Revoked => {
            "run `meshctl leave` on the joining host, which gives it a new identity, and try again"
        }
        _ => "make a new token with `meshctl token create`",
    };
    EnrolRefusal { refusal, fix: fix.into() }
}
