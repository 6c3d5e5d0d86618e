//! The two clocks: the only place of the daemon where the core's `Now` is made.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use meshd_core::now::{Now, UnixTime};

/// Both clocks now.
pub(super) fn now() -> Now {
    Now { mono: Instant::now(), unix: unix() }
}

/// The wall clock. A clock before 1970 counts as 1970.
pub(super) fn unix() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
