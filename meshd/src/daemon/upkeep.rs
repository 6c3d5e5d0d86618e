//! What the loop does now and then: looking at the host, looking up seeds, flushing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Daemon, Done, LOOK_EVERY, clock, own::Own, resolve};
use crate::{config::Config, host::workloads::Workloads};

/// What the records are to survive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Flush {
    /// A crash of the daemon.
    Crash,
    /// A crash of the host.
    Power,
}

/// While a disk takes long.
const FLUSH_AGAIN: Duration = Duration::from_secs(1);

impl Daemon {
    /// The disk may take its time: not in the loop, and one at a time.
    pub(super) fn flush_store(&mut self, how: Flush) {
        let Some(running) = &mut self.running else { return };
        if self.flushing {
            let due = match how {
                Flush::Crash => &mut self.flush_due,
                Flush::Power => &mut self.sync_due,
            };
            due.get_or_insert(Instant::now() + FLUSH_AGAIN);
            return;
        }
        if running.flush_error.is_some() {
            running.reopen_store(&self.state.store_path());
        }
        self.flushing = true;
        let (flusher, whole) = (running.store.flusher(), running.knows_all(Instant::now()));
        let done = self.done.clone();
        tokio::task::spawn_blocking(move || {
            let result = match how {
                Flush::Crash => flusher.flush(),
                Flush::Power if whole => flusher.sync_whole(),
                Flush::Power => flusher.sync(),
            };
            // The store may be opened anew as soon as the loop hears of it.
            drop(flusher);
            if let Err(why) = &result {
                tracing::error!(%why, "the record store was not flushed");
            }
            // The loop only goes away with the process.
            let _ = done.blocking_send(Done::Flushed(result));
        });
    }

    /// Looks at this host again and tells the mesh what changed.
    pub(super) fn look_at_host(&mut self) {
        self.look_due = Some(Instant::now() + LOOK_EVERY);
        self.settle_doubts();
        match Own::look(&self.config, &mut self.found, self.own.told(), Instant::now()) {
            Ok(own) if own == self.own => {}
            Ok(own) => {
                self.own = own;
                self.announce();
            }
            Err(error) => tracing::warn!(%error, "cannot look at this host"),
        }
    }

    /// Pods came or went: the mesh is told in this turn of the loop.
    pub(super) fn see_workloads(&mut self, workloads: Arc<Workloads>) {
        self.own.workloads = workloads;
        self.announce();
    }

    /// A packet left into the mesh with a foreign source: from now on such are translated.
    pub(super) fn see_foreign_source(&mut self) {
        tracing::info!(
            "a packet with a source that members do not take: source NAT is on from now"
        );
        self.own.sources.seen = true;
        self.announce();
    }

    pub(super) fn announce(&mut self) {
        let port = self.gossip_port();
        if let Some(running) = &mut self.running {
            running.announce(&self.own, &self.config, port);
        }
    }

    pub(super) fn gossip_port(&self) -> u16 {
        self.transport.local_port().unwrap_or_else(|| self.config.gossip.listen.port())
    }

    /// Looks up the seeds' names in a task, and again after a while: names move.
    pub(super) fn resolve_seeds(&mut self) {
        const AGAIN: Duration = Duration::from_secs(30);
        self.resolve_due = None;
        let Some(running) = &mut self.running else { return };
        let mut seeds: Vec<String> =
            self.config.gossip.seeds.iter().map(ToString::to_string).collect();
        seeds.extend(running.seeds.iter().cloned());
        seeds.dedup();
        if seeds.is_empty() {
            running.node.set_seeds(Vec::new(), clock::now());
            return;
        }
        self.resolve_due = Some(Instant::now() + AGAIN);
        let done = self.done.clone();
        tokio::spawn(async move {
            // The loop only goes away with the process.
            let _ = done.send(Done::Resolved(resolve::resolve(&seeds).await)).await;
        });
    }

    /// Takes over what may change at run time and leaves the rest as it is.
    pub(super) fn apply_live(&mut self, new: Config) {
        self.config.apply_live(new);
        if let Some(running) = &mut self.running {
            running.node.set_forget_after(self.config.network.forget_after);
        }
        match Own::look(&self.config, &mut self.found, self.own.told(), Instant::now()) {
            Ok(own) => self.own = own,
            Err(error) => tracing::warn!(%error, "cannot look at this host"),
        }
        self.announce();
        self.resolve_seeds();
    }
}
