//! A mesh of thousands that nobody runs: its records are made up, and the daemon's own planner and reconciler program
//! them into a real kernel. For what depends on how many members there are.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ipnet::IpNet;
use meshd::dataplane::{BackendChoice, LinuxDataplane, Scope};
use meshd::reconcile::{Reconciler, Report};
use meshd_core::address::{host_prefix, ula};
use meshd_core::node::Liveness;
use meshd_core::now::UnixTime;
use meshd_core::path_mtu::PathMtu;
use meshd_core::plan::{
    Desired, Externals, LaneKeys, LocalNetwork, Member, PlanConfig, PlanInput, RouteKind,
    SteeringSeen, WgPrivateKey, plan,
};
use meshd_core::trust::{Grant, LaneInfo, LaneKey, NodeCertificate, Record};
use meshd_proto::{BootId, MeshId, NodeKey, WgPublicKey, Zone, wire};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc::Receiver;

use crate::harness::{Backend, Place};

const MESH: MeshId = MeshId([7; 16]);

/// The members of a made-up mesh, each with a pod prefix, of which number 0 is the host that programs them.
pub struct Many {
    members: Vec<Member>,
    config: PlanConfig,
}

impl Many {
    /// `count` others. `interface`: the name of the device.
    pub fn new(count: u32, interface: &str) -> Self {
        let members = (1..=count)
            .map(|number| Member {
                record: Arc::new(record(number)),
                liveness: Liveness::Alive,
                down_for: None,
                path: None,
                reached: BTreeSet::new(),
                tunnel: None,
                path_mtu: Some(PathMtu { mtu: 1420, small: None }),
                accepts: BTreeSet::new(),
            })
            .collect();
        Self {
            members,
            config: PlanConfig { interface: interface.to_owned(), ..PlanConfig::default() },
        }
    }

    /// One member has one prefix more, or it is gone again.
    pub fn change(&mut self, member: usize, more: bool) -> Result<()> {
        let member = self.members.get_mut(member).context("no such member")?;
        let mut changed = Record::clone(&member.record);
        let extra: IpNet = "172.31.99.0/24".parse()?;
        changed.prefixes.retain(|prefix| *prefix != extra);
        if more {
            changed.prefixes.push(extra);
            let mut certificate = NodeCertificate::clone(&changed.certificate);
            certificate.grants.push(Grant { prefix: extra, claim_len: None });
            changed.certificate = Arc::new(certificate);
        }
        changed.version += 1;
        member.record = Arc::new(changed);
        Ok(())
    }

    /// What the kernel should hold for them.
    pub fn plan(&self) -> (Arc<Desired>, Scope) {
        let lane = lane(0);
        let local = LocalNetwork {
            addresses: ["192.0.2.1/24".parse()].into_iter().flatten().collect(),
            ipv6: true,
            ..LocalNetwork::default()
        };
        let own = record(0);
        let planned = plan(&PlanInput {
            own: &own,
            lane: &lane,
            config: &self.config,
            local: &local,
            members: &self.members,
            barred: &[],
            externals: &Externals::default(),
            complete: true,
            steering: SteeringSeen::default(),
        });
        let device = planned.desired.device.iter();
        let sysctls = device.flat_map(|device| device.sysctls.keys().cloned()).collect();
        (planned.desired, Scope { sysctls, ..Scope::of(&self.config) })
    }
}

fn lane(number: u32) -> LaneKeys {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let key = LaneKey::from_seed(&seed);
    LaneKeys { private_key: key.private_key(), public_key: key.public_key() }
}

fn record(number: u32) -> Record {
    let [_, high, middle, low] = number.to_be_bytes();
    let mut key = [1; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let key = NodeKey(key);
    let mesh_ipv4 = Ipv4Addr::new(100, 112_u8.saturating_add(high), middle, low);
    let v4 = host_prefix(IpAddr::V4(mesh_ipv4));
    let pods = IpNet::from(ipnet::Ipv4Net::new_assert(
        Ipv4Addr::from_bits(0x0a00_0000 | ((number + 1) << 8)),
        24,
    ));
    let exact = |prefix: &IpNet| Grant { prefix: *prefix, claim_len: None };
    // A made-up name of a made-up mesh cannot be wrong.
    let name: meshd_proto::NodeName =
        format!("n{number}").parse().unwrap_or_else(|_| unreachable!());
    let certificate = NodeCertificate {
        der: bytes::Bytes::new(),
        hash: [0; 32],
        key,
        name: name.clone(),
        mesh: "many".parse().unwrap_or_else(|_| unreachable!()),
        mesh_id: MESH,
        enrolment_id: [0; 16],
        groups: Vec::new(),
        grants: [v4, pods].iter().map(exact).collect(),
        mesh_ipv4: Some(mesh_ipv4),
        limits: Vec::new(),
        subject: None,
        not_before: UnixTime(0),
        not_after: UnixTime(i64::MAX),
    };
    Record {
        signed: wire::SignedRecord::default(),
        payload_hash: [0; 8],
        certificate: Arc::new(certificate),
        key,
        name,
        version: 1,
        boot_id: BootId([1; 16]),
        generation: 1,
        issued_at: UnixTime(0),
        lanes: vec![LaneInfo { public_key: lane(number).public_key, listen_port: 51820, index: 0 }],
        mesh_addresses: vec![host_prefix(IpAddr::V6(ula(&MESH, &key))), v4],
        prefixes: vec![pods],
        endpoints: vec![SocketAddr::from(([203, 0, 113, low.max(1)], 51800))],
        zone: Zone::default(),
        capabilities: Vec::new(),
        left: false,
        via: None,
        node_addresses: Vec::new(),
        node_claims: Vec::new(),
        software_version: String::new(),
    }
}

/// The daemon's reconciler, in the network namespace of `place`.
pub struct Programmer {
    reconciler: Reconciler,
    reports: Receiver<Report>,
}

impl Programmer {
    /// Starts it.
    pub fn start(place: &dyn Place, backend: Backend) -> Result<Self> {
        let path = format!("/proc/{}/ns/net", place.space().pid());
        let namespace = File::open(&path).with_context(|| path)?;
        let choice = match backend {
            Backend::Kernel => BackendChoice::Kernel,
            Backend::Userspace => BackendChoice::Userspace,
        };
        // Its thread stays in the namespace of the one that starts it.
        let started = std::thread::spawn(move || -> Result<_> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(Reconciler::start(Box::new(LinuxDataplane::new(choice)?))?)
        });
        let (reconciler, reports) =
            started.join().map_err(|_| anyhow!("the data plane's thread panicked"))??;
        Ok(Self { reconciler, reports })
    }

    /// Programs a plan, and returns what was done for it.
    pub fn program(&mut self, (desired, scope): (Arc<Desired>, Scope)) -> Result<Report> {
        let number = self.reconciler.want(desired, scope);
        loop {
            let report = self.reports.blocking_recv().context("the data plane's thread is gone")?;
            ensure!(report.errors.is_empty(), "{:?}", report.errors);
            if report.plan == number {
                return Ok(report);
            }
        }
    }

    /// Waits until it has reported nothing for so long.
    pub fn wait_for_quiet(&mut self, quiet: Duration) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            while tokio::time::timeout(quiet, self.reports.recv()).await.is_ok() {}
        });
        Ok(())
    }
}

/// The same as a plan, for `wg setconf` and for `ip -batch`.
pub fn by_hand(desired: &Desired) -> Result<(String, String)> {
    use std::fmt::Write;
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let device = desired.device.as_ref().context("no device")?;
    let WgPrivateKey(private_key) = &device.private_key;
    let mut setconf = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {}\nFwMark = {}\n",
        base64(private_key),
        device.listen_port,
        device.fwmark
    );
    for (WgPublicKey(key), peer) in &desired.peers {
        let ips: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        writeln!(setconf, "[Peer]\nPublicKey = {}\nAllowedIPs = {}", base64(key), ips.join(","))?;
        if let Some(endpoint) = peer.endpoint {
            writeln!(setconf, "Endpoint = {endpoint}")?;
        }
    }
    let mut batch = String::new();
    for address in &device.addresses {
        writeln!(batch, "addr add {address} dev {}", device.name)?;
    }
    writeln!(batch, "link set {} mtu {} up", device.name, device.mtu)?;
    for route in &desired.routes {
        let (to, table, metric) = (route.destination, route.table, route.metric);
        match &route.kind {
            RouteKind::Device { device, source, mtu } => {
                write!(
                    batch,
                    "route add {to} dev {device} table {table} metric {metric} proto 109"
                )?;
                if let Some(source) = source {
                    write!(batch, " src {source}")?;
                }
                if let Some(mtu) = mtu {
                    write!(batch, " mtu {mtu}")?;
                }
                batch.push('\n');
            }
            RouteKind::Throw => {
                writeln!(batch, "route add throw {to} table {table} metric {metric} proto 109")?;
            }
            RouteKind::Unreachable => {
                writeln!(
                    batch,
                    "route add unreachable {to} table {table} metric {metric} proto 109"
                )?;
            }
        }
    }
    Ok((setconf, batch))
}
