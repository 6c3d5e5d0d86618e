//! Records that survive, and the many ways in which they may not.

use super::*;

#[test]
fn records_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (a, b) = (NodeKey([1; 32]), NodeKey([2; 32]));
    let opened = Store::open(&path);
    assert!(opened.records.is_empty() && !opened.whole);
    opened.store.put(&a, b"one").unwrap();
    opened.store.put(&b, b"two").unwrap();
    opened.store.remove(&a).unwrap();
    opened.store.flusher().sync_whole().unwrap();
    drop(opened);
    let opened = Store::open(&path);
    assert_eq!(opened.records, vec![(b, b"two".to_vec())]);
    assert!(opened.damage.is_empty() && opened.whole);
    drop(opened);
    assert!(Store::open(&path).whole, "a crash of the daemon takes nothing from it");
}

#[test]
fn a_store_that_goes_missing_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let opened = Store::open(&path);
    opened.store.put(&NodeKey([1; 32]), b"one").unwrap();
    opened.store.flusher().sync_whole().unwrap();
    drop(opened);
    fs::remove_dir_all(&path).unwrap();
    let opened = Store::open(&path);
    assert!(!opened.whole && opened.damage.len() == 1, "{:?}", opened.damage);
}

#[test]
fn a_disk_that_cannot_be_written_is_said_and_sets_nothing_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let full = Failure::from(sled::Error::Io(std::io::Error::from_raw_os_error(
        nix::errno::Errno::ENOSPC as i32,
    )));
    assert!(full.of_the_disk);
    let torn = Failure::from(sled::Error::Io(std::io::Error::other("torn")));
    assert!(!torn.of_the_disk);
    let none =
        Store { open: Err("No space left".to_owned()), marker: path.with_extension("whole") };
    none.put(&NodeKey([1; 32]), b"one").unwrap();
    fs::write(&none.marker, b"").unwrap();
    assert_eq!(none.flush().unwrap_err(), "No space left");
    assert!(!none.marker.exists(), "what was not written is missing at the next start");
}

#[test]
fn a_damaged_store_is_set_aside_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("conf"), b"not a store").unwrap();
    fs::write(path.join("db"), vec![0xff; 4096]).unwrap();
    let opened = Store::open(&path);
    assert_eq!(opened.damage.len(), 1, "{:?}", opened.damage);
    assert!(opened.damage[0].contains("damaged"), "{:?}", opened.damage);
    assert!(dir.path().join("db.damaged-1").exists());
    opened.store.put(&NodeKey([1; 32]), b"x").unwrap();
}

#[test]
fn records_that_vanish_are_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let opened = Store::open(&path);
    assert!(opened.damage.is_empty());
    for n in 0..100 {
        opened.store.put(&NodeKey([n; 32]), &[n; 500]).unwrap();
    }
    opened.store.remove(&NodeKey([0; 32])).unwrap();
    opened.store.flush().unwrap();
    drop(opened);
    let opened = Store::open(&path);
    assert!(opened.records.len() == 99 && opened.damage.is_empty(), "{:?}", opened.damage);
    // As sled does when a part of its log does not check out.
    opened.store.open.as_ref().unwrap().records.clear().unwrap();
    opened.store.open.as_ref().unwrap().db.flush().unwrap();
    drop(opened);
    assert_eq!(Store::open(&path).damage, ["99 of 99 stored records are gone"]);
}

#[test]
fn an_altered_entry_is_dropped_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (a, b) = (NodeKey([1; 32]), NodeKey([2; 32]));
    let opened = Store::open(&path);
    opened.store.put(&a, b"one").unwrap();
    opened.store.put(&b, b"two").unwrap();
    let mut altered =
        opened.store.open.as_ref().unwrap().records.get(a.as_bytes()).unwrap().unwrap().to_vec();
    *altered.last_mut().unwrap() ^= 1;
    opened.store.open.as_ref().unwrap().records.insert(a.as_bytes(), altered).unwrap();
    opened.store.flush().unwrap();
    drop(opened);
    let opened = Store::open(&path);
    assert_eq!(opened.records, vec![(b, b"two".to_vec())]);
    assert_eq!(opened.damage.len(), 1);
}

#[test]
fn a_store_that_is_still_held_is_waited_for_and_never_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let held = Store::open(&path);
    held.store.put(&NodeKey([1; 32]), b"one").unwrap();
    held.store.flusher().sync_whole().unwrap();
    let other = Store::open(&path);
    assert!(other.damage[0].contains("cannot be used"), "{:?}", other.damage);
    assert!(!dir.path().join("db.damaged-1").exists());
    drop((held, other));
    assert_eq!(Store::open(&path).records.len(), 1);
}

#[test]
fn where_members_were_reached_survives_as_long_as_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| NodeKey([n; 32]));
    let at = |text: &str| -> IpAddr { text.parse().unwrap() };
    let both = [at("192.0.2.1"), at("2001:db8::1")];
    let opened = Store::open(&path);
    for key in [&a, &b, &c] {
        opened.store.put(key, b"record").unwrap();
        opened.store.put_reached(key, &[at("192.0.2.9")]).unwrap();
    }
    opened.store.put_reached(&a, &both).unwrap();
    opened.store.put_reached(&d, &both).unwrap();
    opened.store.remove(&c).unwrap();
    opened.store.flusher().sync_whole().unwrap();
    drop(opened);
    let opened = Store::open(&path);
    let expected = [(a, both.to_vec()), (b, vec![at("192.0.2.9")])];
    assert_eq!(opened.reached, expected, "d has no record");
    assert!(opened.whole && opened.damage.is_empty());

    let reached = &opened.store.open.as_ref().unwrap().reached;
    assert_eq!(reached.len(), 2, "there are never more than records");
    reached.insert(b.as_bytes(), make_entry(&a, &[4, 192, 0, 2, 7])).unwrap();
    reached.insert(a.as_bytes(), make_entry(&a, &[4, 192, 0, 2])).unwrap();
    opened.store.flush().unwrap();
    drop(opened);
    let opened = Store::open(&path);
    assert!(opened.reached.is_empty());
    assert!(opened.records.len() == 2 && opened.whole, "the records are none the worse");
    opened.store.put_reached(&a, &both).unwrap();
    opened.store.clear().unwrap();
    opened.store.put(&a, b"record").unwrap();
    opened.store.flush().unwrap();
    drop(opened);
    assert!(Store::open(&path).reached.is_empty());
}
