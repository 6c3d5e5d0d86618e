//! Which configuration this host runs: that of the files, or the one from before a trial that nobody confirmed.
//!
//! Responsible for reading what the rule in `meshd_core::trial` needs. Changes nothing. The daemon's start, the leak
//! guard of the boot and `meshd cleanup` call it.

use std::{fs, io, path::Path, time::Duration};

use meshd_core::trial::{Choice, Clock, Files, choose};
use nix::time::{ClockId, clock_gettime};

use crate::{
    config::{Config, ConfigErrors, Origin, Sources},
    state::trial::{Ended, SavedTrial},
};

/// What runs, and what is to be noted of a trial.
#[derive(Debug)]
pub struct Chosen {
    /// What runs.
    pub config: Config,
    /// From what it was read.
    pub origin: Origin,
    /// A trial that goes on, or one that has ended and keeps the files out of force.
    pub trial: Option<SavedTrial>,
    /// What is kept is to be brought in line with `trial`.
    pub changed: bool,
    /// What is kept of a trial is of no use, and why; what to do.
    pub damage: Option<String>,
}

/// Which start of the host this is, and the time since then, sleep included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClock {
    boot: String,
    now: Duration,
}

impl HostClock {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        // Where the kernel tells neither, no trial is believed to go on.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from);
        Self { boot: boot.trim().to_owned(), now }
    }

    /// For the rule.
    #[must_use]
    pub fn clock(&self) -> Clock<'_> {
        Clock { boot: &self.boot, now: self.now }
    }

    /// A trial that begins now and lasts so long.
    ///
    /// # Errors
    /// Where the kernel does not tell what a trial needs.
    pub fn begin(&self, lasts: Duration, former: Origin) -> io::Result<SavedTrial> {
        match self.now.checked_add(lasts) {
            Some(ends) if !self.boot.is_empty() => Ok(SavedTrial::new(&self.boot, ends, former)),
            _ => Err(io::Error::other("the kernel tells neither boot id nor time")),
        }
    }
}

/// What runs here now.
///
/// # Errors
/// What is wrong with the files, where nothing else can run.
pub fn chosen(sources: &Sources) -> Result<Chosen, ConfigErrors> {
    chosen_at(sources, &HostClock::now())
}

fn chosen_at(sources: &Sources, clock: &HostClock) -> Result<Chosen, ConfigErrors> {
    let (texts, config) = sources.read();
    let state_dir = match &config {
        Ok(config) => config.node.state_dir.clone(),
        Err(_) => texts.state_dir(),
    };
    let (kept, former, damage) = kept(&state_dir);
    let fingerprint = texts.fingerprint();
    let rejected = kept.as_ref().and_then(|kept| kept.ended.as_ref()).map(|e| &e.rejected);
    let files = match (&config, &former) {
        (Err(_), _) => Files::Broken,
        (Ok(config), Some(former)) if config == former => Files::Former,
        (Ok(_), _) if rejected == Some(&fingerprint) => Files::Rejected,
        (Ok(_), _) => Files::Other,
    };
    let choice = choose(kept.as_ref().map(SavedTrial::kept).as_ref(), &clock.clock(), files);
    // Without a former one there is nothing to choose.
    let (Some(mut kept), Some(former)) = (kept, former) else {
        let origin = Origin::of(texts);
        return Ok(Chosen { config: config?, origin, trial: None, changed: false, damage });
    };
    Ok(match choice {
        Choice::Files => Chosen {
            config: config?,
            origin: Origin::of(texts),
            trial: None,
            changed: true,
            damage,
        },
        Choice::Trial(_) => Chosen {
            config: config?,
            origin: Origin::of(texts),
            trial: Some(kept),
            changed: false,
            damage,
        },
        Choice::Former => {
            let origin = kept.former.clone();
            Chosen { config: former, origin, trial: Some(kept), changed: false, damage }
        }
        Choice::Ended(why) => {
            let detail = config.err().map(|errors| errors.to_string()).unwrap_or_default();
            let origin = kept.former.clone();
            kept.ended = Some(Ended::new(why, &detail, fingerprint));
            Chosen { config: former, origin, trial: Some(kept), changed: true, damage }
        }
    })
}

/// The trial that is kept, what ran before it, and why it is of no use.
fn kept(state_dir: &Path) -> (Option<SavedTrial>, Option<Config>, Option<String>) {
    let kept = match SavedTrial::read(state_dir) {
        Ok(None) => return (None, None, None),
        Ok(Some(kept)) => kept,
        Err(error) => {
            let why = format!("the configuration that ran before the trial is lost; {error}");
            return (None, None, Some(why));
        }
    };
    match kept.former.config() {
        Ok(former) => (Some(kept), Some(former), None),
        Err(errors) => {
            let why = format!("the configuration that ran before the trial cannot run; {errors}");
            (None, None, Some(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Texts;

    /// A host with files, and a trial of them that began after `former` ran.
    struct World {
        home: tempfile::TempDir,
        sources: Sources,
    }

    impl World {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let sources = Sources::of(home.path().join("meshd.toml"));
            Self { home, sources }
        }

        fn write(&self, more: &str) {
            let text = format!("[node]\nstate_dir = {:?}\n{more}", self.home.path());
            fs::write(&self.sources.file, text).unwrap();
        }

        fn try_for(&self, seconds: u64) {
            let (texts, config) = self.sources.read();
            config.unwrap();
            let trial = at(100).begin(Duration::from_secs(seconds), Origin::of(texts)).unwrap();
            trial.write(self.home.path()).unwrap();
        }

        /// Port, why it ended, and whether that is news.
        fn port(&self, clock: &HostClock) -> (u16, Option<&'static str>, bool) {
            let chosen = chosen_at(&self.sources, clock).unwrap();
            assert_eq!(chosen.origin.config().unwrap(), chosen.config);
            let ended = chosen.trial.as_ref().and_then(|trial| trial.ended.as_ref());
            let told =
                (chosen.config.wireguard.port, ended.map(|e| e.why().as_str()), chosen.changed);
            // What the daemon does at its start.
            if chosen.changed {
                match &chosen.trial {
                    Some(trial) => trial.write(self.home.path()).unwrap(),
                    None => SavedTrial::forget(self.home.path()).unwrap(),
                }
            }
            told
        }
    }

    fn at(seconds: u64) -> HostClock {
        HostClock { boot: "this".to_owned(), now: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_trial_runs_the_files_and_then_what_ran_before() {
        let world = World::new();
        world.write("[wireguard]\nport = 1000\n");
        assert_eq!(world.port(&at(1)), (1000, None, false));
        world.try_for(60);
        world.write("[wireguard]\nport = 2000\n");
        assert_eq!(world.port(&at(159)), (2000, None, false));
        assert_eq!(world.port(&at(160)), (1000, Some("not_confirmed"), true));
        // From then on nothing changes by itself, nor by a start of the host.
        assert_eq!(world.port(&at(1_000)), (1000, Some("not_confirmed"), false));
        let rebooted = HostClock { boot: "next".to_owned(), now: Duration::from_secs(1) };
        assert_eq!(world.port(&rebooted), (1000, Some("not_confirmed"), false));
        // Half a correction is none.
        world.write("[wireguard]\nport = ");
        assert_eq!(world.port(&rebooted), (1000, Some("not_confirmed"), false));
        world.write("[wireguard]\nport = 3000\n");
        assert_eq!(world.port(&rebooted), (3000, None, true));
        assert_eq!(world.port(&rebooted), (3000, None, false));
    }

    #[test]
    fn a_start_of_the_host_and_a_broken_file_end_a_trial() {
        for (text, boot, why) in [
            ("[wireguard]\nport = 2000\n", "next", "rebooted"),
            ("[wireguard]\nport = 70000\n", "this", "config_refused"),
            ("[[[\n", "this", "config_refused"),
        ] {
            let world = World::new();
            world.write("[wireguard]\nport = 1000\n");
            world.try_for(60);
            world.write(text);
            let clock = HostClock { boot: boot.to_owned(), now: Duration::from_secs(101) };
            assert_eq!(world.port(&clock), (1000, Some(why), true), "{text}");
        }
    }

    #[test]
    fn the_former_files_end_a_trial_without_a_word() {
        let world = World::new();
        world.write("[wireguard]\nport = 1000\n");
        world.try_for(60);
        // The same, otherwise written.
        world.write("[wireguard]\n# As ever.\nport = 1000\n");
        assert_eq!(world.port(&at(1_000)), (1000, None, true));
    }

    #[test]
    fn a_damaged_trial_leaves_the_files() {
        let world = World::new();
        world.write("[wireguard]\nport = 2000\n");
        fs::write(world.home.path().join("trial"), "{").unwrap();
        let chosen = chosen_at(&world.sources, &at(1)).unwrap();
        assert_eq!((chosen.config.wireguard.port, chosen.trial), (2000, None));
        assert!(chosen.damage.unwrap().contains("is lost"));
    }

    #[test]
    fn without_a_trial_a_broken_file_is_an_error() {
        let world = World::new();
        world.write("[wireguard]\nport = 70000\n");
        assert!(chosen_at(&world.sources, &at(1)).is_err());
        assert_ne!(Texts::default(), world.sources.read().0);
    }

    #[test]
    fn the_kernel_tells_what_a_trial_needs() {
        let (before, now) = (HostClock::now(), HostClock::now());
        assert!(!now.boot.is_empty() && before.boot == now.boot && before.now <= now.now);
        assert!(now.now < Duration::MAX);
    }
}
