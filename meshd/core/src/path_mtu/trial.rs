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
/// Attempts are so far apart, lest one short jam takes them all.
const APART: Duration = Duration::from_millis(100);
/// A small packet that was sent last may overtake a large one by so much.
const OVERTAKEN: Duration = Duration::from_millis(30);
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
    heard: bool,
    sent: u32,
    sent_at: Instant,
}

impl Trial {
    /// To be sent at once.
    pub(super) fn new(kind: Kind, size: u32, now: Instant) -> Self {
        Self { kind, size, deadline: now, heard: false, sent: 0, sent_at: now }
    }

    /// Nothing more is sent for it.
    pub(super) fn is_over(&self) -> bool {
        self.sent >= self.attempts()
    }

    /// The sizes to send now. From the second time on a small one goes along: its answer tells that there is
    /// somebody to answer.
    pub(super) fn attempt(&mut self, rtt: Option<Duration>, now: Instant) -> Vec<u32> {
        self.sent += 1;
        self.sent_at = now;
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

    /// A small probe was answered: the large one before it would have been too.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = true;
        if self.kind != Kind::Confirm {
            let soon = (now + OVERTAKEN).max(self.sent_at + APART);
            self.deadline = self.deadline.min(soon);
        }
    }

    /// There is somebody to answer.
    pub(super) fn is_heard(&self) -> bool {
        self.heard
    }

    fn attempts(&self) -> u32 {
        match self.kind {
            Kind::Confirm => ATTEMPTS_CONFIRM,
            _ => ATTEMPTS,
        }
    }
}
