//! More than one signer: added, lost, retired, stolen.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Flow, Host, HostPlan, Mesh, Place, pace, scenario, wait_for};
use serde_json::Value;

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&host.meshctl(arguments)?.ok()?.stdout)?)
}

/// Name and state of each signer, as `host` knows them.
fn signers(host: &Host) -> Result<Vec<String>> {
    let all = json(host, &["signer", "list", "-o", "json"])?;
    let mut all: Vec<String> = all
        .as_array()
        .context("no array")?
        .iter()
        .map(|one| {
            format!(
                "{} {}",
                one["name"].as_str().unwrap_or(""),
                one["state"].as_str().unwrap_or("")
            )
        })
        .collect();
    all.sort();
    Ok(all)
}

fn is_signer(host: &Host) -> Result<bool> {
    Ok(json(host, &["status", "-o", "json"])?["signer"] == true)
}

fn add(root: &Host, node: &Host) -> Result<()> {
    root.meshctl(&["signer", "add", node.name()])?.ok()?;
    wait_for(&format!("{} is a signer", node.name()), pace(10), || {
        ensure!(is_signer(node)?, "not yet");
        Ok(())
    })
}

fn knows_signers(hosts: &[&Host], wanted: &[&str]) -> Result<()> {
    for host in hosts {
        wait_for(&format!("{} knows the signers", host.name()), pace(20), || {
            let known = signers(host)?;
            ensure!(known == wanted, "{known:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_second_signer_admits_renews_and_revokes_when_the_first_is_lost() {
    scenario("second", |world| {
        let mesh = Mesh::waiting(world, &["a", "b", "c", "d"].map(HostPlan::vm))?;
        let [a, b, c, d] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        a.init_mesh()?;
        for host in [b, c] {
            host.join(&a.token_for(host)?)?;
        }
        // Only where the root's key is, and each once.
        let refused = b.meshctl(&["signer", "add", "c"])?.exits(1)?.stderr;
        ensure!(refused.contains("root key is not on this host"), "{refused}");
        add(a, b)?;
        a.meshctl(&["signer", "add", "b"])?.exits(1)?;
        a.meshctl(&["signer", "add", "nobody"])?.exits(1)?;
        knows_signers(&[a, b, c], &["a active", "b active"])?;

        a.stop_daemon()?;
        // It survives a restart, and does all that the first did.
        b.stop_daemon()?;
        b.start_daemon()?;
        ensure!(is_signer(b)?, "it forgot after a restart");
        c.meshctl(&["cert", "renew"])?.ok()?;
        let token =
            b.meshctl(&["token", "create", "--node", "d", "--seed", &b.address()])?.ok()?.stdout;
        d.join(token.trim())?;
        let (of_c, of_d) = (c.mesh_addresses()?.0, d.mesh_addresses()?.0);
        wait_for("c reaches d", pace(10), || c.ping(&of_d, "").map(drop))?;
        b.meshctl(&["node", "revoke", "d", "--yes"])?.ok()?;
        wait_for("c does not any more", pace(10), || {
            ensure!(c.ping(&of_d, "").is_err(), "it still does");
            Ok(())
        })?;
        b.ping(&of_c, "").map(drop)
    });
}

#[test]
fn a_signer_that_retires_cuts_nothing_and_ends_when_nobody_needs_it() {
    scenario("retire", |world| {
        let mesh = Mesh::waiting(world, &["a", "b", "c", "d", "bad"].map(HostPlan::vm))?;
        let [a, b, c, d, bad] =
            [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3], &mesh.hosts[4]];
        a.init_mesh()?;
        b.join(&a.token_for(b)?)?;
        let refused = a.meshctl(&["signer", "revoke", "a", "--yes"])?.exits(1)?.stderr;
        ensure!(refused.contains("the only one"), "{refused}");
        add(a, b)?;
        // The others are b's.
        for host in [c, d, bad] {
            let token = b.meshctl(&["token", "create", "--node", host.name()])?.ok()?.stdout;
            host.join(token.trim())?;
        }
        mesh.wait_handshaken(pace(20))?;
        b.meshctl(&["node", "revoke", "bad", "--yes"])?.ok()?;
        let (of_c, of_d) = (c.mesh_addresses()?.0, d.mesh_addresses()?.0);
        let seconds = u32::try_from(pace(20).as_secs())?;
        let flow = Flow::start((c, &of_c), (d, &of_d), 500, seconds)?;
        let token = b.meshctl(&["token", "create", "--node", "late"])?.ok()?.stdout;
        a.meshctl(&["signer", "revoke", "b", "--yes"])?.ok()?;
        knows_signers(&[a, b, c, d], &["a active"])?;
        ensure!(!is_signer(b)?, "it takes itself for a signer");
        ensure!(b.meshctl(&["token", "create"])?.code == Some(1), "it makes tokens");
        // What it revoked stays revoked; its tokens are worth nothing.
        let nodes = json(c, &["node", "list", "-o", "json"])?;
        let revoked =
            nodes.as_array().context("no array")?.iter().filter(|n| n["state"] == "revoked");
        ensure!(revoked.count() == 1, "{nodes}");
        bad.meshctl(&["leave", "--yes"])?.ok()?;
        ensure!(!bad.meshctl_with(&["join", "-", "--name", "late"], &token)?.succeeded(), "joined");
        flow.report()?.nothing_lost("a flow between nodes of the signer that retired")?;
        // It can become one again.
        add(a, b)?;
        knows_signers(&[a, b, c, d], &["a active", "b active"])
    });
}

#[test]
fn a_stolen_signer_is_out_at_once_and_its_nodes_come_back_by_themselves() {
    scenario("stolen", |world| {
        let mesh = Mesh::waiting(world, &["a", "b", "c", "good"].map(HostPlan::vm))?;
        let [a, b, c, good] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        a.init_mesh()?;
        for host in [b, good] {
            host.join(&a.token_for(host)?)?;
        }
        add(a, b)?;
        let token = b.meshctl(&["token", "create", "--node", "c"])?.ok()?.stdout;
        c.join(token.trim())?;
        mesh.wait_handshaken(pace(20))?;
        let of_good = good.mesh_addresses()?.0;
        // The thief revokes who did nothing.
        b.meshctl(&["node", "revoke", "good", "--yes"])?.ok()?;
        wait_for("a believes it", pace(10), || {
            ensure!(a.ping(&of_good, "").is_err(), "not yet");
            Ok(())
        })?;
        a.meshctl(&["node", "revoke", "b", "--yes"])?.ok()?;
        a.meshctl(&["signer", "revoke", "b", "--now", "--drop-revocations", "--yes"])?.ok()?;
        knows_signers(&[a], &["a active"])?;
        // Its node asks the other signer as a stranger would: its certificate counts for nothing now.
        wait_for("c is a member again", pace(60), || a.ping(&c.mesh_addresses()?.0, "").map(drop))?;
        // Who had been revoked knows of it and is silent until it is started again.
        good.stop_daemon()?;
        good.start_daemon()?;
        wait_for("a knows it again", pace(20), || {
            let nodes = json(a, &["node", "list", "-o", "json"])?;
            let states: Vec<_> = nodes
                .as_array()
                .context("no array")?
                .iter()
                .filter(|n| n["name"] == "good")
                .collect();
            ensure!(states.len() == 1 && states[0]["state"] == "member", "{nodes}");
            Ok(())
        })?;
        let nodes = json(c, &["node", "list", "-o", "json"])?;
        let b_is = nodes.as_array().context("no array")?.iter().find(|n| n["name"] == "b");
        ensure!(b_is.is_some_and(|node| node["state"] == "revoked"), "{nodes}");
        Ok(())
    });
}

#[test]
fn who_has_exchanged_with_nobody_changes_no_signers() {
    scenario("alone", |world| {
        let mesh = Mesh::form(world, &["a", "b", "c"].map(HostPlan::vm))?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        add(a, b)?;
        // The root's host comes back, perhaps from an old backup, and nobody is there to tell it more.
        for host in [a, b, c] {
            host.stop_daemon()?;
        }
        a.start_daemon()?;
        for verb in [&["signer", "add", "c"][..], &["signer", "revoke", "b", "--yes"]] {
            let refused = a.meshctl(verb)?.exits(1)?.stderr;
            ensure!(refused.contains("has not exchanged with another member"), "{refused}");
        }
        b.start_daemon()?;
        c.start_daemon()?;
        wait_for("c is a signer", pace(40), || a.meshctl(&["signer", "add", "c"])?.ok())?;
        knows_signers(&[a, b, c], &["a active", "b active", "c active"])
    });
}
