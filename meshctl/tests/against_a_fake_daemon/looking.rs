//! `status`, `peers` and `ping`.

use super::*;

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
            "devices": {"total": 0, "up": 0, "stale": 0, "down": 0},
            "health": [], "version": "0.1.0", "signer": null, "zone": null, "via": null,
            "certificate_not_after": null, "directory_hash": null, "synced": false,
            "trial_seconds_left": null,
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
        "via",
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
        "device",
    ];
    want.sort_unstable();
    assert_eq!(keys(&peers[0]), want);
    assert_eq!(peers[0]["rtt_ms"], 0.625);
    assert_eq!(peers[0]["reason"], Value::Null);
    for field in
        ["zone", "via", "endpoint", "rtt_ms", "last_handshake_seconds", "mtu", "public_key"]
    {
        assert_eq!(peers[1][field], Value::Null, "{field}");
    }
    assert_eq!(peers[1]["groups"], json!([]));
}

#[test]
fn a_peer_behind_a_gateway_shows_it() {
    let hidden =
        Peer { via: Some("gw-1".into()), path: "relay".into(), endpoint: None, ..peer("db-2") };
    let daemon = with_peers(vec![hidden]);
    let peers = parsed(&daemon.meshctl(&["peers", "list", "-o", "json"]));
    assert_eq!((&peers[0]["via"], &peers[0]["path"]), (&json!("gw-1"), &json!("relay")));
    let wide = stdout(&daemon.meshctl(&["peers", "list", "-o", "wide"]));
    assert!(wide.contains("via gw-1"), "{wide}");
    let one = stdout(&daemon.meshctl(&["peers", "show", "db-2"]));
    assert!(one.contains("tunnel: up, via gw-1"), "{one}");
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
    for part in ["1m 15s", "10.0.0.2:51820", "10.244.2.0/24 +1"] {
        assert!(lines[1].contains(part), "{part:?} not in {text}");
    }
    let wide = stdout(&daemon.meshctl(&["peers", "list", "-o", "wide"]));
    for part in ["1.50 KiB", "0.62 ms", "direct"] {
        assert!(wide.contains(part), "{part:?} not in {wide}");
    }
    assert!(wide.contains("10.244.2.0/24,fd00:2::/64") && wide.contains("KEY2="), "{wide}");
}

#[test]
fn who_has_left_is_shown_to_those_who_ask() {
    let gone = |name| Peer { gossip: "left".into(), ..peer(name) };
    let daemon = with_peers(vec![peer("here"), gone("gone")]);
    let output = daemon.meshctl(&["peers", "list"]);
    assert!(stdout(&output).contains("here") && !stdout(&output).contains("gone"), "{output:?}");
    assert_eq!(stderr(&output), "1 host has left: `meshctl peers list --state left`\n");
    assert!(stdout(&daemon.meshctl(&["peers", "list", "--state", "left"])).contains("gone"));
    assert!(!stdout(&daemon.meshctl(&["mtu"])).contains("gone"));
    let all = parsed(&daemon.meshctl(&["peers", "list", "-o", "json"]));
    assert_eq!(all.as_array().map(Vec::len), Some(2), "programs get everybody");
    let nobody = with_peers(vec![gone("x"), gone("y")]).meshctl(&["peers", "list"]);
    assert_eq!(stdout(&nobody), "");
    assert!(stderr(&nobody).contains("no peers") && stderr(&nobody).contains("2 hosts have left"));
}

#[test]
fn tables_of_ordinary_values_fit_80_columns() {
    let id = "szrkmes2pui3agkukrdcetsxob3wek2tna2i3ilx2xqqdxmzpvpq";
    let peer = Peer {
        endpoint: Some("198.51.100.27:51820".into()),
        zone: "aws-eu-west-1".into(),
        prefixes: vec!["10.244.12.0/24".into(), "fd00:10:244:c::/64".into()],
        ..peer("node-12")
    };
    let node = NodeInfo {
        name: "node-12".into(),
        id: id.into(),
        state: "member".into(),
        zone: "aws-eu-west-1".into(),
        groups: vec!["k8s".into(), "db".into()],
        prefixes: peer.prefixes.clone(),
        certificate_not_after: Some("2026-12-21T16:19:19Z".into()),
        self_: true,
        ..NodeInfo::default()
    };
    let token = TokenInfo {
        id: "7505dfcbab4916b91b3b94f9447cbc6e".into(),
        state: "expired".into(),
        node_name: "node-12".into(),
        prefixes: peer.prefixes.clone(),
        groups: vec!["k8s".into()],
        expires_at: "2026-11-21T17:19:19Z".into(),
        uses: 1,
        ..TokenInfo::default()
    };
    let daemon = Daemon::start(Script {
        status: running(),
        peers: vec![peer],
        nodes: vec![node],
        tokens: vec![token],
        ..Script::default()
    });
    for verb in [["peers", "list"], ["node", "list"], ["token", "list"], ["signer", "list"]] {
        let table = stdout(&daemon.meshctl(&verb));
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?}:\n{table}");
        let wide = stdout(&daemon.meshctl(&[&verb[..], &["-o", "wide"]].concat()));
        assert!(wide.lines().next().unwrap().len() > table.lines().next().unwrap().len(), "{wide}");
    }
    // The shortened id is enough to revoke it.
    assert!(stdout(&daemon.meshctl(&["token", "list"])).contains("7505dfcbab49  "));
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
