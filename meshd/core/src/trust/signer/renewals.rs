//! The next certificate of a member: the same node, the same rights, what it detects now.

use std::sync::Arc;

use ipnet::IpNet;
use meshd_proto::wire;
use rand::CryptoRng;

use super::{Enrolled, Holder, Known, Signer, admission::Admission, explain};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{
        grants::{Asked, EnrolRefusal},
        record::{Grant, NodeCertificate, Record},
        renewal::Renewal,
        terms::TokenId,
    },
};

/// What the next certificate of a member follows from.
pub(super) struct RenewedFrom {
    /// Its newest one.
    pub(super) certificate: Arc<NodeCertificate>,
    fixed: Vec<IpNet>,
    pub(super) wanted: Vec<IpNet>,
    token: Option<TokenId>,
    keep: bool,
}

impl RenewedFrom {
    pub(super) fn admission(&self) -> Admission<'_> {
        let base = &self.certificate;
        Admission {
            voucher: None,
            key: base.key,
            name: &base.name,
            token: self.token,
            groups: &base.groups,
            asked: Asked {
                exact: &self.fixed,
                allow: &base.limits,
                // Those that it has stay as they are.
                pools: &[],
                wanted: &self.wanted,
                keep: self.keep,
            },
            before: Some(base),
        }
    }
}

impl Signer {
    /// Decides on a request for renewal. Any signer may: what the node was admitted with is in its
    /// certificate.
    pub(super) fn renew(
        &self,
        request: &Renewal,
        known: Known<'_>,
        own: &[wire::SignedRecord],
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Enrolled, EnrolRefusal> {
        // Who goes by the signers' time, because its own clock is behind, is an hour late.
        let oldest = 2 * limits::SIGNER_TIME_EVERY_SECONDS;
        self.check_fresh(request.issued_at, now, oldest)?;
        let members = known.members;
        let from = self.renewed_from(request, known, now)?;
        let base = &from.certificate;
        let mut entries = self.departures(members, now);
        let admission = from.admission();
        let (grants, not_granted) = self.grants_of(&admission, &entries, members)?;
        if !self.deserves_another(base, &grants, request, now) {
            let reply = self.reply(base, &not_granted, own)?;
            let (name, key) = (base.name.clone(), base.key);
            return Ok(Enrolled {
                reply,
                name,
                key,
                entries: Vec::new(),
                renewal: true,
                voucher: None,
                subject: None,
            });
        }
        let admitted = self.admit(&admission, &entries, members, now, rng)?;
        let reply = self.reply(&admitted.certificate, &admitted.not_granted, own)?;
        entries.push(admitted.entry);
        Ok(Enrolled {
            reply,
            name: base.name.clone(),
            key: base.key,
            entries,
            renewal: true,
            voucher: None,
            subject: None,
        })
    }

    /// What the next certificate of a member follows from; a refusal when it gets none.
    pub(super) fn renewed_from(
        &self,
        request: &Renewal,
        known: Known<'_>,
        now: UnixTime,
    ) -> Result<RenewedFrom, EnrolRefusal> {
        let members = known.members;
        let mut both = members.iter().chain(known.barred);
        let record = both.find(|record| record.key == request.identity);
        let holder = self.holders.get(&request.identity);
        if record.is_some_and(|record| record.left) || holder.is_some_and(|holder| holder.departed)
        {
            return Err(refused(Code::Revoked, "this node has left the mesh"));
        }
        let base = self.newest(request, holder, record)?;
        // By the signers' time, as everything that ends: while they were silent nobody could renew.
        let over = self.anchors.trust_time(now).ends.since(base.not_after);
        if over > limits::RENEW_AFTER_END_SECONDS {
            let days = over / limits::DAY_SECONDS;
            return Err(refused(
                Code::CertificateExpired,
                &format!("the certificate ended {days} days ago, which is too long"),
            ));
        }
        Ok(RenewedFrom {
            fixed: fixed_grants(&base),
            wanted: request.wanted.clone(),
            token: holder.and_then(|holder| holder.token),
            // What this signer, or a record that is held, vouches for. A node that left elsewhere and
            // is forgotten has no better right than a stranger.
            keep: holder.is_some() || members.iter().any(|one| one.key == base.key),
            certificate: base,
        })
    }

    /// True when this very certificate is in the ledger, as the last one of its node.
    #[must_use]
    pub fn has_certified(&self, certificate: &NodeCertificate) -> bool {
        let holder = self.holders.get(&certificate.key);
        holder.is_some_and(|holder| holder.certificate.hash == certificate.hash)
    }

    /// Who lost the answer, or asks all the time, gets what it has: every certificate is an entry of the ledger
    /// for ever. So does a request that is older than the newest certificate, as one that somebody plays again.
    fn deserves_another(
        &self,
        base: &NodeCertificate,
        grants: &[Grant],
        request: &Renewal,
        now: UnixTime,
    ) -> bool {
        let issued_at = base.not_before.plus(limits::CERTIFICATE_BACKDATE_SECONDS);
        // An issuer that counts no more must be replaced; one that does is as good as this one.
        if self.anchors.issuer_of(base).is_none() || self.anchors.is_from_retiring(base) {
            return true;
        }
        if request.issued_at < issued_at {
            return false;
        }
        let changed = *grants != base.grants;
        let age = now.since(issued_at);
        if age < limits::RENEW_ANYWAY_SECONDS {
            // Whoever sets up pods or devices, one after the other, does not wait for each. What is played again is not newer
            // than what it was answered with.
            let holder = self.holders.get(&base.key);
            let first = holder.is_some_and(|held| held.since == base.not_before);
            let newer = request.issued_at > issued_at && request.issued_at <= now;
            let owed = holder.map_or(0, |held| held.paid_at.since(now));
            let may = owed <= limits::RENEW_ANYWAY_SECONDS * (limits::RENEW_IN_A_ROW - 1);
            return changed && (first || (newer && may));
        }
        let life = base.not_after.since(base.not_before);
        request.anyway || age >= life / 4 || changed
    }

    /// The newest certificate of who asks. The one that it shows counts when it is in the ledger, or an
    /// issuer in force signed it.
    fn newest(
        &self,
        request: &Renewal,
        holder: Option<&Holder>,
        record: Option<&Arc<Record>>,
    ) -> Result<Arc<NodeCertificate>, EnrolRefusal> {
        let shown = &request.certificate;
        // What a signer that is none any more has issued counts where it was seen while it still counted.
        let in_ledger = holder.is_some_and(|holder| holder.certificate.hash == shown.hash)
            || record.is_some_and(|record| record.certificate.hash == shown.hash);
        // A retiring signer may be a stolen one: what it issues now is nobody's certificate.
        let chained = self.anchors.check_chain(&shown.der, None).and_then(|certificate| {
            if in_ledger || !self.anchors.is_from_retiring(&certificate) {
                return Ok(certificate);
            }
            let why = "the signer of this certificate is retiring, and it was not seen before";
            Err(Refusal::new(Code::UnknownIssuer, why))
        });
        let mut newest = match chained {
            Ok(certificate) => certificate,
            Err(_) if in_ledger => Arc::new(shown.clone()),
            Err(refusal) => return Err(explain(refusal)),
        };
        let known = holder.map(|holder| &holder.certificate);
        for other in known.into_iter().chain(record.map(|record| &record.certificate)) {
            if other.not_before > newest.not_before {
                newest = other.clone();
            }
        }
        Ok(newest)
    }
}

/// What a certificate grants whatever its node detects: all but what lies within its limits.
fn fixed_grants(base: &NodeCertificate) -> Vec<IpNet> {
    base.grants
        .iter()
        .filter(|grant| grant.claim_len.is_none())
        .map(|grant| grant.prefix)
        .filter(|prefix| !within(&base.limits, prefix))
        .filter(|prefix| base.mesh_ipv4.is_none_or(|own| prefix.addr() != own))
        .collect()
}

/// What of the rest a certificate grants: what its node has detected.
pub(super) fn within_limits(base: &NodeCertificate) -> Vec<IpNet> {
    let exact = base.grants.iter().filter(|grant| grant.claim_len.is_none());
    exact.map(|grant| grant.prefix).filter(|prefix| within(&base.limits, prefix)).collect()
}

fn within(limits: &[IpNet], prefix: &IpNet) -> bool {
    limits.iter().any(|limit| limit.contains(prefix))
}

fn refused(code: Code, why: &str) -> EnrolRefusal {
    EnrolRefusal {
        refusal: Refusal::new(code, why),
        fix: "`meshctl leave` on that host, then join with a new token".to_owned(),
    }
}
