//! `peers add`, `peers config` and `peers remove`, and devices among the peers.

use super::*;

fn config() -> DeviceConfigReply {
    DeviceConfigReply {
        name: "phone".into(),
        mesh: "demo".into(),
        gateway: "db-1".into(),
        private_key: Some("PRIVATE=".into()),
        public_key: "KEY3=".into(),
        addresses: vec!["10.99.0.1/32".into(), "10.99.8.0/24".into(), "fd99:8::/64".into()],
        mtu: 1280,
        dns: vec!["10.99.0.53".into(), "example.net".into()],
        gateway_public_key: "KEY=".into(),
        preshared_key: Some("SHARED=".into()),
        endpoints: vec!["192.0.2.1:51820".into(), "[2001:db8::1]:51820".into()],
        endpoint_private: false,
        allowed_ips: vec!["10.244.0.0/16".into(), "fd01::/48".into()],
        keepalive: 25,
        at: "2026-01-01T00:00:00Z".into(),
        not_noted: None,
        listen_port: 51820,
        remarks: Vec::new(),
    }
}

fn phone() -> Peer {
    Peer {
        name: "phone".into(),
        tunnel: "up".into(),
        path: "direct".into(),
        prefixes: vec!["10.99.0.1/32".into()],
        public_key: Some("KEY3=".into()),
        mtu: Some(1280),
        device: Some(Device {
            gateway: "db-1".into(),
            added_at: "2026-01-01T00:00:00Z".into(),
            private_key_kept: true,
            preshared_key: true,
            config_shown_at: Some("2026-01-02T00:00:00Z".into()),
            config_stale: true,
            keepalive: 25,
            dns: Vec::new(),
        }),
        ..Peer::default()
    }
}

#[test]
fn the_file_is_one_that_wg_quick_reads() {
    let daemon = Daemon::start(Script { config: config(), ..Script::default() });
    let output = daemon.meshctl(&["peers", "config", "phone"]);
    let (text, said) = (stdout(&output), stderr(&output));
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let want = [
        "[Interface]",
        "PrivateKey = PRIVATE=",
        // A network behind it gives an address only where it has none of that family.
        "Address = 10.99.0.1/32, fd99:8::1/128",
        "MTU = 1280",
        "DNS = 10.99.0.53, example.net",
        "",
        "[Peer]",
        "PublicKey = KEY=",
        "PresharedKey = SHARED=",
        "Endpoint = 192.0.2.1:51820",
        "AllowedIPs = 10.244.0.0/16, fd01::/48",
        "PersistentKeepalive = 25",
    ];
    assert_eq!(lines, want);
    assert!(text.contains("# Written 2026-01-01T00:00:00Z") && said.is_empty(), "{text}{said}");
    let output = daemon.meshctl(&["peers", "config", "phone", "-o", "json"]);
    let json = parsed(&output);
    assert_eq!((&json["text"], &json["private_key"]), (&json!(text), &json!("PRIVATE=")));
    // Told where the gateway is, it says that and nothing else.
    let output = daemon.meshctl(&["peers", "config", "phone", "--endpoint", "vpn.example.net"]);
    assert!(stdout(&output).contains("\nEndpoint = vpn.example.net:51820\n"));
    let output = daemon.meshctl(&["peers", "config", "phone", "--endpoint", "x\nPostUp = reboot"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
}

#[test]
fn a_device_with_its_own_key_gets_a_file_with_a_gap() {
    let mut config = config();
    (config.private_key, config.preshared_key, config.keepalive) = (None, None, 0);
    config.endpoints.clear();
    config.endpoint_private = true;
    config.not_noted = Some("the disk is full".into());
    let daemon = Daemon::start(Script { config, ..Script::default() });
    let output = daemon.meshctl(&["peers", "config", "phone"]);
    let (text, said) = (stdout(&output), stderr(&output));
    assert!(
        text.contains("\n# PrivateKey = here goes") && text.contains("\n# Endpoint = "),
        "{text}"
    );
    assert!(!text.contains("PresharedKey") && !text.contains("PersistentKeepalive"), "{text}");
    assert!(said.contains("--endpoint") && said.contains("the disk is full"), "{said}");
    let output = daemon.meshctl(&["peers", "config", "phone", "--qr"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    assert!(stderr(&output).contains("not on this host"), "{}", stderr(&output));
}

#[test]
fn a_qr_code_is_printed_and_the_key_thrown_away_after_it() {
    let daemon = Daemon::start(Script { config: config(), ..Script::default() });
    let output = daemon.meshctl(&["peers", "config", "phone", "--qr", "--forget-key"]);
    let code = stdout(&output);
    assert!(code.lines().count() > 20 && code.contains('\u{2588}'), "{code}");
    assert!(!code.contains("PRIVATE"), "{code}");
    assert!(stderr(&output).contains("last time"), "{}", stderr(&output));
    let asked = daemon.asked();
    // Whether it fits is known before the keys are shown.
    assert!(asked[0].contains("without_keys: true"), "{asked:?}");
    assert!(asked[1].contains("without_keys: false"), "{asked:?}");
    assert!(asked[2].starts_with("ForgetDeviceKeyRequest"), "{asked:?}");
    // What does not fit is said, and nothing is thrown away.
    let many = (0..400).map(|n| format!("10.{n}.0.0/24")).collect();
    let large = DeviceConfigReply { allowed_ips: many, ..config() };
    let daemon = Daemon::start(Script { config: large, ..Script::default() });
    let output = daemon.meshctl(&["peers", "config", "phone", "--qr", "--forget-key"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("without --qr"), "{}", stderr(&output));
    let asked = daemon.asked();
    assert!(asked.len() == 1 && asked[0].contains("without_keys: true"), "{asked:?}");
}

#[test]
fn add_and_remove_say_what_became_of_it() {
    let peers = vec![phone()];
    let daemon = Daemon::start(Script {
        peers: peers.clone(),
        not_granted: vec!["10.98.0.1/32".into()],
        ..Script::default()
    });
    let arguments =
        ["--prefix", "10.99.0.1", "--keepalive", "0", "--no-psk", "--dns", "10.99.0.53"];
    let output = daemon.meshctl(&[&["peers", "add", "phone"], &arguments[..]].concat());
    assert!(stdout(&output).contains("phone has 10.99.0.1/32 behind this host"));
    let said = stderr(&output);
    assert!(
        said.contains("not granted yet: 10.98.0.1/32; a signer is asked again by itself in 17 s"),
        "{said}"
    );
    assert!(said.contains("it has \\u{1b}[31mIPv6 only"), "{said}");
    let asked = daemon.asked().join("\n");
    for part in ["\"10.99.0.1\"", "keepalive: Some(0)", "no_preshared_key: true", "10.99.0.53"] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    assert_eq!(parsed(&daemon.meshctl(&["peers", "add", "phone", "-o", "json"]))["mtu"], 1280);
    let asked = daemon.asked();
    assert!(asked.last().unwrap().contains("keepalive: None"), "{asked:?}");
    let removed = daemon.meshctl(&["peers", "remove", "phone"]);
    assert_eq!(stdout(&removed), "phone was removed; 10.99.0.1/32 is free\n");
    assert_eq!(
        parsed(&daemon.meshctl(&["peers", "remove", "phone", "-o", "json"]))["name"],
        "phone"
    );
    assert_eq!(daemon.meshctl(&["peers", "add"]).status.code(), Some(2));
    assert_eq!(
        daemon.meshctl(&["peers", "add", "x", "--keepalive", "99999"]).status.code(),
        Some(2)
    );
}

#[test]
fn errors_are_passed_on_and_a_missing_daemon_is_said() {
    let error = ControlError::new("name_taken", "the device was not added", "why", "fix");
    let daemon = Daemon::start(Script { error: Some(error), ..Script::default() });
    for verb in ["add", "config", "remove"] {
        let output = daemon.meshctl(&["peers", verb, "phone"]);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{verb}");
        assert_eq!(stderr(&output), "error: the device was not added; why; fix\n");
    }
    let nobody = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["--socket", "/nonexistent/s", "peers", "add", "phone"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(3));
}

#[test]
fn devices_stand_among_the_peers_with_what_they_lack_as_null() {
    let daemon = with_peers(vec![peer("db-2"), phone()]);
    let list = parsed(&daemon.meshctl(&["peers", "list", "-o", "json"]));
    assert_eq!((&list[0]["device"], &list[0]["gossip"]), (&Value::Null, &json!("alive")));
    for field in ["id", "zone", "gossip", "version", "rtt_ms"] {
        assert_eq!(list[1][field], Value::Null, "{field}");
    }
    assert_eq!(list[1]["device"]["gateway"], "db-1");
    assert!(!list.to_string().contains("private_key\""), "{list}");
    let table = stdout(&daemon.meshctl(&["peers", "list"]));
    let row = table.lines().find(|line| line.starts_with("phone")).unwrap();
    assert!(row.contains("device") && row.contains("up"), "{table}");
    let shown = stdout(&daemon.meshctl(&["peers", "show", "phone"]));
    for part in [
        "device of: db-1",
        "private key: kept on this host; `meshctl peers config phone --forget",
        "stale",
        "pre-shared key: yes",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains("gossip") && !shown.contains("record"), "{shown}");
}
