//! This node's next certificate: when it is asked for, whom, and what becomes of the answer.
//!
//! ```text
//! resting ── two thirds of the life are over, or other prefixes are wanted than granted ──► asking
//!    ▲                                                                                  │
//!    ├── a later certificate for this node: taken over, the record is signed anew ◄─────┤
//!    └── silence, or a refusal: again after a pause that grows to an hour ◄─────────────┘
//! ```
//! An attempt asks signer after signer, those that are there first, and in the end some member as a stranger
//! does, which needs no valid certificate.

mod lacking;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ipnet::IpNet;
use meshd_proto::{NodeKey, wire};
use prost::Message as _;
use rand::{RngExt, seq::IteratorRandom};

use super::{
    Node,
    sync::jitter,
    types::{Liveness, Output},
};
use crate::{
    event::{Event, about_certificate, signer_actor},
    limits,
    now::{Now, UnixTime},
    refusal::{Code, Refusal},
    trust::{NodeCertificate, NodeIdentity, accept_renewal, build_renewal},
};

/// A signer's answer that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(6);
/// At the door, seed after seed is tried.
const DOOR_PATIENCE: Duration = Duration::from_secs(45);
/// Signers that one attempt asks.
const SIGNERS: usize = 4;
/// Pauses between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(3600));
/// After an answer that gave something, what has been detected since is asked for this soon.
const EAGER: Duration = Duration::from_secs(2);
/// When it is looked again whether the time has come: a clock may be set.
const LOOK_AGAIN: i64 = 3600;
/// All whose issuer retires have asked for another certificate by then.
const ORPHANS_WITHIN: Duration = Duration::from_secs(10);
/// Who reaches nobody for so long may be shut out by a bundle or a date that it has not heard of.
const SHUT_OUT_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Asked {
    id: u64,
    /// Nobody in particular: through the door of strangers.
    of: Option<NodeKey>,
    until: Instant,
}

/// How this node comes to its next certificate.
#[derive(Debug)]
pub(super) struct Renewals {
    share: i64,
    next: Instant,
    /// From then on for what is not granted, though `next` is later: a signer has just given what was asked for.
    eager: Option<Instant>,
    pause: Duration,
    asked: Option<Asked>,
    /// Who was asked in this attempt.
    tried: BTreeSet<NodeKey>,
    /// What one of them said.
    said: Option<Refusal>,
    /// A person waits for this attempt.
    anyway: bool,
    attempts: u32,
    /// Detected, within the limits, and not granted: somebody else has it, whose certificate says so if that is known here.
    denied: BTreeMap<IpNet, Option<NodeKey>>,
    /// Granted once, and wanted no more.
    surplus: BTreeSet<IpNet>,
    problem: Option<Refusal>,
    /// The bundle does not hold its certificate's issuer.
    orphan: bool,
    /// Since when nobody is reached, though there are others.
    alone: Option<Instant>,
}

impl Renewals {
    pub(super) fn new(rng: &mut impl RngExt, now: Instant) -> Self {
        Self {
            share: rng.random_range(limits::RENEWAL_SHARE),
            next: now,
            eager: None,
            pause: PAUSE.0,
            asked: None,
            tried: BTreeSet::new(),
            said: None,
            anyway: false,
            attempts: 0,
            denied: BTreeMap::new(),
            surplus: BTreeSet::new(),
            problem: None,
            orphan: false,
            alone: None,
        }
    }
}

impl Node {
    /// True while an answer is waited for.
    #[must_use]
    pub fn is_renewing(&self) -> bool {
        self.renewals.asked.is_some()
    }

    /// Why the certificate that is due was not renewed yet.
    #[must_use]
    pub fn renewal_problem(&self) -> Option<&Refusal> {
        self.renewals.problem.as_ref()
    }

    /// When this node's certificate is due to be renewed.
    #[must_use]
    pub fn renewal_due(&self) -> UnixTime {
        let certificate = &self.own.identity().certificate;
        let life = certificate.not_after.since(certificate.not_before);
        certificate.not_before.plus(life / 1000 * self.renewals.share)
    }

    /// Asks for the next certificate now, whether or not it is due.
    pub fn renew_now(&mut self, now: Now) {
        self.renewals.next = now.mono;
        self.renewals.problem = None;
        self.renewals.anyway = true;
        self.begin_attempt(now);
        self.settle(now);
    }

    /// Asks for a certificate without `prefixes`, which are wanted no more, until it has none of them: as long as it has,
    /// nobody else gets them.
    pub fn give_back(&mut self, prefixes: impl IntoIterator<Item = IpNet>, now: Now) {
        self.renewals.surplus.extend(prefixes);
        if self.holds_too_much() {
            self.renew_now(now);
        }
    }

    /// The answer to [`Output::AskAtTheDoor`]; `None`: nobody answered.
    pub fn handle_renewal_reply(&mut self, id: u64, reply: Option<&[u8]>, now: Now) {
        if self.renewals.asked.as_ref().is_some_and(|asked| asked.id == id && asked.of.is_none()) {
            match reply {
                Some(reply) => self.take_renewal(reply, now),
                None => self.end_attempt(silent(), now),
            }
        }
        self.settle(now);
    }

    /// A reply that a member sent; false when it is to something else.
    pub(super) fn hear_renewal(&mut self, from: NodeKey, id: u64, reply: &[u8], now: Now) -> bool {
        let ours = |asked: &Asked| asked.id == id && asked.of == Some(from);
        if !self.renewals.asked.as_ref().is_some_and(ours) {
            return false;
        }
        self.take_renewal(reply, now);
        true
    }

    /// Nothing can be sent to `key`: it need not be waited for.
    pub(super) fn lose_signer(&mut self, key: &NodeKey, now: Now) {
        if self.renewals.asked.as_ref().is_some_and(|asked| asked.of == Some(*key)) {
            self.renewal_failed(silent(), now);
        }
    }

    pub(super) fn handle_renewal_timeout(&mut self, now: Now) {
        if self.renewals.asked.as_ref().is_some_and(|asked| asked.until <= now.mono) {
            self.renewal_failed(silent(), now);
        }
        let due = self.needs_renewal(now) || self.is_shut_out(now.mono);
        if due && self.renewals.asked.is_none() && self.next_attempt() <= now.mono {
            self.begin_attempt(now);
        }
    }

    fn begin_attempt(&mut self, now: Now) {
        self.renewals.eager = None;
        self.renewals.tried.clear();
        self.renewals.said = None;
        self.ask_for_renewal(now);
    }

    pub(super) fn next_renewal(&self) -> Option<Instant> {
        if self.own.has_left() || self.own.draft().is_none() {
            return None;
        }
        if let Some(asked) = &self.renewals.asked {
            return Some(asked.until);
        }
        if self.needs_renewal(self.clock) {
            return Some(self.next_attempt());
        }
        let shut_out = self.renewals.alone.map(|since| since + SHUT_OUT_AFTER);
        if let Some(at) = shut_out {
            return Some(at.max(self.renewals.next));
        }
        let begins = self.anchors.trust_time(self.clock.unix).begins;
        let seconds = self.renewal_due().since(begins).clamp(1, LOOK_AGAIN);
        Some(self.clock.mono + Duration::from_secs(seconds.unsigned_abs()))
    }

    fn needs_renewal(&self, now: Now) -> bool {
        // A clock that is behind must not keep a node from it.
        let begins = self.anchors.trust_time(now.unix).begins;
        let due = begins >= self.renewal_due() || self.is_granted_amiss() || self.is_orphaned();
        !self.own.has_left() && due
    }

    /// Notes whether anybody is reached.
    pub(super) fn note_contact(&mut self, now: Instant) {
        let own = self.own.key();
        // A host that knows nobody yet has somebody to ask all the same, if it has seeds.
        let others = || {
            self.directory.iter().any(|record| record.key != own && !record.left)
                || self.seeds.lead_elsewhere(&own)
        };
        if !self.paths.is_isolated() || !others() {
            if self.renewals.alone.take().is_some() {
                self.renewals.pause = PAUSE.0;
                self.renewals.attempts = 0;
                self.renewals.next = self.renewals.next.min(now + PAUSE.0);
            }
        } else if self.renewals.alone.is_none() {
            self.renewals.alone = Some(now);
        }
    }

    /// Nobody answers: they may refuse its certificate, and the door is where it would learn of it.
    fn is_shut_out(&self, now: Instant) -> bool {
        let long = |since: Instant| now.saturating_duration_since(since) >= SHUT_OUT_AFTER;
        !self.own.has_left() && self.renewals.alone.is_some_and(long)
    }

    /// Its certificate's issuer is retiring, or gone.
    fn is_orphaned(&self) -> bool {
        let certificate = &self.own.identity().certificate;
        self.anchors.is_from_retiring(certificate) || self.renewals.orphan
    }

    /// A new bundle: all whose issuer it takes away renew soon, and not all at once.
    pub(super) fn spread_renewal(&mut self, now: Now) {
        let certificate = &self.own.identity().certificate;
        self.renewals.orphan = self.anchors.issuer_of(certificate).is_none();
        if self.is_orphaned() {
            let wait = self.rng.random_range(0..ORPHANS_WITHIN.as_millis());
            let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
            self.renewals.next = now.mono + wait;
            self.renewals.pause = PAUSE.0;
        }
    }

    /// Asks the next one of this attempt.
    fn ask_for_renewal(&mut self, now: Now) {
        let Some(draft) = self.own.draft() else { return };
        let wanted = draft.wanted();
        // Either clock may be wrong: this host's, or the one of the signer that spoke last.
        let mut begins = self.anchors.trust_time(now.unix).begins;
        // Nor before what it holds, or the signer takes it for one that is played again.
        let certificate = &self.own.identity().certificate;
        let held = certificate.not_before.plus(limits::CERTIFICATE_BACKDATE_SECONDS);
        if held.since(begins) < limits::CLOCK_SKEW_SECONDS / 2 {
            begins = begins.plus(-1).max(held.plus(1));
        }
        let issued_at = if self.renewals.attempts.is_multiple_of(2) { begins } else { now.unix };
        let request = build_renewal(
            self.own.identity(),
            &wanted,
            self.renewals.anyway,
            self.rng.random(),
            issued_at,
        );
        let request: Bytes = request.encode_to_vec().into();
        let id = self.rng.random();
        let (own, shut_out) = (self.own.key(), self.is_shut_out(now.mono));
        let of = self.untried_signer().filter(|signer| *signer == own || !shut_out);
        self.renewals.tried.extend(of);
        let patience = if of.is_some() { PATIENCE } else { DOOR_PATIENCE };
        self.renewals.asked = Some(Asked { id, of, until: now.mono + patience });
        match of {
            Some(signer) if signer == self.own.key() => {
                self.outputs.push_back(Output::EnrolForward { from: signer, id, request });
            }
            Some(signer) => self.forward_enrolment(signer, id, request),
            None => self.outputs.push_back(Output::AskAtTheDoor { id, request }),
        }
    }

    fn untried_signer(&mut self) -> Option<NodeKey> {
        if self.renewals.tried.len() >= SIGNERS {
            return None;
        }
        let tried = self.renewals.tried.clone();
        self.signer_besides(&tried)
    }

    /// A signer by the root's word: this node itself, or one that is there rather than one that is not.
    pub fn a_signer(&mut self) -> Option<NodeKey> {
        self.signer_besides(&BTreeSet::new())
    }

    fn signer_besides(&mut self, tried: &BTreeSet<NodeKey>) -> Option<NodeKey> {
        let own = self.own.key();
        let signers: Vec<NodeKey> = self
            .anchors
            .signers()
            .into_iter()
            .filter(|signer| !signer.retiring && !tried.contains(&signer.node))
            .map(|signer| signer.node)
            .filter(|key| *key == own || self.directory.get(key).is_some_and(|record| !record.left))
            .collect();
        if signers.contains(&own) {
            return Some(own);
        }
        let there =
            |key: &&NodeKey| matches!(self.membership.liveness(key), Some((Liveness::Alive, _)));
        let alive = signers.iter().filter(there).choose(&mut self.rng);
        alive.or_else(|| signers.iter().choose(&mut self.rng)).copied()
    }

    fn take_renewal(&mut self, reply: &[u8], now: Now) {
        let mut anchors = self.anchors.clone();
        let current = self.own.identity().certificate.clone();
        let renewed = wire::EnrolReply::decode(reply)
            .map_err(|_| Refusal::new(Code::Malformed, "renewal: the answer is not decodable"))
            .and_then(|reply| accept_renewal(&reply, &current, &mut anchors, now.unix));
        let renewed = match renewed {
            Ok(renewed) => renewed,
            Err(refusal) => return self.renewal_failed(refusal, now),
        };
        if let Some(bundle) = &renewed.bundle
            && let Err(refusal) = self.take_bundle(bundle, now)
        {
            return self.renewal_failed(refusal, now);
        }
        let by_signer = self.renewals.asked.as_ref().is_some_and(|asked| asked.of.is_some());
        let same = renewed.certificate.hash == current.hash;
        let pause = self.renewals.pause;
        if same && !by_signer {
            let why = "the certificate that is held came again";
            return self.renewal_failed(Refusal::new(Code::NoSigner, why), now);
        }
        let renewals = &mut self.renewals;
        renewals.asked = None;
        renewals.anyway = false;
        renewals.attempts = 0;
        renewals.pause = PAUSE.0;
        renewals.problem = None;
        // Only a signer's own word: at the door anybody may have answered.
        if by_signer {
            let own = self.own.key();
            let holder =
                |prefix: &IpNet| self.directory.granted_to(prefix, &own).map(|record| record.key);
            let denied = renewed.not_granted.into_iter().map(|prefix| (prefix, holder(&prefix)));
            renewals.denied = denied.collect();
        }
        renewals.share = self.rng.random_range(limits::RENEWAL_SHARE);
        // A signer that gives the same again does so for a reason; it is not asked in a loop.
        renewals.next = now.mono + jitter(PAUSE.0, &mut self.rng);
        if same && self.holds_too_much() {
            // In the second of the last certificate it gives no other.
            self.renewals.eager = (by_signer && pause == PAUSE.0).then(|| now.mono + EAGER);
            self.renewals.next = now.mono + jitter(pause, &mut self.rng);
            self.renewals.pause = (pause * 2).min(PAUSE.1);
        }
        if same {
            return;
        }
        self.renewals.eager = by_signer.then(|| now.mono + EAGER);
        self.adopt(&renewed.certificate, now);
    }

    /// Everything that this node signs goes with this certificate from now on.
    pub(super) fn adopt(&mut self, certificate: &Arc<NodeCertificate>, now: Now) {
        self.renewals.orphan = false;
        self.renewals.problem = None;
        self.renewals.surplus.retain(|prefix| certificate.grants_exactly(prefix));
        let key = self.own.identity().key.clone();
        let identity = NodeIdentity { key, certificate: certificate.clone() };
        self.own.set_identity(Arc::new(identity), now.mono);
        self.changed = true;
        self.outputs.push_back(Output::Renewed { certificate: certificate.clone() });
        let days = certificate.not_after.since(certificate.not_before) / limits::DAY_SECONDS;
        let text = format!("this node has its next certificate, for {days} days");
        let issuer = self.anchors.issuer_key(certificate).unwrap_or_default();
        let event = Event::info("certificate_renewed", text);
        let event = event.by(signer_actor(&self.anchors, &issuer).0);
        self.tell_of_self(about_certificate(event, certificate));
    }

    /// One did not answer, or refused: the next is asked.
    fn renewal_failed(&mut self, why: Refusal, now: Now) {
        let at_the_door = self.renewals.asked.as_ref().is_some_and(|asked| asked.of.is_none());
        if at_the_door {
            return self.end_attempt(why, now);
        }
        if why.code != Code::NoSigner {
            // What a signer says is worth more than that another is silent.
            self.renewals.said = Some(why);
        }
        self.ask_for_renewal(now);
    }

    fn end_attempt(&mut self, why: Refusal, now: Now) {
        let said = self.renewals.said.take();
        let why = said.filter(|_| why.code == Code::NoSigner).unwrap_or(why);
        self.counters.certificate_renewals_failed += 1;
        let renewals = &mut self.renewals;
        renewals.asked = None;
        renewals.anyway = false;
        renewals.attempts += 1;
        renewals.next = now.mono + jitter(renewals.pause, &mut self.rng);
        renewals.pause = (renewals.pause * 2).min(PAUSE.1);
        // One attempt that fails is no news: the next asks somebody else.
        if renewals.attempts == 2 && self.needs_renewal(now) {
            let text = format!("this node's certificate is not renewed: {why}");
            self.tell_of_self(Event::warning("renewal_failed", text).because(why.code.as_str()));
        }
        self.renewals.problem = Some(why);
    }
}

fn silent() -> Refusal {
    Refusal::new(Code::NoSigner, "no signer answered")
}
