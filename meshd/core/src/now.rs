//! Time, as an argument.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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

    /// As RFC 3339 in UTC; `None` for what no calendar names.
    #[must_use]
    pub fn rfc3339(self) -> Option<String> {
        OffsetDateTime::from_unix_timestamp(self.0).ok()?.format(&Rfc3339).ok()
    }

    /// What RFC 3339 writes so; parts of a second are left out.
    #[must_use]
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(|time| Self(time.unix_timestamp()))
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

/// A wall clock that moves so much more or less than the other was set.
const SET_SECONDS: i64 = 60;

impl Now {
    /// True when the wall clock was set between `self` and the later `now`.
    #[must_use]
    pub fn was_set_before(self, now: Self) -> bool {
        let passed = now.mono.saturating_duration_since(self.mono).as_secs();
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        now.unix.since(self.unix).saturating_sub(passed).saturating_abs() > SET_SECONDS
    }

    /// Both clocks `by` later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        let seconds = i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        Self { mono: self.mono + by, unix: self.unix.plus(seconds) }
    }
}
