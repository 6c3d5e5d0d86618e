//! What follows from answers, and from silence.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::{CONFIRM, PAUSE, PAUSE_LAST, Path, RAISE_FIRST, SILENT_AFTER, Told};
use crate::path_mtu::{
    State,
    sizes::{CONTROL, SMALLEST},
    trial::{Kind, Trial},
};

impl Path {
    /// A probe was answered after `rtt`.
    pub(in crate::path_mtu) fn answered(&mut self, size: u32, rtt: Duration, now: Instant) {
        self.silence = 0;
        self.rtt = Some(self.rtt.map_or(rtt, |known| rtt.max((known * 7 + rtt) / 8)));
        if size <= CONTROL {
            match &mut self.trial {
                Some(trial) if trial.kind == Kind::Wake => {
                    self.trial = None;
                    self.restart_from_base(self.seen.largest + 1);
                }
                Some(trial) => trial.heard(now),
                None => {}
            }
            return;
        }
        let fits = self.trial.as_ref().is_some_and(|trial| trial.size == size);
        if fits && let Some(trial) = self.trial.take() {
            self.fits(&trial, now);
        } else if size >= self.high && self.state == State::Search {
            // It took longer than it was waited for.
            (self.low, self.high, self.proven) = (size, self.seen.largest + 1, true);
        }
    }

    fn fits(&mut self, trial: &Trial, now: Instant) {
        match trial.kind {
            Kind::Confirm => {
                self.proven = true;
                if std::mem::take(&mut self.rediscover) && self.low < self.seen.largest {
                    self.begin_search();
                } else if self.told != Some(self.low) {
                    self.complete(Told::Measured, now);
                }
                return;
            }
            Kind::Raise => {
                self.high = self.seen.largest + 1;
                self.begin_search();
            }
            Kind::Base => self.begin_search(),
            Kind::Search | Kind::Refine | Kind::Wake => {}
        }
        self.low = trial.size;
        self.proven = true;
        if self.high <= self.low {
            self.high = self.seen.largest + 1;
        }
    }

    fn begin_search(&mut self) {
        self.kept = self.mtu().mtu;
        self.state = State::Search;
        self.fresh = true;
        self.above = false;
    }

    fn restart_from_base(&mut self, high: u32) {
        self.state = State::Base;
        self.low = self.base();
        self.proven = false;
        self.high = high;
    }

    pub(super) fn conclude(&mut self, trial: &Trial, rng: &mut impl RngExt, now: Instant) {
        if !trial.is_heard() {
            return self.unheard(trial, rng, now);
        }
        match trial.kind {
            Kind::Base | Kind::Confirm if trial.size <= self.base() => {
                self.begin_search();
                (self.low, self.proven, self.high) = (SMALLEST, false, trial.size);
                self.kept = SMALLEST;
            }
            Kind::Base | Kind::Search | Kind::Refine => {
                self.high = trial.size;
                self.above = false;
            }
            Kind::Confirm => {
                self.rediscover = false;
                self.raise_after = RAISE_FIRST;
                self.raise_at = now + RAISE_FIRST;
                self.restart_from_base(self.low);
                self.tell(Told::Shrank, now);
            }
            Kind::Raise | Kind::Wake => {}
        }
    }

    /// Nothing came back at all: that says nothing about sizes.
    fn unheard(&mut self, trial: &Trial, rng: &mut impl RngExt, now: Instant) {
        let pause = PAUSE.saturating_mul(1 << self.silence.min(8)).min(PAUSE_LAST);
        self.pause = Some(now + pause.mul_f64(rng.random_range(0.8..1.2)));
        self.silence += 1;
        match trial.kind {
            Kind::Base | Kind::Search | Kind::Refine if self.silence >= SILENT_AFTER => {
                if self.proven {
                    self.complete(Told::Measured, now);
                    self.rediscover = true;
                } else {
                    self.state = State::Silent;
                    self.tell(Told::Silent, now);
                }
            }
            _ => {}
        }
    }

    pub(super) fn complete(&mut self, why: Told, now: Instant) {
        self.state = State::Complete;
        self.raise_at = self.raise_at.max(now + self.raise_after);
        self.confirm_at = now + CONFIRM;
        self.tell(why, now);
    }

    fn tell(&mut self, why: Told, now: Instant) {
        let mtu = self.mtu().mtu;
        if self.told != Some(mtu) {
            self.since = now;
            self.news = Some((self.told.replace(mtu), why));
        }
    }
}
