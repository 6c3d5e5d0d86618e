//! `init`, `token`, `join` and `leave`.

use super::*;

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
    assert!(list.contains("t1  usable   0/1  2030-01-01 00:00  any   in 10.244.0.0/16"), "{list}");
    assert_eq!(parsed(&daemon.meshctl(&["token", "list", "-o", "json"]))[0]["used"], 0);
}

#[test]
fn a_token_for_workloads_says_of_which_range_and_to_how_many() {
    let range = || vec!["10.240.0.0/16".to_owned()];
    let several = TokenInfo { allow: Vec::new(), workloads: range(), uses: 9, ..token() };
    let daemon = Daemon::start(Script { tokens: vec![several], ..Script::default() });
    let asked = ["token", "create", "--workloads", "10.240.0.0/16", "--uses", "9"];
    let output = daemon.meshctl(&asked);
    assert_eq!(stdout(&output), "meshd-token\n");
    let said = stderr(&output);
    assert!(said.contains("grants single addresses of workloads inside 10.240.0.0/16"), "{said}");
    assert!(!said.contains("grants no prefixes"), "{said}");
    let asked = daemon.asked().join("\n");
    assert!(asked.contains("workloads: [\"10.240.0.0/16\"]"), "{asked}");
    let list = daemon.meshctl(&["token", "list"]);
    assert!(stdout(&list).contains("each in 10.240.0.0/16"), "{}", stdout(&list));
    let json = parsed(&daemon.meshctl(&["token", "list", "-o", "json"]));
    assert_eq!(json[0]["workloads"][0], "10.240.0.0/16");
}

#[test]
fn a_token_for_identity_documents_says_that_it_is_no_secret() {
    let identity = TokenInfo { identity: Some("idp".into()), uses: 10_000, ..token() };
    let identity = TokenInfo { allow: Vec::new(), ..identity };
    let daemon = Daemon::start(Script { tokens: vec![identity], ..Script::default() });
    let output = daemon.meshctl(&["token", "create", "--identity", "idp"]);
    assert_eq!(stdout(&output), "meshd-token\n");
    let said = stderr(&output);
    assert!(said.contains("no secret") && said.contains("10000 times within 365d"), "{said}");
    assert!(!said.contains("grants no prefixes"), "{said}");
    let asked = daemon.asked().join("\n");
    assert!(asked.contains("uses: 0") && asked.contains("identity: \"idp\""), "{asked}");
    let both = ["token", "create", "--identity", "idp", "--allow", "10.0.0.0/8"];
    assert_eq!(daemon.meshctl(&both).status.code(), Some(2));
    assert_eq!(parsed(&daemon.meshctl(&["token", "list", "-o", "json"]))[0]["identity"], "idp");
}

#[test]
fn the_audience_stands_alone_on_stdout() {
    let daemon = Daemon::start(Script::default());
    let output = daemon.meshctl(&["join", "TOKEN", "--identity-audience"]);
    assert_eq!(stdout(&output), "meshd:00:aa\n");
    assert!(stderr(&output).contains("idp"), "{}", stderr(&output));
    assert!(daemon.asked()[0].contains("TOKEN"), "{:?}", daemon.asked());
    let output = daemon.meshctl(&["join", "TOKEN", "--identity-audience", "-o", "json"]);
    assert_eq!(parsed(&output)["bound_to_key"], true);
    let both = ["join", "TOKEN", "--identity-audience", "--identity", "-"];
    assert_eq!(daemon.meshctl(&both).status.code(), Some(2));
}

#[test]
fn a_document_that_cannot_be_read_is_told_before_anybody_is_asked() {
    let daemon = Daemon::start(Script { join: joined(), ..Script::default() });
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (token, file, why) in [
        ("TOKEN", "/none/such", "No such file"),
        ("TOKEN", "/", "directory"),
        ("TOKEN", empty, "is empty"),
        ("TOKEN", "-", "is empty"),
    ] {
        let output = daemon.meshctl(&["join", token, "--identity", file]);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.starts_with("error: cannot read the identity document; "), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert!(daemon.asked().is_empty(), "{:?}", daemon.asked());
    std::fs::write(empty, " a.b.c\n").unwrap();
    daemon.meshctl(&["join", "TOKEN", "--identity", empty]);
    assert!(daemon.asked()[0].contains("a.b.c"), "{:?}", daemon.asked());
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
    assert!(text.contains("not in contact with another member yet"), "{text}");
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
fn leave_says_what_it_removed() {
    let daemon = with_peers(Vec::new());
    let text = stdout(&daemon.meshctl(&["leave", "--yes"]));
    assert_eq!(
        text,
        "left demo; 2 members were told\n  removed interface mesh0\n  removed rule 2600\n  kept    \
         the mesh's CA, in /var/lib/meshd/former-ca-1: if root.key is in it and nowhere else, it is all that can \
         add signers and replace the root; keep it safe, or delete it when the mesh is no more\n"
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
fn node_list_tells_members_from_those_who_were_revoked() {
    let member = NodeInfo {
        name: "a".into(),
        id: "abcd".into(),
        state: "member".into(),
        gossip: Some("alive".into()),
        prefixes: vec!["10.1.0.0/24".into()],
        certificate_not_after: Some("2026-01-31T00:00:00Z".into()),
        ..NodeInfo::default()
    };
    let revoked = NodeInfo {
        name: "bad\u{1b}[31m".into(),
        id: "efgh".into(),
        state: "revoked".into(),
        revoked_at: Some("2026-01-02T00:00:00Z".into()),
        ..NodeInfo::default()
    };
    let nodes = vec![member, revoked];
    let daemon = Daemon::start(Script { nodes, ..Script::default() });
    let table = stdout(&daemon.meshctl(&["node", "list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("NAME"), "{table}");
    assert!(lines[1].contains("member") && lines[2].contains("revoked"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table:?}");
    let json = parsed(&daemon.meshctl(&["node", "list", "-o", "json"]));
    assert_eq!(json[0]["self"], false);
    assert_eq!(json[0]["revoked_at"], Value::Null);
    assert_eq!(json[1]["gossip"], Value::Null);
}

#[test]
fn revoking_and_renewing_say_what_happened() {
    let daemon = Daemon::start(Script { tokens: vec![token()], ..Script::default() });
    let unasked = daemon.meshctl(&["node", "revoke", "bad"]);
    assert_eq!(unasked.status.code(), Some(1));
    assert!(stderr(&unasked).contains("--yes"), "{}", stderr(&unasked));
    // It was only looked up so far.
    let asked = daemon.asked();
    let looks = |ask: &String| ask.contains("RevokeNodeRequest") && !ask.contains("look: true");
    assert!(asked.len() == 1 && !asked.iter().any(looks), "{asked:?}");
    let out = stdout(&daemon.meshctl(&["node", "revoke", "bad", "--yes"]));
    assert_eq!(
        out,
        "revoked bad (abcd)\n  cut off here; 3 other members hear of it now, the rest when they are back\n"
    );
    let out = stdout(&daemon.meshctl(&["token", "revoke", "abcd"]));
    assert!(out.contains("admits nobody any more"), "{out}");
    let out = stdout(&daemon.meshctl(&["cert", "renew"]));
    assert!(out.contains("is renewed; it is valid until 2026-01-31T00:00:00Z"), "{out}");
    let again = Daemon::start(Script {
        renewed_before: true,
        not_granted: vec!["10.9.2.0/24".into()],
        ..Script::default()
    });
    let out = stdout(&again.meshctl(&["cert", "renew"]));
    assert!(out.starts_with("nothing new: the signer gave the same certificate again"), "{out}");
    assert!(out.contains("valid until 2026-01-31T00:00:00Z"), "{out}");
    assert!(out.contains("10.9.2.0/24; a signer is asked again by itself in 17 s"), "{out}");
    let asked = daemon.asked();
    assert!(asked.iter().any(|ask| ask.contains("RevokeNodeRequest")), "{asked:?}");
}

#[test]
fn a_node_that_nobody_knows_is_an_error_before_any_question() {
    let unknown = ControlError::new("node_not_found", "no node \"who\"", "nobody is", "look");
    let daemon = Daemon::start(Script { error: Some(unknown), ..Script::default() });
    let refused = daemon.meshctl(&["node", "revoke", "who"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(stderr(&refused), "error: no node \"who\"; nobody is; look\n");
}

#[test]
fn the_root_is_shown_replaced_and_put_into_a_safe() {
    let daemon = with_peers(Vec::new());
    let text = stdout(&daemon.meshctl(&["cert", "ca", "show"]));
    for part in ["retiring", "active", "on this host, without a passphrase", "db-1", "3 nodes have"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // Nobody is there to be asked.
    let unasked = daemon.meshctl(&["cert", "ca", "rotate"]);
    assert_eq!(unasked.status.code(), Some(1));
    assert!(stderr(&unasked).contains("use --yes"), "{}", stderr(&unasked));
    let text = stdout(&daemon.meshctl(&["cert", "ca", "rotate", "--yes"]));
    assert!(text.contains("Back up pki/root.key"), "{text}");

    let home = tempfile::tempdir().unwrap();
    let (phrase, out) = (home.path().join("phrase"), home.path().join("root.key"));
    fs::write(&phrase, "correct horse\r\nsecond line\n").unwrap();
    let (phrase, out) = (phrase.to_str().unwrap(), out.to_str().unwrap());
    let export = ["cert", "ca", "export", "--out", out, "--passphrase-file", phrase];
    assert_eq!(daemon.meshctl(&export).status.code(), Some(0));
    assert_eq!(fs::read_to_string(out).unwrap(), "sealed\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = daemon.meshctl(&export);
    assert!(stderr(&again).contains("exist"), "{}", stderr(&again));
    let asked = daemon.asked();
    // The first line, and nothing of what ends it.
    let phrase = format!("{:?}", b"correct horse");
    assert!(asked.iter().any(|call| call.contains(&phrase)), "{asked:?}");
    assert!(!asked.iter().any(|call| call.starts_with("RemoveRootKey")), "{asked:?}");
    // What is removed is what was exported, and nothing else.
    let (other, phrase) = (home.path().join("other.key"), home.path().join("phrase"));
    let export = ["cert", "ca", "export", "--out", other.to_str().unwrap(), "--remove"];
    let all = [&export[..], &["--passphrase-file", phrase.to_str().unwrap()]];
    assert_eq!(daemon.meshctl(&all.concat()).status.code(), Some(0));
    let asked = daemon.asked();
    let removed = asked.iter().find(|call| call.starts_with("RemoveRootKey")).unwrap();
    assert!(removed.contains(&"ff11".repeat(16)), "{removed}");
}
