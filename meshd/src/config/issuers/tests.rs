use meshd_core::trust::issuer::{Binding, Pointer, Template, Wanted};
use meshd_proto::MeshId;

use super::*;

const GOOD: &str = r#"
issuer = "https://kubernetes.default.svc.cluster.local"
jwks_file = "/etc/meshd/cluster-keys.json"

[[rule]]
node_name = "{/kubernetes.io/node/name}"
allow = ["10.244.0.0/16"]
groups = ["k8s"]
[rule.claims]
"/sub" = "system:serviceaccount:meshd:meshd"
"/kubernetes.io/namespace" = ["meshd", { prefix = "infra-" }]
"/admin" = true
"/number" = 7
"#;

fn errors(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    assert!(read("issuers.d/idp.toml", "idp", text, &mut errors).is_none(), "{text}");
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn an_issuer_is_read_with_its_defaults() {
    let mut none = Vec::new();
    let file = read("idp.toml", "idp", GOOD, &mut none).unwrap();
    assert_eq!((file.name(), file.rules()), ("idp", 1));
    assert_eq!(file.keys, KeySource::File("/etc/meshd/cluster-keys.json".into()));
    let terms = file.terms(&MeshId([7; 16]));
    assert_eq!(terms.binding, Binding::Key);
    assert_eq!((terms.max_age_seconds, terms.algorithms.len()), (3600, 5));
    let rule = &terms.rules[0];
    assert_eq!((rule.name.as_str(), rule.once, rule.claims.len()), ("rule 1", true, 4));
    assert_eq!(rule.subject, Template::parse("{/sub}").unwrap());
    let namespace = Pointer::parse("/kubernetes.io/namespace").unwrap();
    let wanted = vec![Wanted::Text("meshd".into()), Wanted::Prefix("infra-".into())];
    assert!(rule.claims.contains(&(namespace, wanted)));
}

#[test]
fn a_rule_may_give_ranges_of_workloads() {
    let text = GOOD.replace("allow =", "workloads = [\"10.240.0.0/16\"]\nallow =");
    let mut none = Vec::new();
    let terms = read("idp.toml", "idp", &text, &mut none).unwrap().terms(&MeshId([7; 16]));
    assert_eq!(terms.rules[0].pools, ["10.240.0.0/16".parse().unwrap()]);
    let found = errors(&GOOD.replace("allow =", "workloads = [\"10.240.0.1/16\"]\nallow ="));
    assert!(found.iter().any(|error| error.contains("workloads")), "{found:?}");
}

#[test]
fn without_a_word_the_audience_of_the_first_use_is_the_mesh() {
    let read_with = |more: &str| {
        let mut none = Vec::new();
        let file = read("idp.toml", "idp", &format!("{more}\n{GOOD}"), &mut none).unwrap();
        file.terms(&MeshId([7; 16])).binding
    };
    let audience = format!("meshd:{}", "07".repeat(16));
    assert_eq!(read_with("binding = \"first-use\""), Binding::FirstUse { audience });
    let audience = "api://mesh".to_owned();
    let given = read_with("binding = \"first-use\"\naudience = \"api://mesh\"");
    assert_eq!(given, Binding::FirstUse { audience });
}

#[test]
fn what_is_wrong_is_named_with_file_key_value_and_what_is_allowed() {
    let url = GOOD.replace("jwks_file = \"/etc/meshd/cluster-keys.json\"", "jwks_url = \"URL\"");
    let cases: Vec<(String, &[&str])> = vec![
        (GOOD.replace("issuer =", "isuer ="), &["line 2", "isuer", "`issuer`"]),
        (GOOD.replace("groups =", "group ="), &["line 8", "group", "`groups`"]),
        (GOOD.replace("= 7", "= 7.5"), &["{ prefix", "whole number"]),
        (GOOD.replace("prefix =", "glob ="), &["{ prefix"]),
        (GOOD.replace("rule", "rules"), &["`rules`", "`rule`"]),
        (format!("binding = \"maybe\"\n{GOOD}"), &["binding = \"maybe\"", "first-use"]),
        (format!("audience = \"x\"\n{GOOD}"), &["audience = \"x\"", "first-use"]),
        (
            format!("binding = \"first-use\"\naudience = \"\"\n{GOOD}"),
            &["audience", "meshd:MESH_ID"],
        ),
        (format!("algorithms = [\"HS256\"]\n{GOOD}"), &["HS256", "never taken", "ES256"]),
        (format!("algorithms = [\"none\"]\n{GOOD}"), &["none", "never taken"]),
        (format!("algorithms = []\n{GOOD}"), &["algorithms", "ES256"]),
        (format!("max_age = \"30d\"\n{GOOD}"), &["max_age = \"30d\"", "7d"]),
        (format!("max_age = \"soon\"\n{GOOD}"), &["max_age = \"soon\""]),
        (format!("ca_file = \"/a\"\n{GOOD}"), &["ca_file", "jwks_url"]),
        (format!("jwks_url = \"https://a/\"\n{GOOD}"), &["jwks_url", "one of the two"]),
        (
            GOOD.replace("/etc/meshd/cluster", "cluster"),
            &["jwks_file = \"cluster-keys.json\"", "absolute"],
        ),
        (
            GOOD.replace("jwks_file = \"/etc/meshd/cluster-keys.json\"", ""),
            &["jwks_url", "jwks_file"],
        ),
        (
            url.replace("URL", "http://idp.example/keys"),
            &["jwks_url = \"http://idp.example/keys\"", "https://"],
        ),
        (url.replace("URL", "https://user@idp.example/keys"), &["jwks_url", "user"]),
        (url.replace("URL", "/keys"), &["jwks_url = \"/keys\"", "https://"]),
        (GOOD.replace("\"/sub\"", "\"sub\""), &["rule \"rule 1\" claims = \"sub\"", "/NAME"]),
        (GOOD.replace("{/kubernetes.io/node/name}", "{node}"), &["node_name = \"{node}\""]),
        (GOOD.replace("node_name =", "subject ="), &["node_name", "node_name_prefix"]),
        (
            GOOD.replace("10.244.0.0/16", "10.244.1.0/16"),
            &["allow = \"10.244.1.0/16\"", "10.244.0.0/16"],
        ),
        (GOOD.replace("10.244.0.0/16", "0.0.0.0/0"), &["allow = \"0.0.0.0/0\"", "everything"]),
        (GOOD.replace("10.244.0.0/16", "ten"), &["allow = \"ten\""]),
        (GOOD.replace("[\"k8s\"]", "[\"a b\"]"), &["groups = \"a b\""]),
        (GOOD.replace("infra-", ""), &["every text begins like that"]),
        (GOOD.split("[rule.claims]").next().unwrap().to_owned(), &["claims", "the world"]),
        (GOOD.split("[[rule]]").next().unwrap().to_owned(), &["[[rule]]", "nobody is admitted"]),
        (
            GOOD.replace("node_name = \"{/kubernetes.io/node/name}\"", "node_name_prefix = \"\""),
            &["node_name_prefix = \"\"", "1 to 62"],
        ),
        (
            GOOD.replace(
                "node_name = \"{/kubernetes.io/node/name}\"",
                "node_name_prefix = \"Db_\"",
            ),
            &["node_name_prefix = \"Db_\"", "lower-case"],
        ),
        (
            GOOD.replace("node_name = \"{/kubernetes.io/node/name}\"", "node_name_prefix = \"-x\""),
            &["node_name_prefix = \"-x\""],
        ),
        (
            GOOD.replace(
                "node_name = \"{/kubernetes.io/node/name}\"",
                &format!("node_name_prefix = \"{}\"", "x".repeat(63)),
            ),
            &["node_name_prefix", "1 to 62"],
        ),
        (
            GOOD.replace("groups =", "subject = \"all\"\ngroups ="),
            &["subject = \"all\"", "once = false"],
        ),
        ("issuer = ".to_owned(), &["line 1"]),
    ];
    for (text, parts) in cases {
        let found = errors(&text).join("\n");
        assert!(found.starts_with("issuers.d/idp.toml"), "{found}");
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
        assert!(!found.contains('\u{1b}') && !found.contains('\r'));
    }
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.files.iter().map(IssuerFile::name).collect()
}

#[test]
fn every_mistake_of_every_file_is_told_and_the_good_ones_count() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(load(&home.path().join("absent")), Loaded::default());
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    write("b.toml", GOOD);
    write("a.toml", GOOD);
    write(".hidden.toml", "no");
    write("notes.txt", "no");
    let loaded = load(home.path());
    assert_eq!((names(&loaded), loaded.refused.len()), (vec!["a", "b"], 0));
    write("c.toml", &GOOD.replace("10.244.0.0/16", "x").replace("= 7", "= []"));
    write("bad name.toml", GOOD);
    std::fs::write(home.path().join("d.toml"), [0xff, 0xfe]).unwrap();
    let loaded = load(home.path());
    assert_eq!(names(&loaded), ["a", "b"], "nobody is kept out by another file");
    let refused: Vec<_> =
        loaded.refused.iter().map(|(name, errors)| (name.as_str(), errors.0.len())).collect();
    assert_eq!(refused, [("bad name", 1), ("c", 2), ("d", 1)]);
    assert!(loaded.refused[2].1.to_string().contains("UTF-8"));
    // One that went, or was broken, admits nobody any more.
    std::fs::remove_file(home.path().join("a.toml")).unwrap();
    write("b.toml", "isuer = 1");
    let loaded = load(home.path());
    assert!(loaded.files.is_empty());
    assert_eq!(loaded.refused.len(), 4);
}

#[test]
fn the_first_files_count_when_there_are_too_many() {
    let home = tempfile::tempdir().unwrap();
    for n in 0..=MOST {
        std::fs::write(home.path().join(format!("i{n:03}.toml")), GOOD).unwrap();
    }
    let loaded = load(home.path());
    assert_eq!(loaded.files.len(), MOST);
    assert!(loaded.refused[0].1.to_string().contains("more than 64"), "{:?}", loaded.refused);
}

#[test]
fn a_file_that_others_can_write_admits_nobody() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    for (name, mode) in [("good", 0o644), ("group", 0o664), ("world", 0o646)] {
        let path = home.path().join(format!("{name}.toml"));
        std::fs::write(&path, GOOD).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let loaded = load(home.path());
    assert_eq!(names(&loaded), ["good"]);
    for ((name, errors), wanted) in loaded.refused.iter().zip(["group", "world"]) {
        assert_eq!(name, wanted);
        let told = errors.to_string();
        assert!(told.contains("others than root may change it; chmod go-w"), "{told}");
    }
}

#[test]
fn the_hash_of_a_file_changes_with_it() {
    let mut none = Vec::new();
    let mut digest = |text: &str| read("idp.toml", "idp", text, &mut none).unwrap().digest;
    assert_eq!(digest(GOOD), digest(GOOD));
    assert_ne!(digest(GOOD), digest(&format!("{GOOD}# looser\n")));
}
