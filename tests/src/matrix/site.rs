//! A cell made of real hosts: `a` and `b` with pods, `c` a plain machine, `outside` without meshd.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::{Cell, Source, Underlay};
use crate::harness::{
    Host, HostPlan, Place, Pod, PodPlan, WORKLOAD_RANGES, Workload, World, pace, wait_for,
};

/// Where the hosts are, apart from [`WORKLOAD_RANGES`]: who has a pool keeps others from exact grants in it.
const NODE_RANGES: [&str; 2] = ["192.0.2.0/25", "2001:db8::/80"];
/// Where the ranges of all hosts' pods are.
pub(super) const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// Everything of a cell, with the mesh up.
#[derive(Debug)]
pub struct Site {
    /// What it is.
    pub cell: Cell,
    /// `a`, `b`, `c`.
    pub hosts: Vec<Host>,
    /// No member.
    pub outside: Host,
    /// Two on `a`, one on `b`.
    pub guests: Vec<Guest>,
    /// Addresses in the mesh of each host: IPv4, IPv6.
    pub inside: Vec<[String; 2]>,
}

/// A pod, whoever gave it its address.
#[derive(Debug)]
pub struct Guest {
    place: Either,
    /// Its host, in [`Site::hosts`].
    pub host: usize,
    /// IPv4, IPv6.
    pub addresses: [String; 2],
}

#[derive(Debug)]
enum Either {
    OfRange(Pod),
    OfCloud(Workload),
}

impl Place for Guest {
    fn space(&self) -> &crate::harness::Space {
        match &self.place {
            Either::OfRange(pod) => pod.space(),
            Either::OfCloud(pod) => pod.space(),
        }
    }
}

impl Site {
    /// Makes it, and waits until every tunnel and every route is there.
    pub fn build(world: &World, cell: Cell) -> Result<Self> {
        let plan = |name| match cell.source {
            Source::Prefixes => HostPlan::node(name),
            Source::Workloads => HostPlan::vm(name),
        };
        let plans = [plan("a"), plan("b"), HostPlan::vm("c")];
        let hosts = plans.iter().map(|plan| world.host(plan)).collect::<Result<Vec<_>>>()?;
        let outside = world.host(&HostPlan::vm("outside"))?;
        // Without addresses of the other family on the underlay; what leaves in that family all the same still shows.
        world.run(&["ip", "addr", "add", "fe80::fe/64", "dev", "br0", "nodad"])?;
        let family = match cell.underlay {
            Underlay::V4 => {
                "ip -6 addr flush dev eth0 scope global; ip -6 route replace default via fe80::fe dev eth0"
            }
            Underlay::V6 => {
                "ip -4 addr flush dev eth0; ip -4 route replace default via inet6 fe80::fe dev eth0"
            }
        };
        let filter = cell.rp_filter;
        for (number, host) in hosts.iter().chain([&outside]).enumerate() {
            host.sh(&format!(
                "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {filter} >$f; done\n{family}"
            ))?;
            if number < hosts.len() {
                host.configure(&config(&cell, number))?;
                host.launch_daemon()?;
            }
        }
        let mut guests = Vec::new();
        for (number, (host, name)) in
            [(0, "pod-a"), (0, "beside-a"), (1, "pod-b")].iter().enumerate()
        {
            guests.push(Guest::new(cell.source, &hosts, *host, name, number)?);
        }
        let mut site = Self { cell, hosts, outside, guests, inside: Vec::new() };
        if cell.source == Source::Workloads {
            site.answer_for_guests(world)?;
        }
        site.join()?;
        site.reach_from_outside()?;
        site.wait_routed()?;
        Ok(site)
    }

    /// The address of a host on the underlay.
    pub fn address(&self, host: &Host) -> String {
        match self.cell.underlay {
            Underlay::V4 => host.address(),
            Underlay::V6 => host.address6(),
        }
    }

    /// The family of the underlay, as an index.
    pub fn family(&self) -> usize {
        usize::from(self.cell.underlay == Underlay::V6)
    }

    /// Whether packets between the own addresses of two hosts go through the tunnel.
    pub fn is_carried(&self, one: usize, other: usize) -> bool {
        self.cell.carries(one) && self.cell.carries(other)
    }

    fn join(&mut self) -> Result<()> {
        let mut grants = Vec::new();
        if self.cell.source == Source::Workloads {
            grants.extend(WORKLOAD_RANGES.iter().flat_map(|range| ["--workloads", range]));
        } else {
            grants.extend(POD_RANGES.iter().flat_map(|range| ["--allow", range]));
        }
        grants.extend(NODE_RANGES.iter().flat_map(|range| ["--allow", range]));
        let (first, others) = self.hosts.split_first().context("no hosts")?;
        for host in &self.hosts {
            host.wait_state("waiting", pace(20))?;
        }
        first.meshctl(&[&["init", "--mesh", "test"][..], &grants].concat())?.ok()?;
        let uses = others.len().to_string();
        let token = [&["token", "create", "--uses", &uses][..], &grants].concat();
        let token = first.meshctl(&token)?.ok()?.stdout;
        let joins = others
            .iter()
            .map(|host| {
                let mut command = host.program("meshctl")?;
                command.args(["join", "-"]);
                crate::harness::Running::start(command, token.trim())
            })
            .collect::<Result<Vec<_>>>()?;
        for join in joins {
            join.finish(pace(60))?.ok()?;
        }
        for host in &self.hosts {
            let status = wait_for(&format!("{}: two tunnels", host.name()), pace(20), || {
                host.check_daemon()?;
                let status = host.status()?;
                let up = status.peers.context("no count of peers")?.up;
                ensure!(up == 2, "{up} are up: {:?}", status.health);
                Ok(status)
            })?;
            let find = |six: bool| {
                let all = status.mesh_addresses.iter().filter_map(|net| net.split('/').next());
                let mut all = all.filter(|address| address.contains(':') == six);
                all.next().map(str::to_owned).context("no mesh address")
            };
            self.inside.push([find(false)?, find(true)?]);
        }
        Ok(())
    }

    /// The network between takes packets for every pod: who sends one there in the clear does so, instead of asking
    /// for a link address in vain.
    fn answer_for_guests(&self, world: &World) -> Result<()> {
        let router = world.run(&["cat", "/sys/class/net/br0/address"])?;
        for (number, host) in self.hosts.iter().enumerate() {
            let others = self.guests.iter().filter(|guest| guest.host != number);
            let known: String = others
                .flat_map(|guest| &guest.addresses)
                .map(|to| {
                    format!(
                        "ip neigh replace {to} lladdr {} dev eth0 nud permanent\n",
                        router.trim()
                    )
                })
                .collect();
            host.sh(&known)?;
        }
        Ok(())
    }

    /// As the network between would: to pods by way of their hosts.
    fn reach_from_outside(&self) -> Result<()> {
        let family = self.family();
        let routes: Vec<String> = self
            .guests
            .iter()
            .map(|guest| {
                let via = self.address(&self.hosts[guest.host]);
                format!("ip route add {} via {via}", guest.addresses[family])
            })
            .collect();
        self.outside.sh(&routes.join("\n")).map(drop)
    }

    /// Where packets must go, by the kernel's own word: of each host, what leads into the tunnel and what does not.
    fn wait_routed(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            let (mut tunnel, mut elsewhere) = (Vec::new(), vec![self.address(&self.outside)]);
            for guest in &self.guests {
                let list = if guest.host == number { &mut elsewhere } else { &mut tunnel };
                list.extend(guest.addresses.clone());
            }
            for (other, addresses) in self.inside.iter().enumerate() {
                if other != number {
                    tunnel.extend(addresses.clone());
                    let carried = self.is_carried(number, other);
                    let list = if carried { &mut tunnel } else { &mut elsewhere };
                    list.push(self.address(&self.hosts[other]));
                }
            }
            wait_for(&format!("{}: the routes are right", host.name()), pace(30), || {
                host.check_daemon()?;
                let carried = into_tunnel(host, tunnel.iter().chain(&elsewhere))?;
                for (list, right) in [(&tunnel, true), (&elsewhere, false)] {
                    let wrong: Vec<_> =
                        list.iter().filter(|to| carried.contains(*to) != right).collect();
                    ensure!(wrong.is_empty(), "into the tunnel is not {right} for {wrong:?}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Guest {
    fn new(source: Source, hosts: &[Host], on: usize, name: &str, number: usize) -> Result<Self> {
        let host = hosts.get(on).context("no such host")?;
        let (place, addresses) = match source {
            Source::Prefixes => {
                let pod = host.pod(&PodPlan::plain(name))?;
                let addresses = [pod.address(), pod.address6()].map(str::to_owned);
                (Either::OfRange(pod), addresses)
            }
            Source::Workloads => {
                let pod = host.workload(name, u32::try_from(number)? + 1)?;
                let addresses = [pod.address(), pod.address6()];
                (Either::OfCloud(pod), addresses)
            }
        };
        Ok(Self { place, host: on, addresses })
    }
}

/// Those of `addresses` that the kernel sends into the tunnel; all asked for at once.
fn into_tunnel<'a>(
    host: &Host,
    addresses: impl Iterator<Item = &'a String>,
) -> Result<BTreeSet<&'a String>> {
    let asked: BTreeMap<IpAddr, &String> =
        addresses.map(|text| Ok((text.parse()?, text))).collect::<Result<_>>()?;
    let batch: String = asked.keys().map(|to| format!("route get {to}\n")).collect();
    // What is unreachable is an error, said among the errors, and not in the tunnel.
    let said = host.try_run_with(&["ip", "-force", "-o", "-batch", "-"], &batch)?.stdout;
    let tunnel = said.lines().filter(|line| line.contains(" dev mesh0 "));
    let to = tunnel.filter_map(|line| line.split_whitespace().next()?.parse().ok());
    Ok(to.filter_map(|to: IpAddr| asked.get(&to).copied()).collect())
}

fn config(cell: &Cell, host: usize) -> String {
    let mut lines = vec!["[network]"];
    if cell.carries(host) {
        lines.push("encrypt = \"pods+nodes\"");
    }
    if cell.source == Source::Workloads {
        lines.push("route_source = \"workloads\"");
    }
    if cell.strict {
        lines.push("leak_protection = \"strict\"");
    }
    lines.join("\n") + "\n"
}
