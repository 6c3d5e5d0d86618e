//! What this node wants and its certificate does not grant, or grants and it wants no more, and when a signer is asked for
//! another.
//!
//! Asks nobody itself: an attempt of [`super`] asks for everything that is wanted. Called there, and by whoever shows what is
//! missing.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use meshd_proto::NodeKey;

use super::Node;
use crate::address::host_prefix;

impl Node {
    pub(super) fn next_attempt(&self) -> Instant {
        let next = self.renewals.next;
        let eager = self.renewals.eager.filter(|_| self.is_granted_amiss());
        eager.map_or(next, |at| at.min(next))
    }

    /// Its certificate grants less than it wants and may have, or more.
    pub(super) fn is_granted_amiss(&self) -> bool {
        self.lacks_a_grant() || self.holds_too_much()
    }

    pub(super) fn holds_too_much(&self) -> bool {
        let certificate = &self.own.identity().certificate;
        let Some(draft) = self.own.draft() else { return false };
        let idle = |prefix: &&IpNet| !draft.prefixes.contains(*prefix);
        let mut surplus = self.renewals.surplus.iter().filter(idle);
        surplus.any(|prefix| certificate.grants_exactly(prefix))
    }

    fn lacks_a_grant(&self) -> bool {
        let certificate = &self.own.identity().certificate;
        let Some(draft) = self.own.draft() else { return false };
        let bare_prefixes = draft
            .prefixes
            .iter()
            .copied()
            .filter(|prefix| !certificate.grants.iter().any(|grant| grant.covers(prefix)));
        let nodes = draft.node_claims.iter().map(|address| host_prefix(*address));
        let bare_nodes = nodes.filter(|prefix| !certificate.grants_exactly(prefix));
        bare_prefixes.chain(bare_nodes).any(|prefix| self.may_be_granted(&prefix))
    }

    /// It lies within the limits, and no signer has said that somebody else has it, who still does as far as is known.
    fn may_be_granted(&self, prefix: &IpNet) -> bool {
        let limits = &self.own.identity().certificate.limits;
        let has_it = |key: NodeKey| {
            let holder = self.directory.get(&key).filter(|record| !record.left);
            holder.is_some_and(|record| record.certificate.grants_some_of(prefix))
        };
        let denied = self.renewals.denied.get(prefix);
        let denied = denied.is_some_and(|holder| holder.is_none_or(has_it));
        limits.iter().any(|limit| limit.contains(prefix)) && !denied
    }

    /// In what time a signer is asked for `prefix`, which is wanted and not granted; zero: one is being asked. `None`: none
    /// is, since it is outside the limits, or was refused.
    #[must_use]
    pub fn asks_for_in(&self, prefix: &IpNet, now: Instant) -> Option<Duration> {
        if self.own.has_left() || !self.may_be_granted(prefix) {
            return None;
        }
        match self.renewals.asked {
            Some(_) => Some(Duration::ZERO),
            None => Some(self.next_attempt().saturating_duration_since(now)),
        }
    }
}
