//! What happens to a mesh, and what is measured of it.

use std::time::{Duration, Instant};

use meshd_core::node::Liveness;
use meshd_tests::sim::{Report, Weather, World, prefix};

use crate::{Arguments, figures::Figures};

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Happening {
    /// Nothing, for two minutes.
    Idle,
    /// Hosts change their records, one after the other.
    Change,
    /// Hosts are new, one a second.
    Join,
    /// Hosts crash, one after the other.
    Crash,
    /// Hosts are restarted, one after the other, two seconds apart.
    Upgrade,
    /// Crashes, starts and changes at random, one each second for two minutes.
    Churn,
    /// Two halves do not reach each other for a minute.
    Partition,
    /// All crash, and start at once from their stores.
    Restart,
}

/// Virtual time that anything may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How often times are read.
const STEP: Duration = Duration::from_millis(20);

/// A mesh that settled, then whatever is wanted.
pub(crate) fn run(
    arguments: &Arguments,
    weather: Weather,
    wanted: &[Happening],
    figures: &mut Figures,
) {
    let began = Instant::now();
    let newcomers = if wanted.contains(&Happening::Join) { arguments.rounds } else { 0 };
    let mut bench = Bench {
        world: World::new(arguments.seed, arguments.nodes + newcomers, weather),
        nodes: arguments.nodes,
        rounds: arguments.rounds,
        figures,
        changes: 0,
    };
    bench.begin(arguments);
    for happening in wanted {
        match happening {
            Happening::Idle => bench.idle(),
            Happening::Change => bench.change(),
            Happening::Join => bench.join(),
            Happening::Crash => bench.crash(),
            Happening::Upgrade => bench.upgrade(),
            Happening::Churn => bench.churn(),
            Happening::Partition => bench.partition(),
            Happening::Restart => bench.restart(),
        }
    }
    let virtual_time = bench.world.elapsed();
    let events = bench.world.report().events;
    let real = began.elapsed();
    eprintln!("  {events} events, {virtual_time:.0?} of virtual time in {real:.0?}");
}

struct Bench<'a> {
    world: World,
    /// Hosts that run when all is well.
    nodes: usize,
    rounds: usize,
    figures: &'a mut Figures,
    /// Changes of records so far.
    changes: u8,
}

impl Bench<'_> {
    /// All start with nothing but seeds.
    fn begin(&mut self, arguments: &Arguments) {
        let seeds: Vec<_> = (0..arguments.seeds)
            .flat_map(|host| self.world.hosts[host % self.nodes].draft.endpoints.clone())
            .collect();
        for host in &mut self.world.hosts {
            host.seeds.clone_from(&seeds);
        }
        for host in 0..self.nodes {
            self.world.start(host);
            self.world.run(Duration::from_millis(arguments.apart));
        }
        let nodes = self.nodes;
        let took = self.world.run_until("all know all", LIMIT, |world| {
            world.all_know(nodes) && world.is_converged()
        });
        self.took("begin", "all new at once: all know all", took);
        let took = self.until_all_are_up("all are alive everywhere");
        self.took("begin_alive", "… and see each other alive", took);
        let per = |count: u64| count as f64 / nodes as f64;
        let report = self.world.report();
        self.figures.add("begin_handshakes", "… handshakes per node", per(report.handshakes), "");
        let messages = per(report.datagrams + report.frames);
        self.figures.add("begin_messages", "… messages per node", messages, "");
        self.figures.add("begin_bytes", "… bytes per node", per(report.bytes), "B");
        self.world.run(Duration::from_secs(60));
    }

    fn took(&mut self, key: &str, what: &str, time: Duration) {
        self.figures.add(&format!("{key}_s"), what, time.as_secs_f64(), "s");
    }

    fn until_all_are_up(&mut self, what: &str) -> Duration {
        let nodes = self.nodes;
        let mut first = 0;
        self.world.run_until(what, LIMIT, |world| {
            // Who was complete once is looked at again at the end only.
            while first < nodes {
                if !sees_all_up(world, first, nodes) {
                    return false;
                }
                first += 1;
            }
            first = 0;
            (0..nodes).all(|observer| sees_all_up(world, observer, nodes))
        })
    }

    /// Times that members were declared down.
    fn alarms(&self) -> usize {
        let events = self.world.hosts.iter().flat_map(|host| &host.events);
        events.filter(|event| event.code == "member_down").count()
    }

    fn cost(&mut self, key: &str, before: &Report, over: Duration) {
        let after = self.world.report();
        let share = 1.0 / (self.nodes as f64 * over.as_secs_f64());
        let per = |now: u64, then: u64| (now - then) as f64 * share;
        let bytes = per(after.bytes, before.bytes);
        self.figures.add(&format!("{key}_bytes"), "bytes per node and second", bytes, "B/s");
        let handshakes = per(after.handshakes, before.handshakes);
        self.figures.add(
            &format!("{key}_handshakes"),
            "handshakes per node and second",
            handshakes,
            "/s",
        );
        let messages = per(after.datagrams + after.frames, before.datagrams + before.frames);
        self.figures.add(
            &format!("{key}_messages"),
            "messages per node and second",
            messages,
            "/s",
        );
    }

    fn idle(&mut self) {
        let (before, alarms) = (self.world.report(), self.alarms());
        let time = Duration::from_secs(120);
        self.world.run(time);
        self.cost("idle", &before, time);
        let alarms = self.alarms() - alarms;
        self.figures.add("idle_false_alarms", "false alarms", alarms as f64, "");
    }

    /// Records that were accepted, and those that were held already.
    fn accepted(&self) -> (u64, u64) {
        let counters = self.world.nodes().map(|(_, node)| node.counters());
        counters.fold((0, 0), |sum, all| (sum.0 + all.records_accepted, sum.1 + all.records_known))
    }

    fn change(&mut self) {
        let mut times = Vec::new();
        let before = self.accepted();
        let bytes = self.world.report().bytes;
        let mut spreading = Duration::ZERO;
        for _ in 0..self.rounds {
            let host = self.pick();
            self.changes = self.changes.wrapping_add(1);
            let prefix = prefix(host, self.changes);
            let begin = self.world.elapsed();
            times.extend(self.world.spread(host, LIMIT, |world| {
                world.update(host, |draft| draft.prefixes = vec![prefix]);
            }));
            self.world.run(Duration::from_secs(2));
            spreading += self.world.elapsed() - begin;
        }
        self.figures.add_times("change", "a changed record at all others", times);
        let after = self.accepted();
        let accepted = (after.0 - before.0).max(1) as f64;
        let copies = 1.0 + (after.1 - before.1) as f64 / accepted;
        self.figures.add("change_copies", "times that a record comes to a node", copies, "");
        let bytes = (self.world.report().bytes - bytes) as f64;
        let each = bytes / (self.nodes * self.rounds) as f64;
        self.figures.add(
            "change_bytes",
            "bytes per node and change, what is idle in it",
            each,
            "B",
        );
        let _ = spreading;
    }

    fn join(&mut self) {
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            let host = self.nodes;
            self.nodes += 1;
            times.extend(self.world.spread(host, LIMIT, |world| world.start(host)));
            self.world.run(Duration::from_secs(1));
        }
        self.figures.add_times("join", "a new host at all others", times);
        let took = self.until_all_are_up("all newcomers are alive everywhere");
        self.took("join_alive", "… the last one is alive everywhere after", took);
    }

    fn crash(&mut self) {
        let alarms = self.alarms();
        let mut times = Vec::new();
        let mut crashed = Vec::new();
        for _ in 0..self.rounds.min(self.nodes / 4).min(5) {
            let host = self.pick();
            if crashed.contains(&host) {
                continue;
            }
            crashed.push(host);
            let key = self.world.hosts[host].key();
            self.world.crash(host);
            let begin = self.world.elapsed();
            let mut waiting: Vec<usize> = self.world.nodes().map(|(i, _)| i).collect();
            while !waiting.is_empty() {
                assert!(self.world.elapsed() - begin < LIMIT, "a crash is not known to all");
                self.world.run(STEP);
                let now = self.world.elapsed();
                waiting.retain(|observer| {
                    let node = self.world.hosts[*observer].node.as_ref();
                    let down = node
                        .and_then(|node| node.liveness(&key))
                        .is_some_and(|(liveness, _)| liveness == Liveness::Down);
                    if down {
                        times.push(now - begin);
                    }
                    !down
                });
            }
        }
        self.figures.add_times("crash", "a crash is known to all others", times);
        let expected: usize = (1..=crashed.len()).map(|gone| self.nodes - gone).sum();
        let alarms = (self.alarms() - alarms).saturating_sub(expected);
        self.figures.add("crash_false_alarms", "false alarms", alarms as f64, "");
        crashed.into_iter().for_each(|host| self.world.start(host));
        let took = self.until_all_are_up("the crashed are back");
        self.took("crash_back", "started again together: alive everywhere after", took);
    }

    fn upgrade(&mut self) {
        let alarms = self.alarms();
        let rounds = (self.rounds * 2).min(self.nodes);
        for host in 0..rounds {
            self.world.crash(host);
            self.world.run(Duration::from_millis(500));
            self.world.start(host);
            self.world.run(Duration::from_millis(1_500));
        }
        let took = self.until_all_are_up("all are alive after an upgrade");
        self.took("upgrade", "restarts one by one: all alive after the last", took);
        let alarms = self.alarms() - alarms;
        self.figures.add("upgrade_false_alarms", "false alarms", alarms as f64, "");
    }

    fn churn(&mut self) {
        let before = self.world.report();
        let mut gone = Vec::new();
        let time = Duration::from_secs(120);
        for _ in 0..time.as_secs() {
            match self.world.random() % 3 {
                0 if gone.len() < self.nodes / 10 => {
                    let host = self.pick();
                    if !gone.contains(&host) {
                        self.world.crash(host);
                        gone.push(host);
                    }
                }
                1 if !gone.is_empty() => {
                    let host = gone.remove(0);
                    self.world.start(host);
                }
                _ => {
                    let host = self.pick();
                    self.changes = self.changes.wrapping_add(1);
                    let prefix = prefix(host, self.changes);
                    self.world.update(host, |draft| draft.prefixes = vec![prefix]);
                }
            }
            self.world.run(Duration::from_secs(1));
        }
        self.cost("churn", &before, time);
        gone.into_iter().for_each(|host| self.world.start(host));
        let took = self.world.run_until("one root hash everywhere", LIMIT, World::is_converged);
        self.took("churn", "quiet again: the same directory everywhere after", took);
        let took = self.until_all_are_up("all are alive after churn");
        self.took("churn_alive", "… and all alive after", took);
    }

    fn partition(&mut self) {
        self.world.partition(|host| u32::from(host % 2 == 1));
        for round in 1..=6 {
            self.world.run(Duration::from_secs(10));
            self.changes = self.changes.wrapping_add(1);
            for host in (0..self.nodes).filter(|host| host % 6 == round % 6) {
                let prefix = prefix(host, self.changes);
                self.world.update(host, |draft| draft.prefixes = vec![prefix]);
            }
        }
        self.world.heal();
        let took = self.world.run_until("one root hash everywhere", LIMIT, World::is_converged);
        self.took("partition", "halves that meet again: the same directory after", took);
        let took = self.until_all_are_up("all are alive after a partition");
        self.took("partition_alive", "… and all alive after", took);
    }

    fn restart(&mut self) {
        (0..self.nodes).for_each(|host| self.world.crash(host));
        self.world.run(Duration::from_secs(10));
        (0..self.nodes).for_each(|host| self.world.start(host));
        let took = self.world.run_until("one root hash everywhere", LIMIT, World::is_converged);
        self.took("restart", "all restarted at once: the same directory after", took);
        let took = self.until_all_are_up("all are alive after a restart");
        self.took("restart_alive", "… and all alive after", took);
    }

    /// A host that runs.
    fn pick(&mut self) -> usize {
        loop {
            let random = usize::try_from(self.world.random() >> 33).unwrap_or(0);
            let host = random % self.nodes;
            if self.world.hosts[host].node.is_some() {
                return host;
            }
        }
    }
}

fn sees_all_up(world: &World, observer: usize, nodes: usize) -> bool {
    let Some(node) = &world.hosts[observer].node else { return false };
    (0..nodes).filter(|member| *member != observer).all(|member| {
        let key = world.hosts[member].key();
        node.liveness(&key).is_some_and(|(liveness, _)| liveness == Liveness::Alive)
    })
}
