//! The Linux data plane: netlink, WireGuard, `/proc/sys` and nft behind the
//! [`Dataplane`] trait.
//!
//! | module | topic |
//! |---|---|
//! | `netlink`, `bulk` | rtnetlink with blocking calls, one by one and many at once |
//! | `link`, `address`, `route`, `rule` | one kind of object each |
//! | `sysctl`, `underlay`, `nft` | files and the nft program |
//! | `wireguard` | device and peers, whoever runs them |

mod address;
mod bulk;
pub(crate) mod link;
pub(crate) mod netlink;
mod nft;
mod redirects;
mod route;
mod rule;
pub(crate) mod sysctl;
mod underlay;
pub(crate) mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_core::plan::{Backend, Change, Observed, ObservedArp, ObservedDevice, RouteKind};
use nix::errno::Errno;

use self::{
    link::Link,
    netlink::Netlink,
    route::Place,
    wireguard::{Configuration, PeerUpdate, Target},
};
use super::{BackendChoice, Dataplane, DataplaneError, Glance, Ours, Scope, userspace};

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
    ours: Ours,
    /// Our table for ARP was there at the last look; nobody knows before the first.
    arp: Option<bool>,
    /// Begun by [`LinuxDataplane::look_ahead`], and when.
    ahead: Option<(nft::Reading, Instant)>,
    /// Where our routes stand, as read last and changed since.
    standing: BTreeSet<Place>,
}

/// How old what was read ahead may be.
const AHEAD: Duration = Duration::from_secs(5);

impl LinuxDataplane {
    /// Connects to the kernel; changes nothing.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new(choice: BackendChoice) -> Result<Self, DataplaneError> {
        let ours = Ours::default();
        Ok(Self {
            choice,
            netlink: Netlink::open(&ours)?,
            nft: nft::Nft::new(ours.clone()),
            ours,
            arp: None,
            ahead: None,
            standing: BTreeSet::new(),
        })
    }

    /// Tells what it does from what others do.
    #[must_use]
    pub fn ours(&self) -> Ours {
        self.ours.clone()
    }

    /// Begins now what takes longest in the next look, which must come soon.
    pub fn look_ahead(&mut self) {
        self.ahead = Some((self.nft.read(), Instant::now()));
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
            self.netlink = Netlink::open(&self.ours)?;
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
        let Some(link) = link::find(&self.netlink, name)? else { return Ok(None) };
        // Another's is none of ours. Making ours says so.
        let Some(backend) = link.own_backend() else { return Ok(None) };
        let state = match wireguard::read(Target { name, index: link.index, backend }) {
            Err(DataplaneError::NoInterface { .. }) => return Ok(None),
            state => state?,
        };
        let read = |path: &String| link.sysctl(name, path).or_else(|| sysctl::read(path).ok());
        let sysctls = scope.sysctls.iter().filter_map(|path| Some((path.clone(), read(path)?)));
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
        redirects::note(name);
        let start_userspace = || {
            userspace::start(&self.netlink, name)?;
            redirects::stop(name);
            Ok(())
        };
        if self.choice == BackendChoice::Userspace {
            return start_userspace();
        }
        match link::create_wireguard(&self.netlink, name) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) if self.choice == BackendChoice::Auto => {
                return start_userspace();
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
            Some(Backend::Kernel) => link::delete(&self.netlink, name, link.index),
            Some(Backend::Userspace) => userspace::stop(&self.netlink, name, &link),
        }?;
        redirects::restore(name);
        Ok(())
    }

    fn apply_one(&mut self, change: &Change, links: &mut Links) -> Result<(), DataplaneError> {
        let netlink = &self.netlink;
        match change {
            Change::CreateDevice { name } => {
                links.0.clear();
                self.create(name)
            }
            Change::DeleteDevice { name } => {
                links.0.clear();
                self.delete(name)
            }
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
            Change::TakeAllowedIps { device, public_key, allowed_ips } => {
                let target = self.device("change a peer", device)?;
                wireguard::take_allowed_ips(netlink, target, public_key, allowed_ips)
            }
            Change::RemovePeer { device, public_key } => {
                let target = self.device("remove a peer", device)?;
                wireguard::update_peers(netlink, target, &[PeerUpdate::removal(*public_key)])
            }
            Change::PutRoute(route) => {
                let device = match &route.kind {
                    RouteKind::Device { device, .. } => Some(links.own(netlink, device)?),
                    RouteKind::Throw | RouteKind::Unreachable => None,
                };
                let place = route::place(route);
                route::put(netlink, route, self.standing.contains(&place), device)?;
                self.standing.insert(place);
                Ok(())
            }
            Change::RemoveRoute(route) => {
                let device = match &route.kind {
                    RouteKind::Device { device, .. } => match links.find(netlink, device)? {
                        // The kernel drops the routes of a device with it.
                        None => return Ok(()),
                        Some(link) => Some(link.index),
                    },
                    RouteKind::Throw | RouteKind::Unreachable => None,
                };
                self.standing.remove(&route::place(route));
                route::remove(netlink, route, device)
            }
            Change::AddRule(rule) => rule::add(netlink, rule),
            Change::RemoveRule(rule) => rule::remove(netlink, rule),
            Change::PutFirewall(table) => self.nft.put(table),
            Change::ChangeSets { add, remove } => self.nft.change_sets(add, remove),
            Change::RemoveFirewall => self.nft.remove(),
            Change::PutArp(mark) => self.nft.put_arp(*mark),
            Change::RemoveArp => self.nft.remove_arp(),
            Change::SetUnderlaySysctl { path, value } => underlay::set(path, value),
            Change::RestoreSysctl { path } => underlay::restore(path),
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

    /// Routes that are next, in few calls: how many, and which of them have to be tried alone, which says what is wrong
    /// with one or finds out that it is ours.
    fn apply_routes(&mut self, changes: &[Change], links: &mut Links) -> (usize, Vec<usize>) {
        let mut requests = Vec::new();
        let mut places = Vec::new();
        for change in changes.iter().take(bulk::MOST) {
            let Change::PutRoute(route) = change else { break };
            let device = match &route.kind {
                RouteKind::Device { device, .. } => match links.own(&self.netlink, device) {
                    Ok(index) => Some(index),
                    Err(_) => break,
                },
                RouteKind::Throw | RouteKind::Unreachable => None,
            };
            let place = route::place(route);
            requests.push(route::request(route, self.standing.contains(&place), device));
            places.push(place);
        }
        let run = places.len();
        let outcomes = self.netlink.act_all(requests);
        let mut alone = Vec::new();
        for (index, (place, outcome)) in places.into_iter().zip(outcomes).enumerate() {
            if outcome.is_ok() {
                self.standing.insert(place);
            } else {
                alone.push(index);
            }
        }
        (run, alone)
    }
}

impl Dataplane for LinuxDataplane {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, DataplaneError> {
        self.reconnect()?;
        let firewall = match self.ahead.take() {
            Some((reading, since)) if since.elapsed() < AHEAD => reading,
            _ => self.nft.read(),
        };
        // A look may cost a process.
        let arp = (scope.arp || self.arp != Some(false)).then(|| self.nft.read_arp());
        let mut observed = Observed::default();
        if let Some((device, peers)) = self.observe_device(scope)? {
            observed.device = Some(device);
            observed.peers = peers;
        }
        for table in [scope.table, scope.second_table] {
            let mut found = route::read(&self.netlink, table)?;
            observed.routes.append(&mut found.ours);
            observed.foreign.routes.push((table, found.foreign.len()));
        }
        self.standing = observed.routes.iter().map(route::place).collect();
        let (rules, others) = rule::read(&self.netlink)?;
        observed.rules = rules.into_iter().filter(|rule| scope.holds(rule)).collect();
        observed.foreign.rules = others;
        // One part that cannot be read must not stop the others; putting it fails by itself, and says why.
        observed.unread = firewall.lacks_nft();
        observed.firewall = self.nft.observe(firewall).unwrap_or_else(|error| {
            tracing::debug!(%error, "nftables cannot be read");
            observed.unread = true;
            None
        });
        let arp = arp.map_or(Ok(ObservedArp::None), |reading| self.nft.observe_arp(reading));
        observed.arp = arp.unwrap_or_else(|error| {
            tracing::debug!(%error, "nftables cannot be read");
            observed.unread = true;
            ObservedArp::None
        });
        self.arp = Some(observed.arp != ObservedArp::None);
        (observed.underlay_sysctls, observed.changed_sysctls) =
            underlay::observe(&scope.underlay_sysctls);
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
        let mut links = Links::default();
        let mut next = 0;
        while next < changes.len() {
            let (run, alone) = self.apply_routes(&changes[next..], &mut links);
            for index in alone.into_iter().map(|offset| next + offset) {
                if let Err(error) = self.apply_one(&changes[index], &mut links) {
                    failures.push((index, error));
                }
            }
            next += run;
            if run > 0 {
                continue;
            }
            let run = batch(&changes[next..]);
            if run > 1 && self.apply_peers(&changes[next..next + run]) {
                next += run;
                continue;
            }
            for (offset, change) in changes[next..next + run].iter().enumerate() {
                if let Err(error) = self.apply_one(change, &mut links) {
                    failures.push((next + offset, error));
                }
            }
            next += run;
        }
        failures
    }
}

/// Devices that routes lead into, asked for once in a round of changes.
#[derive(Default)]
struct Links(BTreeMap<String, Link>);

impl Links {
    fn find(&mut self, netlink: &Netlink, name: &str) -> Result<Option<&Link>, DataplaneError> {
        if !self.0.contains_key(name)
            && let Some(link) = link::find(netlink, name)?
        {
            self.0.insert(name.to_owned(), link);
        }
        Ok(self.0.get(name))
    }

    /// The index of our device. Through another program's the packets would go where nobody knows.
    fn own(&mut self, netlink: &Netlink, name: &str) -> Result<u32, DataplaneError> {
        let missing =
            || DataplaneError::NoInterface { action: "add a route", name: name.to_owned() };
        let link = self.find(netlink, name)?.ok_or_else(missing)?;
        if link.own_backend().is_none() { Err(link.taken(name)) } else { Ok(link.index) }
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
        Change::PutPeer {
            public_key, endpoint, keepalive, preshared_key, add_allowed_ips, ..
        } => {
            let key = preshared_key.as_ref();
            PeerUpdate::put(*public_key, *endpoint, *keepalive, key, add_allowed_ips)
        }
        _ => Vec::new(),
    }
}
