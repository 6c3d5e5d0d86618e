//! Traffic between the hosts' own addresses: what this host publishes, what it tells each member inside the tunnel, and
//! what it hears there. What follows for the kernel is the planner's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use meshd_core::{
    accord::{Accord, Statement, Takes},
    address::ula,
    event::Event,
    node::Liveness,
    plan::{Desired, Observed, ObservedArp, RouteKind, SteeringSeen},
    trust::Record,
};
use meshd_proto::{NodeKey, control::HealthLine};
use tokio::time::timeout;

use super::{Daemon, health::line, own::Own, running::Running};
use crate::config::{Config, Encrypt, LeakProtection};

/// How long two hosts may take to agree before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a leave waits for the kernel.
const STOP: Duration = Duration::from_secs(5);
/// Names in a health line.
const NAMES: usize = 4;

/// What this host knows of node addresses beside its plan.
#[derive(Debug)]
pub(super) struct Carrying {
    accord: Accord,
    /// Node addresses that an earlier process of this host routed, by the kernel: their members had said that they accept
    /// ours, until they say otherwise.
    held: BTreeSet<IpAddr>,
    /// By the kernel, when it was last read.
    seen: SteeringSeen,
    /// Members whose node addresses are routed, as events have told.
    told: BTreeSet<NodeKey>,
    /// Members whose node addresses could be routed and are not, since when.
    waiting: BTreeMap<NodeKey, Instant>,
}

impl Carrying {
    /// `observed`: the kernel before this process changed anything.
    pub(super) fn new(start: [u8; 8], observed: Option<&Observed>) -> Self {
        let routed = observed.map(device_routes).unwrap_or_default();
        let table = observed.and_then(|observed| observed.firewall.as_ref());
        let v6 = table.is_some_and(|table| {
            // Another version, or another nft, may have words for the rules that this one does not know; the marks came
            // before the first element of the set.
            let marked = table.rules.as_ref().is_some_and(|rules| rules.steering.is_some());
            marked || table.sets.routed_nodes.iter().any(|address| routed.contains(address))
        });
        let arp = observed.map(|observed| observed.arp).unwrap_or_default();
        let v4 = v6 && matches!(arp, ObservedArp::Mark(_));
        // Single addresses are routed for pods too, but never without marks for nodes.
        let seen = SteeringSeen { v4, v6, routes: v6 && !routed.is_empty() };
        Self {
            accord: Accord::new(start),
            held: routed,
            seen,
            told: BTreeSet::new(),
            waiting: BTreeMap::new(),
        }
    }

    pub(super) fn seen(&self) -> SteeringSeen {
        self.seen
    }

    /// What of `own` the member takes from the tunnel.
    pub(super) fn accepts(&self, record: &Record, own: &[IpAddr]) -> BTreeSet<IpAddr> {
        if let Some(said) = self.accord.accepts(&record.key) {
            return said.clone();
        }
        let held = |v4: bool| {
            let claims = record.node_claims.iter().map(|claim| claim.addr());
            claims.filter(|claim| claim.is_ipv4() == v4).any(|claim| self.held.contains(&claim))
        };
        let held = [held(false), held(true)];
        own.iter().filter(|own| held[usize::from(own.is_ipv4())]).copied().collect()
    }
}

/// Single addresses that are routed into the device.
fn device_routes(observed: &Observed) -> BTreeSet<IpAddr> {
    let routes = observed.routes.iter().filter(|route| {
        route.destination.prefix_len() == route.destination.max_prefix_len()
            && matches!(route.kind, RouteKind::Device { .. })
    });
    routes.map(|route| route.destination.addr()).collect()
}

/// What the kernel holds of what `desired` asks for.
fn steering(desired: &Desired, observed: &Observed) -> SteeringSeen {
    let wanted = desired.firewall.as_ref().and_then(|table| table.rules.steering);
    let rules = observed.firewall.as_ref().and_then(|table| table.rules.as_ref());
    let v6 = wanted.is_some() && rules.is_some_and(|rules| rules.steering == wanted);
    let arp = desired.arp.is_some_and(|mark| observed.arp == ObservedArp::Mark(mark));
    let mut read = observed.underlay_sysctls.iter();
    let sysctls = &desired.underlay_sysctls;
    let as_wanted = read.all(|(path, value)| sysctls.get(path).is_none_or(|w| w == value));
    SteeringSeen { v4: v6 && arp && as_wanted, v6, routes: false }
}

impl Running {
    /// Takes in what the kernel holds; true when the plan depends on it.
    pub(super) fn see_nodes(&mut self, observed: &Observed, now: Instant) -> bool {
        let claims: BTreeSet<IpAddr> = self
            .node
            .directory()
            .iter()
            .flat_map(|record| record.node_claims.iter().map(|claim| claim.addr()))
            .collect();
        let routed = device_routes(observed);
        let routes = routed.iter().any(|address| claims.contains(address));
        // What cannot be read may well stand: a tunnel that works is not left for that.
        let marks = if observed.unread {
            self.carrying.seen
        } else {
            steering(&self.plan.desired, observed)
        };
        let seen = SteeringSeen { routes, ..marks };
        let own = !self.plan.nodes.own.is_empty();
        let mut takes = BTreeMap::new();
        for record in self.node.directory().iter() {
            let others = record.key != self.node.key() && !record.node_claims.is_empty();
            let lane = record.lanes.first().filter(|_| own && others && !record.left);
            let Some(lane) = lane else { continue };
            let held = observed.peers.get(&lane.public_key).map(|peer| &peer.allowed_ips);
            let accepted = self.plan.nodes.accepted.get(&record.key).into_iter().flatten();
            let addresses = accepted
                .filter(|prefix| held.is_some_and(|held| held.contains(*prefix)))
                .map(|prefix| prefix.addr())
                .collect();
            let liveness = self.node.liveness(&record.key).map(|(liveness, _)| liveness);
            let quiet = liveness == Some(Liveness::Down);
            takes.insert(record.key, Takes { addresses, quiet });
        }
        self.carrying.accord.observe(&takes, now);
        let changed = std::mem::replace(&mut self.carrying.seen, seen) != seen;
        changed | self.carrying.accord.take_changed()
    }

    /// When something is to be said; nothing can be before there is a tunnel.
    pub(super) fn next_statement(&self) -> Option<Instant> {
        self.prober.as_ref()?;
        self.carrying.accord.poll_timeout()
    }

    /// A line for members that publish node addresses as this host does, and yet are reached in the clear or not at all.
    pub(super) fn uncarried(&self, config: &Config) -> Option<HealthLine> {
        let now = Instant::now();
        let waiting = self.carrying.waiting.iter();
        let long = waiting.filter(|(_, since)| now.saturating_duration_since(**since) >= PATIENCE);
        let directory = self.node.directory();
        let mut names: Vec<String> = long.map(|(key, _)| directory.display_name(key)).collect();
        if names.is_empty() {
            return None;
        }
        let more = names.len().saturating_sub(NAMES);
        names.truncate(NAMES);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        let how = match config.network.leak_protection {
            LeakProtection::Off => "goes in the clear",
            LeakProtection::Strict => "is refused",
        };
        let message = format!(
            "traffic to the node addresses of {} {how}: this host has not heard through the tunnel that they take its own",
            names.join(", ")
        );
        let fix = "look at `meshctl status` and `meshctl peers show` there: the tunnel may be down, or this host's \
                   addresses may be contested or refused";
        Some(line("nodes_not_carried", "warning", message, fix))
    }

    fn note_waiting(&mut self) {
        let now = Instant::now();
        let nodes = &self.plan.nodes;
        let could = |key: &NodeKey| {
            let present = self.node.liveness(key).is_some_and(|(l, _)| l != Liveness::Down);
            !nodes.own.is_empty() && present && !nodes.routed.contains_key(key)
        };
        let waiting: BTreeMap<NodeKey, Instant> = nodes
            .accepted
            .keys()
            .filter(|key| could(key))
            .map(|key| (*key, *self.carrying.waiting.get(key).unwrap_or(&now)))
            .collect();
        self.carrying.waiting = waiting;
    }

    /// Says once of each member when its node addresses are carried, and when they are not any more.
    pub(super) fn tell_carried(&mut self) {
        self.note_waiting();
        let carried: BTreeSet<NodeKey> = self.plan.nodes.routed.keys().copied().collect();
        let told = std::mem::replace(&mut self.carrying.told, carried.clone());
        for key in carried.symmetric_difference(&told) {
            let name = self.node.directory().display_name(key);
            let event = if carried.contains(key) {
                let text =
                    format!("traffic to the node addresses of {name} goes through the tunnel");
                Event::info("nodes_carried", text)
            } else {
                let text =
                    format!("traffic to the node addresses of {name} is not carried any more");
                Event::info("nodes_not_carried", text)
            };
            self.events.emit(event.about(*key, name));
        }
    }

    /// Node addresses to publish: until routes to others' are gone, these go on to accept ours.
    pub(super) fn node_claims(&self, own: &Own, config: &Config) -> Vec<IpAddr> {
        if config.network.encrypt != Encrypt::PodsAndNodes && !self.carrying.seen.routes {
            return Vec::new();
        }
        own.claimed_addresses(config)
    }
}

impl Daemon {
    /// A member says what of our node addresses it takes from the tunnel.
    pub(super) fn on_statement(
        &mut self,
        from: NodeKey,
        id: u64,
        is_answer: bool,
        statement: Statement,
    ) {
        let Some(running) = &mut self.running else { return };
        let now = Instant::now();
        let answer = running.carrying.accord.heard(from, id, is_answer, statement, now);
        // From now on its own word counts.
        if let Some(record) = running.node.directory().get(&from) {
            for claim in &record.node_claims {
                running.carrying.held.remove(&claim.addr());
            }
        }
        let mesh = running.identity.certificate.mesh_id;
        if let (Some(answer), Some(prober)) = (answer, &running.prober) {
            prober.state(ula(&mesh, &answer.to), answer.id, true, &answer.statement);
        }
        if running.carrying.accord.take_changed() {
            running.pace.with_others(now, 1);
        }
    }

    /// Says to members what is due.
    pub(super) fn make_statements(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        let mesh = running.identity.certificate.mesh_id;
        let Some(prober) = &running.prober else { return };
        for word in running.carrying.accord.due(now) {
            prober.state(ula(&mesh, &word.to), word.id, false, &word.statement);
        }
        // What was held back may count now.
        if running.carrying.accord.take_changed() {
            running.pace.with_others(now, 1);
        }
    }

    /// Takes routes to node addresses away and waits until they are gone. What the configuration says is put back by
    /// the caller.
    pub(super) async fn stop_carrying(&mut self) -> Encrypt {
        let former = std::mem::replace(&mut self.config.network.encrypt, Encrypt::Pods);
        let Some(running) = &mut self.running else { return former };
        if running.plan.nodes.routed.is_empty() {
            return former;
        }
        if let Some((desired, scope)) = running.replan(&self.own, &self.config) {
            running.plan_number = self.reconciler.want(desired, scope);
            // Too slow is no reason to stay: what remains goes with the rest.
            if timeout(STOP, self.reconciler.look_now()).await.is_err() {
                tracing::warn!("the kernel has not given up the routes to node addresses yet");
            }
        }
        former
    }

    /// What was published for the sake of routes that are gone now is withdrawn.
    pub(super) fn withdraw_nodes(&mut self) {
        let Some(running) = &self.running else { return };
        let published = running.own_record().is_some_and(|own| !own.node_claims.is_empty());
        if published && running.node_claims(&self.own, &self.config).is_empty() {
            self.announce();
        }
    }
}
