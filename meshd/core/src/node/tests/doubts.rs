//! Addresses that one member announces and another names as its own.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::reached::Reached;

/// A node that knows "owner" at 192.0.2.3 and 2001:db8::3.
fn scene() -> (Node, Now) {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    let owner = mesh.node("owner", &[]);
    let mut draft = mesh.draft(&owner, &[]);
    draft.endpoints = vec![addr(3), "[2001:db8::3]:51800".parse().unwrap()];
    us.handle_frame(peer("x"), &push(vec![mesh.sign(&owner, &draft, 1)]), now);
    assert_eq!(us.directory().len(), 1);
    (us, now)
}

fn routed(holder: &str, prefixes: &[&str]) -> BTreeMap<NodeKey, BTreeSet<IpNet>> {
    let prefixes = prefixes.iter().map(|text| text.parse().unwrap()).collect();
    BTreeMap::from([(peer(holder), prefixes)])
}

#[test]
fn the_owner_is_asked_where_somebody_else_has_its_address() {
    let (mut us, now) = scene();
    let nobody = Reached::default();
    let claimed = routed("thief", &["192.0.2.3/32", "2001:db8::3/128", "192.0.2.66/32"]);
    let both = [addr(3), "[2001:db8::3]:51800".parse().unwrap()];
    let mut reached = nobody.clone();
    reached.connected(peer("owner"), both[0].ip());
    assert_eq!(us.doubts(&claimed, &reached, now), both[1..], "it was seen at the other");
    assert_eq!(us.doubts(&claimed, &nobody, now), both[..1], "one after the other");
    assert!(us.doubts(&claimed, &nobody, now).is_empty());
    let later = Now { mono: now.mono + Duration::from_secs(5), ..now };
    assert_eq!(us.doubts(&claimed, &nobody, later), both, "again");
    let still = Now { mono: later.mono + Duration::from_millis(1_200), ..later };
    assert!(us.doubts(&claimed, &nobody, still).is_empty(), "ever less often");
}

#[test]
fn nobody_is_asked_where_there_is_no_doubt() {
    let (mut us, now) = scene();
    let nobody = Reached::default();
    for claimed in [
        routed("owner", &["192.0.2.3/32"]),
        routed("thief", &["192.0.2.0/30"]),
        routed("thief", &["192.0.2.66/32"]),
    ] {
        assert!(us.doubts(&claimed, &nobody, now).is_empty(), "{claimed:?}");
    }
    us.set_routed(["198.51.100.0/24".parse().unwrap(), "192.0.2.3/32".parse().unwrap()]);
    let proves = |text: &str| us.proves_path(&text.parse().unwrap());
    assert!(proves("192.0.2.3") && proves("192.0.2.66"));
    assert!(!proves("198.51.100.9"), "a router may have let it out");
    let inside = crate::address::ula(us.anchors.mesh_id(), &peer("owner"));
    assert!(!us.proves_path(&inside.into()));
}
