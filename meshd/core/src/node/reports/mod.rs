//! What is believed of members that this node does not watch: the signed word of those who do.
//!
//! A [member](super::membership) is watched by its neighbours on the rings. A watcher that finds it
//! silent signs a report, which goes to everybody; three reports (or one of each watcher that is there, where those
//! are fewer) make a member down for all. A report counts for one generation of the watched, who ends all of
//! them by signing the next, and for one of the watcher: who was held for down itself saw nothing that counts. A
//! watcher that hears the member again takes its report back.
//!
//! A member that lies has one voice about each of those whom it may watch, and can be outvoted by none: two that
//! lie together change nothing. Not responsible for finding out who is silent; that is `membership`.

mod held;
mod refuted;

use bytes::Bytes;
use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use rand::Rng as _;

pub(super) use self::held::Reports;
use super::Node;
use crate::{
    limits,
    now::Now,
    refusal::{Code, Refusal},
    trust::Report,
};

/// With so many reports of others held a watcher keeps its own to itself: one more than it takes, for those that are
/// lost or lapse.
const ENOUGH: usize = 4;
/// What a report that nobody honest passes on costs its sender, in verifications.
const REFUSED_COST: u64 = 10;

impl Node {
    /// Whether a report of `watched` by `watcher` counts, as far as this node knows the members.
    #[must_use]
    pub fn may_report(&self, watcher: &NodeKey, watched: &NodeKey) -> bool {
        self.membership.may_watch(watcher, watched)
    }

    /// Those of them that are there.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeKey> {
        self.membership.neighbours()
    }

    /// Signs what this node found out since the last call.
    pub(super) fn report_what_was_seen(&mut self, now: Now) {
        for watcher in std::mem::take(&mut self.reports.fewer_watchers) {
            let watched = self.membership.watched_by(&watcher);
            self.judge_those(watched, now);
        }
        while let Some((key, down)) = self.membership.poll_verdict() {
            self.report(&key, down, now);
        }
    }

    fn report(&mut self, key: &NodeKey, down: bool, now: Now) {
        let own = self.own.key();
        let held = self.reports.get(key, &own);
        if held.map_or(!down, |held| held.down == down)
            || (down && self.accusers_of(key) >= ENOUGH)
            || !self.membership.may_watch(&own, key)
            || self.own.has_left()
        {
            return;
        }
        let number = held.map_or(0, |held| held.number).saturating_add(1);
        let generation = |key: &NodeKey| {
            self.directory.get(key).filter(|record| !record.left).map(|record| record.generation)
        };
        let (Some(watched), Some(watcher)) = (generation(key), generation(&own)) else { return };
        let report = Report {
            watched: *key,
            generation: watched,
            down,
            watcher: own,
            watcher_generation: watcher,
            number,
        };
        let signed = report.sign(self.own.identity());
        self.take_report(report, signed, None, now);
    }

    /// Reports that a peer passed on, or made.
    pub(super) fn learn_reports(
        &mut self,
        from: NodeKey,
        reports: &[wire::SignedReport],
        now: Now,
    ) {
        for signed in reports {
            let report = match Report::read(&signed.payload) {
                Ok(report) if self.reports.holds(&report) => continue,
                read => read,
            };
            if !self.budgets.of(&from, now.mono).work.take(1, now.mono) {
                self.counters.refuse(Code::RateLimited);
                return;
            }
            let checked = report.and_then(|r| self.check_report(&r, signed, now).map(|()| r));
            match checked {
                Ok(report) => self.take_report(report, signed.clone(), Some(from), now),
                Err(refusal) => {
                    let honest = matches!(
                        refusal.code,
                        Code::RateLimited | Code::ReportOutdated | Code::SwimUnknownMember
                    );
                    if !honest {
                        self.budgets.of(&from, now.mono).work.drain(REFUSED_COST, now.mono);
                    }
                    self.refused_record(from, &refusal);
                }
            }
        }
    }

    fn check_report(
        &mut self,
        report: &Report,
        signed: &wire::SignedReport,
        now: Now,
    ) -> Result<(), Refusal> {
        let Report { watched, watcher, .. } = report;
        if self.anchors.revocation(watcher).is_some() {
            let why = format!("report by {watcher}, who is no member any more");
            return Err(Refusal::new(Code::Revoked, why));
        }
        for (key, generation) in
            [(watched, report.generation), (watcher, report.watcher_generation)]
        {
            let record = self.directory.get(key).filter(|record| !record.left);
            let Some(record) = record else {
                let why = format!("report of {watched} by {watcher}: {key} is not known");
                return Err(Refusal::new(Code::SwimUnknownMember, why));
            };
            if record.generation != generation {
                let why = format!(
                    "report of {watched} by {watcher}: generation {generation} of {key}, held is {}",
                    record.generation
                );
                return Err(Refusal::new(Code::ReportOutdated, why));
            }
        }
        if !self.membership.may_watch(watcher, watched) {
            let why = format!("report of {watched} by {watcher}, who does not watch it");
            return Err(Refusal::new(Code::ReportNotWatcher, why));
        }
        report.verify(signed, self.anchors.mesh_id())?;
        if *watcher != self.own.key() && !self.reports.allow(*watcher, now.mono) {
            let why = format!("more reports by {watcher} than are allowed");
            return Err(Refusal::new(Code::RateLimited, why));
        }
        Ok(())
    }

    fn take_report(
        &mut self,
        report: Report,
        signed: wire::SignedReport,
        from: Option<NodeKey>,
        now: Now,
    ) {
        self.reports.insert(report, signed.clone(), now.mono);
        self.dissemination.add_report(signed, from);
        if report.watched == self.own.key() {
            self.hear_of_self(&report, now);
        } else if report.watcher == self.own.key() && from.is_some() {
            self.hear_own_report(&report);
        } else {
            self.judge(&report.watched, now);
            if report.down && self.reports.believed(&report.watched).any(|w| *w == report.watcher) {
                self.membership.doubt(&report.watched, now.mono);
            }
        }
    }

    /// Somebody says that this node is down. One that errs hears from it; when all believe it only a new generation
    /// ends that.
    fn hear_of_self(&mut self, report: &Report, now: Now) {
        if !report.down {
            return;
        }
        if !self.answer_reports() {
            self.membership.speak_to(&report.watcher, now.mono);
        }
    }

    /// True if so many say that this node is down that others believe it: its next generation answers them.
    fn answer_reports(&mut self) -> bool {
        let own = self.own.key();
        let believed = self.reports.believed(&own).count() >= self.membership.quorum(&own);
        if believed {
            self.reports.accused = true;
            self.membership.want_renewal();
        }
        believed
    }

    /// A report of this node's own that it does not hold, of this very generation: two hosts have its key.
    fn hear_own_report(&mut self, report: &Report) {
        self.membership.restate(&report.watched);
    }

    /// Whether enough of its watchers say that `key` is down.
    fn judge(&mut self, key: &NodeKey, now: Now) {
        let down = self.accusers_of(key) >= self.membership.quorum(key);
        self.membership.set_reported(key, down, now.mono);
    }

    /// Who says that `key` is down, and counts.
    fn accusers_of(&self, key: &NodeKey) -> usize {
        let there = |watcher: &&NodeKey| !self.membership.is_down(&watcher.hash());
        self.reports.believed(key).filter(there).count()
    }

    /// Those of `keys` that are not down, but may be.
    fn judge_those(&mut self, keys: Vec<NodeKey>, now: Now) {
        for key in keys {
            let known = self.membership.is_down(&key.hash());
            if !known && self.reports.accusers(&key).next().is_some() {
                self.judge(&key, now);
            }
        }
    }

    /// `key` has another generation than it had, or is gone: what was said at the other one is void. `renewed`: it
    /// was there all the time, so it was held for down itself, and what it said may never have been so.
    pub(super) fn heed_generation(
        &mut self,
        key: &NodeKey,
        generation: Option<u64>,
        renewed: bool,
        now: Now,
    ) {
        if renewed && generation.is_some() {
            self.reports.refute(key, now.mono);
        }
        let less = self.reports.heed(key, generation);
        if *key == self.own.key() {
            return self.repeat_reports(now);
        }
        for watched in less {
            if renewed {
                self.judge(&watched, now);
            } else {
                self.reports.let_lapse(watched, now.mono);
            }
            if self.accusers_of(&watched) < ENOUGH {
                self.membership.look_again(&watched, now.mono);
            }
        }
    }

    /// This node has another generation: it looks at those anew who were silent.
    fn repeat_reports(&mut self, now: Now) {
        if std::mem::take(&mut self.reports.accused) {
            self.membership.start_over(now.mono);
            self.judge_those(self.reports.watched(), now);
        }
        let silent: Vec<_> = self.membership.silent().collect();
        for key in silent {
            self.membership.look_again(&key, now.mono);
        }
    }

    /// Members whose watchers had the time to report them again.
    pub(super) fn handle_reports_timeout(&mut self, now: Now) {
        for key in self.reports.lapsed(now.mono) {
            if key == self.own.key() {
                self.answer_reports();
            } else {
                self.judge(&key, now);
            }
        }
    }

    /// True when another holds other reports.
    pub(super) fn reports_differ(&self, theirs: &[u8]) -> bool {
        self.reports.root() != theirs
    }

    /// What is held of whom, if another holds other reports.
    pub(super) fn report_digests(&mut self, theirs: &[u8]) -> Vec<wire::ReportDigest> {
        if !self.reports_differ(theirs) {
            return Vec::new();
        }
        let mut first = NodeKey([0; 32]);
        self.rng.fill_bytes(&mut first.0);
        let watched = self.reports.watched_from(first).take(limits::REPORT_DIGESTS);
        let digest = |key: &NodeKey| wire::ReportDigest {
            watched: Bytes::copy_from_slice(&key.0),
            hash: Bytes::copy_from_slice(&self.reports.hash_of(key)),
        };
        watched.map(digest).collect()
    }

    /// Sends what another lacks, and asks for what it has.
    pub(super) fn compare_reports(
        &mut self,
        from: NodeKey,
        theirs: &[wire::ReportDigest],
        now: Now,
    ) {
        if theirs.len() > limits::REPORT_DIGESTS {
            return;
        }
        let mut wanted = Vec::new();
        let mut same = std::collections::BTreeSet::new();
        for digest in theirs {
            let Ok(key) = NodeKey::try_from(&*digest.watched) else { continue };
            if digest.hash == self.reports.hash_of(&key)[..] {
                same.insert(key);
            } else {
                wanted.push(digest.watched.clone());
            }
        }
        let ours = self.reports.watched().into_iter().filter(|key| !same.contains(key));
        let ours: Vec<_> = ours.take(limits::REPORT_DIGESTS).collect();
        self.send_reports(from, &ours, now);
        if !wanted.is_empty() {
            let pull = wire::Pull { reports_of: wanted, ..Default::default() };
            self.send(from, wire::frame::Body::Pull(pull));
        }
    }

    /// Sends the reports of those who are asked for.
    pub(super) fn handle_pull_of_reports(&mut self, from: NodeKey, keys: &[Bytes], now: Now) {
        let keys = keys.iter().take(limits::REPORT_DIGESTS);
        let keys: Vec<_> = keys.filter_map(|key| NodeKey::try_from(&**key).ok()).collect();
        self.send_reports(from, &keys, now);
    }

    /// As far as the budget of the receiver reaches.
    fn send_reports(&mut self, to: NodeKey, of: &[NodeKey], now: Now) {
        let mut all = Vec::new();
        for key in of {
            let reports: Vec<_> = self.reports.signed(key).cloned().collect();
            let size: usize = reports.iter().map(wire::SignedReport::encoded_len).sum();
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            if !self.budgets.of(&to, now.mono).bytes.take(size, now.mono) {
                self.counters.refuse(Code::RateLimited);
                break;
            }
            all.extend(reports);
        }
        self.push_reports(to, &all);
    }
}
