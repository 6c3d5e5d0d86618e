//! Which single workloads this node's record names.
//!
//! ```text
//!            claimed by another member that is there        3 s, or the other withdraws it
//! on host ──┬──────────────────────────────────► waiting ──────────────┐
//!           └─ not claimed ────────────────────────────────────────────┴─► named, as long as it is on the host
//! ```
//! A workload that moves here from another host is named when the other has withdrawn it, so that nobody ever sees two
//! claims and has to choose. Whoever withdraws nothing is waited for in vain, and then the rule for two claimants
//! decides.
//!
//! What is named stays named while it is on this host; so where there are more than a record holds, the same ones are
//! left out each time. Not for what is granted, nor for what else the record says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use prost::Message as _;

use crate::{
    address, limits,
    node::{Liveness, Node, types::SharedRecord},
    now::Now,
    trust::RecordDraft,
};

/// Longer than the other side needs: its updates are a second apart, and then have to get here.
const PATIENCE: Duration = Duration::from_secs(3);

/// Workloads of this host that its record does not name, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unnamed {
    /// The certificate does not grant them.
    pub not_granted: usize,
    /// One of those.
    pub example: Option<IpNet>,
    /// A record holds no more.
    pub no_room: usize,
}

/// What is known of this host's workloads.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    named: BTreeSet<IpNet>,
    waiting: BTreeMap<IpNet, Instant>,
    pub(super) unnamed: Unnamed,
}

/// What a record has left for workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) prefixes: usize,
    pub(super) bytes: usize,
}

impl Room {
    /// Beside `taken` other prefixes, in a payload that has `bytes` without workloads.
    pub(super) fn beside(taken: usize, bytes: usize) -> Self {
        Self {
            prefixes: limits::RECORD_PREFIXES.saturating_sub(taken),
            bytes: limits::RECORD_PAYLOAD.saturating_sub(bytes),
        }
    }

    fn take(&mut self, prefix: &IpNet) -> bool {
        let encoded = address::prefix_to_wire(prefix).encoded_len();
        // In a record it has a tag and a length before it, of one byte each.
        let cost = encoded + 2;
        let fits = self.prefixes > 0 && self.bytes >= cost;
        if fits {
            self.prefixes -= 1;
            self.bytes -= cost;
        }
        fits
    }
}

impl Workloads {
    /// What the record named before this start stays named.
    pub(super) fn remember(&mut self, prefixes: &[IpNet]) {
        self.named.extend(prefixes);
    }

    /// Chooses from `granted`, which are on this host now. `claimed`: by another member that is there.
    pub(super) fn choose(
        &mut self,
        granted: &BTreeSet<IpNet>,
        mut room: Room,
        claimed: impl Fn(&IpNet) -> bool,
        now: Instant,
    ) -> BTreeSet<IpNet> {
        let (stay, new): (Vec<IpNet>, Vec<IpNet>) =
            granted.iter().partition(|prefix| self.named.contains(prefix));
        let mut waiting = BTreeMap::new();
        for prefix in new.iter().filter(|prefix| claimed(prefix)) {
            let since = self.waiting.get(prefix).copied().unwrap_or(now);
            waiting.insert(*prefix, since);
        }
        let ready = new.into_iter().filter(|prefix| {
            waiting
                .get(prefix)
                .is_none_or(|since| now.saturating_duration_since(*since) >= PATIENCE)
        });
        let ready: Vec<IpNet> = stay.into_iter().chain(ready).collect();
        self.named = ready.iter().copied().filter(|prefix| room.take(prefix)).collect();
        self.unnamed.no_room = ready.len() - self.named.len();
        // Those that found no room wait for room, not for others.
        waiting.retain(|prefix, since| {
            !self.named.contains(prefix) && now.saturating_duration_since(*since) < PATIENCE
        });
        self.waiting = waiting;
        self.named.clone()
    }

    /// When it is to be chosen anew.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().min().map(|since| *since + PATIENCE)
    }
}

impl Node {
    /// Workloads of this host that its record does not name.
    #[must_use]
    pub fn unnamed_workloads(&self) -> &Unnamed {
        &self.own.workloads.unnamed
    }

    /// Puts the workloads that the record can and may name among the prefixes of `draft`, whose other prefixes are
    /// granted, and which makes a payload of `bytes` without workloads. What lies in those prefixes is named with them.
    pub(super) fn name_workloads(&mut self, draft: &mut RecordDraft, bytes: usize, now: Now) {
        let grants = &self.own.identity.certificate.grants;
        let others: BTreeSet<IpNet> = draft.prefixes.iter().map(IpNet::trunc).collect();
        let (granted, refused): (BTreeSet<_>, BTreeSet<_>) = draft
            .workloads
            .drain(..)
            .filter(|workload| !others.iter().any(|prefix| prefix.contains(workload)))
            .partition(|workload| grants.iter().any(|grant| grant.covers(workload)));
        let mut workloads = std::mem::take(&mut self.own.workloads);
        workloads.unnamed.not_granted = refused.len();
        workloads.unnamed.example = refused.first().copied();
        let room = Room::beside(others.len(), bytes);
        let chosen = workloads.choose(&granted, room, |w| self.is_claimed(w), now.mono);
        draft.prefixes.extend(chosen);
        self.own.workloads = workloads;
    }

    /// Another member that is there has it in its record.
    fn is_claimed(&self, workload: &IpNet) -> bool {
        let own = self.own.key;
        self.directory.iter().any(|record| {
            record.key != own
                && !record.left
                && record.prefixes.binary_search(workload).is_ok()
                && self.liveness(&record.key).is_none_or(|(state, _)| state != Liveness::Down)
        })
    }

    /// A member's record came in the place of `before`: what it has withdrawn may be waited for here.
    pub(in crate::node) fn heed_withdrawal(&mut self, before: &SharedRecord, now: Now) {
        let waiting = &self.own.workloads.waiting;
        let freed = waiting.keys().any(|workload| {
            before.prefixes.binary_search(workload).is_ok() && !self.is_claimed(workload)
        });
        if freed && !self.own.has_left() {
            self.own.schedule(now.mono);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node::fixture::Origin;

    fn v4(number: u32) -> IpNet {
        IpNet::new(std::net::Ipv4Addr::from_bits(0x0af0_0000 + number).into(), 32).unwrap()
    }

    fn v6(number: u128) -> IpNet {
        IpNet::new(std::net::Ipv6Addr::from_bits((0xfd00 << 112) + number).into(), 128).unwrap()
    }

    fn choose(workloads: &mut Workloads, granted: &BTreeSet<IpNet>, room: Room) -> BTreeSet<IpNet> {
        workloads.choose(granted, room, |_| false, Origin::default().now().mono)
    }

    fn wire_size(prefixes: &BTreeSet<IpNet>) -> usize {
        let prefixes = prefixes.iter().map(address::prefix_to_wire).collect();
        meshd_proto::wire::NodeRecord { prefixes, ..Default::default() }.encoded_len()
    }

    proptest! {
        #[test]
        fn what_is_named_fits_stays_and_leaves_nothing_out_that_would_fit(
            rounds in prop::collection::vec(prop::collection::btree_set(0..60_u32, 0..50), 1..8),
            prefixes in 0..40_usize,
            bytes in 0..600_usize,
        ) {
            let room = Room { prefixes, bytes };
            let mut workloads = Workloads::default();
            let mut before = BTreeSet::new();
            for round in rounds {
                let on_host: BTreeSet<IpNet> = round
                    .iter()
                    .map(|n| if n % 3 == 0 { v6(u128::from(*n)) } else { v4(*n) })
                    .collect();
                let named = choose(&mut workloads, &on_host, room);
                prop_assert!(named.is_subset(&on_host));
                prop_assert!(named.len() <= prefixes && wire_size(&named) <= bytes);
                let stayed: BTreeSet<IpNet> = before.intersection(&on_host).copied().collect();
                prop_assert!(stayed.is_subset(&named), "something that fitted before was left out");
                prop_assert_eq!(named.len() + workloads.unnamed.no_room, on_host.len());
                if let Some(out) = on_host.difference(&named).find(|net| net.addr().is_ipv4()) {
                    let mut more = named.clone();
                    more.insert(*out);
                    prop_assert!(more.len() > prefixes || wire_size(&more) > bytes, "{out} would fit");
                }
                before = named;
            }
        }
    }

    #[test]
    fn a_record_holds_1024_of_ipv4_and_as_many_of_ipv6_as_its_payload() {
        let all4: BTreeSet<IpNet> = (0..1_100).map(v4).collect();
        let mut workloads = Workloads::default();
        let named = choose(&mut workloads, &all4, Room::beside(2, 1_000));
        assert_eq!((named.len(), workloads.unnamed.no_room), (1_022, 78));
        let all6: BTreeSet<IpNet> = (0..1_100).map(v6).collect();
        let named = choose(&mut Workloads::default(), &all6, Room::beside(0, 1_000));
        assert!((600..1_024).contains(&named.len()), "{}", named.len());
        assert!(wire_size(&named) + 1_000 <= limits::RECORD_PAYLOAD);
    }

    #[test]
    fn what_another_still_claims_waits_until_it_does_not_or_for_a_while() {
        let start = Origin::default().now().mono;
        let here = BTreeSet::from([v4(1), v4(2)]);
        let room = Room::beside(0, 0);
        let mut workloads = Workloads::default();
        let mut at = |claimed: bool, seconds: f64| {
            let now = start + Duration::from_secs_f64(seconds);
            let named = workloads.choose(&here, room, |w| claimed && *w == v4(2), now);
            (named.len(), workloads.next().map(|at| at.duration_since(start).as_secs()))
        };
        assert_eq!(at(true, 0.0), (1, Some(3)));
        assert_eq!(at(true, 2.9), (1, Some(3)));
        assert_eq!(at(true, 3.0), (2, None), "whoever never withdraws is not waited for");
        assert_eq!(at(true, 4.0), (2, None), "what is named is not taken back");
        let mut workloads = Workloads::default();
        assert_eq!(workloads.choose(&here, room, |w| *w == v4(2), start).len(), 1);
        assert_eq!(workloads.choose(&here, room, |_| false, start).len(), 2);
        assert_eq!(workloads.next(), None);
    }
}
