//! Requests with changes, correctly signed, one after the other at one signer: nobody gets what its token or its last
//! certificate does not give, tokens admit as many as they say, and the ledger says the same after a restart.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use meshd_core::{
    address,
    trust::{Known, LedgerEntry, NodeCertificate, Record, Signer, authenticate},
};
use meshd_fuzz::{
    enrol::Request,
    world::{Member, NOW, World, rng, world},
};
use meshd_proto::{NodeKey, wire};
use prost::Message;
use wire::enrol_reply::Result::Accepted;

fuzz_target!(|requests: Vec<Request>| {
    let world = world();
    let mut signer = world.signer();
    let mut ledger = world.ledger.clone();
    let members = members(world);
    let known = Known { members, barred: &[], issuers: None };
    let (mut admitted, mut last) = (BTreeSet::new(), None);
    let mut asked: BTreeMap<NodeKey, BTreeSet<IpNet>> = BTreeMap::new();
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
        assert_rights(world, &certificate, &bytes, asked.entry(enrolled.key).or_default());
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
        last = Some((bytes, enrolled.reply.result));
    }
    // The same again brings the same, after a restart too.
    let Some((bytes, answer)) = last else { return };
    let seed = world.intermediate.seed();
    let entries = ledger.iter().map(Vec::as_slice);
    let (anchors, key) = (world.anchors.clone(), &world.members[0].identity.key);
    let again = Signer::open(anchors, world.intermediate.der(), &seed, key, entries);
    let again = again.expect("its own ledger").enrol(&bytes, known, &[], NOW, &mut rng());
    let again = again.expect("what was granted before");
    assert!(again.entries.is_empty(), "the same request is granted twice");
    assert_eq!(again.reply.result, answer);
});

/// The records of the beginning, verified once.
fn members(world: &World) -> &'static [Arc<Record>] {
    static MEMBERS: OnceLock<Vec<Arc<Record>>> = OnceLock::new();
    let verified = |member: &Member| authenticate(&member.signed, &world.anchors).ok();
    MEMBERS.get_or_init(|| world.members.iter().filter_map(verified).collect())
}

/// Prefixes: what was held, or what was asked for within the limits, now or before.
fn assert_rights(
    world: &World,
    certificate: &NodeCertificate,
    request: &[u8],
    asked: &mut BTreeSet<IpNet>,
) {
    let request = wire::EnrolRequest::decode(request).expect("a request");
    let body = wire::EnrolBody::decode(request.body).expect("its body");
    asked.extend(body.wanted.iter().filter_map(|prefix| address::prefix_from_wire(prefix).ok()));
    let before = world.members.iter().find(|member| member.key() == certificate.key);
    let before = before.map(|member| &member.identity.certificate);
    let limit: IpNet = "10.128.0.0/9".parse().expect("a prefix");
    for grant in &certificate.grants {
        let own = certificate.mesh_ipv4.is_some_and(|own| grant.prefix.addr() == own);
        let had = before.is_some_and(|before| before.grants.contains(grant));
        let may = limit.contains(&grant.prefix) && grant.claim_len.is_none();
        let asked = asked.contains(&grant.prefix);
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
