//! Path MTUs: what the core is told of the kernel, what it wants sent, and what people are told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_core::{
    address::{host_prefix, ula},
    event::Event,
    node::Liveness,
    now::UnixTime,
    path_mtu::{self, Cause, Changed, PathMtu, Seen, Small, State},
    plan::{Backend, DontFragment, Observed, ROUTE_METRIC, RouteKind, TunnelState},
};
use meshd_proto::{NodeKey, control::HealthLine};

use super::{Daemon, clock, health::line, planning::plan_config, running::Running};
use crate::{config::Automatic, dataplane::Scope, probe::Heard};

/// The kernel is not looked at more often because members are heard of.
const HEARD_EVERY: Duration = Duration::from_millis(300);
/// How long the start may wait for the kernel.
const PEEK: Duration = Duration::from_secs(2);
/// One plan for the changes of so many members' paths costs as much as it saves.
const MEMBERS_AT_ONCE: usize = 64;
/// Names in a health line.
const NAMES: usize = 4;

impl Daemon {
    /// Something came in through the tunnel.
    pub(super) fn on_heard(&mut self, heard: Heard) {
        let Some(running) = &mut self.running else { return };
        let (Heard::Answer { from, .. } | Heard::Statement { from, .. } | Heard::Anything { from }) =
            heard;
        running.note_heard(from);
        match heard {
            Heard::Answer { from, id } => {
                running.mtus.handle_answer(&from, id, Instant::now());
                self.follow_paths();
            }
            Heard::Statement { from, id, is_answer, statement } => {
                self.on_statement(from, id, is_answer, statement);
            }
            // The kernel tells nobody of a first handshake: whoever is heard has had it.
            Heard::Anything { from } => {
                let lane = running.node.directory().get(&from).and_then(|r| r.lanes.first());
                let health = lane.and_then(|lane| running.tracker.health(&lane.public_key));
                let now = Instant::now();
                if health.is_none_or(|health| health.state != TunnelState::Up)
                    && self.heard_due <= now
                {
                    self.heard_due = now + HEARD_EVERY;
                    self.reconciler.glance();
                }
            }
        }
    }

    /// Tells the core what was observed of the paths.
    pub(super) fn watch_paths(&mut self) {
        let Some(running) = &mut self.running else { return };
        let measures = matches!(self.config.network.mtu, Automatic::Auto);
        let facts = &self.own.facts;
        let link = |to: IpAddr| facts.mtu_towards(to);
        let table = self.config.network.table;
        let seen = match &running.observed {
            Some(observed) if measures => running.seen_paths(observed, table, link),
            _ => BTreeMap::new(),
        };
        let mesh = running.identity.certificate.mesh_id;
        let held = |key: &NodeKey| running.held.get(&host_prefix(ula(&mesh, key).into())).copied();
        running.mtus.observe(&seen, held, Instant::now());
        if let Some(prober) = &running.prober {
            let addresses: Vec<Ipv6Addr> = seen.keys().map(|key| ula(&mesh, key)).collect();
            prober.forget_but(|address| addresses.contains(address));
        }
        self.follow_paths();
    }

    /// Sends what is due.
    pub(super) fn probe_paths(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        if running.mtus.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        let mesh = running.identity.certificate.mesh_id;
        for probe in running.mtus.handle_timeout(now) {
            if let Some(prober) = &running.prober {
                prober.measure(ula(&mesh, &probe.to), probe.id, probe.size);
            }
        }
        self.follow_paths();
    }

    fn follow_paths(&mut self) {
        let Some(running) = &mut self.running else { return };
        if running.mtus.take_changed() {
            let members = u32::try_from(running.node.directory().len() / MEMBERS_AT_ONCE);
            running.pace.with_others(Instant::now(), 1 + members.unwrap_or(20));
        }
        while let Some(changed) = running.mtus.poll_news() {
            let name = running.node.directory().display_name(&changed.peer);
            self.events.emit(event(&changed, &name));
        }
    }

    /// What the kernel holds before anything is planned.
    pub(super) fn peek_kernel(&self) -> Option<Observed> {
        self.reconciler.peek(Scope::of(&plan_config(&self.config)), PEEK)
    }

    /// The MTUs of the routes to mesh addresses that an earlier process of this host left in the kernel.
    pub(super) fn held_mtus(&self, observed: Option<&Observed>) -> BTreeMap<IpNet, u32> {
        if !matches!(self.config.network.mtu, Automatic::Auto) {
            return BTreeMap::new();
        }
        observed.map(|observed| route_mtus(observed, self.config.network.table)).unwrap_or_default()
    }
}

impl Running {
    /// What the planner takes of the path to `peer`.
    pub(super) fn path_mtu(&self, peer: &NodeKey) -> Option<PathMtu> {
        let measured = self.mtus.known(peer).map(|known| known.mtu);
        measured.or_else(|| {
            let address = ula(&self.identity.certificate.mesh_id, peer);
            let mtu = *self.held.get(&host_prefix(address.into()))?;
            Some(PathMtu { mtu, small: None })
        })
    }

    /// The MTU towards `peer`, how it is known, and since when.
    pub(super) fn shown_mtu(
        &self,
        peer: &NodeKey,
    ) -> (Option<u32>, Option<&'static str>, Option<UnixTime>) {
        let Some(device) = self.observed.as_ref().and_then(|observed| observed.device.as_ref())
        else {
            return (None, None, None);
        };
        match self.mtus.known(peer) {
            Some(known) => {
                let age = i64::try_from(known.since.elapsed().as_secs()).unwrap_or(i64::MAX);
                let since = clock::unix().plus(-age);
                (Some(known.mtu.mtu), Some(known.state.as_str()), Some(since))
            }
            None if !self.measures() => (Some(device.mtu), Some("fixed"), None),
            None => (self.path_mtu(peer).map(|path| path.mtu), Some(State::Waiting.as_str()), None),
        }
    }

    /// Whether the plan has paths measured.
    fn measures(&self) -> bool {
        self.dont_fragment().is_some()
    }

    fn dont_fragment(&self) -> Option<DontFragment> {
        self.plan.desired.firewall.as_ref()?.rules.dont_fragment
    }

    fn seen_paths(
        &self,
        observed: &Observed,
        table: u32,
        link: impl Fn(IpAddr) -> u32,
    ) -> BTreeMap<NodeKey, Seen> {
        // Nothing is sent without the one, and nothing reaches the other.
        let (Some(device), Some(prober)) = (&observed.device, &self.prober) else {
            return BTreeMap::new();
        };
        let mesh = self.identity.certificate.mesh_id;
        let routes = route_mtus(observed, table);
        let firewall = observed.firewall.as_ref();
        let wanted = self.dont_fragment();
        let kept = firewall.and_then(|firewall| firewall.rules.as_ref()?.dont_fragment);
        let mut seen = BTreeMap::new();
        for record in self.node.directory().iter() {
            let Some(lane) = self.hop(record).and_then(|hop| hop.lanes.first()) else { continue };
            let carried = self.plan.carried.contains_key(&record.key);
            let Some(peer) = observed.peers.get(&lane.public_key) else { continue };
            let address = ula(&mesh, &record.key);
            let (Some(endpoint), Some(pad)) =
                (peer.endpoint, routes.get(&host_prefix(address.into())))
            else {
                continue;
            };
            let whole = match endpoint.ip().to_canonical() {
                IpAddr::V4(v4) => {
                    let fragmented = firewall.is_some_and(|f| f.sets.fragmented.contains(&v4));
                    wanted.is_some() && wanted == kept && !fragmented
                }
                IpAddr::V6(_) => true,
            };
            let health = self.tracker.health(&lane.public_key);
            let follows = device.backend == Backend::Kernel;
            let room =
                link(endpoint.ip().to_canonical()).saturating_sub(path_mtu::overhead(&endpoint));
            let path = Seen {
                up: health.is_some_and(|health| health.state == TunnelState::Up),
                endpoint,
                largest: device.mtu.min(room),
                pad: if follows { *pad } else { device.mtu },
                pad_follows: follows,
                whole,
                fragments: follows && endpoint.ip().to_canonical().is_ipv4(),
                alive: self
                    .node
                    .liveness(&record.key)
                    .is_some_and(|(liveness, _)| liveness == Liveness::Alive),
                // What a gateway is sent is not for one of those behind it alone. It measures its own paths, and says
                // in the tunnel when one of them shrank.
                sent: match carried {
                    true => 0,
                    false => peer.tx_bytes.saturating_sub(prober.sent(&address)),
                },
            };
            seen.insert(record.key, path);
        }
        seen
    }
}

/// The MTU of each route into the device: its own, or the device's.
fn route_mtus(observed: &Observed, table: u32) -> BTreeMap<IpNet, u32> {
    let Some(device) = &observed.device else { return BTreeMap::new() };
    let ours = observed.routes.iter().filter(|r| r.table == table && r.metric == ROUTE_METRIC);
    ours.filter_map(|route| match &route.kind {
        RouteKind::Device { mtu, .. } => Some((route.destination, mtu.unwrap_or(device.mtu))),
        _ => None,
    })
    .collect()
}

fn event(changed: &Changed, name: &str) -> Event {
    let now = changed.to;
    let text = match (changed.cause, changed.from) {
        (Cause::Unanswered, _) => {
            format!("{name} answers no probes: packets of {now} bytes go to it")
        }
        (Cause::Shrank, Some(before)) => {
            format!(
                "the path to {name} no longer carries {before} bytes and is measured again, from {now}"
            )
        }
        (_, Some(before)) => format!("the path to {name} carries {now} bytes, {before} before"),
        (_, None) => format!("the path to {name} carries {now} bytes"),
    };
    let told = if now < path_mtu::BASE || changed.cause == Cause::Shrank {
        Event::warning
    } else {
        Event::info
    };
    let event = told("path_mtu_changed", text).about(changed.peer, name).with("mtu", now);
    match changed.from {
        Some(before) => event.with("before", before),
        None => event,
    }
}

/// A line for paths that do not carry IPv6's 1,280 bytes.
pub(super) fn small_paths(running: &Running) -> Option<HealthLine> {
    let directory = running.node.directory();
    let small: Vec<(String, PathMtu)> = directory
        .iter()
        .filter_map(|record| {
            let known = running.mtus.known(&record.key).filter(|k| k.state == State::Complete)?;
            known.mtu.small?;
            Some((directory.display_name(&record.key), known.mtu))
        })
        .collect();
    let (_, first) = small.first()?;
    let mut names: Vec<String> = small.iter().take(NAMES).map(|(name, _)| name.clone()).collect();
    if small.len() > NAMES {
        names.push(format!("{} more", small.len() - NAMES));
    }
    let refused = small.iter().any(|(_, path)| path.small == Some(Small::NoIpv6));
    let what =
        if refused { "IPv6 to pods is refused there" } else { "IPv6 goes in fragments there" };
    let message = format!(
        "the path to {} carries {} bytes inside the tunnel, IPv6 needs {}: {what}",
        names.join(", "),
        first.mtu,
        path_mtu::BASE
    );
    let fix = "raise the MTU of the network between; `meshctl mtu` shows each path";
    Some(line("path_mtu_small", "warning", message, fix))
}
