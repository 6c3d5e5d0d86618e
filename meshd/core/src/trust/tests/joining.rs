//! Joining, as it should go.

use std::sync::Arc;

use meshd_proto::BootId;
use prost::Message;

use super::world::{World, accept, open_token, params};
use crate::{
    address,
    refusal::Code,
    trust::{
        Decider, IdentityKey, InitParams, Intermediate, Known, LedgerEntry, NodeIdentity,
        RecordDraft, RootCa, Signer, SignerError, TokenParams, authenticate, decider,
        fixture::{NOW, TestMesh},
        init_mesh,
    },
};

fn texts(prefixes: &[ipnet::IpNet]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_mesh_is_born_with_its_first_host() {
    let world = World::new();
    let init = &world.init;
    let read = init.anchors.check_chain(&init.certificate.der, Some(NOW)).unwrap();
    assert_eq!(read.name.as_str(), "signer");
    assert_eq!(read.key, TestMesh::key("signer").public());
    assert_eq!(texts(&init.not_granted), ["10.9.0.0/24"]);
    let v4 = read.mesh_ipv4.unwrap();
    assert!(params().ipv4_pool.contains(&v4));
    let grants: Vec<_> = read.grants.iter().map(|grant| grant.prefix).collect();
    assert_eq!(texts(&grants), ["10.1.0.0/16", "10.2.3.0/24", &format!("{v4}/32")]);
    assert_eq!(world.signer.ipv4_pool(), params().ipv4_pool);
    assert_eq!(init.anchors.bundle_version(), 1);
    // From what is stored, everything can be put together again.
    RootCa::from_parts(init.root.der(), &init.root.seed()).unwrap();
    Intermediate::from_parts(init.intermediate.der(), &init.intermediate.seed()).unwrap();
}

#[test]
fn two_meshes_of_one_name_have_nothing_in_common() {
    let (a, b) = (World::with(&params(), 1), World::with(&params(), 2));
    assert_ne!(a.init.anchors.mesh_id(), b.init.anchors.mesh_id());
    let foreign = b.init.anchors.check_chain(&a.init.certificate.der, None).unwrap_err();
    assert_eq!(foreign.code, Code::OtherMesh);
}

#[test]
fn bad_pools_and_prefixes_make_no_mesh() {
    let mut rng = World::new().rng;
    for pool in ["100.112.0.0/30", "10.0.0.0/7", "127.0.0.0/16", "224.0.0.0/16", "100.112.0.1/16"] {
        let params = InitParams { ipv4_pool: pool.parse().unwrap(), ..params() };
        let refused = init_mesh(&params, NOW, &mut rng).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms, "{pool}");
    }
    for prefix in ["0.0.0.0/0", "100.112.1.0/24", "fe80::/64"] {
        let params = InitParams { prefixes: vec![prefix.parse().unwrap()], ..params() };
        let refused = init_mesh(&params, NOW, &mut rng).unwrap_err();
        assert_eq!(refused.refusal.code, Code::BadTerms, "{prefix}");
    }
}

#[test]
fn a_host_joins_with_a_token_and_its_record_is_believed() {
    let mut world = World::new();
    let token = world.token(open_token());
    let enrolment = world.join(&token, "db-1", &["10.200.1.0/24", "192.168.1.0/24"]).unwrap();
    assert_eq!(texts(&enrolment.not_granted), ["192.168.1.0/24"]);
    assert_eq!(enrolment.anchors.root_der(), world.init.anchors.root_der());
    let identity =
        NodeIdentity::new(TestMesh::key("db-1"), Arc::new(enrolment.certificate)).unwrap();
    let draft = RecordDraft {
        mesh_addresses: identity.certificate.mesh_addresses(),
        prefixes: vec!["10.200.1.0/24".parse().unwrap()],
        ..RecordDraft::default()
    };
    let signed = identity.sign_record(&draft, 1, BootId([1; 16]), 1, NOW);
    authenticate(&signed, &world.init.anchors).unwrap();
    let more = RecordDraft { prefixes: vec!["192.168.1.0/24".parse().unwrap()], ..draft };
    let signed = identity.sign_record(&more, 2, BootId([1; 16]), 1, NOW);
    let refusal = authenticate(&signed, &world.init.anchors).unwrap_err();
    assert_eq!(refusal.code, Code::PrefixNotGranted);
}

#[test]
fn a_token_grants_its_prefixes_and_groups() {
    let mut world = World::new();
    let token = world.token(TokenParams {
        prefixes: vec!["10.3.0.0/16".parse().unwrap(), "fd07::/64".parse().unwrap()],
        groups: vec!["db".into()],
        uses: 1,
        ..open_token()
    });
    let enrolment = world.join(&token, "db-1", &["10.3.0.0/16", "10.3.1.0/24"]).unwrap();
    let exact: Vec<_> = enrolment.certificate.grants.iter().map(|g| g.prefix).collect();
    for prefix in ["10.3.0.0/16", "fd07::/64"] {
        assert!(texts(&exact).contains(&prefix.to_owned()), "{prefix}");
    }
    assert_eq!(enrolment.certificate.groups, ["db"]);
    assert_eq!(texts(&enrolment.not_granted), ["10.3.1.0/24"], "an exact grant is no pool");
}

#[test]
fn the_same_host_gets_the_same_certificate_again() {
    let mut world = World::new();
    let token = world.token(TokenParams { uses: 1, ..open_token() });
    let request = world.request(&token, "a", &["10.200.1.0/24", "172.16.0.0/24"]);
    let first = world.decide(&request, NOW).unwrap();
    let reply = first.reply.clone();
    world.persist(first.entries);
    world.restart();
    // Also when the token is used up and over: the reply was lost on its way.
    let later = NOW.plus(599);
    let again = world.decide(&request, later).unwrap();
    assert!(again.entries.is_empty());
    assert_eq!(again.reply, reply);
    assert_eq!(again.key, TestMesh::key("a").public());
    let renamed = world.request_of(&token, &TestMesh::key("a"), "b", &[]);
    assert_eq!(world.decide(&renamed, NOW).unwrap_err().refusal.code, Code::TokenName);
}

#[test]
fn a_decision_that_was_not_kept_never_was() {
    let mut world = World::new();
    let token = world.token(TokenParams { uses: 1, ..open_token() });
    let lost = world.decide(&world.request(&token, "a", &[]), NOW).unwrap();
    assert_eq!(lost.entries.len(), 1);
    // A crash before the entry was on disk: the use is still there for another.
    world.restart();
    world.join(&token, "b", &[]).unwrap();
}

#[test]
fn a_new_token_for_the_same_identity_keeps_its_enrolment() {
    let mut world = World::new();
    let first = world.token(open_token());
    let second = world.token(open_token());
    let before = world.join(&first, "a", &["10.200.1.0/24"]).unwrap().certificate;
    let after = world.join(&second, "a", &["10.200.1.0/24", "10.200.2.0/24"]).unwrap().certificate;
    assert_eq!(after.enrolment_id, before.enrolment_id);
    assert_eq!(after.mesh_ipv4, before.mesh_ipv4);
    assert_eq!(after.grants.len(), before.grants.len() + 1);
}

#[test]
fn names_prefixes_and_addresses_of_others_stay_theirs() {
    let mut world = World::new();
    let token = world.token(open_token());
    let a = world.join(&token, "a", &["10.200.1.0/24"]).unwrap();
    // Another host under a's name.
    let intruder = IdentityKey::from_seed(&[77; 32]);
    let request = world.request_of(&token, &intruder, "a", &[]);
    assert_eq!(world.decide(&request, NOW).unwrap_err().refusal.code, Code::NameTaken);
    let request = world.request_of(&token, &intruder, "signer", &[]);
    assert_eq!(world.decide(&request, NOW).unwrap_err().refusal.code, Code::NameTaken);
    // Wanted prefixes that overlap a's, or the signer's, are not granted.
    let b = world.join(&token, "b", &["10.200.1.0/24", "10.200.1.7/32", "10.200.2.0/24"]).unwrap();
    assert_eq!(texts(&b.not_granted), ["10.200.1.0/24", "10.200.1.7/32"]);
    assert_ne!(a.certificate.mesh_ipv4, b.certificate.mesh_ipv4);
    assert_ne!(b.certificate.mesh_ipv4, world.init.certificate.mesh_ipv4);
    // Demanded ones are an error.
    for taken in ["10.200.1.0/24", "10.200.0.0/16", "10.1.7.0/24"] {
        let token = world.token(TokenParams {
            prefixes: vec![taken.parse().unwrap()],
            uses: 1,
            ..open_token()
        });
        let request = world.request(&token, "c", &[]);
        let refused = world.decide(&request, NOW).unwrap_err();
        assert_eq!(refused.refusal.code, Code::PrefixTaken, "{taken}");
        assert!(!refused.fix.is_empty());
    }
}

#[test]
fn what_other_signers_gave_out_is_seen_in_the_directory() {
    let mut world = World::new();
    let token = world.token(open_token());
    // A member of which this signer's ledger knows nothing.
    let terms = crate::trust::NodeTerms {
        mesh: world.init.anchors.mesh().clone(),
        mesh_id: *world.init.anchors.mesh_id(),
        name: "elsewhere".parse().unwrap(),
        key: TestMesh::key("elsewhere").public(),
        enrolment_id: [1; 16],
        groups: Vec::new(),
        grants: vec![crate::trust::Grant {
            prefix: "10.200.0.0/16".parse().unwrap(),
            claim_len: Some(24),
        }],
        mesh_ipv4: None,
        limits: Vec::new(),
        subject: None,
        not_before: NOW.plus(-60),
        not_after: NOW.plus(60),
    };
    let certificate = Arc::new(world.init.intermediate.issue_node(&terms).unwrap());
    let identity = NodeIdentity::new(TestMesh::key("elsewhere"), certificate).unwrap();
    let draft =
        RecordDraft { prefixes: vec!["10.200.5.0/24".parse().unwrap()], ..RecordDraft::default() };
    let signed = identity.sign_record(&draft, 1, BootId([1; 16]), 1, NOW);
    world.members = vec![authenticate(&signed, &world.init.anchors).unwrap()];
    let request = world.request(&token, "elsewhere", &[]);
    assert!(world.decide(&request, NOW).is_ok(), "its own name");
    let request = world.request_of(&token, &IdentityKey::from_seed(&[7; 32]), "elsewhere", &[]);
    assert_eq!(world.decide(&request, NOW).unwrap_err().refusal.code, Code::NameTaken);
    let joined = world.join(&token, "a", &["10.200.5.0/24", "10.201.6.0/24"]).unwrap();
    assert_eq!(texts(&joined.not_granted), ["10.200.5.0/24"]);
}

#[test]
fn who_has_left_frees_name_and_prefixes_for_ever() {
    let mut world = World::new();
    let token = world.token(open_token());
    let gone = world.join(&token, "a", &["10.200.1.0/24"]).unwrap().certificate;
    let identity = NodeIdentity::new(TestMesh::key("a"), Arc::new(gone.clone())).unwrap();
    let draft = RecordDraft { left: true, ..RecordDraft::default() };
    let signed = identity.sign_record(&draft, 5, BootId([1; 16]), 1, NOW);
    world.members = vec![authenticate(&signed, &world.init.anchors).unwrap()];
    let departures = world.signer.departures(&world.members, NOW);
    assert_eq!(departures.len(), 1);
    world.persist(departures);
    assert!(world.signer.departures(&world.members, NOW).is_empty(), "told once");
    // Long after the tombstone is forgotten, and after a restart.
    world.members.clear();
    world.restart();
    let key = IdentityKey::from_seed(&[66; 32]);
    let request = world.request_of(&token, &key, "a", &["10.200.1.0/24"]);
    let enrolled = world.decide(&request, NOW).unwrap();
    let name = "a".parse().unwrap();
    let new = crate::trust::accept_reply(&enrolled.reply, &token, &key.public(), &name).unwrap();
    assert!(new.not_granted.is_empty());
    assert_ne!(new.certificate.mesh_ipv4, gone.mesh_ipv4, "its address rests");
}

#[test]
fn a_leave_that_only_the_directory_knows_counts_too() {
    let mut world = World::new();
    let token = world.token(open_token());
    let gone = world.join(&token, "a", &[]).unwrap().certificate;
    let identity = NodeIdentity::new(TestMesh::key("a"), Arc::new(gone)).unwrap();
    let draft = RecordDraft { left: true, ..RecordDraft::default() };
    let signed = identity.sign_record(&draft, 5, BootId([1; 16]), 1, NOW);
    world.members = vec![authenticate(&signed, &world.init.anchors).unwrap()];
    let request = world.request_of(&token, &IdentityKey::from_seed(&[66; 32]), "a", &[]);
    let enrolled = world.decide(&request, NOW).unwrap();
    assert_eq!(enrolled.entries.len(), 2, "the departure is written down with it");
}

#[test]
fn addresses_run_out_with_a_reason_and_those_of_the_gone_are_used_last() {
    let small = InitParams { ipv4_pool: "100.112.0.0/29".parse().unwrap(), ..params() };
    let mut world = World::with(&small, 3);
    let token = world.token(open_token());
    let mut seen = vec![world.init.certificate.mesh_ipv4.unwrap()];
    for name in ["a", "b", "c", "d", "e"] {
        seen.push(world.join(&token, name, &[]).unwrap().certificate.mesh_ipv4.unwrap());
    }
    seen.sort_unstable();
    let all: Vec<std::net::Ipv4Addr> =
        (1..=6).map(|last| std::net::Ipv4Addr::new(100, 112, 0, last)).collect();
    assert_eq!(seen, all, "neither the first nor the last");
    let refused = world.join(&token, "f", &[]).unwrap_err();
    assert_eq!(refused.refusal.code, Code::PoolExhausted);
    let departed = crate::trust::LedgerEvent::Departed { key: TestMesh::key("c").public() };
    world.persist(vec![LedgerEntry { time: NOW, event: departed }]);
    world.join(&token, "f", &[]).unwrap();
}

#[test]
fn any_member_can_tell_whom_to_hand_a_request_to() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]).encode_to_vec();
    let Decider::Signer(signer) = decider(&request, &world.init.anchors, |_| false).unwrap() else {
        panic!("a token names its signer")
    };
    assert_eq!(signer, TestMesh::key("signer").public());
    // Nothing in it is a secret that a carrier could use.
    let line = token.encode();
    let seed = data_encoding::BASE64URL_NOPAD.decode(&line.as_bytes()[7..]).unwrap();
    let seed = &seed[6..38];
    assert!(seed.windows(32).all(|secret| !request.windows(32).any(|part| part == secret)));
}

#[test]
fn the_signers_records_come_along_while_they_fit() {
    let mut world = World::new();
    let token = world.token(open_token());
    let identity =
        NodeIdentity::new(TestMesh::key("signer"), world.init.certificate.clone()).unwrap();
    let record = identity.sign_record(&RecordDraft::default(), 1, BootId([1; 16]), 1, NOW);
    let request = world.request(&token, "a", &[]).encode_to_vec();
    for (given, want) in [(1, 1), (100, 1)] {
        let own = vec![record.clone(); given];
        let enrolled =
            world.signer.enrol(&request, Known::default(), &own, NOW, &mut world.rng).unwrap();
        assert!(enrolled.reply.encoded_len() <= crate::limits::ENROL_MESSAGE);
        assert!(accept(&enrolled.reply, &token, "a").unwrap().records.len() >= want);
    }
}

#[test]
fn the_largest_permitted_enrolment_fits_its_messages() {
    let mut world = World::new();
    let nets = |from: u32| -> Vec<ipnet::IpNet> {
        (from..from + 64).map(|i| format!("2001:db8:{:x}::/48", i * 2).parse().unwrap()).collect()
    };
    let token = world.token(TokenParams {
        prefixes: nets(0),
        allow: (100..164).map(|i| format!("2001:{:x}::/32", 0xdb8 + i).parse().unwrap()).collect(),
        uses: 1,
        ..open_token()
    });
    let wanted: Vec<String> = (100..164).map(|i| format!("2001:{:x}:1::/48", 0xdb8 + i)).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let request = world.request(&token, "a", &wanted);
    assert!(request.encoded_len() <= crate::limits::ENROL_MESSAGE);
    let enrolment = world.join(&token, "a", &wanted).unwrap();
    assert_eq!(enrolment.certificate.grants.len(), 129);
    assert!(token.encode().len() < 8_000);
}

#[test]
fn a_ledger_that_lacks_its_beginning_or_comes_from_the_future_is_not_used() {
    let world = World::new();
    let open = |disk: &[&[u8]]| {
        Signer::open(
            world.init.anchors.clone(),
            world.init.intermediate.der(),
            &world.init.intermediate.seed(),
            &TestMesh::key("signer"),
            disk.iter().copied(),
        )
        .map(|_| ())
    };
    assert_eq!(open(&[]), Err(SignerError::Unfounded));
    assert_eq!(open(&[&world.disk[1]]), Err(SignerError::Unfounded));
    let future = [0xfa, 0x07, 1, 1]; // Field 127: an event of a later version.
    let refused = open(&[&world.disk[0], &future]);
    assert!(matches!(refused, Err(SignerError::Ledger { number: 2, .. })), "{refused:?}");
    assert!(open(&[&world.disk[0], &world.disk[1]]).is_ok());
}

#[test]
fn addresses_follow_from_the_key_when_they_are_free() {
    let mut world = World::new();
    let token = world.token(open_token());
    let request = world.request(&token, "a", &[]);
    let first = world.decide(&request, NOW).unwrap();
    let second = world.decide(&request, NOW).unwrap();
    let address = |enrolled: &crate::trust::Enrolled| {
        accept(&enrolled.reply, &token, "a").unwrap().certificate.mesh_ipv4
    };
    assert_eq!(address(&first), address(&second));
    let ula = address::ula(world.init.anchors.mesh_id(), &TestMesh::key("a").public());
    let certificate = accept(&first.reply, &token, "a").unwrap().certificate;
    assert!(certificate.mesh_addresses().contains(&address::host_prefix(ula.into())));
}
