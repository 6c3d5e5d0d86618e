//! Bad input: each gets an error that says what, why and what to do; the daemon neither dies nor hangs.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Host, HostPlan, Place, Ran, Running, World, pace, run, scenario, wait_for,
};

/// Ended with `code` and an error in the form `error: what; why; what to do` that names each of `words`.
fn refused(ran: Ran, code: i32, words: &[&str]) -> Result<()> {
    let ran = ran.exits(code)?;
    let line = ran.stderr.lines().find(|line| line.starts_with("error: "));
    let line =
        line.with_context(|| format!("`{}` says no `error: …` but {:?}", ran.command, ran.stderr))?;
    ensure!(
        line.matches("; ").count() >= 2,
        "`{}` says not what; why; what to do: {line}",
        ran.command
    );
    for word in words {
        ensure!(line.contains(word), "`{}` does not name {word}: {line}", ran.command);
    }
    ensure!(
        ran.stdout.is_empty(),
        "`{}` failed and printed {:?} to stdout",
        ran.command,
        ran.stdout
    );
    Ok(())
}

fn meshd(host: &Host, arguments: &[&str]) -> Result<Ran> {
    let mut command = host.program("meshd")?;
    command.args(arguments);
    run(command, "", pace(15))
}

/// A host whose daemon made a mesh.
fn founder(world: &World) -> Result<Host> {
    let host = world.host(&HostPlan::vm("a"))?;
    host.start_daemon()?;
    host.init_mesh()?;
    Ok(host)
}

/// A host whose daemon waits.
fn newcomer(world: &World, name: &str) -> Result<Host> {
    let host = world.host(&HostPlan::vm(name))?;
    host.start_daemon()?;
    Ok(host)
}

fn token(signer: &Host, arguments: &[&str]) -> Result<String> {
    let all = [&["token", "create"], arguments].concat();
    Ok(signer.meshctl(&all)?.ok()?.stdout.trim().to_owned())
}

#[test]
fn a_bad_configuration_names_file_key_and_value() {
    scenario("config", |world| {
        let host = world.host(&HostPlan::vm("a"))?;
        meshd(&host, &["check"])?.ok()?;
        let cases: [(&str, &[&str]); 5] = [
            ("[network]\nmut = 5", &["/etc/meshd/meshd.toml", "mut"]),
            ("[network]\npod_prefixes = [\"10.0.0.0/33\"]", &["pod_prefixes", "10.0.0.0/33"]),
            ("[gossip]\nlisten = \"nowhere\"", &["listen", "nowhere"]),
            ("[dns]\nenabled = true", &["dns", "enabled"]),
            ("this is not toml", &["/etc/meshd/meshd.toml"]),
        ];
        for (text, words) in cases {
            host.configure(text)?;
            refused(meshd(&host, &["check"])?, 1, words)?;
            refused(meshd(&host, &["run"])?, 1, words)?;
        }
        host.configure("")?;
        host.write("/etc/meshd/conf.d/50-bad.toml", "[node]\ncolour = \"red\"\n")?;
        refused(meshd(&host, &["check"])?, 1, &["/etc/meshd/conf.d/50-bad.toml", "colour"])?;
        host.run(&["rm", "/etc/meshd/conf.d/50-bad.toml"])?;
        let mut command = host.command("env");
        command.arg("MESHD_NETWORK__TABLE=many").arg(host.program_path("meshd")?).arg("check");
        refused(run(command, "", pace(15))?, 1, &["MESHD_NETWORK__TABLE", "many"])?;

        // A running daemon keeps what it has when the new configuration is bad.
        host.start_daemon()?;
        host.configure("[network]\nmut = 5")?;
        host.reload_daemon()?;
        wait_for("the log names the bad key", pace(5), || {
            let log = host.log_tail();
            ensure!(log.contains("mut"), "{log}");
            Ok(())
        })?;
        host.wait_state("waiting", pace(5)).map(drop)
    });
}

/// Another program takes a UDP port.
fn occupy(host: &Host, port: &str) -> Result<Running> {
    let program = host.program_path("udpflow")?;
    let (own, other) = (host.address(), "192.0.2.9");
    let arguments = ["--bind", &own, "--to", other, "--port", port, "--rate", "1"];
    let occupier = host.start(&[&[program.as_str()][..], &arguments].concat())?;
    wait_for("the port is taken", pace(5), || {
        ensure!(host.run(&["ss", "-uln"])?.contains(&format!(":{port}")), "it is free");
        Ok(())
    })?;
    Ok(occupier)
}

#[test]
fn a_check_finds_a_port_that_is_taken_and_a_token_that_is_none() {
    scenario("check-input", |world| {
        let a = founder(world)?;
        wait_for("the device holds its port", pace(10), || {
            let running = meshd(&a, &["check"])?.ok()?.stdout;
            ensure!(running.contains("WireGuard port: 51820 is held by mesh0"), "{running}");
            Ok(())
        })?;
        let b = world.host(&HostPlan::vm("b"))?;
        let free = meshd(&b, &["check"])?.ok()?.stdout;
        ensure!(free.contains("WireGuard port: 51820 is free"), "{free}");
        let occupier = occupy(&b, "51820")?;
        let taken = meshd(&b, &["check"])?.exits(1)?.stdout;
        ensure!(taken.contains("problem  WireGuard port: 51820"), "{taken}");
        drop(occupier);

        b.configure("[gossip]\njoin_token_file = \"/etc/meshd/token\"")?;
        let none = meshd(&b, &["check"])?.exits(1)?.stdout;
        ensure!(none.contains("problem  join token: /etc/meshd/token"), "{none}");
        b.write("/etc/meshd/token", "rubbish\n")?;
        let rubbish = meshd(&b, &["check"])?.exits(1)?.stdout;
        ensure!(rubbish.contains("problem  join token: /etc/meshd/token"), "{rubbish}");
        b.write("/etc/meshd/token", &token(&a, &[])?)?;
        let good = meshd(&b, &["check"])?.ok()?.stdout;
        ensure!(good.contains("ok       join token: /etc/meshd/token admits to mesh"), "{good}");
        Ok(())
    });
}

#[test]
fn a_port_in_use_is_said() {
    scenario("port", |world| {
        let host = world.host(&HostPlan::vm("a"))?;
        let occupier = occupy(&host, "51800")?;
        refused(meshd(&host, &["run"])?, 1, &["51800"])?;
        drop(occupier);
        host.start_daemon().map(drop)
    });
}

#[test]
fn tokens_that_do_not_admit_are_refused_and_the_daemon_goes_on_waiting() {
    scenario("tokens", |world| {
        let a = founder(world)?;
        let b = newcomer(world, "b")?;
        let join = |token: &str| b.meshctl(&["join", token]);

        refused(join("nonsense")?, 1, &["token"])?;
        let good = token(&a, &["--node", "b"])?;
        let mut garbled = good.clone().into_bytes();
        let middle = garbled.len() / 2;
        garbled[middle] = if garbled[middle] == b'a' { b'b' } else { b'a' };
        refused(join(&String::from_utf8(garbled)?)?, 1, &["token"])?;
        refused(join(&good[..good.len() / 2])?, 1, &["token"])?;

        let short = token(&a, &["--node", "b", "--ttl", "1s"])?;
        wait_for("the token has expired", pace(10), || {
            let list = a.meshctl(&["token", "list", "-o", "json"])?.ok()?.stdout;
            ensure!(list.contains("expired"), "{list}");
            Ok(())
        })?;
        refused(join(&short)?, 1, &["expired"])?;

        let away = token(&a, &["--node", "b", "--seed", "192.0.2.200:51800"])?;
        refused(join(&away)?, 1, &["192.0.2.200:51800"])?;

        let nowhere = token(&a, &["--node", "b", "--seed", "198.51.100.7:51800"])?;
        b.run(&["ip", "route", "del", "default"])?;
        refused(join(&nowhere)?, 1, &["no route to 198.51.100.7:51800", "ip route get"])?;

        let taken = token(&a, &[])?;
        refused(b.meshctl(&["join", &taken, "--name", "a"])?, 1, &["a"])?;

        ensure!(b.status()?.state == "waiting", "after all that it is {:?}", b.status()?);
        b.join(&good)?;
        b.wait_up(1, pace(20))?;

        let c = newcomer(world, "c")?;
        refused(c.meshctl(&["join", &good])?, 1, &["token"])?;
        ensure!(
            c.status()?.state == "waiting" && a.status()?.state == "running",
            "a refused join changed a state"
        );
        refused(b.meshctl(&["join", &good])?, 1, &[])?;
        refused(b.meshctl(&["init", "--mesh", "other"])?, 1, &[])
    });
}

#[test]
fn what_lacks_rights_or_a_daemon_says_so() {
    scenario("rights", |world| {
        let a = world.host(&HostPlan::vm("a"))?;
        refused(a.meshctl(&["status"])?, 3, &["/run/meshd/meshd.sock"])?;
        ensure!(
            a.meshctl(&["status", "--no-such-flag"])?.code == Some(2),
            "a usage error does not exit with 2"
        );
        ensure!(
            a.meshctl(&["peers", "list", "-o", "xml"])?.code == Some(2),
            "a bad format does not exit with 2"
        );

        let as_other = |options: &[&str], program: &str, arguments: &[&str]| -> Result<Ran> {
            let mut command: Command = a.command("setpriv");
            command.args(options).arg(a.program_path(program)?).args(arguments);
            run(command, "", pace(15))
        };
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        refused(as_other(&nobody, "meshd", &["run"])?, 1, &["root"])?;
        let bounded = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"];
        refused(as_other(&bounded, "meshd", &["run"])?, 1, &["CAP_NET_ADMIN"])?;

        a.start_daemon()?;
        let ran = as_other(&nobody, "meshctl", &["init", "--mesh", "test"])?;
        ensure!(matches!(ran.code, Some(1 | 3)) && ran.stderr.starts_with("error: "), "{ran:?}");
        ensure!(a.status()?.state == "waiting", "somebody without rights made a mesh");
        Ok(())
    });
}
