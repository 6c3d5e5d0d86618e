//! Requests with changes, correctly signed, one after the other at one signer: nobody gets what its token or its last
//! certificate does not give, tokens admit as many as they say, and the ledger says the same after a restart.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{Known, LedgerEntry, NodeCertificate, Signer, authenticate};
use meshd_fuzz::{
    enrol::Request,
    world::{NOW, World, rng, world},
};
use meshd_proto::wire;
use prost::Message;
use wire::enrol_reply::Result::Accepted;

fuzz_target!(|requests: Vec<Request>| {
    let world = world();
    let mut signer = world.signer();
    let mut ledger = world.ledger.clone();
    let members: Vec<_> =
        world.members.iter().filter_map(|m| authenticate(&m.signed, &world.anchors).ok()).collect();
    let known = Known { members: &members, barred: &[] };
    let mut admitted = BTreeSet::new();
    for (turn, request) in requests.iter().take(6).enumerate() {
        let bytes = request.encode(world);
        let Ok(enrolled) = signer.enrol(&bytes, known, &[], NOW, &mut rng()) else {
            // Later ones may find name, token or prefix taken.
            assert!(turn > 0 || !request.changes.is_empty(), "an honest request is refused");
            continue;
        };
        let Some(Accepted(accepted)) = &enrolled.reply.result else { panic!("no certificate") };
        let certificate =
            world.anchors.check_chain(&accepted.certificate, None).expect("a certificate");
        assert_eq!((certificate.key, &certificate.name), (enrolled.key, &enrolled.name));
        assert_rights(world, &certificate, &bytes);
        let joined = !world.members.iter().any(|member| member.key() == enrolled.key);
        if joined {
            admitted.insert(enrolled.key);
            assert!(admitted.len() <= 2, "more than the token's uses");
        }
        for entry in enrolled.entries {
            let encoded = entry.encode();
            assert_eq!(LedgerEntry::decode(&encoded, world.mesh_id()).as_ref(), Ok(&entry));
            ledger.push(encoded);
            signer.apply(entry);
        }
        // The same again brings the same, here and after a restart.
        let seed = world.intermediate.seed();
        let entries = ledger.iter().map(Vec::as_slice);
        let node = world.members[0].key();
        let again =
            Signer::open(world.anchors.clone(), world.intermediate.der(), &seed, node, entries);
        let again = again.expect("its own ledger").enrol(&bytes, known, &[], NOW, &mut rng());
        let again = again.expect("what was granted before");
        assert!(again.entries.is_empty(), "the same request is granted twice");
        assert_eq!(again.reply.result, enrolled.reply.result);
    }
});

/// Prefixes: what was held, or what was asked for within the limits.
fn assert_rights(world: &World, certificate: &NodeCertificate, request: &[u8]) {
    let request = wire::EnrolRequest::decode(request).expect("a request");
    let body = wire::EnrolBody::decode(request.body).expect("its body");
    let wanted: Vec<_> = body
        .wanted
        .iter()
        .filter_map(|prefix| meshd_core::address::prefix_from_wire(prefix).ok())
        .collect();
    let before = world.members.iter().find(|member| member.key() == certificate.key);
    let before = before.map(|member| &member.identity.certificate);
    let limit: ipnet::IpNet = "10.128.0.0/9".parse().expect("a prefix");
    for grant in &certificate.grants {
        let own = certificate.mesh_ipv4.is_some_and(|own| grant.prefix.addr() == own);
        let had = before.is_some_and(|before| before.grants.contains(grant));
        let may = limit.contains(&grant.prefix) && grant.claim_len.is_none();
        let asked = wanted.contains(&grant.prefix);
        assert!(own || had || (may && asked), "{grant:?} is given to {}", certificate.name);
    }
    if let Some(before) = before.filter(|_| !body.certificate.is_empty()) {
        assert_eq!(
            (certificate.enrolment_id, &certificate.name),
            (before.enrolment_id, &before.name)
        );
        assert_eq!((&certificate.limits, &certificate.groups), (&before.limits, &before.groups));
    }
}
