//! Strict leak protection: whatever is taken away from the mesh, nothing that belongs to a member goes or comes in the
//! clear.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Host, HostPlan, LOSSES, Mesh, Place, Pod, PodPlan, REBOOT, World, pace, scenario,
};

const STRICT: &str = "[network]\nleak_protection = \"strict\"\n";

struct Site {
    mesh: Mesh,
    pods: [Pod; 2],
    masqueraded: Pod,
    /// What host a must reach through the mesh or not at all.
    targets: Vec<String>,
}

impl Site {
    fn build(world: &World) -> Result<Self> {
        let plans = [HostPlan::node("a"), HostPlan::node("b"), HostPlan::vm("vm")];
        let mesh = Mesh::form_with(world, &plans, STRICT)?;
        let [a, b, vm] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        let pods = [a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?];
        let masqueraded = a.pod(&PodPlan::masqueraded("hidden-a"))?;
        let mut targets = vec![pods[1].address().to_owned(), pods[1].address6().to_owned()];
        for host in [b, vm] {
            let (v4, v6) = host.mesh_addresses()?;
            targets.extend([v4, v6]);
        }
        Ok(Self { mesh, pods, masqueraded, targets })
    }

    fn a(&self) -> &Host {
        &self.mesh.hosts[0]
    }

    /// Sends to every target from everywhere on host a, by ICMP and by UDP to ports that the mesh itself uses; what
    /// becomes of it is the capture's to say.
    fn send(&self) -> Result<()> {
        let script = format!(
            "for t in {}; do
               (ping -n -c1 -W1 $t >/dev/null 2>&1 || true) &
               for p in 51800 51820 9; do (echo leak >/dev/udp/$t/$p) 2>/dev/null || true; done
             done; wait",
            self.targets.join(" ")
        );
        for place in [&self.pods[0] as &dyn Place, &self.masqueraded, self.a()] {
            place.run(&["bash", "-c", &script])?;
        }
        Ok(())
    }

    /// Packets that the wire shows in the clear, from or to what belongs to the mesh.
    fn leaks(
        &self,
        world: &World,
        name: &str,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<String>> {
        let capture = world.capture(name)?;
        meanwhile()?;
        let captured = capture.stop(world)?;
        let mut nets: Vec<String> = self.targets.iter().map(|t| format!("host {t}")).collect();
        nets.extend([self.pods[0].address(), self.pods[0].address6()].map(|a| format!("host {a}")));
        // A masqueraded pod would show as its host, sending what nobody else sends.
        nets.push("(udp port 9 and not port 51800)".to_owned());
        captured.packets(&nets.join(" or "))
    }

    fn none_leak(
        &self,
        world: &World,
        name: &str,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let leaks = self.leaks(world, name, meanwhile)?;
        ensure!(
            leaks.is_empty(),
            "{name}: {} packets in the clear: {:?}",
            leaks.len(),
            leaks.first()
        );
        println!("leak: {name}: none in the clear");
        Ok(())
    }
}

/// `meshd guard`, as its unit runs it at boot.
fn guard(host: &Host) -> Result<String> {
    let mut guard = host.program("meshd")?;
    guard.arg("guard");
    Ok(meshd_tests::harness::run(guard, "", pace(20))?.ok()?.stdout)
}

#[test]
fn strict_protection_holds_whatever_is_taken_away() {
    scenario("strict", |world| {
        let site = Site::build(world)?;
        let a = site.a();
        for pod in &site.targets {
            site.pods[0].ping(pod, "").context("the mesh works")?;
        }
        for (number, (name, loss)) in LOSSES.iter().enumerate() {
            a.kill_daemon()?;
            site.none_leak(world, &format!("loss-{number}"), || {
                a.sh(loss).with_context(|| (*name).to_owned())?;
                site.send()
            })?;
            println!("leak: daemon dead, {name}: nothing went in the clear");
            site.none_leak(world, &format!("back-{number}"), || {
                a.start_daemon()?;
                a.wait_up(2, pace(20))?;
                site.send()
            })?;
        }

        // The host starts: first nothing but the guard, then the daemon.
        a.kill_daemon()?;
        a.sh(REBOOT)?;
        let said = guard(a)?;
        ensure!(said.contains("the leak guard stands"), "meshd guard said {said:?}");
        site.none_leak(world, "boot", || site.send())?;
        // A configuration that cannot be read must not open what was closed.
        a.sh(REBOOT)?;
        a.configure("[metrix]\nlisten = \"\"\n")?;
        let mut refused = a.program("meshd")?;
        refused.arg("guard");
        let refused = meshd_tests::harness::run(refused, "", pace(20))?;
        ensure!(refused.ok().is_err_and(|why| format!("{why:#}").contains("set up all the same")));
        site.none_leak(world, "boot-typo", || site.send())?;
        a.configure(STRICT)?;
        let again = guard(a)?;
        ensure!(again.contains("stands already"), "a second time it said {again:?}");
        site.none_leak(world, "boot-daemon", || {
            a.launch_daemon()?;
            site.send()?;
            a.wait_up(2, pace(20))?;
            site.send()
        })?;
        for target in &site.targets {
            site.pods[0].ping(target, "").context("after the boot")?;
        }

        // What comes in the clear with a member's source is dropped, whoever sends it.
        let b = &site.mesh.hosts[1];
        let [v4, v6] = [site.pods[0].address(), site.pods[0].address6()];
        let dropped = || -> Result<u64> {
            let table = a.sh("nft list chain inet meshd guard_in")?;
            let counts =
                table.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next());
            Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
        };
        let before = dropped()?;
        b.stop_daemon()?;
        let mut cleanup = b.program("meshd")?;
        cleanup.arg("cleanup");
        meshd_tests::harness::run(cleanup, "", pace(10))?.ok()?;
        b.sh(&format!(
            "ip route add {v4} via {}; ip -6 route add {v6} via {}",
            a.address(),
            a.address6()
        ))?;
        for target in [v4, v6] {
            ensure!(
                site.pods[1].ping(target, "").is_err(),
                "{target} answered what came in the clear"
            );
        }
        let after = dropped()?;
        ensure!(after >= before + 2, "the guard dropped {before} packets before and {after} now");
        println!("leak: {} packets that came in the clear were dropped", after - before);

        // A member that is revoked is refused, not leaked.
        a.meshctl(&["node", "revoke", "b", "--yes"])?.ok()?;
        site.none_leak(world, "revoked", || site.send())?;

        // Without any of it the capture sees what it must: it could have seen a leak.
        a.stop_daemon()?;
        let mut cleanup = a.program("meshd")?;
        cleanup.arg("cleanup");
        meshd_tests::harness::run(cleanup, "", pace(10))?.ok()?;
        let said = guard(a)?;
        ensure!(said.contains("nothing to do"), "after a cleanup the guard said {said:?}");
        let leaks = site.leaks(world, "control", || site.send())?;
        ensure!(leaks.len() >= 12, "the control saw {} packets only: {leaks:?}", leaks.len());
        println!("leak: control, without protection: {} packets in the clear", leaks.len());
        Ok(())
    });
}
