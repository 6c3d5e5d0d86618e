//! The records of the mesh on disk: a cache that gossip can rebuild.
//!
//! Every entry carries the schema's version and a checksum; what is read goes through the same
//! verification as what comes from the network. A store that cannot be opened or read is set aside,
//! never repaired in place, and the node syncs anew.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use meshd_proto::NodeKey;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// First byte of every entry.
const SCHEMA: u8 = 1;
const CHECKSUM: usize = 8;
/// sled's default is a gigabyte.
const CACHE: u64 = 16 << 20;
const TREE: &str = "records";
/// How many records there were at the last flush: sled drops damaged parts of its log without a word.
const COUNT: &str = "count";

/// The store cannot be used at all.
#[derive(Debug, Error)]
#[error("cannot use the record store {}; {why}; check the directory's owner and free space", path.display())]
pub struct StoreError {
    path: PathBuf,
    why: String,
}

/// Records, by identity key.
pub struct Store {
    db: sled::Db,
    records: sled::Tree,
    count: Arc<AtomicU64>,
    path: PathBuf,
}

/// Writes the store's buffers.
pub struct Flusher {
    db: sled::Db,
    count: Arc<AtomicU64>,
    path: PathBuf,
}

impl Flusher {
    /// See [`Store::flush`].
    pub fn flush(&self) -> Result<(), String> {
        let count = self.count.load(Ordering::Relaxed).to_be_bytes();
        guard(|| self.db.insert(COUNT, &count).and_then(|_| self.db.flush())).map(|_| ())
    }

    /// Also makes it survive a power loss: sled's own flush is no fsync.
    pub fn sync(&self) -> Result<(), String> {
        self.flush()?;
        let sync = || {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::File::open(entry.path())?.sync_all()?;
                }
            }
            fs::File::open(&self.path)?.sync_all()
        };
        sync().map_err(|error| error.to_string())
    }
}

/// What opening found.
pub struct Opened {
    /// The store, ready for use.
    pub store: Store,
    /// Entries as they were put, still to be verified.
    pub records: Vec<(NodeKey, Vec<u8>)>,
    /// Entries or a whole store that were damaged, for a person.
    pub damage: Vec<String>,
    /// There was no store: this is a new one.
    pub new: bool,
}

impl Store {
    /// Opens the store below `path`, or sets a damaged one aside and starts an empty one.
    pub fn open(path: &Path) -> Result<Opened, StoreError> {
        match open_and_read(path) {
            Ok(opened) => Ok(opened),
            Err(why) => {
                let aside = set_aside(path).map_err(|error| StoreError {
                    path: path.to_owned(),
                    why: error.to_string(),
                })?;
                let mut opened =
                    open_and_read(path).map_err(|why| StoreError { path: path.to_owned(), why })?;
                opened.damage.push(format!(
                    "the record store was damaged ({why}) and is now {}; records come back from \
                     the other members",
                    aside.display()
                ));
                Ok(opened)
            }
        }
    }

    /// Puts a record's encoded bytes. Nothing is on disk before [`Store::flush`].
    pub fn put(&self, key: &NodeKey, record: &[u8]) -> Result<(), String> {
        let mut entry = Vec::with_capacity(1 + CHECKSUM + record.len());
        entry.push(SCHEMA);
        entry.extend_from_slice(&checksum(key, record));
        entry.extend_from_slice(record);
        let before = guard(|| self.records.insert(key.as_bytes(), entry))?;
        if before.is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes a record.
    pub fn remove(&self, key: &NodeKey) -> Result<(), String> {
        if guard(|| self.records.remove(key.as_bytes()))?.is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes every record: after a leave.
    pub fn clear(&self) -> Result<(), String> {
        guard(|| self.records.clear())?;
        self.count.store(0, Ordering::Relaxed);
        self.flush()
    }

    /// Hands to the system what is in memory: survives a crash of the daemon, not of the host.
    pub fn flush(&self) -> Result<(), String> {
        self.flusher().flush()
    }

    /// A handle for flushing elsewhere: it blocks for as long as the disk takes.
    #[must_use]
    pub fn flusher(&self) -> Flusher {
        Flusher { db: self.db.clone(), count: self.count.clone(), path: self.path.clone() }
    }
}

fn checksum(key: &NodeKey, record: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new().chain_update(key.as_bytes()).chain_update(record).finalize();
    let mut short = [0; CHECKSUM];
    short.copy_from_slice(&digest[..CHECKSUM]);
    short
}

/// sled panics on some kinds of damage.
fn guard<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the store's library gave up".to_owned()),
    }
}

fn open_and_read(path: &Path) -> Result<Opened, String> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None);
    let db = guard(|| config.open())?;
    let records = guard(|| db.open_tree(TREE))?;
    let mut found = Vec::new();
    let mut damage = Vec::new();
    let mut damaged_keys = Vec::new();
    let mut entries = records.iter();
    while let Some(entry) = guard(|| entries.next().transpose())? {
        match read_entry(&entry.0, &entry.1) {
            Ok(record) => found.push(record),
            Err(why) => {
                damage.push(format!("a stored record was dropped: {why}"));
                damaged_keys.push(entry.0);
            }
        }
    }
    for key in damaged_keys {
        guard(|| records.remove(key))?;
    }
    let new = !db.was_recovered();
    let written = guard(|| db.get(COUNT))?;
    let written = written.and_then(|count| Some(u64::from_be_bytes(count[..].try_into().ok()?)));
    let there = (found.len() + damage.len()) as u64;
    match written {
        Some(written) if written > there => {
            damage.push(format!("{} of {written} stored records are gone", written - there));
        }
        None if !new => damage.push("the stored records are gone".to_owned()),
        _ => {}
    }
    let count = Arc::new(AtomicU64::new(found.len() as u64));
    let store = Store { db, records, count, path: path.to_owned() };
    if new {
        store.flush()?;
    }
    Ok(Opened { store, records: found, damage, new })
}

fn read_entry(key: &[u8], entry: &[u8]) -> Result<(NodeKey, Vec<u8>), String> {
    let key = NodeKey::try_from(key).map_err(|error| error.to_string())?;
    match entry.split_first() {
        Some((&SCHEMA, rest)) if rest.len() >= CHECKSUM => {
            let (sum, record) = rest.split_at(CHECKSUM);
            if sum == checksum(&key, record) {
                Ok((key, record.to_vec()))
            } else {
                Err("checksum".to_owned())
            }
        }
        Some((&SCHEMA, _)) | None => Err("truncated".to_owned()),
        Some((version, _)) => Err(format!("schema version {version} is not known here")),
    }
}

fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    for n in 1..=1_000 {
        let aside = path.with_extension(format!("damaged-{n}"));
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(std::io::Error::other("a thousand damaged stores lie here already; remove some"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (a, b) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let opened = Store::open(&path).unwrap();
        assert!(opened.records.is_empty() && opened.new);
        opened.store.put(&a, b"one").unwrap();
        opened.store.put(&b, b"two").unwrap();
        opened.store.remove(&a).unwrap();
        opened.store.flush().unwrap();
        drop(opened);
        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.records, vec![(b, b"two".to_vec())]);
        assert!(opened.damage.is_empty() && !opened.new);
    }

    #[test]
    fn a_damaged_store_is_set_aside_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("conf"), b"not a store").unwrap();
        fs::write(path.join("db"), vec![0xff; 4096]).unwrap();
        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.damage.len(), 1, "{:?}", opened.damage);
        assert!(opened.damage[0].contains("damaged"), "{:?}", opened.damage);
        assert!(dir.path().join("db.damaged-1").exists());
        opened.store.put(&NodeKey([1; 32]), b"x").unwrap();
    }

    #[test]
    fn records_that_vanish_are_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let opened = Store::open(&path).unwrap();
        assert!(opened.damage.is_empty());
        for n in 0..100 {
            opened.store.put(&NodeKey([n; 32]), &[n; 500]).unwrap();
        }
        opened.store.remove(&NodeKey([0; 32])).unwrap();
        opened.store.flush().unwrap();
        drop(opened);
        let opened = Store::open(&path).unwrap();
        assert!(opened.records.len() == 99 && opened.damage.is_empty(), "{:?}", opened.damage);
        // As sled does when a part of its log does not check out.
        opened.store.records.clear().unwrap();
        opened.store.db.flush().unwrap();
        drop(opened);
        assert_eq!(Store::open(&path).unwrap().damage, ["99 of 99 stored records are gone"]);
    }

    #[test]
    fn an_altered_entry_is_dropped_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (a, b) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let opened = Store::open(&path).unwrap();
        opened.store.put(&a, b"one").unwrap();
        opened.store.put(&b, b"two").unwrap();
        let mut altered = opened.store.records.get(a.as_bytes()).unwrap().unwrap().to_vec();
        *altered.last_mut().unwrap() ^= 1;
        opened.store.records.insert(a.as_bytes(), altered).unwrap();
        opened.store.flush().unwrap();
        drop(opened);
        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.records, vec![(b, b"two".to_vec())]);
        assert_eq!(opened.damage.len(), 1);
    }
}
