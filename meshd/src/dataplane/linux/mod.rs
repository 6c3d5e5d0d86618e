//! The Linux data plane: netlink, WireGuard, `/proc/sys` and nft behind the
//! [`Dataplane`] trait.
//!
//! | module | topic |
//! |---|---|
//! | `netlink` | one blocking rtnetlink connection |
//! | `link`, `address`, `route`, `rule` | one kind of object each |
//! | `sysctl`, `nft` | files and the nft program |
//! | `wireguard` | device and peers, whoever runs them |

mod address;
pub(crate) mod link;
pub(crate) mod netlink;
mod nft;
mod redirects;
mod route;
mod rule;
pub(crate) mod sysctl;
pub(crate) mod wireguard;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use meshd_core::plan::{Backend, Change, Observed, ObservedDevice};
use nix::errno::Errno;

use self::{
    link::Link,
    netlink::Netlink,
    route::Table,
    wireguard::{Configuration, PeerUpdate, Target},
};
use super::{BackendChoice, Dataplane, DataplaneError, Glance, Scope, userspace};

/// Allowed IPs that may go to the kernel in one call, over all its peers.
const BATCH: usize = 1_024;
fn not_created(name: &str, errno: Errno) -> DataplaneError {
    match errno {
        Errno::EOPNOTSUPP => DataplaneError::NoKernelWireGuard { errno },
        errno => DataplaneError::Kernel {
            action: "create",
            object: format!("WireGuard device {name}"),
            errno,
        },
    }
}

/// The kernel of this host, in the network namespace of the thread that made it.
pub struct LinuxDataplane {
    choice: BackendChoice,
    netlink: Netlink,
    nft: nft::Nft,
    /// Begun by [`LinuxDataplane::look_ahead`], and when.
    ahead: Option<(nft::Reading, Instant)>,
}

/// How old what was read ahead may be.
const AHEAD: Duration = Duration::from_secs(5);

impl LinuxDataplane {
    /// Connects to the kernel; changes nothing.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new(choice: BackendChoice) -> Result<Self, DataplaneError> {
        Ok(Self { choice, netlink: Netlink::open()?, nft: nft::Nft::default(), ahead: None })
    }

    /// Begins now what takes longest in the next look, which must come soon.
    pub fn look_ahead(&mut self) {
        self.ahead = Some((nft::Reading::start(), Instant::now()));
    }

    /// Who would run WireGuard here. Makes a device of a name of its own for a moment, since nothing else
    /// tells whether the kernel can.
    ///
    /// # Errors
    /// When neither the kernel nor a program can, or we may not ask.
    pub fn probe(&self) -> Result<Backend, DataplaneError> {
        const NAME: &str = "meshdprobe0";
        match (self.choice, link::create_wireguard(&self.netlink, NAME)) {
            (_, Ok(())) => {
                if let Some(made) = link::find(&self.netlink, NAME)? {
                    link::delete(&self.netlink, NAME, made.index)?;
                }
                match self.choice {
                    BackendChoice::Userspace => userspace::check_installed(NAME),
                    _ => Ok(Backend::Kernel),
                }
            }
            (BackendChoice::Kernel, Err(errno @ Errno::EOPNOTSUPP)) => {
                Err(DataplaneError::NoKernelWireGuard { errno })
            }
            (_, Err(Errno::EOPNOTSUPP)) => userspace::check_installed(NAME),
            (_, Err(errno)) => Err(DataplaneError::Kernel {
                action: "make",
                object: "a WireGuard interface".to_owned(),
                errno,
            }),
        }
    }

    fn reconnect(&mut self) -> Result<(), DataplaneError> {
        if self.netlink.is_broken() {
            self.netlink = Netlink::open()?;
        }
        Ok(())
    }

    /// Our device of that name. A TUN without a process behind it is as good as none.
    fn own(&self, name: &str) -> Result<Option<(Link, Backend)>, DataplaneError> {
        let Some(link) = link::find(&self.netlink, name)? else { return Ok(None) };
        match link.own_backend() {
            None => Err(link.taken(name)),
            Some(Backend::Userspace) if !userspace::is_alive(name) => Ok(None),
            Some(backend) => Ok(Some((link, backend))),
        }
    }

    /// Our device, or the error of an action that needs it.
    fn device<'a>(
        &self,
        action: &'static str,
        name: &'a str,
    ) -> Result<Target<'a>, DataplaneError> {
        match self.own(name)? {
            Some((link, backend)) => Ok(Target { name, index: link.index, backend }),
            None => Err(DataplaneError::NoInterface { action, name: name.to_owned() }),
        }
    }

    /// Device and peers; `None` also when the device goes while it is read.
    fn observe_device(&self, scope: &Scope) -> Result<Option<Glance>, DataplaneError> {
        let name = &scope.interface;
        let (link, backend) = match self.own(name) {
            Ok(Some(own)) => own,
            // Another's is none of ours. Making ours says so.
            Ok(None) | Err(DataplaneError::NameTaken { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = match wireguard::read(Target { name, index: link.index, backend }) {
            Err(DataplaneError::NoInterface { .. }) => return Ok(None),
            state => state?,
        };
        let sysctls = scope
            .sysctls
            .iter()
            .filter_map(|path| sysctl::read(path).ok().map(|value| (path.clone(), value)));
        let device = ObservedDevice {
            name: name.clone(),
            backend,
            public_key: state.public_key,
            listen_port: state.listen_port,
            fwmark: state.fwmark,
            mtu: link.mtu,
            up: link.up,
            addresses: address::list(&self.netlink, link.index)?,
            sysctls: sysctls.collect(),
        };
        Ok(Some((device, state.peers)))
    }

    fn create(&self, name: &str) -> Result<(), DataplaneError> {
        if let Some(link) = link::find(&self.netlink, name)? {
            match link.own_backend() {
                None => return Err(link.taken(name)),
                Some(Backend::Kernel) => {
                    return link::mark_as_ours(&self.netlink, name, link.index);
                }
                Some(Backend::Userspace) if userspace::is_alive(name) => return Ok(()),
                Some(Backend::Userspace) => userspace::stop(&self.netlink, name, &link)?,
            }
        }
        if self.choice == BackendChoice::Userspace {
            return userspace::start(&self.netlink, name);
        }
        redirects::note(name);
        match link::create_wireguard(&self.netlink, name) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) if self.choice == BackendChoice::Auto => {
                return userspace::start(&self.netlink, name);
            }
            Err(errno) => return Err(not_created(name, errno)),
        }
        let index = self.device("create the device", name)?.index;
        link::mark_as_ours(&self.netlink, name, index)
    }

    fn delete(&self, name: &str) -> Result<(), DataplaneError> {
        let Some(link) = link::find(&self.netlink, name)? else { return Ok(()) };
        match link.own_backend() {
            None => Err(link.taken(name)),
            Some(Backend::Kernel) => {
                link::delete(&self.netlink, name, link.index)?;
                redirects::restore(name);
                Ok(())
            }
            Some(Backend::Userspace) => userspace::stop(&self.netlink, name, &link),
        }
    }

    fn apply_one(&mut self, change: &Change, tables: &mut Tables) -> Result<(), DataplaneError> {
        let netlink = &self.netlink;
        match change {
            Change::CreateDevice { name } => self.create(name),
            Change::DeleteDevice { name } => self.delete(name),
            Change::ConfigureDevice { name, private_key, listen_port, fwmark } => {
                let wanted = Configuration {
                    private_key: private_key.as_ref(),
                    listen_port: *listen_port,
                    fwmark: *fwmark,
                };
                wireguard::configure(netlink, self.device("configure", name)?, &wanted)
            }
            Change::SetMtu { name, mtu } => {
                let device = self.device("set the MTU", name)?;
                link::set_mtu(netlink, name, device.index, *mtu)
            }
            Change::SetUp { name } => {
                let device = self.device("bring it up", name)?;
                link::set_up(netlink, name, device.index)
            }
            Change::SetSysctl { path, value } => sysctl::write(path, value),
            Change::AddAddress { name, address } => {
                let device = self.device("add an address", name)?;
                address::add(netlink, name, device.index, address)
            }
            Change::RemoveAddress { name, address } => {
                let device = self.device("remove an address", name)?;
                address::remove(netlink, name, device.index, address)
            }
            Change::PutPeer { device, .. } => {
                let target = self.device("add a peer", device)?;
                wireguard::update_peers(netlink, target, &peer_updates(change))
            }
            Change::ReplaceAllowedIps { device, public_key, allowed_ips } => {
                let target = self.device("change a peer", device)?;
                wireguard::set_allowed_ips(netlink, target, *public_key, allowed_ips)
            }
            Change::RemovePeer { device, public_key } => {
                let target = self.device("remove a peer", device)?;
                wireguard::update_peers(netlink, target, &[PeerUpdate::removal(*public_key)])
            }
            Change::PutRoute(route) => route::put(netlink, tables.of(netlink, route.table)?, route),
            Change::RemoveRoute(route) => route::remove(netlink, route),
            Change::AddRule(rule) => rule::add(netlink, rule),
            Change::RemoveRule(rule) => rule::remove(netlink, rule),
            Change::PutFirewall(table) => self.nft.put(table),
            Change::ChangeSets { add, remove } => nft::change_sets(add, remove),
            Change::RemoveFirewall => nft::remove(),
        }
    }

    /// Peers of one device in one call. `false`: not done, or not wholly; each has to be tried alone, which finds
    /// the one at fault and does no harm to the others.
    fn apply_peers(&self, changes: &[Change]) -> bool {
        let Some(Change::PutPeer { device, .. }) = changes.first() else { return false };
        let updates: Vec<PeerUpdate> = changes.iter().flat_map(peer_updates).collect();
        self.device("add peers", device)
            .and_then(|target| wireguard::update_peers(&self.netlink, target, &updates))
            .is_ok()
    }
}

impl Dataplane for LinuxDataplane {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, DataplaneError> {
        self.reconnect()?;
        let firewall = match self.ahead.take() {
            Some((reading, since)) if since.elapsed() < AHEAD => reading,
            _ => nft::Reading::start(),
        };
        let mut observed = Observed::default();
        if let Some((device, peers)) = self.observe_device(scope)? {
            observed.device = Some(device);
            observed.peers = peers;
        }
        for table in [scope.table, scope.second_table] {
            observed.routes.append(&mut route::read(&self.netlink, table)?.ours);
        }
        observed.rules =
            rule::read(&self.netlink)?.into_iter().filter(|rule| scope.holds(rule)).collect();
        // One part that cannot be read must not stop the others; putting it fails by itself, and says why.
        observed.firewall = self.nft.observe(firewall).unwrap_or_else(|error| {
            tracing::debug!(%error, "nftables cannot be read");
            None
        });
        Ok(observed)
    }

    fn glance(&mut self, scope: &Scope) -> Result<Option<Glance>, DataplaneError> {
        self.reconnect()?;
        self.observe_device(scope)
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<(usize, DataplaneError)> {
        if let Err(error) = self.reconnect() {
            let reason = error.to_string();
            let failed = |index| (index, DataplaneError::Netlink { reason: reason.clone() });
            return (0..changes.len()).map(failed).collect();
        }
        let mut failures = Vec::new();
        let mut tables = Tables::default();
        let mut next = 0;
        while next < changes.len() {
            let run = batch(&changes[next..]);
            if run > 1 && self.apply_peers(&changes[next..next + run]) {
                next += run;
                continue;
            }
            for (offset, change) in changes[next..next + run].iter().enumerate() {
                if let Err(error) = self.apply_one(change, &mut tables) {
                    failures.push((next + offset, error));
                }
            }
            next += run;
        }
        failures
    }
}

/// Routing tables as they were when this round of changes began, read when first needed.
#[derive(Default)]
struct Tables(BTreeMap<u32, Table>);

impl Tables {
    fn of(&mut self, netlink: &Netlink, table: u32) -> Result<&Table, DataplaneError> {
        use std::collections::btree_map::Entry;
        match self.0.entry(table) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(route::read(netlink, table)?)),
        }
    }
}

/// How many changes from the first on are peers of one device that fit into one call; at least 1.
fn batch(changes: &[Change]) -> usize {
    let mut first = None;
    let mut size = 0;
    let run = changes
        .iter()
        .take_while(|change| match change {
            Change::PutPeer { device, add_allowed_ips, .. } => {
                size += add_allowed_ips.len() + 1;
                size <= BATCH && *first.get_or_insert(device) == device
            }
            _ => false,
        })
        .count();
    run.max(1)
}

fn peer_updates(change: &Change) -> Vec<PeerUpdate> {
    match change {
        Change::PutPeer { public_key, endpoint, keepalive, add_allowed_ips, .. } => {
            PeerUpdate::put(*public_key, *endpoint, *keepalive, add_allowed_ips)
        }
        _ => Vec::new(),
    }
}
