//! The demo that `tests/demo` builds and runs: three hosts become a mesh, their pods reach each other, and the wire shows
//! only WireGuard. Prints the commands as one would type them on the hosts, and what they answered.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use meshd_tests::harness::{Captured, Host, HostPlan, Place, PodPlan, World, pace, run};

/// All that is not WireGuard, gossip, or the link's own neighbour and group management.
const IN_THE_CLEAR: &str = "not arp and not (udp port 51820 or udp port 51800) and not (ip6 and ip6[6] == 0) \
                            and not (icmp6 and ip6[40] >= 130 and ip6[40] <= 136)";

#[derive(Parser)]
#[command(about = "Three hosts on one machine become a mesh")]
struct Arguments {
    /// At the end, wait for the Enter key with the mesh up, and say how to get into the hosts.
    #[arg(long)]
    hold: bool,
}

fn main() -> ExitCode {
    match demo(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\nerror: the demo did not work: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<()> {
    let logs = tempfile::tempdir()?;
    let world = World::new(logs.path(), 0)?;
    let hosts = [HostPlan::node("node-a"), HostPlan::node("node-b"), HostPlan::vm("vm")];
    let [a, b, vm] = hosts.map(|plan| world.host(&plan));
    let (a, b, vm) = (a?, b?, vm?);
    for host in [&a, &b, &vm] {
        let pods = host.pod_prefixes().join(" and ");
        let kind = if pods.is_empty() {
            "a plain machine".to_owned()
        } else {
            format!("pods in {pods} (CNI bridge)")
        };
        println!("  {:<8}{:<11}{kind}", host.name(), host.address());
    }
    let (pod_a, pod_b) = (a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?);
    for host in [&a, &b, &vm] {
        host.start_daemon()?;
    }

    heading("One host makes the mesh, the others join with a token");
    show(&a, &with_prefixes(&["init", "--mesh", "demo"], &a.pod_prefixes()))?;
    a.wait_state("running", pace(10))?;
    for host in [&b, &vm] {
        let prefixes = host.pod_prefixes();
        let create = with_prefixes(&["token", "create", "--node", host.name()], &prefixes);
        prompt(&a, &create.join(" "));
        let token = a.meshctl(&create)?.ok()?.stdout.trim().to_owned();
        prompt(host, &format!("join {}…", token.chars().take(24).collect::<String>()));
        println!("      joined after {:.1} s", host.join(&token)?.as_secs_f64());
    }
    for host in [&a, &b, &vm] {
        host.wait_up(2, pace(20))?;
    }
    show(&a, &["peers", "list"])?;

    heading(
        "Pods and machines reach each other, while tcpdump listens on the wire between the hosts",
    );
    let capture = world.capture("up")?;
    answered(&pod_a, pod_b.address(), "a pod to a pod of the other node")?;
    answered(&pod_a, pod_b.address6(), "the same pod over IPv6")?;
    answered(&vm, pod_b.address(), "a machine to a pod")?;
    answered(&pod_b, &vm.mesh_addresses()?.0, "a pod to a machine")?;
    let up = capture.stop(&world)?;
    sample(&up, "udp port 51820", 3)?;
    let (tunnel, gossip) =
        (up.packets("udp port 51820")?.len(), up.packets("udp port 51800")?.len());
    let clear = up.packets(IN_THE_CLEAR)?;
    println!(
        "    {tunnel} packets of WireGuard, {gossip} of gossip (QUIC), {} in the clear",
        clear.len()
    );
    ensure!(clear.is_empty(), "packets in the clear, the first: {:?}", clear.first());

    if arguments.hold {
        hold(&[&a, &b, &vm])?;
    }

    heading("The same ping after `meshd cleanup` on both nodes: what a leak would look like");
    for host in [&a, &b] {
        host.stop_daemon()?;
        let mut cleanup = host.program("meshd")?;
        cleanup.arg("cleanup");
        run(cleanup, "", pace(20))?.ok()?;
    }
    let capture = world.capture("down")?;
    ensure!(pod_a.ping(pod_b.address(), "").is_err(), "the pods reach each other without the mesh");
    let down = capture.stop(&world)?;
    ensure!(
        !down.packets("icmp[icmptype] == icmp-echo")?.is_empty(),
        "the capture does not see what is in the clear"
    );
    sample(&down, "icmp[icmptype] == icmp-echo", 1)
}

fn heading(text: &str) {
    println!("\n* {text}");
}

fn prompt(host: &Host, command: &str) {
    println!("    {}# meshctl {command}", host.name());
    let _ = std::io::stdout().flush();
}

/// Runs `meshctl` and shows command and answer.
fn show(host: &Host, arguments: &[&str]) -> Result<()> {
    prompt(host, &arguments.join(" "));
    for line in host.meshctl(arguments)?.ok()?.stdout.lines() {
        println!("      {line}");
    }
    Ok(())
}

fn with_prefixes<'a>(arguments: &[&'a str], prefixes: &'a [String]) -> Vec<&'a str> {
    let flags = prefixes.iter().flat_map(|prefix| ["--prefix", prefix.as_str()]);
    arguments.iter().copied().chain(flags).collect()
}

/// A ping that must be answered, in one line.
fn answered(from: &dyn Place, to: &str, what: &str) -> Result<()> {
    let said = from.ping(to, "").with_context(|| format!("{what}: {to} does not answer"))?;
    let time = said.split_once("time=").and_then(|(_, rest)| rest.lines().next()).unwrap_or("?");
    println!("    {:<42}answered in {time:<8}  {what}", format!("{}$ ping {to}", from.name()));
    Ok(())
}

/// The first packets that match, as tcpdump prints them, without the time.
fn sample(captured: &Captured, filter: &str, count: usize) -> Result<()> {
    for line in captured.packets(filter)?.iter().take(count) {
        println!("    wire: {}", line.split_once(' ').map_or(line.as_str(), |(_, rest)| rest));
    }
    Ok(())
}

fn hold(hosts: &[&Host]) -> Result<()> {
    println!(
        "\n  The mesh stays up until you press Enter. To look around, in another terminal as root:"
    );
    for host in hosts {
        println!(
            "    nsenter -t {} --net --mount --uts bash   # {}",
            host.space().pid(),
            host.name()
        );
    }
    println!("  (meshctl and meshd: {})", hosts[0].program_path("meshctl")?);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("no terminal to read from")?;
    Ok(())
}
