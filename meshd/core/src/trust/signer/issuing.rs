//! Certificates for hosts that no token reaches: asked for by root on the signer itself.
//!
//! Decided as for a token: the name is free, the prefixes are nobody else's, an address is given out, and the
//! ledger has it before anybody is told.

use ipnet::IpNet;
use rand::CryptoRng;

use super::{
    Enrolled, Known, Signer, TokenParams,
    admission::{Admission, Validity},
    renewals::within_limits,
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{
        grants::{Asked, EnrolRefusal},
        offline::open_issue_request,
        record::NodeCertificate,
        renewal::Renewal,
    },
};

const NEW_KEY: &str = "issue for a new key: `meshctl cert issue --name NAME --out DIR`";

/// What a certificate that is issued off-line shall permit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IssueTerms {
    /// Granted exactly.
    pub prefixes: Vec<IpNet>,
    /// Within these, what the node detects is granted when it is renewed.
    pub allow: Vec<IpNet>,
    /// Of these it may claim single addresses.
    pub pools: Vec<IpNet>,
    /// Its groups.
    pub groups: Vec<String>,
    /// Where the node asks first, as `HOST:PORT`.
    pub seeds: Vec<String>,
    /// Life in seconds.
    pub ttl_seconds: i64,
}

impl IssueTerms {
    /// A token that grants the same is refused for the same reasons.
    fn as_token(&self) -> TokenParams {
        TokenParams {
            node_name: None,
            prefixes: self.prefixes.clone(),
            allow: self.allow.clone(),
            pools: self.pools.clone(),
            groups: self.groups.clone(),
            seeds: self.seeds.clone(),
            ttl_seconds: 1,
            uses: 1,
            issuer: None,
        }
    }
}

impl Signer {
    /// Decides on an encoded request of [`crate::trust::build_issue_request`].
    pub fn issue(
        &self,
        request: &[u8],
        terms: &IssueTerms,
        known: Known<'_>,
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Enrolled, EnrolRefusal> {
        self.check_in_force()?;
        check_life(terms.ttl_seconds)?;
        let request = open_issue_request(request, &self.anchors).map_err(explain)?;
        self.anchors.check_membership(&request.identity).map_err(explain)?;
        self.check_fresh(request.issued_at, now, limits::CLOCK_SKEW_SECONDS)?;
        self.check_params(&terms.as_token())?;
        let mut records = known.members.iter().chain(known.barred);
        let recorded = records.any(|record| record.key == request.identity);
        if recorded || self.name_of(&request.identity).is_some() {
            return Err(EnrolRefusal::new(
                Code::BadTerms,
                "this key was admitted before",
                "issue for a new key, or its next certificate with --certificate FILE",
            ));
        }
        let mut entries = self.departures(known.members, now);
        let admission = Admission {
            key: request.identity,
            name: &request.name,
            token: None,
            groups: &terms.groups,
            asked: Asked {
                exact: &terms.prefixes,
                allow: &terms.allow,
                pools: &terms.pools,
                wanted: &[],
                keep: false,
            },
            before: None,
            voucher: None,
        };
        let validity = Validity::of(now, terms.ttl_seconds);
        let admitted = self
            .admit_for(&admission, validity, &entries, known.members, now, rng)
            .map_err(retold)?;
        let reply = self.reply(&admitted.certificate, &[], &[])?;
        entries.push(admitted.entry);
        let (name, key) = (request.name, request.identity);
        Ok(Enrolled { reply, name, key, entries, renewal: false, voucher: None, subject: None })
    }

    /// The next certificate for the key, name and rights of `certificate` (DER), which this mesh has issued: for a
    /// node that reaches no signer. Whoever calls is root here, so nobody need show the key. Of the terms only life
    /// and seeds count.
    pub fn issue_next(
        &self,
        certificate: &[u8],
        terms: &IssueTerms,
        known: Known<'_>,
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Enrolled, EnrolRefusal> {
        self.check_in_force()?;
        check_life(terms.ttl_seconds)?;
        self.check_params(&terms.as_token())?;
        let shown = NodeCertificate::parse(certificate).map_err(explain)?;
        let anchors = &self.anchors;
        if shown.mesh_id != *anchors.mesh_id() || shown.mesh != *anchors.mesh() {
            let why = format!("the certificate is of another mesh, {}", shown.mesh);
            return Err(explain(Refusal::new(Code::OtherMesh, why)));
        }
        anchors.check_membership(&shown.key).map_err(explain)?;
        let request = Renewal {
            identity: shown.key,
            certificate: shown,
            wanted: Vec::new(),
            issued_at: now,
            anyway: true,
        };
        let mut base = self.renewed_from(&request, known, now).map_err(anew)?;
        // What it detects now, nobody here knows: it keeps what it has.
        base.wanted = within_limits(&base.certificate);
        let mut entries = self.departures(known.members, now);
        let validity = Validity::of(now, terms.ttl_seconds).after(base.certificate.not_before);
        if validity.from > now {
            return Err(EnrolRefusal::new(
                Code::ClockSkew,
                "the certificate that it has begins later than now",
                "set this host's clock, and try again",
            ));
        }
        let admission = base.admission();
        let admitted = self
            .admit_for(&admission, validity, &entries, known.members, now, rng)
            .map_err(retold)?;
        let reply = self.reply(&admitted.certificate, &admitted.not_granted, &[])?;
        entries.push(admitted.entry);
        let (name, key) = (base.certificate.name.clone(), base.certificate.key);
        Ok(Enrolled { reply, name, key, entries, renewal: true, voucher: None, subject: None })
    }

    /// A retiring signer's certificates count only where they were held before.
    fn check_in_force(&self) -> Result<(), EnrolRefusal> {
        if self.anchors.has_intermediate(&self.public()) {
            return Ok(());
        }
        let why = "this signer is retiring, and what it issues now counts nowhere";
        Err(EnrolRefusal::new(
            Code::NoSigner,
            why,
            "`meshctl signer list` shows others: issue there",
        ))
    }
}

fn check_life(seconds: i64) -> Result<(), EnrolRefusal> {
    if limits::ISSUED_SECONDS.contains(&seconds) {
        return Ok(());
    }
    Err(EnrolRefusal::new(
        Code::BadTerms,
        "a certificate lives between an hour and a year",
        "give --ttl within that, e.g. 30d",
    ))
}

/// What a person on the signer can do, where the words for a joiner would mislead.
fn retold(refused: EnrolRefusal) -> EnrolRefusal {
    let fix = match refused.refusal.code {
        Code::PrefixTaken => {
            "give another --prefix, or run `meshctl leave` on the host that has it; if that host is gone, \
             `meshctl node revoke NAME`"
        }
        Code::BadTerms => "grant fewer prefixes or groups",
        _ => return refused,
    };
    EnrolRefusal { fix: fix.to_owned(), ..refused }
}

/// For what is past renewing.
fn anew(refused: EnrolRefusal) -> EnrolRefusal {
    EnrolRefusal { fix: NEW_KEY.to_owned(), ..refused }
}

fn explain(refusal: Refusal) -> EnrolRefusal {
    let fix = match refusal.code {
        Code::OtherMesh => "ask a signer of that mesh",
        Code::Revoked => NEW_KEY,
        _ => "issue for a new key, with meshctl and meshd of one version",
    };
    EnrolRefusal { refusal, fix: fix.to_owned() }
}
