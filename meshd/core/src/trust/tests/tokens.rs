//! Tokens as text, and what may be asked of them.

use proptest::prelude::*;

use super::world::{World, open_token};
use crate::{
    refusal::Code,
    trust::{
        JoinToken, TokenError, TokenParams, TokenState,
        fixture::{NOW, TestMesh},
    },
};

#[test]
fn a_token_reads_back_from_its_line() {
    let mut world = World::new();
    let mut params = open_token();
    params.node_name = Some("db-1".parse().unwrap());
    params.uses = 1;
    params.prefixes = vec!["10.3.0.0/16".parse().unwrap()];
    params.groups = vec!["db".into()];
    let token = world.token(params);
    let text = token.encode();
    assert!(text.starts_with("meshd1.") && !text.contains('\n'));
    let read = JoinToken::parse(&text).unwrap();
    assert_eq!(read.terms(), token.terms());
    assert_eq!(read.mesh(), world.init.anchors.mesh());
    assert_eq!(read.root_key(), world.init.anchors.root_key());
    assert_eq!(read.seeds(), ["192.0.2.1:51800"]);
    assert_eq!(read.node_name().unwrap().as_str(), "db-1");
    assert_eq!(read.encode(), text);
    assert_eq!(vec![read.trust_anchor()], world.init.anchors.trust_anchors());
    assert_eq!(read.server_name(), world.init.anchors.server_name());
}

#[test]
fn a_token_that_a_terminal_wrapped_is_read() {
    let token = World::new().token(open_token());
    let text = token.encode();
    let wrapped: Vec<String> =
        text.as_bytes().chunks(80).map(|l| String::from_utf8(l.to_vec()).unwrap()).collect();
    let wrapped = format!("  {}\r\n", wrapped.join("\n"));
    assert_eq!(JoinToken::parse(&wrapped).unwrap().terms(), token.terms());
}

#[test]
fn every_cut_is_called_a_cut() {
    let text = World::new().token(open_token()).encode();
    for length in 1..text.len() {
        let error = JoinToken::parse(&text[..length]).unwrap_err();
        assert_eq!(error, TokenError::Truncated, "{length} of {}", text.len());
    }
    assert!(TokenError::Truncated.to_string().contains("cut off"));
}

#[test]
fn what_is_wrong_is_told_apart() {
    let text = World::new().token(open_token()).encode();
    let error = |text: &str| JoinToken::parse(text).unwrap_err();
    assert_eq!(error(""), TokenError::NotAToken);
    assert_eq!(error("eyJhbGciOiJ.abc"), TokenError::NotAToken);
    assert_eq!(error("192.0.2.1:51800"), TokenError::NotAToken);
    assert_eq!(error(&text.replacen("meshd1", "meshd2", 1)), TokenError::OtherVersion("2".into()));
    assert_eq!(error(&format!("{}A", text.as_str())), TokenError::Trailing);
    assert_eq!(error(&format!("{}AAAA", text.as_str())), TokenError::Trailing);
    assert_eq!(error(&format!("{0}{0}", text.as_str())), TokenError::Garbled);
    assert_eq!(error(&text.replacen('.', ".!", 1)), TokenError::Garbled);
    assert_eq!(error(&"meshd1.".repeat(9_000)), TokenError::NotAToken);
    for error in [error("x"), error(&text[..50]), error(&format!("{}A", text.as_str()))] {
        assert!(!error.why().is_empty() && !error.fix().is_empty());
        assert!(!error.to_string().contains(&text[20..60]), "errors do not repeat the secret");
    }
}

#[test]
fn a_token_is_not_shown() {
    let token = World::new().token(open_token());
    let shown = format!("{token:?}");
    assert!(shown.contains("redacted") && shown.len() < 120, "{shown}");
}

#[test]
fn tokens_that_cannot_be_meant_are_refused() {
    let mut world = World::new();
    let net = |text: &str| text.parse().unwrap();
    let ula = crate::address::ula_prefix(world.init.anchors.mesh_id()).to_string();
    let cases: Vec<(&str, TokenParams)> = vec![
        ("no life", TokenParams { ttl_seconds: 0, ..open_token() }),
        ("an endless life", TokenParams { ttl_seconds: i64::MAX, ..open_token() }),
        ("no use", TokenParams { uses: 0, ..open_token() }),
        ("one prefix for two", TokenParams { prefixes: vec![net("10.3.0.0/16")], ..open_token() }),
        ("one name for two", TokenParams { node_name: Some("a".parse().unwrap()), ..open_token() }),
        ("everything", TokenParams { prefixes: vec![net("0.0.0.0/0")], uses: 1, ..open_token() }),
        (
            "the pool",
            TokenParams { prefixes: vec![net("100.112.3.0/24")], uses: 1, ..open_token() },
        ),
        ("the ULAs", TokenParams { prefixes: vec![net(&ula)], uses: 1, ..open_token() }),
        ("a limit without limit", TokenParams { allow: vec![net("0.0.0.0/0")], ..open_token() }),
        ("a limit inside the ULAs", TokenParams { allow: vec![net(&ula)], ..open_token() }),
        ("a bad group", TokenParams { groups: vec!["a b".into()], ..open_token() }),
        ("a seed without port", TokenParams { seeds: vec!["seed.example".into()], ..open_token() }),
        ("too many", TokenParams { allow: vec![net("10.0.0.0/8"); 65], ..open_token() }),
    ];
    for (what, params) in cases {
        let refused = world.signer.create_token(params, NOW, &mut world.rng).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms, "{what}");
        assert!(!refused.fix.is_empty(), "{what}");
    }
}

#[test]
fn the_list_says_who_came_with_which_token() {
    let mut world = World::new();
    let token = world.token(TokenParams { uses: 2, ..open_token() });
    let info = |world: &World, at| world.signer.tokens(at).next().unwrap();
    assert_eq!(info(&world, NOW).state, TokenState::Usable);
    world.join(&token, "a", &[]).unwrap();
    assert_eq!(info(&world, NOW).state, TokenState::Usable);
    assert_eq!(info(&world, NOW.plus(3601)).state, TokenState::Expired);
    world.join(&token, "b", &[]).unwrap();
    world.restart();
    let used = info(&world, NOW);
    assert_eq!(used.state, TokenState::Used);
    assert_eq!(used.terms, *token.terms());
    let mut names: Vec<_> = used.used_by.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b"]);
    assert!(used.used_by.iter().any(|(key, _)| *key == TestMesh::key("a").public()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_changed_character_passes(position in 0.0..1.0_f64, to in "[A-Za-z0-9_-]") {
        let text = World::new().token(open_token()).encode();
        let index = ((text.len() - 1) as f64 * position) as usize;
        let mut changed = text.to_string();
        changed.replace_range(index..=index, &to);
        prop_assert_eq!(JoinToken::parse(&changed).is_ok(), changed == *text);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), body in "[A-Za-z0-9_-]{0,400}") {
        prop_assert!(JoinToken::parse(&text).is_err());
        let made_up = format!("meshd1.{body}");
        prop_assert!(JoinToken::parse(&made_up).is_err());
    }
}
