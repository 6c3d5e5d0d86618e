//! What a userspace device still has to send when a route is gone.
//!
//! The kernel's device looks up the peer of a packet as it is routed. A userspace device does so when its process comes to
//! read the packet from the TUN's queue, which on a busy host is milliseconds later: an allowed IP that went together
//! with its route would lose what waits there. So it goes a while after.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::types::{Backend, Change, ObservedDevice, RouteKind};

/// Far longer than a process waits for a processor.
const QUEUE: Duration = Duration::from_millis(500);

/// Of one device.
#[derive(Debug, Default)]
pub struct Draining {
    /// Destinations whose device route went, and when.
    unrouted: BTreeMap<IpNet, Instant>,
    due: Option<Instant>,
}

impl Draining {
    /// Takes from `changes`, which are to be made on `device` now, what would lose packets; a later comparison finds it
    /// again.
    pub fn hold_back(
        &mut self,
        device: Option<&ObservedDevice>,
        changes: &mut Vec<Change>,
        now: Instant,
    ) {
        self.due = None;
        if device.is_none_or(|device| device.backend != Backend::Userspace) {
            return;
        }
        self.unrouted.retain(|_, at| now.saturating_duration_since(*at) < QUEUE);
        for change in changes.iter() {
            if let Change::RemoveRoute(route) = change
                && matches!(route.kind, RouteKind::Device { .. })
            {
                self.unrouted.insert(route.destination, now);
            }
        }
        let (unrouted, due) = (&self.unrouted, &mut self.due);
        changes.retain_mut(|change| {
            let Change::TakeAllowedIps { allowed_ips, .. } = change else { return true };
            allowed_ips.retain(|ip| {
                let free = unrouted.get(ip).map(|at| *at + QUEUE);
                *due = due.iter().copied().chain(free).min();
                free.is_none()
            });
            !allowed_ips.is_empty()
        });
    }

    /// When something that was held back last time may be done.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use meshd_proto::WgPublicKey;

    use super::*;
    use crate::plan::Route;

    const A: &str = "192.0.2.1/32";
    const B: &str = "192.0.2.2/32";

    fn device(backend: Backend) -> ObservedDevice {
        ObservedDevice {
            name: "mesh0".to_owned(),
            backend,
            public_key: None,
            listen_port: 51820,
            fwmark: 16,
            mtu: 1420,
            up: true,
            addresses: [].into(),
            sysctls: [].into(),
        }
    }

    fn unroute(to: &str) -> Change {
        let kind = RouteKind::Device { device: "mesh0".to_owned(), source: None, mtu: None };
        let destination = to.parse().unwrap();
        Change::RemoveRoute(Route { destination, table: 51820, metric: 16, kind })
    }

    fn take(list: &[&str]) -> Change {
        Change::TakeAllowedIps {
            device: "mesh0".to_owned(),
            public_key: WgPublicKey([1; 32]),
            allowed_ips: list.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn held(
        draining: &mut Draining,
        backend: Backend,
        changes: &[Change],
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = changes.to_vec();
        draining.hold_back(Some(&device(backend)), &mut changes, now);
        changes
    }

    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn what_was_just_unrouted_is_accepted_a_while_longer() {
        let (mut draining, now) = (Draining::default(), start());
        let changes = [unroute(A), take(&[A, B])];
        let user = Backend::Userspace;
        assert_eq!(held(&mut draining, user, &changes, now), [unroute(A), take(&[B])]);
        assert_eq!(draining.due(), Some(now + QUEUE));
        let soon = now + QUEUE / 2;
        assert_eq!(held(&mut draining, user, &[take(&[A])], soon), []);
        assert_eq!(draining.due(), Some(now + QUEUE), "it is not put off");
        assert_eq!(held(&mut draining, user, &[take(&[A])], now + QUEUE), [take(&[A])]);
        assert_eq!(draining.due(), None);
    }

    #[test]
    fn the_kernels_device_has_no_queue() {
        let mut draining = Draining::default();
        let changes = [unroute(A), take(&[A])];
        assert_eq!(held(&mut draining, Backend::Kernel, &changes, start()), changes);
        assert_eq!(draining.due(), None);
    }
}
