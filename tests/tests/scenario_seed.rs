//! A seed that is a member but no signer: others join through it, and it reads nothing that it could use.

use anyhow::{Context, Result, ensure};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE as HEX};
use meshd_core::trust::{IdentityKey, JoinToken, LaneKey};
use meshd_proto::wire;
use meshd_tests::adversary::SeedReport;
use meshd_tests::harness::{Host, HostPlan, Mesh, Place, Running, pace, scenario, wait_for};
use prost::Message;

/// A token from `signer` for `joiner` that names only `seed`.
fn token(signer: &Host, joiner: &Host, seed: &Host) -> Result<String> {
    let address = format!("{}:51800", seed.address());
    let arguments = ["token", "create", "--node", joiner.name(), "--seed", &address];
    Ok(signer.meshctl(&arguments)?.ok()?.stdout.trim().to_owned())
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The seed inside a token.
fn secret_of(token: &str) -> Result<Vec<u8>> {
    let (_, body) = token.split_once('.').context("a token without a point")?;
    let bytes = BASE64URL_NOPAD.decode(body.as_bytes())?;
    let message = bytes.get(2..bytes.len() - 4).context("a short token")?;
    let seed = wire::Token::decode(message)?.seed.to_vec();
    ensure!(seed.len() == 32, "a seed of {} bytes", seed.len());
    Ok(seed)
}

/// A key file of a host.
fn key_file(host: &Host, name: &str) -> Result<[u8; 32]> {
    let text = host.run(&["cat", &format!("/var/lib/meshd/{name}")])?;
    let bytes = HEX.decode(text.trim().as_bytes())?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{name} of {} is no seed", host.name()))
}

/// Starts the adversary as a seed on the host whose daemon has ended, and waits until it listens.
fn start_seed(member: &Host, signer: &Host) -> Result<Running> {
    let program = member.program_path("adversary")?;
    let listen = format!("{}:51800", member.address());
    let at = format!("{}:51800", signer.address());
    let mut seed =
        member.start(&[&program, "seed", "--listen", &listen, "--signer", &at, "--lie-first"])?;
    wait_for("the seed listens", pace(10), || {
        let said = seed.errors_so_far()?;
        ensure!(seed.ended()?.is_none(), "it has ended: {said}");
        ensure!(said.contains("listening"), "it said {said:?}");
        Ok(())
    })?;
    Ok(seed)
}

#[test]
fn seeds_that_keep_silent_hold_nobody_up() {
    scenario("silent", |world| {
        let mesh = Mesh::waiting(world, &[HostPlan::vm("signer"), HostPlan::vm("joiner")])?;
        let [signer, joiner] = [&mesh.hosts[0], &mesh.hosts[1]];
        signer.init_mesh()?;
        // Three addresses of the same network that nobody has: one after the other they would be waited for 15 s.
        let there = format!("{}:51800", signer.address());
        let silent = [201, 202, 203].map(|host| format!("192.0.2.{host}:51800"));
        let mut arguments = vec!["token", "create", "--node", joiner.name()];
        for seed in silent.iter().chain([&there]) {
            arguments.extend(["--seed", seed.as_str()]);
        }
        let token = signer.meshctl(&arguments)?.ok()?.stdout.trim().to_owned();
        let took = joiner.join(&token)?;
        ensure!(took < pace(10), "the join took {took:?}");
        joiner.wait_up(1, pace(20))?;
        println!("seed: joined through the fourth seed, three being silent");
        Ok(())
    });
}

#[test]
fn a_seed_that_is_no_signer_reads_nothing_that_it_could_use() {
    scenario("seed", |world| {
        let plans = [
            HostPlan::vm("signer"),
            HostPlan::vm("member"),
            HostPlan::vm("first"),
            HostPlan::vm("second"),
        ];
        let mesh = Mesh::waiting(world, &plans)?;
        let [signer, member, first, second] =
            [&mesh.hosts[0], &mesh.hosts[1], &mesh.hosts[2], &mesh.hosts[3]];
        signer.init_mesh()?;
        member.join(&signer.token_for(member)?)?;

        // Through an honest member.
        first.join(&token(signer, first, member)?)?;
        first.wait_up(2, pace(20))?;
        println!("first has joined through a member that is no signer");

        // Through one that keeps what it reads, and first answers with a certificate that is not the joiner's.
        member.stop_daemon()?;
        let seed = start_seed(member, signer)?;
        let text = token(signer, second, member)?;
        let fooled = second.meshctl_with(&["join", "-"], &text)?.exits(1)?;
        ensure!(fooled.stderr.contains("the answer is not believed"), "{}", fooled.stderr);
        ensure!(second.status()?.state == "waiting", "{:?}", second.status()?);
        println!("a certificate for another key: {}", fooled.stderr.trim());
        second.join(&text)?;
        second.wait_state("running", pace(20))?;
        let out = seed.finish(pace(30))?.ok()?.stdout;
        let report: SeedReport = serde_json::from_str(&out).with_context(|| out.clone())?;

        reads_no_secret(&report, &text, signer, second)?;
        cannot_use_it(&report, second)?;
        // The signer still has one member under that name: nobody else got in.
        let peers = signer.peers()?;
        ensure!(peers.len() == 3, "{peers:?}");
        member.start_daemon()?;
        for host in &mesh.hosts {
            host.wait_up(3, pace(20))?;
        }
        Ok(())
    });
}

/// Neither request nor reply holds a secret of the joiner, of the token or of the signer. That the search would find one is
/// shown by the public halves, which are there.
fn reads_no_secret(report: &SeedReport, token: &str, signer: &Host, joiner: &Host) -> Result<()> {
    let request = HEX.decode(report.request.as_bytes())?;
    let reply = HEX.decode(report.reply.as_bytes())?;
    let identity = key_file(joiner, "keys/identity")?;
    let lane = key_file(joiner, "keys/lane0")?;
    let secrets = [
        ("the token's seed", secret_of(token)?),
        ("the joiner's identity", identity.to_vec()),
        ("the seed of the joiner's WireGuard key", lane.to_vec()),
        ("the joiner's WireGuard key", LaneKey::from_seed(&lane).private_key().0.to_vec()),
        ("the root's key", key_file(signer, "pki/root.key")?.to_vec()),
        ("the intermediate's key", key_file(signer, "pki/intermediate.key")?.to_vec()),
        ("the signer's identity", key_file(signer, "keys/identity")?.to_vec()),
    ];
    for (what, secret) in &secrets {
        for (where_, bytes) in [("request", &request), ("reply", &reply)] {
            ensure!(!has(bytes, secret), "{what} is in the {where_}");
            ensure!(!has(bytes, HEX.encode(secret).as_bytes()), "{what} is in the {where_}");
        }
    }
    let public = IdentityKey::from_seed(&identity).public();
    ensure!(has(&request, &public.0) && has(&reply, &public.0), "the search finds nothing");
    let token_key = JoinToken::parse(token)?.terms().token_key;
    ensure!(has(&request, &token_key), "the search finds no token key");
    println!(
        "{} bytes of request and {} of reply hold none of {} secrets",
        request.len(),
        reply.len(),
        secrets.len()
    );
    Ok(())
}

/// The same request brings the same certificate, for the joiner's key; any other use of it is refused.
fn cannot_use_it(report: &SeedReport, joiner: &Host) -> Result<()> {
    let of_joiner = joiner.status()?.id.context("no id")?;
    let (same, others) = report.replays.split_first().context("no replay")?;
    ensure!(others.len() >= 7, "{others:?}");
    for replay in &report.replays {
        println!("  changed: {:<45} answer: {}", replay.change, replay.answer);
    }
    let issued = same.certificate_for.map(|key| key.to_string());
    ensure!(same.answer == "accepted" && issued == Some(of_joiner), "{same:?}");
    for replay in others {
        ensure!(replay.answer == "bad_signature", "{replay:?}");
        ensure!(replay.certificate_for.is_none(), "{replay:?}");
    }
    Ok(())
}
