//! Records from the store, with stamps and without.

use super::*;

fn stored(bytes: &[u8]) -> wire::StoredRecord {
    wire::StoredRecord::decode(bytes).unwrap()
}

/// What `us` wants kept of `key`.
fn kept(us: &mut Node, key: &NodeKey) -> Option<Vec<u8>> {
    let kept = outputs(us).into_iter().filter_map(|output| match output {
        Output::Store { key: whose, bytes } if whose == *key => Some(bytes.to_vec()),
        _ => None,
    });
    kept.last()
}

#[test]
fn what_was_verified_once_gets_a_stamp_and_is_stored_once() {
    let mesh = TestMesh::new(1);
    let now = start();
    let record = signed(&mesh, "a", 1);
    let mut us = node(&mesh, "us", &[], now);
    us.restore(&record.encode_to_vec(), now).unwrap();
    let bytes = kept(&mut us, &peer("a")).unwrap();
    assert_eq!(stored(&bytes).stamp.len(), 16);

    let mut again = node(&mesh, "us", &[], now);
    again.restore(&bytes, now).unwrap();
    assert!(kept(&mut again, &peer("a")).is_none(), "it is stored as it should be");
    let held = |node: &Node| node.directory().get(&peer("a")).cloned().unwrap();
    assert_eq!(held(&again), held(&us));

    let earlier = wire::SignedRecord::decode(&bytes[..]).unwrap();
    assert_eq!(earlier, record, "a meshd that knows no stamps reads it");
}

#[test]
fn a_stamp_hides_nothing_from_who_did_not_make_it() {
    let mesh = TestMesh::new(1);
    let now = start();
    let mut us = node(&mesh, "us", &[], now);
    us.restore(&signed(&mesh, "a", 1).encode_to_vec(), now).unwrap();
    let bytes = kept(&mut us, &peer("a")).unwrap();

    let mut forged = stored(&bytes);
    forged.signature = vec![0; 64].into();
    let mut us = node(&mesh, "us", &[], now);
    let refusal = us.restore(&forged.encode_to_vec(), now).unwrap_err();
    assert_eq!(refusal.code, Code::BadSignature);
    assert!(kept(&mut us, &peer("a")).is_none());

    // Another host verifies by itself.
    let mut them = node(&mesh, "them", &[], now);
    them.restore(&bytes, now).unwrap();
    let theirs = kept(&mut them, &peer("a")).unwrap();
    assert_ne!(stored(&theirs).stamp, stored(&bytes).stamp);

    // One that only the stamp speaks for is what a bundle of other signers leaves behind.
    let other = TestMesh::new(2);
    let mut foreign = stored(&signed(&other, "a", 1).encode_to_vec());
    foreign.stamp = stored(&bytes).stamp;
    assert!(us.restore(&foreign.encode_to_vec(), now).is_err());
}
