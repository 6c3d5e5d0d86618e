//! Identity documents at a signer: the issuers of its files, their keys, and requests that wait for keys.
//!
//! Keys are asked for when a document needs them, in a task of its own; requests wait for it, a few at a time.
//! What they are judged by is `meshd_core::trust::issuer`.

use std::collections::BTreeSet;

use bytes::Bytes;
use meshd_core::{
    refusal::{Code, Refusal},
    trust::{
        IdentityTerms,
        issuer::{Issuers, KeySet, audience},
    },
};
use meshd_proto::{
    MeshId, NodeKey,
    control::{IdentityAudienceReply, IdentityAudienceRequest},
};

use super::{
    Daemon, Done, clock,
    counters::Counters,
    enrolment::{Asked, encode_refusal},
    joining::failed,
    running::Running,
};
use crate::{
    config::issuers::{self, IssuerFile, KeySource},
    control::ControlError,
    jwks,
    state::StateDir,
    transport::EnrolTicket,
};

/// Requests that wait for keys.
const WAITING: usize = 32;

/// A request to enrol, and who gets the answer.
pub(super) struct Pending {
    pub(super) request: Bytes,
    pub(super) by: Requester,
}

/// Who asked this signer.
pub(super) enum Requester {
    /// A stranger, on this host's own port.
    Stranger(EnrolTicket),
    /// A member that hands it on, under its number.
    Member(NodeKey, u64),
}

impl Requester {
    fn as_asked(&self) -> Asked {
        match self {
            Self::Stranger(ticket) => Asked { remote: Some(ticket.remote), via: None },
            Self::Member(from, _) => Asked { remote: None, via: Some(*from) },
        }
    }
}

/// The issuers that this host believes when it signs.
#[derive(Default)]
pub(super) struct Identities {
    files: Vec<IssuerFile>,
    issuers: Issuers,
    /// Changes with the files: an answer to an older question counts no more.
    generation: u64,
    waiting: Vec<(String, Pending)>,
    /// Whose keys are to be asked for, and whose are being.
    wanted: Vec<String>,
    asking: BTreeSet<String>,
}

impl Identities {
    pub(super) fn new(files: &[IssuerFile], mesh: &MeshId) -> Self {
        // An answer may still be on its way to a membership before this one.
        let mut identities = Self { generation: rand::random(), ..Self::default() };
        identities.set(files, mesh);
        identities
    }

    /// Follows the files, and gives back what waited by the old ones. Keys are read anew when they are needed.
    fn set(&mut self, files: &[IssuerFile], mesh: &MeshId) -> Vec<Pending> {
        self.files = files.to_vec();
        self.issuers = Issuers::new(files.iter().map(|file| file.terms(mesh)));
        self.generation = self.generation.wrapping_add(1);
        self.asking.clear();
        self.wanted.clear();
        std::mem::take(&mut self.waiting).into_iter().map(|(_, asked)| asked).collect()
    }

    pub(super) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// Keeps a request until the keys of `issuer` have come. `Err` when too many wait already.
    fn wait(&mut self, issuer: String, asked: Pending) -> Result<(), Pending> {
        if self.waiting.len() >= WAITING {
            return Err(asked);
        }
        if self.asking.insert(issuer.clone()) {
            self.issuers.asked(&issuer, clock::unix());
            self.wanted.push(issuer.clone());
        }
        self.waiting.push((issuer, asked));
        Ok(())
    }

    fn take_wanted(&mut self) -> Vec<(u64, String, KeySource)> {
        let wanted = std::mem::take(&mut self.wanted);
        let source = |name: String| {
            let file = self.files.iter().find(|file| file.name() == name)?;
            Some((self.generation, name, file.keys.clone()))
        };
        wanted.into_iter().filter_map(source).collect()
    }

    /// Takes an answer over, and gives back what waited for it.
    fn answered(&mut self, asked: u64, name: &str, keys: Result<KeySet, String>) -> Vec<Pending> {
        if asked == self.generation {
            self.asking.remove(name);
            self.issuers.take_keys(name, keys, clock::unix());
        }
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(issuer, _)| issuer == name);
        self.waiting = waiting;
        let ready: Vec<(String, Pending)> = ready;
        ready.into_iter().map(|(_, asked)| asked).collect()
    }
}

impl Running {
    /// Answers a request to this signer, now or when the keys that it takes have come.
    pub(super) fn admit(&mut self, asked: Pending, state: &StateDir, counters: &mut Counters) {
        let wanted = self.signer.as_ref().and_then(|signer| {
            signer.wants_keys(&asked.request, self.identities.issuers(), clock::unix())
        });
        let Some(issuer) = wanted else {
            let reply = self.enrol(&asked.request, &asked.by.as_asked(), state, counters);
            self.answer_enrolment(asked, reply);
            return;
        };
        if let Err(asked) = self.identities.wait(issuer, asked) {
            counters.enrolment_refused(Code::RateLimited.as_str());
            let why = "too many enrolments wait for an issuer's keys";
            let refusal = Refusal::new(Code::RateLimited, why);
            self.tell_refused(&asked.request, asked.by.as_asked(), &refusal);
            let reply = encode_refusal(&refusal, "try again in a few seconds");
            self.answer_enrolment(asked, reply);
        }
    }

    fn answer_enrolment(&mut self, asked: Pending, reply: Bytes) {
        match asked.by {
            Requester::Stranger(ticket) => ticket.answer(reply),
            Requester::Member(from, id) => self.node.reply_enrolment(from, id, reply, clock::now()),
        }
    }
}

impl Daemon {
    /// Reads the issuers' files at the start. A file that is wrong admits nobody, and is no reason not to run.
    pub(super) fn load_issuers(&mut self) {
        match issuers::load(&self.sources.issuers()) {
            Ok(files) => {
                self.issuers = files;
                self.issuers_error = None;
            }
            Err(errors) => {
                tracing::error!("issuers of identity documents: the files in force stay: {errors}");
                self.issuers_error = Some(errors.to_string());
            }
        }
        if let Some(running) = &mut self.running {
            let mesh = running.identity.certificate.mesh_id;
            for asked in running.identities.set(&self.issuers, &mesh) {
                running.admit(asked, &self.state, &mut self.counters);
            }
        }
        let names: Vec<&str> = self.issuers.iter().map(IssuerFile::name).collect();
        if !names.is_empty() {
            tracing::info!(issuers = names.join(", "), "issuers of identity documents read");
        }
    }

    /// Asks for the keys that requests wait for.
    pub(super) fn ask_for_keys(&mut self) {
        let Some(running) = &mut self.running else { return };
        for (generation, name, source) in running.identities.take_wanted() {
            let done = self.done.clone();
            tokio::spawn(async move {
                let keys = jwks::read(&source).await;
                // The loop only goes away with the process.
                let _ = done.send(Done::Keys(generation, name, keys)).await;
            });
        }
    }

    /// What an issuer answered; decides on what waited for it.
    pub(super) fn take_keys(&mut self, asked: u64, name: &str, keys: Result<KeySet, String>) {
        let outcome = match &keys {
            Ok(keys) => {
                tracing::info!(issuer = name, keys = keys.len(), "the issuer's keys were read");
                "read"
            }
            Err(why) => {
                tracing::warn!(issuer = name, "the issuer's keys cannot be read: {why}");
                "failed"
            }
        };
        self.counters.issuer_keys(outcome);
        let Some(running) = &mut self.running else { return };
        for asked in running.identities.answered(asked, name, keys) {
            running.admit(asked, &self.state, &mut self.counters);
        }
    }

    /// `meshctl join --identity-audience`.
    pub(super) fn identity_audience(
        &self,
        request: &IdentityAudienceRequest,
    ) -> Result<IdentityAudienceReply, ControlError> {
        let token = self.read_token(&request.token)?;
        let IdentityTerms { issuer, audience: fixed, .. } =
            token.terms().identity.clone().ok_or_else(|| {
                failed(
                    "identity_issuer",
                    "the token admits by itself: it takes no identity document",
                    "`meshctl join` with the token alone",
                )
            })?;
        // On disk before anybody is told of it, since the document will name it.
        let key = self
            .state
            .identity(&rand::random())
            .map_err(|error| failed("state_dir", error.to_string(), "check the state directory"))?
            .public();
        Ok(IdentityAudienceReply {
            bound_to_key: fixed.is_none(),
            audience: fixed.unwrap_or_else(|| audience(token.mesh_id(), &key)),
            issuer,
            id: key.to_string(),
        })
    }
}
