//! Whether this host has more to do than processors.

use std::{
    fs,
    time::{Duration, Instant},
};

/// A judgement is about at least so long.
const WINDOW: Duration = Duration::from_millis(100);
/// Waiting for a processor for more than one part in so many of the time is busy.
const PART: u32 = 4;

/// How long the calling thread waits for a processor.
#[derive(Debug)]
pub struct Load {
    since: Instant,
    waited: Option<Duration>,
    busy: bool,
}

impl Load {
    /// Nothing is known of what was before.
    #[must_use]
    pub fn from_now() -> Self {
        Self { since: Instant::now(), waited: waited(), busy: false }
    }

    /// Whether the calling thread, always the same, has waited for a processor for much of the time lately. False where
    /// the kernel does not count it.
    pub fn is_busy(&mut self) -> bool {
        let passed = self.since.elapsed();
        if passed >= WINDOW {
            let now = waited();
            if let (Some(before), Some(now)) = (self.waited, now) {
                self.busy = now.saturating_sub(before) * PART > passed;
            }
            (self.since, self.waited) = (Instant::now(), now);
        }
        self.busy
    }
}

/// How long this thread was ready to run and did not, so far (Documentation/scheduler/sched-stats.rst).
fn waited() -> Option<Duration> {
    second(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Of the time on a processor, that of waiting for one, and how often: nanoseconds.
fn second(text: &str) -> Option<Duration> {
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_what_was_waited() {
        assert_eq!(second("5123 101460 1\n"), Some(Duration::from_nanos(101_460)));
        assert_eq!(second("5123\n"), None);
        assert_eq!(second("5123 x 1\n"), None);
    }

    #[test]
    fn where_the_kernel_does_not_count_nobody_is_busy() {
        let long_ago = Instant::now().checked_sub(WINDOW).unwrap();
        assert!(!Load { since: long_ago, waited: None, busy: false }.is_busy());
    }
}
