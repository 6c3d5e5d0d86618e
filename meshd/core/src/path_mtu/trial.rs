//! One size, tried until it is answered or was sent often enough.

use std::time::{Duration, Instant};

use super::sizes::CONTROL;

/// RFC 8899, 5.1.2 (MAX_PROBES).
const ATTEMPTS: u32 = 3;
/// A size that was proved is not given up as fast: congestion loses large packets too.
const ATTEMPTS_CONFIRM: u32 = 4;
/// How long an answer may take, while no round trip was seen.
const PATIENCE: Duration = Duration::from_millis(600);
const PATIENCE_LEAST: Duration = Duration::from_millis(200);
const PATIENCE_CONFIRM: Duration = Duration::from_millis(300);
const PATIENCE_MOST: Duration = Duration::from_secs(2);

/// What a trial is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Base,
    Search,
    /// Within what padding keeps apart.
    Refine,
    /// Whether the size in use is still carried.
    Confirm,
    /// Whether more is carried than was.
    Raise,
    /// Whether the peer answers again.
    Wake,
}

#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) kind: Kind,
    pub(super) size: u32,
    /// When the next attempt is due, or the trial is over.
    pub(super) deadline: Instant,
    /// A small probe was answered meanwhile.
    pub(super) heard: bool,
    sent: u32,
}

impl Trial {
    /// To be sent at once.
    pub(super) fn new(kind: Kind, size: u32, now: Instant) -> Self {
        Self { kind, size, deadline: now, heard: false, sent: 0 }
    }

    /// Nothing more is sent for it.
    pub(super) fn is_over(&self) -> bool {
        self.sent >= self.attempts()
    }

    /// The sizes to send now. From the second time on a small one goes along: its answer tells that there is
    /// somebody to answer.
    pub(super) fn attempt(&mut self, rtt: Option<Duration>, now: Instant) -> Vec<u32> {
        self.sent += 1;
        let patience = rtt.map_or(PATIENCE, |rtt| rtt * 3 + Duration::from_millis(50));
        let least = match self.kind {
            Kind::Confirm => PATIENCE_CONFIRM,
            _ => PATIENCE_LEAST,
        };
        let patience = patience.clamp(least, PATIENCE_MOST);
        self.deadline = now + if self.is_over() { patience * 2 } else { patience };
        if self.sent == 1 || self.size <= CONTROL {
            vec![self.size]
        } else {
            vec![self.size, CONTROL]
        }
    }

    fn attempts(&self) -> u32 {
        match self.kind {
            Kind::Confirm => ATTEMPTS_CONFIRM,
            _ => ATTEMPTS,
        }
    }
}
