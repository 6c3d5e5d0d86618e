//! Identity documents at a signer: the issuers of its files, their keys, and requests that wait for keys.
//!
//! Keys are asked for when a document needs them, in a task of its own; requests wait for it, a few at a time.
//! What they are judged by is `meshd_core::trust::issuer`.

use std::collections::{BTreeSet, VecDeque};

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
    control::{HealthLine, IdentityAudienceReply, IdentityAudienceRequest},
};

use super::{
    Daemon, Done, clock,
    counters::Counters,
    deeds,
    enrolment::{Asked, encode_refusal},
    health::notice,
    joining::failed,
    running::Running,
    status::rfc3339,
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
/// Requests that waited and are decided in one turn of the loop: each is an fsync, and others wait for the loop too.
const A_TURN: usize = 4;

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
    /// What is to be decided in the next turns of the loop.
    ready: VecDeque<Pending>,
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

    /// Follows the files; what waited by the old ones is judged by them. Keys are read anew when they are needed.
    fn set(&mut self, files: &[IssuerFile], mesh: &MeshId) {
        self.files = files.to_vec();
        self.issuers = Issuers::new(files.iter().map(|file| file.terms(mesh)));
        self.generation = self.generation.wrapping_add(1);
        self.asking.clear();
        self.wanted.clear();
        self.ready.extend(self.waiting.drain(..).map(|(_, asked)| asked));
    }

    pub(super) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// Keeps a request until the keys of `issuer` have come. `Err` when too many wait already.
    fn wait(&mut self, issuer: String, asked: Pending) -> Result<(), Pending> {
        if self.waiting.len() + self.ready.len() >= WAITING {
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

    /// Takes an answer over; what waited for it is ready.
    fn answered(&mut self, asked: u64, name: &str, keys: Result<KeySet, String>) {
        if asked == self.generation {
            self.asking.remove(name);
            self.issuers.take_keys(name, keys, clock::unix());
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(issuer, _)| issuer == name);
        self.waiting = waiting;
        self.ready.extend(ready.into_iter().map(|(_, asked)| asked));
    }

    /// Something is to be decided at once.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What is to be decided in this turn of the loop.
    fn take_ready(&mut self) -> Vec<Pending> {
        let count = self.ready.len().min(A_TURN);
        self.ready.drain(..count).collect()
    }

    /// Whose keys cannot be had, for `status`.
    pub(super) fn lines(&self) -> impl Iterator<Item = HealthLine> {
        self.issuers.problems().map(|(issuer, why, since)| {
            let since = rfc3339(since).unwrap_or_default();
            notice(
                "issuer_keys",
                &format!("the keys of the issuer {issuer} cannot be had since {since}: {why}"),
                &format!(
                    "correct jwks_url, ca_file or jwks_file in issuers.d/{issuer}.toml, or what they name; \
                     `meshd check` asks for the keys"
                ),
            )
        })
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
    /// Reads the issuers' files, at the start and at a reload. A file that is wrong, or gone, admits nobody; the
    /// others count.
    pub(super) fn load_issuers(&mut self) {
        let loaded = issuers::load(&self.sources.issuers());
        for (name, errors) in &loaded.refused {
            tracing::error!(
                issuer = name,
                "an issuer of identity documents admits nobody: {errors}"
            );
        }
        for event in deeds::issuers_changed(&self.issuers.files, &loaded.files) {
            self.events.emit(event);
        }
        self.issuers = loaded;
        if let Some(running) = &mut self.running {
            let mesh = running.identity.certificate.mesh_id;
            running.identities.set(&self.issuers.files, &mesh);
        }
    }

    /// Decides on some of what has waited for keys.
    pub(super) fn admit_ready(&mut self) {
        let Some(running) = &mut self.running else { return };
        for asked in running.identities.take_ready() {
            running.admit(asked, &self.state, &mut self.counters);
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

    /// What an issuer answered.
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
        running.identities.answered(asked, name, keys);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(n: u8) -> Pending {
        let by = Requester::Member(NodeKey([n; 32]), u64::from(n));
        Pending { request: Bytes::new(), by }
    }

    fn numbers(taken: &[Pending]) -> Vec<u64> {
        let number = |pending: &Pending| match pending.by {
            Requester::Member(_, number) => number,
            Requester::Stranger(_) => 0,
        };
        taken.iter().map(number).collect()
    }

    #[test]
    fn what_has_waited_for_keys_is_decided_a_few_at_a_time_and_in_order() {
        let mut identities = Identities::new(&[], &MeshId([7; 16]));
        for n in 1..=32 {
            let issuer = if n % 8 == 0 { "other" } else { "idp" };
            assert!(identities.wait(issuer.to_owned(), pending(n)).is_ok());
        }
        assert!(identities.wait("idp".to_owned(), pending(33)).is_err());
        let generation = identities.generation;
        identities.answered(generation, "idp", Err("no answer".to_owned()));
        assert!(identities.wait("idp".to_owned(), pending(33)).is_err(), "they wait still");
        assert_eq!(numbers(&identities.take_ready()), [1, 2, 3, 4]);
        assert_eq!(numbers(&identities.take_ready()), [5, 6, 7, 9]);
        assert!(identities.is_ready());
        // The files change: the others come after them.
        identities.set(&[], &MeshId([7; 16]));
        let mut turns = Vec::new();
        while identities.is_ready() {
            turns.push(identities.take_ready().len());
        }
        assert_eq!(turns, [4, 4, 4, 4, 4, 4]);
    }
}
