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
        record::{NodeCertificate, Record},
        renewal::Renewal,
    },
};

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
        let mut both = members.iter().chain(known.barred);
        let record = both.find(|record| record.key == request.identity);
        let holder = self.holders.get(&request.identity);
        if record.is_some_and(|record| record.left) || holder.is_some_and(|holder| holder.departed)
        {
            return Err(refused(Code::Revoked, "this node has left the mesh"));
        }
        let base = self.newest(request, holder, record)?;
        let over = now.since(base.not_after);
        if over > limits::RENEW_AFTER_END_SECONDS {
            let days = over / limits::DAY_SECONDS;
            return Err(refused(
                Code::CertificateExpired,
                &format!("the certificate ended {days} days ago, which is too long"),
            ));
        }
        let fixed = fixed_grants(&base);
        let age = now.since(base.not_before) - limits::CERTIFICATE_BACKDATE_SECONDS;
        let life = base.not_after.since(base.not_before);
        let not_granted = ungranted(&base, &request.wanted);
        let unchanged = not_granted.iter().all(|p| !within(&base.limits, p));
        // Who lost the answer, or asks all the time, gets what it has.
        let young = if request.anyway { limits::RENEW_ANYWAY_SECONDS } else { life / 4 };
        if age < young && unchanged && self.issued(&base) {
            let reply = self.reply(&base, &not_granted, own)?;
            let (name, key) = (base.name.clone(), base.key);
            return Ok(Enrolled { reply, name, key, entries: Vec::new(), renewal: true });
        }
        let mut entries = self.departures(members, now);
        let admission = Admission {
            key: base.key,
            name: &base.name,
            token: holder.and_then(|holder| holder.token),
            groups: &base.groups,
            asked: Asked {
                exact: &fixed,
                allow: &base.limits,
                wanted: &request.wanted,
                keep: true,
            },
            before: Some(&base),
        };
        let admitted = self.admit(&admission, &entries, members, now, rng)?;
        let reply = self.reply(&admitted.certificate, &admitted.not_granted, own)?;
        entries.push(admitted.entry);
        Ok(Enrolled { reply, name: base.name.clone(), key: base.key, entries, renewal: true })
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
        let chained = self.anchors.check_chain(&shown.der, None);
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

    fn issued(&self, certificate: &NodeCertificate) -> bool {
        self.anchors.issuer_of(certificate).is_some_and(|der| der == self.intermediate.der())
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

fn ungranted(base: &NodeCertificate, wanted: &[IpNet]) -> Vec<IpNet> {
    let granted = |prefix: &&IpNet| base.grants.iter().any(|grant| grant.covers(prefix));
    wanted.iter().filter(|prefix| !granted(prefix)).copied().collect()
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
