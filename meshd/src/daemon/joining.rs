//! Joining with a token: by hand, and what a join does whoever wants it.
//!
//! A task of its own talks to the seeds; the loop only starts it and takes its result over. When to try again
//! without a person, `unattended` says.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use meshd_core::{
    event::Actor,
    refusal::Code,
    trust::{self, Enrolment, IdentityKey, JoinToken, LaneKey},
};
use meshd_proto::{
    NodeName,
    control::{JoinDone, JoinProgress, JoinRequest, join_progress::Step},
    wire,
};
use prost::Message;
use tokio::{task::AbortHandle, time::sleep};
use zeroize::Zeroizing;

use super::{
    Daemon, Done, bridge::Answers, clock, deeds, document::Document, resolve, start::Since,
};
use crate::{
    control::{ControlBackend, ControlError},
    state::{Membership, store::Store},
    transport::EnrolClient,
};

/// A join returns when this host has synced; after this it returns all the same and says so.
const SYNC: Duration = Duration::from_secs(15);
const SYNC_LOOK: Duration = Duration::from_millis(20);

/// What a join task brings back.
pub(super) struct Joined {
    pub(super) result: Result<(Enrolment, IdentityKey, LaneKey, Vec<String>), ControlError>,
    pub(super) answers: Option<Answers<JoinProgress>>,
}

/// A join in progress.
pub(super) enum Joining {
    /// By `meshctl join`.
    ByHand(Actor),
    /// With the token file, for as long as it takes: gives way to a person.
    Unattended(AbortHandle),
}

/// All that the task needs.
pub(super) struct Attempt {
    token: JoinToken,
    identity: IdentityKey,
    lane: LaneKey,
    name: NodeName,
    wanted: Vec<IpNet>,
    client: EnrolClient,
    config_seeds: Vec<String>,
    pub(super) document: Document,
}

pub(super) fn failed(code: &str, why: impl Into<String>, fix: impl Into<String>) -> ControlError {
    ControlError::new(code.to_owned(), "cannot join", why, fix)
}

/// A join is tried so long while the one that is asked has too much to do.
const BUSY: Duration = Duration::from_secs(60);

impl Daemon {
    /// `meshctl join`.
    pub(super) fn join(
        &mut self,
        request: &JoinRequest,
        by: Actor,
        answers: Answers<JoinProgress>,
    ) {
        // A CNI that was set up a moment ago counts.
        self.look_at_host();
        let document = match request.identity_document.trim() {
            "" => Document::None,
            text => Document::Given(Zeroizing::new(text.to_owned())),
        };
        match self.prepare_join(&request.token, &request.name, document) {
            Ok(attempt) => {
                self.stop_unattended();
                self.joining = Some(Joining::ByHand(by));
                let done = self.done.clone();
                tokio::spawn(async move {
                    let result = attempt.run_while_busy(&answers).await;
                    let joined = Joined { result, answers: Some(answers) };
                    let _ = done.send(Done::Joined(Box::new(joined))).await;
                });
            }
            Err(error) => {
                self.events.emit(deeds::refused(&error).by(by));
                let _ = answers.try_send(Err(error));
            }
        }
    }

    pub(super) fn is_joining_by_hand(&self) -> bool {
        matches!(self.joining, Some(Joining::ByHand(_)))
    }

    /// A token that this host could join with now.
    pub(super) fn read_token(&self, token: &str) -> Result<JoinToken, ControlError> {
        if let Some(running) = &self.running {
            let mesh = running.identity.certificate.mesh.clone();
            return Err(failed(
                "already_member",
                format!("this host is a member of {mesh}"),
                "`meshctl leave` first",
            ));
        }
        if self.is_joining_by_hand() {
            return Err(failed("already_joining", "another join is in progress", "wait for it"));
        }
        JoinToken::parse(token).map_err(|error| failed("bad_token", error.why(), error.fix()))
    }

    pub(super) fn prepare_join(
        &mut self,
        token: &str,
        name: &str,
        document: Document,
    ) -> Result<Attempt, ControlError> {
        let token = self.read_token(token)?;
        let document = match (&token.terms().identity, document) {
            (Some(terms), Document::None) => {
                let why = format!("the token admits by an identity document of {}", terms.issuer);
                let fix = "`meshctl join TOKEN --identity FILE`, or set [gossip] join_identity_file; \
                           `--identity-audience` says what the document must be for";
                return Err(failed(Code::IdentityRequired.as_str(), why, fix));
            }
            (Some(_), document) => document,
            (None, Document::Given(_)) => {
                let why = "the token admits by itself: it takes no identity document";
                return Err(failed("identity_issuer", why, "leave --identity away"));
            }
            // A file that is there for another token.
            (None, _) => Document::None,
        };
        if let Some(only) = token.node_name()
            && !name.is_empty()
            && name != only.as_str()
        {
            return Err(failed(
                "token_name",
                format!("the token admits {only}, not {}", name.escape_default()),
                "leave --name away, or make a token for that name",
            ));
        }
        let name = if name.is_empty() {
            self.config.node_name(&self.own.facts.name)
        } else {
            name.parse()
        };
        let name = match token.node_name() {
            // A token for one node says what it is called.
            Some(only) => only.clone(),
            None => name.map_err(|error| {
                failed("bad_name", error.to_string(), "give --name NAME, or set [node] name")
            })?,
        };
        let state = |error: crate::state::StateError| {
            failed("state_dir", error.to_string(), "check the state directory")
        };
        Ok(Attempt {
            identity: self.state.identity(&rand::random()).map_err(state)?,
            lane: self.state.lane(&rand::random()).map_err(state)?,
            token,
            name,
            wanted: self.own.wanted(&self.config),
            client: self.transport.enrol_client(),
            config_seeds: self.config.gossip.seeds.iter().map(ToString::to_string).collect(),
            document,
        })
    }

    /// Takes over what a join task brought.
    pub(super) fn finish_join(&mut self, joined: Joined) {
        if joined.answers.is_none() && !matches!(self.joining, Some(Joining::Unattended(_))) {
            // Given up when its result was on the way already.
            return;
        }
        let by = match self.joining.take() {
            Some(Joining::ByHand(by)) => by,
            _ => Actor::Daemon,
        };
        let outcome = joined.result.and_then(|(enrolment, identity, lane, seeds)| {
            let certificate = enrolment.certificate.clone();
            let not_granted = enrolment.not_granted.clone();
            self.take_over(enrolment, identity, lane, seeds)?;
            Ok((certificate, not_granted))
        });
        self.note(by, &outcome, |(certificate, _)| deeds::joined(certificate));
        let outcome = outcome.map(|(_, not_granted)| not_granted);
        match (outcome, joined.answers) {
            (Err(error), Some(answers)) => {
                let _ = answers.try_send(Err(error));
                // What a person stopped goes on.
                self.join_unattended();
            }
            (Err(error), None) => self.unattended_failed(error),
            (Ok(_), None) => {}
            (Ok(not_granted), Some(answers)) => self.wait_synced(not_granted, answers),
        }
    }

    pub(super) fn take_over(
        &mut self,
        enrolment: Enrolment,
        identity: IdentityKey,
        lane: LaneKey,
        seeds: Vec<String>,
    ) -> Result<(), ControlError> {
        let state = |error: String| failed("state_dir", error, "check the state directory");
        // What a failed init left would make this host a signer of a mesh that never was.
        self.state.set_authority_aside().map_err(|error| state(error.to_string()))?;
        self.state
            .save_membership(&enrolment.anchors, &enrolment.certificate, &seeds)
            .map_err(|error| state(error.to_string()))?;
        let membership = Membership {
            anchors: enrolment.anchors,
            identity,
            certificate: enrolment.certificate,
            lane,
            seeds,
        };
        let store = Store::open(&self.state.store_path());
        self.become_member(membership, store, Since::Now)
            .map_err(|error| state(error.to_string()))?;
        if let Some(running) = &mut self.running {
            for record in enrolment.records {
                // A signer's record that is not believed is only one fewer to start from.
                let bytes = record.encode_to_vec();
                if let Err(refusal) = running.node.restore(&bytes, clock::now()) {
                    tracing::warn!(code = refusal.code.as_str(), "{}", refusal.detail);
                }
            }
        }
        Ok(())
    }

    /// Answers when this host has synced once and its device stands.
    fn wait_synced(&self, not_granted: Vec<IpNet>, answers: Answers<JoinProgress>) {
        let bridge = self.bridge.clone();
        tokio::spawn(async move {
            let _ = answers.send(doing("syncing with the mesh")).await;
            let until = tokio::time::Instant::now() + SYNC;
            loop {
                let status = match bridge.status().await {
                    Ok(status) => status,
                    Err(error) => {
                        let _ = answers.send(Err(error)).await;
                        return;
                    }
                };
                let synced = status.synced && status.backend.is_some();
                if synced || tokio::time::Instant::now() >= until {
                    let done = JoinDone {
                        mesh: status.mesh.unwrap_or_default(),
                        node: status.node.unwrap_or_default(),
                        id: status.id.unwrap_or_default(),
                        mesh_addresses: status.mesh_addresses,
                        prefixes: status.prefixes,
                        not_granted: not_granted.iter().map(ToString::to_string).collect(),
                        peers: status.peers.map_or(0, |peers| peers.total),
                        synced,
                    };
                    let _ = answers.send(Ok(JoinProgress { step: Some(Step::Done(done)) })).await;
                    return;
                }
                sleep(SYNC_LOOK).await;
            }
        });
    }
}

fn doing(what: impl Into<String>) -> Result<JoinProgress, ControlError> {
    Ok(JoinProgress { step: Some(Step::Doing(what.into())) })
}

/// The first of them, and how many more.
fn some(addresses: &[SocketAddr]) -> String {
    let first: Vec<_> = addresses.iter().take(3).map(ToString::to_string).collect();
    let more = addresses.len() - first.len();
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

impl Attempt {
    /// When many join at once, the member that is asked takes a few a second: nobody need type it again.
    async fn run_while_busy(
        &self,
        answers: &Answers<JoinProgress>,
    ) -> Result<(Enrolment, IdentityKey, LaneKey, Vec<String>), ControlError> {
        let until = tokio::time::Instant::now() + BUSY;
        loop {
            match self.run(Some(answers)).await {
                Err(error)
                    if error.code == Code::RateLimited.as_str()
                        && tokio::time::Instant::now() < until =>
                {
                    let _ = answers.send(doing("many join at once; trying again")).await;
                    sleep(Duration::from_millis(rand::random_range(500..2_000))).await;
                }
                result => return result,
            }
        }
    }

    fn request(&self) -> Result<wire::EnrolRequest, ControlError> {
        let (token, key, name, wanted) = (&self.token, &self.identity, &self.name, &self.wanted);
        let (nonce, now) = (rand::random(), clock::unix());
        let Some(document) = self.document.read()? else {
            return Ok(trust::build_request(token, key, name, wanted, nonce, now));
        };
        let document = document.as_bytes();
        trust::build_identity_request(token, key, name, wanted, document, nonce, now).map_err(
            |refusal| {
                let fix = "get a new identity document: a JWT of at most 8 KiB, and nothing else";
                failed(refusal.code.as_str(), refusal.detail, fix)
            },
        )
    }

    /// Asks one seed after the other, as they answer, until one brings an enrolment.
    pub(super) async fn run(
        &self,
        progress: Option<&Answers<JoinProgress>>,
    ) -> Result<(Enrolment, IdentityKey, LaneKey, Vec<String>), ControlError> {
        let mut seeds = self.token.seeds().to_vec();
        seeds.extend(self.config_seeds.iter().cloned());
        let resolved = resolve::resolve(&seeds).await;
        let mut why = resolved.failed;
        let addresses = resolved.addresses.clone();
        let request = self.request()?.encode_to_vec();
        let mut refused = None;
        if let Some(progress) = progress.filter(|_| !resolved.addresses.is_empty()) {
            let _ = progress.send(doing(format!("asking {}", some(&resolved.addresses)))).await;
        }
        let (root, name) = (self.token.trust_anchor(), self.token.server_name());
        let mut race = self
            .client
            .reach(resolved.addresses, &[root], &name)
            .map_err(|error| failed("bad_token", error.to_string(), "make a new token"))?;
        while let Some(link) = race.next().await {
            let answer = match link {
                Ok(link) => {
                    let address = link.address();
                    link.ask(&request).await.map(|reply| (address, reply))
                }
                Err(error) => Err(error),
            };
            let (address, reply) = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    why.push(error.to_string());
                    continue;
                }
            };
            let Ok(reply) = wire::EnrolReply::decode(reply) else {
                why.push(format!("{address} sent what is no reply"));
                continue;
            };
            match trust::accept_reply(&reply, &self.token, &self.identity.public(), &self.name) {
                Ok(enrolment) => {
                    return Ok((enrolment, self.identity.clone(), self.lane.clone(), seeds));
                }
                // Another seed may do better, or tell the truth.
                Err(error) => {
                    refused.get_or_insert_with(|| {
                        let why = format!("{}, says {address}", error.why());
                        failed(error.code(), why, error.fix())
                    });
                }
            }
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        if why.is_empty() {
            why.push("the token names no seed, and [gossip] seeds is empty".to_owned());
        }
        let without_route = resolve::without_route(&addresses);
        if !addresses.is_empty() && without_route == addresses {
            return Err(failed(
                "seed_unreachable",
                format!("this host has no route to {}", some(&addresses)),
                "connect this host to the network, or add a route: `ip route get ADDRESS` must show one",
            ));
        }
        Err(failed(
            "seed_unreachable",
            format!("no seed answered: {}", why.join(", ")),
            "check that UDP 51800 of a seed is open, or add one to [gossip] seeds",
        ))
    }
}
