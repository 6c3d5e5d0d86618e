//! The records of the mesh on disk: a cache that gossip can rebuild.
//!
//! Every entry carries the schema's version and a checksum; what is read goes through the same
//! verification as what comes from the network. A store that cannot be opened or read is set aside,
//! never repaired in place, and the node syncs anew.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;
use sha2::{Digest, Sha256};

use super::durable;

mod reached;

/// First byte of every entry.
const SCHEMA: u8 = 1;
const CHECKSUM: usize = 8;
/// sled's default is a gigabyte. What is stored is read once, at the start.
const CACHE: u64 = 1 << 20;
const TREE: &str = "records";
/// How many records there were at the last flush: sled drops damaged parts of its log without a word.
const COUNT: &str = "count";

/// Records, by identity key. Without a disk that can be written it keeps nothing, and says so at every flush: that
/// is no reason for a host to be without its mesh.
pub struct Store {
    open: Result<Handle, String>,
    marker: PathBuf,
}

#[derive(Clone)]
struct Handle {
    db: sled::Db,
    records: sled::Tree,
    reached: sled::Tree,
    count: Arc<AtomicU64>,
    path: PathBuf,
    /// There was none before.
    new: bool,
}

/// Writes the store's buffers.
pub struct Flusher {
    open: Result<Handle, String>,
    marker: PathBuf,
}

impl Flusher {
    /// See [`Store::flush`].
    pub fn flush(&self) -> Result<(), String> {
        let result = self.open.as_ref().map_err(Clone::clone).and_then(Handle::flush);
        if result.is_err() {
            unmark(&self.marker);
        }
        result
    }

    /// Also makes it survive a power loss: sled's own flush is no fsync.
    pub fn sync(&self) -> Result<(), String> {
        self.flush()?;
        let open = self.open.as_ref().map_err(Clone::clone)?;
        open.sync().map_err(|error| error.to_string())
    }

    /// [`Flusher::sync`], and a note that every record there is to know is in the store.
    pub fn sync_whole(&self) -> Result<(), String> {
        self.sync()?;
        if self.marker.exists() {
            return Ok(());
        }
        durable::write(&self.marker, b"").map_err(|error| error.to_string())
    }
}

impl Handle {
    fn flush(&self) -> Result<(), String> {
        let count = self.count.load(Ordering::Relaxed).to_be_bytes();
        guard(|| self.db.insert(COUNT, &count).and_then(|_| self.db.flush()))
            .map(|_| ())
            .map_err(|error| error.why)
    }

    fn sync(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::File::open(entry.path())?.sync_all()?;
            }
        }
        fs::File::open(&self.path)?.sync_all()
    }
}

/// What opening found.
pub struct Opened {
    /// The store, ready for use.
    pub store: Store,
    /// Entries as they were put, still to be verified.
    pub records: Vec<(NodeKey, Vec<u8>)>,
    /// Where members of those records were reached, the last path first.
    pub reached: Vec<(NodeKey, Vec<IpAddr>)>,
    /// What was damaged or is missing, for a person.
    pub damage: Vec<String>,
    /// Nothing is damaged, and all that was known at the last [`Flusher::sync_whole`] or later is there.
    pub whole: bool,
}

impl Store {
    /// Opens the store below `path`, or sets a damaged one aside and starts an empty one.
    #[must_use]
    pub fn open(path: &Path) -> Opened {
        let marker = path.with_extension("whole");
        let marked = marker.exists();
        let (open, records, reached, mut damage) = match open_and_read(path).or_else(|failure| {
            if failure.of_the_disk {
                return Err(failure.why);
            }
            let aside = set_aside(path).map_err(|error| error.to_string())?;
            let (handle, records, reached, mut damage) = open_and_read(path).map_err(|f| f.why)?;
            damage.push(format!(
                "the record store was damaged ({}) and is now {}; records come back from the other \
                 members",
                failure.why,
                aside.display()
            ));
            Ok((handle, records, reached, damage))
        }) {
            Ok((handle, records, reached, damage)) => (Ok(handle), records, reached, damage),
            Err(why) => {
                let why = format!("{}: {why}", path.display());
                (
                    Err(why.clone()),
                    Vec::new(),
                    Vec::new(),
                    vec![format!("the record store cannot be used ({why})")],
                )
            }
        };
        if marked && open.as_ref().is_ok_and(|handle| handle.new) && damage.is_empty() {
            damage
                .push("the record store was missing; records come back from the others".to_owned());
        }
        let whole = marked && damage.is_empty();
        if !whole {
            unmark(&marker);
        }
        Opened { store: Self { open, marker }, records, reached, damage, whole }
    }

    /// Lets go of the files, so that the store can be opened anew: after a failed write this one never
    /// writes again.
    pub fn close(&mut self) {
        self.open = Err("it is being opened again".to_owned());
    }

    /// Puts a record's encoded bytes. Nothing is on disk before [`Store::flush`].
    pub fn put(&self, key: &NodeKey, record: &[u8]) -> Result<(), String> {
        let Ok(open) = &self.open else { return Ok(()) };
        let entry = make_entry(key, record);
        let before = guard(|| open.records.insert(key.as_bytes(), entry)).map_err(|f| f.why)?;
        if before.is_none() {
            open.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes a record, and where its member was reached.
    pub fn remove(&self, key: &NodeKey) -> Result<(), String> {
        let Ok(open) = &self.open else { return Ok(()) };
        if guard(|| open.records.remove(key.as_bytes())).map_err(|f| f.why)?.is_some() {
            open.count.fetch_sub(1, Ordering::Relaxed);
        }
        guard(|| open.reached.remove(key.as_bytes())).map(drop).map_err(|f| f.why)
    }

    /// Removes everything: after a leave.
    pub fn clear(&self) -> Result<(), String> {
        let open = self.open.as_ref().map_err(Clone::clone)?;
        guard(|| open.records.clear().and_then(|()| open.reached.clear()))
            .map_err(|failure| failure.why)?;
        durable::remove(&self.marker).map_err(|error| error.to_string())?;
        open.count.store(0, Ordering::Relaxed);
        open.flush()
    }

    /// Removes the files below `path`: for a store that cannot be emptied.
    pub fn destroy(&mut self, path: &Path) -> Result<(), String> {
        self.close();
        unmark(&self.marker);
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Hands to the system what is in memory: survives a crash of the daemon, not of the host.
    pub fn flush(&self) -> Result<(), String> {
        self.flusher().flush()
    }

    /// A handle for flushing elsewhere: it blocks for as long as the disk takes.
    #[must_use]
    pub fn flusher(&self) -> Flusher {
        Flusher { open: self.open.clone(), marker: self.marker.clone() }
    }
}

/// Takes back that the store has every record: some were not written, or are gone. That works on a full disk too.
fn unmark(marker: &Path) {
    match fs::remove_file(marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(marker = %marker.display(), %error, "cannot be removed");
        }
        _ => {}
    }
}

fn checksum(key: &NodeKey, record: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new().chain_update(key.as_bytes()).chain_update(record).finalize();
    let mut short = [0; CHECKSUM];
    short.copy_from_slice(&digest[..CHECKSUM]);
    short
}

/// Why the store's library failed.
struct Failure {
    why: String,
    /// The disk or the rights on it are to blame, not what is in the files.
    of_the_disk: bool,
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        use nix::errno::Errno;
        const DISK: [Errno; 9] = [
            Errno::ENOSPC,
            Errno::EDQUOT,
            Errno::EROFS,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EIO,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOMEM,
        ];
        let of_the_disk = match &error {
            sled::Error::Io(io) => {
                io.raw_os_error().is_some_and(|code| DISK.contains(&Errno::from_raw(code)))
            }
            _ => false,
        };
        let why = error.to_string();
        Self { of_the_disk: of_the_disk || why.contains(LOCKED), why }
    }
}

/// sled panics on some kinds of damage.
fn guard<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => {
            Err(Failure { why: "the store's library gave up".to_owned(), of_the_disk: false })
        }
    }
}

/// What sled says while another holds the files: itself of a moment ago, or a child that was forked meanwhile.
const LOCKED: &str = "could not acquire lock";
/// How long that is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_LOOK: Duration = Duration::from_millis(20);

fn open_database(config: &sled::Config) -> Result<sled::Db, Failure> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match guard(|| config.open()) {
            Err(failure) if failure.why.contains(LOCKED) && Instant::now() < until => {
                std::thread::sleep(LOCK_LOOK);
            }
            result => return result,
        }
    }
}

type Found = (Handle, Vec<(NodeKey, Vec<u8>)>, Vec<(NodeKey, Vec<IpAddr>)>, Vec<String>);

fn open_and_read(path: &Path) -> Result<Found, Failure> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None);
    let db = open_database(&config)?;
    let records = guard(|| db.open_tree(TREE))?;
    let reached = guard(|| db.open_tree(reached::TREE))?;
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
    let handle = Handle { db, records, reached, count, path: path.to_owned(), new };
    let members: BTreeSet<NodeKey> = found.iter().map(|(key, _)| *key).collect();
    let reached = reached::read(&handle, &members)?;
    if new {
        handle.flush().map_err(|why| Failure { why, of_the_disk: true })?;
    }
    Ok((handle, found, reached, damage))
}

pub(super) fn make_entry(key: &NodeKey, record: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(1 + CHECKSUM + record.len());
    entry.push(SCHEMA);
    entry.extend_from_slice(&checksum(key, record));
    entry.extend_from_slice(record);
    entry
}

pub(super) fn read_entry(key: &[u8], entry: &[u8]) -> Result<(NodeKey, Vec<u8>), String> {
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
mod tests;
