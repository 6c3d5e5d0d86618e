//! Pods whose addresses belong to the network behind the hosts: each is announced by its route on its host, moves with it,
//! and is reached through the tunnel. And pod prefixes that files of a CNI name, as they come and change.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use meshd_tests::harness::{
    Flow, Host, HostPlan, Mesh, Place, WORKLOAD_RANGES, Workload, World, pace, scenario, wait_for,
};

/// A range of which this test makes routes without pods.
const MANY: &str = "10.240.0.0/16";
const CONFIG: &str = "[network]\nroute_source = \"workloads\"\n";

/// Hosts that announce workloads; all may announce any address of the ranges.
fn form(world: &World, names: &[&str]) -> Result<Mesh> {
    let plans: Vec<HostPlan> = names.iter().map(|name| HostPlan::vm(name)).collect();
    let mesh = Mesh::unstarted(world, &plans)?;
    for host in &mesh.hosts {
        host.configure(CONFIG)?;
    }
    mesh.start()?;
    let ranges: Vec<&str> = [WORKLOAD_RANGES[0], WORKLOAD_RANGES[1], MANY]
        .into_iter()
        .flat_map(|r| ["--workloads", r])
        .collect();
    let (first, others) = mesh.hosts.split_at(1);
    first[0].meshctl(&[&["init", "--mesh", "test"][..], &ranges].concat())?.ok()?;
    let uses = others.len().to_string();
    let made = [&["token", "create", "--uses", &uses][..], &ranges].concat();
    let token = first[0].meshctl(&made)?.ok()?.stdout;
    for host in others {
        host.join(token.trim())?;
    }
    mesh.wait_handshaken(pace(30))?;
    Ok(mesh)
}

/// The way of `host` to an address, as the kernel says it.
fn way(host: &Host, address: &str) -> Result<String> {
    host.run(&["ip", "route", "get", address])
}

fn leads(host: &Host, address: &str, into_mesh: bool) -> Result<()> {
    let way = way(host, address)?;
    ensure!(way.contains("dev mesh0") == into_mesh, "{way}");
    Ok(())
}

/// Waits until the kernel of `host` sends `address` into the mesh, or does not; how long that took.
fn until(host: &Host, address: &str, into_mesh: bool, since: Instant) -> Result<Duration> {
    let what =
        format!("{}: {address} {}", host.name(), if into_mesh { "into the mesh" } else { "gone" });
    wait_for(&what, pace(10), || leads(host, address, into_mesh))?;
    Ok(since.elapsed())
}

fn named(host: &Host) -> Result<BTreeSet<String>> {
    Ok(host.status()?.prefixes.into_iter().collect())
}

fn health(host: &Host) -> Result<Vec<String>> {
    Ok(host
        .status()?
        .health
        .into_iter()
        .map(|line| format!("{}: {}", line.code, line.message))
        .collect())
}

/// Prefixes that somebody contested or that could not be routed, as the host's events tell.
fn blocked(host: &Host) -> Result<String> {
    Ok(host.meshctl(&["events", "--code", "prefix_blocked", "-o", "json"])?.ok()?.stdout)
}

fn published(host: &Host) -> Result<u64> {
    Ok(host.counters()?.value("meshd_records_published_total", None))
}

/// How long it takes until `address` answers, with little time for each try.
fn first_answer(from: &dyn Place, address: &str) -> Result<Duration> {
    let since = Instant::now();
    wait_for(&format!("{address} answers"), pace(10), || {
        from.run(&["ping", "-n", "-c", "1", "-W", "0.2", address])
    })?;
    Ok(since.elapsed())
}

/// Both ways, both families.
fn reach_each_other(one: &Workload, other: &Workload) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        from.ping(&to.address(), "")?;
        from.ping(&to.address6(), "")?;
    }
    Ok(())
}

#[test]
fn pods_with_addresses_of_the_cloud_are_reached_through_the_tunnel() {
    scenario("workloads", |world| {
        let mesh = form(world, &["a", "b", "c"])?;
        let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        let capture = world.capture("workloads")?;
        let on_a = a.workload("pod-a", 1)?;
        let made = Instant::now();
        let told = until(b, &on_a.address(), true, made)?;
        let on_b = b.workload("pod-b", 2)?;
        let reached = first_answer(&on_a, &on_b.address())?;
        println!(
            "workloads: a pod is routed at another host {told:.0?} after its plugin, reached after {reached:.0?}"
        );
        ensure!(told < pace(5), "it took {told:?}");
        reach_each_other(&on_a, &on_b)?;
        // From a host, and from one that has no pods.
        c.ping(&on_a.address(), "")?;
        c.ping(&on_b.address6(), "")?;

        // Two pods of one host are neighbours: nothing of that goes through the mesh.
        let beside = a.workload("pod-a2", 3)?;
        reach_each_other(&on_a, &beside)?;
        leads(a, &beside.address(), false)?;
        let captured = capture.stop(world)?;
        let clear = captured.packets("icmp or (icmp6 and (ip6[40] == 128 or ip6[40] == 129))")?;
        ensure!(clear.is_empty(), "in the clear: {clear:?}");
        ensure!(captured.packets("udp port 51820")?.len() > 10, "nothing in the tunnel either");

        let gone = Instant::now();
        on_b.remove(b)?;
        let withdrawn = until(a, &on_b.address(), false, gone)?;
        println!(
            "workloads: a pod that is removed is withdrawn within {withdrawn:.0?}, its plugin's time among it"
        );
        ensure!(named(b)?.is_empty(), "{:?}", named(b)?);

        moves(&mesh)?;
        survives_restart(&mesh, &on_a)
    });
}

/// A pod is there for longer than a second, and answers: its host changes its record once a second at most.
fn lives(pod: &Workload, from: &Host) -> Result<()> {
    from.run(&["ping", "-n", "-c", "6", "-i", "0.25", "-W", "1", &pod.address()]).map(drop)
}

/// Pods that go from one host to another with their address: nobody ever sees two claims.
fn moves(mesh: &Mesh) -> Result<()> {
    let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
    let mut slowest = Duration::ZERO;
    for round in 0..6_u32 {
        let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let pod = from.workload(&format!("here-{round}"), 9)?;
        until(c, &pod.address(), true, Instant::now())?;
        wait_for("the pod is announced where it is", pace(5), || {
            let peer = c.peer(from.name())?;
            ensure!(
                peer.prefixes.contains(&format!("{}/32", pod.address())),
                "{:?}",
                peer.prefixes
            );
            Ok(())
        })?;
        lives(&pod, c)?;
        // At once, without waiting that anybody has heard of it.
        pod.remove(from)?;
        let pod = to.workload(&format!("there-{round}"), 9)?;
        slowest = slowest.max(first_answer(c, &pod.address())?);
        lives(&pod, c)?;
        pod.remove(to)?;
        until(c, &pod.address(), false, Instant::now())?;
    }
    for host in &mesh.hosts {
        let blocked = blocked(host)?;
        ensure!(!blocked.contains("prefix_blocked"), "{}: {blocked}", host.name());
    }
    println!(
        "workloads: moved six times, reached again {slowest:.0?} after the plugin at most, never contested"
    );
    Ok(())
}

fn survives_restart(mesh: &Mesh, on_a: &Workload) -> Result<()> {
    let [a, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
    let [on_b, on_c] = [b.workload("flow-b", 20)?, c.workload("flow-c", 21)?];
    for pod in [&on_b, &on_c] {
        wait_for("the pods reach each other", pace(10), || reach_each_other(on_a, pod))?;
    }
    wait_for("the pods reach each other", pace(10), || reach_each_other(&on_b, &on_c))?;
    let mut last = String::new();
    for _ in 0..3 {
        let seconds = u32::try_from(pace(8).as_secs())?;
        let (of_a, of_b, of_c) = (on_a.address(), on_b.address(), on_c.address());
        let flow = Flow::start((on_a, &of_a), (&on_b, &of_b), 500, seconds)?;
        let control = Flow::start((&on_c, &of_c), (&on_b, &of_b), 500, seconds)?;
        let flowing = Instant::now();
        a.kill_daemon()?;
        a.start_daemon()?;
        a.wait_up(2, pace(10))?;
        ensure!(flowing.elapsed() < Duration::from_secs(seconds.into()), "longer than the flow");
        let (flow, control) = (flow.report()?, control.report()?);
        println!(
            "workloads: daemon killed and restarted: {}; control: {}",
            flow.summary(),
            control.summary()
        );
        match (flow.nothing_lost("the flow"), control.nothing_lost("control")) {
            (Ok(()), _) => return Ok(()),
            (Err(why), Ok(())) => return Err(why),
            (Err(why), Err(_)) => last = why.to_string(),
        }
    }
    anyhow::bail!("the control flow lost packets three times: this machine is too busy; {last}")
}

/// Routes to a device that stands for many pods.
fn routes(host: &Host, verb: &str, numbers: impl Iterator<Item = u32>) -> Result<()> {
    let batch: String = numbers
        .map(|n| format!("route {verb} 10.240.{}.{}/32 dev vethmany\n", n / 200, n % 200 + 1))
        .collect();
    host.try_run_with(&["ip", "-batch", "-"], &batch)?.ok().map(drop)
}

#[test]
fn many_pods_are_few_records_and_more_than_a_record_holds_are_told() {
    scenario("many-workloads", |world| {
        let mesh = form(world, &["a", "b"])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        for host in [a, b] {
            host.sh("ip link add vethmany type veth peer name other; ip link set vethmany up; ip link set other up")?;
        }
        let (before, started) = (published(b)?, Instant::now());
        routes(b, "add", 0..300)?;
        wait_for("300 pods are announced", pace(20), || {
            let count = a.peer("b")?.prefixes.len();
            ensure!(count == 300, "{count}");
            Ok(())
        })?;
        let took = started.elapsed();
        let routed = until(a, "10.240.1.100", true, started)?;
        let records = published(b)? - before;
        println!(
            "many-workloads: 300 pods in one go: {records} records, all known after {took:.1?}, routed after {routed:.1?}"
        );
        ensure!((1..=2 + took.as_secs()).contains(&records), "{records} records");

        // A pod that was there before stays, whatever comes.
        let pod = a.workload("pod-a", 1)?;
        wait_for("the pod is reached", pace(10), || b.ping(&pod.address(), ""))?;
        routes(a, "add", 1_000..2_100)?;
        wait_for("the record is full, and it is said", pace(20), || {
            let (count, lines) = (named(a)?.len(), health(a)?);
            ensure!(count == 1_024, "{count}");
            let line = lines.iter().find(|line| line.starts_with("workloads_no_room"));
            ensure!(line.is_some_and(|line| line.contains("78 workloads")), "{lines:?}");
            Ok(())
        })?;
        wait_for("the other host has all of a full record", pace(20), || {
            let count = b.peer("a")?.prefixes.len();
            ensure!(count == 1_024, "{count}");
            Ok(())
        })?;
        b.ping(&pod.address(), "")?;
        b.ping(&pod.address6(), "")?;
        let first = named(a)?;
        println!("many-workloads: {}", health(a)?.join("; "));
        // Room that becomes free goes to those that had none; the others stay.
        routes(a, "del", 1_000..1_050)?;
        wait_for("the room is taken", pace(20), || {
            let (now, lines) = (named(a)?, health(a)?);
            ensure!(lines.iter().any(|line| line.contains("28 workloads")), "{lines:?}");
            ensure!(now.len() == 1_024 && first.difference(&now).count() == 50, "{}", now.len());
            Ok(())
        })?;
        routes(a, "del", 1_050..2_100)?;
        wait_for("the line is gone", pace(20), || {
            let lines = health(a)?;
            ensure!(!lines.iter().any(|line| line.starts_with("workloads")), "{lines:?}");
            Ok(())
        })?;
        // What is not granted is said, and harms nobody.
        a.run(&["ip", "route", "add", "10.99.0.1/32", "dev", "vethmany"])?;
        wait_for("what is not granted is said", pace(10), || {
            let lines = health(a)?;
            let line = lines.iter().find(|line| line.starts_with("workloads_not_granted"));
            ensure!(line.is_some_and(|line| line.contains("10.99.0.1/32")), "{lines:?}");
            Ok(())
        })?;
        b.ping(&pod.address(), "").map(drop)
    });
}

fn conflist(subnet: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{{"type":"bridge","bridge":"cni0","ipam":{{"type":"host-local","ranges":[[{{"subnet":"{subnet}"}}]]}}}}]}}"#
    )
}

#[test]
fn files_of_a_cni_count_within_a_second_as_they_come_change_break_and_go() {
    scenario("cni-files", |world| {
        let mesh = Mesh::unstarted(world, &[HostPlan::vm("a"), HostPlan::vm("b")])?;
        let [a, b] = [&mesh.hosts[0], &mesh.hosts[1]];
        b.sh("rm -rf /etc/cni")?;
        mesh.start()?;
        a.init_mesh()?;
        let mut asked = vec!["token", "create"];
        for prefix in ["10.244.5.0/24", "10.244.6.0/24", "10.244.7.0/24", "10.244.8.0/26"] {
            asked.extend(["--prefix", prefix]);
        }
        b.join(a.meshctl(&asked)?.ok()?.stdout.trim())?;
        let announces = |prefix: &str| {
            let since = Instant::now();
            wait_for(&format!("{prefix} is announced"), pace(10), || {
                let prefixes = a.peer("b")?.prefixes;
                ensure!(prefixes.iter().any(|one| one == prefix), "{prefixes:?}");
                Ok(())
            })?;
            let took = since.elapsed();
            ensure!(took < pace(5), "{prefix} took {took:?}");
            anyhow::Ok(took)
        };
        ensure!(a.peer("b")?.prefixes.is_empty(), "{:?}", a.peer("b")?.prefixes);
        b.write("/etc/cni/net.d/10-pods.conflist", &conflist("10.244.5.0/24"))?;
        let came = announces("10.244.5.0/24")?;
        // Half of the next version, then all of it.
        b.write("/etc/cni/net.d/10-pods.conflist", &conflist("10.244.6.0/24")[..80])?;
        wait_for("the half-written file is said", pace(5), || {
            let lines = health(b)?;
            ensure!(
                lines.iter().any(|line| line.contains("10-pods.conflist was skipped")),
                "{lines:?}"
            );
            Ok(())
        })?;
        ensure!(named(b)?.contains("10.244.5.0/24"), "withdrawn for a half-written file");
        b.write("/etc/cni/net.d/10-pods.conflist.tmp", &conflist("10.244.6.0/24"))?;
        b.sh("mv /etc/cni/net.d/10-pods.conflist.tmp /etc/cni/net.d/10-pods.conflist")?;
        let changed = announces("10.244.6.0/24")?;
        ensure!(
            named(b)?.contains("10.244.5.0/24"),
            "what was there a moment ago stays for a while"
        );
        b.sh("mv /etc/cni /etc/cni.away")?;
        wait_for("the vanishing is said", pace(5), || {
            let lines = health(b)?;
            ensure!(
                lines.iter().any(|line| line.contains("10.244.6.0/24 is no longer")),
                "{lines:?}"
            );
            Ok(())
        })?;
        ensure!(named(b)?.contains("10.244.6.0/24"), "withdrawn at once");
        b.write(
            "/run/flannel/subnet.env",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n",
        )?;
        let flannel = announces("10.244.7.0/24")?;
        // Calico's blocks, where its configuration says that it gives the addresses.
        b.sh("ip route add blackhole 10.244.8.0/26 proto bird")?;
        b.write(
            "/etc/cni/net.d/10-calico.conflist",
            r#"{"plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}}]}"#,
        )?;
        let calico = announces("10.244.8.0/26")?;
        println!(
            "cni-files: announced after {came:.0?} (new directory), {changed:.0?} (renamed over), {flannel:.0?} (flannel), {calico:.0?} (calico)"
        );
        Ok(())
    });
}
