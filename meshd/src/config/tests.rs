use std::fs;

use super::*;

fn errors(text: &str) -> Vec<String> {
    let errors = Config::from_text("meshd.toml", text).unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn is_assignment(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.trim_end().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

#[test]
fn an_empty_or_absent_file_means_the_defaults() {
    assert_eq!(Config::from_text("meshd.toml", "").unwrap(), Config::default());
    let nowhere = Path::new("/nonexistent/meshd");
    assert_eq!(Config::load(nowhere, nowhere, []).unwrap(), Config::default());
}

#[test]
fn the_sample_configuration_is_the_defaults_and_names_every_key() {
    let sample = include_str!("../../../systemd/meshd.toml");
    let uncommented: Vec<&str> = sample
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_assignment(rest)).unwrap_or(line))
        .collect();
    assert_eq!(Config::from_text("sample", &uncommented.join("\n")).unwrap(), Config::default());
    let mut section = String::new();
    let mut named = Vec::new();
    for line in uncommented {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| is_assignment(line)) {
            named.push(format!("{section}.{}", key.trim()));
        }
    }
    let keys: Vec<String> = documented_keys().iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(named, keys);
}

#[test]
fn every_key_of_the_design_can_be_given() {
    let text = r#"
        [node]
        name = "db-1"
        zone = "aws-eu-west-1"
        state_dir = "/srv/meshd"
        [gossip]
        listen = "10.0.0.1:51800"
        seeds = ["10.0.0.1:51800", "seed.example.net:51800", "[fd00::1]:51800"]
        advertise = ["198.51.100.7:51800"]
        join_token_file = "/run/token"
        profile = "wan"
        [wireguard]
        interface = "mesh7"
        port = 51900
        backend = "userspace"
        fwmark = 0x20
        persistent_keepalive = 0
        rotate_keys_every = "0"
        psk = "off"
        [network]
        pod_prefixes = ["10.244.1.0/24", "fd00:244:1::/64"]
        node_addresses = ["10.0.0.1"]
        encrypt = "pods"
        route_source = "prefixes"
        workload_interfaces = ["cali*", "azv*", "lxc*", "veth*"]
        leak_protection = "off"
        forget_after = "36h"
        table = 100
        rule_priority = 99
        mtu = 1400
        mss_clamp = false
        [control]
        socket = "/run/other.sock"
        group = "ops"
        [metrics]
        listen = "[::1]:9586"
        ui = false
        [trust]
        expiry = "soft"
        [dns]
        enabled = false
    "#;
    let config = Config::from_text("meshd.toml", text).unwrap();
    assert_eq!(config.node.name.as_ref().unwrap().as_str(), "db-1");
    assert_eq!(config.gossip.seeds.len(), 3);
    assert_eq!(config.wireguard.fwmark, 0x20);
    assert_eq!(config.network.forget_after.as_secs(), 36 * 3600);
    assert_eq!(config.network.mtu, Automatic::Given(1400));
    assert_eq!(config.network.pod_prefixes, {
        let given = ["10.244.1.0/24", "fd00:244:1::/64"].map(|p| p.parse().unwrap());
        Automatic::Given(given.to_vec())
    });
}

#[test]
fn an_unknown_key_is_named_with_file_and_nearest_key() {
    let found = errors("[wireguard]\nprot = 1\n[gosip]\na = 1\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("meshd.toml: unknown section [gosip]"), "{found:?}");
    assert!(found[0].ends_with("did you mean gossip?"), "{found:?}");
    assert!(found[1].contains("unknown key wireguard.prot"), "{found:?}");
    assert!(found[1].contains("did you mean port?"), "{found:?}");
    assert!(found[1].contains("interface, port, backend"), "{found:?}");
}

#[test]
fn all_bad_values_are_reported_at_once_each_with_what_is_allowed() {
    let found = errors(
        "[wireguard]\nport = 99999\nfwmark = 0\n[network]\npod_prefixes = [\"10.0.0.1/24\"]\n\
         [gossip]\nlisten = \"here\"\nseeds = \"10.0.0.1:1\"\n",
    );
    assert_eq!(found.len(), 5, "{found:?}");
    let all = found.join("\n");
    for part in [
        "wireguard.port = 99999 cannot be used; it is out of range; use a UDP port from 1 to 65534",
        "\"10.0.0.1/24\": it has bits beyond its length, 10.0.0.0/24 has not",
        "gossip.listen = \"here\" cannot be used; it is not an address and a port",
        "gossip.seeds = \"10.0.0.1:1\" cannot be used; it is not a list",
    ] {
        assert!(all.contains(part), "{part:?} not in {all}");
    }
}

#[test]
fn a_zone_that_is_too_long_is_not_blamed_for_its_letters() {
    let found = errors(&format!("[node]\nzone = \"{}\"", "z".repeat(65)));
    assert!(found[0].contains("it has 65 characters; use letters"), "{found:?}");
    let found = errors("[node]\nzone = \"a b\"");
    assert!(found[0].contains("a character that is not allowed"), "{found:?}");
}

#[test]
fn what_does_not_go_together_names_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (file, drop_ins) = (dir.path().join("meshd.toml"), dir.path().join("conf.d"));
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(&file, "[wireguard]\nport = 51820\n").unwrap();
    std::fs::write(drop_ins.join("10.toml"), "[gossip]\nlisten = \"[::]:51821\"\n").unwrap();
    let errors = Config::load(&file, &drop_ins, []).unwrap_err().to_string();
    assert!(errors.contains("conf.d/10.toml: gossip.listen = [::]:51821 cannot"), "{errors}");
    std::fs::remove_file(drop_ins.join("10.toml")).unwrap();
    std::fs::write(&file, "[wireguard]\nport = 51799\n").unwrap();
    let errors = Config::load(&file, &drop_ins, []).unwrap_err().to_string();
    assert!(errors.contains("meshd.toml: gossip.listen = "), "{errors}");
}

#[test]
fn what_is_planned_but_not_built_says_so() {
    for (text, works) in [
        ("[wireguard]\npsk = \"preferred\"", "\"off\""),
        ("[wireguard]\npsk = \"required\"", "\"off\""),
        ("[wireguard]\nrotate_keys_every = \"24h\"", "\"0\""),
        ("[metrics]\nui = true", "false"),
        ("[dns]\nenabled = true", "false"),
    ] {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("not built yet in this version"), "{found:?}");
        assert!(found[0].contains(works), "{found:?}");
    }
}

#[test]
fn metrics_are_off_unless_an_address_is_given() {
    assert_eq!(Config::from_text("meshd.toml", "").unwrap().metrics.listen, None);
    for (text, address) in [
        ("\"\"", None),
        ("\"127.0.0.1:9586\"", Some("127.0.0.1:9586")),
        ("\"[::]:9586\"", Some("[::]:9586")),
    ] {
        let text = format!("[metrics]\nlisten = {text}");
        let config = Config::from_text("meshd.toml", &text).unwrap();
        assert_eq!(config.metrics.listen, address.map(|a| a.parse().unwrap()));
    }
    for (text, why) in [
        ("\"localhost:9586\"", "it is not an address and a port"),
        ("\"127.0.0.1:0\"", "it cannot be 0"),
        ("9586", "it is not text in quotes"),
    ] {
        let found = errors(&format!("[metrics]\nlisten = {text}"));
        assert!(found[0].contains("metrics.listen") && found[0].contains(why), "{found:?}");
    }
}

#[test]
fn a_fraction_or_a_word_is_no_number() {
    for bad in ["51820.5", "\"51820\"", "true", "-1", "[]", "{}"] {
        let found = errors(&format!("[wireguard]\nport = {bad}\n"));
        assert!(found[0].contains("wireguard.port"), "{bad}: {found:?}");
    }
}

#[test]
fn later_layers_win_key_by_key() {
    let home = tempfile::tempdir().unwrap();
    let (file, drop_ins) = (home.path().join("meshd.toml"), home.path().join("conf.d"));
    fs::create_dir(&drop_ins).unwrap();
    fs::write(&file, "[node]\nname = \"a\"\nzone = \"z\"\n[wireguard]\nport = 1000\n").unwrap();
    fs::write(drop_ins.join("20.toml"), "[node]\nname = \"c\"\n").unwrap();
    fs::write(drop_ins.join("10.toml"), "[node]\nname = \"b\"\n[wireguard]\nport = 2000\n")
        .unwrap();
    fs::write(drop_ins.join("ignored.conf"), "rubbish").unwrap();
    fs::write(drop_ins.join(".hidden.toml"), "rubbish").unwrap();
    let environment = variables(&[
        ("MESHD_WIREGUARD__PORT", "3000"),
        ("MESHD_GOSSIP__SEEDS", "10.0.0.1:51800, [fd00::1]:51800"),
        ("MESHD_NETWORK__POD_PREFIXES", "[\"10.1.0.0/24\"]"),
        ("MESHD_WIREGUARD__FWMARK", "0x40"),
        ("MESHD_SOCKET", "/meshctl/s"),
        ("PATH", "/bin"),
    ]);
    let config = Config::load(&file, &drop_ins, environment).unwrap();
    assert_eq!(config.node.name.unwrap().as_str(), "c");
    assert_eq!(config.node.zone.as_str(), "z");
    assert_eq!(config.wireguard.port, 3000);
    assert_eq!(config.wireguard.fwmark, 0x40);
    assert_eq!(config.gossip.seeds.len(), 2);
    assert_ne!(config.network.pod_prefixes, Automatic::Auto);
}

#[test]
fn an_empty_list_in_the_environment_means_none() {
    let config = Config::load(
        Path::new("/nonexistent"),
        Path::new("/nonexistent"),
        variables(&[("MESHD_NETWORK__POD_PREFIXES", "")]),
    )
    .unwrap();
    assert_eq!(config.network.pod_prefixes, Automatic::Given(Vec::new()));
}

#[test]
fn a_mistake_is_found_where_a_later_layer_hides_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("meshd.toml");
    fs::write(&file, "[wireguard]\nport = 0\n").unwrap();
    let environment = variables(&[
        ("MESHD_WIREGUARD__PORT", "3000"),
        ("MESHD_NODE__NAEM", "x"),
        ("MESHD_DNS__ENABLED", "true"),
    ]);
    let found = Config::load(&file, &home.path().join("conf.d"), environment).unwrap_err();
    let found = found.to_string();
    assert!(found.contains("meshd.toml: wireguard.port = 0"), "{found}");
    assert!(found.contains("MESHD_NODE__NAEM: unknown key node.naem"), "{found}");
    assert!(
        found
            .contains("MESHD_DNS__ENABLED: dns.enabled = \"true\" cannot be used; it is not built"),
        "{found}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let home = tempfile::tempdir().unwrap();
    let none = home.path().join("none");
    let found = Config::load(home.path(), &none, []).unwrap_err().to_string();
    assert!(found.contains(&home.path().display().to_string()), "{found}");
    let binary = home.path().join("binary.toml");
    fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    assert!(Config::load(&binary, &none, []).unwrap_err().to_string().contains("UTF-8"));
    let huge = home.path().join("huge.toml");
    fs::write(&huge, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Config::load(&huge, &none, []).unwrap_err().to_string().contains("1 MiB"));
}

#[test]
fn ports_of_gossip_and_wireguard_cannot_collide() {
    for port in [51800, 51799] {
        let found = errors(&format!("[wireguard]\nport = {port}\n"));
        assert!(found[0].contains("gossip.listen"), "{found:?}");
    }
}

#[test]
fn gateways_need_a_zone_and_are_not_behind_others() {
    for (text, part) in [
        ("gateways = [\"gw\"]", "node.zone is empty"),
        ("gateway = true", "node.zone is empty"),
        ("zone = \"z\"\ngateway = true\ngateways = [\"gw\"]", "node.gateway is true"),
        ("zone = \"z\"\nname = \"gw\"\ngateways = [\"gw\"]", "names this host itself"),
        ("zone = \"z\"\ngateways = [\"a\", \"a\"]", "twice"),
        ("zone = \"z\"\ngateways = [\"a\", \"b\", \"c\", \"d\", \"e\"]", "longer than 4"),
        ("zone = \"z\"\ngateways = [\"A b\"]", "names of members"),
        ("zone = \"z\"\ngateways = [\"10.0.0.1\"]", "\"10.0.0.1\": it is an address"),
        ("zone = \"z\"\ngateways = [\"[fd00::1]:51800\"]", "it is an address"),
        (
            "zone = \"z\"\ngateway = true\ngateways = [\"gw\"]",
            "meshd.toml: node.gateways = gw cannot",
        ),
    ] {
        let found = errors(&format!("[node]\n{text}\n"));
        assert!(found.len() == 1 && found[0].contains(part), "{text}: {found:?}");
    }
    let text = "[node]\nzone = \"z\"\ngateways = [\"gw-1\", \"gw-2\"]\n";
    let config = Config::from_text("zones", text).unwrap();
    assert_eq!(config.node.gateways.len(), 2);
    let changes = Config::default().changes(&config);
    assert!(changes.restart.is_empty(), "all of it is live: {:?}", changes.restart);
}

#[test]
fn a_reload_tells_what_it_can_apply_from_what_needs_a_restart() {
    let old = Config::default();
    assert!(old.changes(&old.clone()).is_empty());
    let new = Config::from_text(
        "new",
        "[gossip]\nseeds = [\"10.0.0.1:51800\"]\n[wireguard]\nport = 5000\n\
         [network]\nforget_after = \"2d\"\n",
    )
    .unwrap();
    let changes = old.changes(&new);
    let keys: Vec<_> = changes.live.iter().map(|d| d.key).collect();
    assert_eq!(keys, ["gossip.seeds", "network.forget_after"]);
    assert_eq!(changes.live[1].old, "\"604800s\"");
    assert_eq!(changes.restart.len(), 1);
    assert_eq!(changes.restart[0].key, "wireguard.port");
    assert_eq!(
        (changes.restart[0].old.as_str(), changes.restart[0].new.as_str()),
        ("51820", "5000")
    );
}

#[test]
fn workloads_and_the_names_of_their_interfaces_are_read() {
    let text =
        "[network]\nroute_source = \"workloads\"\nworkload_interfaces = [\"eni*\", \"gke*-1\"]\n";
    let network = Config::from_text("meshd.toml", text).unwrap().network;
    assert_eq!(network.route_source, RouteSource::Workloads);
    assert_eq!(network.workload_interfaces, ["eni*", "gke*-1"]);
    for bad in ["*", "", "e th", "eth0/1", "a-name-that-is-far-too-long-for-an-interface"] {
        let found = errors(&format!("[network]\nworkload_interfaces = [\"{bad}\"]"));
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
        assert!(found[0].contains("such as [\"eni*\"]"), "{found:?}");
    }
}

#[test]
fn errors_cannot_steer_a_terminal() {
    let text = "[\"a\\u001b[2J\"]\nx = 1\n[node]\nzone = \"\\u001b]0;x\\u0007\"\n";
    let all = errors(text).join(" ");
    assert!(!all.contains('\u{1b}') && !all.contains('\u{7}'), "{all:?}");
}

#[test]
fn the_host_name_is_the_default_name() {
    let config = Config::default();
    assert_eq!(config.node_name("DB-1.Example.NET.").unwrap().as_str(), "db-1.example.net");
    assert!(config.node_name("under_score").is_err());
}

mod arbitrary {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            let _ = Config::from_text("any", &text);
        }

        #[test]
        fn arbitrary_bytes_in_a_file_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join("meshd.toml");
            fs::write(&file, &bytes).unwrap();
            let _ = Config::load(&file, &home.path().join("conf.d"), []);
        }

        #[test]
        fn arbitrary_values_of_known_keys_never_panic(
            at in any::<prop::sample::Index>(),
            value in "[-0-9a-z\"\\[\\]{}.:/=, ]{0,40}",
            from_environment in any::<bool>(),
        ) {
            let keys = documented_keys();
            let (section, key) = keys[at.index(keys.len())].0.split_once('.').unwrap();
            if from_environment {
                let name = format!("MESHD_{section}__{key}").to_uppercase();
                let none = Path::new("/nonexistent");
                let _ = Config::load(none, none, variables(&[(&name, &value)]));
            } else {
                let _ = Config::from_text("any", &format!("[{section}]\n{key} = {value}\n"));
            }
        }
    }
}
