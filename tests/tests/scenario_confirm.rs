//! Configuration on trial: what cuts off whoever asked for it goes back by itself, whatever becomes of the daemon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, Pod, PodPlan, pace, scenario, wait_for};
use serde_json::Value;

/// The shortest there is.
const TRIAL: &str = "10s";
/// Until the daemon has seen that it is over.
const OVER: Duration = Duration::from_secs(10);

fn codes(host: &Host) -> Result<Vec<String>> {
    Ok(host.status()?.health.into_iter().map(|line| line.code).collect())
}

fn has(host: &Host, code: &str) -> Result<bool> {
    Ok(codes(host)?.iter().any(|c| c == code))
}

/// The port on which WireGuard listens, as the kernel has it.
fn port(host: &Host) -> Result<u16> {
    Ok(host.run(&["wg", "show", "mesh0", "listen-port"])?.trim().parse()?)
}

fn wait_port(host: &Host, wanted: u16, limit: Duration) -> Result<()> {
    wait_for(&format!("{} listens on {wanted}", host.name()), limit, || {
        host.check_daemon()?;
        let found = port(host)?;
        ensure!(found == wanted, "it is {found}: {:?}", codes(host)?);
        Ok(())
    })
}

/// Waits until the host announces this zone.
fn wait_zone(host: &Host, wanted: &str, limit: Duration) -> Result<()> {
    wait_for(&format!("{}: the zone is {wanted:?}", host.name()), limit, || {
        let zone = host.status()?.zone.unwrap_or_default();
        ensure!(zone == wanted, "it is {zone:?}: {:?}", codes(host)?);
        Ok(())
    })
}

/// Events of these codes, the oldest first: code and reason.
fn events(host: &Host) -> Result<Vec<(String, String)>> {
    let out = host.meshctl(&["events", "--since", "1h", "-o", "json"])?.ok()?.stdout;
    let events: Vec<Value> = serde_json::from_str(&out)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = events.iter().map(|event| (text(&event["code"]), text(&event["reason"])));
    Ok(all.filter(|(code, _)| code.starts_with("config_")).collect())
}

/// Whether packets to `address` go into the tunnel.
fn is_carried(host: &Host, address: &str) -> Result<bool> {
    Ok(host.run(&["ip", "route", "get", address])?.contains("mesh0"))
}

fn wait_carried(host: &Host, address: &str, carried: bool, limit: Duration) -> Result<()> {
    let what = format!("{}: {address} carried is {carried}", host.name());
    wait_for(&what, limit, || {
        ensure!(is_carried(host, address)? == carried, "it is not");
        Ok(())
    })
}

/// Bytes that the other end has acknowledged of all connections to port 5201.
fn acknowledged(pod: &Pod) -> Result<u64> {
    let text = pod.run(&["ss", "-tinH", "dport", "=", ":5201"])?;
    let all = text.split_whitespace().filter_map(|word| word.strip_prefix("bytes_acked:"));
    all.map(|number| number.parse::<u64>().context("bytes_acked")).sum()
}

#[test]
fn a_change_that_cuts_a_connection_goes_back_by_itself() {
    scenario("cut", |world| {
        let mesh = Mesh::form(world, &[HostPlan::node("a"), HostPlan::node("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let (here, there) = (a.pod(&PodPlan::plain("here"))?, b.pod(&PodPlan::plain("there"))?);
        wait_for("pods reach each other", pace(10), || here.ping(there.address(), "").map(drop))?;
        // One connection with a little in it all the time, as a session has.
        let server = there.start(&["timeout", "240", "iperf3", "-s", "-1"])?;
        wait_for("iperf3 listens", pace(10), || there.sh("ss -tln | grep -q :5201"))?;
        let seconds = pace(45).as_secs().to_string();
        let client = ["iperf3", "-c", there.address(), "-b", "200K", "-l", "1K", "-t", &seconds];
        let session = here.start(&client)?;
        wait_for("the session goes", pace(10), || {
            let bytes = acknowledged(&here)?;
            ensure!(bytes > 20_000, "{bytes} bytes");
            Ok(())
        })?;

        a.configure("[network]\npod_prefixes = []\n")?;
        let asked = Instant::now();
        let ran = a.meshctl(&["reload", "--confirm", TRIAL])?.ok()?;
        ensure!(ran.stdout.contains("network.pod_prefixes: \"auto\" -> []"), "{}", ran.stdout);
        ensure!(ran.stdout.contains("`meshctl confirm` keeps it"), "{}", ran.stdout);
        println!("cut: the reload was answered within {:.0?}", ran.took);
        wait_carried(b, here.address(), false, pace(5))?;
        let status = a.status()?;
        ensure!(status.trial_seconds_left.is_some_and(|left| left <= 10), "{status:?}");
        ensure!(has(a, "config_on_trial")?, "{:?}", codes(a)?);
        let cut = Instant::now();
        let (mut last, mut since) = (acknowledged(&here)?, Instant::now());
        wait_for("the session stands still", pace(5), || {
            let now = acknowledged(&here)?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            ensure!(since.elapsed() > Duration::from_secs(1), "{now} bytes");
            Ok(())
        })?;

        wait_carried(b, here.address(), true, OVER + pace(5))?;
        ensure!(asked.elapsed() >= Duration::from_secs(9), "back after {:?}", asked.elapsed());
        wait_for("the session goes on", pace(20), || {
            let now = acknowledged(&here)?;
            ensure!(now > last + 10_000, "{now} bytes, and it was {last}");
            Ok(())
        })?;
        println!("cut: the session went on {:.1?} after it was cut", cut.elapsed());
        let ended = session.finish(pace(60))?.ok()?;
        ensure!(ended.stdout.contains("receiver"), "{}", ended.stdout);
        drop(server);

        ensure!(has(a, "config_reverted")?, "{:?}", codes(a)?);
        let late = a.meshctl(&["confirm"])?.exits(1)?;
        ensure!(late.stderr.contains("nobody confirmed it in time"), "{}", late.stderr);
        let told = events(a)?;
        for wanted in [("config_on_trial", ""), ("config_reverted", "not_confirmed")] {
            ensure!(told.iter().any(|(c, r)| (c.as_str(), r.as_str()) == wanted), "{told:?}");
        }
        // The files are the same, so a restart changes nothing; who wants them says so.
        a.kill_daemon()?;
        a.start_daemon()?;
        ensure!(has(a, "config_reverted")?, "{:?}", codes(a)?);
        here.ping(there.address(), "")?;
        let taken = a.meshctl(&["reload"])?.ok()?;
        ensure!(taken.stdout.contains("network.pod_prefixes"), "{}", taken.stdout);
        wait_carried(b, here.address(), false, pace(5))?;
        ensure!(!has(a, "config_reverted")?, "{:?}", codes(a)?);
        a.configure("")?;
        a.meshctl(&["reload"])?.ok()?;
        wait_carried(b, here.address(), true, pace(5))
    });
}

const PORT: &str = "port = 51900\n";

#[test]
fn a_trial_survives_a_daemon_that_does_not() {
    scenario("trial-restart", |world| {
        let mesh = Mesh::form(world, &["a", "b"].map(HostPlan::vm))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let of_b = b.mesh_addresses()?.0;
        let pid = a.with_daemon(|daemon| Ok(daemon.pid()))?;
        let open = |host: &Host| -> Result<usize> {
            Ok(host.sh(&format!("ls /proc/{pid}/fd | wc -l"))?.trim().parse()?)
        };
        let before = open(a)?;

        // A key that needs a restart: tried by one, and back by another, without anybody's help.
        a.configure(PORT)?;
        let ran = a.meshctl(&["reload", "--confirm", TRIAL, "--restart"])?.ok()?;
        ensure!(ran.stdout.contains("wireguard.port: 51820 -> 51900"), "{}", ran.stdout);
        ensure!(ran.stdout.contains("beginning anew"), "{}", ran.stdout);
        wait_port(a, 51900, pace(5))?;
        a.wait_up(1, pace(10))?;
        ensure!(has(a, "config_on_trial")?, "{:?}", codes(a)?);
        wait_port(a, 51820, OVER + pace(5))?;
        wait_for("the tunnel works again", pace(10), || a.ping(&of_b, "").map(drop))?;
        wait_for("the line is there", pace(5), || {
            ensure!(has(a, "config_reverted")?, "{:?}", codes(a)?);
            Ok(())
        })?;
        ensure!(a.with_daemon(|daemon| Ok(daemon.pid()))? == pid, "it is another process");
        let after = open(a)?;
        ensure!(after <= before + 3, "{before} files were open, and {after} are");

        // Killed while on trial: it goes on being tried, and ends in time.
        a.meshctl(&["reload", "--confirm", TRIAL, "--restart"])?.ok()?;
        wait_port(a, 51900, pace(5))?;
        a.kill_daemon()?;
        a.start_daemon()?;
        ensure!(a.status()?.trial_seconds_left.is_some(), "{:?}", codes(a)?);
        ensure!(port(a)? == 51900, "it is {}", port(a)?);
        wait_port(a, 51820, OVER + pace(5))?;

        // Killed, and started when the time is over.
        a.meshctl(&["reload", "--confirm", TRIAL, "--restart"])?.ok()?;
        wait_port(a, 51900, pace(5))?;
        let left = a.status()?.trial_seconds_left.context("not on trial")?;
        a.kill_daemon()?;
        let dead = Instant::now();
        wait_for("the trial's time is over", OVER + pace(5), || {
            let over = dead.elapsed() > Duration::from_secs(u64::from(left) + 1);
            ensure!(over, "{left} s were left {:.1?} ago", dead.elapsed());
            Ok(())
        })?;
        a.start_daemon()?;
        wait_port(a, 51820, pace(5))?;
        let reverted = ("config_reverted".to_owned(), "not_confirmed".to_owned());
        ensure!(events(a)?.contains(&reverted), "{:?}", events(a)?);

        // A correction is taken by a restart, with no trial left.
        a.configure("port = 51910\n")?;
        a.kill_daemon()?;
        a.start_daemon()?;
        wait_port(a, 51910, pace(5))?;
        ensure!(!has(a, "config_reverted")?, "{:?}", codes(a)?);
        a.run(&["test", "!", "-e", "/var/lib/meshd/trial"]).map(drop)
    });
}

#[test]
fn files_with_which_nothing_starts_are_not_run() {
    scenario("trial-broken", |world| {
        let mesh = Mesh::form(world, &["a", "b"].map(HostPlan::vm))?;
        let a = &mesh.hosts[0];
        let why = || -> Result<String> {
            let lines = a.status()?.health;
            let line = lines.into_iter().find(|line| line.code == "config_reverted");
            Ok(line.context("no line")?.message)
        };
        // It cannot bind: the former one is back at once, long before the time is over.
        a.configure("[gossip]\nlisten = \"203.0.113.9:51800\"\n")?;
        a.meshctl(&["reload", "--confirm", "1h", "--restart"])?.ok()?;
        wait_for("what ran before runs", pace(10), || {
            let why = why()?;
            ensure!(why.contains("could not start") && why.contains("203.0.113.9"), "{why}");
            Ok(())
        })?;
        a.wait_up(1, pace(10))?;

        // Broken while on trial.
        a.configure("[node]\nzone = \"x\"\n")?;
        a.meshctl(&["reload", "--confirm", "1h"])?.ok()?;
        wait_zone(a, "x", pace(5))?;
        a.configure("[node]\nzone = \n")?;
        let refused = a.meshctl(&["reload", "--confirm", "1h"])?.exits(1)?;
        ensure!(refused.stderr.contains("not valid TOML"), "{}", refused.stderr);
        a.kill_daemon()?;
        a.start_daemon()?;
        ensure!(why()?.contains("cannot be read"), "{}", why()?);
        wait_zone(a, "", pace(5))?;
        // And stays so.
        a.kill_daemon()?;
        a.start_daemon()?;
        ensure!(why()?.contains("cannot be read"), "{}", why()?);

        // A leave forgets all of it.
        a.configure("")?;
        a.meshctl(&["leave", "--yes"])?.ok()?;
        a.run(&["test", "!", "-e", "/var/lib/meshd/trial"]).map(drop)
    });
}

#[test]
fn what_was_confirmed_stays() {
    scenario("trial-kept", |world| {
        let mesh = Mesh::form(world, &["a", "b"].map(HostPlan::vm))?;
        let a = &mesh.hosts[0];
        let set = |zone: &str| a.configure(&format!("[node]\nzone = \"{zone}\"\n"));
        let nothing = a.meshctl(&["confirm"])?.exits(1)?;
        ensure!(nothing.stderr.contains("no configuration is on trial"), "{}", nothing.stderr);

        set("one")?;
        a.meshctl(&["reload", "--confirm", TRIAL])?.ok()?;
        wait_zone(a, "one", pace(5))?;
        // What comes during a trial is on trial too, and the last confirmed stays what comes back.
        set("two")?;
        a.reload_daemon()?;
        wait_zone(a, "two", pace(5))?;
        ensure!(a.status()?.trial_seconds_left.is_some(), "{:?}", codes(a)?);
        set("three")?;
        a.meshctl(&["reload", "--confirm", TRIAL])?.ok()?;
        let left = a.status()?.trial_seconds_left.context("not on trial")?;
        ensure!(left >= 9, "{left} s left of a trial that has just begun");
        wait_zone(a, "three", pace(5))?;
        wait_zone(a, "", OVER + pace(5))?;

        set("four")?;
        let end = Instant::now() + OVER;
        a.meshctl(&["reload", "--confirm", TRIAL])?.ok()?;
        a.meshctl(&["confirm"])?.ok()?;
        ensure!(a.status()?.trial_seconds_left.is_none(), "{:?}", codes(a)?);
        a.run(&["test", "!", "-e", "/var/lib/meshd/trial"])?;
        wait_zone(a, "four", pace(5))?;
        // Beyond the end that the trial would have had.
        wait_for("its time is over", OVER + pace(5), || {
            ensure!(Instant::now() > end + Duration::from_secs(2), "not yet");
            Ok(())
        })?;
        wait_zone(a, "four", Duration::ZERO)?;
        let codes: Vec<String> = events(a)?.into_iter().map(|(code, _)| code).collect();
        ensure!(codes.last().is_some_and(|code| code == "config_confirmed"), "{codes:?}");
        a.kill_daemon()?;
        a.start_daemon()?;
        wait_zone(a, "four", pace(5))?;

        // Cleanup takes a trial away with the rest.
        set("five")?;
        a.meshctl(&["reload", "--confirm", TRIAL])?.ok()?;
        a.stop_daemon()?;
        a.run(&["test", "-e", "/var/lib/meshd/trial"])?;
        a.run(&[&a.program_path("meshd")?, "cleanup"])?;
        a.run(&["test", "!", "-e", "/var/lib/meshd/trial"]).map(drop)
    });
}
