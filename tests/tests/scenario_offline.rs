//! Identities that are issued off-line and copied to their hosts, as Ansible or an image would.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Flow, Host, HostPlan, Mesh, Place, World, pace, scenario, wait_for};
use serde_json::Value;

const FILES: [&str; 5] = ["identity.key", "root.crt", "bundle", "seeds", "node.crt"];

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&host.meshctl(arguments)?.ok()?.stdout)?)
}

/// `cert issue` on the signer; what it printed.
fn issue(signer: &Host, name: &str, more: &[&str]) -> Result<Value> {
    let out = format!("/root/{name}");
    let mut arguments = vec!["cert", "issue", "--out", &out, "-o", "json"];
    arguments.extend(more);
    json(signer, &arguments)
}

/// Copies one file of an issued directory to where a host looks for it.
fn copy_file(signer: &Host, from: &str, file: &str, host: &Host) -> Result<()> {
    let content = signer.run(&["cat", &format!("/root/{from}/{file}")])?;
    let place = format!("/etc/meshd/identity/{file}");
    // Elsewhere first: what is copied is not half there.
    let script = format!(
        "umask 077; mkdir -p /etc/meshd/identity; cat >{place}.new; chmod 600 {place}.new; mv {place}.new {place}"
    );
    host.try_run_with(&["sh", "-ec", &script], &content)?.ok().map(drop)
}

fn copy(signer: &Host, from: &str, host: &Host) -> Result<()> {
    FILES.iter().try_for_each(|file| copy_file(signer, from, file, host))
}

fn has_health(host: &Host, code: &str) -> Result<String> {
    let health = host.status()?.health;
    let found = health.iter().find(|line| line.code == code);
    Ok(found.with_context(|| format!("no {code} in {health:?}"))?.message.clone())
}

/// A signer, and three hosts whose daemons are not started.
fn unstarted(world: &World) -> Result<Mesh> {
    let plans = ["a", "b", "c", "d"].map(HostPlan::vm);
    let mesh = Mesh::unstarted(world, &plans)?;
    mesh.hosts[0].start_daemon()?;
    mesh.hosts[0].init_mesh()?;
    // Its own home: nothing of this is left on the machine.
    mesh.hosts[0].sh("mount -t tmpfs tmpfs /root")?;
    Ok(mesh)
}

fn all_up(mesh: &Mesh) -> Result<()> {
    for host in &mesh.hosts {
        host.wait_state("running", pace(15))?;
    }
    mesh.wait_handshaken(pace(30))?;
    for from in &mesh.hosts {
        for to in &mesh.hosts {
            let (v4, v6) = to.mesh_addresses()?;
            from.ping(&v4, "")?;
            from.ping(&v6, "")?;
        }
    }
    Ok(())
}

#[test]
fn hosts_join_by_files_before_their_start_and_while_they_wait() {
    scenario("offline", |world| {
        let mesh = unstarted(world)?;
        let [a, b, c, d] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        let issued = issue(a, "b", &["--name", "b", "--prefix", "10.50.0.0/16", "--group", "db"])?;
        ensure!(issued["node"] == "b" && issued["grants"][0] == "10.50.0.0/16", "{issued}");
        issue(a, "c", &["--name", "c", "--ttl", "365d"])?;
        issue(a, "d", &["--name", "d"])?;
        let modes = a.run(&["stat", "-c", "%a", "/root/b", "/root/b/identity.key"])?;
        ensure!(modes == "700\n600\n", "{modes}");
        // What others have, and what is there already.
        let taken =
            a.meshctl(&["cert", "issue", "--name", "b", "--out", "/root/x"])?.exits(1)?.stderr;
        ensure!(taken.contains("the name b belongs to"), "{taken}");
        let taken =
            ["cert", "issue", "--name", "x", "--prefix", "10.50.1.0/24", "--out", "/root/x"];
        let taken = a.meshctl(&taken)?.exits(1)?.stderr;
        ensure!(taken.contains("overlaps"), "{taken}");
        ensure!(
            a.try_run(&["test", "-e", "/root/x"])?.ok().is_err(),
            "a refusal leaves a directory"
        );
        let full =
            a.meshctl(&["cert", "issue", "--name", "x", "--out", "/root/b"])?.exits(1)?.stderr;
        ensure!(full.contains("not empty"), "{full}");

        // Before the start.
        b.configure("[network]\npod_prefixes = [\"10.50.0.0/16\"]")?;
        copy(a, "b", b)?;
        b.start_daemon()?;
        // While it waits, one after the other, the certificate first.
        c.start_daemon()?;
        for file in ["node.crt", "identity.key", "root.crt", "seeds"] {
            copy_file(a, "c", file, c)?;
        }
        wait_for("c says what is missing", pace(10), || {
            let message = has_health(c, "identity_incomplete")?;
            ensure!(message.contains("/etc/meshd/identity/bundle: it is missing"), "{message}");
            ensure!(c.status()?.state == "waiting", "it does not wait");
            Ok(())
        })?;
        copy_file(a, "c", "bundle", c)?;
        // A key that others can read is nobody's; a token file does not come first.
        d.configure("[gossip]\njoin_token_file = \"/etc/meshd/none\"")?;
        copy(a, "d", d)?;
        d.sh("chmod 644 /etc/meshd/identity/identity.key")?;
        d.start_daemon()?;
        wait_for("d says what is wrong", pace(10), || {
            let message = has_health(d, "identity_refused")?;
            ensure!(message.contains("its mode is 0644"), "{message}");
            Ok(())
        })?;
        let said = d.meshctl(&["status"])?.ok()?.stdout;
        ensure!(said.contains("chmod 600 /etc/meshd/identity/identity.key"), "{said}");
        d.sh("chmod 600 /etc/meshd/identity/identity.key")?;
        all_up(&mesh)?;

        let peer = a.peer("b")?;
        ensure!(peer.prefixes == ["10.50.0.0/16"], "{peer:?}");
        // What is shown of it, here and from the file.
        let own = json(b, &["cert", "show", "-o", "json"])?;
        ensure!(own[0]["kind"] == "node" && own[1]["kind"] == "intermediate", "{own}");
        ensure!(own[2]["kind"] == "root" && own[0]["groups"][0] == "db", "{own}");
        let file = json(a, &["cert", "show", "/root/b/node.crt", "-o", "json"])?;
        ensure!(file[0]["fingerprint"] == own[0]["fingerprint"], "{file}");
        Ok(())
    });
}

#[test]
fn copying_again_changes_nothing_a_later_certificate_is_taken_over_and_a_leave_is_final() {
    scenario("offline-later", |world| {
        let mesh = unstarted(world)?;
        let [a, b, c, _] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        for host in &mesh.hosts[1..] {
            issue(a, host.name(), &["--name", host.name()])?;
            copy(a, host.name(), host)?;
            host.start_daemon()?;
        }
        all_up(&mesh)?;
        let end = |host: &Host| {
            Ok::<_, anyhow::Error>(
                json(host, &["cert", "show", "-o", "json"])?[0]["not_after"].clone(),
            )
        };
        let (first, id) = (end(b)?, b.status()?.id);

        // Under way: packets, a copy of the same, the next certificate, and the older one again.
        let (of_b, of_c) = (b.mesh_addresses()?.0, c.mesh_addresses()?.0);
        let flow = Flow::start((b, &of_b), (c, &of_c), 200, u32::try_from(pace(10).as_secs())?)?;
        copy(a, "b", b)?;
        let next = issue(a, "b-next", &["--certificate", "/root/b/node.crt", "--ttl", "90d"])?;
        let files = next["files"].as_array().context("no files")?;
        ensure!(files.iter().all(|file| file != "identity.key"), "{files:?}");
        ensure!(next["not_after"] != first && next["id"].as_str() == id.as_deref(), "{next}");
        for file in &FILES[1..] {
            copy_file(a, "b-next", file, b)?;
        }
        wait_for("b has its next certificate", pace(10), || {
            ensure!(end(b)? == next["not_after"], "{} is still there", end(b)?);
            Ok(())
        })?;
        copy(a, "b", b)?;
        wait_for("c sees b's next certificate", pace(10), || {
            let peer = json(c, &["peers", "show", "b", "-o", "json"])?;
            ensure!(peer["certificate_not_after"] == next["not_after"], "{peer}");
            Ok(())
        })?;
        flow.report()?.nothing_lost("the flow of a host whose certificate was copied to it")?;
        // By now the older one has been looked at, and after a restart it is again.
        b.stop_daemon()?;
        b.start_daemon()?;
        b.wait_up(3, pace(20))?;
        ensure!(end(b)? == next["not_after"], "the older one came back");
        ensure!(b.status()?.health.iter().all(|l| !l.code.starts_with("identity")), "it complains");

        // Somebody else's files are not for a member.
        issue(a, "e", &["--name", "e"])?;
        copy(a, "e", b)?;
        wait_for("b says whose files these are", pace(10), || has_health(b, "identity_ignored"))?;
        ensure!(b.status()?.id == id, "b is somebody else");
        copy(a, "b", b)?;

        // The same files after a leave, also at the next start.
        b.meshctl(&["leave"])?.ok()?;
        wait_for("b says that this identity has left", pace(10), || {
            has_health(b, "identity_left")
        })?;
        copy(a, "b", b)?;
        b.reload_daemon()?;
        b.stop_daemon()?;
        b.start_daemon()?;
        has_health(b, "identity_left")?;
        ensure!(b.status()?.state == "waiting", "it came back");
        // A new one for the same name is welcome.
        wait_for("the name is free", pace(10), || issue(a, "b2", &["--name", "b"]))?;
        copy(a, "b2", b)?;
        all_up(&mesh)?;
        ensure!(b.status()?.id != id, "it has its old identity");
        Ok(())
    });
}

#[test]
fn files_that_are_older_than_the_mesh_do_and_those_of_a_revoked_name_do_not() {
    scenario("offline-older", |world| {
        let mesh = unstarted(world)?;
        let [a, b, c, d] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        for host in [b, c, d] {
            issue(a, host.name(), &["--name", host.name(), "--ttl", "365d"])?;
            copy(a, host.name(), host)?;
        }
        b.start_daemon()?;
        b.wait_up(1, pace(20))?;
        // A signer that the bundle among c's files does not know.
        a.meshctl(&["signer", "add", "b"])?.ok()?;
        c.start_daemon()?;
        c.wait_up(2, pace(20))?;
        wait_for("c knows both signers", pace(20), || {
            let signers = json(c, &["signer", "list", "-o", "json"])?;
            let names: Vec<_> =
                signers.as_array().context("none")?.iter().map(|s| &s["name"]).collect();
            ensure!(names.len() == 2, "{names:?}");
            Ok(())
        })?;
        // Stolen, or never used: nobody has seen d yet.
        a.meshctl(&["node", "revoke", "d", "--yes"])?.ok()?;
        d.start_daemon()?;
        wait_for("d learns that it is none", pace(60), || has_health(d, "revoked"))?;
        for host in [a, b, c] {
            ensure!(host.peers()?.iter().all(|peer| peer.name != "d"), "{} has d", host.name());
            ensure!(host.wg_peers()?.len() == 2, "{} has another WireGuard peer", host.name());
        }
        let refused = ["cert", "issue", "--certificate", "/root/d/node.crt", "--out", "/root/d2"];
        let refused = a.meshctl(&refused)?.exits(1)?.stderr;
        ensure!(refused.contains("was ended"), "{refused}");
        issue(a, "d3", &["--name", "d"]).map(drop)
    });
}
