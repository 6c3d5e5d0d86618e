//! A legitimate member that lies: nothing of it reaches the others' kernels.
//!
//! Host `mallory` is enrolled by the real daemon, which then ends; the program `adversary` goes on with its identity, in
//! its namespaces, from its address.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use meshd_tests::adversary::{Attack, Report};
use meshd_tests::harness::{Flow, Host, HostPlan, Mesh, Place, pace, run, scenario, wait_for};

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
    command.args(["--token", "/run/spare-token"]);
    let out = run(command, "", pace(60))?.ok()?.stdout;
    serde_json::from_str(&out).with_context(|| format!("the adversary said {out}"))
}

/// Tells one lie to `victim` and waits until it is refused there.
fn is_refused(mallory: &Host, attack: Attack, victim: &Host, other: (&str, &str)) -> Result<()> {
    let name = attack.name();
    let expected = attack.expected();
    let before = victim.counters()?;
    let report = tell(mallory, attack, victim, other.1)?;
    let counted = wait_for(&format!("{name} is counted at {}", victim.name()), pace(10), || {
        victim.check_daemon()?;
        let now = victim.counters()?;
        let value = |counters: &meshd_tests::harness::Counters| {
            counters.value(expected.counter, expected.reason)
        };
        let risen = value(&now) - value(&before);
        ensure!(
            risen >= expected.at_least,
            "{expected:?} rose by {risen}; what rose: {:?}; the adversary: {report:?}",
            now.since(&before)
        );
        Ok(risen)
    })?;
    println!(
        "  {name:<30} {} {} +{counted} at {}",
        expected.counter,
        expected.reason.unwrap_or_default(),
        victim.name()
    );
    // Whatever was said of it: the other is there.
    let gossip = victim.peer(other.0)?.gossip;
    ensure!(gossip == "alive" || gossip == "suspect", "after {name} {} is {gossip}", other.0);
    Ok(())
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
    let (length, enough) = (pace(20), pace(12));
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
        let spare = alice.meshctl(&["token", "create", "--uses", "10"])?.ok()?.stdout;
        mallory.stop_daemon()?;
        mallory.write("/run/spare-token", spare.trim())?;
        let id = |host: &Host| host.status()?.id.context("no id");
        let (of_alice, of_bob) = (id(alice)?, id(bob)?);
        let kernels = [Kernel::of(alice)?, Kernel::of(bob)?];
        let memory = [memory_kib(alice)?, memory_kib(bob)?];
        let started = Instant::now();
        let mut attacks = Attack::all().iter().enumerate().peekable();
        while attacks.peek().is_some() {
            beside_a_flow(alice, bob, |flowing| {
                while let Some((turn, attack)) = attacks.next_if(|_| flowing()) {
                    // The signer is told of the other member, and in the next turn the other of the signer.
                    let (victim, other) = if turn % 2 == 0 {
                        (alice, (bob.name(), of_bob.as_str()))
                    } else {
                        (bob, (alice.name(), of_alice.as_str()))
                    };
                    is_refused(mallory, *attack, victim, other)?;
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
        println!("{} attacks in {:.1?}", Attack::all().len(), started.elapsed());

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
            ensure!(now < before + 16 * 1024, "{} grew to {now} KiB", host.name());
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
