//! A node and its next certificate.

use super::*;
use crate::trust::{NodeTerms, SignerEntry};

const DAY: u64 = 24 * 3600;
/// Longer than it waits with what is detected just after a grant.
const EAGER_AT_MOST: Duration = Duration::from_secs(3);

/// A node with 30 days, that knows a signer.
fn world(now: Now) -> (TestMesh, Node) {
    let mut mesh = TestMesh::new(1);
    let entry = SignerEntry {
        key: mesh.intermediate.public(),
        node: peer("signer"),
        name: "signer".parse().unwrap(),
        certificate: Bytes::copy_from_slice(mesh.intermediate.der()),
        retiring: false,
    };
    let bundle = mesh.root.sign_signers(&mesh.mesh_id, 2, &[entry], mesh.anchors.succession());
    mesh.anchors.install_bundle(&bundle).unwrap();
    let us = mesh.node_of("us", &terms(&mesh, 0));
    let config = NodeConfig::default();
    let anchors = mesh.anchors.clone();
    let mut node = Node::new(config, Arc::new(us), anchors, [1; 32], BLOCK, BootId([9; 16]), now);
    let signer = mesh.node("signer", &[]);
    let draft = mesh.draft(&signer, &[]);
    // Who merely says that it signs is not asked.
    let liar = mesh.node("liar", &[]);
    let mut lie = mesh.draft(&liar, &[]);
    lie.capabilities = vec!["signer".to_owned()];
    node.handle_frame(peer("liar"), &push(vec![mesh.sign(&liar, &lie, 1)]), now);
    node.handle_frame(peer("signer"), &push(vec![mesh.sign(&signer, &draft, 1)]), now);
    node.update_self(mesh.draft(&mesh.node("us", &[]), &["10.1.0.0/24"]), now);
    node.handle_connected(peer("signer"), addr(2), true, now);
    outputs(&mut node);
    (mesh, node)
}

fn terms(mesh: &TestMesh, days: i64) -> NodeTerms {
    let from = NOW.plus(days * 24 * 3600);
    NodeTerms {
        not_before: from,
        not_after: from.plus(30 * 24 * 3600),
        limits: vec!["10.1.0.0/16".parse().unwrap()],
        ..mesh.terms("us", &["10.1.0.0/24"])
    }
}

fn request(outputs: &[Output]) -> Option<(NodeKey, u64, Bytes)> {
    frames(outputs).into_iter().find_map(|(to, body)| match body {
        Body::EnrolForward(forward) => Some((to, forward.id, forward.request)),
        _ => None,
    })
}

fn reply(mesh: &TestMesh, terms: &NodeTerms) -> Bytes {
    let certificate = mesh.intermediate.issue_node(terms).unwrap().der;
    let accepted = wire::EnrolAccepted {
        certificate,
        root: Bytes::copy_from_slice(mesh.anchors.root_der()),
        bundle: Some(mesh.anchors.signed_bundle().clone()),
        records: Vec::new(),
        not_granted: Vec::new(),
    };
    let result = Some(wire::enrol_reply::Result::Accepted(accepted));
    wire::EnrolReply { result }.encode_to_vec().into()
}

fn answer(id: u64, reply: Bytes) -> Vec<u8> {
    frame(Body::EnrolForwardReply(wire::EnrolForwardReply { id, reply }))
}

/// What comes out when time has come.
fn at(node: &mut Node, now: Now) -> Vec<Output> {
    node.handle_timeout(now);
    outputs(node)
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
    let now = start();
    let (mesh, mut us) = world(now);
    let young = now.after(Duration::from_secs(17 * DAY));
    assert!(request(&at(&mut us, young)).is_none());
    let old = now.after(Duration::from_secs(21 * DAY + 7200));
    let (to, id, _) = request(&at(&mut us, old)).unwrap();
    assert_eq!(to, peer("signer"));
    // Nobody else may answer, and not with anything else.
    us.handle_frame(peer("x"), &answer(id, reply(&mesh, &terms(&mesh, 21))), old);
    assert_eq!(us.own_record().unwrap().certificate.not_before, NOW);
    us.handle_frame(peer("signer"), &answer(id, reply(&mesh, &terms(&mesh, 21))), old);
    let done = outputs(&mut us);
    assert!(done.iter().any(|output| matches!(output, Output::Renewed { .. })));
    let later = old.after(Duration::from_secs(5));
    us.handle_timeout(later);
    let record = us.own_record().unwrap();
    assert_eq!(record.certificate.not_before, NOW.plus(21 * 24 * 3600));
    assert!(us.renewal_problem().is_none());
}

#[test]
fn a_prefix_within_the_limits_is_asked_for_at_once_and_only_once() {
    let now = start();
    let (mesh, mut us) = world(now);
    let draft = |prefixes: &[&str]| mesh.draft(&mesh.node("us", &[]), prefixes);
    us.update_self(draft(&["10.1.0.0/24", "172.16.0.0/24"]), now);
    us.handle_timeout(now);
    assert!(request(&outputs(&mut us)).is_none(), "outside the limits nobody grants it");
    us.update_self(draft(&["10.1.0.0/24", "10.1.7.0/24"]), now);
    us.handle_timeout(now);
    let (_, id, _) = request(&outputs(&mut us)).unwrap();
    let mut more = terms(&mesh, 0);
    more.grants = mesh.terms("us", &["10.1.0.0/24", "10.1.7.0/24"]).grants;
    more.not_before = NOW;
    us.handle_frame(peer("signer"), &answer(id, reply(&mesh, &more)), now);
    us.handle_timeout(now.after(Duration::from_secs(2)));
    let prefixes = &us.own_record().unwrap().prefixes;
    assert_eq!(prefixes.len(), 2, "{prefixes:?}");
    // One that the signer does not give is not asked for again and again.
    let now = now.after(Duration::from_secs(60));
    us.update_self(draft(&["10.1.0.0/24", "10.1.7.0/24", "10.1.8.0/24"]), now);
    us.handle_timeout(now);
    let (_, id, _) = request(&outputs(&mut us)).unwrap();
    let mut denied = wire::EnrolReply::decode(reply(&mesh, &more)).unwrap();
    if let Some(wire::enrol_reply::Result::Accepted(accepted)) = &mut denied.result {
        let prefix = "10.1.8.0/24".parse().unwrap();
        accepted.not_granted = vec![crate::address::prefix_to_wire(&prefix)];
    }
    us.handle_frame(peer("signer"), &answer(id, denied.encode_to_vec().into()), now);
    let day = now.after(Duration::from_secs(DAY));
    assert!(request(&at(&mut us, day)).is_none());
}

#[test]
fn what_another_has_is_asked_for_again_when_it_gives_it_back() {
    let now = start();
    let (mesh, mut us) = world(now);
    let held = |grants: &[&str], version| {
        let identity = mesh.node("holder", grants);
        mesh.sign(&identity, &mesh.draft(&identity, &[]), version)
    };
    us.handle_frame(peer("holder"), &push(vec![held(&["10.1.8.0/24"], 1)]), now);
    us.update_self(mesh.draft(&mesh.node("us", &[]), &["10.1.0.0/24", "10.1.8.0/24"]), now);
    us.handle_timeout(now);
    let (_, id, _) = request(&outputs(&mut us)).unwrap();
    let mut same = terms(&mesh, 0);
    same.not_before = NOW;
    let mut denied = wire::EnrolReply::decode(reply(&mesh, &same)).unwrap();
    if let Some(wire::enrol_reply::Result::Accepted(accepted)) = &mut denied.result {
        let prefix = "10.1.8.0/24".parse().unwrap();
        accepted.not_granted = vec![crate::address::prefix_to_wire(&prefix)];
    }
    us.handle_frame(peer("signer"), &answer(id, denied.encode_to_vec().into()), now);
    let later = now.after(Duration::from_secs(60));
    assert!(request(&at(&mut us, later)).is_none(), "it still has it");
    us.handle_frame(peer("holder"), &push(vec![held(&[], 2)]), later);
    assert!(request(&at(&mut us, later)).is_some());
}

#[test]
fn what_is_detected_just_after_a_grant_is_asked_for_at_once() {
    let now = start();
    let (mesh, mut us) = world(now);
    let now = now.after(Duration::from_secs(10));
    let all = ["10.1.0.0/24", "10.1.7.0/24", "10.1.8.0/24", "10.1.9.0/24"];
    let draft = |count: usize| mesh.draft(&mesh.node("us", &[]), &all[..count]);
    let prefix = |at: usize| all[at].parse().unwrap();
    let grant = |count: usize, second: i64| {
        let mut more = terms(&mesh, 0);
        more.grants = mesh.terms("us", &all[..count]).grants;
        more.not_before = NOW.plus(second);
        reply(&mesh, &more)
    };
    us.update_self(draft(2), now);
    us.handle_timeout(now);
    let (_, id, _) = request(&outputs(&mut us)).unwrap();
    assert_eq!(us.asks_for_in(&prefix(1), now.mono), Some(Duration::ZERO));
    us.handle_frame(peer("signer"), &answer(id, grant(2, 1)), now);
    outputs(&mut us);
    // The next two come within the pause.
    let soon = now.after(Duration::from_secs(1));
    us.update_self(draft(3), soon);
    assert!(request(&at(&mut us, soon)).is_none(), "not in a loop");
    let wait = us.asks_for_in(&prefix(2), soon.mono).unwrap();
    assert!(!wait.is_zero() && wait <= EAGER_AT_MOST, "{wait:?}");
    let soon = soon.after(wait);
    assert!(us.poll_timeout().is_some_and(|(at, _)| at <= soon.mono), "it wakes by itself");
    let (_, id, _) = request(&at(&mut us, soon)).unwrap();
    // The signer has had enough of it: the same comes again, and it waits.
    us.handle_frame(peer("signer"), &answer(id, grant(2, 1)), soon);
    outputs(&mut us);
    let wait = us.asks_for_in(&prefix(2), soon.mono).unwrap();
    assert!(wait > EAGER_AT_MOST, "{wait:?}");
    assert!(request(&at(&mut us, soon.after(EAGER_AT_MOST))).is_none());
    // By a clock that is behind too: a request is never older than what is held.
    let (_, _, asked) = request(&at(&mut us, soon.after(Duration::from_secs(400)))).unwrap();
    let asked = wire::EnrolRequest::decode(asked).unwrap();
    let asked = wire::EnrolBody::decode(asked.body).unwrap();
    assert_eq!(asked.issued_at, NOW.plus(602).0);
    assert_eq!(us.asks_for_in(&"172.16.0.0/24".parse().unwrap(), soon.mono), None);
}

#[test]
fn without_a_signer_it_is_tried_for_ever_by_both_doors_and_said() {
    let now = start();
    let (_, mut us) = world(now);
    let mut time = now.after(Duration::from_secs(22 * DAY));
    let (mut forwarded, mut doors) = (0, 0);
    for _ in 0..400 {
        let out = at(&mut us, time);
        forwarded += usize::from(request(&out).is_some());
        for output in &out {
            if let Output::AskAtTheDoor { id, .. } = output {
                doors += 1;
                us.handle_renewal_reply(*id, None, time);
            }
        }
        time = time.after(Duration::from_secs(600));
    }
    assert!((10..100).contains(&forwarded) && (10..100).contains(&doors), "{forwarded} {doors}");
    assert!(us.renewal_problem().is_some());
}

#[test]
fn a_clock_that_stands_still_goes_by_the_signers() {
    let now = start();
    let (mesh, mut us) = world(now);
    let late = NOW.plus(22 * 24 * 3600);
    // The host's clock was right when this came, and is set back then.
    let right = Now { unix: late, ..now };
    let time = mesh.intermediate.sign_time(&mesh.mesh_id, late);
    assert_eq!(us.take_time(&time, right), Ok(true));
    us.handle_timeout(now);
    assert!(request(&outputs(&mut us)).is_some());
}

#[test]
fn who_reaches_nobody_asks_at_the_door_why() {
    let now = start();
    let (mesh, mut us) = world(now);
    us.handle_disconnected(peer("signer"), now);
    outputs(&mut us);
    let doors = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::AskAtTheDoor { id, .. } => Some(*id),
            _ => None,
        })
    };
    let soon = now.after(Duration::from_secs(9));
    assert!(doors(&at(&mut us, soon)).is_none());
    let later = now.after(Duration::from_secs(30));
    let id = doors(&at(&mut us, later)).unwrap();
    // Its signer is gone from the bundle: the answer has the bundle, and a certificate of another.
    let other = mesh.root.issue_intermediate(&[77; 32], NOW).unwrap();
    let bundle = mesh.root.sign_bundle(&mesh.mesh_id, 3, &[&other]);
    let mut anchors = mesh.anchors.clone();
    anchors.install_bundle(&bundle).unwrap();
    let mut next = terms(&mesh, 0);
    next.not_before = NOW.plus(1);
    let accepted = wire::EnrolAccepted {
        certificate: other.issue_node(&next).unwrap().der,
        bundle: Some(bundle),
        ..wire::EnrolAccepted::default()
    };
    let result = Some(wire::enrol_reply::Result::Accepted(accepted));
    let reply = wire::EnrolReply { result }.encode_to_vec();
    us.handle_renewal_reply(id, Some(&reply), later);
    let done = outputs(&mut us);
    assert!(done.iter().any(|output| matches!(output, Output::Renewed { .. })));
    assert_eq!(us.anchors().bundle_version(), 3);
}
