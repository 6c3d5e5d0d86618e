//! Carries [`Change`]s into the kernel and reads back what is there.
//!
//! Responsible for: the WireGuard device (kernel or userspace), its peers and addresses, our routes,
//! rules, sysctls and nftables table; telling what is ours from what is not, with no memory of its
//! own. Not for deciding anything: what should be there is `meshd_core::plan`. Called by the daemon's
//! reconcile thread, and by `meshd cleanup`.
//!
//! | object | how it is known as ours |
//! |---|---|
//! | WireGuard device | kind and alias `meshd` |
//! | route | protocol 109 in the configured table |
//! | rule | protocol 109, at our priority or towards our table |
//! | nftables | tables `inet meshd` and `arp meshd` |
//! | sysctl of another's interface | its former value is noted in `/run/meshd` |

mod error;
pub mod fake;
pub mod linux;
mod ours;
pub mod sources;
pub mod userspace;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};

pub use error::DataplaneError;
pub use fake::FakeDataplane;
pub use linux::LinuxDataplane;
use meshd_core::plan::{Change, Observed, ObservedDevice, ObservedPeer, PlanConfig, Rule};
use meshd_proto::WgPublicKey;
pub use ours::Ours;

/// Which implementation of WireGuard may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// The kernel's, or a userspace process where the kernel has none.
    #[default]
    Auto,
    /// Only the kernel's.
    Kernel,
    /// Only a userspace process.
    Userspace,
}

/// What [`Dataplane::observe`] is to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Name of the WireGuard device, e.g. `mesh0`.
    pub interface: String,
    /// Our routing table.
    pub table: u32,
    /// The one behind it, for strict leak protection. Looked at in any case: it may have been wanted before.
    pub second_table: u32,
    /// Priority of our rules. Rules are ours when they carry our protocol number and either look up one of our tables
    /// or stand at this priority, so that what an older configuration made is found too.
    pub rule_priority: u32,
    /// Sysctls of others' interfaces to read, the same way.
    pub underlay_sysctls: BTreeSet<String>,
    /// Our table for ARP may be there. Where nobody knows it is looked for once.
    pub arp: bool,
    /// Sysctls to read, as paths below `/proc/sys`. Those that do not exist are left out of the answer.
    pub sysctls: BTreeSet<String>,
}

impl Scope {
    /// Where to look for what `config` asks for, and for what another configuration left.
    #[must_use]
    pub fn of(config: &PlanConfig) -> Self {
        Self {
            interface: config.interface.clone(),
            table: config.table,
            second_table: config.second_table(),
            rule_priority: config.rule_priority,
            underlay_sysctls: BTreeSet::new(),
            arp: config.nodes,
            sysctls: BTreeSet::new(),
        }
    }

    /// Whether a rule with our protocol number belongs to it.
    #[must_use]
    pub fn holds(&self, rule: &Rule) -> bool {
        [self.table, self.second_table].contains(&rule.table) || rule.priority == self.rule_priority
    }
}

/// The device and its peers.
pub type Glance = (ObservedDevice, BTreeMap<WgPublicKey, ObservedPeer>);

/// Reads and changes the kernel. All calls block: run it on a thread of its own, outside any async
/// runtime.
pub trait Dataplane: Send {
    /// Everything in `scope` that is ours. Another program's interface of that name is not: no device is reported, and
    /// making ours then fails with [`DataplaneError::NameTaken`].
    ///
    /// # Errors
    /// When something could not be read.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, DataplaneError>;

    /// The device and its peers alone: what no notification tells of. `None` as for [`Self::observe`].
    ///
    /// # Errors
    /// When something could not be read.
    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, DataplaneError>;

    /// Applies `changes` in order; those that do not depend on a failed one are still made. Returns the index and
    /// the error of each that failed. Every change can be applied twice.
    fn apply(&mut self, changes: &[Change]) -> Vec<(usize, DataplaneError)>;
}
