//! `meshd guard`: sets up strict leak protection as it was last, before the network and the daemon come up.
//!
//! Called by `meshd-guard.service` at boot. The daemon takes over what stands then, and keeps it as planned.

use anyhow::anyhow;
use meshd_core::plan::{Change, PlanConfig};

use crate::{
    check,
    chosen::chosen,
    config::{Config, LeakProtection, Sources},
    daemon::{backend, plan_config},
    dataplane::{Dataplane, LinuxDataplane, Scope},
    state::guard::SavedGuard,
};

/// Sets up what was kept; changes nothing where a daemon has done so already.
///
/// # Errors
/// When the guard does not stand afterwards, although it should.
pub fn run(sources: &Sources) -> anyhow::Result<()> {
    // What the daemon will run: not what is on disk, where a trial of that has ended.
    let config = match chosen(sources) {
        Ok(chosen) => chosen.config,
        Err(errors) => return without_config(&errors.to_string()),
    };
    if config.network.leak_protection != LeakProtection::Strict {
        println!("nothing to do: [network] leak_protection is off");
        return Ok(());
    }
    if set_up(&config)? {
        return Ok(());
    }
    println!("nothing to do: this host has not been in a mesh with strict leak protection yet");
    Ok(())
}

/// The guard was kept under strict protection: a configuration that cannot be read must not take it away. Without it, paths, table
/// and priority are the defaults.
fn without_config(errors: &str) -> anyhow::Result<()> {
    let stands = set_up(&Config::default())?;
    let now = if stands {
        "the leak guard was set up all the same, with the default table and priority"
    } else {
        "there is no kept leak guard, so packets to members may leave in the clear"
    };
    Err(anyhow!("{errors}; {now}; correct the configuration and restart meshd"))
}

/// Sets up what was kept, if anything was.
fn set_up(config: &Config) -> anyhow::Result<bool> {
    let Some(guard) = SavedGuard::read(&config.node.state_dir).map_err(|error| {
        anyhow!(
            "the leak guard cannot be set up; {error}; start meshd, which writes that file anew: until then packets to \
             members may leave in the clear"
        )
    })?
    else {
        return Ok(false);
    };
    check::privileges().map_err(|why| anyhow!("cannot set up the leak guard; {why}"))?;
    let config_of_plan = PlanConfig { strict: true, ..plan_config(config) };
    let mut dataplane = LinuxDataplane::new(backend(config))?;
    let observed = dataplane.observe(&Scope::of(&config_of_plan))?;
    if observed.firewall.and_then(|table| table.rules).is_some_and(|rules| rules.guard.is_some()) {
        println!("nothing to do: the leak guard stands already");
        return Ok(true);
    }
    let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    let changes = guard.changes(&config_of_plan, ipv6);
    let errors = dataplane.apply(&changes);
    for (index, error) in &errors {
        eprintln!("{}: {error}", changes.get(*index).map(Change::to_string).unwrap_or_default());
    }
    match errors.len() {
        0 => {
            println!("the leak guard stands: {} prefixes", guard.prefixes());
            Ok(true)
        }
        failed => Err(anyhow!(
            "the leak guard does not stand whole; {failed} of {} steps failed, see above; until the daemon runs, \
             packets to members may leave in the clear",
            changes.len()
        )),
    }
}
