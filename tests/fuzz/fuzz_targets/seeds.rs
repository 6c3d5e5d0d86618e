//! Writes the seeds of all corpora from real objects: `cargo +nightly fuzz run --fuzz-dir tests/fuzz seeds`.
//! To be run when a format changes. Files are called `seed-NAME`; whatever else lies in a corpus was found by fuzzing.

use std::{fs, path::Path};

use meshd::fuzzing;
use meshd_core::trust::{
    IdentityKey, LedgerEntry, LedgerEvent, TokenId, build_offer, build_renewal, build_request,
};
use meshd_fuzz::{
    authority::{self, By},
    der,
    world::{LIAR, NOW, OTHER, VICTIM, World, rng, world},
};
use meshd_proto::wire;
use prost::Message;
use wire::frame::Body;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let world = world();
    for (target, seeds) in [
        ("frame", frames(world)),
        ("datagram", datagrams(world)),
        ("record", records(world)),
        ("certificate", certificates(world)),
        ("chain", signed_parts(world)),
        ("trust", signed_by_the_root(world)),
        ("token", tokens(world)),
        ("document", documents()),
        ("enrolment_raw", requests(world)),
        ("reply", replies(world)),
        ("ledger", ledger(world)),
        ("store", store(world)),
        ("config", config()),
        ("cni", cni()),
        ("wireguard", wireguard()),
    ] {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        for old in fs::read_dir(&directory)? {
            let old = old?.path();
            if old.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"seed-")) {
                fs::remove_file(old)?;
            }
        }
        for (name, bytes) in &seeds {
            fs::write(directory.join(format!("seed-{name}")), bytes)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}

type Seeds = Vec<(String, Vec<u8>)>;

fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Seeds {
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

fn frames(world: &World) -> Seeds {
    let key = |number: usize| bytes::Bytes::copy_from_slice(&world.members[number].key().0);
    let entry = |number, version| wire::RecordKey {
        identity_key: key(number),
        version,
        payload_hash: vec![9; 8].into(),
    };
    let push = |push| Body::Push(push);
    let none = wire::Push::default;
    let all = [
        (
            "hello",
            Body::Hello(wire::Hello {
                observed: Some(wire::Endpoint { address: vec![192, 0, 2, 2].into(), port: 51800 }),
                software_version: "0.1.0".into(),
            }),
        ),
        (
            "push-records",
            push(wire::Push {
                records: world.members.iter().map(|member| member.signed.clone()).collect(),
                ..none()
            }),
        ),
        (
            "push-bundle",
            push(wire::Push {
                bundle: Some(authority::bundle(world, By::Right, 9, (true, false, false))),
                ..none()
            }),
        ),
        (
            "push-revocation",
            push(wire::Push {
                revocations: vec![authority::revocation(
                    world,
                    By::Right,
                    false,
                    2,
                    (NOW.0, NOW.0 + 1000),
                )],
                ..none()
            }),
        ),
        (
            "push-time",
            push(wire::Push { time: Some(authority::time(world, By::Right, 5)), ..none() }),
        ),
        (
            "announce",
            Body::Announce(wire::Announce { records: vec![entry(OTHER, 101), entry(LIAR, 7)] }),
        ),
        (
            "pull",
            Body::Pull(wire::Pull {
                identity_keys: vec![key(OTHER), key(VICTIM)],
                ..Default::default()
            }),
        ),
        (
            "sync-root",
            Body::SyncRoot(wire::SyncRoot {
                exchange: 7,
                root: vec![1; 32].into(),
                bundle_version: 1,
                records: 4,
                signer_time: NOW.0,
                ..Default::default()
            }),
        ),
        (
            "sync-buckets",
            Body::SyncBuckets(wire::SyncBuckets {
                exchange: 7,
                hashes: vec![0; 2048].into(),
                bundle_version: 1,
                ..Default::default()
            }),
        ),
        (
            "sync-entries",
            Body::SyncEntries(wire::SyncEntries {
                exchange: 7,
                buckets: (0..=255).collect(),
                entries: vec![entry(OTHER, 101)],
                answer: false,
            }),
        ),
        ("sync-done", Body::SyncDone(wire::SyncDone { exchange: 7 })),
        (
            "enrol-forward",
            Body::EnrolForward(wire::EnrolForward {
                id: 3,
                request: request(world).encode_to_vec().into(),
            }),
        ),
        (
            "enrol-reply",
            Body::EnrolForwardReply(wire::EnrolForwardReply {
                id: 3,
                reply: replies(world)[0].1.clone().into(),
            }),
        ),
        ("invite", Body::SignerInvite(invite(world))),
        ("offer", Body::SignerOffer(offer(world))),
    ];
    all.into_iter()
        .map(|(name, body)| (name.to_owned(), wire::Frame { body: Some(body) }.encode_to_vec()))
        .collect()
}

fn datagrams(world: &World) -> Seeds {
    let id = |number: usize, generation| wire::SwimIdentity {
        node: world.members[number].key().hash().0.to_vec().into(),
        generation,
    };
    let update = |number, incarnation, state: wire::SwimState| wire::SwimMember {
        id: Some(id(number, 1)),
        incarnation,
        state: state.into(),
    };
    let updates = vec![
        update(OTHER, 0, wire::SwimState::Down),
        update(VICTIM, 3, wire::SwimState::Suspect),
        update(0, 1, wire::SwimState::Alive),
    ];
    (1..=10)
        .map(|kind| {
            let packet = wire::SwimPacket {
                source: Some(id(LIAR, 1)),
                source_incarnation: 1,
                destination: Some(id(VICTIM, 1)),
                kind,
                probe_number: 3,
                subject: Some(id(OTHER, 1)),
                updates: updates.clone(),
            };
            (format!("kind-{kind:02}"), packet.encode_to_vec())
        })
        .collect()
}

fn records(world: &World) -> Seeds {
    let member = |number: usize| world.members[number].signed.encode_to_vec();
    named([("liar", member(LIAR)), ("signer", member(0))])
}

fn certificates(world: &World) -> Seeds {
    named([
        ("node", world.liar().signed.certificate.to_vec()),
        ("root", world.anchors.root_der().to_vec()),
        ("intermediate", world.intermediate.der().to_vec()),
        ("foreign-root", world.foreign.0.der().to_vec()),
    ])
}

fn signed_parts(world: &World) -> Seeds {
    let part = |der: &[u8]| der::first_inside(der).to_vec();
    named([
        ("node", part(&world.liar().signed.certificate)),
        ("signer", part(&world.members[0].signed.certificate)),
        ("intermediate", part(world.intermediate.der())),
    ])
}

fn invite(world: &World) -> wire::SignerInvite {
    let pool = "100.112.0.0/16".parse().expect("a pool");
    world.root.invite(world.mesh_id(), &world.victim().key(), &pool, [5; 16], NOW)
}

fn offer(world: &World) -> wire::SignerOffer {
    build_offer(&world.liar().identity.key, world.mesh_id(), &[5; 16], &world.intermediate.seed())
}

fn signed_by_the_root(world: &World) -> Seeds {
    let bundle = authority::bundle(world, By::Right, 9, (true, true, true));
    let revocation = authority::revocation(world, By::Right, false, 2, (NOW.0, NOW.0 + 1000));
    let time = authority::time(world, By::Right, 5);
    let mut anchors = world.anchors.clone();
    anchors.revoke(&revocation).expect("a revocation");
    anchors.take_time(&time, NOW.plus(10)).expect("a time");
    named([
        ("bundle", with(0, &bundle.encode_to_vec())),
        ("bundle-payload", with(0x80, &bundle.payload)),
        ("revocation", with(1, &revocation.encode_to_vec())),
        ("revocation-payload", with(0x81, &revocation.payload)),
        ("time", with(2, &time.encode_to_vec())),
        ("time-payload", with(0x82, &time.payload)),
        ("kept-revocations", with(3, &anchors.encode_revocations())),
        ("kept-time", with(4, &anchors.encode_time())),
        ("invite", with(5, &invite(world).encode_to_vec())),
        ("invite-payload", with(0x85, &invite(world).payload)),
        ("offer", with(6, &offer(world).encode_to_vec())),
        ("offer-payload", with(0x86, &offer(world).payload)),
    ])
}

fn tokens(world: &World) -> Seeds {
    let text = world.token.encode();
    let body = text.split_once('.').expect("a token").1;
    let bytes = data_encoding::BASE64URL_NOPAD.decode(body.as_bytes()).expect("base64");
    let message = &bytes[2..bytes.len() - 4];
    let grant = wire::Token::decode(message).expect("a token").grant.expect("a grant");
    named([
        ("text", with(0, text.as_bytes())),
        ("message", with(1, message)),
        ("grant", with(2, &grant.payload)),
    ])
}

/// What issuers sign, and their keys. Public examples: RFC 7517, appendix A.1, and RFC 8037, appendix A.2.
fn documents() -> Seeds {
    let header = br#"{"alg":"EdDSA","typ":"JWT","kid":"one"}"#;
    let claims = br#"{"iss":"https://id.example.com","sub":"system:serviceaccount:meshd:node","aud":["meshd:00"],"iat":1800000000,"nbf":1800000000,"exp":1800000600,"jti":"4","kubernetes.io":{"node":{"name":"n1","uid":"u-1"}}}"#;
    let keys = br#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"sig","kid":"1","alg":"ES256"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"one","alg":"EdDSA","use":"sig"}]}"#;
    let both = [&header[..], b"\n", &claims[..]].concat();
    let parts = [&header[..], &claims[..], &[7; 64]]
        .map(|part| data_encoding::BASE64URL_NOPAD.encode(part))
        .join(".");
    named([
        ("text", with(0, parts.as_bytes())),
        ("claims", with(1, &both)),
        ("keys", with(2, keys)),
    ])
}

fn request(world: &World) -> wire::EnrolRequest {
    let key = IdentityKey::from_seed(&[0x90; 32]);
    let name = "joiner".parse().expect("a name");
    let wanted = ["10.129.0.0/24".parse().expect("a prefix")];
    build_request(&world.token, &key, &name, &wanted, [5; 16], NOW)
}

fn requests(world: &World) -> Seeds {
    let wanted = ["10.130.0.0/24".parse().expect("a prefix")];
    let renewal = build_renewal(&world.liar().identity, &wanted, true, [5; 16], NOW);
    named([("joiner", request(world).encode_to_vec()), ("renewal", renewal.encode_to_vec())])
}

fn replies(world: &World) -> Seeds {
    let accepted = wire::EnrolAccepted {
        certificate: world.liar().signed.certificate.clone(),
        root: world.anchors.root_der().to_vec().into(),
        bundle: Some(world.anchors.signed_bundle().clone()),
        records: vec![world.members[0].signed.clone()],
        not_granted: vec![wire::IpPrefix { address: vec![10, 0, 0, 0].into(), length: 8 }],
    };
    let refused = wire::EnrolRefused {
        code: "token_used".into(),
        message: "the token has admitted 1 already".into(),
        fix: "make a new one".into(),
    };
    let reply = |result| wire::EnrolReply { result: Some(result) }.encode_to_vec();
    named([
        ("accepted", reply(wire::enrol_reply::Result::Accepted(accepted))),
        ("refused", reply(wire::enrol_reply::Result::Refused(refused))),
    ])
}

fn ledger(world: &World) -> Seeds {
    let mut entries = world.ledger.clone();
    let revoked = LedgerEvent::TokenRevoked { id: TokenId([1; 16]) };
    let departed = LedgerEvent::Departed { key: world.liar().key() };
    entries.extend([revoked, departed].map(|event| LedgerEntry { time: NOW, event }.encode()));
    let enrolled = world
        .signer()
        .enrol(&request(world).encode_to_vec(), Default::default(), &[], NOW, &mut rng())
        .expect("it is admitted");
    entries.extend(enrolled.entries.iter().map(LedgerEntry::encode));
    let file = fuzzing::make_ledger_file(&entries);
    let numbered = entries.into_iter().enumerate();
    let mut seeds: Seeds = numbered.map(|(i, entry)| (format!("entry-{i}"), entry)).collect();
    seeds.push(("file-torn".into(), file[..file.len() - 3].to_vec()));
    seeds.push(("file".into(), file));
    seeds
}

fn store(world: &World) -> Seeds {
    let liar = world.liar();
    let record = liar.signed.encode_to_vec();
    let entry = fuzzing::make_store_entry(&liar.key(), &record);
    let pem = "-----BEGIN CERTIFICATE-----\nAAECAwQFBgc=\n-----END CERTIFICATE-----\n";
    named([
        ("whole", with(0, &[&liar.key().0[..], &entry].concat())),
        ("record", with(1, &[&liar.key().0[..], &record].concat())),
        ("pem", with(0x40, pem.as_bytes())),
    ])
}

/// Every key with a value that it may have, and some layers.
fn config() -> Seeds {
    let sample = include_str!("../../../systemd/meshd.toml");
    let values = sample.lines().map(|line| line.strip_prefix('#').unwrap_or(line).trim_start());
    let values: Vec<&str> =
        values.filter(|line| line.starts_with('[') || line.contains(" = ")).collect();
    let layers = "[node]\nname = \"a\"\n#file\n[network]\nmtu = 1400\npod_prefixes = [\"10.1.0.0/24\"]\n\
                  #env MESHD_GOSSIP__SEEDS=a:1,b:2\n#env MESHD_WIREGUARD__PORT=51830\n";
    named([
        ("sample", sample.as_bytes().to_vec()),
        ("values", values.join("\n").into_bytes()),
        ("layers", layers.as_bytes().to_vec()),
        ("bad", b"[network]\nmut = 5\n[dns]\nenabled = true\n#env MESHD_X__Y=1\n".to_vec()),
    ])
}

fn cni() -> Seeds {
    let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.10.1.0/24"}],[{"subnet":"fd10:1::/64"}]]}},{"type":"portmap"}]}"#;
    let single =
        r#"{"type":"ptp","delegate":{"ipam":{"type":"host-local","subnet":"10.10.2.9/24"}}}"#;
    let flannel = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_IPV6_SUBNET=fd00:3::1/64\n";
    named([
        ("list", list.as_bytes().to_vec()),
        ("single", single.as_bytes().to_vec()),
        ("flannel", flannel.as_bytes().to_vec()),
    ])
}

fn wireguard() -> Seeds {
    let answer = format!(
        "private_key={0}\nlisten_port=51820\nfwmark=16\npublic_key={0}\nendpoint=[fd00::1]:51820\n\
         last_handshake_time_sec=990\nlast_handshake_time_nsec=5\ntx_bytes=3\nrx_bytes=2\n\
         persistent_keepalive_interval=25\nallowed_ip=192.168.4.4/32\nallowed_ip=fd01::/64\nown_public_key={0}\n\
         errno=0\n\n",
        "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"
    );
    named([("answer", answer.into_bytes()), ("error", b"errno=1\n\n".to_vec())])
}
