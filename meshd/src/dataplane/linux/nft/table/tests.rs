//! What is written reads back, and nothing else does.

use meshd_core::plan::{DontFragment, Forwarded, SourceNat, Steering};

use super::*;

fn rules() -> FirewallRules {
    FirewallRules {
        nat: SourceNat {
            watch: false,
            device: "mesh0".to_owned(),
            own_v4: ["10.1.0.0/16", "10.1.2.0/24", "100.112.0.1/32"]
                .iter()
                .map(|net| net.parse().unwrap())
                .collect(),
            own_nodes: ["192.0.2.9", "2001:db8::9"].map(|ip| ip.parse().unwrap()).into(),
            own_v6: ["fd00::1/128", "fd01::/64"].iter().map(|net| net.parse().unwrap()).collect(),
            workloads: true,
        },
        clamp_mss: true,
        dont_fragment: Some(DontFragment { port: 51820, mark: 16 }),
        guard: Some(Steering { mark: 16, gossip: 51800, wireguard: 51820 }),
        steering: Some(Steering { mark: 16, gossip: 51800, wireguard: 51820 }),
        forwarded: Some(Forwarded {
            own: nets(&["100.112.0.1/32", "fd00::1/128"]),
            outside: ["eth0", "eth1"].map(str::to_owned).into(),
            behind: nets(&["192.168.50.0/24"]),
            local: nets(&["10.1.0.0/16", "fd01::/64"]),
            devices: nets(&["10.9.0.0/24", "fd09::/64"]),
        }),
    }
}

fn nets(list: &[&str]) -> std::collections::BTreeSet<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn sets() -> FirewallSets {
    FirewallSets {
        guarded: ["10.2.0.0/24", "10.3.0.1/32", "fd02::/64"]
            .iter()
            .map(|net| net.parse().unwrap())
            .collect(),
        fragmented: [Ipv4Addr::new(192, 0, 2, 1)].into(),
        own: ["10.240.0.5", "fd00:9::5"].map(|address| address.parse().unwrap()).into(),
        routed_nodes: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
        guarded_nodes: ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap()).into(),
    }
}

/// As nft lists it: with handles, elements within their sets, and counters that have counted.
fn listing(rules: &FirewallRules, sets: &FirewallSets) -> Value {
    let shape = Shape::of(rules);
    let mut objects = vec![
        json!({"metainfo": {"version": "1.0.6"}}),
        json!({"table": {"family": FAMILY, "name": TABLE, "handle": 1}}),
    ];
    for mut body in shape.sets {
        let name = body["name"].clone();
        for command in elements("add", sets) {
            if command["add"]["element"]["name"] == name {
                body["elem"] = command["add"]["element"]["elem"].clone();
            }
        }
        objects.push(json!({"set": body}));
    }
    objects.extend(shape.chains.into_iter().map(|body| json!({"chain": body})));
    for mut body in shape.rules {
        body["handle"] = json!(7);
        for expr in body["expr"].as_array_mut().unwrap() {
            if expr.get("counter").is_some() {
                *expr = json!({"counter": {"packets": 3, "bytes": 99}});
            }
        }
        objects.push(json!({"rule": body}));
    }
    json!({"nftables": objects})
}

#[test]
fn what_is_written_reads_back() {
    let plain = FirewallRules {
        nat: SourceNat { device: "m".to_owned(), ..SourceNat::default() },
        ..FirewallRules::default()
    };
    let mut watching = rules();
    watching.nat.watch = true;
    for (rules, sets) in [(rules(), sets()), (watching, sets()), (plain, FirewallSets::default())] {
        let read = Listing::read(&listing(&rules, &sets)).observed(None);
        assert_eq!(read, ObservedFirewall { rules: Some(rules), sets });
    }
}

#[test]
fn anything_else_in_the_table_means_nothing() {
    let good = listing(&rules(), &sets());
    let meaning = |listing: &Value| Listing::read(listing).observed(None).rules;
    assert!(meaning(&good).is_some());
    let count = good["nftables"].as_array().unwrap().len();
    for missing in 2..count {
        let mut fewer = good.clone();
        fewer["nftables"].as_array_mut().unwrap().remove(missing);
        let meant = meaning(&fewer);
        assert_ne!(meant, Some(rules()), "without {}", good["nftables"][missing]);
    }
    for other in [
        json!({"set": {"family": FAMILY, "name": "x", "table": TABLE, "type": "mark"}}),
        json!({"chain": {"family": FAMILY, "table": TABLE, "name": "x"}}),
        json!({"rule": {"family": FAMILY, "table": TABLE, "chain": GUARD_OUT,
            "expr": [{"accept": null}]}}),
        json!({"flowtable": {}}),
        json!(1),
    ] {
        let mut more = good.clone();
        more["nftables"].as_array_mut().unwrap().push(other.clone());
        assert_eq!(meaning(&more), None, "with {other}");
    }
    let mut dormant = good.clone();
    dormant["nftables"][1]["table"]["flags"] = json!("dormant");
    assert_eq!(meaning(&dormant), None);
    for bad in [json!(null), json!({}), json!({"nftables": [1]}), json!({"nftables": []})] {
        assert_eq!(meaning(&bad), None);
    }
}

#[test]
fn another_way_of_listing_is_recognized_once_it_is_known() {
    let mut other = listing(&rules(), &sets());
    let text = other.to_string().replace(r#""op":"==""#, r#""op":"in""#);
    other = serde_json::from_str(&text).unwrap();
    let read = Listing::read(&other);
    assert_eq!(read.clone().observed(None).rules, None);
    let known = (read.shape.clone(), rules());
    assert_eq!(read.clone().observed(Some(&known)).rules, Some(rules()));
    let sound = Listing::read(&listing(&rules(), &sets()));
    assert_eq!(sound.observed(Some(&known)).rules, Some(rules()));
}
