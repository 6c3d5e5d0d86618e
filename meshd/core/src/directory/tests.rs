use std::time::Duration;

use super::*;
use crate::node::fixture::{self, Origin};

#[test]
fn the_root_depends_on_what_is_held_and_not_on_the_order() {
    let records: Vec<_> = (1..=40).map(|i| fixture::record(i, &format!("n{i}"), 1)).collect();
    let (mut there, mut back) = (Directory::default(), Directory::default());
    records.iter().for_each(|r| drop(there.insert(r.clone())));
    records.iter().rev().for_each(|r| drop(back.insert(r.clone())));
    assert_eq!(there.root_hash(), back.root_hash());

    back.insert(fixture::record(7, "n7", 2));
    assert_ne!(there.root_hash(), back.root_hash());
    back.insert(records[6].clone());
    assert_eq!(there.root_hash(), back.root_hash());
    back.remove(&records[0].key);
    assert_ne!(there.root_hash(), back.root_hash());
    records.iter().for_each(|r| drop(back.remove(&r.key)));
    assert_eq!(back.root_hash(), Directory::default().root_hash());
}

#[test]
fn two_keys_under_one_name_are_both_shown() {
    let mut directory = Directory::default();
    let (a, b) = (fixture::record(1, "db", 1), fixture::record(2, "db", 1));
    directory.insert(a.clone());
    assert_eq!(directory.display_name(&a.key), "db");
    directory.insert(b.clone());
    let shown = directory.display_name(&b.key);
    assert_eq!(shown, format!("db~{}", b.key.short()));
    assert_eq!(directory.by_name(&shown), [&b]);
    assert_eq!(directory.by_name("db").len(), 2);
    assert!(directory.by_name("other").is_empty() && directory.by_name("\u{1b}").is_empty());
    directory.remove(&a.key);
    assert_eq!(directory.display_name(&b.key), "db");
}

#[test]
fn refusals_are_forgotten_in_time_and_never_pile_up() {
    let mut refused = Refused::default();
    let start = Origin::default().now().mono;
    refused.insert([1; 8], start);
    let later = start + limits_held() - Duration::from_secs(1);
    assert!(refused.contains(&[1; 8], later));
    assert!(!refused.contains(&[1; 8], start + limits_held()));
    for i in 0..100_000_u64 {
        refused.insert(i.to_be_bytes(), start);
    }
    assert!(refused.contains(&99_999_u64.to_be_bytes(), start));
    assert!(!refused.contains(&1_u64.to_be_bytes(), start));
}

fn limits_held() -> Duration {
    crate::limits::REFUSED_HELD_FOR
}
