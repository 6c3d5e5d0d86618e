//! Admission by an identity document: opened, judged, and used by one key only.

use meshd_proto::{NodeKey, NodeName};
use zeroize::Zeroizing;

use super::{Known, Signer, admission::departing, tokens::Token};
use crate::{
    now::UnixTime,
    refusal::Code,
    trust::{
        grants::{self, EnrolRefusal},
        issuer::{Clock, Issuers, Joiner, Vouched},
        ledger::LedgerEntry,
        request::{self, Request},
        seal::Envelope,
        terms::IdentityTerms,
    },
};

impl Signer {
    /// The issuer whose keys are to be asked for, or waited for, before [`Signer::enrol`] decides on this request,
    /// if any. Says nothing of whether the request is good.
    #[must_use]
    pub fn wants_keys(&self, request: &[u8], issuers: &Issuers, now: UnixTime) -> Option<String> {
        let request = request::open(request, &self.anchors).ok()?;
        let token = self.known_token(&request).ok()?;
        let identity = token.terms.identity.as_ref()?;
        let name = &identity.issuer;
        // Nobody has the issuer asked by a token that admits nobody, nor to hear what was answered before.
        let departed = self.holders.get(&request.identity).is_some_and(|holder| holder.departed);
        if departed || self.admitted_before(&request, &[]).is_some() {
            return None;
        }
        token.check_usable(&request, &self.anchors, now).ok()?;
        let document = self.open_document(&request, identity).ok()?;
        issuers.wants_keys(name, &document, now).then(|| name.clone())
    }

    /// What the request's document admits to; `None` when the token admits by itself.
    pub(super) fn vouch(
        &self,
        request: &Request,
        token: &Token,
        known: Known<'_>,
        departures: &[LedgerEntry],
        now: UnixTime,
    ) -> Result<Option<Vouched>, EnrolRefusal> {
        let Some(identity) = &token.terms.identity else { return Ok(None) };
        let document = self.open_document(request, identity)?;
        let none = Issuers::default();
        let joiner =
            Joiner { mesh: self.anchors.mesh_id(), key: &request.identity, name: &request.name };
        let issuers = known.issuers.unwrap_or(&none);
        // A signer's clock that is behind must not bring old documents back to life.
        let latest = self.anchors.signer_time().map_or(now, |at| at.max(now));
        let clock = Clock { wall: now, latest };
        let vouched = issuers.judge(&identity.issuer, &document, joiner, clock)?;
        self.check_unused(&vouched, &request.identity, known, departures)?;
        token.check_subject_room(&vouched.voucher.subject, &request.identity, departures)?;
        for limit in &vouched.allow {
            grants::check_allowed(limit, self.anchors.mesh_id())?;
        }
        Ok(Some(vouched))
    }

    /// One document admits one key, and one subject one node at a time.
    fn check_unused(
        &self,
        vouched: &Vouched,
        key: &NodeKey,
        known: Known<'_>,
        departures: &[LedgerEntry],
    ) -> Result<(), EnrolRefusal> {
        if self.documents.get(&vouched.voucher.document).is_some_and(|other| other != key) {
            return Err(EnrolRefusal::new(
                Code::IdentityUsed,
                "this identity document has admitted another host already",
                "get a new document; if this host did not use that one, somebody else did: \
                 `meshctl node list`",
            ));
        }
        if !vouched.once {
            return Ok(());
        }
        let subject = Some(vouched.voucher.subject);
        let revocation = |other: &NodeKey| self.anchors.revocation(other).map(|one| &one.name);
        let mut revocations = self.anchors.all_revocations();
        if let Some(one) = revocations.find(|one| one.subject == subject && one.key != *key) {
            return Err(revoked(&one.name));
        }
        // Those whom this signer has certified, and those whom others have: every certificate says it.
        let own = self.subjects.get(&vouched.voucher.subject).into_iter().flatten();
        let own = own.filter_map(|other| self.holders.get(other).map(|holder| (other, holder)));
        let own = own.map(|(other, holder)| (other, &holder.certificate.name, holder.departed));
        let records = known.members.iter().chain(known.barred);
        let records = records.filter(|record| record.certificate.subject == subject);
        let others = own.chain(records.map(|record| (&record.key, &record.name, record.left)));
        for (other, name, left) in others.filter(|(other, ..)| *other != key) {
            if let Some(name) = revocation(other) {
                return Err(revoked(name));
            }
            if !left && !departing(departures).any(|gone| gone == *other) {
                return Err(EnrolRefusal::new(
                    Code::IdentityUsed,
                    format!("the document is about a host that is a member already, {name}"),
                    format!(
                        "`meshctl leave` on {name}; if the subject stands for several hosts, the rule's \
                         subject must name one, or once be false"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn open_document(
        &self,
        request: &Request,
        identity: &IdentityTerms,
    ) -> Result<Zeroizing<Vec<u8>>, EnrolRefusal> {
        if request.sealed_document.is_empty() {
            return Err(EnrolRefusal::new(
                Code::IdentityRequired,
                "this token admits by an identity document only, and none came",
                "`meshctl join TOKEN --identity FILE`; `--identity-audience` says what it must be for",
            ));
        }
        // Its token is in the ledger, so that its identity is another than it was then.
        if identity.seal_key != self.seal.public() {
            return Err(EnrolRefusal::new(
                Code::TokenUnknown,
                "the signer's key for this token is gone; the signer's host has another identity than when it \
                 made the token",
                format!("on the signer: `meshctl token create --identity {}`", identity.issuer),
            ));
        }
        let envelope = Envelope {
            mesh: self.anchors.mesh_id(),
            joiner: &request.identity,
            token: &request.terms.id,
        };
        envelope.open(&self.seal, &request.sealed_document).ok_or_else(|| {
            EnrolRefusal::new(
                Code::IdentityMalformed,
                "the identity document was not sealed to this signer by this host",
                "join with a token that `meshctl token list` shows on the signer",
            )
        })
    }
}

fn revoked(name: &NodeName) -> EnrolRefusal {
    EnrolRefusal::new(
        Code::IdentityUsed,
        format!("the document is about the host that was {name}, which was revoked"),
        "let it in with a token that `meshctl token create` makes without --identity",
    )
}
