//! How often the kernel is looked at, and how often what others change there is undone.
//!
//! Three things are weighed: drift is repaired within a second; a host whose other programs change routes all the time
//! must not spend its processor on looking; and a program that fights for the same objects must not make both spin.

use std::time::{Duration, Instant};

/// Repairs at once before they are rationed.
const BURST: u32 = 8;
/// One more for each of these.
const REFILL: Duration = Duration::from_secs(5);
/// Between the end of a look and the next that only a notification asked for: this, or so many times what the last one
/// took, within a second.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const LOOK_SHARE: u32 = 10;
const LOOK_PAUSE_MOST: Duration = Duration::from_millis(700);
/// Peers that never answered are made anew, a few a second in a large mesh that is out of reach. Each time costs looks, so they
/// are gathered for so many times what the last time took of a processor.
const RENEW_SHARE: u32 = 20;
const RENEW_PAUSE_MOST: Duration = Duration::from_secs(30);
/// WireGuard tells nobody that a peer was changed: it is glanced at this often, or so many times what a glance takes of
/// a processor. Of 50 peers it takes 0.2 ms: 0.03 % of one; dear ones take 0.5 % at most.
const GLANCE_PAUSE: Duration = Duration::from_millis(700);
const GLANCE_SHARE: u32 = 200;
const GLANCE_PAUSE_MOST: Duration = Duration::from_secs(10);

/// Paces looks, glances and repairs of one device.
#[derive(Debug, Clone)]
pub struct RepairPace {
    /// Repairs that may be made at once.
    left: u32,
    /// When `left` was last counted up.
    refilled: Instant,
    look_from: Instant,
    glance_from: Instant,
    renew_from: Instant,
}

impl RepairPace {
    /// Nothing was done yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, refilled: now, look_from: now, glance_from: now, renew_from: now }
    }

    /// A look that took `took` ended at `now`. `repaired`: it undid what others had done.
    pub fn looked(&mut self, now: Instant, took: Duration, repaired: bool) {
        self.refill(now);
        if repaired {
            self.left = self.left.saturating_sub(1);
        }
        let pause = (took * LOOK_SHARE).clamp(LOOK_PAUSE, LOOK_PAUSE_MOST);
        self.look_from = now + pause;
        if self.left == 0 {
            self.look_from = self.look_from.max(self.refilled + REFILL);
        }
        self.glance_from = self.glance_from.max(now + GLANCE_PAUSE);
    }

    /// A glance that took `spent` of a processor ended at `now`.
    pub fn glanced(&mut self, now: Instant, spent: Duration) {
        self.glance_from = now + (spent * GLANCE_SHARE).clamp(GLANCE_PAUSE, GLANCE_PAUSE_MOST);
    }

    /// Peers were made anew until `now`, which took `spent` of a processor.
    pub fn renewed(&mut self, now: Instant, spent: Duration) {
        self.renew_from = now + (spent * RENEW_SHARE).min(RENEW_PAUSE_MOST);
    }

    /// When peers may be made anew again.
    #[must_use]
    pub fn renew_from(&self) -> Instant {
        self.renew_from
    }

    /// When a look may begin that a notification or a glance asks for.
    #[must_use]
    pub fn look_from(&self) -> Instant {
        self.look_from
    }

    /// When the next glance is due.
    #[must_use]
    pub fn glance_from(&self) -> Instant {
        self.glance_from.max(self.look_from)
    }

    /// Others undo what is repaired as often as it is: repairs are rationed.
    #[must_use]
    pub fn is_contested(&self) -> bool {
        self.left == 0
    }

    fn refill(&mut self, now: Instant) {
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn drift_is_repaired_at_once_and_a_fight_only_now_and_then() {
        let start = start();
        let mut pace = RepairPace::new(start);
        let (mut now, mut repairs) = (start, Vec::new());
        // Somebody undoes each repair at once, for two minutes.
        while now < start + Duration::from_secs(120) {
            now = pace.look_from().max(now) + MS;
            pace.looked(now, MS, true);
            repairs.push(now - start);
        }
        assert!(repairs[BURST as usize - 1] < Duration::from_secs(1), "{repairs:?}");
        assert!(pace.is_contested());
        let bound = BURST + 120 / 5 + 2;
        assert!(repairs.len() <= bound as usize, "{} repairs", repairs.len());
        // When that is over, all is as before.
        for _ in 0..60 {
            now = pace.look_from().max(now) + Duration::from_secs(1);
            pace.looked(now, MS, false);
        }
        assert!(!pace.is_contested());
        assert!(pace.look_from() - now < Duration::from_secs(1));
        assert_eq!(pace.left, BURST);
    }

    #[test]
    fn looks_take_a_tenth_of_the_time_at_most_and_come_within_a_second() {
        let start = start();
        let mut pace = RepairPace::new(start);
        for took in [MS, 5 * MS, 40 * MS] {
            pace.looked(start, took, false);
            assert!(pace.look_from() - start >= took * 10);
        }
        pace.looked(start, 500 * MS, false);
        assert!(pace.look_from() - start + 300 * MS <= Duration::from_secs(1));
    }

    #[test]
    fn peers_are_made_anew_in_groups_where_that_is_dear() {
        let start = start();
        let mut pace = RepairPace::new(start);
        pace.renewed(start, MS);
        assert_eq!(pace.renew_from() - start, 20 * MS);
        pace.renewed(start, Duration::from_secs(60));
        assert_eq!(pace.renew_from() - start, RENEW_PAUSE_MOST);
    }

    #[test]
    fn a_glance_is_rare_where_it_is_dear() {
        let start = start();
        let mut pace = RepairPace::new(start);
        pace.glanced(start, MS / 10);
        assert_eq!(pace.glance_from() - start, GLANCE_PAUSE);
        pace.glanced(start, 3 * MS);
        assert_eq!(
            pace.glance_from() - start,
            GLANCE_PAUSE,
            "an emulated processor's, with few peers"
        );
        pace.glanced(start, 25 * MS);
        assert_eq!(pace.glance_from() - start, Duration::from_secs(5));
        pace.glanced(start, Duration::from_secs(1));
        assert_eq!(pace.glance_from() - start, GLANCE_PAUSE_MOST);
    }
}
