//! Certificates that are renewed: no flow notices, and rights follow what a host detects.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Flow, FlowReport, Host, HostPlan, Mesh, Place, World, in_vm, pace, run, scenario, wait_for,
};
use serde_json::Value;

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&host.meshctl(arguments)?.ok()?.stdout)?)
}

/// When the certificate of `of` ends, as `host` sees it.
fn end_of(host: &Host, of: &str) -> Result<String> {
    let peer = json(host, &["peers", "show", of, "-o", "json"])?;
    Ok(peer["certificate_not_after"].as_str().context("no end")?.to_owned())
}

/// `cert renew` on all hosts at once, while packets flow through a tunnel and, as a control, beside it.
fn renew_under_flow(mesh: &Mesh) -> Result<(FlowReport, FlowReport)> {
    let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
    let (of_a, of_b) = (a.mesh_addresses()?.0, b.mesh_addresses()?.0);
    let seconds = u32::try_from(pace(10).as_secs())?;
    let inside = Flow::start((a, &of_a), (b, &of_b), 1000, seconds)?;
    let beside = Flow::start((a, &a.address()), (b, &b.address()), 1000, seconds)?;
    wait_for("packets flow", pace(5), || {
        let sent = a.run(&["cat", "/sys/class/net/mesh0/statistics/tx_packets"])?;
        ensure!(sent.trim().parse::<u64>()? > 500, "{sent}");
        Ok(())
    })?;
    std::thread::scope(|all| {
        let renewals: Vec<_> = mesh
            .hosts
            .iter()
            .map(|host| {
                let mut command = host.program("meshctl")?;
                command.args(["cert", "renew"]);
                Ok(all.spawn(move || run(command, "", pace(30))?.ok()))
            })
            .collect::<Result<_>>()?;
        for renewal in renewals {
            let renewed =
                renewal.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            ensure!(renewed.stdout.contains("is valid until"), "{}", renewed.stdout);
        }
        Ok(())
    })?;
    Ok((inside.report()?, beside.report()?))
}

#[test]
fn all_certificates_are_renewed_and_no_packet_is_lost() {
    let count = if in_vm() { 3 } else { 10 };
    scenario("renew", |world| {
        let plans: Vec<HostPlan> = (1..=count).map(|n| HostPlan::vm(&format!("n{n}"))).collect();
        let mesh = Mesh::form(world, &plans)?;
        let names: Vec<&str> = mesh.hosts.iter().map(Place::name).collect();
        let peers = |host: &Host| Ok::<_, anyhow::Error>(host.wg_peers()?.len());
        let before =
            names[1..].iter().map(|of| end_of(&mesh.hosts[0], of)).collect::<Result<Vec<_>>>()?;
        // A signer gives a person another one for a node twice a minute: whoever joined last waits longest.
        let newest = before.iter().max().context("no peers")?;
        for (host, end) in mesh.hosts[1..].iter().zip(&before).filter(|(_, end)| *end == newest) {
            wait_for("the signer renews again", pace(45), || {
                host.meshctl(&["cert", "renew"])?.ok()?;
                ensure!(end_of(&mesh.hosts[0], host.name())? > *end, "not yet");
                Ok(())
            })?;
        }
        let last = mesh.hosts.last().context("no hosts")?;
        for attempt in 1..=3 {
            let (inside, beside) = renew_under_flow(&mesh)?;
            println!("renew: {count} hosts: {}; beside it: {}", inside.summary(), beside.summary());
            let verdict =
                inside.nothing_lost("the flow over hosts whose certificates were renewed");
            if verdict.is_ok() {
                break;
            }
            ensure!(attempt < 3 && beside.nothing_lost("control").is_err(), "{verdict:?}");
        }
        wait_for("all see the new certificates", pace(10), || {
            let now = names[1..]
                .iter()
                .map(|of| end_of(&mesh.hosts[0], of))
                .collect::<Result<Vec<_>>>()?;
            for (name, (before, now)) in names[1..].iter().zip(before.iter().zip(&now)) {
                ensure!(now > before, "{name}: {now} after {before}");
            }
            mesh.directories_agree()
        })?;
        // The next start has the new one.
        let end = |host: &Host| {
            Ok::<_, anyhow::Error>(
                json(host, &["status", "-o", "json"])?["certificate_not_after"].clone(),
            )
        };
        let renewed = end(last)?;
        last.stop_daemon()?;
        last.start_daemon()?;
        ensure!(end(last)? == renewed, "it is {} after {renewed}", end(last)?);
        last.wait_up(count - 1, pace(20))?;
        for host in &mesh.hosts {
            ensure!(peers(host)? == mesh.hosts.len() - 1, "{} lost a peer", host.name());
        }
        Ok(())
    });
}

/// Three hosts, the last two of which may ask for prefixes of 10.9.0.0/16.
fn within_limits(world: &World) -> Result<Mesh> {
    let mesh = Mesh::waiting(world, &["a", "b", "c"].map(HostPlan::vm))?;
    let a = &mesh.hosts[0];
    a.init_mesh()?;
    for host in &mesh.hosts[1..] {
        let token = a.meshctl(&["token", "create", "--allow", "10.9.0.0/16"])?.ok()?.stdout;
        host.join(token.trim())?;
    }
    Ok(mesh)
}

#[test]
fn a_device_that_goes_gives_its_prefix_back_and_until_then_its_holder_is_named() {
    scenario("back", |world| {
        let mesh = within_limits(world)?;
        let [b, c] = [&mesh.hosts[1], &mesh.hosts[2]];
        let granted = |host: &Host| {
            let shown = json(host, &["cert", "show", "-o", "json"])?;
            let grants = shown[0]["grants"].as_array().context("no grants")?.clone();
            anyhow::Ok(grants.iter().any(|one| one == "10.9.3.0/24"))
        };
        b.meshctl(&["peers", "add", "router", "--prefix", "10.9.3.0/24"])?.ok()?;
        wait_for("b is granted the device's prefix", pace(10), || {
            ensure!(granted(b)?, "it is not");
            Ok(())
        })?;
        c.configure("[network]\npod_prefixes = [\"10.9.3.0/24\"]")?;
        c.reload_daemon()?;
        wait_for("c says who has it", pace(10), || {
            let shown = c.meshctl(&["status"])?.ok()?.stdout;
            ensure!(shown.contains("the certificate of b grants it"), "{shown}");
            Ok(())
        })?;
        b.meshctl(&["peers", "remove", "router"])?.ok()?;
        wait_for("c has it, and b has not", pace(60), || {
            ensure!(granted(c)? && !granted(b)?, "c: {}, b: {}", granted(c)?, granted(b)?);
            Ok(())
        })
    });
}

#[test]
fn a_prefix_within_the_limits_is_granted_without_anybody_doing_anything() {
    scenario("grants", |world| {
        let mesh = within_limits(world)?;
        let [b, c] = [&mesh.hosts[1], &mesh.hosts[2]];
        b.configure("[network]\npod_prefixes = [\"10.9.1.0/24\"]")?;
        b.reload_daemon()?;
        let routes = |host: &Host, prefix: &str| {
            let peer = json(host, &["peers", "show", "b", "-o", "json"])?;
            let all = peer["allowed_ips"].as_array().context("no allowed IPs")?.clone();
            ensure!(all.iter().any(|one| one == prefix), "{all:?}");
            Ok(())
        };
        wait_for("c routes b's new prefix", pace(10), || routes(c, "10.9.1.0/24"))?;
        // The old one goes with the next certificate, whoever else may want it then.
        b.configure("[network]\npod_prefixes = [\"10.9.2.0/24\"]")?;
        b.reload_daemon()?;
        wait_for("c routes the next one", pace(60), || routes(c, "10.9.2.0/24"))?;
        ensure!(routes(c, "10.9.1.0/24").is_err(), "the old one is still routed");
        // Outside the limits nothing is granted, and the host says so.
        b.configure("[network]\npod_prefixes = [\"10.10.1.0/24\"]")?;
        b.reload_daemon()?;
        wait_for("b says what is not granted", pace(10), || {
            let health = b.status()?.health;
            ensure!(health.iter().any(|line| line.code == "prefix_not_granted"), "{health:?}");
            Ok(())
        })?;
        ensure!(routes(c, "10.10.1.0/24").is_err(), "it is routed all the same");
        // What another holds is not granted either.
        c.configure("[network]\npod_prefixes = [\"10.9.2.0/24\"]")?;
        c.reload_daemon()?;
        wait_for("c says what is not granted", pace(10), || {
            let health = c.status()?.health;
            ensure!(health.iter().any(|line| line.code == "prefix_not_granted"), "{health:?}");
            Ok(())
        })
    });
}

#[test]
fn without_a_signer_a_renewal_fails_and_nothing_else_does() {
    scenario("nosigner", |world| {
        let mesh = Mesh::form(world, &["a", "b", "c"].map(HostPlan::vm))?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        a.stop_daemon()?;
        let failed = b.meshctl(&["cert", "renew"])?.exits(1)?.stderr;
        ensure!(failed.contains("no signer"), "{failed}");
        b.ping(&c.mesh_addresses()?.0, "")?;
        ensure!(b.wg_peers()?.len() == 2, "b lost a peer");
        // Its daemon is back: b is renewed by a person, or by itself when that is due.
        a.start_daemon()?;
        wait_for("b is renewed", pace(60), || b.meshctl(&["cert", "renew"])?.ok().map(drop))
    });
}
