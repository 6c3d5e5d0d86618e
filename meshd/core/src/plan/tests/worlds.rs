//! Small meshes for tests. Node N has the identity `[N; 32]`, the IPv4 mesh address 100.112.0.N, the
//! endpoint 192.0.2.N:51800; node 1 is this host.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use meshd_proto::{BootId, MeshId, NodeKey, WgPublicKey, Zone, wire};

use super::super::*;
use crate::{
    address::{host_prefix, ula},
    now::UnixTime,
    path_mtu::PathMtu,
    trust::{Grant, LaneInfo, NodeCertificate, Record},
};

pub(super) const MESH: MeshId = MeshId([7; 16]);

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn key(number: u8) -> NodeKey {
    NodeKey([number; 32])
}

/// The first lane's keys of node `number`.
pub(super) fn lane(number: u8) -> LaneKeys {
    let secret = x25519_dalek::StaticSecret::from([number; 32]);
    LaneKeys {
        private_key: WgPrivateKey([number; 32]),
        public_key: WgPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes()),
    }
}

/// A record whose prefixes are each granted exactly.
pub(super) fn record(number: u8, prefixes: &[&str]) -> Record {
    let name: meshd_proto::NodeName = format!("n{number}").parse().unwrap();
    let prefixes: Vec<IpNet> = prefixes.iter().map(|text| net(text)).collect();
    let v4 = host_prefix(IpAddr::from([100, 112, 0, number]));
    let exact = |prefix: &IpNet| Grant { prefix: *prefix, claim_len: None };
    let certificate = NodeCertificate {
        der: bytes::Bytes::new(),
        hash: [number; 32],
        key: key(number),
        name: name.clone(),
        mesh: "test".parse().unwrap(),
        mesh_id: MESH,
        enrolment_id: [number; 16],
        groups: Vec::new(),
        grants: prefixes.iter().chain([&v4]).map(exact).collect(),
        mesh_ipv4: Some([100, 112, 0, number].into()),
        limits: Vec::new(),
        subject: None,
        not_before: UnixTime(0),
        not_after: UnixTime(i64::MAX),
    };
    Record {
        signed: wire::SignedRecord::default(),
        payload_hash: [number; 8],
        certificate: Arc::new(certificate),
        key: key(number),
        name,
        version: 1,
        boot_id: BootId([number; 16]),
        generation: 1,
        issued_at: UnixTime(0),
        lanes: vec![LaneInfo { public_key: lane(number).public_key, listen_port: 51820, index: 0 }],
        mesh_addresses: vec![host_prefix(IpAddr::V6(ula(&MESH, &key(number)))), v4],
        prefixes,
        node_claims: Vec::new(),
        endpoints: vec![SocketAddr::from(([192, 0, 2, number], 51800))],
        zone: Zone::default(),
        capabilities: Vec::new(),
        left: false,
        via: None,
        node_addresses: Vec::new(),
        software_version: String::new(),
    }
}

/// A kernel of this host: its interfaces have the addresses that a [`World`] has.
pub(super) fn host() -> Kernel {
    let mut kernel = Kernel::default();
    ["192.0.2.1", "2001:db8::1", "198.51.100.1"]
        .map(ip)
        .into_iter()
        .for_each(|a| kernel.have_address(a));
    kernel
}

/// Lets `record` claim these addresses of its host, each granted exactly.
pub(super) fn with_nodes(mut record: Record, addresses: &[&str]) -> Record {
    record.node_claims = addresses.iter().map(|text| host_prefix(ip(text))).collect();
    record.node_claims.sort();
    let mut certificate = (*record.certificate).clone();
    let exact = |prefix: &IpNet| Grant { prefix: *prefix, claim_len: None };
    certificate.grants.extend(record.node_claims.iter().map(exact));
    record.certificate = Arc::new(certificate);
    record
}

/// Lets `record` claim its prefixes from pools of this length instead.
pub(super) fn from_pool(mut record: Record, length: u8) -> Record {
    let mut certificate = (*record.certificate).clone();
    certificate.grants = record
        .prefixes
        .iter()
        .map(|prefix| Grant {
            prefix: IpNet::new(prefix.addr(), length.min(prefix.prefix_len())).unwrap().trunc(),
            claim_len: Some(prefix.prefix_len()),
        })
        .collect();
    record.certificate = Arc::new(certificate);
    record
}

pub(super) fn of(record: Record) -> Member {
    Member {
        record: Arc::new(record),
        liveness: Liveness::Alive,
        down_for: None,
        path: None,
        reached: BTreeSet::new(),
        tunnel: None,
        path_mtu: Some(PathMtu { mtu: 65_000, small: None }),
        accepts: BTreeSet::new(),
    }
}

pub(super) fn member(number: u8, prefixes: &[&str]) -> Member {
    of(record(number, prefixes))
}

/// A tunnel with a handshake `age` seconds ago.
pub(super) fn tunnel(state: TunnelState, age: Option<u64>, attempt: u32) -> Option<TunnelHealth> {
    Some(TunnelHealth {
        state,
        endpoint: Some(SocketAddr::from(([192, 0, 2, 99], 51820))),
        last_handshake: age.map(Duration::from_secs),
        attempt,
    })
}

/// Everything that a plan is made from.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) own: Record,
    pub(super) lane: LaneKeys,
    pub(super) config: PlanConfig,
    pub(super) local: LocalNetwork,
    pub(super) members: Vec<Member>,
    pub(super) barred: Vec<Arc<Record>>,
    pub(super) externals: Externals,
    pub(super) complete: bool,
    pub(super) steering: SteeringSeen,
}

impl World {
    /// Node 1 with 10.244.1.0/24 on 192.0.2.1/24 and 2001:db8::1/64, and these others.
    pub(super) fn with(members: impl IntoIterator<Item = Member>) -> Self {
        Self {
            own: record(1, &["10.244.1.0/24", "fd00:1::/64"]),
            lane: lane(1),
            config: PlanConfig::default(),
            local: LocalNetwork {
                addresses: nets(&[
                    "192.0.2.1/24",
                    "2001:db8::1/64",
                    "127.0.0.1/8",
                    "10.244.1.1/24",
                ]),
                workloads: std::collections::BTreeSet::new(),
                gateways: [ip("192.0.2.254"), ip("fe80::1")].into(),
                underlay_mtu: Some(1_500),
                behind_nat: Some(false),
                ipv6: true,
                ..LocalNetwork::default()
            },
            members: members.into_iter().collect(),
            barred: Vec::new(),
            externals: Externals::default(),
            complete: true,
            steering: SteeringSeen::default(),
        }
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&PlanInput {
            own: &self.own,
            lane: &self.lane,
            config: &self.config,
            local: &self.local,
            members: &self.members,
            barred: &self.barred,
            externals: &self.externals,
            complete: self.complete,
            steering: self.steering,
        })
    }

    pub(super) fn peer(&self, number: u8) -> Option<Peer> {
        self.plan().desired.peers.get(&lane(number).public_key).cloned()
    }

    /// Stable codes of what is blocked of node `number`, with its prefix.
    pub(super) fn blocked(&self, number: u8) -> Vec<(Option<IpNet>, &'static str)> {
        let blocked = self.plan().blocked.remove(&key(number)).unwrap_or_default();
        blocked.iter().map(|blocked| (blocked.prefix, blocked.reason.as_str())).collect()
    }
}

/// What each of the metrics does for `destination` in the first table.
pub(super) fn kinds(plan: &Plan, destination: &str) -> Vec<&'static str> {
    let first = plan.desired.rules.iter().min_by_key(|rule| rule.priority).map(|rule| rule.table);
    let routes = plan.desired.routes.iter();
    routes
        .filter(|route| route.destination == net(destination) && Some(route.table) == first)
        .map(|route| match route.kind {
            RouteKind::Device { .. } => "device",
            RouteKind::Throw => "throw",
            RouteKind::Unreachable => "unreachable",
        })
        .collect()
}
