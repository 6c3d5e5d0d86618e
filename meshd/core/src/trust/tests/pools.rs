//! Pools of single addresses: who gets them, beside whom, and that they stay.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    scene::Scene,
    world::{World, accept, open_token, params},
};
use crate::{
    refusal::Code,
    trust::{
        Grant, InitParams, IssueTerms, Known, NodeIdentity, RecordDraft, TokenParams,
        accept_renewal, authenticate, build_issue_request, build_renewal,
        fixture::{NOW, TestMesh},
    },
};

const DAY: i64 = 24 * 3600;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool_token() -> TokenParams {
    TokenParams { pools: vec![net("10.240.0.0/16"), net("fd40::/64")], ..open_token() }
}

fn pools(grants: &[Grant]) -> Vec<(String, u8)> {
    let pools = grants.iter().filter_map(|g| Some((g.prefix.to_string(), g.claim_len?)));
    pools.collect()
}

fn both() -> Vec<(String, u8)> {
    vec![("10.240.0.0/16".into(), 32), ("fd40::/64".into(), 128)]
}

#[test]
fn hosts_of_one_token_hold_a_pool_together_and_may_claim_single_addresses_of_it() {
    let mut world = World::new();
    let token = world.token(pool_token());
    for name in ["a", "b"] {
        let certificate = world.join(&token, name, &[]).unwrap().certificate;
        assert_eq!(pools(&certificate.grants), both(), "{name}");
        let node = NodeIdentity::new(TestMesh::key(name), Arc::new(certificate)).unwrap();
        let believed = |prefix: &str| {
            let draft = RecordDraft {
                mesh_addresses: node.certificate.mesh_addresses(),
                prefixes: vec![net(prefix)],
                ..RecordDraft::default()
            };
            let signed = node.sign_record(&draft, 1, meshd_proto::BootId([1; 16]), 1, NOW);
            authenticate(&signed, &world.init.anchors).map(drop).map_err(|refusal| refusal.code)
        };
        for own in ["10.240.3.7/32", "fd40::7/128"] {
            assert_eq!(believed(own), Ok(()), "{own}");
        }
        for other in ["10.240.3.0/24", "10.240.0.0/16", "10.241.0.1/32", "fd40::/64"] {
            assert_eq!(believed(other), Err(Code::PrefixNotGranted), "{other}");
        }
    }
}

#[test]
fn nobody_gets_an_exact_grant_within_anothers_pool_nor_a_pool_over_one() {
    let mut world = World::new();
    let limits = TokenParams { allow: vec![net("10.0.0.0/8")], ..open_token() };
    let (pool, limits) = (world.token(pool_token()), world.token(limits));
    world.join(&pool, "a", &[]).unwrap();
    let b = world.join(&limits, "b", &["10.240.1.0/24", "10.240.1.7/32", "10.200.1.0/24"]).unwrap();
    let refused: Vec<String> = b.not_granted.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["10.240.1.0/24", "10.240.1.7/32"], "it would outrank the pool");
    let exact = TokenParams { prefixes: vec![net("10.240.9.0/24")], uses: 1, ..open_token() };
    let exact = world.token(exact);
    let request = world.request(&exact, "c", &[]);
    assert_eq!(world.decide(&request, NOW).unwrap_err().refusal.code, Code::PrefixTaken);
    let over = world.token(TokenParams { pools: vec![net("10.200.0.0/16")], ..open_token() });
    let request = world.request(&over, "c", &[]);
    assert_eq!(world.decide(&request, NOW).unwrap_err().refusal.code, Code::PrefixTaken);
}

#[test]
fn pools_stay_at_renewal_whatever_is_asked_for() {
    let mut world = World::new();
    let token = world.token(pool_token());
    let certificate = Arc::new(world.join(&token, "a", &["10.200.1.0/24"]).unwrap().certificate);
    let node = NodeIdentity::new(TestMesh::key("a"), certificate).unwrap();
    let later = NOW.plus(20 * DAY);
    let request = build_renewal(&node, &[net("10.200.2.0/24")], false, [1; 16], later);
    let enrolled = world.decide(&request, later).unwrap();
    let mut anchors = world.init.anchors.clone();
    let next = accept_renewal(&enrolled.reply, &node.certificate, &mut anchors, later).unwrap();
    assert_eq!(pools(&next.certificate.grants), both());
    assert!(next.certificate.grants.iter().any(|grant| grant.prefix == net("10.200.2.0/24")));
}

#[test]
fn the_first_host_and_one_that_comes_by_files_may_have_pools_too() {
    let first = InitParams { pools: vec![net("10.240.0.0/16")], ..params() };
    let mut world = World::with(&first, 1);
    let ten = vec![("10.240.0.0/16".to_owned(), 32)];
    assert_eq!(pools(&world.init.certificate.grants), ten);
    let (key, name) = (TestMesh::key("file"), "file".parse().unwrap());
    let request = build_issue_request(&key, world.init.anchors.mesh_id(), &name, [1; 16], NOW);
    let terms = IssueTerms {
        pools: vec![net("10.240.0.0/16")],
        ttl_seconds: 30 * DAY,
        ..IssueTerms::default()
    };
    let request = prost::Message::encode_to_vec(&request);
    let issued =
        world.signer.issue(&request, &terms, Known::default(), NOW, &mut world.rng).unwrap();
    world.persist(issued.entries);
    let held = world.signer.admitted_as(&name).next().unwrap();
    assert_eq!(pools(&held.grants), ten);
}

#[test]
fn a_rule_for_identity_documents_gives_pools_too() {
    let mut scene = Scene::new(|terms| terms.rules[0].pools = vec![net("10.240.0.0/16")]);
    let enrolled = scene.join("a").unwrap();
    let enrolment = accept(&enrolled.reply, &scene.token, "a").unwrap();
    assert_eq!(pools(&enrolment.certificate.grants), [("10.240.0.0/16".to_owned(), 32)]);
    let mut scene = Scene::new(|terms| terms.rules[0].pools = vec![net("0.0.0.0/0")]);
    let document = scene.document("a");
    scene.refused("a", "a", &document, Code::BadTerms);
}

#[test]
fn a_pool_that_nobody_may_have_is_refused_when_the_token_is_made() {
    let mut world = World::new();
    let ula = crate::address::ula_prefix(world.init.anchors.mesh_id()).to_string();
    for bad in ["0.0.0.0/0", "100.112.0.0/16", "100.0.0.0/8", "169.254.0.0/16", &ula] {
        let params = TokenParams { pools: vec![net(bad)], ..open_token() };
        let refused = world.signer.create_token(params, NOW, &mut world.rng).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms, "{bad}");
    }
    let many = TokenParams { pools: vec![net("10.240.0.0/16"); 65], ..open_token() };
    assert!(world.signer.create_token(many, NOW, &mut world.rng).is_err());
}
