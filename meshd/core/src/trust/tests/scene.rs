//! A signer that believes an issuer, and hosts that join with its documents.

use meshd_proto::wire;
use serde_json::json;

use super::world::{World, open_token};
use crate::{
    refusal::Code,
    trust::{
        EnrolRefusal, Enrolled, IdentityKey, JoinToken, RootCa, Signer, SignerEntry, TokenParams,
        build_identity_request,
        fixture::{NOW, TestMesh},
        issuer::{
            Binding, IssuerTerms,
            tests::fake::{Fake, claims, first_use, terms},
        },
    },
};

pub(super) struct Scene {
    pub(super) world: World,
    pub(super) fake: Fake,
    pub(super) token: JoinToken,
}

impl Scene {
    pub(super) fn new(change: impl FnOnce(&mut IssuerTerms)) -> Self {
        Self::bound(Binding::Key, change)
    }

    pub(super) fn first_use(change: impl FnOnce(&mut IssuerTerms)) -> Self {
        let mesh = *World::new().init.anchors.mesh_id();
        Self::bound(first_use(&mesh), change)
    }

    pub(super) fn bound(binding: Binding, change: impl FnOnce(&mut IssuerTerms)) -> Self {
        let mut world = World::new();
        let mut terms = terms(binding);
        change(&mut terms);
        let params = TokenParams { issuer: Some(terms.clone()), allow: Vec::new(), ..open_token() };
        let token = world.token(params);
        let fake = Fake::new();
        world.issuers = Some(fake.issuers(terms));
        Self { world, fake, token }
    }

    /// A document for the host `name`: of its key, or of none.
    pub(super) fn document(&self, name: &str) -> String {
        let mut claims = claims(self.token.mesh_id(), &TestMesh::key(name).public(), name);
        if let Some(audience) = &self.token.terms().identity.as_ref().unwrap().audience {
            claims["aud"] = json!(audience);
        }
        self.fake.sign(&claims)
    }

    pub(super) fn request(
        &self,
        key: &IdentityKey,
        name: &str,
        document: &str,
    ) -> wire::EnrolRequest {
        let wanted = ["10.129.0.0/24".parse().unwrap()];
        let name = name.parse().unwrap();
        let document = document.as_bytes();
        build_identity_request(&self.token, key, &name, &wanted, document, [9; 16], NOW).unwrap()
    }

    pub(super) fn join_as(
        &mut self,
        key: &str,
        name: &str,
        document: &str,
    ) -> Result<Enrolled, EnrolRefusal> {
        let request = self.request(&TestMesh::key(key), name, document);
        let enrolled = self.world.decide(&request, NOW)?;
        self.world.persist(enrolled.entries.clone());
        Ok(enrolled)
    }

    pub(super) fn join(&mut self, name: &str) -> Result<Enrolled, EnrolRefusal> {
        let document = self.document(name);
        self.join_as(name, name, &document)
    }

    pub(super) fn refused(
        &mut self,
        key: &str,
        name: &str,
        document: &str,
        code: Code,
    ) -> EnrolRefusal {
        let refused = self.join_as(key, name, document).unwrap_err();
        assert_eq!(refused.refusal.code, code, "{refused}");
        refused
    }
}

/// The signer of `world` after `cert ca rotate`: another root, another intermediate, the same ledger.
pub(super) fn rotate(world: &mut World) {
    let anchors = world.init.anchors.clone();
    let (mesh, id) = (anchors.mesh(), anchors.mesh_id());
    let second = RootCa::create(&[50; 32], mesh, id, NOW).unwrap();
    let moved = second.issue_intermediate(&[60; 32], NOW).unwrap();
    let succession = anchors.succession().followed_by(&world.init.root, &second, NOW).unwrap();
    let bundle = second.sign_signers(id, 2, &anchors.signers(), &succession);
    let mut next = anchors.clone();
    next.install_bundle(&bundle).unwrap();
    let entry = SignerEntry {
        key: moved.public(),
        certificate: moved.der().to_vec().into(),
        ..anchors.signers()[0].clone()
    };
    let (signers, succession) = next.with_signer(entry);
    next.install_bundle(&second.sign_signers(id, 3, &signers, &succession)).unwrap();
    let ledger = world.disk.iter().map(Vec::as_slice);
    let key = TestMesh::key("signer");
    world.signer = Signer::open(next, moved.der(), &moved.seed(), &key, ledger).unwrap();
}
