//! Who is told of what is new.

use std::collections::BTreeSet;

use super::*;

/// More than are told of something at once.
const OTHERS: u8 = 20;

/// A node that knows so many others, of which the first `connected` have a connection to it.
fn among(mesh: &TestMesh, connected: u8, now: Now) -> Node {
    let mut us = node(mesh, "us", &[], now);
    let identity = mesh.node("us", &[]);
    us.update_self(mesh.draft(&identity, &[]), now);
    let names: Vec<_> = (0..OTHERS).map(|i| format!("n{i}")).collect();
    for (i, name) in (0..connected).zip(&names) {
        us.handle_connected(peer(name), addr(i), false, now);
    }
    let records: Vec<_> = names.iter().map(|name| signed(mesh, name, 1)).collect();
    us.handle_frame(peer("n0"), &push(records), now);
    us
}

/// Who is told when the first of the others has changed its record, a moment later.
fn told(mesh: &TestMesh, us: &mut Node, now: Now) -> BTreeSet<NodeKey> {
    outputs(us);
    us.handle_frame(peer("n0"), &push(vec![signed(mesh, "n0", 2)]), now);
    us.handle_timeout(now.after(Duration::from_millis(500)));
    let told = frames(&outputs(us)).into_iter().filter_map(|(to, body)| match body {
        Body::Push(push) if !push.records.is_empty() => Some(to),
        Body::Announce(_) => Some(to),
        _ => None,
    });
    told.collect()
}

#[test]
fn while_members_start_those_are_told_to_whom_connections_stand_and_few_others() {
    let mesh = TestMesh::new(1);
    let now = start();
    for (connected, least, dials) in [(1, 2, 2), (2, 2, 1), (8, 7, 0), (20, 19, 0)] {
        let mut us = among(&mesh, connected, now);
        let soon = now.after(Duration::from_millis(400));
        us.handle_timeout(soon);
        let told = told(&mesh, &mut us, soon);
        let stand: BTreeSet<_> = (0..connected).map(|i| peer(&format!("n{i}"))).collect();
        assert!(told.len() >= least, "{connected}: {}", told.len());
        assert!(told.difference(&stand).count() <= dials, "{connected}");
    }
}

#[test]
fn when_all_have_started_members_are_told_by_lot() {
    let mesh = TestMesh::new(1);
    let now = start();
    let later = now.after(Duration::from_secs(2));
    let mut us = among(&mesh, 2, now);
    us.handle_timeout(later);
    let told = told(&mesh, &mut us, later);
    assert!((8..=12).contains(&told.len()), "{}", told.len());
}
