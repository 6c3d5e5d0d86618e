//! A phone that cannot run meshd: configured by nothing but what `meshctl peers config` prints.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Flow, Host, HostPlan, Mesh, Place, Pod, PodPlan, World, in_vm, pace, scenario, wait_for,
};

const STRICT: &str = "[network]\nleak_protection = \"strict\"\n";
/// What host a is granted for devices, and what the first gets of it.
const RANGES: [&str; 2] = ["10.99.0.0/24", "fd99::/64"];
const PHONE: [&str; 2] = ["10.99.0.1", "fd99::1"];

struct Site {
    mesh: Mesh,
    pods: [Pod; 2],
}

impl Site {
    fn build(world: &World) -> Result<Self> {
        let mesh = Mesh::unstarted(world, &[HostPlan::node("a"), HostPlan::node("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        a.configure(STRICT)?;
        b.configure(STRICT)?;
        mesh.start()?;
        let own = a.pod_prefixes();
        let mut init = vec!["init", "--mesh", "test"];
        own.iter().map(String::as_str).chain(RANGES).for_each(|p| init.extend(["--prefix", p]));
        a.meshctl(&init)?.ok()?;
        b.join(&a.token_for(b)?)?;
        let pods = [a.pod(&PodPlan::plain("pod-a"))?, b.pod(&PodPlan::plain("pod-b"))?];
        a.wait_up(1, pace(20))?;
        b.wait_up(1, pace(20))?;
        Ok(Self { mesh, pods })
    }

    fn a(&self) -> &Host {
        &self.mesh.hosts[0]
    }

    fn b(&self) -> &Host {
        &self.mesh.hosts[1]
    }

    /// What the phone reaches, and is reached by.
    fn others(&self) -> Result<Vec<(&dyn Place, [String; 2])>> {
        let pod = |pod: &Pod| [pod.address().to_owned(), pod.address6().to_owned()];
        let host = |host: &Host| host.mesh_addresses().map(|(v4, v6)| [v4, v6]);
        Ok(vec![
            (&self.pods[0], pod(&self.pods[0])),
            (&self.pods[1], pod(&self.pods[1])),
            (self.a(), host(self.a())?),
            (self.b(), host(self.b())?),
        ])
    }

    /// Both directions, both families.
    fn reaches(&self, phone: &Host) -> Result<usize> {
        let mut count = 0;
        for (place, addresses) in self.others()? {
            for (theirs, ours) in addresses.iter().zip(PHONE) {
                phone.ping(theirs, ours).with_context(|| format!("phone to {}", place.name()))?;
                place.ping(ours, "").with_context(|| format!("{} to the phone", place.name()))?;
                count += 2;
            }
        }
        Ok(count)
    }

    /// The row of the phone in `peers list`.
    fn row(&self) -> Result<meshd_tests::harness::Peer> {
        let peers = self.a().peers()?;
        peers.into_iter().find(|peer| peer.name == "phone").context("no row for the phone")
    }
}

/// A file of another namespace, made by what `peers config` printed and nothing else.
fn configure(phone: &Host, config: &str) -> Result<()> {
    phone.write("/etc/wireguard/wg0.conf", config)?;
    phone.sh("chmod 600 /etc/wireguard/wg0.conf; wg-quick up wg0").map(drop)
}

/// Packets that the underlay shows in the clear of the phone's addresses.
fn in_the_clear(
    world: &World,
    name: &str,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Vec<String>> {
    let capture = world.capture(name)?;
    meanwhile()?;
    capture.stop(world)?.packets(&format!("host {} or host {}", PHONE[0], PHONE[1]))
}

#[test]
fn a_phone_is_a_part_of_the_mesh_behind_its_gateway() {
    scenario("phone", |world| {
        let site = Site::build(world)?;
        let (a, b) = (site.a(), site.b());
        let phone = world.host(&HostPlan::vm("phone"))?;
        let added = Instant::now();
        let said = a.meshctl(&["peers", "add", "phone"])?.ok()?;
        println!("phone: added and programmed within {:.2?}", added.elapsed());
        ensure!(PHONE.iter().all(|p| said.stdout.contains(p)), "it said {}", said.stdout);
        // What it says happened, happened.
        let peer = site.row()?.public_key.context("no key")?;
        let held = a.wg_peers()?.into_iter().find(|p| p.public_key == peer).context("no peer")?;
        ensure!(held.allowed_ips == ["10.99.0.1/32", "fd99::1/128"], "{held:?}");
        // A second one keeps the range announced when the first is gone.
        let behind = ["--prefix", "10.99.0.128/25", "--prefix", "fd99::1:0/112"];
        a.meshctl(&[&["peers", "add", "router"], &behind[..]].concat())?.ok()?;
        let config = a.meshctl(&["peers", "config", "phone"])?.ok()?;
        wait_for("b routes the ranges to a", pace(10), || {
            let routes = b.mesh_routes()?.join("\n");
            ensure!(RANGES.iter().all(|r| routes.contains(&format!("{r} dev mesh0"))), "{routes}");
            Ok(())
        })?;

        let leaks = in_the_clear(world, "joins", || {
            configure(&phone, &config.stdout)?;
            let pings = site.reaches(&phone)?;
            println!("phone: {pings} pings answered, there and back, IPv4 and IPv6");
            Ok(())
        })?;
        ensure!(leaks.is_empty(), "in the clear: {leaks:?}");
        wait_for("the phone is shown as up", pace(10), || {
            let row = site.row()?;
            ensure!(row.tunnel == "up" && row.path == "direct", "{row:?}");
            Ok(())
        })?;
        ensure!(a.status()?.state == "running", "{:?}", a.status()?.health);
        let totals = a.status()?.peers.context("no totals")?;
        ensure!(totals.total == 1 && totals.up == 1, "devices are no members: {totals:?}");

        drifts(&site, &phone, &peer)?;
        restart_under_flow(&site, &phone)?;
        roams(&site, &phone)?;
        damage(&site, &phone)?;
        refusals(a)?;
        stays_where_it_belongs(world, &site, &phone)?;
        goes(world, &site, &phone, &peer)?;

        // A leave leaves nothing of any device.
        a.meshctl(&["leave", "--yes"])?.ok()?;
        a.sh("test ! -e /var/lib/meshd/keys/devices; test ! -e /sys/class/net/mesh0").map(drop)
    });
}

/// The data plane goes on without the daemon, and the next one finds it as it should be.
fn restart_under_flow(site: &Site, phone: &Host) -> Result<()> {
    let pod = &site.pods[1];
    let flows = [(PHONE[0], pod.address()), (PHONE[1], pod.address6())];
    let flows = flows
        .map(|(ours, theirs)| Flow::start((phone, ours), (pod as &dyn Place, theirs), 100, 12));
    site.a().kill_daemon()?;
    site.a().start_daemon()?;
    site.a().wait_up(1, pace(20))?;
    for flow in flows {
        let report = flow?.report()?;
        println!("phone: restart under flow: {}", report.summary());
        report.nothing_lost("while the gateway's daemon was killed and started")?;
    }
    Ok(())
}

/// The phone moves to another network address; nobody is told.
fn roams(site: &Site, phone: &Host) -> Result<()> {
    let moved = Instant::now();
    phone.sh("ip addr del 192.0.2.3/24 dev eth0; ip addr add 192.0.2.77/24 dev eth0
         ip route replace default via 192.0.2.254")?;
    wait_for("the phone is found at its new place", pace(30), || {
        phone.ping(site.pods[1].address(), PHONE[0])?;
        let endpoint = site.row()?.endpoint.unwrap_or_default();
        ensure!(endpoint.starts_with("192.0.2.77:"), "its endpoint is {endpoint}");
        Ok(())
    })?;
    site.pods[1].ping(PHONE[0], "")?;
    println!("phone: reached at another address {:.2?} after it moved", moved.elapsed());
    Ok(())
}

/// Whatever somebody does to its peer is undone.
fn drifts(site: &Site, phone: &Host, key: &str) -> Result<()> {
    let a = site.a();
    let state = format!(
        "wg show mesh0 dump | grep -F '{key}' | cut -f 1,2,4,8 | tr '\\t,' '\\n\\n' | sort
         for f in -4 -6; do ip $f route show table 51820; done | sed 's/ mtu [0-9]*//'"
    );
    let before = a.sh(&state)?;
    for (what, how) in [
        ("the peer is removed", format!("wg set mesh0 peer {key} remove")),
        (
            "another pre-shared key",
            format!("wg genpsk >/run/psk; wg set mesh0 peer {key} preshared-key /run/psk"),
        ),
        ("no pre-shared key", format!("wg set mesh0 peer {key} preshared-key /dev/null")),
        ("other allowed IPs", format!("wg set mesh0 peer {key} allowed-ips 10.99.0.77/32")),
        ("a keepalive", format!("wg set mesh0 peer {key} persistent-keepalive 5")),
        ("its route goes", "ip route del 10.99.0.1 table 51820 dev mesh0".to_owned()),
    ] {
        a.sh(&how)?;
        let done = Instant::now();
        wait_for(what, pace(10), || {
            let now = a.sh(&state)?;
            ensure!(now == before, "it is\n{now}\ninstead of\n{before}");
            Ok(())
        })?;
        let took = done.elapsed();
        println!("phone: {what}: back after {took:.2?}");
        // `scenario_drift` holds repairs to a second; a busy machine may ration a repair meanwhile.
        ensure!(in_vm() || took < Duration::from_secs(6), "{what}: {took:?}");
        wait_for("the pace is as before", pace(60), || {
            let health = a.status()?.health;
            ensure!(health.iter().all(|line| line.code != "drift_contested"), "rationed");
            Ok(())
        })?;
    }
    // The phone speaks first: its endpoint is learned anew.
    wait_for("the tunnel is up again", pace(30), || {
        phone.ping(site.pods[1].address(), PHONE[0])?;
        site.pods[1].ping(PHONE[0], "")
    })?;
    Ok(())
}

/// A file that cannot be read costs no tunnel, and comes back.
fn damage(site: &Site, phone: &Host) -> Result<()> {
    let a = site.a();
    let restart = || -> Result<()> {
        a.kill_daemon()?;
        a.start_daemon()?;
        Ok(())
    };
    let file = "/var/lib/meshd/keys/devices/phone";
    a.sh(&format!("cp -p {file} /run/phone; echo '{{}}' >{file}"))?;
    restart()?;
    wait_for("the damage is said", pace(20), || {
        let health = a.status()?.health;
        ensure!(health.iter().any(|line| line.code == "device_damaged"), "{health:?}");
        a.wait_up(1, pace(5))
    })?;
    site.reaches(phone)?;
    ensure!(site.row().is_err(), "it is shown though nothing is known of it");
    a.sh(&format!("cp -p /run/phone {file}"))?;
    restart()?;
    wait_for("it is known again", pace(20), || {
        ensure!(site.row()?.tunnel == "up", "{:?}", site.row()?);
        Ok(())
    })?;
    println!("phone: reached with its file damaged, and after it was restored");
    site.reaches(phone).map(drop)
}

/// What cannot be is refused with its reason, and changes nothing.
fn refusals(a: &Host) -> Result<()> {
    let peers = a.wg_peers()?.len();
    let (v4, v6) = a.mesh_addresses()?;
    let key = a.status()?.public_key.context("no key")?;
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let refused: [(&[&str], &str); 14] = [
        (&["phone"], "has a device of that name"),
        (&["b"], "a member of the mesh has that name"),
        (&["../phone"], "not valid"),
        (&["x", "--prefix", "10.98.0.1/32"], "meshctl token create --prefix 10.98.0.1/32"),
        (&["x", "--prefix", "10.99.0.1/32"], "of the device phone"),
        (&["x", "--prefix", "10.244.1.7/32"], "this host's own pods"),
        (&["x", "--prefix", "10.244.2.7/32"], "of the member b"),
        (&["x", "--prefix", "192.0.2.200/32"], "the network of this host's address"),
        (&["x", "--prefix", &v4], "the mesh"),
        (&["x", "--prefix", &v6], "the mesh"),
        (&["x", "--prefix", "0.0.0.0/0"], "reserved"),
        (&["x", "--public-key", &key], "that of"),
        (&["x", "--public-key", zero], "none of WireGuard's"),
        (&["x", "--endpoint", "phone.example"], "names are not looked up"),
    ];
    for (arguments, reason) in refused {
        let ran = a.meshctl(&[&["peers", "add"], arguments].concat())?.exits(1)?;
        ensure!(ran.stderr.contains(reason), "{arguments:?}: {}", ran.stderr);
    }
    for verb in ["config", "remove"] {
        let ran = a.meshctl(&["peers", verb, "nobody"])?.exits(1)?;
        ensure!(ran.stderr.contains("no device of that name"), "{}", ran.stderr);
    }
    ensure!(a.wg_peers()?.len() == peers, "a refusal changed the kernel");
    // A key that was thrown away is not printed again.
    a.meshctl(&["peers", "config", "router", "--forget-key"])?.ok()?;
    let config = a.meshctl(&["peers", "config", "router"])?.ok()?.stdout;
    ensure!(config.contains("\n# PrivateKey") && config.contains("PresharedKey"), "{config}");
    let kept = a.sh("cat /var/lib/meshd/keys/devices/router")?;
    ensure!(kept.contains("\"private_key\":null"), "it is kept");
    Ok(())
}

/// It sends with its own addresses only, and gets no further than the mesh.
fn stays_where_it_belongs(world: &World, site: &Site, phone: &Host) -> Result<()> {
    let key = site.a().status()?.public_key.context("no key")?;
    phone.sh(&format!(
        "ip addr add 10.99.0.9/32 dev wg0; ip addr add {}/32 dev wg0
         ip route add 198.51.100.0/24 dev wg0
         wg set wg0 peer {key} allowed-ips 0.0.0.0/0,::/0",
        "10.244.2.200"
    ))?;
    let leaks = in_the_clear(world, "confined", || {
        for foreign in ["10.99.0.9", "10.244.2.200"] {
            ensure!(phone.ping(site.pods[0].address(), foreign).is_err(), "{foreign} was believed");
        }
        for outside in ["198.51.100.7", "192.0.2.254"] {
            let to = phone.sh(&format!("ip route replace {outside} dev wg0"));
            to?;
            ensure!(phone.ping(outside, PHONE[0]).is_err(), "{outside} answered");
        }
        phone.sh("ip route del 192.0.2.254 dev wg0").map(drop)
    })?;
    ensure!(leaks.is_empty(), "in the clear: {leaks:?}");
    let chain = site.a().sh("nft list chain inet meshd from_mesh")?;
    let dropped = chain.lines().filter_map(|l| l.split("packets ").nth(1)?.split(' ').next());
    let dropped: u64 = dropped.filter_map(|n| n.parse::<u64>().ok()).sum();
    ensure!(dropped >= 2, "the gateway dropped {dropped} packets: {chain}");
    println!(
        "phone: {dropped} packets beyond the mesh were dropped, foreign sources were not believed"
    );
    Ok(())
}

/// Removed, it is out at once, and what is sent to it goes nowhere.
fn goes(world: &World, site: &Site, phone: &Host, key: &str) -> Result<()> {
    let a = site.a();
    let asked = Instant::now();
    a.meshctl(&["peers", "remove", "phone"])?.ok()?;
    println!("phone: removed within {:.2?}", asked.elapsed());
    ensure!(a.wg_peers()?.iter().all(|peer| peer.public_key != key), "the kernel has it");
    // After a crash routes go when everybody is known again; until then they lead to no peer, which is a refusal.
    wait_for("its routes go", pace(60), || {
        let routes = a.mesh_routes()?.join("\n");
        ensure!(!routes.contains("10.99.0.1 dev") && !routes.contains("fd99::1 dev"), "{routes}");
        Ok(())
    })?;
    a.sh(
        "test ! -e /var/lib/meshd/keys/devices/phone; test -e /var/lib/meshd/keys/devices/router",
    )?;
    let leaks = in_the_clear(world, "removed", || {
        for (place, _) in site.others()? {
            for ours in PHONE {
                ensure!(place.ping(ours, "").is_err(), "the phone answers {}", place.name());
            }
        }
        ensure!(phone.ping(site.pods[0].address(), PHONE[0]).is_err(), "it gets in");
        Ok(())
    })?;
    ensure!(leaks.is_empty(), "in the clear: {leaks:?}");
    println!("phone: after its removal nothing of it goes in the clear");
    let twice = a.meshctl(&["peers", "remove", "phone"])?.exits(1)?;
    ensure!(twice.stderr.contains("no device of that name"), "{}", twice.stderr);
    Ok(())
}

#[test]
fn a_device_that_was_removed_is_gone_after_a_crash_too() {
    scenario("removed", |world| {
        let site = Site::build(world)?;
        let (a, b) = (site.a(), site.b());
        let routed = |wanted: bool| {
            wait_for(&format!("b routes the range to a is {wanted}"), pace(15), || {
                let routes = b.mesh_routes()?.join("\n");
                ensure!(routes.contains("10.99.0.0/24 dev mesh0") == wanted, "{routes}");
                Ok(())
            })
        };
        a.meshctl(&["peers", "add", "phone"])?.ok()?;
        routed(true)?;
        // The file went, and the daemon with it before it had told anybody. Beside it lies what is no device's.
        a.kill_daemon()?;
        a.sh("cd /var/lib/meshd/keys/devices; rm phone; echo x >phone~")?;
        a.start_daemon()?;
        a.wait_up(1, pace(20))?;
        let local = a.run(&["ip", "route", "show", "table", "51820"])?;
        ensure!(!local.contains("throw 10.99.0.0/24"), "the range counts as local: {local}");
        routed(false)?;
        let health = a.status()?.health;
        ensure!(health.iter().any(|line| line.code == "device_stray_file"), "{health:?}");
        ensure!(!health.iter().any(|line| line.code == "device_damaged"), "{health:?}");
        wait_for("its peer is gone", pace(10), || {
            let peers = a.wg_peers()?;
            ensure!(peers.len() == 1, "{peers:?}");
            Ok(())
        })
    });
}
