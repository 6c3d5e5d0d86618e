//! What a user of `meshctl` sees, with the real control server and no mesh behind it.

#![allow(clippy::unwrap_used)] // A failed step of a test is a failed test.

mod fake;

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use fake::{Daemon, Script, stderr, stdout};
use meshd::control::{ControlError, ControlSocket, SocketError};
use meshd_proto::control::*;
use serde_json::{Value, json};

fn running() -> StatusReply {
    StatusReply {
        state: "running".into(),
        mesh: Some("demo".into()),
        node: Some("db-1".into()),
        id: Some("abcd".into()),
        interface: Some("mesh0".into()),
        backend: Some("kernel".into()),
        public_key: Some("KEY=".into()),
        listen_port: Some(51820),
        gossip_port: Some(51800),
        mesh_addresses: vec!["100.112.0.1".into(), "fd00::1".into()],
        prefixes: vec!["10.244.1.0/24".into()],
        peers: Some(PeerCounts { total: 3, up: 2, stale: 1, down: 0 }),
        health: vec![HealthLine {
            code: "forwarding_off".into(),
            severity: "warning".into(),
            message: "this host does not forward IPv4".into(),
            fix: "sysctl -w net.ipv4.ip_forward=1".into(),
        }],
        version: "0.1.0".into(),
        signer: Some(true),
        ..StatusReply::default()
    }
}

fn waiting() -> StatusReply {
    StatusReply { state: "waiting".into(), version: "0.1.0".into(), ..StatusReply::default() }
}

fn peer(name: &str) -> Peer {
    Peer {
        name: name.into(),
        id: "efgh".into(),
        zone: "aws".into(),
        gossip: "alive".into(),
        tunnel: "up".into(),
        path: "direct".into(),
        endpoint: Some("10.0.0.2:51820".into()),
        rtt_ms: Some(0.625),
        last_handshake_seconds: Some(75),
        rx_bytes: 1536,
        tx_bytes: 10,
        mtu: Some(1420),
        public_key: Some("KEY2=".into()),
        mesh_addresses: vec!["100.112.0.2".into()],
        node_addresses: vec!["10.0.0.2".into()],
        prefixes: vec!["10.244.2.0/24".into(), "fd00:2::/64".into()],
        groups: vec!["db".into()],
        version: "0.1.0".into(),
        ..Peer::default()
    }
}

fn with_peers(peers: Vec<Peer>) -> Daemon {
    Daemon::start(Script { status: running(), peers, ..Script::default() })
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn parsed(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn status_has_the_documented_fields_with_null_for_unknown() {
    let daemon = Daemon::start(Script { status: waiting(), ..Script::default() });
    let output = daemon.meshctl(&["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        parsed(&output),
        json!({
            "state": "waiting", "mesh": null, "node": null, "id": null, "interface": null,
            "backend": null, "public_key": null, "listen_port": null, "gossip_port": null,
            "mesh_addresses": [], "prefixes": [],
            "peers": {"total": 0, "up": 0, "stale": 0, "down": 0},
            "health": [], "version": "0.1.0", "signer": null, "zone": null,
            "certificate_not_after": null, "directory_hash": null, "synced": false,
        })
    );
    let daemon = with_peers(Vec::new());
    let status = parsed(&daemon.meshctl(&["-o", "json", "status"]));
    assert_eq!(status["peers"]["up"], 2);
    assert_eq!(
        status["health"][0],
        json!({
            "code": "forwarding_off", "severity": "warning",
            "message": "this host does not forward IPv4",
            "fix": "sysctl -w net.ipv4.ip_forward=1",
        })
    );
    let yaml = stdout(&daemon.meshctl(&["status", "-o", "yaml"]));
    assert!(yaml.starts_with("state: running\nmesh: demo\n"), "{yaml}");
}

#[test]
fn status_for_people_shows_health_with_its_fix_and_what_to_do_next() {
    let text = stdout(&with_peers(Vec::new()).meshctl(&["status"]));
    for part in [
        "meshd 0.1.0: running\n",
        "mesh0 (kernel, UDP 51820)",
        "3: 2 up, 1 stale, 0 down",
        "warning forwarding_off: this host does not forward IPv4",
        "fix: sysctl -w net.ipv4.ip_forward=1",
    ] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    assert!(!text.contains('\u{1b}'), "colour without a terminal: {text:?}");
    let daemon = Daemon::start(Script { status: waiting(), ..Script::default() });
    let text = stdout(&daemon.meshctl(&["status"]));
    assert!(text.contains("meshctl init --mesh NAME") && text.contains("meshctl join"), "{text}");
}

#[test]
fn checks_exit_with_0_or_1_and_print_nothing_to_stdout() {
    let daemon = Daemon::start(Script { status: waiting(), ..Script::default() });
    assert_eq!(daemon.meshctl(&["status", "--check", "live"]).status.code(), Some(0));
    let ready = daemon.meshctl(&["status", "--check", "ready"]);
    assert_eq!((ready.status.code(), ready.stdout.len()), (Some(1), 0));
    assert!(stderr(&ready).contains("the daemon is waiting"), "{}", stderr(&ready));
    let daemon = with_peers(Vec::new());
    assert_eq!(daemon.meshctl(&["status", "--check", "ready"]).status.code(), Some(0));
    let nobody = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["--socket", "/nonexistent/s", "status", "--check", "live"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn peers_list_has_exactly_the_documented_fields() {
    let mut unknown = Peer { name: "new".into(), id: "ijkl".into(), ..Peer::default() };
    unknown.gossip = "alive".into();
    unknown.tunnel = "never".into();
    unknown.path = "none".into();
    let daemon = with_peers(vec![peer("db-2"), unknown]);
    let peers = parsed(&daemon.meshctl(&["peers", "list", "-o", "json"]));
    let mut want = vec![
        "name",
        "id",
        "zone",
        "gossip",
        "tunnel",
        "path",
        "endpoint",
        "rtt_ms",
        "last_handshake_seconds",
        "rx_bytes",
        "tx_bytes",
        "mtu",
        "public_key",
        "mesh_addresses",
        "node_addresses",
        "prefixes",
        "groups",
        "reason",
        "version",
    ];
    want.sort_unstable();
    assert_eq!(keys(&peers[0]), want);
    assert_eq!(peers[0]["rtt_ms"], 0.625);
    assert_eq!(peers[0]["reason"], Value::Null);
    for field in ["zone", "endpoint", "rtt_ms", "last_handshake_seconds", "mtu", "public_key"] {
        assert_eq!(peers[1][field], Value::Null, "{field}");
    }
    assert_eq!(peers[1]["groups"], json!([]));
}

#[test]
fn peers_list_is_an_aligned_table() {
    let daemon = with_peers(vec![peer("db-2"), peer("a-longer-name")]);
    let text = stdout(&daemon.meshctl(&["peers", "list"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for line in &lines {
        assert_eq!(&line[13..15], "  ", "{text}");
    }
    for part in ["1m 15s", "1.50 KiB", "0.62 ms", "10.244.2.0/24 +1"] {
        assert!(lines[1].contains(part), "{part:?} not in {text}");
    }
    let wide = stdout(&daemon.meshctl(&["peers", "list", "-o", "wide"]));
    assert!(wide.contains("10.244.2.0/24,fd00:2::/64") && wide.contains("KEY2="), "{wide}");
}

#[test]
fn filters_choose_peers_and_a_wrong_state_is_a_usage_error() {
    let mut down = peer("web-1");
    down.gossip = "down".into();
    let daemon = with_peers(vec![peer("db-2"), peer("db-3"), down]);
    let names = |arguments: &[&str]| {
        let mut all = vec!["peers", "list", "-o", "json"];
        all.extend(arguments);
        let peers = parsed(&daemon.meshctl(&all));
        let peers = peers.as_array().unwrap().clone();
        peers.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--name", "db-*"]), ["db-2", "db-3"]);
    assert_eq!(names(&["--state", "down"]), ["web-1"]);
    assert_eq!(names(&["--state", "up", "--name", "*-3", "--zone", "a*"]), ["db-3"]);
    assert!(names(&["--zone", "gcp"]).is_empty());
    let none = daemon.meshctl(&["peers", "list", "--zone", "gcp"]);
    assert!(stderr(&none).contains("no peer matches"), "{}", stderr(&none));
    let wrong = daemon.meshctl(&["peers", "list", "--state", "fine"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn an_empty_list_says_what_to_do_next() {
    let daemon = Daemon::start(Script { status: waiting(), ..Script::default() });
    let output = daemon.meshctl(&["peers", "list"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert!(stderr(&output).contains("meshctl init"), "{}", stderr(&output));
    let empty = daemon.meshctl(&["peers", "list", "-o", "json"]);
    assert_eq!(parsed(&empty), json!([]));
    let output = with_peers(Vec::new()).meshctl(&["peers", "list"]);
    assert!(stderr(&output).contains("meshctl token create"), "{}", stderr(&output));
}

#[test]
fn watching_prints_a_line_of_json_per_change_and_ends_with_the_daemon() {
    let daemon = with_peers(vec![peer("db-2")]);
    let output = daemon.meshctl(&["peers", "list", "--watch", "-o", "json"]);
    let text = stdout(&output);
    let states: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(states.len(), 2, "{text}");
    assert_eq!((&states[0][0]["name"], &states[1]), (&json!("db-2"), &json!([])));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn peers_show_tells_all_in_the_style_of_wg() {
    let mut shown = peer("db-2");
    shown.allowed_ips = vec!["10.244.2.0/24".into()];
    shown.blocked = vec![BlockedPrefix {
        prefix: "10.0.0.0/8".into(),
        reason: "covers_underlay".into(),
        message: "it covers this host's gateway".into(),
    }];
    let daemon = with_peers(vec![shown]);
    let text = stdout(&daemon.meshctl(&["peers", "show", "db-2"]));
    for part in [
        "peer: db-2\n",
        "  latest handshake: 1m 15s ago\n",
        "  transfer: 1.50 KiB received, 10 B sent\n",
        "  not routed: 10.0.0.0/8 (covers_underlay): it covers this host's gateway\n",
    ] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    let json = parsed(&daemon.meshctl(&["peers", "show", "db-2", "-o", "json"]));
    assert_eq!(json["blocked"][0]["reason"], "covers_underlay");
    assert_eq!(json["name"], "db-2");
}

fn token() -> TokenInfo {
    TokenInfo {
        id: "t1".into(),
        allow: vec!["10.244.0.0/16".into()],
        expires_at: "2030-01-01T00:00:00Z".into(),
        uses: 1,
        state: "usable".into(),
        ..TokenInfo::default()
    }
}

#[test]
fn token_create_prints_the_token_alone_on_stdout() {
    let daemon = Daemon::start(Script { tokens: vec![token()], ..Script::default() });
    let output = daemon.meshctl(&["token", "create", "--allow", "10.244.0.0/16", "--ttl", "2h"]);
    assert_eq!(stdout(&output), "meshd-token\n");
    let said = stderr(&output);
    assert!(said.contains("once within 2h, until 2030-01-01T00:00:00Z"), "{said}");
    assert!(said.contains("10.244.0.0/16"), "{said}");
    let asked = daemon.asked().join("\n");
    assert!(asked.contains("ttl_seconds: 7200") && asked.contains("uses: 1"), "{asked}");
    assert_eq!(daemon.meshctl(&["token", "create", "--ttl", "soon"]).status.code(), Some(2));
    let list = stdout(&daemon.meshctl(&["token", "list"]));
    assert!(list.contains("t1  usable   0/1  2030-01-01T00:00:00Z  any"), "{list}");
    assert_eq!(parsed(&daemon.meshctl(&["token", "list", "-o", "json"]))[0]["used"], 0);
}

fn joined() -> Vec<JoinProgress> {
    use join_progress::Step;
    let done = JoinDone {
        mesh: "demo".into(),
        node: "web-1".into(),
        peers: 2,
        not_granted: vec!["10.9.0.0/24".into()],
        ..JoinDone::default()
    };
    [Step::Doing("asking 10.0.0.1:51800".into()), Step::Done(done)]
        .map(|step| JoinProgress { step: Some(step) })
        .to_vec()
}

#[test]
fn join_reads_the_token_from_stdin_and_tells_its_progress_on_stderr() {
    let daemon = Daemon::start(Script { join: joined(), ..Script::default() });
    let mut meshctl = daemon
        .command(&["join", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    meshctl.stdin.take().unwrap().write_all(b"  secret-token \nmore\n").unwrap();
    let output = meshctl.wait_with_output().unwrap();
    assert_eq!(daemon.asked(), ["join secret-token"]);
    assert!(stderr(&output).contains("asking 10.0.0.1:51800"), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("joined mesh demo as web-1; 2 peers\n"), "{text}");
    assert!(text.contains("not granted") && text.contains("10.9.0.0/24"), "{text}");
    let empty = daemon.meshctl(&["join", "-"]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(stderr(&empty).starts_with("error: cannot read the token; stdin was empty;"));
}

#[test]
fn a_join_that_breaks_off_is_no_success() {
    let join = joined().into_iter().take(1).collect();
    let daemon = Daemon::start(Script { join, ..Script::default() });
    let output = daemon.meshctl(&["join", "t"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("it is not known whether"), "{}", stderr(&output));
}

#[test]
fn ping_sums_up_and_fails_when_nothing_answers() {
    let reply = |sequence, rtt_ms| PingReply {
        sequence,
        rtt_ms,
        path: "direct".into(),
        address: "100.112.0.2".into(),
        mtu: Some(1420),
        ..PingReply::default()
    };
    let pings = vec![reply(1, Some(1.0)), reply(2, None), reply(3, Some(3.0))];
    let daemon = Daemon::start(Script { pings, ..Script::default() });
    let output = daemon.meshctl(&["ping", "db-2", "-c", "3"]);
    let text = stdout(&output);
    assert!(text.contains("db-2 (100.112.0.2): seq 1 time 1.00 ms, direct\n"), "{text}");
    assert!(text.contains("3 sent, 2 received, 33 % lost"), "{text}");
    assert!(text.contains("1.00/2.00/3.00 ms, mtu 1420"), "{text}");
    let json = parsed(&daemon.meshctl(&["ping", "db-2", "-o", "json"]));
    assert_eq!((&json["rtt_avg_ms"], &json["replies"][1]["rtt_ms"]), (&json!(2.0), &Value::Null));
    let daemon = Daemon::start(Script { pings: vec![reply(1, None)], ..Script::default() });
    let output = daemon.meshctl(&["ping", "db-2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: no answer from db-2;"), "{}", stderr(&output));
}

#[test]
fn leave_says_what_it_removed() {
    let daemon = with_peers(Vec::new());
    let text = stdout(&daemon.meshctl(&["leave", "--yes"]));
    assert_eq!(
        text,
        "left demo; 2 members were told\n  removed interface mesh0\n  removed rule 2600\n"
    );
}

#[test]
fn init_says_what_comes_next() {
    let daemon = with_peers(Vec::new());
    let text = stdout(&daemon.meshctl(&["init", "--mesh", "demo", "--prefix", "10.244.1.0/24"]));
    assert!(text.contains("meshctl token create"), "{text}");
    assert_eq!(daemon.meshctl(&["init"]).status.code(), Some(2));
}

#[test]
fn an_error_has_what_why_and_what_to_do_and_steers_no_terminal() {
    let error = ControlError::new("mesh_exists", "cannot\u{1b}[2J join", "it is\nin one", "leave");
    let daemon = Daemon::start(Script { error: Some(error), ..Script::default() });
    for verb in [&["status"][..], &["peers", "list"], &["join", "t"], &["leave"], &["ping", "x"]] {
        let output = daemon.meshctl(verb);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert_eq!(stderr(&output), "error: cannot\\u{1b}[2J join; it is\\nin one; leave\n");
    }
}

#[test]
fn output_of_a_hostile_daemon_steers_no_terminal() {
    let mut evil = peer("a\u{1b}]0;x\u{7}b");
    evil.reason = Some("\u{202e}r\u{9b}1m".into());
    let daemon = with_peers(vec![evil]);
    for format in ["table", "wide", "json", "yaml"] {
        let text = stdout(&daemon.meshctl(&["peers", "list", "-o", format]));
        let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(steers), "{format}: {text:?}");
    }
}

#[test]
fn a_daemon_that_cannot_be_reached_is_explained_with_exit_3() {
    let home = tempfile::tempdir().unwrap();
    let run = |socket: &std::path::Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .env("MESHD_SOCKET", socket)
            .arg("status")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3));
        stderr(&output)
    };
    let missing = run(&home.path().join("missing"));
    assert!(
        missing.contains("no such socket") && missing.contains("systemctl enable"),
        "{missing}"
    );
    let stale = home.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let refused = run(&stale);
    assert!(
        refused.contains("nobody listens") && refused.contains("systemctl restart"),
        "{refused}"
    );
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(run(&file).starts_with("error: cannot reach the daemon at "));
}

#[test]
fn a_daemon_that_hangs_up_is_explained_with_exit_3() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || drop(listener.accept()));
    let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .arg("--socket")
        .arg(&path)
        .arg("status")
        .output()
        .unwrap();
    thread.join().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn a_second_daemon_is_refused_and_a_dead_ones_socket_replaced() {
    let daemon = with_peers(Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let second = ControlSocket::bind(&daemon.socket(), "no-such-group").unwrap_err();
    assert!(matches!(second, SocketError::InUse { .. }), "{second}");
    assert!(second.to_string().starts_with("another meshd is running;"), "{second}");
    assert_eq!(daemon.meshctl(&["status"]).status.code(), Some(0));

    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let socket = ControlSocket::bind(&path, "no-such-group").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists());
    fs::write(&path, "not ours").unwrap();
    let refused = ControlSocket::bind(&path, "no-such-group").unwrap_err();
    assert!(matches!(refused, SocketError::NotASocket { .. }), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "not ours");
    let long = home.path().join("x".repeat(120));
    assert!(matches!(ControlSocket::bind(&long, "g"), Err(SocketError::TooLong { .. })));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = with_peers((0..5_000).map(|n| peer(&format!("node-{n}"))).collect());
    let mut meshctl = daemon
        .command(&["peers", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(meshctl.stdout.take());
    let output = meshctl.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn ten_thousand_peers_are_listed() {
    let daemon = with_peers((0..10_000).map(|n| peer(&format!("node-{n}"))).collect());
    let output = daemon.meshctl(&["peers", "list", "-o", "json"]);
    assert_eq!(parsed(&output).as_array().unwrap().len(), 10_000);
}

#[test]
fn an_answer_takes_less_than_a_tenth_of_a_second() {
    let daemon = with_peers(vec![peer("db-2")]);
    // The best of several: the machine may be busy, the program is the same.
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            daemon.meshctl(&["status"]);
            start.elapsed()
        })
        .min();
    assert!(best.unwrap() < Duration::from_millis(100), "{best:?}");
}

#[test]
fn completion_scripts_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(stdout(&output).contains("peers"), "{shell}");
    }
}

/// Runs as nobody, in or out of the group, against a daemon whose socket everybody may open: the
/// server itself must refuse. Needs root to become somebody else, and fails without.
#[test]
fn the_group_reads_and_only_root_changes() {
    use std::os::unix::process::CommandExt as _;
    assert!(nix::unistd::geteuid().is_root(), "run this test as root: it becomes another user");
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let meshctl = home.path().join("meshctl");
    fs::copy(env!("CARGO_BIN_EXE_meshctl"), &meshctl).unwrap();
    let daemon =
        Daemon::start_for_group(Script { status: running(), ..Script::default() }, "daemon");
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    let mode = fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let run = |gid: u32, verb: &[&str]| {
        let mut command = Command::new(&meshctl);
        command.arg("--socket").arg(daemon.socket()).args(verb);
        command.stdin(Stdio::null()).uid(65534).gid(gid).output().unwrap()
    };
    let kept_out = run(65534, &["status"]);
    assert_eq!(kept_out.status.code(), Some(3));
    assert!(stderr(&kept_out).contains("usermod -aG meshd"), "{}", stderr(&kept_out));
    assert_eq!(run(group, &["status"]).status.code(), Some(0));
    let change = run(group, &["leave", "--yes"]);
    assert_eq!(change.status.code(), Some(1));
    assert!(stderr(&change).contains("only root may change"), "{}", stderr(&change));
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let stranger = run(65534, &["status"]);
    assert_eq!(stranger.status.code(), Some(1));
    assert!(stderr(&stranger).contains("neither root nor"), "{}", stderr(&stranger));
    assert_eq!(daemon.asked(), ["status"]);
}
