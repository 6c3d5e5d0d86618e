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

#[test]
fn every_mistake_of_every_file_is_told_at_once() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(load(&home.path().join("absent")), Ok(Vec::new()));
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    write("b.toml", GOOD);
    write("a.toml", GOOD);
    write(".hidden.toml", "no");
    write("notes.txt", "no");
    let names: Vec<String> =
        load(home.path()).unwrap().iter().map(|file| file.name().to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
    write("c.toml", &GOOD.replace("10.244.0.0/16", "x").replace("= 7", "= []"));
    write("bad name.toml", GOOD);
    std::fs::write(home.path().join("d.toml"), [0xff, 0xfe]).unwrap();
    let found = load(home.path()).unwrap_err();
    assert_eq!(found.0.len(), 4, "{found}");
    for part in ["c.toml", "bad name", "d.toml", "UTF-8"] {
        assert!(found.to_string().contains(part), "{part}: {found}");
    }
}
