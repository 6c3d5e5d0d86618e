//! Anti-entropy: finding what two members do not both have.
//!
//! ```text
//!  opener                                   answerer
//!    │ SyncRoot      root, bundle version  ──►│ same root: SyncDone
//!    │◄── SyncBuckets  256 hashes             │
//!    │ SyncEntries   of buckets that differ ─►│ Pull what is lacking
//!    │◄── SyncEntries  of the same buckets    │
//!    │ Pull what is lacking ─────────────────►│ Push
//!    │ SyncDone, when all of it came ────────►│
//! ```
//! The answerer keeps no state. Frames are streams of their own and may overtake one another: the opener
//! ends an exchange when every bucket that differs was answered and everything asked for has come.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::{NodeKey, wire};
use rand::RngExt;

use super::{
    Node,
    dissemination::{ENTRIES_PER_FRAME, entry},
};
use crate::{
    directory::{BUCKETS, bucket_of},
    event::Event,
    limits,
    now::Now,
    refusal::Code,
};

/// Exchanges that this node has open at once.
const OPEN: usize = 16;
/// An exchange that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause after the first exchange; it doubles up to the usual one. Who joins in a crowd is told of
/// the others by members that do not know everybody themselves yet.
const YOUNG_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between attempts of a node that reaches nobody.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// So long after the first exchange everybody has been heard of: who is there compares with somebody every few
/// seconds.
const SURELY: Duration = Duration::from_secs(120);
/// An entry on the wire.
const ENTRY_BYTES: u64 = 56;
/// Members that a node without contact tries at once.
const TRIED_AT_ONCE: usize = 3;

#[derive(Debug)]
struct Exchange {
    peer: NodeKey,
    give_up: Instant,
    /// Buckets that differ and were not answered yet; `None` until the hashes came.
    open: Option<BTreeSet<u8>>,
    /// Asked for and not come yet.
    pulling: BTreeSet<NodeKey>,
}

/// The exchanges that this node opened.
#[derive(Debug)]
pub(super) struct Sync {
    exchanges: BTreeMap<u64, Exchange>,
    next: Instant,
    /// Between exchanges of a node in contact.
    usual: Duration,
    /// Between attempts of one without.
    pause: Duration,
    synced: bool,
    /// When the first one was completed.
    since: Option<Instant>,
}

impl Sync {
    pub(super) fn new(now: Instant) -> Self {
        let pause = Duration::from_secs(1);
        Self {
            exchanges: BTreeMap::new(),
            next: now,
            usual: YOUNG_PAUSE,
            pause,
            synced: false,
            since: None,
        }
    }

    /// True once an exchange of this start was completed.
    pub(super) fn completed(&self) -> bool {
        self.synced
    }

    /// True once everybody's records can be taken for known: one member may not know them all, or not say so.
    pub(super) fn thorough(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= SURELY)
    }

    /// The pauses between exchanges still grow.
    pub(super) fn is_young(&self) -> bool {
        self.usual < limits::SYNC_INTERVAL
    }

    /// When something is due.
    pub(super) fn next_timeout(&self) -> Instant {
        self.exchanges.values().map(|e| e.give_up).min().map_or(self.next, |at| at.min(self.next))
    }
}

/// `mean` ± 20 %.
pub(super) fn jitter(mean: Duration, rng: &mut impl RngExt) -> Duration {
    mean.mul_f64(rng.random_range(0.8..1.2))
}

impl Node {
    /// Opens an exchange with `peer` unless one is open already.
    pub(super) fn open_exchange(&mut self, peer: NodeKey, now: Now) {
        let busy = self.sync.exchanges.values().any(|exchange| exchange.peer == peer);
        if busy || self.sync.exchanges.len() >= OPEN || peer == self.own.key() {
            return;
        }
        let exchange = self.rng.random();
        let give_up = now.mono + PATIENCE;
        self.sync
            .exchanges
            .insert(exchange, Exchange { peer, give_up, open: None, pulling: BTreeSet::new() });
        let root = wire::SyncRoot {
            exchange,
            root: bytes::Bytes::copy_from_slice(&self.directory.root_hash()),
            bundle_version: self.anchors.bundle_version(),
            records: u32::try_from(self.directory.len()).unwrap_or(u32::MAX),
            revocations: self.anchors.revocations_hash(),
            signer_time: self.time_held(),
            reports: self.reports.root(),
        };
        self.send(peer, wire::frame::Body::SyncRoot(root));
    }

    /// Gives up what is stuck and opens the next exchange when it is time.
    pub(super) fn handle_sync_timeout(&mut self, now: Now) {
        let stuck = |e: &Exchange| e.give_up <= now.mono;
        let failed = self.sync.exchanges.values().filter(|e| stuck(e)).count();
        self.sync.exchanges.retain(|_, exchange| !stuck(exchange));
        self.counters.syncs_failed += failed as u64;
        if self.sync.next > now.mono {
            return;
        }
        if self.own.has_left() {
            self.sync.next = now.mono + limits::SYNC_INTERVAL;
            return;
        }
        if self.sync.synced && !self.paths.is_isolated() {
            self.sync.pause = Duration::from_secs(1);
            self.sync.next = now.mono + jitter(self.sync.usual, &mut self.rng);
            self.sync.usual = (self.sync.usual * 2).min(limits::SYNC_INTERVAL);
            if self.rng.random_ratio(1, 3) && self.open_with_the_absent(now) {
                return;
            }
            if let Some(peer) = self.partner() {
                self.open_exchange(peer, now);
            }
        } else {
            self.sync.next = now.mono + jitter(self.sync.pause, &mut self.rng);
            self.sync.pause = (self.sync.pause * 2).min(LONGEST_PAUSE);
            for peer in self.somebody(TRIED_AT_ONCE) {
                self.open_exchange(peer, now);
            }
        }
    }

    /// Another's directory in one hash.
    pub(super) fn handle_sync_root(&mut self, from: NodeKey, root: &wire::SyncRoot, now: Now) {
        let bundle_version = self.anchors.bundle_version();
        let revocations = self.anchors.revocations_hash();
        self.offer_bundle(from, root.bundle_version);
        self.offer_revocations(from, &root.revocations, now);
        self.offer_time(from, root.signer_time);
        let signer_time = self.time_held();
        let exchange = root.exchange;
        let body = if root.root == self.directory.root_hash()[..]
            && root.bundle_version <= bundle_version
            && root.revocations == revocations
            && root.signer_time <= signer_time
            && !self.reports_differ(&root.reports)
        {
            wire::frame::Body::SyncDone(wire::SyncDone { exchange })
        } else {
            let hashes = self.directory.bucket_hashes().into();
            let reports = self.report_digests(&root.reports);
            wire::frame::Body::SyncBuckets(wire::SyncBuckets {
                exchange,
                hashes,
                bundle_version,
                revocations,
                signer_time,
                reports,
            })
        };
        self.send(from, body);
    }

    fn offer_bundle(&mut self, to: NodeKey, theirs: u64) {
        if theirs < self.anchors.bundle_version() {
            let bundle = self.anchors.signed_bundle().clone();
            self.push(to, Vec::new(), Some(bundle));
        }
    }

    /// Sends all revocations to who has others, as far as its budget reaches.
    fn offer_revocations(&mut self, to: NodeKey, theirs: &[u8], now: Now) {
        let ours = self.anchors.revocations_hash();
        if ours.is_empty() || ours == theirs {
            return;
        }
        let all: Vec<_> = self.anchors.all_revocations().map(|held| held.signed.clone()).collect();
        let size = all.iter().map(prost::Message::encoded_len).sum::<usize>() as u64;
        if self.budgets.of(&to, now.mono).bytes.take(size, now.mono) {
            self.push_revocations(to, &all);
        } else {
            self.counters.refuse(Code::RateLimited);
        }
    }

    /// The answer to this node's root.
    pub(super) fn handle_sync_buckets(
        &mut self,
        from: NodeKey,
        theirs: &wire::SyncBuckets,
        now: Now,
    ) {
        let Some(exchange) = self.sync.exchanges.get_mut(&theirs.exchange) else { return };
        if exchange.peer != from || exchange.open.is_some() {
            return;
        }
        if theirs.hashes.len() != BUCKETS * 8 {
            self.sync.exchanges.remove(&theirs.exchange);
            self.refuse(from, Code::Malformed, "bucket hashes of a wrong length");
            return;
        }
        let ours = self.directory.bucket_hashes();
        let pairs = theirs.hashes.chunks(8).zip(ours.chunks(8));
        let differ: BTreeSet<u8> =
            (0..=u8::MAX).zip(pairs).filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
        exchange.open = Some(differ.clone());
        self.offer_bundle(from, theirs.bundle_version);
        self.offer_revocations(from, &theirs.revocations, now);
        self.offer_time(from, theirs.signer_time);
        self.compare_reports(from, &theirs.reports, now);
        self.send_entries(from, theirs.exchange, &differ, false, now);
        self.finish_exchange(theirs.exchange, now);
    }

    /// Sends the entries of `buckets`, in frames that cover whole buckets where those fit; as an answer as far
    /// as the budget of who asked reaches.
    fn send_entries(
        &mut self,
        to: NodeKey,
        exchange: u64,
        buckets: &BTreeSet<u8>,
        answer: bool,
        now: Now,
    ) {
        let empty = wire::SyncEntries { exchange, answer, ..Default::default() };
        let mut frame = empty.clone();
        for bucket in buckets {
            let entries: Vec<_> = self.directory.bucket(*bucket).map(|r| entry(r)).collect();
            if frame.entries.len() + entries.len() > ENTRIES_PER_FRAME && !frame.buckets.is_empty()
            {
                let full = std::mem::replace(&mut frame, empty.clone());
                self.send(to, wire::frame::Body::SyncEntries(full));
            }
            let size = ENTRY_BYTES * u64::try_from(entries.len()).unwrap_or(u64::MAX);
            if answer && !self.budgets.of(&to, now.mono).bytes.take(size, now.mono) {
                self.counters.refuse(Code::RateLimited);
                break;
            }
            // A bucket larger than a frame would be somebody's doing: what does not fit is left out.
            frame.entries.extend(entries.into_iter().take(ENTRIES_PER_FRAME));
            frame.buckets.push(u32::from(*bucket));
        }
        if !frame.buckets.is_empty() {
            self.send(to, wire::frame::Body::SyncEntries(frame));
        }
    }

    /// Another's entries: the answer to ours, or a question that wants ours.
    pub(super) fn handle_sync_entries(
        &mut self,
        from: NodeKey,
        theirs: &wire::SyncEntries,
        now: Now,
    ) {
        if theirs.entries.len() > ENTRIES_PER_FRAME || theirs.buckets.len() > BUCKETS {
            self.refuse(from, Code::TooLarge, "more entries than fit a frame");
            return;
        }
        let covered: BTreeSet<u8> =
            theirs.buckets.iter().filter_map(|bucket| u8::try_from(*bucket).ok()).collect();
        // What was not looked at was not compared: the exchange is given up in time.
        let Some(lacking) = self.pull_lacking(from, &theirs.entries, now) else { return };
        if !theirs.answer {
            self.send_entries(from, theirs.exchange, &covered, true, now);
            return;
        }
        let ours = self.sync.exchanges.get_mut(&theirs.exchange).filter(|e| e.peer == from);
        let Some(Exchange { open: Some(open), pulling, .. }) = ours else { return };
        // Only what was asked about is waited for.
        pulling.extend(lacking.into_iter().filter(|key| open.contains(&bucket_of(key))));
        open.retain(|bucket| !covered.contains(bucket));
        self.finish_exchange(theirs.exchange, now);
    }

    /// The other side has nothing more to say.
    pub(super) fn handle_sync_done(&mut self, from: NodeKey, exchange: u64, now: Now) {
        let same_root =
            self.sync.exchanges.get(&exchange).is_some_and(|e| e.peer == from && e.open.is_none());
        if same_root {
            self.sync.exchanges.remove(&exchange);
            self.completed_exchange(from, now);
        }
    }

    /// The record of `key` came, or `only` sent something in its name that was refused: whoever waits for it
    /// need not any more.
    pub(super) fn settle_exchanges(&mut self, key: &NodeKey, only: Option<NodeKey>, now: Now) {
        let waiting: Vec<u64> = self
            .sync
            .exchanges
            .iter_mut()
            .filter(|(_, exchange)| only.is_none_or(|peer| exchange.peer == peer))
            .filter_map(|(id, exchange)| exchange.pulling.remove(key).then_some(*id))
            .collect();
        waiting.into_iter().for_each(|id| self.finish_exchange(id, now));
    }

    /// A peer cannot be reached: its exchanges end.
    pub(super) fn drop_exchanges(&mut self, peer: &NodeKey) {
        let before = self.sync.exchanges.len();
        self.sync.exchanges.retain(|_, exchange| exchange.peer != *peer);
        self.counters.syncs_failed += (before - self.sync.exchanges.len()) as u64;
    }

    fn finish_exchange(&mut self, id: u64, now: Now) {
        let done =
            |e: &Exchange| e.open.as_ref().is_some_and(BTreeSet::is_empty) && e.pulling.is_empty();
        if !self.sync.exchanges.get(&id).is_some_and(done) {
            return;
        }
        if let Some(exchange) = self.sync.exchanges.remove(&id) {
            let done = wire::SyncDone { exchange: id };
            self.send(exchange.peer, wire::frame::Body::SyncDone(done));
            self.completed_exchange(exchange.peer, now);
        }
    }

    fn completed_exchange(&mut self, peer: NodeKey, now: Now) {
        self.counters.syncs_completed += 1;
        self.sync.since.get_or_insert(now.mono);
        if !self.sync.synced {
            self.sync.synced = true;
            self.membership.informed(now.mono);
            self.sync.next = now.mono + jitter(YOUNG_PAUSE, &mut self.rng);
            let text = format!("first exchange completed, {} members known", self.directory.len());
            self.tell_of(peer, Event::info("synced", text));
            self.changed = true;
        }
    }
}
