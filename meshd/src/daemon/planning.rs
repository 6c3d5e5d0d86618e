//! From what is known to the data plane's plan, and from its reports to health.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use meshd_core::{
    address,
    event::of_blocked,
    node::Liveness,
    plan::{Change, Desired, LaneKeys, Member, Observed, PlanConfig, PlanInput, TunnelState, plan},
    trust::Record,
};
use meshd_proto::{NodeKey, WgPublicKey};

use super::{counters::Counters, own::Own, running::Running};
use crate::{
    config::{Automatic, Config, Encrypt, LeakProtection, RouteSource},
    dataplane::{DataplaneError, Scope},
    reconcile::Report,
};

/// Errors that are shown at once.
const ERRORS: usize = 8;
/// How long tunnels that nobody uses yet wait while this host has more to do than processors.
const BUSY: Duration = Duration::from_millis(200);

impl Running {
    /// Plans from what is known now, and returns what the data plane is to keep.
    pub(super) fn replan(&mut self, own: &Own, config: &Config) -> Option<(Arc<Desired>, Scope)> {
        let now = Instant::now();
        self.pace.begin();
        let own_record = self.own_record()?;
        let local = own.local_network(config, &self.node.observed());
        let members: Vec<Member> = self
            .node
            .directory()
            .iter()
            .filter(|record| record.key != own_record.key)
            .map(|record| self.member(record, &local.node_addresses, now))
            .collect();
        let barred: Vec<_> = self.node.barred().cloned().collect();
        let certificate = &self.identity.certificate;
        let externals = self.devices.externals(certificate, &own.prefixes, &self.tracker);
        let plan_config = plan_config(config);
        let lane =
            LaneKeys { private_key: self.lane.private_key(), public_key: self.lane.public_key() };
        let planned = plan(&PlanInput {
            own: &own_record,
            lane: &lane,
            config: &plan_config,
            local: &local,
            members: &members,
            barred: &barred,
            externals: &externals,
            complete: self.knows_all(now),
            steering: self.carrying.seen(),
        });
        self.publish_members();
        self.node.set_routed(planned.routed.values().flatten().copied());
        let desired = planned.desired.clone();
        let scope = scope(config, &desired);
        let name = |key: &NodeKey| self.node.directory().display_name(key);
        let changes = of_blocked(&self.plan.blocked, &planned.blocked, name);
        changes.into_iter().for_each(|event| self.events.emit(event));
        self.plan = planned;
        self.tell_carried();
        self.pace.planned(now, Instant::now());
        Some((desired, scope))
    }

    /// What the kernel holds of unknown members goes once everybody can be taken for known.
    pub(super) fn plan_when_complete(&mut self, now: Instant) {
        if self.plan.desired.additive && self.knows_all(now) {
            self.pace.soon(now);
        }
    }

    fn member(&self, record: &Arc<Record>, own: &[IpAddr], now: Instant) -> Member {
        let (liveness, since) = self.node.liveness(&record.key).unwrap_or((Liveness::Suspect, now));
        let tunnel = record.lanes.first().and_then(|lane| self.tracker.health(&lane.public_key));
        Member {
            record: record.clone(),
            liveness,
            down_for: (liveness == Liveness::Down).then(|| now.saturating_duration_since(since)),
            path: self.reached.path(&record.key),
            reached: self.reached.others(record),
            tunnel,
            path_mtu: self.path_mtu(&record.key),
            accepts: self.carrying.accepts(record, own),
        }
    }

    fn publish_members(&self) {
        let mesh = self.identity.certificate.mesh_id;
        let addresses =
            self.node.directory().iter().map(|r| (address::ula(&mesh, &r.key), r.key)).collect();
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Takes in what the data plane did.
    pub(super) fn take_report(&mut self, report: Report, counters: &mut Counters) {
        counters.changes_applied += report.applied.len() as u64;
        counters.changes_failed += report.errors.len() as u64;
        if report.repaired && !report.applied.is_empty() {
            counters.drift_repaired += report.applied.len() as u64;
            tracing::warn!(
                changes = report.applied.len(),
                "repaired what another program changed: {}",
                describe(&report.applied)
            );
            self.repaired = describe(&report.applied);
        } else if !report.applied.is_empty() {
            tracing::debug!(changes = report.applied.len(), "data plane changed");
        }
        self.contested = report.contested;
        let errors = different(&report.errors);
        if errors != self.dataplane_errors {
            for (code, text) in &errors {
                tracing::error!(code, "{text}");
            }
        }
        if errors.is_empty() && report.plan == self.plan_number && !self.programmed {
            self.programmed = true;
            let peers = report.observed.as_ref().map_or(0, |observed| observed.peers.len());
            tracing::info!(peers, "the kernel is as planned");
        }
        self.dataplane_errors = errors;
        let Some(observed) = report.observed else { return };
        let new = new_peers(&report.applied);
        if let Some(own) = self.node.own_record().filter(|_| !new.is_empty()) {
            let is_new = |record: &&Record| {
                record.lanes.first().is_some_and(|lane| new.contains(&lane.public_key))
            };
            let others = self.node.directory().iter().map(|record| &**record).filter(is_new);
            self.first.programmed(own, others, report.applied_at);
        }
        // It answers others as soon as there is a device, whether or not this side has anything to ask.
        self.start_prober();
        self.see(observed, report.at);
    }

    /// Takes in what somebody asked for. What was changed since then was reported with the time of the same reading, and
    /// may have come first.
    pub(super) fn see_asked(&mut self, observed: Observed, at: Instant) {
        if self.observed_at.is_none_or(|newest| newest < at) {
            self.see(observed, at);
        }
    }

    /// Takes in what the kernel held at `at`, unless something newer is known.
    fn see(&mut self, observed: Observed, at: Instant) {
        if self.observed_at.is_some_and(|newest| newest > at) {
            return;
        }
        self.observed_at = Some(at);
        self.first.observe(&observed.peers, at);
        let states =
            |running: &Self| (running.tunnel_states(), running.devices.places(&running.tracker));
        let before = states(self);
        self.tracker.observe(&observed.peers, at);
        if self.see_nodes(&observed, at) | (states(self) != before) {
            self.pace.with_others(Instant::now(), 1);
        }
        self.observed = Some(observed);
    }

    /// Helps pairs to their first handshake; returns the peers that are to be made anew for it.
    pub(super) fn help_first_handshakes(&mut self, now: Instant) -> Vec<WgPublicKey> {
        if self.first.queues() && self.load.is_busy() {
            self.first.hold(now + BUSY);
        }
        let due = self.first.due(now);
        // Where nothing was sent, silence says nothing.
        let Some(prober) = &self.prober else { return Vec::new() };
        let mesh = self.identity.certificate.mesh_id;
        for record in self.node.directory().iter() {
            if record.lanes.first().is_some_and(|lane| due.poke.contains(&lane.public_key)) {
                prober.poke(address::ula(&mesh, &record.key));
            }
        }
        due.renew
    }

    /// What the plan takes of the tunnels, for which one that the kernel does not hold yet is as one without a handshake.
    fn tunnel_states(&self) -> Vec<(TunnelState, u32)> {
        let lanes = self.node.directory().iter().filter_map(|record| record.lanes.first());
        let health = lanes.map(|lane| self.tracker.health(&lane.public_key));
        health
            .map(|health| health.map_or((TunnelState::Never, 0), |h| (h.state, h.attempt)))
            .collect()
    }
}

/// What failed, each thing once: without its device, a thousand routes fail for the same reason.
fn different(errors: &[DataplaneError]) -> Vec<(&'static str, String)> {
    let mut seen = BTreeSet::new();
    let all = errors.iter().map(|error| (error.code(), error.to_string()));
    let mut kept: Vec<_> = all.filter(|error| seen.insert(error.clone())).collect();
    let more = kept.len().saturating_sub(ERRORS);
    kept.truncate(ERRORS);
    if let (Some((code, _)), 1..) = (kept.last(), more) {
        kept.push((*code, format!("{more} more changes of the kernel failed; mend these first")));
    }
    kept
}

fn new_peers(changes: &[Change]) -> BTreeSet<WgPublicKey> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::PutPeer { public_key, new: true, .. } => Some(*public_key),
            _ => None,
        })
        .collect()
}

fn describe(changes: &[Change]) -> String {
    const SHOWN: usize = 4;
    let mut text =
        changes.iter().take(SHOWN).map(|change| format!("{change}")).collect::<Vec<_>>().join(", ");
    if changes.len() > SHOWN {
        text.push_str(&format!(" and {} more", changes.len() - SHOWN));
    }
    text
}

/// The part of the configuration that the planner takes.
pub(crate) fn plan_config(config: &Config) -> PlanConfig {
    PlanConfig {
        interface: config.wireguard.interface.to_string(),
        listen_port: config.wireguard.port,
        fwmark: config.wireguard.fwmark,
        table: config.network.table,
        rule_priority: config.network.rule_priority,
        mtu: match config.network.mtu {
            Automatic::Auto => None,
            Automatic::Given(mtu) => Some(u32::from(mtu)),
        },
        keepalive: config.wireguard.persistent_keepalive,
        strict: config.network.leak_protection == LeakProtection::Strict,
        clamp_mss: config.network.mss_clamp,
        workloads: config.network.route_source == RouteSource::Workloads,
        nodes: config.network.encrypt == Encrypt::PodsAndNodes,
        gossip_port: config.gossip.listen.port(),
    }
}

/// What the data plane is to look at for `desired`.
pub(super) fn scope(config: &Config, desired: &Desired) -> Scope {
    Scope {
        underlay_sysctls: desired.underlay_sysctls.keys().cloned().collect(),
        arp: desired.arp.is_some(),
        sysctls: desired.device.iter().flat_map(|device| device.sysctls.keys().cloned()).collect(),
        ..Scope::of(&plan_config(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_said_once_and_many_are_counted() {
        let gone = |action| DataplaneError::NoInterface { action, name: "mesh0".to_owned() };
        let errors: Vec<_> = (0..60).map(|_| gone("add a route")).collect();
        assert_eq!(different(&errors).len(), 1);
        let mut errors = errors;
        errors.extend((0..60).map(|n| DataplaneError::BadName { name: format!("bad {n}") }));
        let shown = different(&errors);
        assert_eq!(shown.len(), ERRORS + 1);
        assert_eq!(shown[ERRORS].1, "53 more changes of the kernel failed; mend these first");
    }
}
