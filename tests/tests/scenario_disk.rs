//! A disk that is full or read-only, and files that are lost or damaged: nothing is lost that need not be, and what
//! `meshctl` says is so.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, Ran, pace, run, scenario, wait_for};

const STATE: &str = "/var/lib/meshd";

/// The line with this code, if it is there.
fn line(host: &Host, code: &str) -> Result<Option<meshd_tests::harness::Health>> {
    Ok(host.status()?.health.into_iter().find(|line| line.code == code))
}

fn check(host: &Host) -> Result<Ran> {
    let mut command = host.program("meshd")?;
    command.arg("check");
    run(command, "", pace(15))
}

/// Fills what is left of the file system, to the last byte.
fn fill(host: &Host) -> Result<()> {
    let script = "dd if=/dev/zero of=$0/ballast bs=4k 2>/dev/null || true\n\
                  if echo x 2>/dev/null >$0/more; then echo there is room; exit 1; fi";
    host.run(&["sh", "-c", script, STATE]).map(drop)
}

#[test]
fn a_leave_on_a_full_disk_keeps_the_ca_and_nothing_else() {
    scenario("full", |world| {
        let mesh = Mesh::unstarted(world, &["a", "b"].map(HostPlan::vm))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        a.run(&["mount", "-t", "tmpfs", "-o", "mode=700,size=12m", "tmpfs", STATE])?;
        mesh.start()?;
        mesh.join_all()?;
        a.wait_up(1, pace(20))?;
        b.meshctl(&["leave"])?.ok()?;

        let root_key = a.run(&["cat", &format!("{STATE}/pki/root.key")])?;
        let certificate = a.run(&["cat", &format!("{STATE}/pki/root.crt")])?;
        fill(a)?;
        let left = a.meshctl(&["leave", "--yes", "-o", "json"])?.ok()?.stdout;
        let left: serde_json::Value = serde_json::from_str(&left)?;
        let aside = left["authority"].as_str().context("no CA was put aside")?;
        ensure!(a.run(&["cat", &format!("{aside}/root.key")])? == root_key, "another key");
        ensure!(a.run(&["cat", &format!("{aside}/root.crt")])? == certificate, "another root");
        for directory in ["pki", "keys"] {
            let files = a.run(&["ls", "-A", &format!("{STATE}/{directory}")])?;
            ensure!(matches!(files.trim(), "" | "reset"), "{directory} holds {files}");
        }
        // It is gone after a restart too, and the host can be in a mesh again.
        let health = a.wait_state("waiting", pace(5))?.health;
        ensure!(health.iter().all(|line| line.severity != "error"), "{health:?}");
        a.stop_daemon()?;
        a.run(&["rm", &format!("{STATE}/ballast")])?;
        a.start_daemon()?;
        a.wait_state("waiting", pace(5))?;
        a.init_mesh()
    });
}

#[test]
fn a_check_finds_a_state_directory_that_cannot_be_written() {
    scenario("check", |world| {
        let a = world.host(&HostPlan::vm("a"))?;
        let fine = check(&a)?.ok()?.stdout;
        ensure!(fine.contains("ok       state directory"), "{fine}");
        let left = a.run(&["ls", "-A", STATE])?;
        ensure!(left.trim().is_empty(), "it left {left}");
        a.run(&["mount", "-t", "tmpfs", "-o", "mode=700,size=1m", "tmpfs", STATE])?;
        fill(&a)?;
        let full = check(&a)?.exits(1)?.stdout;
        ensure!(full.contains("problem  state directory: /var/lib/meshd"), "{full}");
        ensure!(full.contains("No space left"), "{full}");
        let left = a.run(&["ls", "-A", STATE])?;
        ensure!(left.trim() == "ballast\nmore" || left.trim() == "ballast", "it left {left}");
        a.run(&["mount", "-o", "remount,ro", STATE])?;
        let locked = check(&a)?.exits(1)?.stdout;
        ensure!(locked.contains("Read-only file system"), "{locked}");
        ensure!(locked.contains("node.state_dir"), "{locked}");
        Ok(())
    });
}

#[test]
fn lost_and_damaged_files_are_said_until_they_are_mended() {
    scenario("lost", |world| {
        let mesh = Mesh::form(world, &["a", "b", "c"].map(HostPlan::vm))?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        let revocations = format!("{STATE}/pki/revocations");
        a.meshctl(&["node", "revoke", "c", "--yes"])?.ok()?;
        wait_for("b has it on its disk", pace(10), || b.run(&["test", "-s", &revocations]))?;

        // Damaged: said while nobody can tell it who was revoked, and written anew after that.
        a.stop_daemon()?;
        b.stop_daemon()?;
        b.write(&revocations, "rubbish")?;
        b.start_daemon()?;
        let said = line(b, "revocations_damaged")?.context("it is not said")?;
        ensure!(said.message.contains("pki/revocations"), "{said:?}");
        a.start_daemon()?;
        wait_for("it is mended", pace(40), || {
            ensure!(line(b, "revocations_damaged")?.is_none(), "still said");
            Ok(())
        })?;
        ensure!(b.run(&["cat", &revocations])? != "rubbish", "it is not written anew");
        b.stop_daemon()?;
        b.start_daemon()?;
        ensure!(line(b, "revocations_damaged")?.is_none(), "said again");

        // Without its certificate a host waits, and says why.
        let certificate = format!("{STATE}/pki/node.crt");
        b.stop_daemon()?;
        b.run(&["mv", &certificate, "/var/lib/kept.crt"])?;
        b.start_daemon()?;
        b.wait_state("waiting", pace(5))?;
        let said = line(b, "certificate_missing")?.context("it is not said")?;
        ensure!(said.severity == "error" && said.message.contains("pki/node.crt"), "{said:?}");
        b.stop_daemon()?;
        b.run(&["mv", "/var/lib/kept.crt", &certificate])?;
        b.start_daemon()?;
        wait_for("b is a member again", pace(20), || {
            ensure!(b.status()?.state == "running", "{:?}", b.status()?.health);
            ensure!(line(b, "certificate_missing")?.is_none(), "still said");
            Ok(())
        })
    });
}
