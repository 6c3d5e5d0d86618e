//! Those who are members no more: by revocation, because their issuer is none any more, or because their
//! certificate ended days ago. They are cut off at once, and kept out.
//!
//! Their last records are kept for a while, outside the directory: what was routed to them must not leave in
//! the clear. A newer bundle can undo both, when it takes out the signer that revoked or brings back the one
//! that issued.

use meshd_proto::{NodeKey, wire};

use super::{
    Node,
    types::{Output, SharedRecord},
};
use crate::{
    limits,
    now::Now,
    refusal::{Code, Refusal},
};

impl Node {
    /// The last records of those who are members no more, by key.
    pub fn barred(&self) -> impl Iterator<Item = &SharedRecord> {
        self.barred.values()
    }

    /// Ends a membership: with what this host's signer signed, or what was brought here by hand. False when
    /// it is no news.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn revoke(&mut self, signed: &wire::SignedRevocation, now: Now) -> Result<bool, Refusal> {
        let news = self.take_revocation(signed, now);
        self.settle(now);
        news
    }

    /// [`Self::revoke`] for many, which are kept once. All are tried; the first that is not believed is told.
    ///
    /// # Errors
    /// Why one is not believed.
    pub fn revoke_all(&mut self, all: &[wire::SignedRevocation], now: Now) -> Result<(), Refusal> {
        let mut refused = None;
        for signed in all {
            if let Err(refusal) = self.take_revocation(signed, now) {
                refused.get_or_insert(refusal);
            }
        }
        self.settle(now);
        refused.map_or(Ok(()), Err)
    }

    /// Revocations from a peer.
    pub(super) fn learn_revocations(
        &mut self,
        from: NodeKey,
        revocations: &[wire::SignedRevocation],
        now: Now,
    ) {
        for signed in revocations {
            if !self.budgets.of(&from, now.mono).work.take(1, now.mono) {
                self.counters.refuse(Code::RateLimited);
                return;
            }
            if let Err(refusal) = self.take_revocation(signed, now) {
                self.refused_record(from, &refusal);
            }
        }
    }

    fn take_revocation(
        &mut self,
        signed: &wire::SignedRevocation,
        now: Now,
    ) -> Result<bool, Refusal> {
        let Some(key) = self.anchors.revoke(signed)? else { return Ok(false) };
        self.dissemination.add_revocation(signed.clone());
        self.store_revocations = true;
        self.bar(key, Code::Revoked, now);
        Ok(true)
    }

    /// The set of intermediates is another.
    pub(super) fn heed_bundle(&mut self, now: Now) {
        self.changed = true;
        self.store_revocations = true;
        self.bar_all(now);
        let back: Vec<_> = self
            .barred
            .values()
            .filter(|record| self.verdict(record, now).is_none())
            .cloned()
            .collect();
        for record in back {
            self.membership.admit(&record, false, now.mono);
            self.hold(record, None, now);
        }
    }

    /// Ends what certificates that ended have left: connections at once, membership days later.
    pub(super) fn heed_dates(&mut self, now: Now) {
        let ends = self.anchors.trust_time(now.unix).ends;
        let over = |record: &SharedRecord| ends.since(record.certificate.not_after);
        let out = self.directory.iter().filter(|r| !r.left);
        let out = out.filter(|r| over(r) > limits::EXPIRED_PEER_SECONDS);
        let out: Vec<_> = out.map(|record| record.key).collect();
        for key in out {
            self.bar(key, Code::CertificateExpired, now);
        }
        let ended: Vec<_> = self
            .paths
            .connected()
            .filter(|key| {
                let record = self.directory.get(key);
                record.is_some_and(|record| over(record) > 0)
            })
            .copied()
            .collect();
        for key in ended {
            self.outputs.push_back(Output::Disconnect { key });
        }
    }

    /// Takes out of the directory whoever is no member any more.
    fn bar_all(&mut self, now: Now) {
        let out: Vec<_> = self
            .directory
            .iter()
            .filter_map(|record| Some((record.key, self.verdict(record, now)?)))
            .collect();
        for (key, code) in out {
            self.bar(key, code, now);
        }
    }

    fn bar(&mut self, key: NodeKey, why: Code, now: Now) {
        if key == self.own.key() {
            // Without an issuer it may get another certificate.
            if why == Code::Revoked {
                self.end_own_membership();
            }
            return;
        }
        let known = self.directory.get(&key).map(|_| self.directory.display_name(&key));
        let revoked = || self.anchors.revocation(&key).map(|r| r.name.to_string());
        let name = known.or_else(revoked).unwrap_or_else(|| key.short());
        self.drop_exchanges(&key);
        let connected = self.paths.is_connected(&key);
        if let Some(record) = self.drop_member(&key, now) {
            self.barred.insert(key, record);
        }
        // It is the last thing that it hears.
        let last = self.anchors.revocation(&key).map(|revocation| revocation.signed.clone());
        if connected {
            let bundle = (why == Code::UnknownIssuer).then(|| self.anchors.signed_bundle().clone());
            self.push(key, Vec::new(), bundle);
            self.push_revocations(key, last.as_slice());
        }
        self.outputs.push_back(Output::Disconnect { key });
        self.tell_of_barred(key, &name, why);
    }

    /// Why the holder of a record that was believed is no member any more.
    fn verdict(&self, record: &SharedRecord, now: Now) -> Option<Code> {
        let ends = self.anchors.trust_time(now.unix).ends;
        if self.anchors.revocation(&record.key).is_some() {
            Some(Code::Revoked)
        } else if self.anchors.issuer_of(&record.certificate).is_none() {
            Some(Code::UnknownIssuer)
        } else if ends.since(record.certificate.not_after) > limits::EXPIRED_PEER_SECONDS {
            Some(Code::CertificateExpired)
        } else {
            None
        }
    }

    /// A stored record of somebody who is no member any more.
    pub(super) fn restore_barred(&mut self, record: &SharedRecord, now: Now) -> bool {
        let barred = self.verdict(record, now).is_some();
        if barred && self.barred.len() < limits::DIRECTORY_MEMBERS {
            self.barred.insert(record.key, record.clone());
        }
        barred
    }

    /// What is to be kept of revocations, once a call.
    pub(super) fn flush_revocations(&mut self) {
        if std::mem::take(&mut self.store_revocations) {
            let bytes = self.anchors.encode_revocations().into();
            // The whole set each time: an older one that is still to be kept would come after it.
            self.outputs.retain(|output| !matches!(output, Output::StoreRevocations(_)));
            self.outputs.push_front(Output::StoreRevocations(bytes));
        }
    }

    /// Forgets the barred when their records would be forgotten too.
    pub(super) fn forget_the_barred(&mut self, now: Now) {
        let limit = super::records::seconds(self.config.longest_silence());
        let old = |record: &&SharedRecord| now.unix.since(record.issued_at) > limit;
        let keys: Vec<_> = self.barred.values().filter(old).map(|record| record.key).collect();
        for key in keys {
            self.barred.remove(&key);
            self.changed = true;
            self.outputs.push_back(Output::Forget { key });
        }
    }
}
