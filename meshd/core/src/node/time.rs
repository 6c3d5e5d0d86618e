//! The signers' time, passed on.

use meshd_proto::{NodeKey, wire};

use super::{Node, types::Output};
use crate::{
    limits,
    now::Now,
    refusal::{Code, Refusal},
};

impl Node {
    /// A time that this host's signer has signed. False when it is no news.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn take_time(&mut self, signed: &wire::SignedTime, now: Now) -> Result<bool, Refusal> {
        let news = self.note_time(signed, now);
        self.settle(now);
        news
    }

    /// True when a signer here should sign the time.
    #[must_use]
    pub fn wants_time(&self, now: Now) -> bool {
        let usual = -limits::CLOCK_SKEW_SECONDS..limits::SIGNER_TIME_EVERY_SECONDS;
        let age = self.anchors.signer_time().map(|at| now.unix.since(at));
        age.is_none_or(|age| !usual.contains(&age))
    }

    /// A time that a peer passed on.
    pub(super) fn learn_time(&mut self, from: NodeKey, signed: &wire::SignedTime, now: Now) {
        if !self.budgets.of(&from, now.mono).work.take(1, now.mono) {
            self.counters.refuse(Code::RateLimited);
        } else if let Err(refusal) = self.note_time(signed, now) {
            self.refused_record(from, &refusal);
        }
    }

    fn note_time(&mut self, signed: &wire::SignedTime, now: Now) -> Result<bool, Refusal> {
        let news = self.anchors.take_time(signed, now.unix)?;
        if news {
            self.dissemination.add_time();
            let bytes = self.anchors.encode_time().into();
            self.outputs.push_back(Output::StoreTime(bytes));
        }
        Ok(news)
    }

    /// What is held, for frames that compare it; 0: nothing.
    pub(super) fn time_held(&self) -> i64 {
        self.anchors.signer_time().map_or(0, |at| at.0)
    }

    pub(super) fn offer_time(&mut self, to: NodeKey, theirs: i64) {
        if theirs < self.time_held() {
            let time = Some(self.anchors.signed_time().clone());
            let push = wire::Push { time, ..Default::default() };
            self.send(to, wire::frame::Body::Push(push));
        }
    }
}
