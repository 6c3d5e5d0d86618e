//! A signer, its ledger, and hosts that join: what the daemon does around the core.

use std::sync::Arc;

use meshd_proto::{NodeName, wire};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    now::UnixTime,
    trust::{
        EnrolError, EnrolRefusal, Enrolled, Enrolment, IdentityKey, InitParams, JoinToken, Known,
        LedgerEntry, MeshInit, Record, Signer, TokenParams, accept_reply, build_request,
        fixture::{NOW, TestMesh},
        init_mesh,
        issuer::Issuers,
    },
};

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) init: MeshInit,
    pub(super) signer: Signer,
    /// The ledger as the daemon has it on disk.
    pub(super) disk: Vec<Vec<u8>>,
    pub(super) members: Vec<Arc<Record>>,
    pub(super) issuers: Option<Issuers>,
}

pub(super) fn params() -> InitParams {
    InitParams {
        mesh: "prod".parse().unwrap(),
        node: "signer".parse().unwrap(),
        identity: TestMesh::key("signer"),
        prefixes: vec!["10.1.0.0/16".parse().unwrap()],
        allow: vec!["10.2.0.0/16".parse().unwrap()],
        pools: Vec::new(),
        wanted: vec!["10.2.3.0/24".parse().unwrap(), "10.9.0.0/24".parse().unwrap()],
        ipv4_pool: "100.112.0.0/16".parse().unwrap(),
    }
}

/// Terms that permit much.
pub(super) fn open_token() -> TokenParams {
    TokenParams {
        allow: vec!["10.128.0.0/9".parse().unwrap()],
        seeds: vec!["192.0.2.1:51800".into()],
        ttl_seconds: 3600,
        uses: 10,
        ..TokenParams::default()
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(&params(), 1)
    }

    pub(super) fn with(params: &InitParams, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let init = init_mesh(params, NOW, &mut rng).unwrap();
        let disk = init.ledger.clone();
        let signer = open(&init, &disk);
        Self { rng, init, signer, disk, members: Vec::new(), issuers: None }
    }

    pub(super) fn persist(&mut self, entries: Vec<LedgerEntry>) {
        for entry in entries {
            self.disk.push(entry.encode());
            self.signer.apply(entry);
        }
    }

    /// The signer after a restart.
    pub(super) fn restart(&mut self) {
        self.signer = open(&self.init, &self.disk);
    }

    pub(super) fn token(&mut self, params: TokenParams) -> JoinToken {
        let (token, entry) = self.signer.create_token(params, NOW, &mut self.rng).unwrap();
        self.persist(vec![entry]);
        token
    }

    pub(super) fn request(
        &self,
        token: &JoinToken,
        name: &str,
        wanted: &[&str],
    ) -> wire::EnrolRequest {
        self.request_of(token, &TestMesh::key(name), name, wanted)
    }

    pub(super) fn request_of(
        &self,
        token: &JoinToken,
        key: &IdentityKey,
        name: &str,
        wanted: &[&str],
    ) -> wire::EnrolRequest {
        let wanted: Vec<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        build_request(token, key, &name.parse().unwrap(), &wanted, [9; 16], NOW)
    }

    pub(super) fn decide(
        &mut self,
        request: &wire::EnrolRequest,
        now: UnixTime,
    ) -> Result<Enrolled, EnrolRefusal> {
        let bytes = request.encode_to_vec();
        let known =
            Known { members: &self.members, issuers: self.issuers.as_ref(), ..Known::default() };
        self.signer.enrol(&bytes, known, &[], now, &mut self.rng)
    }

    /// Joins as the host `name` from start to end.
    pub(super) fn join(
        &mut self,
        token: &JoinToken,
        name: &str,
        wanted: &[&str],
    ) -> Result<Enrolment, EnrolRefusal> {
        let request = self.request(token, name, wanted);
        let enrolled = self.decide(&request, NOW)?;
        self.persist(enrolled.entries);
        Ok(accept(&enrolled.reply, token, name).unwrap())
    }
}

pub(super) fn accept(
    reply: &wire::EnrolReply,
    token: &JoinToken,
    name: &str,
) -> Result<Enrolment, EnrolError> {
    let asked: NodeName = name.parse().unwrap();
    accept_reply(reply, token, &TestMesh::key(name).public(), &asked)
}

pub(super) fn open(init: &MeshInit, disk: &[Vec<u8>]) -> Signer {
    Signer::open(
        init.anchors.clone(),
        init.intermediate.der(),
        &init.intermediate.seed(),
        &TestMesh::key(init.certificate.name.as_str()),
        disk.iter().map(Vec::as_slice),
    )
    .unwrap()
}
