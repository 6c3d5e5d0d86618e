//! Who gets what: one way for everybody, the founding host included.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use meshd_proto::{NodeKey, NodeName};
use rand::CryptoRng;

use super::Signer;
use crate::{
    limits,
    now::UnixTime,
    refusal::Code,
    trust::{
        ca::NodeTerms,
        extension::mesh_grant,
        grants::{self, Asked, EnrolRefusal, Held},
        issuer::Voucher,
        ledger::{LedgerEntry, LedgerEvent},
        record::{Grant, NodeCertificate, Record},
        terms::TokenId,
    },
};

/// What a node gets, before there is a certificate.
pub(in crate::trust) struct Admission<'a> {
    pub(in crate::trust) key: NodeKey,
    pub(in crate::trust) name: &'a NodeName,
    pub(in crate::trust) token: Option<TokenId>,
    pub(in crate::trust) groups: &'a [String],
    pub(in crate::trust) asked: Asked<'a>,
    /// The certificate that this renews.
    pub(in crate::trust) before: Option<&'a Arc<NodeCertificate>>,
    /// The identity document that vouches for it.
    pub(in crate::trust) voucher: Option<&'a Voucher>,
}

/// From when to when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: UnixTime,
    pub(super) to: UnixTime,
}

impl Validity {
    /// For so long from now on; clocks differ, so it begins earlier.
    pub(super) fn of(now: UnixTime, seconds: i64) -> Self {
        Self { from: now.plus(-limits::CERTIFICATE_BACKDATE_SECONDS), to: now.plus(seconds) }
    }

    /// Later than what began at `begin`: of two certificates of a node the later one counts.
    pub(super) fn after(self, begin: UnixTime) -> Self {
        Self { from: self.from.max(begin.plus(1)), ..self }
    }
}

/// What a node got.
pub(in crate::trust) struct Admitted {
    pub(in crate::trust) certificate: Arc<NodeCertificate>,
    pub(in crate::trust) not_granted: Vec<IpNet>,
    pub(in crate::trust) entry: LedgerEntry,
}

impl Signer {
    /// Entries for the members that have left since: their names and prefixes are free, also when
    /// their records are forgotten. To be asked for now and then, before records are forgotten.
    pub fn departures(&self, members: &[Arc<Record>], now: UnixTime) -> Vec<LedgerEntry> {
        let has_left = |record: &&Arc<Record>| {
            self.holders.get(&record.key).is_some_and(|holder| {
                // A leave under a certificate from before it was admitted again is of its past.
                record.left && !holder.departed && record.certificate.not_before >= holder.since
            })
        };
        members
            .iter()
            .filter(has_left)
            .map(|record| LedgerEntry {
                time: now,
                event: LedgerEvent::Departed { key: record.key },
            })
            .collect()
    }

    /// Gives a node a name, an address, grants, and a certificate over them.
    pub(in crate::trust) fn admit(
        &self,
        admission: &Admission<'_>,
        departures: &[LedgerEntry],
        members: &[Arc<Record>],
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Admitted, EnrolRefusal> {
        let validity = Validity::of(now, limits::NODE_CERTIFICATE_SECONDS);
        self.admit_for(admission, validity, departures, members, now, rng)
    }

    /// [`Self::admit`] for a time of its own.
    pub(super) fn admit_for(
        &self,
        admission: &Admission<'_>,
        validity: Validity,
        departures: &[LedgerEntry],
        members: &[Arc<Record>],
        now: UnixTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Admitted, EnrolRefusal> {
        let held = self.held_by_others(&admission.key, departures, members);
        if !admission.asked.keep {
            held.check_name(admission.name)?;
        }
        let mesh = self.anchors.mesh_id();
        let (grants, not_granted) = self.decide(admission, &held)?;
        let known = || self.holders.get(&admission.key).map(|holder| &holder.certificate);
        let before = admission.before.or_else(known);
        let mesh_ipv4 = match before.and_then(|certificate| certificate.mesh_ipv4) {
            Some(address) if held.is_free(address) => address,
            _ => grants::allocate(&self.pool, mesh, &admission.key, &held)?,
        };
        let vouched = admission.voucher.map(|voucher| voucher.subject);
        let subject = vouched.or_else(|| before.and_then(|before| before.subject));
        let enrolment_id = before.map_or_else(|| random(rng), |before| before.enrolment_id);
        let terms = NodeTerms {
            mesh: self.anchors.mesh().clone(),
            mesh_id: *mesh,
            name: admission.name.clone(),
            key: admission.key,
            enrolment_id,
            groups: admission.groups.to_vec(),
            grants,
            mesh_ipv4: Some(mesh_ipv4),
            limits: admission.asked.allow.to_vec(),
            subject,
            not_before: validity.from,
            not_after: validity.to,
        };
        let certificate = self.intermediate.issue_node(&terms).map_err(|error| {
            EnrolRefusal::new(Code::BadTerms, error.to_string(), "make a token that grants less")
        })?;
        let certificate = Arc::new(certificate);
        let event = LedgerEvent::Enrolled {
            token: admission.token,
            certificate: certificate.clone(),
            not_granted: not_granted.clone(),
            renewal: admission.before.is_some(),
            voucher: admission.voucher.cloned(),
        };
        Ok(Admitted { certificate, not_granted, entry: LedgerEntry { time: now, event } })
    }

    /// The grants of the certificate that [`Self::admit`] would issue, as it would show them, and what of the
    /// wanted is not among them.
    pub(super) fn grants_of(
        &self,
        admission: &Admission<'_>,
        departures: &[LedgerEntry],
        members: &[Arc<Record>],
    ) -> Result<(Vec<Grant>, Vec<IpNet>), EnrolRefusal> {
        let held = self.held_by_others(&admission.key, departures, members);
        let (mut grants, not_granted) = self.decide(admission, &held)?;
        let address = admission.before.and_then(|before| before.mesh_ipv4);
        grants.extend(address.map(mesh_grant));
        grants.sort_unstable();
        grants.dedup();
        Ok((grants, not_granted))
    }

    fn decide(
        &self,
        admission: &Admission<'_>,
        held: &Held,
    ) -> Result<(Vec<Grant>, Vec<IpNet>), EnrolRefusal> {
        let mesh = self.anchors.mesh_id();
        let (mut grants, not_granted) = grants::decide(admission.asked, held, mesh, &self.pool)?;
        let pools = admission.before.into_iter().flat_map(|before| &before.grants);
        grants.extend(pools.filter(|grant| grant.claim_len.is_some()).cloned());
        Ok((grants, not_granted))
    }

    fn held_by_others(
        &self,
        key: &NodeKey,
        departures: &[LedgerEntry],
        members: &[Arc<Record>],
    ) -> Held {
        let mut held = Held::default();
        let gone: BTreeSet<NodeKey> = departing(departures).collect();
        // Another signer may have renewed it since: its record says what it has now.
        let newer: BTreeSet<NodeKey> = members
            .iter()
            .filter(|record| {
                self.holders.get(&record.key).is_some_and(|holder| {
                    record.certificate.not_before > holder.certificate.not_before
                })
            })
            .map(|record| record.key)
            .collect();
        let others = self.holders.iter().filter(|(holder, _)| *holder != key);
        for (holder, what) in others.filter(|(holder, _)| !newer.contains(holder)) {
            let revoked = self.anchors.revocation(holder).is_some();
            let departed = what.departed || revoked || gone.contains(holder);
            held.add_certificate(&what.certificate, departed);
        }
        // A record that is older than its node's certificate says nothing that the ledger does not
        // know better.
        let current: Vec<Arc<Record>> = members
            .iter()
            .filter(|record| {
                self.holders.get(&record.key).is_none_or(|holder| {
                    record.certificate.not_before >= holder.certificate.not_before
                })
            })
            .cloned()
            .collect();
        held.add_members(&current, key);
        held
    }
}

/// Whose departures these are.
pub(super) fn departing(entries: &[LedgerEntry]) -> impl Iterator<Item = NodeKey> {
    entries.iter().filter_map(|entry| match entry.event {
        LedgerEvent::Departed { key } => Some(key),
        _ => None,
    })
}

fn random(rng: &mut impl CryptoRng) -> [u8; 16] {
    let mut bytes = [0; 16];
    rng.fill_bytes(&mut bytes);
    bytes
}
