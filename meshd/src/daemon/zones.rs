//! Gateways of this host's zone: what the core is told of them, what it wants asked, and what people are told.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_core::{
    address::{self, ula},
    event::Event,
    gateway::{self, CAPABILITY, Candidate, Choice, Fitness, Seen, Verdict, Watch},
    node::Liveness,
    plan::TunnelState,
    trust::Record,
};
use meshd_proto::{NodeKey, NodeName, control::HealthLine};

use super::{Daemon, health::line, running::Running};
use crate::{config::Config, transport::Transport};

/// A member that a gateway carries to counts as there for so long after it was heard, whatever gossip says.
const HEARD_FRESH: Duration = Duration::from_secs(30);

/// What is known of gateways, and of those to whom they carry.
#[derive(Debug, Default)]
pub(super) struct Zones {
    choice: Choice,
    watch: Watch,
    /// What was made of the watch's last word.
    judged: Option<Verdict>,
    /// When each was last heard through the tunnel.
    heard: BTreeMap<NodeKey, Instant>,
}

impl Zones {
    /// With what this host's record said before this start.
    pub(super) fn new(before: Option<NodeKey>) -> Self {
        Self { choice: Choice::new(before), ..Self::default() }
    }
}

impl Running {
    /// The gateway that this host's record is to name.
    pub(super) fn via(&self, config: &Config) -> Option<NodeKey> {
        self.zones.choice.current().filter(|_| !config.node.gateways.is_empty())
    }

    /// What this host can do for others.
    pub(super) fn capabilities(config: &Config) -> Vec<String> {
        config.node.gateway.then(|| CAPABILITY.to_owned()).into_iter().collect()
    }

    /// A packet of `from` came out of the tunnel.
    pub(super) fn note_heard(&mut self, from: NodeKey) {
        let now = Instant::now();
        self.zones.heard.insert(from, now);
        let carried = self.plan.carried.contains_key(&from);
        self.zones.watch.heard(&from, carried, now);
    }

    /// The same of what came by QUIC, if it did so inside the tunnel.
    pub(super) fn note_quic(&mut self, from: NodeKey, transport: &Transport) {
        if !self.plan.carried.contains_key(&from) {
            return;
        }
        let mesh = IpNet::V6(address::ula_prefix(&self.identity.certificate.mesh_id));
        if transport.remote(&from).is_some_and(|remote: IpAddr| mesh.contains(&remote)) {
            self.note_heard(from);
        }
    }

    /// The state of the tunnel to a member that is reached through `gateway`: it has no handshake of its own.
    pub(super) fn carried_state(&self, member: &NodeKey, gateway: &NodeKey) -> TunnelState {
        let Some(heard) = self.zones.heard.get(member) else { return TunnelState::Never };
        let lane = self.node.directory().get(gateway).and_then(|record| record.lanes.first());
        let health = lane.and_then(|lane| self.tracker.health(&lane.public_key));
        let works = health.is_some_and(|health| health.state == TunnelState::Up);
        let alive = self.node.liveness(member).is_some_and(|(state, _)| state == Liveness::Alive);
        match works && (alive || heard.elapsed() < HEARD_FRESH) {
            true => TunnelState::Up,
            false => TunnelState::Stale,
        }
    }

    /// The key of the WireGuard peer by which `record`'s member is reached.
    pub(super) fn hop<'a>(&'a self, record: &'a Record) -> Option<&'a Record> {
        match self.plan.carried.get(&record.key) {
            Some(gateway) => self.node.directory().get(gateway).map(|record| &**record),
            None => Some(record),
        }
    }

    fn named<'a>(&'a self, name: &'a NodeName) -> Result<&'a Record, gateway::Odd> {
        match self.node.directory().by_name(name.as_str())[..] {
            [one] if !one.left => Ok(one),
            _ => Err(gateway::Odd::Unknown),
        }
    }

    /// The configured gateways, in their order, and why one of them cannot be.
    fn gateways<'a>(
        &'a self,
        config: &'a Config,
    ) -> Vec<(&'a NodeName, Result<&'a Record, gateway::Odd>)> {
        let Some(own) = self.node.own_record() else { return Vec::new() };
        let fits = |name: &'a NodeName| {
            let record = self.named(name)?;
            gateway::fits(own, record).map(|()| record)
        };
        config.node.gateways.iter().map(|name| (name, fits(name))).collect()
    }

    fn is_gone(&self, gateway: &Record) -> bool {
        let liveness = self.node.liveness(&gateway.key).map(|(liveness, _)| liveness);
        let lane = gateway.lanes.first();
        let health = lane.and_then(|lane| self.tracker.health(&lane.public_key));
        matches!(liveness, Some(Liveness::Down | Liveness::Left))
            || health.is_some_and(|health| health.state == TunnelState::Stale)
    }

    fn candidates(&self, config: &Config) -> Vec<Candidate> {
        let fit = |record: &Record| match self.is_gone(record) {
            true => Fitness::Down,
            false => Fitness::Up,
        };
        self.gateways(config)
            .into_iter()
            .filter_map(|(name, fits)| match fits {
                Ok(record) => Some(Candidate { key: record.key, fitness: fit(record) }),
                Err(_) => {
                    let key = self.named(name).ok()?.key;
                    Some(Candidate { key, fitness: Fitness::Unfit })
                }
            })
            .collect()
    }

    fn seen(&self) -> Seen {
        let gateway = self.zones.choice.current();
        let Some(record) = gateway.and_then(|key| self.node.directory().get(&key)) else {
            return Seen { gateway, ..Seen::default() };
        };
        let liveness = |key: &NodeKey| self.node.liveness(key).map(|(liveness, _)| liveness);
        let peers = self.observed.as_ref().map(|observed| &observed.peers);
        let peer = record.lanes.first().and_then(|lane| peers?.get(&lane.public_key));
        // Those that are known to be gone are no witnesses, nor is who never said anything.
        let there = |key: &NodeKey| {
            self.zones.heard.contains_key(key) && liveness(key) != Some(Liveness::Down)
        };
        let (outside, unheard) = self.plan.carried.keys().copied().partition(there);
        Seen {
            gateway,
            suspect: liveness(&record.key) == Some(Liveness::Suspect),
            bytes: peer.map_or((0, 0), |peer| (peer.rx_bytes, peer.tx_bytes)),
            outside,
            unheard,
        }
    }
}

impl Daemon {
    /// When the gateways should be looked at, beside each second.
    pub(super) fn next_gateway_look(&self) -> Option<Instant> {
        self.running.as_ref()?.zones.watch.poll_timeout()
    }

    /// Asks what is to be asked, and names another gateway where that is right.
    pub(super) fn tend_gateways(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        let known = |key: &NodeKey| running.node.directory().get(key).is_some();
        running.zones.heard.retain(|key, _| known(key));
        if self.config.node.gateways.is_empty() && running.zones.choice.current().is_none() {
            running.zones.watch = Watch::default();
            return;
        }
        let seen = running.seen();
        let ask = running.zones.watch.look(&seen, now);
        if let Some(prober) = &running.prober {
            let mesh = running.identity.certificate.mesh_id;
            ask.iter().for_each(|key| prober.poke(ula(&mesh, key)));
        }
        let verdict = running.zones.watch.verdict();
        let new = verdict != running.zones.judged;
        running.zones.judged = verdict;
        match verdict {
            Some(Verdict::Carries) => running.zones.choice.leads_outside(now),
            Some(Verdict::Silent | Verdict::LeadsNowhere) if new => {
                running.zones.choice.led_nowhere(now);
            }
            _ => {}
        }
        let before = running.zones.choice.current();
        let candidates = running.candidates(&self.config);
        if running.zones.choice.decide(&candidates, now) {
            let event = running.changed_gateway(before, verdict);
            running.zones.judged = None;
            self.events.emit(event);
            self.announce();
        }
    }
}

impl Running {
    fn changed_gateway(&self, before: Option<NodeKey>, verdict: Option<Verdict>) -> Event {
        let name = |key: &NodeKey| self.node.directory().display_name(key);
        let why = before.map(|key| {
            let gateway = name(&key);
            let record = self.node.directory().get(&key);
            match verdict {
                _ if record.is_some_and(|record| self.is_gone(record)) => {
                    format!("{gateway} is gone")
                }
                Some(Verdict::Silent) => format!("{gateway} does not answer in the tunnel"),
                Some(Verdict::LeadsNowhere) => format!("nobody behind {gateway} answers"),
                _ => format!("before it was {gateway}"),
            }
        });
        let why = why.map(|why| format!("; {why}")).unwrap_or_default();
        match self.zones.choice.current() {
            Some(key) => {
                let text = format!("other zones reach this host through {}{why}", name(&key));
                Event::info("gateway_changed", text).about(key, name(&key))
            }
            None => Event::warning("gateway_changed", format!("no gateway is named any more{why}")),
        }
    }
}

/// Lines about configured gateways that cannot carry, and about all of them being gone.
pub(super) fn lines(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let config = &daemon.config;
    let own = running.identity.certificate.name.as_str();
    let gateways = running.gateways(config);
    for (name, odd) in gateways.iter().filter_map(|(name, fits)| Some((name, fits.err()?))) {
        let text = odd.explain(own, name.as_str());
        let (why, fix) = text.split_once("; ").unwrap_or((&text, "see [node] gateways"));
        let message = format!("{name} cannot be this host's gateway: {why}");
        lines.push(line("gateway_unfit", "warning", message, fix));
    }
    let (zones, now) = (&running.zones, Instant::now());
    let leads_nowhere = zones.watch.verdict() == Some(Verdict::LeadsNowhere);
    let named = zones.choice.current().filter(|_| leads_nowhere);
    let resting = zones.choice.resting(now).filter(|key| Some(*key) != zones.choice.current());
    for key in named.into_iter().chain(resting) {
        let Some(record) = running.node.directory().get(&key) else { continue };
        if !running.is_gone(record) {
            let message = format!("nobody outside answers through the gateway {}", record.name);
            let fix = format!(
                "see with `meshctl status` on {} that it forwards and reaches other zones; it is tried again by itself",
                record.name
            );
            lines.push(line("gateway_leads_nowhere", "warning", message, fix));
        }
    }
    let fit: Vec<&Record> = gateways.iter().filter_map(|(_, fits)| fits.ok()).collect();
    if !config.node.gateways.is_empty() && fit.iter().all(|record| running.is_gone(record)) {
        let names: Vec<&str> = config.node.gateways.iter().map(NodeName::as_str).collect();
        let message = format!(
            "no gateway of this host is there ({}): other zones do not reach it",
            names.join(", ")
        );
        let fix = "start one of them, or name another member of the zone in [node] gateways";
        lines.push(line("gateways_gone", "error", message, fix));
    }
}
