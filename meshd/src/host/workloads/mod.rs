//! The workloads of this host, one by one, where the network behind it gives each an address of its own: from the
//! routes that the CNI made towards their interfaces.
//!
//! Owns a thread of its own, since netlink blocks: it reads all such routes when netlink says that one of them or a link
//! changed, and each half minute in any case, and hands the newest set to the daemon's loop through a channel of which
//! only the last value counts. Reading anew rather than following each message: the kernel drops messages when it is
//! busy, and takes IPv4 routes away with their link without a word. It ends when the loop has gone.

mod route;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use meshd_core::{address::host_prefix, limits::RECORD_PREFIXES};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    route::{RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use tokio::sync::watch;

use self::route::Way;
pub use self::route::matches;
use super::read::dump;
use crate::dataplane::{DataplaneError, Ours, linux::netlink::Netlink, watch::Watch};

/// Workloads that are kept track of: a few times as many as a record can name.
pub const MOST: usize = 4 * RECORD_PREFIXES;
/// Whatever was missed is found after this.
const RELOOK: Duration = Duration::from_secs(30);
/// The pause after a look, as a multiple of what it took: a tenth of a processor at most.
const PAUSE: u32 = 10;
/// The pause at least: what a CNI does for one pod is one look.
const PAUSE_LEAST: Duration = Duration::from_millis(20);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(2);

/// What was found at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workloads {
    /// Single addresses, none of this host's own, [`MOST`] of them at most.
    pub addresses: BTreeSet<IpNet>,
    /// How many more there are.
    pub beyond: usize,
    /// Interfaces with routes that a router advertisement made or could have made, which are left out.
    pub doubtful: BTreeSet<String>,
}

/// Starts to follow the workloads behind the interfaces whose names match `patterns`. The first look is done when this
/// returns. Blocks for some milliseconds.
///
/// # Errors
/// When netlink cannot be used.
pub fn follow(patterns: Vec<String>) -> Result<watch::Receiver<Arc<Workloads>>, DataplaneError> {
    let failed = |e: std::io::Error| DataplaneError::Netlink { reason: e.to_string() };
    let (first, begun) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name("workloads".to_owned())
        .spawn(move || match Follower::start(patterns) {
            Ok((follower, found)) => {
                let (tell, told) = watch::channel(Arc::new(found));
                // Who asked waits for this.
                let _ = first.send(Ok(told));
                follower.run(&tell);
            }
            Err(error) => drop(first.send(Err(error))),
        })
        .map_err(failed)?;
    begun.recv().unwrap_or_else(|_| {
        Err(DataplaneError::Netlink { reason: "the workloads' thread ended early".to_owned() })
    })
}

struct Follower {
    patterns: Vec<String>,
    netlink: Netlink,
    /// Waits: reading brings a runtime of its own, which may not run inside another.
    runtime: tokio::runtime::Runtime,
    watch: Watch,
}

impl Follower {
    fn start(patterns: Vec<String>) -> Result<(Self, Workloads), DataplaneError> {
        let failed = |e: std::io::Error| DataplaneError::Netlink { reason: e.to_string() };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        // Listening first: what changes during the first look is seen.
        let watch = runtime.block_on(async { Watch::of_workloads() })?;
        let netlink = Netlink::open(&Ours::default())?;
        let found = read(&netlink, &patterns)?;
        Ok((Self { patterns, netlink, runtime, watch }, found))
    }

    fn run(mut self, tell: &watch::Sender<Arc<Workloads>>) {
        let mut pause = PAUSE_LEAST;
        let mut failing = false;
        loop {
            let watch = &mut self.watch;
            let gone = self.runtime.block_on(async {
                tokio::select! {
                    () = tell.closed() => true,
                    () = async {
                        tokio::time::sleep(pause).await;
                        // Nothing told is as good as told: it is looked in any case.
                        let _ = tokio::time::timeout(RELOOK, watch.changed()).await;
                    } => false,
                }
            });
            if gone {
                return;
            }
            let started = Instant::now();
            match self.read() {
                Ok(found) => {
                    failing = false;
                    pause = PAUSE_LEAST.max(started.elapsed() * PAUSE);
                    tell.send_if_modified(|held| {
                        let news = **held != found;
                        if news {
                            *held = Arc::new(found);
                        }
                        news
                    });
                }
                Err(error) => {
                    // What was found last stays: a pod is not gone because netlink is busy.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot look at the routes to workloads");
                    }
                    pause = RETRY;
                }
            }
        }
    }

    fn read(&mut self) -> Result<Workloads, DataplaneError> {
        if self.netlink.is_broken() {
            self.netlink = Netlink::open(&Ours::default())?;
        }
        read(&self.netlink, &self.patterns)
    }
}

/// An interface behind which there may be workloads.
struct Inward {
    name: String,
    takes_advertisements: bool,
}

fn read(netlink: &Netlink, patterns: &[String]) -> Result<Workloads, DataplaneError> {
    let interfaces = interfaces(netlink, patterns)?;
    let mut found = Workloads::default();
    let mut by_kernel = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for way in ways(netlink, &interfaces, family, RouteFlags::empty())? {
            if way.by_kernel {
                by_kernel.insert(way);
            } else {
                found.addresses.insert(way.workload);
            }
        }
    }
    let advertised = if by_kernel.is_empty() {
        BTreeSet::new()
    } else {
        // With this flag Linux gives those routes alone that router advertisements made.
        ways(netlink, &interfaces, AddressFamily::Inet6, RouteFlags::Prefix)?
    };
    for way in by_kernel {
        let interface = interfaces.get(&way.interface);
        let takes = interface.is_none_or(|interface| interface.takes_advertisements);
        if route::is_doubtful(&way, takes, &advertised) {
            found.doubtful.extend(interface.map(|interface| interface.name.clone()));
        } else {
            found.addresses.insert(way.workload);
        }
    }
    // After the routes: an address of this host may have one too, and is there as long as that.
    for own in own_addresses(netlink)? {
        found.addresses.remove(&own);
    }
    while found.addresses.len() > MOST {
        found.addresses.pop_last();
        found.beyond += 1;
    }
    Ok(found)
}

fn interfaces(
    netlink: &Netlink,
    patterns: &[String],
) -> Result<BTreeMap<u32, Inward>, DataplaneError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut interfaces = BTreeMap::new();
    for answer in dump(netlink, "the interfaces", &request)? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let takes_advertisements = route::takes_advertisements(&link);
        let name = link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        interfaces.extend(
            name.filter(|name| patterns.iter().any(|p| matches(p, name)))
                .map(|name| (link.header.index, Inward { name, takes_advertisements })),
        );
    }
    Ok(interfaces)
}

fn ways(
    netlink: &Netlink,
    interfaces: &BTreeMap<u32, Inward>,
    family: AddressFamily,
    flags: RouteFlags,
) -> Result<BTreeSet<Way>, DataplaneError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.kind = RouteType::Unicast;
    request.header.flags = flags;
    let request = RouteNetlinkMessage::GetRoute(request);
    let answers = dump(netlink, "the main routing table", &request)?;
    let ways = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => {
            route::way(route, |index| interfaces.contains_key(&index))
        }
        _ => None,
    });
    Ok(ways.collect())
}

fn own_addresses(netlink: &Netlink) -> Result<Vec<IpNet>, DataplaneError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut own = Vec::new();
    for answer in dump(netlink, "the addresses", &request)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        // On a point-to-point link Address is the other end.
        let (mut local, mut address) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                _ => {}
            }
        }
        own.extend(local.or(address).map(host_prefix));
    }
    Ok(own)
}
