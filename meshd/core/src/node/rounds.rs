//! When news is told.
//!
//! The first is told at once, and what comes within the pause after it goes together. As long as more than ten a second
//! come, as when a mesh starts, the next pause is twice as long: each round costs as many messages as are told, and a host
//! that is flooded with them is late with everything. One member may not send so much that it can keep pauses long.

use std::time::{Duration, Instant};

/// The pause after what came alone, and the longest that urgent news waits.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_millis(320);
const TEN_A_SECOND: Duration = Duration::from_millis(100);

/// What there is to tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    /// Of whom to trust.
    pub(super) urgent: bool,
    /// Records, and reports about members, which must not overtake the records that refute them.
    pub(super) usual: usize,
}

/// The rounds of one node.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// When something was last told.
    told: Option<Instant>,
    /// The pause after that.
    pause: Duration,
    /// So much came within it.
    gathered: u32,
}

impl Rounds {
    /// When `news` is due; `None` if there is none, or it is due at once.
    pub(super) fn due(&self, news: News) -> Option<Instant> {
        let pause = match (news.urgent, news.usual) {
            (true, _) => PAUSE,
            (false, 1..) => self.pause,
            (false, 0) => return None,
        };
        Some(self.told? + pause)
    }

    /// True when `news` is to be told at `now`; notes that it is.
    pub(super) fn begin(&mut self, news: News, now: Instant) -> bool {
        let nothing = !news.urgent && news.usual == 0;
        if nothing || self.due(news).is_some_and(|due| due > now) {
            self.gathered = u32::try_from(news.usual).unwrap_or(u32::MAX);
            return false;
        }
        let gathered = std::mem::take(&mut self.gathered);
        let flood = gathered > 0 && TEN_A_SECOND.saturating_mul(gathered) >= self.pause;
        if news.usual > 0 {
            self.pause = if flood { (self.pause * 2).min(PAUSE_MOST) } else { PAUSE };
        }
        self.told = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URGENT: News = News { urgent: true, usual: 0 };

    fn usual(usual: usize) -> News {
        News { urgent: false, usual }
    }

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    /// `count` come right after `now`; when they are told.
    fn tell(rounds: &mut Rounds, count: usize, now: Instant) -> Instant {
        assert!(!rounds.begin(usual(count), now));
        let due = rounds.due(usual(count)).unwrap();
        assert!(rounds.begin(usual(count), due));
        due
    }

    #[test]
    fn the_first_is_told_at_once_and_the_next_together() {
        let now = start();
        let mut rounds = Rounds::default();
        assert!(!rounds.begin(News::default(), now));
        assert_eq!(rounds.due(usual(1)), None);
        assert!(rounds.begin(usual(1), now));
        assert_eq!(tell(&mut rounds, 2, now), now + PAUSE);
        // After a quiet time again at once.
        let later = now + PAUSE_MOST * 2;
        assert!(rounds.begin(usual(1), later));
        assert_eq!(rounds.due(usual(1)), Some(later + PAUSE));
    }

    #[test]
    fn a_flood_is_gathered_for_a_third_of_a_second_at_most() {
        let mut now = start();
        let mut rounds = Rounds::default();
        assert!(rounds.begin(usual(1), now));
        for pause in [20, 40, 80, 160, 320, 320] {
            let told = tell(&mut rounds, 10, now);
            assert_eq!(told - now, Duration::from_millis(pause));
            now = told;
        }
        // Nine a second are none.
        assert_eq!(tell(&mut rounds, 3, now) - now, PAUSE_MOST);
        assert_eq!(rounds.pause, PAUSE);
    }

    #[test]
    fn what_is_urgent_waits_for_no_flood() {
        let mut now = start();
        let mut rounds = Rounds::default();
        assert!(rounds.begin(usual(1), now));
        (0..8).for_each(|_| now = tell(&mut rounds, 100, now));
        assert_eq!(rounds.due(usual(1)), Some(now + PAUSE_MOST));
        assert_eq!(rounds.due(URGENT), Some(now + PAUSE));
        assert!(rounds.begin(URGENT, now + PAUSE));
    }
}
