//! `reload` and `confirm`.

use std::time::Duration;

use clap::Args;

/// A trial lasts so long unless told otherwise.
const TRIAL: &str = "2m";
/// What the daemon takes.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(3_600);

#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// On trial: what ran before comes back after TIME (10s to 1h) unless `meshctl confirm` is called [default: 2m]
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = TRIAL, value_parser = trial)]
    pub(crate) confirm: Option<Duration>,
    /// With --confirm: begin the daemon anew for keys that need it; flows go on
    #[arg(long, requires = "confirm")]
    pub(crate) restart: bool,
}

fn trial(text: &str) -> Result<Duration, String> {
    let time = crate::text::parse_duration(text)?;
    match (SHORTEST..=LONGEST).contains(&time) {
        true => Ok(time),
        false => Err("a trial lasts from 10s to 1h".to_owned()),
    }
}
