//! Everything that must get through in a cell, and everything that must not be seen on its wire.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::Source;
use super::site::Site;
use crate::harness::{Captured, Place, World, pace};

/// Ports that the mesh itself uses between hosts, and one that nobody uses.
const PORTS: &str = "51800,51820,51821,9";
/// What of two hosts that carry each other's addresses may be seen: what finds link addresses, and our own UDP. A pod or
/// another program that sends to our ports has another source port.
const OURS: &str = "arp or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137) \
     or (udp and src port 51800 and dst port 51800) or (udp and src port 51820 and dst port 51820)";
/// Takes away what leads into the mesh: the device, rules and tables.
const TAKE_WAY: &str = "ip link del mesh0 2>/dev/null || true
    for f in -4 -6; do for p in 2600 2601; do ip $f rule del pref $p 2>/dev/null || true; done
    for t in 51820 51821; do ip $f route flush table $t 2>/dev/null || true; done; done";

/// What a cell has shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Pairs of addresses that reached each other.
    pub reached: usize,
    /// Packets in the clear that the capture saw when all protection was taken away.
    pub control: usize,
}

/// Tries everything, with the mesh up and with `a` without daemon and device.
pub fn prove(world: &World, site: &Site, name: &str) -> Result<Shown> {
    let a = &site.hosts[0];
    witness(site)?;
    let capture = world.capture(name)?;
    let reached = reach(site)?;
    send(site)?;
    witnessed(site)?;
    a.kill_daemon()?;
    // Strict protection stands without routes and rules; without it `unreachable` stands behind each route.
    a.sh(if site.cell.strict { TAKE_WAY } else { "ip link del mesh0" })?;
    send(site)?;
    let bare = SystemTime::now().duration_since(UNIX_EPOCH)?;
    a.sh("nft flush ruleset")?;
    a.sh(TAKE_WAY)?;
    send(site)?;
    let captured = capture.stop(world)?;

    let (clear, control) = in_the_clear(site, &captured, bare)?;
    ensure!(clear.is_empty(), "{} packets in the clear: {:#?}", clear.len(), first(&clear));
    for family in [0, 1] {
        for to in [&site.guests[2].addresses[family], &site.inside[1][family]] {
            // As tcpdump writes it.
            let to: IpAddr = to.parse()?;
            ensure!(
                control.iter().any(|line| line.contains(&format!(" > {to}"))),
                "without protection nothing to {to} was seen: a leak would not have been either: {:#?}",
                first(&control)
            );
        }
    }
    let carried = captured.packets("udp and src port 51820 and dst port 51820")?.len();
    ensure!(carried > reached, "{carried} packets of WireGuard for {reached} pairs");
    Ok(Shown { reached, control: control.len() })
}

/// As many as a person reads.
fn first(lines: &[String]) -> &[String] {
    &lines[..lines.len().min(12)]
}

/// Each place with what it must reach: `ADDRESS`, or `ADDRESS,SOURCE` from an address of its own.
fn pairs(site: &Site) -> Vec<(&dyn Place, Vec<String>)> {
    let family = site.family();
    let outside = site.address(&site.outside);
    let mut all: Vec<(&dyn Place, Vec<String>)> = Vec::new();
    for guest in &site.guests {
        // Pods beside it, of the other host, and machines; then who has no meshd.
        let others = site.guests.iter().filter(|other| other.addresses != guest.addresses);
        let mut to: Vec<_> = others.flat_map(|other| other.addresses.clone()).collect();
        for (number, host) in site.hosts.iter().enumerate().filter(|(n, _)| *n != guest.host) {
            to.extend(site.inside[number].clone());
            if site.is_carried(guest.host, number) {
                to.push(site.address(host));
            }
        }
        to.push(outside.clone());
        all.push((guest, to));
    }
    for (number, host) in site.hosts.iter().enumerate() {
        let mut to: Vec<_> = site.guests.iter().flat_map(|guest| guest.addresses.clone()).collect();
        to.push(outside.clone());
        // A socket bound to the host's own address.
        let pod = &site.guests[if number == 1 { 0 } else { 2 }].addresses[family];
        to.push(format!("{pod},{}", site.address(host)));
        for (other, there) in site.hosts.iter().enumerate().filter(|(n, _)| *n != number) {
            to.push(site.address(there));
            to.extend(site.inside[other].clone());
        }
        all.push((host, to));
    }
    let mut to: Vec<_> = site.hosts.iter().map(|host| site.address(host)).collect();
    to.extend(site.guests.iter().map(|guest| guest.addresses[family].clone()));
    all.push((&site.outside, to));
    all
}

/// All at once: how many pairs reached each other.
fn reach(site: &Site) -> Result<usize> {
    let (pairs, program) = (pairs(site), site.hosts[0].program_path("echoes")?);
    let limit = pace(5).as_secs().to_string();
    let mut running = Vec::new();
    for (place, to) in &pairs {
        let mut arguments = vec![program.as_str(), "--wait", &limit];
        arguments.extend(to.iter().map(String::as_str));
        running.push((place, place.start(&arguments)?));
    }
    let mut failed = Vec::new();
    for (place, process) in running {
        let said = process.finish(pace(30))?.ok()?.stdout;
        failed.extend(said.lines().map(|line| format!("{} to {line}", place.name())));
    }
    let count = pairs.iter().map(|(_, to)| to.len()).sum();
    ensure!(failed.is_empty(), "{} of {count} pairs failed: {failed:#?}", failed.len());
    Ok(count)
}

/// Sends from every place to everything of other hosts that is the mesh's, by ICMP and by UDP to the mesh's own ports;
/// what becomes of it the capture says.
fn send(site: &Site) -> Result<()> {
    let program = site.hosts[0].program_path("echoes")?;
    let mut running = Vec::new();
    let places = site.guests.iter().map(|guest| (guest as &dyn Place, guest.host));
    let hosts = site.hosts.iter().enumerate().map(|(number, host)| (host as &dyn Place, number));
    for (place, on) in places.chain(hosts) {
        let mut arguments = vec![program.clone(), "--ports".to_owned(), PORTS.to_owned()];
        for guest in site.guests.iter().filter(|guest| guest.host != on) {
            arguments.extend(guest.addresses.clone());
        }
        for (other, there) in site.hosts.iter().enumerate().filter(|(n, _)| *n != on) {
            arguments.extend(site.inside[other].clone());
            arguments.push(site.address(there));
        }
        running.push(place.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?);
    }
    for process in running {
        process.finish(pace(30))?.ok()?;
    }
    Ok(())
}

/// The packets that should not have been in the clear: before the moment `bare`, and after it.
fn in_the_clear(
    site: &Site,
    captured: &Captured,
    bare: Duration,
) -> Result<(Vec<String>, Vec<String>)> {
    let mut mesh: Vec<String> = Vec::new();
    if site.cell.source == Source::Prefixes {
        mesh.extend(super::site::POD_RANGES.iter().map(|range| format!("net {range}")));
    }
    let guests = site.guests.iter().flat_map(|guest| &guest.addresses);
    mesh.extend(
        guests.chain(site.inside.iter().flatten()).map(|address| format!("host {address}")),
    );
    let mut fine = vec!["arp".to_owned(), format!("host {}", site.address(&site.outside))];
    let mut pairs = Vec::new();
    for (one, host) in site.hosts.iter().enumerate() {
        let address = site.address(host);
        for (other, there) in site.hosts.iter().enumerate().skip(one + 1) {
            if site.is_carried(one, other) {
                pairs.push(format!(
                    "(host {address} and host {} and not ({OURS}))",
                    site.address(there)
                ));
            }
        }
        // Where an address is not carried, pods reach it as without a mesh.
        for guest in &site.guests {
            if guest.host != one && !site.is_carried(guest.host, one) {
                let pod = &guest.addresses[site.family()];
                fine.push(format!("(host {address} and host {pod})"));
            }
        }
    }
    let mut filter = format!("(({}) and not ({}))", mesh.join(" or "), fine.join(" or "));
    pairs.iter().for_each(|pair| filter += &format!(" or {pair}"));
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for line in captured.packets(&filter)? {
        let stamp = line.split_whitespace().next().context("an empty line")?;
        let stamp: f64 = stamp.parse().with_context(|| format!("tcpdump printed {line:?}"))?;
        if stamp < bare.as_secs_f64() { before.push(line) } else { after.push(line) }
    }
    Ok((before, after))
}

/// Counts what goes into the tunnel of `a`: what is for its own pods, which must not, and what a pod sends to the mesh's
/// ports of another pod, which must.
fn witness(site: &Site) -> Result<()> {
    let addresses = |family: usize, own: bool| -> Vec<&str> {
        let of = site.guests.iter().filter(|guest| (guest.host == 0) == own);
        of.map(|guest| guest.addresses[family].as_str()).collect()
    };
    let mut table =
        "table inet witness {\ncounter beside {}\ncounter ports {}\nchain out {\ntype filter hook postrouting priority 400\n"
            .to_owned();
    for (family, ip) in ["ip", "ip6"].into_iter().enumerate() {
        let (own, other) =
            (addresses(family, true).join(", "), addresses(family, false).join(", "));
        table += &format!(
            "oifname \"mesh*\" {ip} daddr {{ {own} }} counter name beside\n\
             oifname \"mesh*\" {ip} saddr {} {ip} daddr {{ {other} }} udp dport {{ 51800, 51820 }} counter name ports\n",
            site.guests[0].addresses[family]
        );
    }
    let loaded = site.hosts[0].try_run_with(&["nft", "-f", "-"], &format!("{table}}}\n}}\n"))?;
    loaded.ok().map(drop)
}

fn witnessed(site: &Site) -> Result<()> {
    let counters = site.hosts[0].run(&["nft", "list", "counters", "table", "inet", "witness"])?;
    let words: Vec<&str> = counters.split_whitespace().collect();
    let packets = |name: &str| -> Result<u64> {
        let at = words.windows(2).position(|pair| pair == ["counter", name]);
        let count = at.and_then(|at| words.get(at + 4)).context("a counter without packets")?;
        Ok(count.parse()?)
    };
    let (beside, ports) = (packets("beside")?, packets("ports")?);
    ensure!(beside == 0, "{beside} packets for a's own pods went into the tunnel");
    ensure!(ports == 4, "{ports} of 4 packets of a pod to the mesh's ports went into the tunnel");
    Ok(())
}
