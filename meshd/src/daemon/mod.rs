//! The daemon's loop: one task that owns all state and never blocks.
//!
//! Responsible for gluing core, transport, data plane, store and control API together. Not for
//! decisions: those are the core's. Called by `main`.
//!
//! | comes from | queue | goes to |
//! |---|---|---|
//! | transport | bounded, slows the peers | `Running`'s node |
//! | data plane thread | 64 reports | health, pokes, replanning |
//! | control server, metrics | 64 calls | `requests` |
//! | netlink watch | coalesced | data plane, own facts |
//! | CNI's files (inotify) | coalesced | own facts |
//! | workloads' thread | the newest | own record |
//! | tasks of the loop (resolver, join) | 16 | `Done` |
//! | prober | 256, what is beyond is lost | path MTUs |
//! | signals, ticks | – | reload, stop, housekeeping |

mod bridge;
mod carrying;
mod clock;
mod counters;
mod deeds;
mod device_config;
mod devices;
mod document;
mod done;
mod enrolment;
mod events;
mod figures;
mod founding;
mod guard;
mod handed;
mod health;
mod identities;
mod inboxes;
mod issuing;
mod joining;
mod leaving;
mod measuring;
mod nodes;
mod own;
mod planning;
mod reached;
mod reloading;
mod renewing;
mod requests;
mod resolve;
mod rollover;
mod root_key;
mod running;
mod signers;
mod start;
mod status;
mod systemd;
mod tokens;
mod unattended;
mod unlike;
mod upkeep;
mod workloads;
mod zones;

use std::time::{Duration, Instant};

use anyhow::anyhow;
use meshd_core::{
    event::{Event as Happened, Problems},
    node::Unreachable,
};
use meshd_proto::control::HealthLine;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::{
    bridge::Bridge,
    counters::Counters,
    done::Done,
    events::EventLog,
    handed::Handed,
    identities::{Pending, Requester},
    inboxes::{Inboxes, changed, foreign, newest},
    joining::Joining,
    own::{Found, Own},
    renewing::Waiter,
    root_key::Unlocked,
    running::{Running, Wants},
    signers::Inviting,
    systemd::Notifier,
    upkeep::Flush,
};
pub(crate) use self::{planning::plan_config, start::backend};
use crate::{
    check,
    chosen::chosen,
    config::{Config, Origin, Sources, issuers::Loaded},
    control::ControlError,
    dataplane::DataplaneError,
    metrics::Metrics,
    privileges,
    probe::Heard,
    reconcile::{Reconciler, Report},
    state::{StateDir, trial::SavedTrial},
    transport::{Event, Target, Transport},
};

/// All state of the daemon.
struct Daemon {
    sources: Sources,
    config: Config,
    /// From what `config` was read.
    origin: Origin,
    /// A configuration on trial, or one that was and is not in force.
    trial: Option<SavedTrial>,
    /// The loop ends, and the program begins anew.
    restarting: bool,
    state: StateDir,
    transport: Transport,
    reconciler: Reconciler,
    running: Option<Running>,
    own: Own,
    found: Found,
    counters: Counters,
    events: EventLog,
    /// Which health lines were there of late.
    problems: Problems,
    /// When they are looked for next, and systemd hears of us.
    status_due: Instant,
    /// Health lines that come from the start.
    notices: Vec<HealthLine>,
    joining: Option<Joining>,
    /// Waits for a token that is one.
    token_wait: Option<tokio::task::AbortHandle>,
    stopping: bool,
    /// A member that was asked to become a signer.
    inviting: Option<Inviting>,
    unlocked: Option<Unlocked>,
    /// Counts signers that were asked to take a key under the newest root.
    moved: usize,
    /// When connections are checked again: certificates end.
    check_due: Instant,
    /// When it is looked after signers again.
    signers_due: Instant,
    /// Who waits for this node's next certificate.
    waiter: Option<Waiter>,
    /// The identity that lies beside the configuration, if any.
    handed: Handed,
    /// Why an unattended join did not succeed yet.
    join_error: Option<ControlError>,
    /// Why the configuration on disk is not the one in force.
    reload_error: Option<String>,
    /// The files are others than what was confirmed.
    unlike: Option<unlike::Watched>,
    /// Whose identity documents admit here, if this host is a signer.
    issuers: Loaded,
    bridge: Bridge,
    metrics: Option<Metrics>,
    done: mpsc::Sender<Done>,
    heard: mpsc::Sender<Heard>,
    /// When the kernel may be looked at again because somebody was heard.
    heard_due: Instant,
    notifier: Notifier,
    /// When names of seeds are looked up again.
    resolve_due: Option<Instant>,
    /// What strict leak protection keeps for the next boot.
    guard: guard::Keeper,
    /// When records are handed to the system, and when fsynced.
    flush_due: Option<Instant>,
    /// A flush is on its way.
    flushing: bool,
    sync_due: Option<Instant>,
    /// When interfaces and CNI files are looked at again.
    look_due: Option<Instant>,
}

/// Runs until SIGTERM. The data plane stays up.
///
/// # Errors
/// When the daemon cannot start.
pub fn run(sources: &Sources) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    let chosen = chosen(sources)?;
    check::privileges().map_err(|why| anyhow!("cannot start the daemon; {why}"))?;
    // Before there is another thread.
    privileges::give_up(&chosen.config)?;
    // One thread for the loop and its sockets: nothing is handed from one to another, with a wake-up each.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = reloading::Started::of(&chosen);
    let result = runtime.block_on(async {
        let (daemon, inboxes) = Daemon::start(sources.clone(), chosen)?;
        // A task and not the root itself, which tokio wakes through the poll once more each time.
        match tokio::spawn(daemon.run(inboxes)).await {
            Ok(after) => Ok(after),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    match result {
        Ok(After::Stop) => Ok(()),
        Ok(After::Restart) => Err(reloading::begin_anew()),
        Err(error) if started.reject(sources, &error) => {
            tracing::error!("{error}; the configuration that ran before is taken again");
            Err(reloading::begin_anew())
        }
        Err(error) => Err(error),
    }
}

/// What comes after the loop.
enum After {
    Stop,
    Restart,
}

/// For timers that nothing asked for.
const FAR: Duration = Duration::from_secs(3600);
const TICK: Duration = Duration::from_secs(1);
/// A status costs what all members cost. It is made at each tick, unless that would take more than one part of so many.
const STATUS_SHARE: u32 = 200;
/// A sixth of the time in which systemd wants to hear of us.
const STATUS_LATEST: Duration = Duration::from_secs(10);
/// What a crash of the daemon may cost of the record cache.
const FLUSH_DELAY: Duration = Duration::from_millis(100);
/// What a crash of the host may cost of it.
const SYNC_DELAY: Duration = Duration::from_secs(60);
/// Connections are checked so often, beside every change of what they rest on.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// For answers that are on their way when the program begins anew.
const ANSWERS: Duration = Duration::from_secs(3);
/// Interfaces change in bursts.
const LOOK_DELAY: Duration = Duration::from_millis(200);
/// CNI files and whatever netlink does not tell.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl Daemon {
    async fn run(mut self, mut inboxes: Inboxes) -> After {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pump();
            if self.restarting {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                event = self.transport.recv() => self.on_transport(event),
                report = inboxes.reports.recv() => match report {
                    Some(report) => self.on_report(report),
                    // Its thread is gone: nothing would be repaired any more. systemd starts us again.
                    None => {
                        tracing::error!("the data plane's thread is gone");
                        break;
                    }
                },
                Some(call) = inboxes.requests.recv() => self.on_request(call).await,
                Some(done) = inboxes.done.recv() => self.on_done(done),
                Some(heard) = inboxes.hears.recv() => self.on_heard(heard),
                () = inboxes.watch.changed() => {
                    self.reconciler.look();
                    self.look_soon();
                }
                Some(workloads) = newest(&mut inboxes.workloads) => self.see_workloads(workloads),
                () = foreign(&mut inboxes.foreign) => self.see_foreign_source(),
                () = changed(&mut inboxes.files) => self.look_soon(),
                () = sleep_until(wake.into()) => self.on_wake(),
                _ = tick.tick() => self.on_tick(),
                _ = inboxes.hangup.recv() => self.on_hangup(),
                _ = inboxes.terminate.recv() => break,
                _ = inboxes.interrupt.recv() => break,
            }
        }
        self.stopping = true;
        if self.restarting {
            // To systemd this is a reload: what it is told to be stopping it would end.
            self.notifier.reloading();
        } else {
            self.notifier.stopping();
        }
        self.events.emit(Happened::info("stopping", "stopping; the data plane stays up"));
        let _ = inboxes.stop_control.send(true);
        if let Some(running) = &self.running
            && let Err(why) = running.sync_store()
        {
            tracing::error!(%why, "the record store was not flushed");
        }
        self.transport.stop_member();
        self.transport.wait_closed(Duration::from_millis(500)).await;
        if !self.restarting {
            return After::Stop;
        }
        // Whoever asked for it has an answer before the socket goes.
        if tokio::time::timeout(ANSWERS, inboxes.served).await.is_err() {
            tracing::warn!("a call was not answered before the restart");
        }
        After::Restart
    }

    fn look_soon(&mut self) {
        let soon = Instant::now() + LOOK_DELAY;
        self.look_due = Some(self.look_due.map_or(soon, |due| due.min(soon)));
    }

    /// Carries out what the node wants, and plans when that is due.
    fn pump(&mut self) {
        self.admit_ready();
        let Some(running) = &mut self.running else { return };
        let mut wants = Wants::default();
        loop {
            running.pump(&mut self.transport, &self.state, &mut self.counters, &mut wants);
            if wants.replies.is_empty() && wants.requests.is_empty() {
                break;
            }
            for (from, id, reply) in wants.replies.drain(..) {
                running.forwarded.answer(from, id, reply);
            }
            for (from, id, request) in wants.requests.drain(..) {
                let by = Requester::Member(from, id);
                running.admit(Pending { request, by }, &self.state, &mut self.counters);
            }
        }
        if std::mem::take(&mut running.store_dirty) {
            let now = Instant::now();
            self.flush_due.get_or_insert(now + FLUSH_DELAY);
            self.sync_due.get_or_insert(now + SYNC_DELAY);
        }
        if running.pace.due().is_some_and(|due| due <= Instant::now())
            && let Some((desired, scope)) = running.replan(&self.own, &self.config)
        {
            running.plan_number = self.reconciler.want(desired.clone(), scope);
            self.keep_guard(&desired);
            self.settle_doubts();
        }
        for (id, request) in wants.doors {
            self.ask_at_the_door(id, request);
        }
        if wants.signership {
            self.follow_signership();
        }
        if wants.announce {
            self.announce();
        }
        if wants.check {
            self.check_connections();
        }
        for (from, offer) in wants.offers {
            self.take_offer(from, &offer);
        }
        self.tell_renewal();
        self.ask_for_keys();
    }

    /// Ends connections with whoever would not be let in now.
    fn check_connections(&mut self) {
        self.check_due = Instant::now() + CHECK_EVERY;
        for (peer, refusal) in self.transport.check_again() {
            self.counters.connection_refused(refusal.code.as_str());
            let event =
                Happened::warning("disconnected", format!("disconnected: {}", refusal.detail));
            let name = self.running.as_ref().map(|r| r.node.directory().display_name(&peer));
            let event = event.about(peer, name.unwrap_or_else(|| peer.short()));
            self.events.emit(event.because(refusal.code.as_str()));
        }
    }

    fn next_wake(&self) -> Instant {
        let node = self.running.as_ref().and_then(|r| r.node.poll_timeout()).map(|(at, _)| at);
        let plan = self.running.as_ref().and_then(|running| running.pace.due());
        let first = self.running.as_ref().and_then(|running| running.first.next());
        let mtus = self.running.as_ref().and_then(|running| running.mtus.poll_timeout());
        let gateways = self.next_gateway_look();
        let words = self.running.as_ref().and_then(Running::next_statement);
        let ready = self.running.as_ref().is_some_and(|running| running.identities.is_ready());
        [
            node,
            plan,
            first,
            mtus,
            words,
            gateways,
            ready.then(Instant::now),
            self.resolve_due,
            self.look_due,
            self.flush_due,
            self.sync_due,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or_else(|| Instant::now() + FAR)
    }

    fn on_wake(&mut self) {
        let now = Instant::now();
        if let Some(running) = &mut self.running
            && running.node.poll_timeout().is_some_and(|(at, _)| at <= now)
        {
            running.node.handle_timeout(clock::now());
        }
        if let Some(running) = &mut self.running
            && running.first.next().is_some_and(|due| due <= now)
        {
            let renew = running.help_first_handshakes(now);
            if !renew.is_empty() {
                self.reconciler.renew(renew);
            }
        }
        self.probe_paths(now);
        self.make_statements(now);
        if self.next_gateway_look().is_some_and(|due| due <= now) {
            self.tend_gateways(now);
        }
        if self.resolve_due.is_some_and(|due| due <= now) {
            self.resolve_seeds();
        }
        if self.look_due.is_some_and(|due| due <= now) {
            self.look_at_host();
        }
        if self.flush_due.is_some_and(|due| due <= now) {
            self.flush_due = None;
            self.flush_store(Flush::Crash);
        }
        if self.sync_due.is_some_and(|due| due <= now) {
            self.sync_due = None;
            self.flush_store(Flush::Power);
        }
    }

    fn on_transport(&mut self, event: Event) {
        let now = clock::now();
        let Some(running) = &mut self.running else { return };
        match event {
            Event::Reached { peer, remote } => {
                running.note_reached(peer, remote.ip(), false);
                running.node.handle_reached(peer, remote, now);
            }
            Event::Connected { peer, remote, outgoing, .. } => {
                running.note_reached(peer, remote.ip(), true);
                running.node.handle_connected(peer, remote, outgoing, now);
            }
            Event::Disconnected { peer } => running.node.handle_disconnected(peer, now),
            Event::Datagram { peer, bytes } => {
                running.note_quic(peer, &self.transport);
                running.node.handle_datagram(peer, &bytes, now);
            }
            Event::Frame { peer, bytes } => {
                running.note_quic(peer, &self.transport);
                running.node.handle_frame(peer, &bytes, now);
            }
            Event::Acknowledged { peer } => {
                running.note_quic(peer, &self.transport);
                running.node.handle_acknowledged(peer, now);
            }
            Event::Unreachable { target, tried, why } => {
                tracing::debug!(%why, "not reached");
                for address in tried {
                    running.node.handle_unreachable(Unreachable::Address(address), now);
                }
                if let Target::Node(key) = target {
                    running.node.handle_unreachable(Unreachable::Member(key), now);
                }
            }
            Event::Enrol(ticket) => {
                running.handle_enrol(ticket, &self.state, &mut self.counters);
            }
            Event::Refused { code, remote, why } => {
                self.counters.connection_refused(code);
                self.events.emit(events::refused_connection(code, remote, &why));
            }
        }
    }

    fn on_report(&mut self, report: Report) {
        let Some(running) = &mut self.running else { return };
        let refused = report.errors.iter().any(|error| matches!(error, DataplaneError::Nft { .. }));
        if refused && self.own.sources.watch() {
            // A kernel may have nfnetlink_log, and no nft_log.
            self.own.sources.told = false;
            running.pace.at_once(Instant::now());
        }
        running.take_report(report, &mut self.counters);
        if let Some(device) = &running.plan.desired.device {
            self.transport.keep_inside(running.own_ula(), &device.name);
        }
        self.watch_paths();
        self.withdraw_nodes();
        self.answer_devices();
        let Some(running) = &mut self.running else { return };
        if running.programmed || !running.dataplane_errors.is_empty() {
            self.notifier.ready();
        }
    }

    fn on_tick(&mut self) {
        self.counters.frames_dropped = self.transport.dropped_frames();
        if let Some(running) = &mut self.running {
            running.forwarded.expire(Instant::now());
            running.tell_handshakes();
            running.sign_time_if_due();
            running.mend_revocations(&self.state);
            running.note_departures(&self.state);
            running.plan_when_complete(Instant::now());
        }
        self.end_trial_in_time();
        self.look_at_files();
        self.tend_gateways(Instant::now());
        self.tend_signers();
        self.answer_devices();
        self.look_at_handed();
        if self.check_due <= Instant::now() {
            self.check_connections();
        }
        self.events.tick();
        let now = Instant::now();
        if self.status_due <= now {
            let status = status::status(self);
            self.tell_problems(&status.health);
            self.notifier.alive(&status::one_line(status));
            self.status_due = now + (now.elapsed() * STATUS_SHARE).min(STATUS_LATEST);
        }
    }

    /// Health lines that began or ended become events.
    fn tell_problems(&mut self, health: &[HealthLine]) {
        let now: Vec<_> = health.iter().map(events::problem).collect();
        for event in self.problems.look(&now) {
            self.events.emit(event);
        }
    }
}
