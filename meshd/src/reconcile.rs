//! The thread that keeps the kernel as planned.
//!
//! Responsible for: observe → diff → apply, again when netlink, a glance at the peers or a timer says so, with backoff
//! when something fails or others fight for the same objects. A new plan is compared with what was read last and what
//! was changed since, so that one changed record costs as much among ten thousand members as among ten. Not for: what is
//! planned. One thread, since netlink and `nft` block; it takes
//! commands from a channel of which only the newest plan counts, and sends a [`Report`] after each
//! round. It ends when the [`Reconciler`] is dropped, leaving the kernel as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use meshd_core::plan::{
    Change, Desired, Draining, Observed, ObservedPeer, RepairPace, are_set_as, diff, renewals,
};
use meshd_proto::WgPublicKey;
use tokio::sync::{mpsc, oneshot};

use crate::dataplane::{Dataplane, DataplaneError, Scope};

/// Some of what others change is told by no notification and seen by no glance: look at least this often.
const PERIOD: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// Rounds of observe, diff, apply before waiting: what one change makes possible, the next may need.
const ROUNDS: usize = 3;
/// More changes than these are worth reading the kernel for.
const FEW: usize = 256;
/// An endpoint is set on a peer that is there only if its handshake was read this lately: it may have roamed.
const FRESH: Duration = Duration::from_secs(2);

/// What one round did.
#[derive(Debug)]
pub struct Report {
    /// The kernel afterwards; `None` when it could not be read.
    pub observed: Option<Observed>,
    /// Changes that were made.
    pub applied: Vec<Change>,
    /// Changes that failed, and why.
    pub errors: Vec<DataplaneError>,
    /// The plan was the same as the round before: what was applied had been undone by others.
    pub repaired: bool,
    /// Others undo repairs as fast as they are made, which are rationed therefore.
    pub contested: bool,
    /// Which plan, counted by [`Reconciler::want`].
    pub plan: u64,
    /// When the kernel was read.
    pub at: Instant,
    /// When the changes were made.
    pub applied_at: Instant,
}

/// Who wants to know what the kernel holds, and when that was.
type Asked = oneshot::Sender<Option<(Observed, Instant)>>;

enum Command {
    Want { desired: Arc<Desired>, scope: Scope, plan: u64 },
    Look,
    Glance,
    Renew(Vec<WgPublicKey>),
    LookNow(Asked),
    Peek { scope: Scope, answer: Sender<Option<Observed>> },
    TearDown { scope: Scope, done: oneshot::Sender<Report> },
}

/// The handle of the thread.
pub struct Reconciler {
    commands: Sender<Command>,
    plans: u64,
    last: Option<(Arc<Desired>, Scope)>,
}

impl Reconciler {
    /// Starts the thread on `dataplane`; its reports come out of the receiver.
    pub fn start(
        dataplane: Box<dyn Dataplane + Send>,
    ) -> std::io::Result<(Self, mpsc::Receiver<Report>)> {
        let (commands, inbox) = channel();
        let (reports, outbox) = mpsc::channel(64);
        thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(move || Worker::new(dataplane, reports).run(&inbox))?;
        Ok((Self { commands, plans: 0, last: None }, outbox))
    }

    /// Makes the kernel as `desired`, and keeps it so. Returns the plan's number; one that asks for nothing
    /// new is the one before.
    pub fn want(&mut self, desired: Arc<Desired>, scope: Scope) -> u64 {
        let same = self.last.as_ref().is_some_and(|(d, s)| **d == *desired && *s == scope);
        if same {
            return self.plans;
        }
        self.last = Some((desired.clone(), scope.clone()));
        self.plans += 1;
        let plan = self.plans;
        self.send(Command::Want { desired, scope, plan });
        plan
    }

    /// Something may have changed: look, and repair.
    pub fn look(&self) {
        self.send(Command::Look);
    }

    /// A tunnel may have come up: look at the peers, and tell.
    pub fn glance(&self) {
        self.send(Command::Glance);
    }

    /// Takes those of `peers` that never had a handshake away and adds them again, which makes WireGuard
    /// try at once.
    pub fn renew(&self, peers: Vec<WgPublicKey>) {
        self.send(Command::Renew(peers));
    }

    /// What the kernel holds now, and when that was.
    pub fn look_now(&self) -> oneshot::Receiver<Option<(Observed, Instant)>> {
        let (answer, wait) = oneshot::channel();
        self.send(Command::LookNow(answer));
        wait
    }

    /// What the kernel holds before anything is planned. Blocks until the answer is there, at most `patience`.
    pub fn peek(&self, scope: Scope, patience: Duration) -> Option<Observed> {
        let (answer, wait) = channel();
        self.send(Command::Peek { scope, answer });
        wait.recv_timeout(patience).ok().flatten()
    }

    /// Removes everything of ours in `scope`, and stops keeping anything.
    pub fn tear_down(&mut self, scope: Scope) -> oneshot::Receiver<Report> {
        self.last = None;
        let (done, wait) = oneshot::channel();
        self.send(Command::TearDown { scope, done });
        wait
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the data plane thread is gone; restart meshd");
        }
    }
}

struct Worker {
    dataplane: Box<dyn Dataplane + Send>,
    reports: mpsc::Sender<Report>,
    want: Option<(Arc<Desired>, Scope, u64)>,
    /// Peers to make anew in the next round.
    renew: BTreeSet<WgPublicKey>,
    /// The plan that was last applied without an error.
    settled: u64,
    /// The plan to which device and peers were found to be right at a glance, if nothing was changed since.
    seen_right: Option<u64>,
    retry: Duration,
    pace: RepairPace,
    draining: Draining,
    /// A look was asked for that may wait for its turn.
    look: bool,
    /// When the next look is due in any case.
    due: Instant,
    /// What was read last, and when: the peers by a glance, the rest by a look, with what was changed since. `None` while
    /// something fails, whose turn the backoff decides.
    last: Option<(Observed, Instant)>,
}

impl Worker {
    fn new(dataplane: Box<dyn Dataplane + Send>, reports: mpsc::Sender<Report>) -> Self {
        let now = Instant::now();
        Self {
            dataplane,
            reports,
            want: None,
            renew: BTreeSet::new(),
            settled: 0,
            seen_right: None,
            retry: RETRY_FIRST,
            pace: RepairPace::new(now),
            draining: Draining::default(),
            look: false,
            due: now + PERIOD,
            last: None,
        }
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            let wait = self.next().saturating_duration_since(Instant::now());
            let first = match inbox.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Only the newest plan counts; a burst of changes costs one round.
            let mut asked = Vec::new();
            let mut tear_downs = Vec::new();
            let (mut planned, mut peek, mut now) = (false, false, false);
            for command in first.into_iter().chain(inbox.try_iter()) {
                match command {
                    Command::Want { desired, scope, plan } => {
                        // Another scope was never read.
                        now |= self.want.as_ref().is_none_or(|(_, held, _)| *held != scope);
                        planned = true;
                        self.want = Some((desired, scope, plan));
                    }
                    Command::Look => self.look = true,
                    Command::Glance => peek = true,
                    Command::Renew(peers) => self.renew.extend(peers),
                    Command::LookNow(answer) => {
                        now |= self.last.as_ref().is_none_or(|(last, _)| last.device.is_none());
                        asked.push(answer);
                    }
                    Command::Peek { scope, answer } => {
                        // Who asked may not wait any more.
                        let _ = answer.send(self.dataplane.observe(&scope).ok());
                    }
                    Command::TearDown { scope, done } => {
                        self.want = None;
                        tear_downs.push((scope, done));
                    }
                }
            }
            for (scope, done) in tear_downs {
                let report = self.round(&Desired::default(), &scope, 0, BTreeSet::new());
                let _ = done.send(report);
            }
            let at = Instant::now();
            let renews = !self.renew.is_empty() && self.pace.renew_from() <= at;
            let whole =
                now || renews || self.due <= at || (self.look && self.pace.look_from() <= at);
            if whole || (planned && !self.advance()) {
                self.keep(asked);
            } else if peek || !asked.is_empty() || self.pace.glance_from() <= at {
                self.glance(peek, asked);
            }
        }
    }

    /// When there is something to do next.
    fn next(&self) -> Instant {
        let soon = if self.look { self.pace.look_from() } else { self.pace.glance_from() };
        let soon = if self.renew.is_empty() { soon } else { soon.min(self.pace.renew_from()) };
        if self.want.is_some() { soon.min(self.due) } else { self.due }
    }

    /// One round for the plan in force.
    fn keep(&mut self, asked: Vec<Asked>) {
        self.look = false;
        self.seen_right = None;
        let Some((desired, scope, plan)) = self.want.clone() else {
            self.due = Instant::now() + PERIOD;
            return;
        };
        let (started, spent) = (Instant::now(), self::spent());
        let free = self.pace.renew_from() <= started;
        let renew = if free { std::mem::take(&mut self.renew) } else { BTreeSet::new() };
        let renewed = !renew.is_empty();
        let mut report = self.round(&desired, &scope, plan, renew);
        for answer in asked {
            let _ = answer.send(report.observed.clone().map(|observed| (observed, report.at)));
        }
        let ended = Instant::now();
        let repaired = report.repaired && !report.applied.is_empty();
        self.pace.looked(ended, ended - started, repaired);
        if renewed {
            self.pace.renewed(ended, self::spent().saturating_sub(spent));
        }
        report.contested = self.pace.is_contested();
        self.due = if report.errors.is_empty() {
            self.retry = RETRY_FIRST;
            let held_back = self.draining.due();
            if held_back.is_none() {
                self.settled = plan;
            }
            held_back.unwrap_or(ended + PERIOD)
        } else {
            let wait = self.retry;
            self.retry = (self.retry * 2).min(RETRY_LAST);
            ended + wait
        };
        let read = report.observed.clone().filter(|_| report.errors.is_empty());
        self.last = read.map(|observed| (observed, report.at));
        // A full channel means that the loop is behind; it gets the next report.
        let _ = self.reports.try_send(report);
    }

    /// Makes the changes of a new plan without reading the kernel, when few are to be made and what stands there is
    /// known. `false`: a round is needed.
    fn advance(&mut self) -> bool {
        let (Some((desired, _, plan)), Some((last, read))) = (&self.want, &mut self.last) else {
            return false;
        };
        if self.look || last.device.is_none() {
            return false;
        }
        let mut changes = diff(desired, last);
        self.draining.hold_back(last.device.as_ref(), &mut changes, Instant::now());
        let is_fresh = read.elapsed() < FRESH;
        let simple = changes.iter().all(|change| {
            let roamed = matches!(change, Change::PutPeer { new: false, endpoint: Some(_), .. });
            change.can_be_followed() && (is_fresh || !roamed)
        });
        if changes.len() > FEW || !simple || !self.dataplane.apply(&changes).is_empty() {
            return false;
        }
        for change in &changes {
            last.follow(change);
        }
        match self.draining.due() {
            None => self.settled = *plan,
            Some(due) => self.due = self.due.min(due),
        }
        self.tell(changes);
        true
    }

    /// Looks at the device and its peers, and asks for a round when they are not as planned. Tells when tunnels came up
    /// or were tried for the first time, or somebody wants to know.
    fn glance(&mut self, wanted: bool, asked: Vec<Asked>) {
        let (started, spent) = (Instant::now(), spent());
        let mut news = false;
        if let (Some((desired, scope, plan)), Some((last, read))) = (&self.want, &mut self.last)
            && last.device.is_some()
        {
            match self.dataplane.glance(scope) {
                Ok(Some((device, peers))) => {
                    // Those that had their first handshake, and those to which it was tried.
                    let met = |peers: &BTreeMap<WgPublicKey, ObservedPeer>| {
                        let met = peers.values().filter(|peer| peer.last_handshake.is_some());
                        let tried = peers.values().filter(|peer| peer.tx_bytes > 0);
                        (met.count(), tried.count())
                    };
                    news = wanted || met(&peers) != met(&last.peers);
                    let same = self.seen_right == Some(*plan)
                        && last.device.as_ref() == Some(&device)
                        && are_set_as(&peers, &last.peers);
                    (last.device, last.peers) = (Some(device), peers);
                    *read = started;
                    if !same {
                        let right = diff(desired, last).is_empty();
                        self.seen_right = right.then_some(*plan);
                        self.look |= !right;
                    }
                    for answer in asked {
                        // As in `keep`.
                        let _ = answer.send(Some((last.clone(), started)));
                    }
                }
                // Gone, or another's: a round finds out.
                Ok(None) | Err(_) => self.look = true,
            }
        }
        if news && !self.look {
            self.tell(Vec::new());
        }
        self.pace.glanced(Instant::now(), self::spent().saturating_sub(spent));
    }

    /// Reports what is known without a round.
    fn tell(&self, applied: Vec<Change>) {
        let (Some((_, _, plan)), Some((last, read))) = (&self.want, &self.last) else { return };
        let report = Report {
            observed: Some(last.clone()),
            applied,
            errors: Vec::new(),
            repaired: false,
            contested: self.pace.is_contested(),
            plan: *plan,
            at: *read,
            applied_at: Instant::now(),
        };
        // As in `keep`.
        let _ = self.reports.try_send(report);
    }

    fn round(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        plan: u64,
        mut renew: BTreeSet<WgPublicKey>,
    ) -> Report {
        let mut report = Report {
            observed: None,
            applied: Vec::new(),
            errors: Vec::new(),
            repaired: plan != 0 && plan == self.settled,
            contested: false,
            plan,
            at: Instant::now(),
            applied_at: Instant::now(),
        };
        for _ in 0..ROUNDS {
            report.at = Instant::now();
            let observed = match self.dataplane.observe(scope) {
                Ok(observed) => observed,
                Err(error) => {
                    report.errors.push(error);
                    return report;
                }
            };
            let removed = renewals(desired, &observed, &std::mem::take(&mut renew));
            // What we took away ourselves comes back in the next round, and is no repair.
            report.repaired &= removed.is_empty();
            let mut changes = if removed.is_empty() { diff(desired, &observed) } else { removed };
            self.draining.hold_back(observed.device.as_ref(), &mut changes, report.at);
            report.observed = Some(observed);
            if changes.is_empty() {
                return report;
            }
            let failed = self.dataplane.apply(&changes);
            report.applied_at = Instant::now();
            let (bad, errors): (Vec<usize>, Vec<_>) = failed.into_iter().unzip();
            let done = changes.into_iter().enumerate().filter(|(n, _)| !bad.contains(n));
            report.applied.extend(done.map(|(_, change)| change));
            if !errors.is_empty() {
                report.errors = errors;
                report.observed = self.dataplane.observe(scope).ok();
                return report;
            }
        }
        report.observed = self.dataplane.observe(scope).ok().or(report.observed);
        report
    }
}

/// What this thread has taken of a processor so far. Time on the wall would also count who else was busy.
fn spent() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

#[cfg(test)]
mod tests;
