//! Stale tunnels to members that are there again.
//!
//! WireGuard gives up 90 seconds after what it sent stayed without an answer (REKEY_ATTEMPT_TIME, WireGuard, 6.4), until
//! somebody sends again. So after a long outage a tunnel that nobody happens to use stays stale for ever, though gossip has heard its
//! member for hours: no way would lead back to a gateway that one left, and people would be shown a fault. Such a tunnel is
//! sent a packet now and then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

/// The first pause between two packets, and the longest. WireGuard itself sends a handshake at most every five seconds.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Tunnels to be revived, and when each is asked next.
#[derive(Debug, Clone, Default)]
pub struct Revival {
    waiting: BTreeMap<NodeKey, (Instant, Duration)>,
}

impl Revival {
    /// Whom to send a packet at `now`. `stale`: all members that are there and whose tunnels are stale.
    pub fn due(&mut self, stale: &BTreeSet<NodeKey>, now: Instant) -> Vec<NodeKey> {
        self.waiting.retain(|key, _| stale.contains(key));
        let mut due = Vec::new();
        for key in stale {
            let (next, pause) = self.waiting.entry(*key).or_insert((now, PAUSE.0));
            if *next <= now {
                due.push(*key);
                *next = now + *pause;
                *pause = (*pause * 2).min(PAUSE.1);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_stale_is_asked_at_once_then_ever_later_and_anew_after_it_was_well() {
        #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
        let start = Instant::now();
        let mut revival = Revival::default();
        let one = BTreeSet::from([NodeKey([1; 32])]);
        let asked = |revival: &mut Revival, from: u64, to: u64| -> Vec<u64> {
            let at = |second| start + Duration::from_secs(second);
            (from..to).filter(|second| !revival.due(&one, at(*second)).is_empty()).collect()
        };
        assert_eq!(asked(&mut revival, 0, 200), [0, 5, 15, 35, 75, 135, 195]);
        assert!(revival.due(&BTreeSet::new(), start + Duration::from_secs(200)).is_empty());
        assert_eq!(asked(&mut revival, 201, 210), [201, 206]);
    }
}
