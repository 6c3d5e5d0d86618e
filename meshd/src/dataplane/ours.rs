//! Which netlink messages come from this process.
//!
//! The kernel tells everybody who changed something, by the port of the sender's socket: that of our connection, or of
//! an nft program that we run. What we did ourselves is known and needs no look.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

/// Connections of a data plane.
const CONNECTIONS: usize = 2;
/// More programs than these do not run within the time that a notification takes.
const REMEMBERED: usize = 8;

/// The ports, shared between who changes and who listens.
#[derive(Debug, Clone, Default)]
pub struct Ours(Arc<Ports>);

#[derive(Debug, Default)]
struct Ports {
    connections: [AtomicU32; CONNECTIONS],
    programs: [AtomicU32; REMEMBERED],
    next: AtomicUsize,
}

impl Ours {
    /// The connections have these ports from now on.
    pub(crate) fn set_connections(&self, ports: [u32; CONNECTIONS]) {
        for (place, port) in self.0.connections.iter().zip(ports) {
            place.store(port, Ordering::Relaxed);
        }
    }

    /// A program that we started has this process id, which the kernel makes the port of its first socket.
    pub(crate) fn add_program(&self, process: u32) {
        let next = self.0.next.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        if let Some(place) = self.0.programs.get(next) {
            place.store(process, Ordering::Relaxed);
        }
    }

    /// Whether who has this port is one of us. The kernel itself has 0, and is not.
    pub(crate) fn has(&self, port: u32) -> bool {
        let mut ports = self.0.connections.iter().chain(&self.0.programs);
        port != 0 && ports.any(|ours| ours.load(Ordering::Relaxed) == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_and_the_last_programs_are_ours() {
        let ours = Ours::default();
        assert!(!ours.has(0), "the kernel is not");
        ours.set_connections([9, 8]);
        for process in 100..110 {
            ours.add_program(process);
        }
        assert!(ours.has(9) && ours.has(8) && ours.has(109) && ours.has(102));
        assert!(!ours.has(101) && !ours.has(0) && !ours.has(10));
        ours.set_connections([11, 12]);
        assert!(ours.has(11) && !ours.has(9) && !ours.has(8));
    }
}
