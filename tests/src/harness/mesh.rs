//! A mesh as a user forms it: `init` on the first host, a token and `join` for each other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::host::{Host, HostPlan};
use super::place::Place;
use super::process::Running;
use super::wait::{pace, wait_for};
use super::world::World;

/// Hosts that are one mesh. The first one made it and is its signer and seed.
#[derive(Debug)]
pub struct Mesh {
    /// The hosts, in the order of their plans.
    pub hosts: Vec<Host>,
}

impl Mesh {
    /// Makes hosts, without daemons.
    pub fn unstarted(world: &World, plans: &[HostPlan]) -> Result<Self> {
        ensure!(!plans.is_empty(), "a mesh without hosts");
        let hosts = plans.iter().map(|plan| world.host(plan)).collect::<Result<Vec<_>>>()?;
        Ok(Self { hosts })
    }

    /// Makes hosts whose daemons wait for `init` or `join`.
    pub fn waiting(world: &World, plans: &[HostPlan]) -> Result<Self> {
        let mesh = Self::unstarted(world, plans)?;
        mesh.start()?;
        Ok(mesh)
    }

    /// Makes hosts, lets all join at the same time, and waits until every tunnel is up.
    pub fn form(world: &World, plans: &[HostPlan]) -> Result<Self> {
        Self::form_with(world, plans, "")
    }

    /// The same with `config` on each host, see [`Host::configure`].
    pub fn form_with(world: &World, plans: &[HostPlan], config: &str) -> Result<Self> {
        let mesh = Self::unstarted(world, plans)?;
        for host in &mesh.hosts {
            host.configure(config)?;
        }
        mesh.start()?;
        mesh.join_all()?;
        mesh.wait_handshaken(pace(30))?;
        for host in &mesh.hosts {
            host.wait_up(u32::try_from(mesh.hosts.len())? - 1, pace(10))?;
        }
        Ok(mesh)
    }

    /// Starts all daemons and waits until each is `waiting`.
    pub fn start(&self) -> Result<()> {
        for host in &self.hosts {
            host.launch_daemon()?;
        }
        for host in &self.hosts {
            wait_for(&format!("the daemon of {} answers", host.name()), pace(20), || {
                host.check_daemon()?;
                let state = host.status()?.state;
                ensure!(state == "waiting", "its state is {state}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// `init` on the first host, then a token each and `join` on all others at the same time, to the end of each.
    pub fn join_all(&self) -> Result<()> {
        let (first, others) = self.hosts.split_first().context("a mesh without hosts")?;
        init(first)?;
        let tokens = others.iter().map(|host| token(first, host)).collect::<Result<Vec<_>>>()?;
        let joins = others
            .iter()
            .zip(&tokens)
            .map(|(h, t)| start_join(h, t))
            .collect::<Result<Vec<_>>>()?;
        for join in joins {
            join.finish(pace(60))?.ok()?;
        }
        Ok(())
    }

    /// Waits until WireGuard on every host has had a handshake with every other.
    pub fn wait_handshaken(&self, limit: Duration) -> Result<()> {
        let others = self.hosts.len() - 1;
        let end = Instant::now() + limit;
        for host in &self.hosts {
            let left = end.saturating_duration_since(Instant::now());
            wait_for(&format!("{}: a handshake with each other host", host.name()), left, || {
                let (shaken, peers) = host.wg_handshakes()?;
                ensure!(
                    shaken == others && peers == others,
                    "{shaken} of {peers} peers, {others} expected"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The hashes of all directories are one.
    pub fn directories_agree(&self) -> Result<()> {
        let mut hashes = Vec::new();
        for host in &self.hosts {
            let hash = host.status()?.directory_hash;
            hashes.push(hash.with_context(|| format!("{} tells no directory hash", host.name()))?);
        }
        ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "they differ: {hashes:?}");
        Ok(())
    }
}

/// `meshctl init` with exactly the pod ranges of the host.
pub(super) fn init(host: &Host) -> Result<()> {
    let prefixes = host.pod_prefixes();
    let mut arguments = vec!["init", "--mesh", "test"];
    prefixes.iter().for_each(|prefix| arguments.extend(["--prefix", prefix]));
    host.meshctl(&arguments)?.ok()?;
    host.wait_state("running", pace(10)).map(drop)
}

/// A token from `signer` that lets `host` in, with exactly its pod ranges.
pub(super) fn token(signer: &Host, host: &Host) -> Result<String> {
    let prefixes = host.pod_prefixes();
    let mut arguments = vec!["token", "create", "--node", host.name()];
    prefixes.iter().for_each(|prefix| arguments.extend(["--prefix", prefix]));
    let out = signer.meshctl(&arguments)?.ok()?.stdout;
    let token = out.trim();
    ensure!(
        !token.is_empty() && token.lines().count() == 1,
        "`token create` printed {out:?}, not one line"
    );
    Ok(token.to_owned())
}

/// Starts `meshctl join -` with the token as input.
pub(super) fn start_join(host: &Host, token: &str) -> Result<Running> {
    let mut command = host.program("meshctl")?;
    command.args(["join", "-"]);
    Running::start(command, token)
}

impl Host {
    /// Makes a mesh here, with this host's pod ranges.
    pub fn init_mesh(&self) -> Result<()> {
        init(self)
    }

    /// A token that lets `other` in, with exactly its pod ranges.
    pub fn token_for(&self, other: &Self) -> Result<String> {
        token(self, other)
    }

    /// Joins with a token and waits for the end of `meshctl join`.
    pub fn join(&self, token: &str) -> Result<Duration> {
        Ok(start_join(self, token)?.finish(pace(60))?.ok()?.took)
    }
}
