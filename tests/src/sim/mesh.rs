//! The mesh's CA, and identities for its hosts.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use meshd_core::{
    node::SharedCache,
    now::UnixTime,
    trust::{
        Anchors, Grant, IdentityKey, Intermediate, LaneKey, LedgerEntry, LedgerEvent, NodeIdentity,
        NodeTerms, RecordDraft, RootCa, Signer, SignerEntry, VerifyCache,
    },
};
use meshd_proto::{MeshId, MeshName, NodeKey};
use rand::{Rng, rngs::StdRng};

/// When a simulation begins.
pub(super) const START: UnixTime = UnixTime(1_800_000_000);

/// A mesh with one signer.
#[derive(Debug)]
pub struct Mesh {
    name: MeshName,
    id: MeshId,
    root: Arc<RootCa>,
    intermediate: Intermediate,
    /// From when on certificates are valid, and for how many seconds.
    start: UnixTime,
    life: i64,
    /// Its root and bundle.
    pub anchors: Anchors,
    /// Verdicts that all nodes share, since 300 nodes on one machine would verify everything 300 times.
    pub cache: SharedCache,
}

impl Mesh {
    /// A mesh with keys from `rng`.
    #[must_use]
    pub fn new(rng: &mut StdRng, life: i64) -> Self {
        Self::since(START, rng, life)
    }

    /// One that was founded at `start`.
    ///
    /// # Panics
    /// If a certificate cannot be made.
    #[must_use]
    pub fn since(start: UnixTime, rng: &mut StdRng, life: i64) -> Self {
        let name: MeshName = "sim".parse().expect("a valid name");
        let mut seeds = [[0; 32]; 2];
        seeds.iter_mut().for_each(|seed| rng.fill_bytes(seed));
        let mut id = MeshId([0; 16]);
        rng.fill_bytes(&mut id.0);
        let root = RootCa::create(&seeds[0], &name, &id, start).expect("a root");
        let intermediate = root.issue_intermediate(&seeds[1], start).expect("an intermediate");
        let mut anchors = Anchors::from_root(root.der()).expect("a readable root");
        let bundle = root.sign_bundle(&id, 1, &[&intermediate]);
        anchors.install_bundle(&bundle).expect("a bundle");
        let root = Arc::new(root);
        let cache = Arc::new(Mutex::new(VerifyCache::new(1 << 17)));
        Self { name, id, root, intermediate, start, life, anchors, cache }
    }

    /// The bundle in which `node` is a signer.
    ///
    /// # Panics
    /// If it is none.
    pub fn name_signer(&mut self, node: NodeKey) {
        let entry = SignerEntry {
            key: self.intermediate.public(),
            node,
            name: "signer".parse().expect("a name"),
            certificate: self.intermediate.der().to_vec().into(),
            retiring: false,
        };
        let version = self.anchors.bundle_version() + 1;
        let bundle = self.root.sign_signers(&self.id, version, &[entry], self.anchors.succession());
        self.anchors.install_bundle(&bundle).expect("a bundle");
    }

    /// What lets the host of `identity` admit, renew and revoke.
    ///
    /// # Panics
    /// If its parts do not fit together.
    #[must_use]
    pub fn signer(&self, identity: &IdentityKey) -> Signer {
        let ipv4_pool = "100.112.0.0/16".parse().expect("a pool");
        let founded = LedgerEntry { time: self.start, event: LedgerEvent::Founded { ipv4_pool } };
        let ledger = founded.encode();
        let (der, seed) = (self.intermediate.der(), self.intermediate.seed());
        Signer::open(self.anchors.clone(), der, &seed, identity, [&*ledger]).expect("a signer")
    }

    /// The `i`th host's key and certificate; it may claim /24s of 10.0.0.0/8.
    ///
    /// # Panics
    /// If a certificate cannot be made.
    #[must_use]
    pub fn identity(&self, i: usize, rng: &mut StdRng) -> Arc<NodeIdentity> {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let key = IdentityKey::from_seed(&seed);
        let pool = Grant { prefix: "10.0.0.0/8".parse().expect("a prefix"), claim_len: Some(24) };
        let terms = NodeTerms {
            mesh: self.name.clone(),
            mesh_id: self.id,
            name: format!("n{i}").parse().expect("a valid name"),
            key: key.public(),
            enrolment_id: [7; 16],
            groups: Vec::new(),
            grants: vec![pool],
            mesh_ipv4: Some(Ipv4Addr::from(0x6470_0001 + u32::try_from(i).unwrap_or(0))),
            limits: Vec::new(),
            subject: None,
            not_before: self.start.plus(-600),
            not_after: self.start.plus(self.life),
        };
        let certificate = self.intermediate.issue_node(&terms).expect("a certificate");
        Arc::new(NodeIdentity::new(key, Arc::new(certificate)).expect("its key"))
    }

    /// What a host says of itself at first.
    #[must_use]
    pub fn draft(&self, i: usize, identity: &NodeIdentity) -> RecordDraft {
        let lane = LaneKey::from_seed(&identity.public().0);
        RecordDraft {
            lanes: vec![lane.to_wire(&self.id, &identity.public(), 51820, 0)],
            prefixes: vec![prefix(i, 0)],
            endpoints: vec![address(i)],
            software_version: "sim".to_owned(),
            ..RecordDraft::default()
        }
    }
}

/// 198.18.0.1, of the addresses for benchmarks (RFC 2544).
const FIRST_ADDRESS: u32 = 0xc612_0001;

/// Where the `i`th host is on the underlay.
#[must_use]
pub(super) fn address(i: usize) -> SocketAddr {
    let host = FIRST_ADDRESS + u32::try_from(i).unwrap_or(0);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(host)), 51800)
}

/// The host that is there, if there are so many.
pub(super) fn host_at(address: &SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    usize::try_from(u32::from(ip).checked_sub(FIRST_ADDRESS)?).ok()
}

/// The `n`th prefix of the `i`th host.
///
/// # Panics
/// Never: a /24 is valid.
#[must_use]
pub fn prefix(i: usize, n: u8) -> ipnet::IpNet {
    let [high, low] = u16::try_from(i).unwrap_or(0).to_be_bytes();
    let third = n.wrapping_mul(8).wrapping_add(high);
    ipnet::IpNet::new(Ipv4Addr::new(10, low, third, 0).into(), 24).expect("a /24")
}
