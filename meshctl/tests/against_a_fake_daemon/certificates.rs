//! `cert show` and `cert issue`.

use std::{os::unix::fs::MetadataExt as _, path::Path, process::Output};

use meshd_core::{
    now::UnixTime,
    trust::{
        Anchors, Grant, IdentityFile, IdentityFiles, IdentityKey, Intermediate, IssuedIdentity,
        NodeTerms, RootCa, pem,
    },
};
use meshd_proto::{MeshId, NodeKey, wire};
use prost::Message as _;

use super::*;

const DAY: i64 = 24 * 3600;

/// A CA of a fixed mesh.
struct Authority {
    root: RootCa,
    intermediate: Intermediate,
    bundle: wire::SignedBundle,
}

fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixTime(since.as_secs().try_into().unwrap())
}

const MESH: MeshId = MeshId([5; 16]);

fn authority() -> Authority {
    let made = UnixTime(1_700_000_000);
    let root = RootCa::create(&[1; 32], &"demo".parse().unwrap(), &MESH, made).unwrap();
    let intermediate = root.issue_intermediate(&[2; 32], made).unwrap();
    let bundle = root.sign_bundle(&MESH, 1, &[&intermediate]);
    Authority { root, intermediate, bundle }
}

fn node(key: NodeKey, name: &str, days: i64) -> Vec<u8> {
    let grant = |prefix: &str, claim_len| Grant { prefix: prefix.parse().unwrap(), claim_len };
    let terms = NodeTerms {
        mesh: "demo".parse().unwrap(),
        mesh_id: MESH,
        name: name.parse().unwrap(),
        key,
        enrolment_id: [1; 16],
        groups: vec!["db".into()],
        grants: vec![grant("10.244.1.0/24", None), grant("10.9.0.0/16", Some(24))],
        mesh_ipv4: Some("100.112.0.7".parse().unwrap()),
        limits: vec!["10.244.0.0/16".parse().unwrap()],
        subject: None,
        not_before: now().plus(-10 * DAY),
        not_after: now().plus(days * DAY),
    };
    authority().intermediate.issue_node(&terms).unwrap().der.to_vec()
}

fn key() -> IdentityKey {
    IdentityKey::from_seed(&[3; 32])
}

/// What the fake shows of itself.
pub(crate) fn own() -> ShowCertificatesReply {
    ShowCertificatesReply {
        certificate: node(key().public(), "db-1", 20),
        issuer: authority().intermediate.der().to_vec(),
        root: authority().root.der().to_vec(),
        renewal_at: Some("2030-01-02T03:04:05Z".into()),
    }
}

/// What the fake issues: `garbled` gets somebody else's certificate.
pub(crate) fn issue(request: &IssueCertificateRequest) -> IssueCertificateReply {
    let (key, name) = if request.certificate.is_empty() {
        let request = wire::EnrolRequest::decode(&request.request[..]).unwrap();
        let body = wire::EnrolBody::decode(&request.body[..]).unwrap();
        (NodeKey::try_from(&body.identity_key[..]).unwrap(), body.name)
    } else {
        (key().public(), "db-1".to_owned())
    };
    let key = if name == "garbled" { NodeKey([9; 32]) } else { key };
    IssueCertificateReply {
        certificate: node(key, &name, 30),
        root: authority().root.der().to_vec(),
        bundle: authority().bundle.encode_to_vec(),
        seeds: vec!["192.0.2.1:51800".into()],
    }
}

/// Without any daemon.
fn show(path: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(["--socket", "/nonexistent", "cert", "show"]).arg(path).args(more);
    command.output().unwrap()
}

fn written(home: &Path, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = home.join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn cert_show_reads_pem_and_der_without_a_daemon() {
    let home = tempfile::tempdir().unwrap();
    let authority = authority();
    let der = node(key().public(), "db-1", 20);
    let all = [&der[..], authority.intermediate.der(), authority.root.der()];
    let chain: String = all.iter().map(|der| format!("junk\n{}", pem::encode(der))).collect();
    let json = parsed(&show(&written(home.path(), "chain.pem", chain), &["-o", "json"]));
    let kinds: Vec<_> = json.as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(kinds, ["node", "intermediate", "root"]);
    let node = &json[0];
    assert_eq!(node["spiffe_id"], "spiffe://demo/node/db-1");
    assert_eq!(node["grants"], json!(["10.244.1.0/24"]));
    assert_eq!(node["pools"], json!([{ "prefix": "10.9.0.0/16", "length": 24 }]));
    assert_eq!(node["limits"], json!(["10.244.0.0/16"]));
    assert_eq!(node["groups"], json!(["db"]));
    assert_eq!(node["mesh_id"], MESH.to_string());
    assert_eq!(node["state"], "valid");
    assert!(node["remaining_seconds"].as_i64().unwrap() > 19 * DAY);
    assert_eq!(node["fingerprint"].as_str().unwrap().len(), 32 * 3 - 1);
    assert_eq!(json[1]["mesh_id"], Value::Null);
    assert_eq!(json[2]["path_length"], 1);
    assert_eq!(json[2]["address_blocks"], json!(["0.0.0.0/0", "::/0"]));
    let table = stdout(&show(&written(home.path(), "node.der", &der), &[]));
    assert!(table.starts_with("node certificate of db-1 in mesh demo\n"), "{table}");
    for text in ["a /24 of 10.9.0.0/16", "100.112.0.7", "10.244.1.0/24"] {
        assert!(table.contains(text), "{text} is not in {table}");
    }
    assert!(table.contains("19d 23h left") || table.contains("20d left"), "{table}");
    let ended = written(home.path(), "old.der", super::certificates::node(key().public(), "x", -2));
    let table = stdout(&show(&ended, &[]));
    assert!(table.contains("ended 2d"), "{table}");
}

#[test]
fn cert_show_says_what_is_wrong_with_a_file() {
    let home = tempfile::tempdir().unwrap();
    let good = pem::encode(authority().root.der());
    let cut = &good[..good.len() / 2];
    let two = format!("{good}{}", pem::encode(b"\x30\x03\x02\x01\x01"));
    for (content, why) in [
        ("", "it is empty"),
        ("hello\u{1b}[2J", "not decodable"),
        ("-----BEGIN PRIVATE KEY-----\n", "holds no certificate"),
        (cut, "cut off"),
        (two.as_str(), "certificate 2 of 2"),
    ] {
        let output = show(&written(home.path(), "x", content), &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && said.split("; ").count() == 3, "{said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
        assert_eq!(stdout(&output), "");
    }
    let large = show(&written(home.path(), "x", vec![b'x'; 2 << 20]), &[]);
    assert!(stderr(&large).contains("larger than 1 MiB"), "{}", stderr(&large));
    assert!(stderr(&show(&home.path().join("none"), &[])).contains("No such file"));
    assert!(stderr(&show(home.path(), &[])).contains("Is a directory"));
}

#[test]
fn cert_show_tells_this_hosts_chain_and_when_it_is_renewed() {
    let daemon = Daemon::start(Script::default());
    let json = parsed(&daemon.meshctl(&["cert", "show", "-o", "json"]));
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[0]["renewal_from"], "2030-01-02T03:04:05Z");
    let table = stdout(&daemon.meshctl(&["cert", "show"]));
    assert!(table.contains("from 2030-01-02T03:04:05Z on"), "{table}");
    assert!(table.contains("root certificate of mesh demo"), "{table}");
}

/// The files of a directory, as the daemon reads them.
fn files(directory: &Path) -> IdentityFiles {
    let read = |file: IdentityFile| {
        let content = fs::read(directory.join(file.name())).ok()?;
        Some((file, content.into()))
    };
    IdentityFile::ALL.into_iter().filter_map(read).collect()
}

#[test]
fn cert_issue_writes_what_a_daemon_takes_and_sends_no_secret() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("web-1");
    let out_text = out.to_str().unwrap();
    let daemon = Daemon::start(Script::default());
    let arguments =
        ["cert", "issue", "--name", "web-1", "--prefix", "10.244.1.0/24", "--out", out_text];
    let output = daemon.meshctl(&arguments);
    let said = stdout(&output);
    assert!(
        said.starts_with("web-1 was issued a certificate, valid until 2"),
        "{}",
        stderr(&output)
    );
    assert!(said.contains("/etc/meshd/identity/"), "{said}");
    let issued = IssuedIdentity::read(&files(&out), now()).unwrap();
    assert_eq!(issued.certificate.name.as_str(), "web-1");
    assert_eq!(issued.seeds, ["192.0.2.1:51800"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&out), mode(&out.join("identity.key"))), (0o700, 0o600));
    let secret = fs::read_to_string(out.join("identity.key")).unwrap();
    let asked = daemon.asked().join("\n");
    let bytes = format!("{:?}", &issued.identity.seed()[..8]);
    assert!(!asked.contains(secret.trim()) && !asked.contains(bytes.trim_matches(['[', ']'])));
    assert!(asked.contains("ttl_seconds: 2592000") && asked.contains("10.244.1.0/24"), "{asked}");
    // Once more: nothing is overwritten, and nobody is asked.
    let before = daemon.asked().len();
    let again = daemon.meshctl(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("not empty"), "{}", stderr(&again));
    assert_eq!(daemon.asked().len(), before);
    assert_eq!(fs::read_to_string(out.join("identity.key")).unwrap(), secret);
}

#[test]
fn the_next_certificate_comes_without_a_key() {
    let home = tempfile::tempdir().unwrap();
    let node = written(home.path(), "node.crt", pem::encode(&own().certificate));
    let out = home.path().join("next");
    let daemon = Daemon::start(Script::default());
    let (node, out_text) = (node.to_str().unwrap(), out.to_str().unwrap());
    let arguments = ["cert", "issue", "--certificate", node, "--ttl", "90d", "--out", out_text];
    let json = parsed(&daemon.meshctl(&[&arguments[..], &["-o", "json"]].concat()));
    assert_eq!(json["files"], json!(["root.crt", "bundle", "seeds", "node.crt"]));
    assert_eq!(json["node"], "db-1");
    assert!(!out.join("identity.key").exists());
    let anchors = Anchors::from_root(authority().root.der()).unwrap();
    assert_eq!(json["mesh_id"], anchors.mesh_id().to_string());
    for wrong in [
        &["cert", "issue", "--out", out_text][..],
        &["cert", "issue", "--name", "x", "--certificate", node, "--out", out_text],
        &["cert", "issue", "--name", "x"],
        &["cert", "issue", "--certificate", node, "--prefix", "10.0.0.0/8", "--out", out_text],
    ] {
        assert_eq!(daemon.meshctl(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_refusal_and_an_answer_that_is_not_believed_leave_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("x");
    let out_text = out.to_str().unwrap();
    let error =
        ControlError::new("name_taken", "cannot issue", "the name is taken", "take another");
    let daemon = Daemon::start(Script { error: Some(error), ..Script::default() });
    let output = daemon.meshctl(&["cert", "issue", "--name", "x", "--out", out_text]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the name is taken"), "{}", stderr(&output));
    assert!(!out.exists());
    let daemon = Daemon::start(Script::default());
    let output = daemon.meshctl(&["cert", "issue", "--name", "garbled", "--out", out_text]);
    let said = stderr(&output);
    assert!(said.contains("for another key") && said.contains("node revoke garbled"), "{said}");
    assert!(!out.exists());
    let output = daemon.meshctl(&["cert", "issue", "--name", "No Name", "--out", out_text]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!out.exists());
}
