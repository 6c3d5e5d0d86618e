//! The mesh's root is replaced while everything runs: no packet lost, nobody left behind.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Flow, Host, HostPlan, Mesh, Place, in_vm, pace, scenario, wait_for};
use serde_json::Value;

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&host.meshctl(arguments)?.ok()?.stdout)?)
}

fn roots(host: &Host) -> Result<Value> {
    json(host, &["cert", "ca", "show", "-o", "json"])
}

/// The states of all roots, oldest first.
fn states(view: &Value) -> Vec<&str> {
    let all = view["roots"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|root| root["state"].as_str()).collect()
}

fn wait_states(hosts: &[&Host], wanted: &[&str]) -> Result<()> {
    for host in hosts {
        wait_for(&format!("{} knows the roots {wanted:?}", host.name()), pace(40), || {
            let view = roots(host)?;
            ensure!(states(&view) == wanted, "{view}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_new_root_takes_over_and_no_packet_is_lost() {
    let count = if in_vm() { 4 } else { 10 };
    scenario("rollover", |world| {
        let mut plans: Vec<HostPlan> =
            (1..=count).map(|n| HostPlan::vm(&format!("n{n}"))).collect();
        plans.extend(["bad", "late"].map(HostPlan::vm));
        let mesh = Mesh::waiting(world, &plans)?;
        let (members, others) = mesh.hosts.split_at(count);
        let [bad, late] = others else { anyhow::bail!("two more hosts are needed") };
        let [root, signer, .., away] = members else { anyhow::bail!("too few hosts") };
        root.init_mesh()?;
        for host in members[1..].iter().chain([bad]) {
            host.join(&root.token_for(host)?)?;
        }
        root.meshctl(&["signer", "add", signer.name()])?.ok()?;
        // What was there before must outlive the root: a token, and a revocation, by the other signer.
        let token = wait_for("the new signer makes tokens", pace(10), || root_token(signer, late))?;
        wait_for("the new signer revokes", pace(10), || {
            signer.meshctl(&["node", "revoke", "bad", "--yes"])?.ok()
        })?;
        let rest: Vec<&Host> = members[..count - 1].iter().collect();
        for host in members {
            host.wait_up(u32::try_from(count - 1)?, pace(30))?;
        }
        wait_states(&[root, away], &["active"])?;
        away.stop_daemon()?;
        let refused = signer.meshctl(&["cert", "ca", "rotate", "--yes"])?.exits(1)?.stderr;
        ensure!(refused.contains("root key is not on this host"), "{refused}");

        let before = roots(root)?["roots"][0]["key"].as_str().context("no key")?.to_owned();
        // Beside the two that change most, two who only renew.
        let [a, b] = [rest[count - 2], rest[0]];
        let (of_a, of_b) = (a.mesh_addresses()?.0, b.mesh_addresses()?.0);
        let seconds = u32::try_from(pace(25).as_secs())?;
        let inside = Flow::start((a, &of_a), (b, &of_b), 1000, seconds)?;
        let beside = Flow::start((a, &a.address()), (b, &b.address()), 1000, seconds)?;
        let said = root.meshctl(&["cert", "ca", "rotate", "--yes"])?.ok()?.stdout;
        ensure!(said.contains("retiring") && said.contains("Back up"), "{said}");
        let again = root.meshctl(&["cert", "ca", "rotate", "--yes"])?.exits(1)?.stderr;
        ensure!(again.contains("still counts"), "{again}");
        for host in &rest {
            wait_for(
                &format!("{} waits for {} alone", host.name(), away.name()),
                pace(40),
                || {
                    let view = roots(host)?;
                    ensure!(
                        view["to_renew"] == 1 && view["to_move"] == Value::Array(vec![]),
                        "{view}"
                    );
                    ensure!(states(&view) == ["retiring", "active"], "{view}");
                    Ok(())
                },
            )?;
        }
        let (inside, beside) = (inside.report()?, beside.report()?);
        println!("rollover: {count} hosts: {}; beside it: {}", inside.summary(), beside.summary());
        inside.nothing_lost("a flow between hosts of a mesh that changes its root")?;

        // Who was away finds the way from the root that it knows; then nobody needs the old one.
        away.start_daemon()?;
        let all: Vec<&Host> = members.iter().collect();
        wait_states(&all, &["replaced", "active"])?;
        let of_away = away.mesh_addresses()?.0;
        wait_for("who was away is reached", pace(20), || root.ping(&of_away, "").map(drop))?;
        // The token names the old root, and its signer had another key.
        late.join(token.trim())?;
        wait_for("the late one is reached", pace(20), || {
            away.ping(&late.mesh_addresses()?.0, "").map(drop)
        })?;
        let keys: BTreeSet<String> = all
            .iter()
            .chain([&late])
            .map(|host| {
                let view = roots(host)?;
                let newest = view["roots"].as_array().and_then(|all| all.last()).context("none")?;
                Ok(newest["key"].as_str().context("no key")?.to_owned())
            })
            .collect::<Result<_>>()?;
        ensure!(keys.len() == 1 && !keys.contains(&before), "{keys:?} after {before}");
        let nodes = json(late, &["node", "list", "-o", "json"])?;
        let is_revoked = |one: &Value| one["name"] == "bad" && one["state"] == "revoked";
        ensure!(nodes.as_array().context("no array")?.iter().any(is_revoked), "{nodes}");

        // All of it outlives a restart, and the new root is as good as the old one was.
        root.stop_daemon()?;
        root.start_daemon()?;
        wait_states(&[root], &["replaced", "active"])?;
        root.wait_up(u32::try_from(count)?, pace(20))?;
        root.meshctl(&["signer", "revoke", signer.name(), "--yes"])?.ok()?;
        wait_for("the mesh has one signer", pace(40), || {
            let signers = json(late, &["signer", "list", "-o", "json"])?;
            ensure!(signers.as_array().context("no array")?.len() == 1, "{signers}");
            Ok(())
        })?;
        root.meshctl(&["cert", "ca", "rotate", "--yes"])?.ok()?;
        wait_states(&[root, late, away], &["replaced", "replaced", "active"])
    });
}

fn root_token(signer: &Host, late: &Host) -> Result<String> {
    let (name, seed) = (late.name(), signer.address());
    let made = signer.meshctl(&["token", "create", "--node", name, "--seed", &seed])?;
    Ok(made.ok()?.stdout)
}

#[test]
fn the_roots_key_is_under_a_passphrase_or_elsewhere() {
    scenario("rootkey", |world| {
        let mesh = Mesh::waiting(world, &["a", "b", "c"].map(HostPlan::vm))?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        a.init_mesh()?;
        for host in [b, c] {
            host.join(&a.token_for(host)?)?;
        }
        let ca = |more: &[&str], input: &str| {
            let all: Vec<&str> = ["cert", "ca"].iter().chain(more).copied().collect();
            a.meshctl_with(&all, input)
        };
        let key_state = || Ok::<_, anyhow::Error>(roots(a)?["key_state"].clone());
        let file = "/var/lib/meshd/pki/root.key";
        let kept = || a.run(&["cat", file]);
        let old = kept()?;
        ensure!(key_state()? == "plain", "{}", key_state()?);
        ensure!(ca(&["encrypt", "--passphrase-file", "-"], "\n")?.code == Some(1), "an empty one");
        ca(&["encrypt", "--passphrase-file", "-"], "correct horse\n")?.ok()?;
        let sealed = kept()?;
        ensure!(
            sealed.contains("ENCRYPTED PRIVATE KEY") && !sealed.contains(old.trim()),
            "{sealed}"
        );

        // A restart closes it; the daemon runs as before, and the root signs nothing.
        a.stop_daemon()?;
        a.start_daemon()?;
        ensure!(key_state()? == "locked", "{}", key_state()?);
        let refused = a.meshctl(&["signer", "add", "b"])?.exits(1)?.stderr;
        ensure!(refused.contains("cert ca unlock"), "{refused}");
        let refused = ca(&["unlock", "--passphrase-file", "-"], "wrong\n")?.exits(1)?.stderr;
        ensure!(refused.contains("does not open"), "{refused}");
        ca(&["unlock", "--passphrase-file", "-"], "correct horse\n")?.ok()?;
        ensure!(key_state()? == "unlocked", "{}", key_state()?);
        wait_for("b is a signer", pace(20), || a.meshctl(&["signer", "add", "b"])?.ok())?;

        // The next root's key is under the same passphrase.
        ca(&["rotate", "--yes"], "")?.ok()?;
        wait_states(&[a, b, c], &["replaced", "active"])?;
        let next = kept()?;
        ensure!(next.contains("ENCRYPTED PRIVATE KEY") && next != sealed, "{next}");
        a.stop_daemon()?;
        a.start_daemon()?;
        ensure!(key_state()? == "locked", "{}", key_state()?);
        ca(&["unlock", "--passphrase-file", "-"], "correct horse\n")?.ok()?;

        // It goes to a safe, and comes back for one act.
        let out = "/var/lib/meshd/safe.key";
        let export = ["export", "--out", out, "--remove", "--passphrase-file", "-"];
        ca(&export, "another\n")?.ok()?;
        ensure!(kept().is_err() && key_state()? == "absent", "it is still here");
        ensure!(a.run(&["stat", "-c", "%a", out])?.trim() == "600", "others may read it");
        let refused = ca(&export, "another\n")?.exits(1)?.stderr;
        ensure!(refused.contains("exist"), "{refused}");
        let refused = a.meshctl(&["signer", "revoke", "b", "--yes"])?.exits(1)?.stderr;
        ensure!(refused.contains("--root-key FILE"), "{refused}");
        let backup = "/var/lib/meshd/old.key";
        a.write(backup, &old)?;
        let unlock = |path: &str, passphrase: &str| {
            ca(&["unlock", "--root-key", path, "--passphrase-file", "-"], passphrase)
        };
        let refused = unlock(backup, "\n")?.exits(1)?.stderr;
        ensure!(refused.contains("not the key of this mesh's root"), "{refused}");
        unlock(out, "another\n")?.ok()?;
        a.meshctl(&["signer", "revoke", "b", "--yes"])?.ok()?;
        wait_for("the mesh has one signer", pace(40), || {
            let signers = json(c, &["signer", "list", "-o", "json"])?;
            ensure!(signers.as_array().context("no array")?.len() == 1, "{signers}");
            Ok(())
        })?;
        ensure!(kept().is_err(), "the key was kept");
        c.ping(&b.mesh_addresses()?.0, "").map(drop)
    });
}
