//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Tries `probe` until it is `Ok`, at most for `limit`. The error of the last try tells why it was not.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let last = start.elapsed() > limit;
        match probe() {
            Ok(value) => return Ok(value),
            Err(why) if last => {
                return Err(anyhow!("{what}: not within {limit:?}; last seen: {why:#}"));
            }
            Err(_) => std::thread::sleep(pause),
        }
        // Each try starts processes, which must not starve what is waited for.
        pause = (pause * 2).min(pace(1) / 10);
    }
}

/// `seconds` on a real processor, four times that in the emulated VM. For limits that only say "it does not hang";
/// a limit that a requirement names is not stretched.
pub fn pace(seconds: u64) -> Duration {
    Duration::from_secs(seconds * if in_vm() { 4 } else { 1 })
}

/// Whether this is the emulated machine of `tests/vm/run`.
pub fn in_vm() -> bool {
    std::env::var_os("MESHD_IN_VM").is_some()
}
