//! `meshd cleanup`: removes everything that meshd made in the kernel. Keys and records stay.

use anyhow::anyhow;
use meshd_core::plan::{Desired, diff};

use crate::{
    check,
    chosen::chosen,
    config::Sources,
    daemon::{backend, plan_config},
    dataplane::{Dataplane, LinuxDataplane, Scope},
    state::{StateDir, guard::SavedGuard, trial::SavedTrial},
};

/// Looks for objects of ours and removes them, in as many rounds as it takes.
///
/// # Errors
/// When something is left.
pub fn run(sources: &Sources) -> anyhow::Result<()> {
    const ROUNDS: usize = 3;
    // What ran here, which is not always what the files say.
    let config = chosen(sources)?.config;
    check::privileges().map_err(|why| anyhow!("cannot clean up; {why}"))?;
    // A daemon that runs would make everything again.
    let _lock = match config.node.state_dir.exists() {
        true => Some(StateDir::open(&config.node.state_dir)?),
        false => None,
    };
    // Nor must the next boot bring the guard back.
    SavedGuard::forget(&config.node.state_dir)?;
    SavedTrial::forget(&config.node.state_dir)?;
    let scope = Scope::of(&plan_config(&config));
    let mut dataplane = LinuxDataplane::new(backend(&config))?;
    let mut removed = 0;
    for _ in 0..ROUNDS {
        let changes = diff(&Desired::default(), &dataplane.observe(&scope)?);
        if changes.is_empty() {
            match check::program("nft") {
                Ok(_) => println!(
                    "removed {removed} objects from the kernel; nothing of meshd is left in it"
                ),
                // Nobody can look, so nobody can promise.
                Err(why) => println!(
                    "removed {removed} objects from the kernel; a table inet meshd of nftables would still be there: {why} \
                     and run this again"
                ),
            }
            return Ok(());
        }
        let errors = dataplane.apply(&changes);
        removed += changes.len() - errors.len();
        if let Some((_, error)) = errors.into_iter().next() {
            return Err(error.into());
        }
    }
    Err(anyhow!("objects come back as fast as they are removed; another meshd runs; stop it first"))
}
