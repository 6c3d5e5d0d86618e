//! What a daemon costs whose store holds many members, none of whom is there: its start, and then its rest.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use meshd_core::now::UnixTime;
use meshd_tests::harness::{Host, HostPlan, Place, pace, wait_for};
use meshd_tests::paths::Stored;

use crate::{
    in_a_world,
    process::{self, Cost},
    report::{Machine, Report},
};

/// Between the founding of the mesh and now.
const AGE: i64 = 3_600;

pub(crate) fn measure(machine: Machine, members: u32, seconds: u32) -> Result<Report> {
    ensure!((1..=60_000).contains(&members), "{members} members cannot be made; give 1 to 60000");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let begin = UnixTime(i64::try_from(now)? - AGE);
    let state = tempfile::tempdir()?;
    Stored::since(begin, usize::try_from(members)?).write(state.path())?;
    let mut report = Report::new(machine, "stored", members);
    in_a_world(2, |world| {
        let host = world.host(&HostPlan::vm("one"))?;
        host.run(&["cp", "-a", &format!("{}/.", state.path().display()), "/var/lib/meshd/"])?;
        let started = Instant::now();
        host.launch_daemon()?;
        wait_for("all members are programmed", pace(600), || {
            host.check_daemon()?;
            let held = host.sh("wg show mesh0 peers | wc -l")?;
            ensure!(held.trim() == members.to_string(), "{} peers", held.trim());
            Ok(())
        })?;
        let programmed = started.elapsed();
        let pid = process::daemon(&host)?;
        let start = Cost::of(pid)?;
        std::thread::sleep(Duration::from_secs(seconds.into()));
        let rest = Cost::of(pid)?;
        let mib = |kib: u64| kib as f64 / 1024.0;
        let share = (rest.cpu_seconds - start.cpu_seconds) / f64::from(seconds) * 100.0;
        for (key, what, value, unit) in [
            ("programmed_seconds", "from the start to all peers", programmed.as_secs_f64(), "s"),
            ("start_cpu_seconds", "the daemon's processor time for it", start.cpu_seconds, "s"),
            ("rss_mib", "resident memory afterwards", mib(rest.rss_kib), "MiB"),
            ("pss_mib", "of which its own", mib(rest.pss_kib), "MiB"),
            ("rest_cpu_percent", "processor at rest", share, "%"),
            ("status_seconds", "meshctl status", answer(&host, &["status"])?, "s"),
            ("list_seconds", "meshctl peers list", answer(&host, &["peers", "list"])?, "s"),
        ] {
            report.add(key, what, value, unit);
        }
        Ok(())
    })?;
    Ok(report)
}

/// How long a command takes, the quickest of five.
fn answer(host: &Host, arguments: &[&str]) -> Result<f64> {
    let once = |_| {
        let started = Instant::now();
        host.meshctl(arguments)?.ok()?;
        Ok(started.elapsed())
    };
    let times: Vec<Duration> = (0..5).map(once).collect::<Result<_>>()?;
    Ok(times.into_iter().min().context("none")?.as_secs_f64())
}
