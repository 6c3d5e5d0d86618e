//! Tells that files may have changed which other programs write: within milliseconds, by inotify.
//!
//! A place is a directory and which of its files count. It need not exist, nor need the directories above it: each
//! directory on the way is watched for the next one, so that what is made, removed, renamed or replaced anywhere on the way
//! is seen. Says only that something happened. What inotify cannot see (another file system mounted on top, a symbolic
//! link's target elsewhere) is found by whoever looks now and then; what is watched is looked over as often.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{io::unix::AsyncFd, time::Instant};

/// Rounds of watching until nothing has appeared meanwhile.
const ROUNDS: usize = 8;
/// Messages taken at once at most: a flood must not hold the loop up.
const BURST: usize = 256;
/// What is watched is looked over this often.
const REARM: Duration = Duration::from_secs(30);
/// What comes within this time of the first message is one report.
const COALESCE: Duration = Duration::from_millis(50);

/// Which names in a directory count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Names {
    /// This one.
    One(OsString),
    /// Those with one of these extensions.
    Extensions(&'static [&'static str]),
}

impl Names {
    fn holds(&self, name: &OsStr) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Extensions(all) => {
                let extension = Path::new(name).extension().and_then(OsStr::to_str);
                extension.is_some_and(|extension| all.contains(&extension))
            }
        }
    }
}

/// A directory, and what in it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute.
    pub directory: PathBuf,
    /// Files of it.
    pub names: Names,
}

impl Place {
    /// One file; `None` if it is no file's path.
    #[must_use]
    pub fn file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_owned();
        Some(Self { directory: path.parent()?.to_owned(), names: Names::One(name) })
    }
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What is watched for in one directory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Watched {
    /// Files whose content counts.
    files: BTreeSet<Names>,
    /// The next directories on the way to a place.
    ways: BTreeSet<OsString>,
}

/// A watch over places.
pub struct FileWatch {
    inotify: AsyncFd<Descriptor>,
    places: Vec<Place>,
    armed: BTreeMap<WatchDescriptor, Watched>,
    /// When what came is to be reported.
    until: Option<Instant>,
    rearm_at: Instant,
}

impl FileWatch {
    /// Watches. Must be called inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances for root (`fs.inotify.max_user_instances`).
    pub fn new(places: Vec<Place>) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "what is to be used instead is unsafe, which is forbidden here; the descriptor \
                                      stays the same and open as long as its owner, which is inside"
        )]
        let inotify = AsyncFd::new(Descriptor(inotify))?;
        let mut watch =
            Self { inotify, places, armed: BTreeMap::new(), until: None, rearm_at: Instant::now() };
        watch.rearm();
        Ok(watch)
    }

    /// Waits until something may have changed. Cancel safe; called anew now and then, as in a loop with a tick.
    pub async fn changed(&mut self) {
        if self.rearm_at <= Instant::now() {
            self.rearm();
        }
        while self.until.is_none() {
            let Ok(mut ready) = self.inotify.readable().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            if take(&self.inotify.get_ref().0, &self.armed) {
                self.until = Some(Instant::now() + COALESCE);
            } else {
                ready.clear_ready();
            }
        }
        // Kept over a cancellation: in a busy loop a wait that begins anew would never end.
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
        }
        self.until = None;
        // What came meanwhile is part of this report.
        take(&self.inotify.get_ref().0, &self.armed);
        self.rearm();
    }

    /// Watches what is there now.
    fn rearm(&mut self) {
        self.rearm_at = Instant::now() + REARM;
        for _ in 0..ROUNDS {
            let wanted = wanted(&self.places);
            let mut armed: BTreeMap<WatchDescriptor, Watched> = BTreeMap::new();
            for (directory, watched) in wanted {
                // Gone again, or not readable: the directory above tells when that changes, or a slow look does.
                let Ok(descriptor) =
                    self.inotify.get_ref().0.add_watch(&directory, watched.flags())
                else {
                    continue;
                };
                // One directory may have two paths.
                let held = armed.entry(descriptor).or_default();
                held.files.extend(watched.files);
                held.ways.extend(watched.ways);
            }
            for descriptor in self.armed.keys().filter(|held| !armed.contains_key(held)) {
                // It went with its directory, most often.
                let _ = self.inotify.get_ref().0.rm_watch(*descriptor);
            }
            let settled = self.armed == armed;
            self.armed = armed;
            // What appeared after its directory was looked for, and before that was watched, is seen in the next round.
            if settled {
                return;
            }
        }
    }
}

impl Watched {
    fn flags(&self) -> AddWatchFlags {
        let mut flags = AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM;
        if !self.files.is_empty() {
            flags |=
                AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        }
        flags
    }
}

/// Takes what is there, and says whether any of it counts.
fn take(inotify: &Inotify, armed: &BTreeMap<WatchDescriptor, Watched>) -> bool {
    let mut changed = false;
    for _ in 0..BURST {
        match inotify.read_events() {
            Ok(events) => changed |= events.iter().any(|event| counts(armed, event)),
            Err(Errno::EINTR) => {}
            Err(_) => return changed,
        }
    }
    // There is more, which may count.
    true
}

fn counts(armed: &BTreeMap<WatchDescriptor, Watched>, event: &InotifyEvent) -> bool {
    if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        return true;
    }
    let Some(watched) = armed.get(&event.wd) else { return false };
    match &event.name {
        // The directory itself is gone.
        None => true,
        Some(name) => {
            watched.ways.contains(name) || watched.files.iter().any(|names| names.holds(name))
        }
    }
}

/// The directories that there are on the way to each place, with what counts in each.
fn wanted(places: &[Place]) -> BTreeMap<PathBuf, Watched> {
    let mut wanted: BTreeMap<PathBuf, Watched> = BTreeMap::new();
    for place in places {
        let mut here = PathBuf::from("/");
        for next in place.directory.components().skip(1) {
            let next = next.as_os_str();
            wanted.entry(here.clone()).or_default().ways.insert(next.to_owned());
            here.push(next);
            if !here.is_dir() {
                break;
            }
        }
        if here == place.directory && here.is_dir() {
            wanted.entry(here).or_default().files.insert(place.names.clone());
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    /// Far longer than it takes.
    const SOON: Duration = Duration::from_secs(5);
    /// As long as nothing is to be seen.
    const QUIET: Duration = Duration::from_millis(100);

    struct Tree {
        root: tempfile::TempDir,
        watch: FileWatch,
    }

    impl Tree {
        /// Watches `cni/net.d/*.conf` and `run/subnet.env` below a new directory that has neither.
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let names = Names::Extensions(&["conf", "conflist"]);
            let places = vec![
                Place { directory: root.path().join("cni/net.d"), names },
                Place::file(&root.path().join("run/subnet.env")).unwrap(),
            ];
            let watch = FileWatch::new(places).unwrap();
            Self { root, watch }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        async fn told(&mut self, what: &str) {
            timeout(SOON, self.watch.changed())
                .await
                .unwrap_or_else(|_| panic!("not told: {what}"));
            // Each thing that is done may be several messages.
            while timeout(QUIET, self.watch.changed()).await.is_ok() {}
        }

        async fn silent(&mut self, what: &str) {
            assert!(timeout(QUIET, self.watch.changed()).await.is_err(), "told: {what}");
        }
    }

    #[tokio::test]
    async fn directories_that_come_later_are_followed() {
        let mut tree = Tree::new();
        tree.silent("nothing happened").await;
        fs::create_dir(tree.at("other")).unwrap();
        fs::write(tree.at("other/10.conf"), "x").unwrap();
        tree.silent("another directory").await;
        fs::create_dir_all(tree.at("cni/net.d")).unwrap();
        tree.told("both directories").await;
        fs::write(tree.at("cni/net.d/10.conf"), "x").unwrap();
        tree.told("a file in them").await;
        fs::write(tree.at("cni/net.d/notes.txt"), "x").unwrap();
        tree.silent("a file that does not count").await;
        fs::create_dir(tree.at("run")).unwrap();
        tree.told("the other place's directory").await;
        fs::write(tree.at("run/other.env"), "x").unwrap();
        tree.silent("its neighbour").await;
        fs::write(tree.at("run/subnet.env"), "x").unwrap();
        tree.told("the file").await;
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_seen() {
        let mut tree = Tree::new();
        fs::create_dir_all(tree.at("cni/net.d")).unwrap();
        tree.told("the directories").await;
        let file = tree.at("cni/net.d/10.conf");
        fs::write(&file, "one").unwrap();
        tree.told("written").await;
        let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, b" more").unwrap();
        tree.told("a part written, still open").await;
        drop(open);
        tree.told("closed").await;
        let temporary = tree.at("cni/net.d/.10.tmp");
        fs::write(&temporary, "two").unwrap();
        tree.silent("a temporary file").await;
        fs::rename(&temporary, &file).unwrap();
        tree.told("renamed over").await;
        fs::rename(&file, tree.at("cni/net.d/10.off")).unwrap();
        tree.told("renamed away").await;
        fs::write(&file, "three").unwrap();
        tree.told("written again").await;
        fs::remove_file(&file).unwrap();
        tree.told("removed").await;
    }

    #[tokio::test]
    async fn a_directory_that_is_moved_away_and_made_anew_is_followed() {
        let mut tree = Tree::new();
        fs::create_dir_all(tree.at("cni/net.d")).unwrap();
        tree.told("the directories").await;
        fs::rename(tree.at("cni"), tree.at("cni.old")).unwrap();
        tree.told("moved away").await;
        fs::write(tree.at("cni.old/net.d/10.conf"), "x").unwrap();
        tree.silent("what is not at the place any more").await;
        fs::create_dir_all(tree.at("cni/net.d")).unwrap();
        tree.told("made anew").await;
        fs::write(tree.at("cni/net.d/10.conf"), "x").unwrap();
        tree.told("a file in it").await;
        fs::remove_dir_all(tree.at("cni")).unwrap();
        tree.told("removed").await;
        std::os::unix::fs::symlink(tree.at("cni.old"), tree.at("cni")).unwrap();
        tree.told("a link to another").await;
        fs::remove_file(tree.at("cni/net.d/10.conf")).unwrap();
        tree.told("a file behind the link").await;
    }
}
