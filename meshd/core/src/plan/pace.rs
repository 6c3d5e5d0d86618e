//! When to plan again.
//!
//! While a mesh starts, news comes every few milliseconds, and each plan costs what all members cost. So plans keep a
//! distance that grows with what the last one took, which on a busy machine is more: they never take more than a tenth
//! of the time, and a first change after a quiet time waits for nothing.

use std::time::{Duration, Instant};

/// The least distance between two plans, and how long changes are waited for that come in groups.
const PAUSE: Duration = Duration::from_millis(50);
/// Or so many times what the last plan took, but no longer than this.
const SHARE: u32 = 10;
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// Paces the plans of one node.
#[derive(Debug, Clone)]
pub struct PlanPace {
    due: Option<Instant>,
    /// No plan before this, unless somebody waits for it.
    from: Instant,
}

impl PlanPace {
    /// Nothing is planned yet, and is to be.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { due: Some(now), from: now }
    }

    /// Somebody waits for what changed.
    pub fn at_once(&mut self, now: Instant) {
        self.by(now);
    }

    /// Something changed.
    pub fn soon(&mut self, now: Instant) {
        self.by(now.max(self.from));
    }

    /// Something changed that comes in groups: others of `members` will change too.
    pub fn with_others(&mut self, now: Instant, members: u32) {
        self.by((now + PAUSE * members.clamp(1, 20)).max(self.from));
    }

    fn by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the next plan is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A plan begins; what changes from here on needs another.
    pub fn begin(&mut self) {
        self.due = None;
    }

    /// It was made.
    pub fn planned(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        self.from = ended + (took * SHARE).clamp(PAUSE, PAUSE_MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Makes the plan that is due, which takes `took`; returns when it began.
    fn plan(pace: &mut PlanPace, took: Duration) -> Instant {
        let began = pace.due().expect("one is due");
        pace.begin();
        pace.planned(began, began + took);
        assert_eq!(pace.due(), None);
        began
    }

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_change_after_a_quiet_time_waits_for_nothing() {
        let start = start();
        let mut pace = PlanPace::new(start);
        assert_eq!(plan(&mut pace, MS), start);
        let later = start + Duration::from_secs(5);
        pace.soon(later);
        assert_eq!(plan(&mut pace, MS), later);
        // And one that follows on its heels only for the pause.
        pace.soon(later + MS);
        assert_eq!(plan(&mut pace, MS), later + MS + PAUSE);
    }

    #[test]
    fn planning_takes_a_tenth_of_the_time_and_ends_in_a_second() {
        let start = start();
        let mut pace = PlanPace::new(start);
        let took = 20 * MS;
        let first = plan(&mut pace, took);
        let mut last = first;
        for _ in 0..10 {
            pace.soon(last + took + MS);
            pace.soon(last + took + MS * 2);
            last = plan(&mut pace, took);
        }
        assert_eq!(last - first, (took + took * SHARE) * 10);
        let slow = plan_after(&mut pace, last, Duration::from_secs(30));
        pace.soon(slow);
        assert_eq!(pace.due(), Some(slow + Duration::from_secs(30) + PAUSE_MOST));
    }

    fn plan_after(pace: &mut PlanPace, last: Instant, took: Duration) -> Instant {
        pace.soon(last);
        plan(pace, took)
    }

    #[test]
    fn who_waits_goes_before_what_may_wait() {
        let start = start();
        let mut pace = PlanPace::new(start);
        plan(&mut pace, 20 * MS);
        pace.with_others(start, 100);
        assert_eq!(pace.due(), Some(start + PAUSE * 20));
        pace.soon(start + MS * 30);
        assert_eq!(pace.due(), Some(start + MS * 220));
        pace.at_once(start + MS * 31);
        assert_eq!(pace.due(), Some(start + MS * 31));
        pace.with_others(start, 0);
        assert_eq!(pace.due(), Some(start + MS * 31), "what is due sooner stays");
    }
}
