//! How tunnels do, told from successive observations of the kernel.
//!
//! The kernel has counters and the time of the last handshake, nothing else. A tunnel that carried
//! nothing for an hour has an old handshake and is as good as new; one that was sent to and did not
//! answer has an old handshake and is not. The [`TunnelTracker`] tells the two apart. The daemon
//! feeds it with every observation; it sends nothing itself. A lone keepalive is no question: WireGuard
//! ends every exchange with one, which nobody answers.
//!
//! ```text
//!          first handshake              sent, no answer for 15 s, and handshake older than 180 s
//! Never ───────────────────► Up ────────────────────────────────────────────────────────────► Stale
//!                             ▲                                                                 │
//!                             └──────────────── something received, or a handshake ─────────────┘
//! ```
//! A peer that was removed and added again begins at `Never`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_proto::WgPublicKey;

use super::{
    input::{TunnelHealth, TunnelState},
    types::ObservedPeer,
};
use crate::limits::HANDSHAKE_FRESH;

/// Sent without an answer for this long is no answer: WireGuard's KEEPALIVE_TIMEOUT plus
/// REKEY_TIMEOUT, after which its own sender takes the session for broken (WireGuard, 6.5).
const UNANSWERED: Duration = Duration::from_secs(15);
/// Bytes of a keepalive: a data message without a packet (WireGuard, 5.4.6).
const KEEPALIVE: u64 = 32;
/// How long the first endpoint is tried; each further one twice as long as the one before.
const FIRST_ATTEMPT: Duration = Duration::from_secs(15);
/// The longest that one endpoint is tried.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(300);

/// Remembers what is needed of earlier observations: a few words for each peer in the kernel.
#[derive(Debug, Clone, Default)]
pub struct TunnelTracker {
    tracks: BTreeMap<WgPublicKey, Track>,
}

#[derive(Debug, Clone)]
struct Track {
    rx_bytes: u64,
    tx_bytes: u64,
    /// Of the earliest observation in which something had been sent since the last answer.
    unanswered_since: Option<Instant>,
    /// Of the present attempt at an endpoint; `None` while up.
    attempt_since: Option<Instant>,
    /// Something was sent during the present attempt.
    attempt_used: bool,
    health: TunnelHealth,
}

impl TunnelTracker {
    /// Takes in what the kernel holds at `now`. Peers that are gone from it are forgotten.
    pub fn observe(&mut self, peers: &BTreeMap<WgPublicKey, ObservedPeer>, now: Instant) {
        self.tracks.retain(|key, _| peers.contains_key(key));
        for (key, peer) in peers {
            match self.tracks.get_mut(key) {
                Some(track) if track.is_continued_by(peer) => track.observe(peer, now),
                _ => {
                    self.tracks.insert(*key, Track::begin(peer, now));
                }
            }
        }
    }

    /// The state of the tunnel to `key`, when the kernel held that peer at the last observation.
    #[must_use]
    pub fn health(&self, key: &WgPublicKey) -> Option<TunnelHealth> {
        self.tracks.get(key).map(|track| track.health)
    }
}

impl Track {
    /// The first sight of a peer: a handshake at any time means up, until something sent stays
    /// without an answer.
    fn begin(peer: &ObservedPeer, now: Instant) -> Self {
        let answered = peer.last_handshake.is_some();
        Self {
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            unanswered_since: None,
            attempt_since: (!answered).then_some(now),
            attempt_used: peer.tx_bytes > 0,
            health: TunnelHealth {
                state: if answered { TunnelState::Up } else { TunnelState::Never },
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake,
                attempt: 0,
            },
        }
    }

    /// False when the kernel's peer is another one than before under the same key.
    fn is_continued_by(&self, peer: &ObservedPeer) -> bool {
        peer.rx_bytes >= self.rx_bytes
            && peer.tx_bytes >= self.tx_bytes
            && (peer.last_handshake.is_some() || self.health.last_handshake.is_none())
    }

    fn observe(&mut self, peer: &ObservedPeer, now: Instant) {
        let sent = !matches!(peer.tx_bytes.saturating_sub(self.tx_bytes), 0 | KEEPALIVE);
        let received = peer.rx_bytes > self.rx_bytes;
        (self.tx_bytes, self.rx_bytes) = (peer.tx_bytes, peer.rx_bytes);
        if received {
            self.unanswered_since = None;
        } else if sent && self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
        }
        let state = self.state(peer, now);
        self.count_attempt(state, sent, now);
        self.health = TunnelHealth {
            state,
            endpoint: peer.endpoint,
            last_handshake: peer.last_handshake,
            attempt: self.health.attempt,
        };
    }

    fn state(&self, peer: &ObservedPeer, now: Instant) -> TunnelState {
        let unanswered =
            self.unanswered_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        match peer.last_handshake {
            None => TunnelState::Never,
            Some(age) if age > HANDSHAKE_FRESH && unanswered >= UNANSWERED => TunnelState::Stale,
            // Ages are told by the wall clock, which may have been set back.
            Some(_) if unanswered >= HANDSHAKE_FRESH => TunnelState::Stale,
            Some(_) => TunnelState::Up,
        }
    }

    /// An endpoint has failed when it was sent to and its time is over. One that nothing was sent
    /// to was not tried.
    fn count_attempt(&mut self, state: TunnelState, sent: bool, now: Instant) {
        if state == TunnelState::Up {
            self.attempt_since = None;
            self.attempt_used = false;
            self.health.attempt = 0;
            return;
        }
        let since = *self.attempt_since.get_or_insert(now);
        self.attempt_used |= sent;
        if self.attempt_used
            && now.saturating_duration_since(since) >= time_for_attempt(self.health.attempt)
        {
            self.health.attempt = self.health.attempt.saturating_add(1);
            self.attempt_since = Some(now);
            self.attempt_used = false;
        }
    }
}

/// How long the attempt of this number may take.
fn time_for_attempt(attempt: u32) -> Duration {
    FIRST_ATTEMPT.saturating_mul(1 << attempt.min(8)).min(LONGEST_ATTEMPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: WgPublicKey = WgPublicKey([1; 32]);

    fn peer(handshake: Option<u64>, rx_bytes: u64, tx_bytes: u64) -> ObservedPeer {
        ObservedPeer {
            last_handshake: handshake.map(Duration::from_secs),
            rx_bytes,
            tx_bytes,
            ..ObservedPeer::default()
        }
    }

    /// Feeds (second, peer) and returns the health after the last.
    fn after(samples: &[(u64, ObservedPeer)]) -> TunnelHealth {
        #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
        let start = Instant::now();
        let mut tracker = TunnelTracker::default();
        for (second, peer) in samples {
            let peers = BTreeMap::from([(KEY, peer.clone())]);
            tracker.observe(&peers, start + Duration::from_secs(*second));
        }
        tracker.health(&KEY).unwrap()
    }

    fn state_after(samples: &[(u64, ObservedPeer)]) -> TunnelState {
        after(samples).state
    }

    #[test]
    fn an_idle_tunnel_is_up_however_old_its_handshake() {
        let idle = [(0, peer(Some(100), 500, 500)), (5000, peer(Some(5100), 500, 500))];
        assert_eq!(state_after(&idle), TunnelState::Up);
    }

    #[test]
    fn a_tunnel_that_does_not_answer_is_stale_only_after_180_seconds_without_a_handshake() {
        let mut samples = vec![(0, peer(Some(100), 500, 500)), (10, peer(Some(110), 500, 900))];
        samples.push((70, peer(Some(170), 500, 1200)));
        assert_eq!(state_after(&samples), TunnelState::Up, "sessions live for 180 s");
        samples.push((81, peer(Some(181), 500, 1500)));
        assert_eq!(state_after(&samples), TunnelState::Stale);
        samples.push((90, peer(Some(2), 700, 1700)));
        assert_eq!(state_after(&samples), TunnelState::Up, "it answered");
    }

    #[test]
    fn an_idle_tunnel_that_wakes_up_is_not_stale_at_the_first_unanswered_packet() {
        let mut samples = vec![(0, peer(Some(1000), 500, 500)), (10, peer(Some(1010), 500, 648))];
        assert_eq!(state_after(&samples), TunnelState::Up);
        samples.push((25, peer(Some(1025), 500, 944)));
        assert_eq!(state_after(&samples), TunnelState::Stale);
    }

    #[test]
    fn the_keepalive_that_ends_an_exchange_is_not_waited_on() {
        let samples = [
            (0, peer(Some(10), 500, 500)),
            (10, peer(Some(20), 500, 532)),
            (500, peer(Some(510), 500, 532)),
        ];
        assert_eq!(state_after(&samples), TunnelState::Up);
    }

    #[test]
    fn a_peer_that_was_made_anew_begins_at_never() {
        let samples = [(0, peer(Some(10), 500, 500)), (5, peer(None, 0, 0))];
        assert_eq!(state_after(&samples), TunnelState::Never);
        let mut tracker = TunnelTracker::default();
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        tracker.observe(&BTreeMap::from([(KEY, peer(None, 0, 0))]), now);
        tracker.observe(&BTreeMap::new(), now);
        assert_eq!(tracker.health(&KEY), None);
    }

    #[test]
    fn attempts_are_counted_only_when_something_was_sent_and_take_longer_each_time() {
        let quiet = [(0, peer(None, 0, 0)), (1000, peer(None, 0, 0))];
        assert_eq!(after(&quiet).attempt, 0);
        let mut samples: Vec<_> = (0..=15).map(|s| (s, peer(None, 0, 148 * s))).collect();
        assert_eq!(after(&samples).attempt, 1);
        samples.extend((16..=44).map(|s| (s, peer(None, 0, 148 * s))));
        assert_eq!(after(&samples).attempt, 1);
        samples.push((45, peer(None, 0, 148 * 45)));
        assert_eq!(after(&samples).attempt, 2);
        samples.push((50, peer(Some(1), 92, 148 * 46)));
        assert_eq!(after(&samples).attempt, 0, "an answer ends it");
        assert_eq!(time_for_attempt(u32::MAX), LONGEST_ATTEMPT);
    }
}
