//! What happened, told with who did it and why; and the powers that the daemon does without.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, Running, pace, scenario, wait_for};
use serde_json::Value;

fn events(host: &Host, more: &[&str]) -> Result<Vec<Value>> {
    let mut arguments = vec!["events", "-o", "json"];
    arguments.extend(more);
    Ok(serde_json::from_str(&host.meshctl(&arguments)?.ok()?.stdout)?)
}

/// The newest event with this code that is about `name`.
fn event(host: &Host, code: &str, name: &str) -> Result<Value> {
    let all = events(host, &["--code", code])?;
    ensure!(all.iter().all(|event| event["code"] == code || event["reason"] == code), "{all:?}");
    let found = all.iter().rfind(|event| event["name"] == name);
    found.cloned().with_context(|| format!("{} has no {code} of {name}: {all:?}", host.name()))
}

fn id(host: &Host) -> Result<String> {
    host.status()?.id.context("no id")
}

/// Text of a field, or of one of its details.
fn text<'a>(event: &'a Value, field: &str) -> Result<&'a str> {
    let value = &event[field];
    let value = if value.is_null() { &event["details"][field] } else { value };
    value.as_str().with_context(|| format!("no {field} in {event}"))
}

/// Whether a request came from an address of `host`.
fn is_from(event: &Value, host: &Host) -> Result<bool> {
    let remote = text(event, "remote")?.parse::<SocketAddr>()?.ip().to_string();
    Ok(remote == host.address() || remote == host.address6())
}

#[test]
fn what_happens_is_told_with_who_and_why() {
    scenario("told", |world| {
        let mesh = Mesh::waiting(world, &["a", "b", "c", "d"].map(HostPlan::node))?;
        let [a, b, c, d] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        let user = format!("user:{}", nix::unistd::getuid());
        a.init_mesh()?;
        let created = event(a, "mesh_created", "a")?;
        ensure!(created["actor"] == user && !text(&created, "pid")?.is_empty(), "{created}");

        // An admission: by which token, from where, over what.
        let token = a.token_for(b)?;
        b.join(&token)?;
        let listed: Value =
            serde_json::from_str(&a.meshctl(&["token", "list", "-o", "json"])?.ok()?.stdout)?;
        let token_id = listed[0]["id"].as_str().context("no id")?.to_owned();
        let made = event(a, "token_created", "b")?;
        ensure!(made["actor"] == user && made["details"]["token"] == token_id, "{made}");
        let admitted = event(a, "node_admitted", "b")?;
        ensure!(admitted["actor"] == format!("token:{token_id}"), "{admitted}");
        ensure!(admitted["node"] == id(b)?, "{admitted}");
        ensure!(text(&admitted, "serial")?.len() == 32, "{admitted}");
        ensure!(is_from(&admitted, b)?, "{admitted}");
        for prefix in b.pod_prefixes() {
            ensure!(text(&admitted, "prefixes")?.contains(&prefix), "{admitted}");
        }
        let joined = event(b, "joined", "b")?;
        ensure!(joined["actor"] == user, "{joined}");
        ensure!(text(&joined, "serial")? == text(&admitted, "serial")?, "{joined}");

        // A refusal, told on both sides; again and again is not said again.
        for _ in 0..3 {
            let refused = c.meshctl_with(&["join", "-"], &token)?.exits(1)?.stderr;
            ensure!(refused.contains("has admitted 1 already"), "{refused}");
        }
        let refused = events(a, &["--code", "token_used"])?;
        let [refused] = &refused[..] else { anyhow::bail!("three times: {refused:?}") };
        ensure!(refused["code"] == "enrolment_refused", "{refused}");
        ensure!(refused["actor"] == format!("token:{token_id}"), "{refused}");
        ensure!(is_from(refused, c)?, "{refused}");
        let failed = events(c, &["--code", "control_refused"])?;
        ensure!(failed[0]["actor"] == user && failed[0]["reason"] == "token_used", "{failed:?}");
        c.join(&a.token_for(c)?)?;
        d.join(&a.token_for(d)?)?;

        // A renewal: who asked, who gave.
        wait_for("the signer renews again", pace(45), || {
            b.meshctl(&["cert", "renew"])?.ok()?;
            event(a, "renewal_granted", "b").map(drop)
        })?;
        let granted = event(a, "renewal_granted", "b")?;
        ensure!(granted["actor"] == format!("node:{}", id(b)?), "{granted}");
        let renewed = event(b, "certificate_renewed", "b")?;
        ensure!(renewed["actor"] == format!("node:{}", id(a)?), "{renewed}");
        ensure!(text(&renewed, "serial")? == text(&granted, "serial")?, "{renewed} {granted}");
        ensure!(text(&renewed, "serial")? != text(&admitted, "serial")?, "{renewed}");
        let asked = events(b, &["--code", "renewal_requested"])?;
        ensure!(asked.iter().all(|event| event["actor"] == user), "{asked:?}");

        // A revocation: who did it here, and by whose signature others heard of it.
        let mut command = c.program("meshctl")?;
        command.args(["events", "--follow", "--code", "member_revoked", "-o", "json"]);
        let mut following = Running::start(command, "")?;
        let of_b = id(b)?;
        let why = ["node", "revoke", "b", "--yes", "--reason", "it was\u{1b}[2J stolen"];
        a.meshctl(&why)?.ok()?;
        let revoked = event(a, "node_revoked", "b")?;
        ensure!(revoked["actor"] == user && revoked["node"] == of_b, "{revoked}");
        ensure!(text(&revoked, "reason")?.ends_with("[2J stolen"), "{revoked}");
        ensure!(!text(&revoked, "reason")?.contains('\u{1b}'), "{revoked}");
        let followed = wait_for("who follows is told", pace(5), || {
            let text = following.output_so_far()?;
            serde_json::from_str::<Value>(text.lines().next().context("nothing yet")?)
                .map_err(Into::into)
        })?;
        for heard in [&followed, &event(a, "member_revoked", "b")?] {
            ensure!(heard["actor"] == format!("node:{}", id(a)?), "{heard}");
            ensure!(heard["reason"] == "revoked" && heard["node"] == of_b, "{heard}");
        }
        wait_for("b hears of itself", pace(5), || {
            let heard = event(b, "revoked", "b")?;
            ensure!(heard["severity"] == "error" && heard["reason"] == "revoked", "{heard}");
            Ok(())
        })?;

        // A configuration that is wrong, and a host that leaves.
        d.configure("nonsense = 1")?;
        d.reload_daemon()?;
        wait_for("it is refused", pace(5), || {
            let refused = events(d, &["--code", "config_refused"])?;
            ensure!(!refused.is_empty(), "not yet");
            Ok(())
        })?;
        d.meshctl(&["leave", "--yes"])?.ok()?;
        ensure!(event(d, "left", "d")?["actor"] == user, "it says not by whom it left");
        wait_for("others see that it left", pace(5), || event(a, "member_left", "d").map(drop))?;

        let table = a.meshctl(&["events", "--limit", "5"])?.ok()?.stdout;
        ensure!(table.lines().count() == 6 && table.starts_with("TIME (UTC)"), "{table}");
        println!("told: {} events on the signer", events(a, &["--limit", "9999"])?.len());
        Ok(())
    });
}

/// What the kernel says of a process, as a number.
fn power(process: &Path, field: &str) -> Result<u64> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|rest| rest.strip_prefix(':')).context("no such field")?;
    Ok(u64::from_str_radix(value.trim(), 16)?)
}

/// The daemon's process and what it has started that still runs.
fn processes(host: &Host) -> Result<Vec<std::path::PathBuf>> {
    let daemon = host.with_daemon(|daemon| Ok(format!("/proc/{}", daemon.pid())))?;
    let space = fs::read_link(format!("{daemon}/ns/net"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // Processes end while they are looked at.
        let here = fs::read_link(path.join("ns/net")).is_ok_and(|of| of == space);
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if here && matches!(name.trim(), "meshd" | "wireguard-go") {
            found.push(path);
        }
    }
    ensure!(found.contains(&daemon.into()), "the daemon is not among {found:?}");
    Ok(found)
}

#[test]
fn the_daemon_keeps_one_capability_and_does_its_work_with_it() {
    const NET_ADMIN: u64 = 1 << 12;
    scenario("power", |world| {
        let ours = power(Path::new("/proc/self"), "CapEff")?;
        ensure!(
            ours & !NET_ADMIN != 0,
            "this test has no privilege that could be given up: {ours:x}"
        );
        let mesh = Mesh::form(world, &["a", "b"].map(HostPlan::node))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        for host in [a, b] {
            let all = processes(host)?;
            println!("power: {} processes of {}", all.len(), host.name());
            for process in &all {
                for set in ["CapEff", "CapPrm", "CapBnd"] {
                    let held = power(process, set)?;
                    ensure!(held == NET_ADMIN, "{}: {set} is {held:x}", process.display());
                }
                for set in ["CapInh", "CapAmb"] {
                    ensure!(power(process, set)? == 0, "{}: {set}", process.display());
                }
                ensure!(power(process, "NoNewPrivs")? == 1, "{}", process.display());
                // Every thread of it: each has capabilities of its own.
                for thread in fs::read_dir(process.join("task"))? {
                    let held = power(&thread?.path(), "CapEff")?;
                    ensure!(held == NET_ADMIN, "a thread of {}: {held:x}", process.display());
                }
            }
        }
        a.ping(&b.mesh_addresses()?.0, "")?;
        // It mends what others break, and takes everything away again.
        a.run(&["nft", "delete", "table", "inet", "meshd"])?;
        a.run(&["ip", "link", "set", "mesh0", "mtu", "1300"])?;
        wait_for("it is mended", pace(10), || {
            a.run(&["nft", "list", "table", "inet", "meshd"])?;
            let link = a.run(&["ip", "link", "show", "mesh0"])?;
            ensure!(!link.contains("mtu 1300"), "{link}");
            Ok(())
        })?;
        a.meshctl(&["leave", "--yes"])?.ok()?;
        let links = a.run(&["ip", "link"])?;
        ensure!(!links.contains("mesh0"), "{links}");
        Ok(())
    });
}
