//! The reports that are held: the last of each watcher about each member, at the generations that both have now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use meshd_proto::{NodeKey, wire};
use sha2::{Digest as _, Sha256};

use super::refuted::Refuted;
use crate::{limits, node::budget::Bucket, node::types::Liveness, trust::Report};

/// A watcher that was restarted finds out again within this.
const LAPSE: Duration = Duration::from_secs(15);
/// Reports of one watcher that are taken at once, and one more each second: many may die together.
const OF_ONE: (u64, u64) = (128, 1);

#[derive(Debug)]
struct Held {
    report: Report,
    /// When it came.
    at: Instant,
    signed: wire::SignedReport,
}

/// All of them, by member and watcher. As many of one member as may watch it, at most.
#[derive(Debug, Default)]
pub(in crate::node) struct Reports {
    held: BTreeMap<NodeKey, BTreeMap<NodeKey, Held>>,
    root: OnceLock<Bytes>,
    rates: BTreeMap<NodeKey, Bucket>,
    /// Members of whom reports are void since a watcher was restarted: they are judged anew then.
    lapsing: BTreeMap<NodeKey, Instant>,
    refuted: Refuted,
    /// Enough members say that this node is down.
    pub(super) accused: bool,
    /// Who went down: of those whom it may watch fewer words may be enough now.
    pub(super) fewer_watchers: BTreeSet<NodeKey>,
}

/// What orders the reports of one watcher about one member.
fn rank(report: &Report) -> (u64, bool) {
    (report.number, report.down)
}

impl Reports {
    /// Over what is held; nothing when that is nothing.
    pub(in crate::node) fn root(&self) -> Bytes {
        let make = || {
            if self.held.is_empty() {
                return Bytes::new();
            }
            let hashes = self.held.keys().map(|key| (key, self.hash_of(key)));
            let hasher = hashes
                .fold(Sha256::new(), |all, (key, hash)| all.chain_update(key.0).chain_update(hash));
            Bytes::copy_from_slice(&hasher.finalize())
        };
        self.root.get_or_init(make).clone()
    }

    /// Over the reports of one member; zeros when there are none.
    pub(super) fn hash_of(&self, key: &NodeKey) -> [u8; 8] {
        let mut short = [0; 8];
        let Some(reports) = self.held.get(key) else { return short };
        let mut hasher = Sha256::new();
        for held in reports.values() {
            let report = &held.report;
            hasher.update(report.watcher.0);
            hasher.update(report.generation.to_be_bytes());
            hasher.update(report.watcher_generation.to_be_bytes());
            hasher.update(report.number.to_be_bytes());
            hasher.update([u8::from(report.down)]);
        }
        short.copy_from_slice(&hasher.finalize()[..8]);
        short
    }

    /// Members of whom reports are held, from `first` on and round to it.
    pub(super) fn watched_from(&self, first: NodeKey) -> impl Iterator<Item = &NodeKey> {
        let after = self.held.range(first..).chain(self.held.range(..first));
        after.map(|(key, _)| key)
    }

    /// What `watcher` said last of `watched`.
    pub(super) fn get(&self, watched: &NodeKey, watcher: &NodeKey) -> Option<&Report> {
        self.held.get(watched)?.get(watcher).map(|held| &held.report)
    }

    /// True if this one, or a later one, is held.
    pub(super) fn holds(&self, report: &Report) -> bool {
        self.get(&report.watched, &report.watcher).is_some_and(|held| {
            held.generation == report.generation
                && held.watcher_generation == report.watcher_generation
                && rank(held) >= rank(report)
        })
    }

    /// As they came, those of one member.
    pub(in crate::node) fn signed(
        &self,
        watched: &NodeKey,
    ) -> impl Iterator<Item = &wire::SignedReport> {
        self.held.get(watched).into_iter().flat_map(BTreeMap::values).map(|held| &held.signed)
    }

    /// Who says that `watched` is down.
    pub(super) fn accusers(&self, watched: &NodeKey) -> impl Iterator<Item = &NodeKey> {
        let all = self.held.get(watched).into_iter().flatten();
        all.filter(|(_, held)| held.report.down).map(|(watcher, _)| watcher)
    }

    /// Those of them whose word counts.
    pub(super) fn believed(&self, watched: &NodeKey) -> impl Iterator<Item = &NodeKey> {
        self.accusers(watched).filter(|watcher| self.refuted.counts(watched, watcher))
    }

    /// `key` was there all the time: it answered those who say otherwise.
    pub(super) fn refute(&mut self, key: &NodeKey, now: Instant) {
        for (watcher, held) in self.held.get(key).into_iter().flatten() {
            if held.report.down {
                self.refuted.note(*key, *watcher, held.at, now);
            }
        }
    }

    /// Members of whom reports are held.
    pub(super) fn watched(&self) -> Vec<NodeKey> {
        self.held.keys().copied().collect()
    }

    /// Whether another report of `watcher` is taken now.
    pub(super) fn allow(&mut self, watcher: NodeKey, now: Instant) -> bool {
        let new = || Bucket::new(OF_ONE.0, OF_ONE.1, now);
        if self.rates.len() >= limits::DIRECTORY_MEMBERS {
            self.rates.retain(|_, bucket| !bucket.is_full(now));
        }
        self.rates.entry(watcher).or_insert_with(new).take(1, now)
    }

    /// Holds what was verified, in the place of what its watcher said before.
    pub(super) fn insert(&mut self, report: Report, signed: wire::SignedReport, at: Instant) {
        let of = self.held.entry(report.watched).or_default();
        of.insert(report.watcher, Held { report, at, signed });
        self.root = OnceLock::new();
    }

    /// `key` has this generation now, or is gone: what goes with another one counts no more. Gives those about whom
    /// it had said something.
    pub(super) fn heed(&mut self, key: &NodeKey, generation: Option<u64>) -> BTreeSet<NodeKey> {
        let mut less = BTreeSet::new();
        if generation.is_none() {
            self.refuted.forget(key);
        }
        let current = |of: u64| generation == Some(of);
        let before = self.held.len();
        if let Some(reports) = self.held.get_mut(key) {
            reports.retain(|_, held| current(held.report.generation));
            self.root = OnceLock::new();
        }
        for (watched, reports) in &mut self.held {
            let stays = reports.get(key).is_none_or(|held| current(held.report.watcher_generation));
            if !stays {
                reports.remove(key);
                less.insert(*watched);
            }
        }
        self.held.retain(|_, reports| !reports.is_empty());
        if !less.is_empty() || self.held.len() != before {
            self.root = OnceLock::new();
        }
        less
    }

    /// A watcher of `watched` was restarted.
    pub(super) fn let_lapse(&mut self, watched: NodeKey, now: Instant) {
        self.lapsing.entry(watched).or_insert(now + LAPSE);
    }

    /// Those who are judged anew since their time has come.
    pub(super) fn lapsed(&mut self, now: Instant) -> Vec<NodeKey> {
        let due = |at: &Instant| *at <= now;
        let mut keys: Vec<_> =
            self.lapsing.iter().filter(|(_, at)| due(at)).map(|(key, _)| *key).collect();
        self.lapsing.retain(|_, at| !due(at));
        keys.extend(self.refuted.ended(now));
        keys
    }

    /// When that is.
    pub(in crate::node) fn next_timeout(&self) -> Option<Instant> {
        self.lapsing.values().min().copied().into_iter().chain(self.refuted.next_timeout()).min()
    }

    #[cfg(test)]
    pub(in crate::node) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What became of a member.
    pub(in crate::node) fn heed_liveness(&mut self, key: NodeKey, liveness: Liveness) {
        if liveness == Liveness::Down && !self.held.is_empty() {
            self.fewer_watchers.insert(key);
        }
    }
}
