//! Records on their way into the directory: verified, admitted, held; or refused, counted and remembered.

use std::{cmp::Reverse, time::Duration};

use bytes::Bytes;
use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use sha2::{Digest, Sha256};

use super::{
    Node,
    types::{Counters, Liveness, Output, SharedRecord},
};
use crate::{
    event::Event,
    limits,
    now::Now,
    refusal::{Code, Refusal},
    trust::{AdmitContext, Record, admit, read_stamped},
};

/// A record signed this many seconds ago or less says that its owner is there.
const FRESH_SECONDS: i64 = 30;
/// What a refused record costs its sender, in verifications.
const REFUSED_COST: u64 = 10;

impl Counters {
    pub(super) fn refuse(&mut self, code: Code) {
        self.add_refusals(code, 1);
    }

    pub(super) fn add_refusals(&mut self, code: Code, count: u64) {
        *self.refusals.entry(code.as_str()).or_default() += count;
    }
}

impl Node {
    /// Takes a record from the store, verified as if it came from outside, unless it has the stamp of this host's own
    /// verdict. Only its age does not matter, nor this host's clock: it was held before.
    ///
    /// The member counts as suspect until somebody hears of it, and as down if it does not answer.
    ///
    /// # Errors
    /// Why it is not believed; the store should drop it.
    pub fn restore(&mut self, bytes: &[u8], now: Now) -> Result<(), Refusal> {
        let stored = wire::StoredRecord::decode(bytes)
            .map_err(|_| Refusal::new(Code::Malformed, "stored record: not Protobuf"))?;
        let wire::StoredRecord { payload, signature, certificate, stamp } = stored;
        let signed = wire::SignedRecord { payload, signature, certificate };
        let stamped = self.stamper.holds(&stamp, &signed, &self.anchors);
        let record = match stamped {
            true => read_stamped(&signed, &self.anchors)?,
            false => self.verify(&signed)?,
        };
        let key = record.key;
        self.take_restored(record, now)?;
        if !stamped {
            let bytes = self.stored(&signed);
            self.outputs.push_back(Output::Store { key, bytes });
        }
        Ok(())
    }

    /// A record that was verified with these anchors, as [`Output::Store`] has it.
    fn stored(&self, signed: &wire::SignedRecord) -> Bytes {
        self.stamper.stamped(signed, &self.anchors).encode_to_vec().into()
    }

    fn take_restored(&mut self, record: SharedRecord, now: Now) -> Result<(), Refusal> {
        if record.key == self.own.key() {
            self.restore_own(&record);
            return Ok(());
        }
        if self.restore_barred(&record, now) {
            return Ok(());
        }
        if self.directory.get(&record.key).is_some_and(|held| rank(held) >= rank(&record)) {
            return Ok(());
        }
        self.room_for(&record.key)?;
        self.membership.admit(&record, false, now.mono);
        self.directory.insert(record);
        self.changed = true;
        Ok(())
    }

    /// A record from a peer.
    pub(super) fn learn_from(&mut self, from: NodeKey, signed: &wire::SignedRecord, now: Now) {
        if let Some(key) = claimed_key(&signed.payload) {
            self.dissemination.arrived(&key);
            if self.directory.get(&key).is_some_and(|held| held.signed == *signed) {
                self.counters.records_known += 1;
                self.dissemination.holds(&key, from);
                self.settle_exchanges(&key, None, now);
                return;
            }
        }
        if !self.budgets.of(&from, now.mono).work.take(1, now.mono) {
            self.counters.refuse(Code::RateLimited);
            return;
        }
        match self.learn(from, signed, now) {
            Ok(key) => self.settle_exchanges(&key, None, now),
            Err(refusal) => {
                // Who changes too often is not the relay's doing.
                if refusal.code != Code::RateLimited {
                    self.budgets.of(&from, now.mono).work.drain(REFUSED_COST, now.mono);
                }
                self.refused_record(from, &refusal);
                if let Some(key) = claimed_key(&signed.payload) {
                    self.settle_exchanges(&key, Some(from), now);
                }
            }
        }
    }

    fn learn(
        &mut self,
        from: NodeKey,
        signed: &wire::SignedRecord,
        now: Now,
    ) -> Result<NodeKey, Refusal> {
        let record = self.verify(signed).inspect_err(|refusal| {
            // Only what is wrong with a payload that its owner signed is remembered by its hash: anybody
            // can put garbage around a good one.
            if refusal.by_owner {
                self.refused.insert(payload_hash(&signed.payload), now.mono);
            }
        })?;
        if record.key == self.own.key() {
            self.hear_own(&record, now);
            return Ok(record.key);
        }
        let held = self.directory.get(&record.key);
        if let Some(held) = held
            && rank(&record) <= rank(held)
        {
            self.counters.records_known += 1;
            if record.version < held.version {
                return Err(Refusal::new(
                    Code::OldVersion,
                    format!(
                        "version {} of {}, held is {}",
                        record.version, record.key, held.version
                    ),
                ));
            }
            return Ok(record.key);
        }
        let context = AdmitContext {
            anchors: &self.anchors,
            now: now.unix,
            held: held.map(|held| &**held),
            forget_after_seconds: seconds(self.config.longest_silence()),
        };
        let admitted = admit(&record, &context).and_then(|()| self.room_for(&record.key));
        admitted.inspect_err(|refusal| {
            // What this host's clock is to blame for is not held against the record.
            if !matches!(refusal.code, Code::ClockSkew | Code::CertificateNotYetValid) {
                self.refused.insert(record.payload_hash, now.mono);
            }
        })?;
        if held.is_some() && !record.left && !self.updates.allow(record.key, now.mono) {
            return Err(Refusal::new(
                Code::RateLimited,
                format!("{} changes its record more often than once a second", record.name),
            ));
        }
        self.counters.records_accepted += 1;
        let age = now.unix.since(record.issued_at);
        let fresh = (-FRESH_SECONDS..=FRESH_SECONDS).contains(&age);
        if fresh && held.is_some_and(|held| held.generation != record.generation) {
            self.paths.excuse(&record);
        }
        self.membership.admit(&record, fresh, now.mono);
        let key = record.key;
        self.hold(record, Some(from), now);
        Ok(key)
    }

    /// Puts an admitted record into the directory, the store and the next frames.
    pub(super) fn hold(&mut self, record: SharedRecord, from: Option<NodeKey>, now: Now) {
        let key = record.key;
        // From a peer: it was verified just now, with these anchors.
        let bytes = match from {
            Some(_) => self.stored(&record.signed),
            None => record.signed.encode_to_vec().into(),
        };
        let left = record.left;
        let generation = (!left).then_some(record.generation);
        let boot_id = record.boot_id;
        let old = self.directory.insert(record);
        if old.as_ref().and_then(|old| (!old.left).then_some(old.generation)) != generation {
            let renewed = old.as_ref().is_some_and(|old| old.boot_id == boot_id);
            self.heed_generation(&key, generation, renewed, now);
        }
        self.barred.remove(&key);
        self.dissemination.add(key, from);
        self.outputs.push_back(Output::Store { key, bytes });
        self.changed = true;
        if key == self.own.key() {
            return;
        }
        if let Some(old) = &old {
            self.heed_withdrawal(old, now);
        }
        let was = old.map(|old| old.left);
        let name = self.directory.display_name(&key);
        let event = match (was, left) {
            (None | Some(true), false) => {
                Event::info("member_joined", format!("{name} is a member"))
            }
            (None | Some(false), true) => {
                Event::info("member_left", format!("{name} has left the mesh"))
            }
            _ => return,
        };
        self.tell(event.about(key, name));
    }

    /// A bundle of intermediates from a peer.
    pub(super) fn learn_bundle(&mut self, from: NodeKey, bundle: &wire::SignedBundle, now: Now) {
        if bundle == self.anchors.signed_bundle() {
            return;
        }
        if !self.budgets.of(&from, now.mono).work.take(REFUSED_COST, now.mono) {
            self.counters.refuse(Code::RateLimited);
            return;
        }
        if let Err(refusal) = self.take_bundle(bundle, now) {
            self.refused_record(from, &refusal);
        }
    }

    /// A bundle that the holder of the root has signed here. False when it is no news.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn install_bundle(
        &mut self,
        bundle: &wire::SignedBundle,
        now: Now,
    ) -> Result<bool, Refusal> {
        let news = self.take_bundle(bundle, now);
        self.settle(now);
        news
    }

    pub(super) fn take_bundle(
        &mut self,
        bundle: &wire::SignedBundle,
        now: Now,
    ) -> Result<bool, Refusal> {
        let before = self.anchors.signers();
        let news = self.anchors.install_bundle(bundle)?;
        if news {
            self.tell_of_signers(&before);
            self.outputs.push_back(Output::StoreBundle(bundle.encode_to_vec().into()));
            self.dissemination.add_bundle();
            self.heed_bundle(now);
            self.spread_renewal(now);
        }
        Ok(news)
    }

    fn room_for(&self, key: &NodeKey) -> Result<(), Refusal> {
        if self.directory.len() < limits::DIRECTORY_MEMBERS || self.directory.get(key).is_some() {
            return Ok(());
        }
        let text = format!("{} members are held, no room for {key}", self.directory.len());
        Err(Refusal::new(Code::DirectoryFull, text))
    }

    /// Counts a refusal and makes it an event.
    pub(super) fn refuse(&mut self, from: NodeKey, code: Code, detail: &str) {
        self.refused_record(from, &Refusal::new(code, detail));
    }

    /// Forgets those who left or are gone for long enough.
    pub(super) fn forget_the_gone(&mut self, now: Now) {
        let patience = self.config.forget_after;
        let limit = seconds(self.config.longest_silence());
        let own = self.own.key();
        let gone = |record: &&SharedRecord| {
            if record.key == own {
                return false;
            }
            let age = now.unix.since(record.issued_at);
            if record.left {
                // A record that is not held and older than `limit` is refused, so it cannot rise again.
                return age > limits::TOMBSTONE_SECONDS.max(limit);
            }
            let down = matches!(
                self.membership.liveness(&record.key),
                Some((Liveness::Down, since)) if now.mono.duration_since(since) >= patience
            );
            let quiet = self.handshakes.get(&record.key).is_none_or(|at| {
                at.is_none_or(|at| now.mono.saturating_duration_since(at) >= patience)
            });
            down && quiet && age > limit
        };
        let keys: Vec<_> = self.directory.iter().filter(gone).map(|record| record.key).collect();
        for key in keys {
            let name = self.directory.display_name(&key);
            self.drop_member(&key, now);
            self.outputs.push_back(Output::Forget { key });
            let event = Event::info("member_forgotten", format!("{name} is forgotten"));
            self.tell(event.about(key, name));
        }
        self.forget_the_barred(now);
        self.dissemination.expire(now.mono);
        self.updates.expire(now.mono);
    }

    /// Takes a member out of everything; gives its record.
    pub(super) fn drop_member(&mut self, key: &NodeKey, now: Now) -> Option<SharedRecord> {
        self.membership.remove(key, now.mono);
        self.heed_generation(key, None, false, now);
        self.paths.forget(key);
        self.handshakes.remove(key);
        self.changed = true;
        self.directory.remove(key)
    }
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// What orders the records of one identity, here and in `admit`: of two with one version, which only a
/// clone can make, the smaller hash wins everywhere.
pub(super) fn rank(record: &Record) -> (u64, Reverse<[u8; 8]>) {
    (record.version, Reverse(record.payload_hash))
}

fn payload_hash(payload: &[u8]) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&Sha256::digest(payload)[..8]);
    short
}

/// The identity that a payload names, if it begins as every encoder of this protocol writes it: a hint,
/// before anything is verified.
fn claimed_key(payload: &[u8]) -> Option<NodeKey> {
    const KEY_FIELD: [u8; 2] = [0x0a, 32];
    NodeKey::try_from(payload.strip_prefix(&KEY_FIELD)?.get(..32)?).ok()
}
