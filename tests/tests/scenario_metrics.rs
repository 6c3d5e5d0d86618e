//! The metrics of a real daemon say what `meshctl` says, and nobody who asks for them does it harm.

use std::fs;

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, Running, pace, scenario, wait_for};
use serde_json::Value;

const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:9586\"";
const ADDRESS: &str = "127.0.0.1:9586";

/// The program that asks, in the host's namespaces; `ulimit`: it may need a thousand files.
fn scraper(host: &Host, arguments: &[&str]) -> Result<Running> {
    let program = host.program_path("scrape")?;
    let script = "ulimit -n 4096; exec \"$@\"";
    host.start(&[&["sh", "-c", script, "sh", &program, ADDRESS], arguments].concat())
}

fn wait_for_word(program: &mut Running, word: &str) -> Result<()> {
    wait_for(&format!("it says {word}"), pace(30), || {
        ensure!(program.output_so_far()?.contains(word), "{}", program.errors_so_far()?);
        Ok(())
    })
}

/// A scraped page: every series with its value.
struct Page(Vec<(String, f64)>);

impl Page {
    /// Parses it as a scraper does: anything that is not understood is an error.
    fn of(host: &Host) -> Result<Self> {
        let text = scraper(host, &[])?.finish(pace(30))?.ok()?.stdout;
        ensure!(text.ends_with("# EOF\n"), "{text}");
        let mut series = Vec::new();
        let mut family = "";
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# ") {
                let name = rest.split(' ').nth(1).context("a comment without a name")?;
                ensure!(rest.starts_with("HELP ") || rest.starts_with("TYPE "), "{line}");
                family = name;
                continue;
            }
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            ensure!(name.starts_with(family), "{line} is not of {family}");
            let value = value.parse().with_context(|| line.to_owned())?;
            ensure!(series.iter().all(|(other, _)| other != name), "{name} is there twice");
            series.push((name.to_owned(), value));
        }
        Ok(Self(series))
    }

    fn get(&self, series: &str) -> Result<f64> {
        let found = self.0.iter().find(|(name, _)| name == series);
        found.map(|(_, value)| *value).with_context(|| format!("no {series}"))
    }

    /// Of all series of a family whose labels have `part`.
    fn sum(&self, family: &str, part: &str) -> f64 {
        let of = |name: &str| name.split('{').next() == Some(family) && name.contains(part);
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, value)| value).sum()
    }
}

/// Seconds since the epoch, as `date` reads them.
fn seconds(host: &Host, time: &str) -> Result<f64> {
    Ok(host.run(&["date", "-d", time, "+%s"])?.trim().parse()?)
}

fn resident(host: &Host) -> Result<u64> {
    let pid = host.with_daemon(|daemon| Ok(daemon.pid()))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn a_scrape_says_what_meshctl_says() {
    scenario("scrape", |world| {
        let mesh = Mesh::unstarted(world, &["a", "b", "c"].map(HostPlan::node))?;
        let a = &mesh.hosts[0];
        a.configure(LISTEN)?;
        mesh.start()?;
        let page = Page::of(a)?;
        ensure!(page.get("meshd_state{state=\"waiting\"}")? == 1.0, "it does not wait");
        mesh.join_all()?;
        mesh.wait_handshaken(pace(30))?;
        a.wait_up(2, pace(10))?;

        let (page, status, peers) =
            wait_for("a moment in which nothing changes", pace(10), || {
                let (before, page, peers) = (a.status()?, Page::of(a)?, a.peers()?);
                let states = |s: &meshd_tests::harness::Status| (s.state.clone(), s.health.len());
                ensure!(states(&before) == states(&a.status()?), "it changes");
                for peer in &peers {
                    let of = format!(
                        "meshd_peers{{gossip=\"{}\",tunnel=\"{}\"}}",
                        peer.gossip, peer.tunnel
                    );
                    ensure!(page.get(&of)? >= 1.0, "{of}");
                }
                Ok((page, before, peers))
            })?;
        let backend = status.backend.context("no backend")?;
        let version = env!("CARGO_PKG_VERSION");
        page.get(&format!(
            "meshd_info{{version=\"{version}\",mesh=\"test\",node=\"a\",backend=\"{backend}\"}}"
        ))?;
        ensure!(page.get(&format!("meshd_state{{state=\"{}\"}}", status.state))? == 1.0, "state");
        ensure!(page.sum("meshd_state", "") == 1.0, "two states at once");
        ensure!(page.sum("meshd_peers", "") == peers.len() as f64, "peers");
        for peer in &peers {
            let of = |family: &str| format!("{family}{{peer=\"{}\"}}", peer.name);
            ensure!(page.get(&of("meshd_peer_tunnel_up"))? == 1.0, "{peer:?}");
            let age = peer.last_handshake_seconds.context("no handshake")? as f64;
            ensure!(
                (page.get(&of("meshd_peer_last_handshake_seconds"))? - age).abs() < 30.0,
                "{age}"
            );
            ensure!(page.get(&of("meshd_peer_received_bytes_total"))? > 0.0, "no bytes");
            ensure!(page.get(&of("meshd_peer_sent_bytes_total"))? > 0.0, "no bytes");
        }
        ensure!(page.get("meshd_records")? == 3.0, "records");
        for line in &status.health {
            let of =
                format!("meshd_health{{code=\"{}\",severity=\"{}\"}}", line.code, line.severity);
            ensure!(page.get(&of)? == 1.0, "{of}");
        }
        // Every certificate that `cert show` knows, with the very second.
        let shown = a.meshctl(&["cert", "show", "-o", "json"])?.ok()?.stdout;
        let shown: Vec<Value> = serde_json::from_str(&shown)?;
        for (kind, name, shown_as) in
            [("node", "a", "node"), ("signer", "a", "intermediate"), ("root", "", "root")]
        {
            let found = shown.iter().find(|one| one["kind"] == shown_as);
            let end = found.and_then(|one| one["not_after"].as_str()).context("no end")?;
            let of = format!(
                "meshd_certificate_expiry_timestamp_seconds{{kind=\"{kind}\",name=\"{name}\"}}"
            );
            ensure!(page.get(&of)? == seconds(a, end)?, "{of} is not {end}");
        }
        ensure!(
            page.get("meshd_events_total{code=\"node_admitted\",severity=\"info\"}")? == 2.0,
            "admissions"
        );
        ensure!(page.get("meshd_enrolments_total")? == 2.0, "enrolments");
        ensure!(page.sum("meshd_frames_bytes_total", "received") > 1000.0, "gossip");
        ensure!(page.get("process_resident_memory_bytes")? > 1e6, "process");

        // What breaks is counted, and what is down is seen.
        a.run(&["ip", "route", "flush", "table", "51820"])?;
        mesh.hosts[2].kill_daemon()?;
        wait_for("it is in the metrics", pace(40), || {
            let page = Page::of(a)?;
            ensure!(page.get("meshd_drift_repaired_total")? > 0.0, "no repair");
            ensure!(page.sum("meshd_peers", "gossip=\"down\"") == 1.0, "nobody is down");
            Ok(())
        })?;
        println!("scrape: {} series for three hosts", page.0.len());
        Ok(())
    });
}

#[test]
fn whoever_asks_for_metrics_does_no_harm() {
    scenario("asked", |world| {
        let mesh = Mesh::unstarted(world, &["a", "b"].map(HostPlan::vm))?;
        let a = &mesh.hosts[0];
        a.configure(LISTEN)?;
        mesh.start()?;
        mesh.join_all()?;
        a.wait_up(1, pace(20))?;
        let before = resident(a)?;
        // A thousand that connect and say half a request, all open at once; then one that asks.
        let mut flood = scraper(a, &["--mode", "silent", "--connections", "1000"])?;
        wait_for_word(&mut flood, "1000 open")?;
        let page = Page::of(a)?;
        let files = page.get("process_open_fds")?;
        ensure!(files < 200.0, "{files} files are open");
        ensure!(page.sum("meshd_peers", "tunnel=\"up\"") == 1.0, "the tunnel");
        a.ping(&mesh.hosts[1].mesh_addresses()?.0, "")?;
        ensure!(a.status()?.state == "running", "it does not run");
        let grown = resident(a)?.saturating_sub(before);
        ensure!(grown < 8_192, "it grew by {grown} KiB");
        drop(flood);

        // Who reads a byte now and then keeps nobody waiting.
        let mut slow = scraper(a, &["--mode", "slow"])?;
        for _ in 0..20 {
            Page::of(a)?;
        }
        ensure!(slow.ended()?.is_none(), "it was not slow");
        drop(slow);
        println!("asked: grew by {grown} KiB");
        ensure!(a.status()?.state == "running", "it does not run");
        Ok(())
    });
}

#[test]
fn an_address_that_is_taken_is_said_and_costs_nothing_else() {
    scenario("taken", |world| {
        let a = world.host(&HostPlan::vm("a"))?;
        let mut held = scraper(&a, &["--mode", "hold"])?;
        wait_for_word(&mut held, "held")?;
        a.configure(LISTEN)?;
        let mut check = a.program("meshd")?;
        check.arg("check");
        let ran = meshd_tests::harness::run(check, "", pace(15))?.exits(1)?;
        ensure!(ran.stdout.contains("problem  metrics: 127.0.0.1:9586"), "{}", ran.stdout);
        a.start_daemon()?;
        a.init_mesh()?;
        let status = a.status()?;
        let line = status.health.iter().find(|line| line.code == "metrics_not_served");
        let line = line.with_context(|| format!("{:?}", status.health))?;
        ensure!(line.severity == "warning" && line.message.contains("127.0.0.1:9586"), "{line:?}");
        drop(held);
        wait_for("it is served when the port is free", pace(20), || {
            Page::of(&a)?;
            ensure!(
                a.status()?.health.iter().all(|l| l.code != "metrics_not_served"),
                "still said"
            );
            Ok(())
        })
    });
}
