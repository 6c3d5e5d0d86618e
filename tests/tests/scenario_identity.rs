//! Hosts join with documents of an issuer outside, without a secret that they share.

use anyhow::{Context, Result, ensure};
use meshd_tests::harness::{
    Health, Host, HostPlan, Mesh, Place, Ran, TestIssuer, WebPki, World, pace, run, scenario,
    wait_for,
};
use serde_json::{Value, json};

const NAME: &str = "https://issuer.example";

/// An issuer's file: where its keys are, more keys of its own, and one rule.
fn issuer_file(keys: &str, more: &str) -> String {
    format!(
        r#"issuer = "{NAME}"
{keys}
{more}

[[rule]]
name = "machines"
node_name = "{{/site/machine}}"
allow = ["10.0.0.0/8", "fd00::/8"]
groups = ["cloud"]
[rule.claims]
"/site/project" = "mesh-test"
"#
    )
}

const KEYS_FILE: &str = "jwks_file = \"/etc/meshd/keys.json\"";

/// A signer that believes the issuer under the name `idp`.
fn signer(world: &World, issuer: &TestIssuer, more: &str) -> Result<Host> {
    let host = world.host(&HostPlan::vm("signer"))?;
    host.write("/etc/meshd/keys.json", &issuer.jwks())?;
    host.write("/etc/meshd/issuers.d/idp.toml", &issuer_file(KEYS_FILE, more))?;
    host.start_daemon()?;
    host.init_mesh()?;
    Ok(host)
}

fn waiting(world: &World, plan: &HostPlan) -> Result<Host> {
    let host = world.host(plan)?;
    host.start_daemon()?;
    Ok(host)
}

fn token(signer: &Host, arguments: &[&str]) -> Result<String> {
    let all = [&["token", "create", "--identity"], arguments].concat();
    Ok(signer.meshctl(&all)?.ok()?.stdout.trim().to_owned())
}

/// The audience of this host's document, as it tells it itself.
fn audience(host: &Host, token: &str) -> Result<String> {
    let ran = host.meshctl(&["join", token, "--identity-audience"])?.ok()?;
    ensure!(ran.stdout.lines().count() == 1, "{ran:?}");
    Ok(ran.stdout.trim().to_owned())
}

fn join(host: &Host, token: &str, document: &str) -> Result<Ran> {
    host.meshctl_with(&["join", token, "--identity", "-"], document)
}

/// Refused with an error that says each of `words`, and never shows the document; the host goes on waiting.
fn refused(host: &Host, token: &str, document: &str, words: &[&str]) -> Result<()> {
    let told = join(host, token, document)?.exits(1)?.stderr;
    let line = told.lines().find(|line| line.starts_with("error: ")).context("no error")?;
    ensure!(line.matches("; ").count() >= 2, "not what; why; what to do: {line}");
    for word in words {
        ensure!(line.contains(word), "{word:?} is not in {line}");
    }
    ensure!(document.len() < 30 || !told.contains(&document[..30]), "it shows the document");
    println!("refused: {line}");
    let state = host.status()?.state;
    ensure!(state == "waiting", "it is {state}");
    Ok(())
}

fn json_of(host: &Host, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&host.meshctl(arguments)?.ok()?.stdout)?)
}

fn groups_of(host: &Host, name: &str) -> Result<Value> {
    let nodes = json_of(host, &["node", "list", "-o", "json"])?;
    let nodes = nodes.as_array().context("no array")?;
    Ok(nodes.iter().find(|node| node["name"] == name).context("no such node")?["groups"].clone())
}

#[test]
fn hosts_join_with_documents_for_their_own_key_and_with_no_others() {
    scenario("identity", |world| {
        let (issuer, stranger) = (TestIssuer::new(NAME, "1")?, TestIssuer::new(NAME, "1")?);
        let signer = signer(world, &issuer, "")?;
        let member = waiting(world, &HostPlan::vm("member"))?;
        member.join(&signer.token_for(&member)?)?;
        let node = waiting(world, &HostPlan::node("node"))?;
        let thief = waiting(world, &HostPlan::vm("thief"))?;
        // All go through a member that is no signer.
        let seed = format!("{}:51800", member.address());
        let token = token(&signer, &["idp", "--seed", &seed])?;
        let listed = json_of(&signer, &["token", "list", "-o", "json"])?;
        let listed = listed.as_array().and_then(|all| all.iter().find(|t| t["identity"] == "idp"));
        ensure!(listed.is_some_and(|token| token["uses"] == 10_000), "{listed:?}");

        let for_node = audience(&node, &token)?;
        ensure!(audience(&node, &token)? == for_node, "it changes");
        let good = issuer.document(&for_node, "node")?;
        // Whoever has the token has nothing.
        let bare = thief.meshctl(&["join", &token])?.exits(1)?.stderr;
        ensure!(bare.contains("--identity FILE"), "{bare}");
        refused(&thief, &token, &good, &["its audience is not this mesh and this host's key"])?;
        let own = audience(&thief, &token)?;
        ensure!(own != for_node && own.starts_with("meshd:"), "{own}");
        refused(&thief, &token, &stranger.document(&own, "node")?, &["signature does not verify"])?;
        let mut claims = issuer.claims(&own, "thief");
        claims["site"]["project"] = json!("another");
        let unfit = issuer.sign(&claims)?;
        refused(
            &thief,
            &token,
            &unfit,
            &["no rule of idp admits", "machines wants another /site/project"],
        )?;
        refused(&thief, &token, &issuer.document(&own, "signer")?, &["admits signer, not thief"])?;
        let mut claims = issuer.claims(&own, "thief");
        claims["exp"] = json!(meshd_tests::harness::unix_now() - 100);
        refused(&thief, &token, &issuer.sign(&claims)?, &["it ended 10", "new document"])?;
        refused(&thief, &token, "no JWT", &["identity document"])?;
        let ordinary = signer.token_for(&thief)?;
        refused(&thief, &ordinary, &good, &["takes no identity document"])?;

        join(&node, &token, &good)?.ok()?;
        node.wait_up(2, pace(20))?;
        let status = node.status()?;
        ensure!(status.prefixes.len() == 2, "{status:?}");
        let ungranted = |line: &Health| line.code == "prefix_not_granted";
        ensure!(!status.health.iter().any(ungranted), "{status:?}");
        wait_for("the member knows its groups", pace(10), || {
            let groups = groups_of(&member, "node")?;
            ensure!(groups == json!(["cloud"]), "{groups}");
            Ok(())
        })?;
        // What it was admitted with is in its certificate: renewal goes on as for others.
        node.meshctl(&["cert", "renew"])?.ok()?;
        ensure!(groups_of(&signer, "node")? == json!(["cloud"]), "lost by renewal");

        // A second machine of one name, and a revoked one.
        let mut again = issuer.claims(&own, "node");
        again["sub"] = json!("machine:other");
        let named = thief.meshctl_with(
            &["join", &token, "--name", "node", "--identity", "-"],
            &issuer.sign(&again)?,
        )?;
        ensure!(
            named.exits(1)?.stderr.contains("the name node belongs to"),
            "a name was given twice"
        );
        signer.meshctl(&["node", "revoke", "node", "--yes"])?.ok()?;
        let back = issuer.document(&own, "node")?;
        let back =
            thief.meshctl_with(&["join", &token, "--name", "node", "--identity", "-"], &back)?;
        ensure!(back.exits(1)?.stderr.contains("which was revoked"), "its subject came back");

        let counters = signer.meshctl(&[
            "token",
            "revoke",
            listed.context("no token")?["id"].as_str().context("no id")?,
        ])?;
        counters.ok()?;
        refused(&thief, &token, &issuer.document(&own, "thief")?, &["was revoked"])
    });
}

#[test]
fn a_document_for_no_key_admits_the_first_host_that_shows_it_and_no_other() {
    scenario("first-use", |world| {
        let issuer = TestIssuer::new(NAME, "1")?;
        let signer = signer(world, &issuer, "binding = \"first-use\"\naudience = \"api://mesh\"")?;
        let node = waiting(world, &HostPlan::vm("node"))?;
        let thief = waiting(world, &HostPlan::vm("thief"))?;
        let token = token(&signer, &["idp"])?;
        ensure!(audience(&node, &token)? == "api://mesh", "{}", audience(&node, &token)?);
        let document = issuer.document("api://mesh", "node")?;
        // Refused for its name: not used up by that.
        refused(&thief, &token, &document, &["admits node, not thief"])?;
        join(&node, &token, &document)?.ok()?;
        let as_node = ["join", &token, "--name", "node", "--identity", "-"];
        for round in ["at once", "after a restart"] {
            let told = thief.meshctl_with(&as_node, &document)?.exits(1)?.stderr;
            ensure!(told.contains("has admitted another host already"), "{round}: {told}");
            println!("{round}: {}", told.trim());
            signer.stop_daemon()?;
            signer.start_daemon()?;
        }
        let shared = json!(["api://mesh", "https://elsewhere.example"]);
        let mut claims = issuer.claims("", "thief");
        claims["aud"] = shared;
        refused(&thief, &token, &issuer.sign(&claims)?, &["it is for others too"])?;
        for host in [&signer, &node, &thief] {
            let log = std::fs::read_to_string(world.logs().join(format!("{}.log", host.name())))?;
            ensure!(log.contains("starting"), "an empty log");
            ensure!(!log.contains(&document[..40]), "{} logs the document", host.name());
        }
        Ok(())
    });
}

#[test]
fn an_issuer_is_added_at_run_time_asked_over_https_and_may_change_its_keys() {
    scenario("issuer", |world| {
        let (issuer, next) = (TestIssuer::new(NAME, "1")?, TestIssuer::new(NAME, "2")?);
        let hosts = ["signer", "b", "c"].map(HostPlan::vm);
        let mesh = Mesh::waiting(world, &hosts)?;
        let [signer, b, c] = [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2]];
        signer.init_mesh()?;
        let missing = signer.meshctl(&["token", "create", "--identity", "web"])?.exits(1)?.stderr;
        ensure!(missing.contains("has no issuer \"web\"; it has: there is none"), "{missing}");

        let (pki, other) = (WebPki::new(&signer.address())?, WebPki::new(&signer.address())?);
        for (file, text) in [
            ("ca.pem", &pki.ca),
            ("other.pem", &other.ca),
            ("web.pem", &pki.certificate),
            ("web.key", &pki.key),
            ("keys.json", &issuer.jwks()),
        ] {
            signer.write(&format!("/etc/meshd/web/{file}"), text)?;
        }
        let program = signer.program_path("issuer")?;
        let listen = format!("{}:8443", signer.address());
        let mut server = signer.start(&[
            &program,
            "--listen",
            &listen,
            "--certificate",
            "/etc/meshd/web/web.pem",
            "--key",
            "/etc/meshd/web/web.key",
            "--keys",
            "/etc/meshd/web/keys.json",
        ])?;
        wait_for("the issuer listens", pace(10), || {
            let said = server.errors_so_far()?;
            ensure!(server.ended()?.is_none() && said.contains("listening"), "it said {said:?}");
            Ok(())
        })?;
        let configure = |path: &str, ca: &str| {
            let keys = format!(
                "jwks_url = \"https://{listen}/{path}\"\nca_file = \"/etc/meshd/web/{ca}\""
            );
            signer.write("/etc/meshd/issuers.d/web.toml", &issuer_file(&keys, ""))
        };
        let check = || -> Result<String> {
            let mut command = signer.program("meshd")?;
            command.arg("check");
            Ok(run(command, "", pace(20))?.stdout)
        };
        for (path, ca, why) in [
            ("keys", "other.pem", "invalid peer certificate"),
            ("keys", "none.pem", "none.pem"),
            ("large", "ca.pem", "length limit"),
            ("moved", "ca.pem", "302"),
            ("nothing", "ca.pem", "404"),
        ] {
            configure(path, ca)?;
            let told = check()?;
            let line = told.lines().find(|line| line.contains("issuer web")).context("no line")?;
            ensure!(line.starts_with("problem") && line.contains(why), "{path} {ca}: {told}");
        }
        // A file that is wrong stays out of force, and says so.
        signer.write("/etc/meshd/issuers.d/web.toml", "isuer = 1")?;
        signer.reload_daemon()?;
        wait_for("the signer says what is wrong", pace(10), || {
            let health = signer.status()?.health;
            let line =
                health.iter().find(|line| line.code == "issuers_refused").context("not yet")?;
            ensure!(
                line.message.contains("web.toml") && line.message.contains("isuer"),
                "{line:?}"
            );
            Ok(())
        })?;
        configure("keys", "ca.pem")?;
        let told = check()?;
        ensure!(told.contains("issuer web: rules: 1, keys: 1"), "{told}");
        signer.reload_daemon()?;
        let token =
            wait_for("the signer believes the issuer", pace(10), || token(signer, &["web"]))?;
        let health = signer.status()?.health;
        ensure!(!health.iter().any(|line| line.code == "issuers_refused"), "{health:?}");

        let document = issuer.document(&audience(b, &token)?, "b")?;
        join(b, &token, &document)?.ok()?;
        b.wait_up(1, pace(20))?;
        // New keys: the issuer is asked again when a document names one that is not known.
        signer.write("/etc/meshd/web/keys.json", &next.jwks())?;
        let document = next.document(&audience(c, &token)?, "c")?;
        c.stop_daemon()?;
        c.write("/etc/meshd/token", "meshd1.nonsense")?;
        c.configure(
            "[gossip]\njoin_token_file = \"/etc/meshd/token\"\njoin_identity_file = \"/etc/meshd/document\"",
        )?;
        // Unattended; a token that is corrected is tried at once, and before the document is there.
        c.start_daemon()?;
        wait_for("it says that this is no token", pace(10), || {
            let status = c.status()?;
            ensure!(status.state == "waiting", "it is {}", status.state);
            ensure!(status.health.iter().any(|line| line.code == "bad_token"), "{status:?}");
            Ok(())
        })?;
        c.write("/etc/meshd/token", &token)?;
        wait_for("it says what it waits for", pace(10), || {
            let health = c.status()?.health;
            ensure!(health.iter().any(|line| line.code == "join_identity_file"), "{health:?}");
            Ok(())
        })?;
        c.write("/etc/meshd/document", &document)?;
        c.wait_state("running", pace(90))?;
        c.wait_up(2, pace(20))?;
        let said = server.errors_so_far()?;
        let asked = said.matches("asked: GET /keys").count();
        println!("issuer: asked {asked} times for its keys");
        ensure!(asked >= 3, "{said}");
        Ok(())
    });
}

/// The states of the mesh's roots, oldest first.
fn roots(host: &Host) -> Result<Vec<String>> {
    let view = json_of(host, &["cert", "ca", "show", "-o", "json"])?;
    let all = view["roots"].as_array().context("no roots")?;
    Ok(all.iter().filter_map(|root| root["state"].as_str().map(str::to_owned)).collect())
}

/// The events with this code, oldest first.
fn events(host: &Host, code: &str) -> Result<Vec<Value>> {
    let view = json_of(host, &["events", "-o", "json", "--code", code])?;
    view.as_array().cloned().context("no array")
}

/// Returns when the files of `host` are in force.
fn reload(host: &Host) -> Result<()> {
    let before = events(host, "config_reloaded")?.len();
    host.reload_daemon()?;
    wait_for("the files are read again", pace(10), || {
        ensure!(events(host, "config_reloaded")?.len() > before, "not yet");
        Ok(())
    })?;
    // Answered by the loop, after all of the reload.
    host.status().map(drop)
}

#[test]
fn a_token_outlives_its_root_and_a_broken_file_keeps_out_only_its_own() {
    scenario("issuers", |world| {
        let issuer = TestIssuer::new(NAME, "1")?;
        let signer = signer(world, &issuer, "")?;
        let [member, a, b] = ["member", "a", "b"].map(|name| waiting(world, &HostPlan::vm(name)));
        let (member, a, b) = (member?, a?, b?);
        let token = token(&signer, &["idp"])?;
        member.join(&signer.token_for(&member)?)?;
        member.wait_up(1, pace(20))?;
        signer.meshctl(&["cert", "ca", "rotate", "--yes"])?.ok()?;
        wait_for("the old root counts no more", pace(40), || {
            let states = roots(&signer)?;
            ensure!(states == ["replaced", "active"], "{states:?}");
            Ok(())
        })?;
        // One is wrong, one could be anybody's: neither keeps out whom the good one lets in.
        signer.write("/etc/meshd/issuers.d/broken.toml", "isuer = 1")?;
        signer.write("/etc/meshd/issuers.d/open.toml", &issuer_file(KEYS_FILE, ""))?;
        signer.run(&["chmod", "666", "/etc/meshd/issuers.d/open.toml"])?;
        reload(&signer)?;
        wait_for("the signer says which files admit nobody", pace(10), || {
            let health = signer.status()?.health;
            let refused: Vec<&Health> =
                health.iter().filter(|line| line.code == "issuers_refused").collect();
            ensure!(refused.len() == 2, "{health:?}");
            ensure!(refused[0].message.contains("issuer broken"), "{refused:?}");
            ensure!(refused[1].message.contains("chmod go-w"), "{refused:?}");
            Ok(())
        })?;
        let mut command = signer.program("meshd")?;
        command.arg("check");
        let checked = run(command, "", pace(20))?.stdout;
        for part in ["problem  issuer broken", "problem  issuer open", "ok       issuer idp"] {
            ensure!(checked.contains(part), "{part:?} is not in {checked}");
        }
        join(&a, &token, &issuer.document(&audience(&a, &token)?, "a")?)?.ok()?;
        a.wait_up(2, pace(20))?;
        let admitted = events(&signer, "node_admitted")?;
        let last = admitted.last().context("nobody was admitted")?;
        ensure!(last["details"]["document_subject"] == "machine:a", "{last}");
        let made = events(&signer, "token_created")?;
        ensure!(made.first().context("no token")?["details"]["issuer"] == "idp", "{made:?}");

        // Keys that cannot be had are the signer's affair: the joiner hears no more than that.
        let document = issuer.document(&audience(&b, &token)?, "b")?;
        signer.write("/etc/meshd/keys.json", "{}")?;
        reload(&signer)?;
        let told = wait_for("the keys are asked for", pace(10), || {
            let told = join(&b, &token, &document)?.exits(1)?.stderr;
            ensure!(told.contains("cannot have the keys"), "{told}");
            Ok(told)
        })?;
        ensure!(!told.contains("keys.json"), "{told}");
        ensure!(told.contains(&format!(", says {}:51800", signer.address())), "{told}");
        let health = signer.status()?.health;
        let line = health.iter().find(|line| line.code == "issuer_keys").context("no line")?;
        ensure!(
            line.message.contains("issuer idp") && line.message.contains("keys.json"),
            "{line:?}"
        );
        // An issuer that is gone admits nobody, whatever else is wrong.
        signer.run(&["rm", "/etc/meshd/issuers.d/idp.toml"])?;
        reload(&signer)?;
        wait_for("the issuer counts no more", pace(10), || {
            refused(&b, &token, &document, &["knows no issuer idp"])
        })?;
        let changed = events(&signer, "issuers_changed")?;
        let removed = changed.last().context("no event")?["details"]["removed"].clone();
        let hash = removed.as_str().and_then(|removed| removed.strip_prefix("idp "));
        ensure!(hash.is_some_and(|hash| hash.len() == 64), "{changed:?}");
        Ok(())
    });
}
