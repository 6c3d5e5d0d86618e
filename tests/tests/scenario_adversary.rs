//! A legitimate member that lies: nothing of it reaches the others' kernels.
//!
//! Host `mallory` is enrolled by the real daemon, which then ends; the program `adversary` goes on with its identity, in
//! its namespaces, from its address.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use meshd_tests::adversary::{Attack, DOCUMENTED, Expected, Outcome, Report, row};
use meshd_tests::harness::{
    Counters, Flow, Host, HostPlan, Mesh, Place, pace, run, scenario, wait_for,
};

/// What of a host's kernel a member could want to change.
#[derive(Debug, PartialEq, Eq)]
struct Kernel {
    /// Key, endpoint and allowed addresses of each peer.
    peers: BTreeSet<(String, String, Vec<String>)>,
    routes: Vec<String>,
    rules: String,
}

impl Kernel {
    fn of(host: &Host) -> Result<Self> {
        let peers = host.wg_peers()?.into_iter();
        Ok(Self {
            peers: peers.map(|p| (p.public_key, p.endpoint, p.allowed_ips)).collect(),
            routes: host.mesh_routes()?,
            rules: host.sh("ip -4 rule show; ip -6 rule show; ip -o addr show dev mesh0")?,
        })
    }
}

/// Runs the adversary's program in `mallory`.
fn tell(mallory: &Host, attack: Attack, victim: &Host, other: &str) -> Result<Report> {
    let program = mallory.program_path("adversary")?;
    let mut command = mallory.command(&program);
    command.args(["attack", &attack.name(), "--other", other]);
    command.args(["--victim", &format!("{}:51800", victim.address())]);
    command.args(["--token", "/run/spare-token", "--single", "/run/single-token"]);
    command.args(["--expired", "/run/expired-token", "--revoked", "/run/revoked"]);
    command.args(["--stolen", "/run/stolen", "--former", "/run/former"]);
    let out = run(command, "", pace(60))?.ok()?.stdout;
    serde_json::from_str(&out).with_context(|| format!("the adversary said {out}"))
}

/// Tells one lie to `victim` and waits until it has ended as it must. Gives the row of the table that was found to hold.
fn ends_as_it_must(
    mallory: &Host,
    attack: Attack,
    victim: &Host,
    other: (&str, &str),
) -> Result<String> {
    let name = attack.name();
    let before = victim.counters()?;
    let report = tell(mallory, attack, victim, other.1)?;
    let counted = match attack.outcome() {
        Outcome::Counted(expected) => is_counted(victim, &name, expected, &before, &report)?,
        // The adversary has looked, or it would have failed.
        Outcome::Without(what) => format!("without effect: {what}"),
    };
    victim.check_daemon()?;
    println!("  {name:<28} {counted} at {}, {} KiB", victim.name(), memory_kib(victim)?);
    // Whatever was said of it: the other is there.
    let gossip = victim.peer(other.0)?.gossip;
    ensure!(gossip == "alive" || gossip == "suspect", "after {name} {} is {gossip}", other.0);
    Ok(row(attack, attack.outcome()))
}

fn is_counted(
    victim: &Host,
    name: &str,
    expected: Expected,
    before: &Counters,
    report: &Report,
) -> Result<String> {
    let counted = wait_for(&format!("{name} is counted at {}", victim.name()), pace(10), || {
        victim.check_daemon()?;
        let now = victim.counters()?;
        let value = |counters: &Counters| counters.value(expected.counter, expected.reason);
        let risen = value(&now) - value(before);
        ensure!(
            risen >= expected.at_least,
            "{expected:?} rose by {risen}; what rose: {:?}; the adversary: {report:?}",
            now.since(before)
        );
        Ok(risen)
    })?;
    Ok(format!("{} {} +{counted}", expected.counter, expected.reason.unwrap_or_default()))
}

/// What the adversary needs beside its own membership, all of it come by honestly: tokens, a member that was revoked, a
/// bundle that is newer than its own; and, as if stolen, the key of a signer and that of one that is none any more.
fn prepare(signer: &Host, other: &Host, mallory: &Host) -> Result<()> {
    let token = |arguments: &[&str]| {
        let all = [&["token", "create"], arguments].concat();
        Ok::<_, anyhow::Error>(signer.meshctl(&all)?.ok()?.stdout)
    };
    mallory.write("/run/expired-token", token(&["--ttl", "1s"])?.trim())?;
    mallory.write("/run/single-token", token(&["--uses", "1"])?.trim())?;
    mallory.write("/run/spare-token", token(&["--uses", "10"])?.trim())?;
    mallory.stop_daemon()?;

    let mut command = mallory.command(&mallory.program_path("adversary")?);
    command.args([
        "enrol",
        "--token",
        "/run/spare-token",
        "--name",
        "gone",
        "--to",
        "/run/revoked",
    ]);
    command.args(["--seed", &format!("{}:51800", signer.address())]);
    run(command, "", pace(30))?.ok()?;
    signer.meshctl(&["node", "revoke", "gone", "--yes"])?.ok()?;
    // It ends the token too.
    mallory.write("/run/spare-token", token(&["--uses", "10"])?.trim())?;

    // A signer for a moment: two bundles later it is none again.
    signer.meshctl(&["signer", "add", other.name()])?.ok()?;
    for (thief, of) in [("/run/stolen", signer), ("/run/former", other)] {
        mallory.run(&["mkdir", "-p", thief])?;
        for file in ["intermediate.crt", "intermediate.key"] {
            let text = wait_for("it is a signer", pace(10), || {
                of.run(&["cat", &format!("/var/lib/meshd/pki/{file}")])
            })?;
            mallory.write(&format!("{thief}/{file}"), &text)?;
        }
    }
    signer.meshctl(&["signer", "revoke", other.name(), "--now", "--yes"])?.ok()?;
    wait_for("both have the newest bundle, and the revocation", pace(20), || {
        for host in [signer, other] {
            let list = host.meshctl(&["signer", "list", "-o", "json"])?.ok()?.stdout;
            let signers: serde_json::Value = serde_json::from_str(&list)?;
            ensure!(signers.as_array().is_some_and(|all| all.len() == 1), "{list}");
            let nodes = host.meshctl(&["node", "list", "-o", "json"])?.ok()?.stdout;
            ensure!(nodes.contains("revoked"), "{nodes}");
        }
        Ok(())
    })
}

fn memory_kib(host: &Host) -> Result<u64> {
    let pid = host.with_daemon(|daemon| Ok(daemon.pid()))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no value")?.parse()?)
}

/// Runs `work` while packets go between two hosts, of which none may be lost. `work` starts nothing new when the function
/// that it is given says no.
fn beside_a_flow(
    a: &Host,
    b: &Host,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<()>,
) -> Result<()> {
    // An attack may take as long as a slow stream is waited for.
    let (length, enough) = (pace(35), pace(18));
    let (of_a, of_b) = (a.mesh_addresses()?.0, b.mesh_addresses()?.0);
    let flow = Flow::start((a, &of_a), (b, &of_b), 100, u32::try_from(length.as_secs())?)?;
    let started = Instant::now();
    work(&|| started.elapsed() < enough)?;
    ensure!(started.elapsed() < length, "the flow ended before the work beside it");
    let report = flow.report()?;
    println!("the flow beside it: {}", report.summary());
    report.nothing_lost("a flow between the victims")
}

#[test]
fn no_lie_of_a_member_is_believed() {
    scenario("adversary", |world| {
        let plans = [HostPlan::node("alice"), HostPlan::node("bob00"), HostPlan::vm("mallo")];
        let mesh = Mesh::form(world, &plans)?;
        let [alice, bob, mallory] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        // First handshakes that cross leave two ends with endpoints of two families, until something is said.
        for (one, other) in [(alice, bob), (alice, mallory), (bob, mallory)] {
            one.ping(&other.mesh_addresses()?.0, "")?;
        }
        prepare(alice, bob, mallory)?;
        let id = |host: &Host| host.status()?.id.context("no id");
        let (of_alice, of_bob) = (id(alice)?, id(bob)?);
        let kernels = [Kernel::of(alice)?, Kernel::of(bob)?];
        let memory = [memory_kib(alice)?, memory_kib(bob)?];
        let started = Instant::now();
        let mut found = Vec::new();
        let mut attacks = Attack::all().iter().enumerate().peekable();
        while attacks.peek().is_some() {
            beside_a_flow(alice, bob, |flowing| {
                while let Some((turn, attack)) = attacks.next_if(|_| flowing()) {
                    // The signer is told of the other member, and in the next turn the other of the signer.
                    let (victim, other) = if turn % 2 == 0 || attack.is_for_signers() {
                        (alice, (bob.name(), of_bob.as_str()))
                    } else {
                        (bob, (alice.name(), of_alice.as_str()))
                    };
                    found.push(ends_as_it_must(mallory, *attack, victim, other)?);
                    let now = [Kernel::of(alice)?, Kernel::of(bob)?];
                    ensure!(
                        now == kernels,
                        "{} changed a kernel: {kernels:?} became {now:?}",
                        attack.name()
                    );
                }
                Ok(())
            })?;
        }
        println!("adversary: {} attacks in {:.1?}", Attack::all().len(), started.elapsed());
        let documented = DOCUMENTED.lines().filter(|line| line.starts_with("| `"));
        ensure!(
            documented.eq(found.iter().map(|row| row.trim_end())),
            "docs/attacks.md does not say what was found; write it anew as its head says:\n{}",
            found.concat()
        );

        wait_for("both victims hold each other for alive", pace(10), || {
            for (host, other) in [(alice, bob), (bob, alice)] {
                let peer = host.peer(other.name())?;
                ensure!(peer.gossip == "alive" && peer.tunnel == "up", "{peer:?}");
                ensure!(host.peers()?.len() == 2, "{} has other peers", host.name());
            }
            mesh_agrees(alice, bob)
        })?;
        ensure!([Kernel::of(alice)?, Kernel::of(bob)?] == kernels, "a kernel has changed");
        for (host, before) in [alice, bob].into_iter().zip(memory) {
            let now = memory_kib(host)?;
            println!("memory of {}: {before} KiB before, {now} KiB after", host.name());
            let most = (before + 16 * 1024).min(before * 2);
            ensure!(now < most, "{} grew to {now} KiB", host.name());
        }

        // The identity was not harmed by its use: its own daemon comes back with it.
        mallory.start_daemon()?;
        mallory.wait_up(2, pace(20))?;
        wait_for("all hold the same records", pace(15), || mesh.directories_agree())
    });
}

fn mesh_agrees(a: &Host, b: &Host) -> Result<()> {
    let (of_a, of_b) = (a.status()?.directory_hash, b.status()?.directory_hash);
    ensure!(of_a.is_some() && of_a == of_b, "{of_a:?} and {of_b:?}");
    Ok(())
}
