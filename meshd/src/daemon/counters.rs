//! Counters of the daemon itself; the node's own are added when they are shown.

use std::collections::BTreeMap;

use meshd_core::{event::Severity, node};
use meshd_proto::control::{Counter, CountersReply};

/// Distinct reasons that are kept; codes are fixed words, so this is never reached.
const REASONS: usize = 256;

/// Counted since start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Handshakes and streams refused, by reason.
    pub(super) connections_refused: BTreeMap<&'static str, u64>,
    /// Enrolments refused, by reason.
    pub(super) enrolments_refused: BTreeMap<&'static str, u64>,
    /// Invitations to become a signer, and offers to be one, that were refused, by reason.
    signerships_refused: BTreeMap<&'static str, u64>,
    /// Enrolments granted by this signer.
    pub(super) enrolments: u64,
    /// Certificates renewed by this signer.
    pub(super) renewals: u64,
    /// Changes made in the kernel.
    pub(super) changes_applied: u64,
    /// Changes that failed.
    pub(super) changes_failed: u64,
    /// Of the changes made, those that undid what others did.
    pub(super) drift_repaired: u64,
    /// Frames dropped because a peer was too slow.
    pub(super) frames_dropped: u64,
    /// Readings of issuers' keys, by outcome.
    issuer_keys: BTreeMap<&'static str, u64>,
    /// Stored records that were not believed.
    pub(super) stored_refused: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(super) fn connection_refused(&mut self, code: &'static str) {
        bump(&mut self.connections_refused, code);
    }

    pub(super) fn enrolment_refused(&mut self, code: &'static str) {
        bump(&mut self.enrolments_refused, code);
    }

    pub(super) fn signership_refused(&mut self, code: &'static str) {
        bump(&mut self.signerships_refused, code);
    }

    pub(super) fn issuer_keys(&mut self, outcome: &'static str) {
        bump(&mut self.issuer_keys, outcome);
    }

    pub(super) fn stored_refused(&mut self, code: &'static str) {
        bump(&mut self.stored_refused, code);
    }

    /// All of them, named as in the metrics.
    pub(super) fn reply(
        &self,
        node: Option<&node::Counters>,
        events: &[(&'static str, Severity, u64)],
    ) -> CountersReply {
        let counter = |name: &str, labels: &[(&str, &str)], value: u64| Counter {
            name: format!("meshd_{name}_total"),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            value,
        };
        let mut counters: Vec<Counter> = events
            .iter()
            .map(|(code, severity, value)| {
                let labels = [("code", *code), ("severity", severity.as_str())];
                counter("events", &labels, *value)
            })
            .collect();
        let mut one = |name: &str, label: Option<(&str, &str)>, value: u64| {
            counters.push(counter(name, label.as_slice(), value));
        };
        for (name, by_reason) in [
            ("connections_refused", &self.connections_refused),
            ("enrolments_refused", &self.enrolments_refused),
            ("signerships_refused", &self.signerships_refused),
            ("stored_records_refused", &self.stored_refused),
        ] {
            for (reason, value) in by_reason {
                one(name, Some(("reason", reason)), *value);
            }
        }
        for (outcome, value) in &self.issuer_keys {
            one("issuer_keys", Some(("outcome", outcome)), *value);
        }
        one("enrolments", None, self.enrolments);
        one("certificates_renewed", None, self.renewals);
        one("kernel_changes", None, self.changes_applied);
        one("kernel_changes_failed", None, self.changes_failed);
        one("drift_repaired", None, self.drift_repaired);
        one("frames_dropped", None, self.frames_dropped);
        if let Some(node) = node {
            for (reason, value) in &node.refusals {
                one("refusals", Some(("reason", reason)), *value);
            }
            for (kind, traffic) in [("datagrams", node.datagrams), ("frames", node.frames)] {
                one(kind, Some(("direction", "received")), traffic.received);
                one(kind, Some(("direction", "sent")), traffic.sent);
                let bytes = format!("{kind}_bytes");
                one(&bytes, Some(("direction", "received")), traffic.received_bytes);
                one(&bytes, Some(("direction", "sent")), traffic.sent_bytes);
            }
            one("records_accepted", None, node.records_accepted);
            one("records_known", None, node.records_known);
            one("syncs", Some(("outcome", "completed")), node.syncs_completed);
            one("syncs", Some(("outcome", "failed")), node.syncs_failed);
            one("swim_renewals", None, node.renewals);
            one("records_published", None, node.published);
            one("certificate_renewals_failed", None, node.certificate_renewals_failed);
        }
        CountersReply { counters }
    }
}

fn bump(counters: &mut BTreeMap<&'static str, u64>, code: &'static str) {
    if counters.len() < REASONS || counters.contains_key(code) {
        *counters.entry(code).or_default() += 1;
    }
}
