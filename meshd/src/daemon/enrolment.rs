//! Strangers that ask to enrol: answered by the signer, handed on by everybody else.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use meshd_core::{
    event::{Actor, Event, of_admission},
    refusal::{Code, Refusal},
    trust::{
        Asker, Decider, EnrolRefusal, Enrolled, Known, LedgerEntry, NodeCertificate, Signer, asker,
        decider,
    },
};
use meshd_proto::{NodeKey, wire};
use prost::Message;

use super::{
    clock,
    counters::Counters,
    identities::{Pending, Requester},
    running::Running,
};
use crate::{state::StateDir, transport::EnrolTicket};

/// Requests that wait for a signer's answer.
const WAITING: usize = 32;
/// A signer that has not answered by then is not reached.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that are looked at per second; more are turned away before anything is verified.
const PER_SECOND: u32 = 20;
const ASK_ANOTHER: &str = "try another seed, or start the host that made the token";

/// Requests handed to a signer, by the number under which the answer comes.
#[derive(Default)]
pub(super) struct Forwarded {
    next: u64,
    waiting: BTreeMap<u64, (Instant, NodeKey, EnrolTicket)>,
    second: Option<Instant>,
    in_second: u32,
}

impl Forwarded {
    /// False when there were too many lately.
    fn admit(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.in_second = 0;
        }
        self.in_second += 1;
        self.in_second <= PER_SECOND
    }

    /// Answers those whose signer stayed silent.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, (since, ..))| now.duration_since(*since) >= PATIENCE)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some((.., ticket)) = self.waiting.remove(&id) {
                ticket.answer(refusal_reply(&no_signer()));
            }
        }
    }

    /// The signer's answer to a request that was handed on. Nobody else may answer for it.
    pub(super) fn answer(&mut self, from: NodeKey, id: u64, reply: Bytes) {
        let asked = self.waiting.get(&id).is_some_and(|(_, signer, _)| *signer == from);
        if asked && let Some((.., ticket)) = self.waiting.remove(&id) {
            ticket.answer(reply);
        }
    }
}

/// From where a request came: a stranger's own connection, or a member that handed it on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) remote: Option<SocketAddr>,
    pub(super) via: Option<NodeKey>,
}

impl Asked {
    fn add_to(self, event: Event) -> Event {
        let text = |item: Option<String>| item.unwrap_or_default();
        event
            .with("remote", text(self.remote.map(|remote| remote.to_string())))
            .with("via", text(self.via.map(|via| via.to_string())))
    }
}

fn no_signer() -> Refusal {
    Refusal::new(Code::NoSigner, "no signer that could decide is reached from here")
}

/// A refusal as the joiner gets it.
fn refusal_reply(refusal: &Refusal) -> Bytes {
    encode_refusal(refusal, ASK_ANOTHER)
}

pub(super) fn encode_refusal(refusal: &Refusal, fix: &str) -> Bytes {
    let refused = wire::EnrolRefused {
        code: refusal.code.as_str().to_owned(),
        message: refusal.detail.clone(),
        fix: fix.to_owned(),
    };
    let reply = wire::EnrolReply { result: Some(wire::enrol_reply::Result::Refused(refused)) };
    reply.encode_to_vec().into()
}

impl Running {
    /// A stranger's request, on this host's own port.
    pub(super) fn handle_enrol(
        &mut self,
        ticket: EnrolTicket,
        state: &StateDir,
        counters: &mut Counters,
    ) {
        let asked = Asked { remote: Some(ticket.remote), via: None };
        if !self.forwarded.admit(Instant::now()) {
            counters.enrolment_refused(Code::RateLimited.as_str());
            let refusal = Refusal::new(Code::RateLimited, "too many enrolments at once");
            // Nothing is verified for it.
            self.tell_refused(&[], asked, &refusal);
            ticket.answer(encode_refusal(&refusal, "try again in a few seconds"));
            return;
        }
        let known = |certificate: &NodeCertificate| {
            let held = self.node.directory().get(&certificate.key);
            let mut all = held.into_iter().chain(self.node.barred());
            // Who was away for so long that its record is forgotten is in the ledger still.
            all.any(|record| record.certificate.hash == certificate.hash)
                || self.signer.as_ref().is_some_and(|signer| signer.has_certified(certificate))
        };
        let decider = decider(&ticket.request, self.node.anchors(), known);
        let signer = match decider {
            Ok(Decider::Signer(signer)) => signer,
            // Itself, if it is one.
            Ok(Decider::Any) => self.node.a_signer().unwrap_or(self.node.key()),
            Err(refusal) => {
                counters.enrolment_refused(refusal.code.as_str());
                self.tell_refused(&ticket.request, asked, &refusal);
                ticket
                    .answer(encode_refusal(&refusal, "make a new token on a signer of this mesh"));
                return;
            }
        };
        if signer == self.node.key() {
            let request = ticket.request.clone();
            let by = Requester::Stranger(ticket);
            self.admit(Pending { request, by }, state, counters);
        } else if self.forwarded.waiting.len() >= WAITING
            || self.node.directory().get(&signer).is_none()
        {
            counters.enrolment_refused(Code::NoSigner.as_str());
            self.tell_refused(&ticket.request, asked, &no_signer());
            ticket.answer(refusal_reply(&no_signer()));
        } else {
            self.forward(signer, ticket);
        }
    }

    fn forward(&mut self, signer: NodeKey, ticket: EnrolTicket) {
        self.forwarded.next += 1;
        let id = self.forwarded.next;
        self.node.forward_enrolment(signer, id, ticket.request.clone());
        self.forwarded.waiting.insert(id, (Instant::now(), signer, ticket));
    }

    /// The signer's own decision, on disk before it is told.
    pub(super) fn enrol(
        &mut self,
        request: &[u8],
        asked: &Asked,
        state: &StateDir,
        counters: &mut Counters,
    ) -> Bytes {
        match self.decide(request, state) {
            Ok(Enrolled { reply, entries, name, key, renewal, subject, .. }) => {
                // The same answer again, to who asked again.
                if entries.is_empty() {
                    tracing::debug!(node = %key, "{name} has what it asked for");
                    return reply.encode_to_vec().into();
                }
                counters.enrolments += u64::from(!renewal);
                counters.renewals += u64::from(renewal);
                let subject = subject.unwrap_or_default();
                for event in entries.iter().filter_map(of_admission) {
                    self.events.emit(asked.add_to(event.with("document_subject", &subject)));
                }
                reply.encode_to_vec().into()
            }
            Err(EnrolRefusal { refusal, fix }) => {
                counters.enrolment_refused(refusal.code.as_str());
                self.tell_refused(request, *asked, &refusal);
                encode_refusal(&refusal, &fix)
            }
        }
    }

    /// Who asked is named as far as the request proves it.
    pub(super) fn tell_refused(&self, request: &[u8], asked: Asked, refusal: &Refusal) {
        let text = format!("enrolment refused: {}", refusal.detail);
        let event = Event::warning("enrolment_refused", text).because(refusal.code.as_str());
        let event = match asker(request, self.node.anchors()) {
            Some(Asker { key, name, token }) => {
                let by = token.map_or(Actor::Node(key), Actor::Token);
                event.about(key, name).by(by)
            }
            None => match (asked.remote, asked.via) {
                (Some(remote), _) => event.by(Actor::Address(remote.ip())),
                (None, Some(via)) => event.by(Actor::Node(via)),
                (None, None) => event,
            },
        };
        self.events.emit(asked.add_to(event));
    }

    fn decide(&mut self, request: &[u8], state: &StateDir) -> Result<Enrolled, EnrolRefusal> {
        let own: Vec<_> = self.own_record().iter().map(|record| record.signed.clone()).collect();
        let members: Vec<_> = self.node.directory().iter().cloned().collect();
        let barred: Vec<_> = self.node.barred().cloned().collect();
        let issuers = Some(self.identities.issuers());
        let known = Known { members: &members, barred: &barred, issuers };
        let Some(signer) = &mut self.signer else {
            return Err(EnrolRefusal { refusal: no_signer(), fix: ASK_ANOTHER.to_owned() });
        };
        let enrolled = signer.enrol(request, known, &own, clock::unix(), &mut rand::rng())?;
        record(signer, &enrolled.entries, state)?;
        Ok(enrolled)
    }

    /// Notes who has left, so that names and prefixes are free when their records are forgotten.
    pub(super) fn note_departures(&mut self, state: &StateDir) {
        let Some(signer) = &mut self.signer else { return };
        let members: Vec<_> = self.node.directory().iter().cloned().collect();
        let entries = signer.departures(&members, clock::unix());
        if let Err(error) = record(signer, &entries, state) {
            tracing::error!("{error}");
        }
    }
}

/// Puts entries on disk, then takes them over. Nobody is told before.
pub(super) fn record(
    signer: &mut Signer,
    entries: &[LedgerEntry],
    state: &StateDir,
) -> Result<(), EnrolRefusal> {
    if entries.is_empty() {
        return Ok(());
    }
    let bytes: Vec<Vec<u8>> = entries.iter().map(LedgerEntry::encode).collect();
    state.append_ledger(&bytes).map_err(|error| EnrolRefusal {
        refusal: Refusal::new(
            Code::NoSigner,
            format!("the signer cannot write its ledger: {error}"),
        ),
        fix: "check the disk of the signer's state directory".to_owned(),
    })?;
    for entry in entries {
        signer.apply(entry.clone());
    }
    Ok(())
}
