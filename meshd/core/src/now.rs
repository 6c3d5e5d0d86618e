//! Time, as an argument.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Wall-clock time in seconds since the Unix epoch. May jump; liveness never rests on it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// This time moved by `seconds`, saturating.
    #[must_use]
    pub fn plus(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this time; negative when `earlier` is later. Saturates.
    #[must_use]
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For timers and liveness.
    pub mono: Instant,
    /// For what is signed: dates of records, certificates and tokens.
    pub unix: UnixTime,
}

impl Now {
    /// Both clocks `by` later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        let seconds = i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        Self { mono: self.mono + by, unix: self.unix.plus(seconds) }
    }
}
