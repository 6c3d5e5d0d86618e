//! Spreading what is new: pushed to a few, announced to a few more, each of whom does so once. Those few are the next
//! on the rings, so that it comes to everybody, and announcements [wait](super::lazy) until it has.
//!
//! Responsible for whom to tell at once and for asking for what was announced. What is missed all the same
//! is found by [anti-entropy](super::sync).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use rand::seq::{IteratorRandom, SliceRandom};

use super::{
    Node,
    lazy::Lazy,
    records::rank,
    rounds::{News, Rounds},
    types::{Liveness, SharedRecord},
};
use crate::{limits, now::Now, refusal::Code, trust::Record};

/// Members that are sent a new record at once.
const PUSH_TO: usize = 3;
/// How long announcements wait: longer than news takes to come to all of a thousand hosts, or to fifty on two
/// busy processors.
const LAZY: Duration = Duration::from_millis(200);
/// More new records than this at once are only announced: they came from an exchange, others may have
/// them already.
const PUSH_AT_ONCE: usize = 16;
/// Members that are told of a revocation, each of whom tells as many: nobody may wait for an exchange.
const REVOCATIONS_TO: usize = 8;
/// Members that are new themselves are told by whom they joined by, so many of them: they may know nobody else.
const NEW_TO: usize = 64;
/// Neighbours that are sent a report, each of whom does the same. They are the next on each ring: were they chosen by lot, one
/// in 250 would hear of a crash from nobody, and only with its next exchange. One more is chosen by lot, so that those before a
/// member on all rings cannot keep them from it.
const REPORTS_TO: usize = 5;
/// Reports in one frame.
const REPORTS_PER_FRAME: usize = RECORDS_PER_FRAME / (limits::REPORT + 80);
/// Revocations in one frame.
const REVOCATIONS_PER_FRAME: usize = RECORDS_PER_FRAME / (limits::REVOCATION + 80);
/// Entries or keys in one frame.
pub(super) const ENTRIES_PER_FRAME: usize = 1_000;
/// Bytes of records in one frame: leaves room for the framing.
const RECORDS_PER_FRAME: usize = limits::FRAME - 8 * 1024;
/// How long a record that was asked for is not asked for again from the same member, and from another.
const PULL_PATIENCE: Duration = Duration::from_secs(2);
const OTHERS_PATIENCE: Duration = Duration::from_millis(300);
/// Records that are kept in mind as asked for from one member. What goes beyond is asked for all the same: who
/// announces what does not exist must not keep what does from being asked for.
const PULLED_OF_ONE: usize = 1_000;
/// Keys that are looked at for the work of one verification.
const KEYS_PER_WORK: usize = 20;

#[derive(Debug, Clone, Copy)]
struct Asked {
    of: NodeKey,
    at: Instant,
}

/// What is about to be told, and what was asked for.
#[derive(Debug, Default)]
pub(super) struct Dissemination {
    /// New here since the last flush, and who holds it.
    fresh: BTreeMap<NodeKey, BTreeSet<NodeKey>>,
    lazy: Lazy,
    /// A bundle newer than what was held came in.
    fresh_bundle: bool,
    /// A newer signers' time came in.
    fresh_time: bool,
    /// Revocations that are new here.
    fresh_revocations: Vec<wire::SignedRevocation>,
    /// Reports that are new here, and from whom.
    fresh_reports: Vec<(wire::SignedReport, Option<NodeKey>)>,
    rounds: Rounds,
    /// Asked for and not come yet.
    pulling: BTreeMap<NodeKey, Asked>,
    /// How many of these from whom.
    pulled_of: BTreeMap<NodeKey, usize>,
}

impl Dissemination {
    /// `key`'s record is new here.
    pub(super) fn add(&mut self, key: NodeKey, from: Option<NodeKey>) {
        self.arrived(&key);
        self.fresh.insert(key, from.into_iter().collect());
    }

    /// `member` holds the same version of `key`'s record as this node.
    pub(super) fn holds(&mut self, key: &NodeKey, member: NodeKey) {
        if let Some(holders) = self.fresh.get_mut(key) {
            holders.insert(member);
        }
        self.lazy.holds(key, &member);
    }

    /// The bundle is new here.
    pub(super) fn add_bundle(&mut self) {
        self.fresh_bundle = true;
    }

    /// A revocation is new here.
    pub(super) fn add_revocation(&mut self, signed: wire::SignedRevocation) {
        self.fresh_revocations.push(signed);
    }

    /// A report is new here.
    pub(super) fn add_report(&mut self, signed: wire::SignedReport, from: Option<NodeKey>) {
        self.fresh_reports.push((signed, from));
    }

    /// The signers' time is new here.
    pub(super) fn add_time(&mut self) {
        self.fresh_time = true;
    }

    /// When there is something to tell; `None` also if that is at once.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.rounds.due(self.news()).into_iter().chain(self.lazy.next()).min()
    }

    fn news(&self) -> News {
        News {
            urgent: self.fresh_bundle || self.fresh_time || !self.fresh_revocations.is_empty(),
            usual: self.fresh.len() + self.fresh_reports.len(),
        }
    }

    /// What was asked for came, whatever became of it.
    pub(super) fn arrived(&mut self, key: &NodeKey) {
        if let Some(asked) = self.pulling.remove(key) {
            self.release(&asked.of);
        }
    }

    fn release(&mut self, of: &NodeKey) {
        if let Some(count) = self.pulled_of.get_mut(of) {
            *count -= 1;
            if *count == 0 {
                self.pulled_of.remove(of);
            }
        }
    }

    /// True if `key` should be asked for from `of` now; notes that it is.
    fn claim_pull(&mut self, key: NodeKey, of: NodeKey, now: Instant) -> bool {
        if let Some(asked) = self.pulling.get(&key) {
            let patience = if asked.of == of { PULL_PATIENCE } else { OTHERS_PATIENCE };
            if now.saturating_duration_since(asked.at) < patience {
                return false;
            }
            self.arrived(&key);
        }
        let count = self.pulled_of.entry(of).or_default();
        if *count < PULLED_OF_ONE && self.pulling.len() < limits::DIRECTORY_MEMBERS {
            *count += 1;
            self.pulling.insert(key, Asked { of, at: now });
        }
        if self.pulled_of.get(&of) == Some(&0) {
            self.pulled_of.remove(&of);
        }
        true
    }

    /// Forgets what was asked for and never came.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = |asked: &Asked| now.saturating_duration_since(asked.at) >= PULL_PATIENCE;
        let gone: Vec<_> =
            self.pulling.iter().filter(|(_, a)| late(a)).map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| self.arrived(key));
    }
}

/// Members that are told of a new record: with what is pushed, so many that everybody hears of it at
/// once. A fan-out of `f` misses a share of e^-f, which anti-entropy finds only seconds later.
fn announce_to(members: usize) -> usize {
    usize::try_from(members.max(2).ilog2()).unwrap_or(0) * 3 / 2 + 1
}

/// How a frame names a record without its bytes.
pub(super) fn entry(record: &Record) -> wire::RecordKey {
    wire::RecordKey {
        identity_key: bytes::Bytes::copy_from_slice(&record.key.0),
        version: record.version,
        payload_hash: bytes::Bytes::copy_from_slice(&record.payload_hash),
    }
}

impl Node {
    /// Tells others what is new. Everything that came in with one call goes out together.
    pub(super) fn flush_fresh(&mut self, now: Instant) {
        for (target, keys) in self.dissemination.lazy.due(now) {
            let records: Vec<_> =
                keys.iter().filter_map(|key| self.directory.get(key).cloned()).collect();
            self.announce(target, &records);
        }
        let news = self.dissemination.news();
        if !self.dissemination.rounds.begin(news, now) {
            return;
        }
        let fresh = std::mem::take(&mut self.dissemination.fresh);
        let bundle = std::mem::take(&mut self.dissemination.fresh_bundle);
        let bundle = bundle.then(|| self.anchors.signed_bundle().clone());
        let time = std::mem::take(&mut self.dissemination.fresh_time);
        let revocations = std::mem::take(&mut self.dissemination.fresh_revocations);
        let reports = std::mem::take(&mut self.dissemination.fresh_reports);
        let targets = self.somebody_to_tell(!revocations.is_empty());
        let pushes = if fresh.len() <= PUSH_AT_ONCE { PUSH_TO.min(targets.len()) } else { 0 };
        // While many start the rings are not complete, and what was not pushed is known to nobody else.
        let lazily = self.membership.joined().count() <= PUSH_TO;
        for (place, target) in targets.iter().copied().enumerate() {
            self.push_revocations(target, &revocations);
            if time {
                self.offer_time(target, 0);
            }
            let records: Vec<SharedRecord> = fresh
                .iter()
                .filter(|(key, holders)| **key != target && !holders.contains(&target))
                .filter_map(|(key, _)| self.directory.get(key).cloned())
                .collect();
            if place < pushes {
                self.push(target, records, bundle.clone());
            } else {
                if !lazily {
                    self.announce(target, &records);
                }
                if bundle.is_some() {
                    self.push(target, Vec::new(), bundle.clone());
                }
            }
        }
        if lazily {
            for (key, holders) in fresh {
                let others = targets[pushes..].iter().copied();
                let others = others.filter(|other| *other != key && !holders.contains(other));
                self.dissemination.lazy.add(key, others.collect(), now + LAZY);
            }
        }
        self.tell_reports(&reports, targets);
    }

    fn tell_reports(
        &mut self,
        reports: &[(wire::SignedReport, Option<NodeKey>)],
        others: Vec<NodeKey>,
    ) {
        let mut targets: Vec<_> = self.membership.neighbours_ahead().collect();
        let more = others.into_iter().filter(|key| !targets.contains(key)).collect::<Vec<_>>();
        targets.extend(more);
        for target in targets.into_iter().take(REPORTS_TO) {
            let others = reports.iter().filter(|(_, from)| *from != Some(target));
            let others: Vec<_> = others.map(|(signed, _)| signed.clone()).collect();
            self.push_reports(target, &others);
        }
    }

    /// Members that are told what is new, in the order in which they are: the neighbours, to whom
    /// connections stand, and first of them the next on each ring, so that the first of all form rings of which each comes to
    /// everybody. While many start, those to whom connections stand otherwise, and of others only as many as
    /// make enough for everybody to hear of it in the end.
    fn somebody_to_tell(&mut self, revocations: bool) -> Vec<NodeKey> {
        let mut fanout = PUSH_TO + announce_to(self.directory.len());
        if revocations {
            fanout = fanout.max(REVOCATIONS_TO);
        }
        let new: Vec<_> = self.membership.joined().collect();
        let near: Vec<_> = self.membership.neighbours().collect();
        let alive = self.membership.members(Liveness::Alive);
        let own = self.own.key();
        let connected = || self.paths.connected().copied().filter(|key| *key != own);
        let mut targets = match (near.is_empty(), new.is_empty()) {
            (false, _) => near.into_iter().sample(&mut self.rng, fanout),
            (true, true) => alive.sample(&mut self.rng, fanout),
            (true, false) => connected().sample(&mut self.rng, fanout.max(NEW_TO)),
        };
        targets.shuffle(&mut self.rng);
        let ahead: Vec<_> = self.membership.neighbours_ahead().collect();
        targets.sort_by_key(|target| {
            ahead.iter().position(|one| one == target).unwrap_or(ahead.len())
        });
        // Nobody's neighbours yet, they may know nobody but this node.
        let new = new.into_iter().filter(|key| self.paths.is_connected(key));
        let new = new.filter(|key| !targets.contains(key)).sample(&mut self.rng, NEW_TO);
        targets.extend(new);
        let least = if revocations { REVOCATIONS_TO } else { PUSH_TO };
        if let Some(lacking) = least.checked_sub(targets.len()) {
            // At the start nobody counts as alive yet, but somebody may be connected.
            let alive = self.membership.members(Liveness::Alive);
            let others = connected().chain(alive).collect::<BTreeSet<_>>();
            let others = others.into_iter().filter(|key| !targets.contains(key));
            targets.extend(others.sample(&mut self.rng, lacking));
        }
        targets
    }

    /// Sends reports, in as many frames as it takes.
    pub(super) fn push_reports(&mut self, to: NodeKey, reports: &[wire::SignedReport]) {
        for chunk in reports.chunks(REPORTS_PER_FRAME) {
            let push = wire::Push { reports: chunk.to_vec(), ..Default::default() };
            self.send(to, wire::frame::Body::Push(push));
        }
    }

    /// Sends revocations, in as many frames as it takes.
    pub(super) fn push_revocations(&mut self, to: NodeKey, revocations: &[wire::SignedRevocation]) {
        for chunk in revocations.chunks(REVOCATIONS_PER_FRAME) {
            let push = wire::Push { revocations: chunk.to_vec(), ..Default::default() };
            self.send(to, wire::frame::Body::Push(push));
        }
    }

    /// Sends records, in as many frames as it takes.
    pub(super) fn push(
        &mut self,
        to: NodeKey,
        records: Vec<SharedRecord>,
        mut bundle: Option<wire::SignedBundle>,
    ) {
        let mut frame = Vec::new();
        let mut size = bundle.as_ref().map_or(0, wire::SignedBundle::encoded_len);
        for record in records {
            let length = record.signed.encoded_len() + 8;
            if size + length > RECORDS_PER_FRAME && !frame.is_empty() {
                self.push_frame(to, std::mem::take(&mut frame), bundle.take());
                size = 0;
            }
            size += length;
            frame.push(record.signed.clone());
        }
        if !frame.is_empty() || bundle.is_some() {
            self.push_frame(to, frame, bundle);
        }
    }

    fn push_frame(
        &mut self,
        to: NodeKey,
        records: Vec<wire::SignedRecord>,
        bundle: Option<wire::SignedBundle>,
    ) {
        let push = wire::Push { records, bundle, ..Default::default() };
        self.send(to, wire::frame::Body::Push(push));
    }

    fn announce(&mut self, to: NodeKey, records: &[SharedRecord]) {
        for chunk in records.chunks(ENTRIES_PER_FRAME) {
            let records = chunk.iter().map(|record| entry(record)).collect();
            self.send(to, wire::frame::Body::Announce(wire::Announce { records }));
        }
    }

    /// Records that came without being asked for, or because they were.
    pub(super) fn handle_push(&mut self, from: NodeKey, push: &wire::Push, now: Now) {
        if let Some(bundle) = &push.bundle {
            self.learn_bundle(from, bundle, now);
        }
        self.learn_revocations(from, &push.revocations, now);
        if let Some(time) = &push.time {
            self.learn_time(from, time, now);
        }
        for record in &push.records {
            self.learn_from(from, record, now);
        }
        self.learn_reports(from, &push.reports, now);
    }

    /// Records that somebody has.
    pub(super) fn handle_announce(&mut self, from: NodeKey, entries: &[wire::RecordKey], now: Now) {
        if entries.len() > ENTRIES_PER_FRAME {
            self.refuse(from, Code::TooLarge, "more records announced than fit a frame");
            return;
        }
        self.pull_lacking(from, entries, now);
    }

    /// Asks `from` for those of `entries` that are lacking here; gives the identities, or nothing when they are
    /// more than it may have looked at now.
    pub(super) fn pull_lacking(
        &mut self,
        from: NodeKey,
        entries: &[wire::RecordKey],
        now: Now,
    ) -> Option<Vec<NodeKey>> {
        let work = u64::try_from(entries.len() / KEYS_PER_WORK).unwrap_or(u64::MAX);
        if !self.budgets.of(&from, now.mono).work.take(work, now.mono) {
            self.counters.refuse(Code::RateLimited);
            return None;
        }
        for entry in entries {
            self.note_holder(from, entry);
        }
        let lacking: Vec<_> =
            entries.iter().filter_map(|entry| self.lacks(entry, now.mono)).collect();
        let asked: Vec<_> = lacking
            .iter()
            .filter(|key| self.dissemination.claim_pull(**key, from, now.mono))
            .map(|key| bytes::Bytes::copy_from_slice(&key.0))
            .collect();
        for chunk in asked.chunks(ENTRIES_PER_FRAME) {
            let pull = wire::Pull { identity_keys: chunk.to_vec(), ..Default::default() };
            self.send(from, wire::frame::Body::Pull(pull));
        }
        Some(lacking)
    }

    /// `from` has told of a record: where it is the version held here, it need not be told.
    fn note_holder(&mut self, from: NodeKey, entry: &wire::RecordKey) {
        let Ok(key) = NodeKey::try_from(&*entry.identity_key) else { return };
        let same = |held: &SharedRecord| {
            held.version == entry.version && held.payload_hash == *entry.payload_hash
        };
        if self.directory.get(&key).is_some_and(same) {
            self.dissemination.holds(&key, from);
        }
    }

    /// The identity of `entry` if its record would be news here. What was refused lately counts as held.
    fn lacks(&self, entry: &wire::RecordKey, now: Instant) -> Option<NodeKey> {
        let key = NodeKey::try_from(&*entry.identity_key).ok()?;
        let payload_hash = <[u8; 8]>::try_from(&*entry.payload_hash).ok()?;
        let news = match self.directory.get(&key) {
            Some(held) => (entry.version, Reverse(payload_hash)) > rank(held),
            None => true,
        };
        (news && !self.refused.contains(&payload_hash, now)).then_some(key)
    }

    /// Sends what is asked for and held, as far as the peer's budget reaches.
    pub(super) fn handle_pull(&mut self, from: NodeKey, keys: &[bytes::Bytes], now: Now) {
        let mut records = Vec::new();
        for key in keys.iter().take(ENTRIES_PER_FRAME) {
            let Ok(key) = NodeKey::try_from(&**key) else { continue };
            let Some(record) = self.directory.get(&key) else { continue };
            let size = u64::try_from(record.signed.encoded_len()).unwrap_or(u64::MAX);
            if !self.budgets.of(&from, now.mono).bytes.take(size, now.mono) {
                self.counters.refuse(Code::RateLimited);
                break;
            }
            records.push(record.clone());
        }
        self.push(from, records, None);
    }
}
