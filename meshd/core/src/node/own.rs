//! This node's own record: its versions, when it is signed, and what happens when somebody else signs with
//! the same key.
//!
//! A version is used once in the life of an identity, so versions come from blocks that the daemon fsynced
//! before it handed them over. A record of ours that we did not sign (another boot id) is outbid: after a
//! restored backup once, while a clone outbids us in turn, which raises the alarm.

mod heard;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_proto::{BootId, NodeKey};
use rand::{RngExt, seq::IteratorRandom};

pub use self::workloads::Unnamed;
use self::workloads::Workloads;
use super::{
    Node,
    types::{Liveness, Output, SharedRecord, VersionBlock},
};
use crate::{
    address::host_prefix,
    event::{Event, Severity},
    limits,
    now::{Now, UnixTime},
    refusal::{Code, Refusal},
    trust::{AdmitContext, LEAVE_VERSION, NodeIdentity, Record, RecordDraft, admit},
};

/// A record that the receivers would refuse is tried again after this: a clock may have been put right.
const RETRY_REFUSED: Duration = Duration::from_secs(60);
/// A block of versions that did not come is asked for again after this.
const RETRY_VERSIONS: Duration = Duration::from_secs(5);
/// Longest pause between two outbids: two clones would go on for ever.
const LONGEST_OUTBID: Duration = Duration::from_secs(64);
/// Boot ids of others with our key that are told apart.
const CLONES: usize = 8;
/// Members that a leave is sent to.
const LEAVE_TO: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Present,
    Leaving,
    Left,
    Revoked,
}

/// This node's own record.
#[derive(Debug)]
pub(super) struct Own {
    identity: Arc<NodeIdentity>,
    key: NodeKey,
    boot_id: BootId,
    generation: u64,
    versions: VersionBlock,
    draft: Option<RecordDraft>,
    published: Option<SharedRecord>,
    /// The record as last signed, whatever the clock says of it.
    view: Option<SharedRecord>,
    stage: Stage,
    /// Highest version heard of ourselves, and its date.
    heard: (u64, UnixTime),
    /// There is something to sign, not before this.
    due: Option<Instant>,
    /// When the next one may go out.
    allowed: Instant,
    /// Waiting for versions; ask again then.
    blocked: Option<Instant>,
    /// The next one begins a new SWIM generation.
    renew: bool,
    /// Versions with which each foreign boot id outbid us since the first exchange.
    outbids: BTreeMap<BootId, BTreeSet<u64>>,
    alarmed: bool,
    outbid_pause: Duration,
    workloads: Workloads,
    /// Each with the prefix that it is about.
    refusals: Vec<(Option<IpNet>, Refusal)>,
}

impl Own {
    pub(super) fn new(
        identity: Arc<NodeIdentity>,
        versions: VersionBlock,
        boot_id: BootId,
        now: Instant,
    ) -> Self {
        let key = identity.public();
        Self {
            identity,
            key,
            boot_id,
            generation: versions.next,
            versions,
            draft: None,
            published: None,
            view: None,
            stage: Stage::Present,
            heard: (0, UnixTime(i64::MIN)),
            due: None,
            allowed: now,
            blocked: None,
            renew: true,
            outbids: BTreeMap::new(),
            alarmed: false,
            outbid_pause: limits::OWN_UPDATE_INTERVAL,
            workloads: Workloads::default(),
            refusals: Vec::new(),
        }
    }

    pub(super) fn key(&self) -> NodeKey {
        self.key
    }

    pub(super) fn identity(&self) -> &NodeIdentity {
        &self.identity
    }

    /// A new certificate: the record goes with it at once.
    pub(super) fn set_identity(&mut self, identity: Arc<NodeIdentity>, now: Instant) {
        self.identity = identity;
        self.schedule(now);
    }

    pub(super) fn draft(&self) -> Option<&RecordDraft> {
        self.draft.as_ref()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What this node is, for its own plans: not a matter of dates.
    pub(super) fn view(&self) -> Option<&SharedRecord> {
        self.view.as_ref()
    }

    pub(super) fn published(&self) -> Option<&Record> {
        self.published.as_deref()
    }

    pub(super) fn refusals(&self) -> &[(Option<IpNet>, Refusal)] {
        &self.refusals
    }

    /// True from the moment at which [`Node::leave`] was called, or others ended this membership.
    pub(super) fn has_left(&self) -> bool {
        self.stage != Stage::Present
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.stage == Stage::Revoked
    }

    /// When something is to be signed.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.due.map(|due| self.blocked.map_or(due, |retry| retry.max(due)))
    }

    fn schedule(&mut self, at: Instant) {
        let at = at.max(self.allowed);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The next version, if the block holds one; otherwise the lowest that is needed.
    fn take_version(&mut self) -> Result<u64, u64> {
        let signed = self.published.as_ref().map_or(0, |record| record.version);
        let version = self.versions.next.max(self.heard.0.max(signed).saturating_add(1));
        if version >= self.versions.end {
            return Err(version);
        }
        self.versions.next = version + 1;
        Ok(version)
    }
}

impl Node {
    /// What this node says of itself from now on. The first goes out at once, later ones at most once
    /// a second; one that says nothing new is not published, nor is any after
    /// [`Self::leave`].
    pub fn update_self(&mut self, draft: RecordDraft, now: Now) {
        if self.anchors.revocation(&self.own.key).is_some() {
            self.end_own_membership();
        }
        if self.own.draft.as_ref() != Some(&draft) && !self.own.has_left() {
            self.own.draft = Some(draft);
            self.own.schedule(now.mono);
        }
        self.settle(now);
    }

    /// Signs and pushes that this node leaves for good. [`Output::Left`] follows.
    pub fn leave(&mut self, now: Now) {
        if self.own.stage == Stage::Present {
            self.own.stage = Stage::Leaving;
            if self.own.draft.is_some() {
                self.own.due = Some(now.mono);
            } else {
                self.own.stage = Stage::Left;
                self.outputs.push_back(Output::Left { to: Vec::new() });
            }
        }
        self.settle(now);
    }

    /// The answer to [`Output::ReserveVersions`].
    pub fn handle_versions(&mut self, versions: VersionBlock, now: Now) {
        let held = &mut self.own.versions;
        if versions.next <= held.end {
            held.end = held.end.max(versions.end);
        } else {
            // Versions that are skipped are lost, which costs nothing.
            *held = versions;
        }
        self.own.blocked = None;
        self.settle(now);
    }

    /// Signs and spreads the own record if that is due and possible.
    pub(super) fn publish_if_due(&mut self, now: Now) {
        if self.membership.take_renewal(now.mono) && !self.own.has_left() {
            self.own.renew = true;
            self.counters.renewals += 1;
            self.own.schedule(now.mono);
        }
        if self.own.next_timeout().is_none_or(|at| at > now.mono) {
            return;
        }
        let leaving = self.own.stage == Stage::Leaving;
        let version = if leaving { Ok(LEAVE_VERSION) } else { self.own.take_version() };
        let version = match version {
            Ok(version) => version,
            Err(at_least) => {
                self.own.blocked = Some(now.mono + RETRY_VERSIONS);
                self.outputs.push_back(Output::ReserveVersions { at_least });
                return;
            }
        };
        let left = self.own.versions.end - self.own.versions.next;
        if !leaving && (left == limits::VERSION_BLOCK / 2 || left == 0) {
            let at_least = self.own.versions.end;
            self.outputs.push_back(Output::ReserveVersions { at_least });
        }
        if self.own.renew {
            self.own.generation = version;
        }
        match self.sign_own(version, now) {
            Some(record) => self.publish(&record, now),
            None => {
                self.own.due = Some(now.mono + RETRY_REFUSED);
                if self.own.stage == Stage::Leaving {
                    self.own.due = None;
                    self.own.stage = Stage::Left;
                    self.outputs.push_back(Output::Left { to: Vec::new() });
                }
            }
        }
    }

    fn publish(&mut self, record: &SharedRecord, now: Now) {
        let own = &mut self.own;
        own.renew = false;
        let before = own.published.as_ref().and_then(|published| published.via);
        // Others hear of a new gateway by it alone: what goes by the old one may be lost.
        let tell = record.via.filter(|via| before != Some(*via));
        own.published = Some(record.clone());
        own.allowed = now.mono + limits::OWN_UPDATE_INTERVAL;
        // Nodes that were started together should not all sign again together.
        let again = self.config.resign_every.mul_f64(self.rng.random_range(0.8..1.0));
        own.due = (own.stage == Stage::Present).then_some(now.mono + again);
        if let Some(at) = own.workloads.next().filter(|_| own.stage == Stage::Present) {
            own.schedule(at);
        }
        self.counters.published += 1;
        self.membership.set_generation(self.own.generation, now.mono);
        self.hold(record.clone(), None, now);
        if let Some(via) = tell {
            self.push(via, vec![record.clone()], None);
        }
        if self.own.stage == Stage::Leaving {
            self.own.stage = Stage::Left;
            // Those that are connected hear it for sure; the others only if a dial is fast enough.
            let mut to: Vec<_> = self.paths.connected().copied().take(LEAVE_TO).collect();
            let alive = self.membership.members(Liveness::Alive);
            for member in alive.sample(&mut self.rng, LEAVE_TO) {
                if to.len() < LEAVE_TO && !to.contains(&member) {
                    to.push(member);
                }
            }
            for member in &to {
                self.push(*member, vec![record.clone()], None);
            }
            self.outputs.push_back(Output::Left { to });
        }
    }

    /// Signs the own record as the receivers will take it: what is not granted is left out of it.
    fn sign_own(&mut self, version: u64, now: Now) -> Option<SharedRecord> {
        let mut draft = self.own.draft.clone()?;
        draft.left |= self.own.has_left();
        let before = self.own.published.as_ref().map_or(self.own.heard.1, |r| r.issued_at);
        // A clock that was ahead and came back must not keep this node from publishing.
        let latest = now.unix.plus(limits::CLOCK_SKEW_SECONDS);
        let issued_at = now.unix.max(before.max(self.own.heard.1).min(latest));
        let grants = &self.own.identity.certificate.grants;
        let (granted, refused): (Vec<_>, Vec<_>) = draft
            .prefixes
            .iter()
            .copied()
            .partition(|prefix| grants.iter().any(|grant| grant.covers(prefix)));
        draft.prefixes = granted;
        let certificate = &self.own.identity.certificate;
        let (granted, bare): (Vec<_>, Vec<_>) = draft
            .node_claims
            .iter()
            .copied()
            .partition(|address| certificate.grants_exactly(&host_prefix(*address)));
        draft.node_claims = granted;
        let refused = refused.iter().map(|prefix| (*prefix, format!("{prefix} is")));
        let bare = bare.iter().map(|address| {
            let text = format!("traffic to this host's address {address} goes in the clear: it is");
            (host_prefix(*address), text)
        });
        let mut refusals: Vec<_> = refused
            .chain(bare)
            .map(|(prefix, what)| {
                let text = format!("{what} not in this node's certificate");
                (Some(prefix), Refusal::new(Code::PrefixNotGranted, text))
            })
            .collect();
        let identity = &self.own.identity;
        if !draft.left {
            let (boot_id, generation) = (self.own.boot_id, self.own.generation);
            let bytes = identity.payload_length(&draft, version, boot_id, generation, issued_at);
            self.name_workloads(&mut draft, bytes, now);
        }
        let own = &self.own;
        let signed =
            own.identity.sign_record(&draft, version, own.boot_id, own.generation, issued_at);
        let context = AdmitContext {
            anchors: &self.anchors,
            now: now.unix,
            held: None,
            forget_after_seconds: i64::MAX,
        };
        let verified = self.verify(&signed);
        if let Ok(record) = &verified {
            self.changed |= self.own.view.is_none();
            self.own.view = Some(record.clone());
        }
        let checked = verified.and_then(|record| admit(&record, &context).map(|()| record));
        let record = match checked {
            Ok(record) => Some(record),
            Err(refusal) => {
                refusals.push((None, refusal));
                None
            }
        };
        if refusals != self.own.refusals {
            for (_, refusal) in &refusals {
                let severity = match refusal.code {
                    Code::PrefixNotGranted => Severity::Warning,
                    _ => Severity::Error,
                };
                let text = format!("other members would refuse this node's record: {refusal}");
                let event = Event::new("own_record_refused", severity, text);
                self.tell_of_self(event.because(refusal.code.as_str()));
            }
            self.own.refusals = refusals;
            self.changed = true;
        }
        record
    }
}
