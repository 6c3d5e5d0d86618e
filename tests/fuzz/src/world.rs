//! A mesh of four: a signer, the member under test, one about whom lies are told, and one that lies.

use std::{
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use meshd_core::{
    now::{Now, UnixTime},
    trust::{
        Anchors, Grant, IdentityKey, InitParams, Intermediate, JoinToken, LaneKey, NodeIdentity,
        NodeTerms, RecordDraft, RootCa, Signer, TokenParams, init_mesh, signing,
    },
};
use meshd_proto::{BootId, MeshId, NodeKey, wire};
use rand::{SeedableRng, rngs::StdRng};

/// When everything happens: 2027-01-15.
pub const NOW: UnixTime = UnixTime(1_800_000_000);
/// Places in [`World::members`].
pub const SIGNER: usize = 0;
/// The member under test.
pub const VICTIM: usize = 1;
/// The member about whom lies are told.
pub const OTHER: usize = 2;
/// The member whose messages the fuzzer makes.
pub const LIAR: usize = 3;
/// Others, of whom some inputs need many: with them a mesh is so large that members watch their neighbours only.
pub const CROWD: u8 = 70;
/// Version of everybody's first record.
pub const VERSION: u64 = 100;

/// A member: its keys and its record.
pub struct Member {
    pub identity: Arc<NodeIdentity>,
    pub lane: LaneKey,
    pub draft: RecordDraft,
    pub signed: wire::SignedRecord,
}

impl Member {
    pub fn key(&self) -> NodeKey {
        self.identity.public()
    }
}

/// The mesh, and what its signer has.
pub struct World {
    pub anchors: Anchors,
    pub root: RootCa,
    pub intermediate: Intermediate,
    pub members: Vec<Member>,
    /// Known to [`crate::victim::Victim::in_a_crowd`] besides.
    pub crowd: Vec<Member>,
    pub ledger: Vec<Vec<u8>>,
    /// Admits two.
    pub token: JoinToken,
    /// A root and an intermediate that this mesh does not know, with its name and id.
    pub foreign: (RootCa, Intermediate),
}

/// The one and only.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

/// The moment at which every input begins.
pub fn start() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    // The process may be younger than what is looked back at.
    let mono = *START.get_or_init(|| Instant::now() + Duration::from_secs(3600));
    Now { mono, unix: NOW }
}

pub fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

impl World {
    fn new() -> Self {
        let identity = IdentityKey::from_seed(&[1; 32]);
        let init = init_mesh(
            &InitParams {
                mesh: "prod".parse().expect("a name"),
                node: "alice".parse().expect("a name"),
                identity: identity.clone(),
                prefixes: vec![
                    "10.1.0.0/24".parse().expect("a prefix"),
                    "192.0.2.1/32".parse().expect("a prefix"),
                ],
                allow: Vec::new(),
                pools: Vec::new(),
                wanted: Vec::new(),
                ipv4_pool: "100.112.0.0/16".parse().expect("a pool"),
            },
            NOW,
            &mut rng(),
        )
        .expect("a mesh");
        let mesh_id = *init.anchors.mesh_id();
        let first = NodeIdentity::new(identity, init.certificate.clone()).expect("its own key");
        let mut members = vec![member(first, &mesh_id, 1)];
        for (number, name) in [(2, "bob"), (3, "carol"), (4, "mallory")] {
            let key = IdentityKey::from_seed(&[number; 32]);
            let terms = terms(&init.anchors, &key.public(), name, number);
            let certificate =
                Arc::new(init.intermediate.issue_node(&terms).expect("a certificate"));
            let identity = NodeIdentity::new(key, certificate).expect("its own key");
            members.push(member(identity, &mesh_id, number));
        }
        let crowd = (0..CROWD).map(|i| {
            let number = 10 + i;
            let key = IdentityKey::from_seed(&[100 + i; 32]);
            let terms = terms(&init.anchors, &key.public(), &format!("crowd-{i}"), number);
            let certificate =
                Arc::new(init.intermediate.issue_node(&terms).expect("a certificate"));
            let identity = NodeIdentity::new(key, certificate).expect("its own key");
            member(identity, &mesh_id, number)
        });
        let crowd = crowd.collect();
        let foreign = RootCa::create(&[9; 32], init.anchors.mesh(), &mesh_id, NOW).expect("a root");
        let intermediate = foreign.issue_intermediate(&[10; 32], NOW).expect("an intermediate");
        let mut ledger = init.ledger;
        let mut signer = open(&init.anchors, &init.intermediate, &members[0].identity.key, &ledger);
        let (token, entry) = signer
            .create_token(
                TokenParams {
                    allow: vec!["10.128.0.0/9".parse().expect("a prefix")],
                    groups: vec!["web".into()],
                    seeds: vec!["192.0.2.1:51800".into()],
                    ttl_seconds: 3600,
                    uses: 2,
                    ..TokenParams::default()
                },
                NOW,
                &mut rng(),
            )
            .expect("a token");
        ledger.push(entry.encode());
        signer.apply(entry);
        Self {
            anchors: init.anchors,
            root: init.root,
            intermediate: init.intermediate,
            members,
            crowd,
            ledger,
            token,
            foreign: (foreign, intermediate),
        }
    }

    pub fn mesh_id(&self) -> &MeshId {
        self.anchors.mesh_id()
    }

    /// A signer with the ledger of the beginning.
    pub fn signer(&self) -> Signer {
        open(&self.anchors, &self.intermediate, &self.members[SIGNER].identity.key, &self.ledger)
    }

    pub fn victim(&self) -> &Member {
        &self.members[VICTIM]
    }

    pub fn liar(&self) -> &Member {
        &self.members[LIAR]
    }

    /// One of all who may be known, whatever the number.
    pub fn somebody(&self, number: u8) -> &Member {
        let place = usize::from(number) % (self.members.len() + self.crowd.len());
        self.members.get(place).unwrap_or_else(|| &self.crowd[place - self.members.len()])
    }

    /// One of the members, whatever the number.
    pub fn any(&self, number: u8) -> &Member {
        &self.members[usize::from(number) % self.members.len()]
    }
}

fn open(
    anchors: &Anchors,
    intermediate: &Intermediate,
    identity: &IdentityKey,
    ledger: &[Vec<u8>],
) -> Signer {
    let entries = ledger.iter().map(Vec::as_slice);
    Signer::open(anchors.clone(), intermediate.der(), &intermediate.seed(), identity, entries)
        .expect("a signer")
}

/// What the certificate of a member says: an exact prefix of each family, and a pool.
pub fn terms(anchors: &Anchors, key: &NodeKey, name: &str, number: u8) -> NodeTerms {
    let grant =
        |text: String, claim_len| Grant { prefix: text.parse().expect("a prefix"), claim_len };
    NodeTerms {
        mesh: anchors.mesh().clone(),
        mesh_id: *anchors.mesh_id(),
        name: name.parse().expect("a name"),
        key: *key,
        enrolment_id: [number; 16],
        groups: vec!["web".into()],
        grants: vec![
            grant(format!("10.1.{number}.0/24"), None),
            grant(format!("fd10:{number}::/64"), None),
            grant("10.200.0.0/16".into(), Some(24)),
            grant(format!("192.0.2.{number}/32"), None),
        ],
        mesh_ipv4: Some(Ipv4Addr::new(100, 112, 7, number)),
        limits: vec!["10.128.0.0/9".parse().expect("a prefix")],
        subject: None,
        not_before: NOW.plus(-3600),
        not_after: NOW.plus(29 * 24 * 3600),
    }
}

fn member(identity: NodeIdentity, mesh: &MeshId, number: u8) -> Member {
    let lane = LaneKey::from_seed(&[100 + number; 32]);
    let draft = RecordDraft {
        lanes: vec![lane.to_wire(mesh, &identity.public(), 51820, 0)],
        mesh_addresses: identity.certificate.mesh_addresses(),
        prefixes: vec![format!("10.1.{number}.0/24").parse().expect("a prefix")],
        workloads: Vec::new(),
        endpoints: vec![format!("192.0.2.{number}:51800").parse().expect("an address")],
        zone: "zone-1".parse().expect("a zone"),
        capabilities: vec!["nodes".into()],
        left: false,
        via: Some(NodeKey([number; 32])),
        node_claims: vec![format!("192.0.2.{number}").parse().expect("an address")],
        node_addresses: vec![format!("192.0.2.{number}").parse().expect("an address")],
        software_version: "0.1.0".into(),
    };
    let draft = RecordDraft {
        prefixes: if number == 1 {
            vec!["10.1.0.0/24".parse().expect("a prefix")]
        } else {
            draft.prefixes
        },
        ..draft
    };
    let signed = identity.sign_record(&draft, VERSION, BootId([number; 16]), 1, NOW.plus(-60));
    Member { identity: Arc::new(identity), lane, draft, signed }
}

/// A bundle of any payload, under the root's signature.
pub fn sign_bundle(root: &RootCa, mesh: &MeshId, payload: &[u8]) -> wire::SignedBundle {
    let key = IdentityKey::from_seed(&root.seed());
    wire::SignedBundle {
        payload: payload.to_vec().into(),
        signature: key.sign(signing::Kind::Bundle, mesh, payload).to_vec().into(),
    }
}
