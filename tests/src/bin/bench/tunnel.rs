//! What a tunnel of meshd carries beside two made by hand with `wg` and `ip` on hosts of the same kind: with the daemons at
//! work, and with the daemons stopped (SIGSTOP), which leaves what they made in the kernel. On a slow machine what the
//! daemons themselves take is a part of the difference. One of those made by hand has a route in the main table, the other is
//! steered by mark and rule, as `wg-quick` and meshd do it, so that a route that covers the other end's address makes no loop: a
//! kernel with a rule of its own looks up routes more slowly.

use anyhow::{Context, Result};
use meshd_tests::harness::{Backend, Host, HostPlan, Mesh, Place, Running, World, pace, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    in_a_world,
    report::{Machine, Report},
};

/// The rounds' order is turned each time, so that what comes and goes on the machine meets both.
const ROUNDS: u32 = 12;
/// Of TCP, after one second in which it finds its speed.
const SECONDS: &str = "4";
const PINGS: &str = "100";

/// Two ends of one tunnel.
struct Pair<'a> {
    from: &'a Host,
    to: &'a Host,
    address: String,
    measured: Measured,
    _server: Running,
}

/// Round by round.
#[derive(Default)]
struct Measured {
    megabits: Vec<f64>,
    rtt_ms: Vec<f64>,
}

impl Measured {
    fn push(&mut self, (megabits, rtt_ms): (f64, f64)) {
        self.megabits.push(megabits);
        self.rtt_ms.push(rtt_ms);
    }
}

#[derive(Clone, Copy)]
enum Side {
    Ours,
    Hand,
    /// Made by hand, steered by mark and rule.
    Steered,
    /// Ours, without the daemons.
    Alone,
}

fn signal(mesh: &Mesh, signal: Signal) -> Result<()> {
    mesh.hosts.iter().try_for_each(|host| host.with_daemon(|daemon| daemon.signal(signal)))
}

impl<'a> Pair<'a> {
    fn new(from: &'a Host, to: &'a Host, address: &str) -> Result<Self> {
        let server = to.start(&["iperf3", "-s", "-B", address])?;
        wait_for("iperf3 listens", pace(10), || {
            to.sh("ss -tln | grep -q :5201").context("not yet")
        })?;
        from.ping(address, "")?;
        let address = address.to_owned();
        Ok(Self { from, to, address, measured: Measured::default(), _server: server })
    }

    fn measure(&mut self) -> Result<()> {
        let measured = self.once()?;
        self.measured.push(measured);
        Ok(())
    }

    /// Mbit/s, and milliseconds there and back.
    fn once(&self) -> Result<(f64, f64)> {
        let text = self
            .from
            .run(&["timeout", "60", "iperf3", "-J", "-O", "1", "-t", SECONDS, "-c", &self.address])
            .with_context(|| format!("iperf3 to {}", self.to.name()))?;
        let result: Value = serde_json::from_str(&text)?;
        let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
        let megabits = bits.context("iperf3 gives no throughput")? / 1e6;
        let text =
            self.from.run(&["ping", "-n", "-q", "-i", "0.005", "-c", PINGS, &self.address])?;
        let average = text.rsplit_once(" = ").and_then(|(_, times)| times.split('/').nth(1));
        Ok((megabits, average.context("ping gives no times")?.parse()?))
    }
}

/// `wire`: microseconds that every packet takes from one host to another; a namespace's neighbour is nearer than any real
/// host is.
pub(crate) fn measure(machine: Machine, wire: u32) -> Result<Report> {
    let mut report = Report::new(machine, "tunnel", 2);
    in_a_world(6, |world| {
        let mesh = crate::formed(world, 2)?;
        let hand: Vec<Host> = ["h1", "h2", "s1", "s2"]
            .map(|name| world.host(&HostPlan::vm(name)))
            .into_iter()
            .collect::<Result<_>>()?;
        let _devices = make_by_hand(world, [&hand[0], &hand[1]], "")?;
        let _steered = make_by_hand(world, [&hand[2], &hand[3]], STEER)?;
        wait_measured(&mesh)?;
        if wire > 0 {
            let delay = format!("tc qdisc add dev eth0 root netem delay {wire}us limit 10000");
            mesh.hosts.iter().chain(&hand).try_for_each(|host| host.sh(&delay).map(drop))?;
        }
        let mut ours =
            Pair::new(&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[1].mesh_addresses()?.0)?;
        let mut theirs = Pair::new(&hand[0], &hand[1], "100.64.0.2")?;
        let mut steered = Pair::new(&hand[2], &hand[3], "100.64.0.2")?;
        let mut alone = Measured::default();
        for round in 0..ROUNDS {
            let mut sides = [Side::Ours, Side::Hand, Side::Alone, Side::Steered];
            if round % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                match side {
                    Side::Ours => ours.measure()?,
                    Side::Hand => theirs.measure()?,
                    Side::Steered => steered.measure()?,
                    Side::Alone => {
                        signal(&mesh, Signal::SIGSTOP)?;
                        let measured = ours.once();
                        signal(&mesh, Signal::SIGCONT)?;
                        alone.push(measured?);
                    }
                }
            }
        }
        let median = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            let middle = sorted.len() / 2;
            (sorted[middle] + sorted[(sorted.len() - 1) / 2]) / 2.0
        };
        let (ours, theirs, steered) = (ours.measured, theirs.measured, steered.measured);
        for (side, key, what) in [
            (&ours, "ours", "meshd"),
            (&alone, "alone", "meshd stopped"),
            (&theirs, "hand", "by hand"),
            (&steered, "steered", "by hand with a rule"),
        ] {
            let megabits = &side.megabits;
            report.add_spread(
                &format!("{key}_megabits"),
                &format!("{what}: TCP"),
                megabits,
                "Mbit/s",
            );
            report.add_spread(
                &format!("{key}_rtt_ms"),
                &format!("{what}: ping"),
                &side.rtt_ms,
                "ms",
            );
        }
        // Round by round, so that a slow moment of the machine is not one side's.
        let ratios = |ours: &[f64], theirs: &[f64]| -> Vec<f64> {
            ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
        };
        for (side, key, what, reference, by) in [
            (&ours, "", "meshd", &theirs, "by hand"),
            (&alone, "alone_", "meshd stopped", &theirs, "by hand"),
            (&ours, "steered_", "meshd", &steered, "by hand with a rule"),
            (&alone, "alone_steered_", "meshd stopped", &steered, "by hand with a rule"),
        ] {
            let throughput = median(&ratios(&side.megabits, &reference.megabits));
            report.add(
                &format!("{key}throughput_ratio"),
                &format!("throughput, {what} against {by}"),
                throughput,
                "times",
            );
            let latency = median(&ratios(&side.rtt_ms, &reference.rtt_ms));
            report.add(
                &format!("{key}latency_ratio"),
                &format!("round trip, {what} against {by}"),
                latency,
                "times",
            );
        }
        Ok(())
    })?;
    Ok(report)
}

/// Until the path was measured: its probes would be part of what is compared.
fn wait_measured(mesh: &Mesh) -> Result<()> {
    for host in &mesh.hosts {
        wait_for("the path is measured", pace(60), || {
            let text = host.meshctl(&["mtu", "-o", "json"])?.ok()?.stdout;
            anyhow::ensure!(text.contains("\"measured\""), "{text}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The route in a table of its own, for all but the encrypted packets.
const STEER: &str =
    "ip route del 100.64.0.0/24 dev wg0; ip route add 100.64.0.0/24 dev wg0 table 51820
     wg set wg0 fwmark 0x10; ip rule add not fwmark 0x10/0x10 lookup 51820 priority 2600";

/// A tunnel as people make it: `ip link add`, `wg set`, an address each, and what `more` says.
fn make_by_hand(world: &World, [one, two]: [&Host; 2], more: &str) -> Result<Vec<Running>> {
    let mut processes = Vec::new();
    let mut keys = Vec::new();
    for (number, host) in [(1, one), (2, two)] {
        if world.backend() == Backend::Userspace {
            processes.push(host.start(&["wireguard-go", "-f", "wg0"])?);
            wait_for("wireguard-go makes its device", pace(10), || {
                host.run(&["ip", "link", "show", "wg0"])
            })?;
        } else {
            host.run(&["ip", "link", "add", "wg0", "type", "wireguard"])?;
        }
        let key = host.sh(&format!(
            "wg genkey >/run/key; wg set wg0 listen-port 51820 private-key /run/key; wg pubkey </run/key
             ip addr add 100.64.0.{number}/32 dev wg0; ip link set wg0 up; ip route add 100.64.0.0/24 dev wg0
             {more}"
        ))?;
        keys.push(key.trim().to_owned());
    }
    for (host, key, other, number) in [(one, &keys[1], two, 2), (two, &keys[0], one, 1)] {
        let endpoint = format!("{}:51820", other.address());
        let allowed = format!("100.64.0.{number}/32");
        host.run(&[
            "wg",
            "set",
            "wg0",
            "peer",
            key,
            "endpoint",
            &endpoint,
            "allowed-ips",
            &allowed,
        ])?;
    }
    Ok(processes)
}
