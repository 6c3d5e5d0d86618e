//! A data plane over a kernel in memory, which can be made to fail at every single call.
//!
//! For tests of what stands above: the reconcile loop and the daemon. The kernel's rules are
//! `meshd_core`'s model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshd_core::plan::{Change, Kernel, KernelError, Observed};
use nix::errno::Errno;

use super::{Dataplane, DataplaneError, Glance, Scope};

/// A data plane in memory. Clones share one kernel, so that a test keeps a hand on it.
#[derive(Debug, Clone, Default)]
pub struct FakeDataplane(Arc<Mutex<Kernel>>);

impl FakeDataplane {
    /// The kernel, to look into, to break, or to make fail.
    pub fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataplane for FakeDataplane {
    fn observe(&mut self, _: &Scope) -> Result<Observed, DataplaneError> {
        self.kernel().observe().map_err(|error| refused("read", &error))
    }

    fn glance(&mut self, _: &Scope) -> Result<Option<Glance>, DataplaneError> {
        let observed = self.kernel().observe().map_err(|error| refused("read", &error))?;
        Ok(observed.device.map(|device| (device, observed.peers)))
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<(usize, DataplaneError)> {
        let mut kernel = self.kernel();
        let outcomes = changes.iter().map(|change| kernel.apply(change)).enumerate();
        outcomes
            .filter_map(|(index, outcome)| Some((index, refused("apply", &outcome.err()?))))
            .collect()
    }
}

fn refused(action: &'static str, error: &KernelError) -> DataplaneError {
    let errno = match error {
        KernelError::Injected { .. } => Errno::EIO,
        KernelError::Exists(_) => Errno::EEXIST,
        KernelError::Missing(_) => Errno::ENOENT,
        KernelError::Down(_) => Errno::ENETDOWN,
    };
    DataplaneError::Kernel { action, object: error.to_string(), errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_call_leaves_the_others_done() {
        let mut fake = FakeDataplane::default();
        let name = || "mesh0".to_owned();
        fake.kernel().fail_calls([2]);
        let failures = fake.apply(&[
            Change::CreateDevice { name: name() },
            Change::SetMtu { name: name(), mtu: 1300 },
            Change::SetUp { name: name() },
        ]);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].0, 1);
        let device = fake.observe(&Scope::default()).unwrap().device.unwrap();
        assert!(device.up && device.mtu != 1300);
    }
}
