//! This node's certificate: renewed through a signer, and shown to peers from then on.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use ipnet::IpNet;
use meshd_core::{
    event::Event,
    refusal::Code,
    trust::{NodeCertificate, NodeIdentity},
};
use meshd_proto::{control::RenewCertificateReply, wire};
use prost::Message as _;
use rand::seq::IteratorRandom as _;

use super::{
    Daemon, bridge::Answer, clock, done::Done, requests::not_a_member, resolve, running::Running,
    start::tls_identity, status::rfc3339,
};
use crate::{control::ControlError, state::StateDir, transport::Transport};

/// Addresses at which is asked as a stranger does, all at once.
const DOORS: usize = 8;

impl Running {
    /// A newer certificate is on disk before it is shown to anybody.
    pub(super) fn renewed(
        &mut self,
        certificate: &Arc<NodeCertificate>,
        state: &StateDir,
        transport: &mut Transport,
    ) {
        if let Err(error) = state.save_certificate(certificate) {
            self.store_failed(&error.to_string());
        }
        let key = self.identity.key.clone();
        self.identity = Arc::new(NodeIdentity { key, certificate: certificate.clone() });
        self.follow_anchors();
        self.show_identity(transport);
    }

    /// What a person need not do about `prefix`, which is not granted: a signer is asked for it by itself. `None`: none
    /// will be.
    pub(super) fn asked_for(&self, prefix: &IpNet) -> Option<String> {
        let wait = self.node.asks_for_in(prefix, Instant::now())?;
        let when = match seconds(wait) {
            0 => "a signer is being asked for it".to_owned(),
            wait => format!("a signer is asked for it again by itself in {wait} s"),
        };
        let before = self.node.renewal_problem().map(|why| format!(" (before: {})", why.detail));
        Some(format!("wait: {when}{}", before.unwrap_or_default()))
    }

    /// Why no signer grants `prefix`, and the mend: another's certificate has it, or what overlaps it.
    pub(super) fn held_by(&self, prefix: &IpNet) -> Option<String> {
        let directory = self.node.directory();
        let holder = directory.granted_to(prefix, &self.node.key())?;
        let name = directory.display_name(&holder.key);
        let limits = &self.identity.certificate.limits;
        let then = match limits.iter().any(|limit| limit.contains(prefix)) {
            true => "a signer is then asked again by itself",
            false => "then leave here and join with a token that grants it",
        };
        Some(format!(
            "the certificate of {name} grants it, or what overlaps it: use another prefix here, or stop using it on {name} \
             and run `meshctl cert renew` there, which gives back what it does not use; {then}"
        ))
    }

    /// New connections show the certificate of now, and are verified by the roots of now.
    pub(super) fn show_identity(&self, transport: &mut Transport) {
        let check = Arc::new(self.anchors.clone());
        let name = self.anchors.get().server_name();
        let shown =
            tls_identity(self).and_then(|tls| Ok(transport.become_member(&tls, name, check)?));
        if let Err(error) = shown {
            tracing::error!("the new certificate is not shown to peers; {error}");
        }
    }

    /// A signer says what time it is.
    pub(super) fn sign_time_if_due(&mut self) {
        let now = clock::now();
        let Some(signer) = &self.signer else { return };
        if !self.node.wants_time(now) {
            return;
        }
        let signed = signer.sign_time(now.unix);
        if let Err(refusal) = self.node.take_time(&signed, now) {
            let text = format!("this signer's time is not taken: {}", refusal.detail);
            let event = Event::warning("signer_time_refused", text);
            self.events.emit(event.because(refusal.code.as_str()));
        }
    }
}

/// Whole seconds, never zero for some time.
pub(super) fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX)
}

fn is_accepted(reply: &[u8]) -> bool {
    let reply = wire::EnrolReply::decode(reply);
    matches!(reply.map(|reply| reply.result), Ok(Some(wire::enrol_reply::Result::Accepted(_))))
}

/// A person who waits for this node's next certificate.
pub(super) struct Waiter {
    to: Answer<RenewCertificateReply>,
    /// Hash of the certificate before.
    before: [u8; 32],
}

impl Daemon {
    /// `cert renew`: answered by [`Self::tell_renewal`].
    pub(super) fn renew(&mut self, to: Answer<RenewCertificateReply>) {
        let Some(running) = &mut self.running else {
            // An answer whose caller went away is nobody's loss.
            let _ = to.send(Err(not_a_member("renew a certificate")));
            return;
        };
        if running.node.has_left() {
            let why = "this node is no member any more";
            let fix = "`meshctl leave`, then join with a new token";
            let what = "the certificate was not renewed";
            let _ = to.send(Err(ControlError::new("has_left", what, why, fix)));
            return;
        }
        self.waiter = Some(Waiter { to, before: running.identity.certificate.hash });
        running.node.renew_now(clock::now());
    }

    /// Answers who waits, as soon as it is known.
    pub(super) fn tell_renewal(&mut self) {
        let Some(running) = &self.running else { return };
        let Some(waiter) = self.waiter.take_if(|waiter| {
            let changed = running.identity.certificate.hash != waiter.before;
            changed || !running.node.is_renewing()
        }) else {
            return;
        };
        let certificate = &running.identity.certificate;
        let (node, now) = (&running.node, Instant::now());
        // Its record may not have followed yet.
        let bare = |prefix: &IpNet| !certificate.grants.iter().any(|grant| grant.covers(prefix));
        let missing = node.own_refusals().iter().filter_map(|(prefix, _)| *prefix).filter(bare);
        let asked = missing.clone().filter_map(|prefix| node.asks_for_in(&prefix, now)).max();
        let problem = running.node.renewal_problem();
        let answer = match problem.filter(|_| certificate.hash == waiter.before) {
            Some(refusal) => Err(ControlError::new(
                refusal.code.as_str(),
                "the certificate was not renewed",
                refusal.detail.clone(),
                match refusal.code {
                    Code::Revoked => "`meshctl leave`, then join with a new token",
                    Code::ClockSkew | Code::PastDate => "set this host's clock, or the signer's",
                    _ => "start a signer, or check that this host reaches one",
                },
            )),
            // It was renewed moments ago, and the same certificate came again.
            None => Ok(RenewCertificateReply {
                not_before: rfc3339(certificate.not_before).unwrap_or_default(),
                not_after: rfc3339(certificate.not_after).unwrap_or_default(),
                prefixes: certificate.grants.iter().map(|g| g.prefix.to_string()).collect(),
                renewed: certificate.hash != waiter.before,
                not_granted: missing.map(|prefix| prefix.to_string()).collect(),
                asked_in_seconds: asked.map(seconds),
            }),
        };
        let _ = waiter.to.send(answer);
    }

    /// Asks seeds and members for this node's certificate as a stranger does, until one answers.
    pub(super) fn ask_at_the_door(&self, id: u64, request: Bytes) {
        let Some(running) = &self.running else { return };
        let mut names: Vec<String> =
            self.config.gossip.seeds.iter().map(ToString::to_string).collect();
        names.extend(running.seeds.iter().cloned());
        let own = running.node.key();
        let members: BTreeSet<SocketAddr> = running
            .node
            .directory()
            .iter()
            .filter(|record| record.key != own && !record.left)
            .filter_map(|record| record.endpoints.first().copied())
            .collect();
        let anchors = running.anchors.get();
        let (client, done) = (self.transport.enrol_client(), self.done.clone());
        tokio::spawn(async move {
            let mut addresses: BTreeSet<SocketAddr> =
                resolve::resolve(&names).await.addresses.into_iter().collect();
            addresses.extend(members);
            let (root, name) = (anchors.trust_anchors(), anchors.server_name());
            // Another choice in every attempt, and all at once: most of them may be long gone.
            let some = addresses.into_iter().sample(&mut rand::rng(), DOORS);
            let asked = some.into_iter().map(|address| {
                let (client, root, name, request) = (&client, &root, &name, request.clone());
                async move { client.renew(address, root, name, request).await }
            });
            let mut answers: FuturesUnordered<_> = asked.collect();
            let mut answer = None;
            while let Some(one) = answers.next().await {
                match one {
                    // What one door refuses, another may give.
                    Ok(reply) if is_accepted(&reply) => {
                        answer = Some(reply);
                        break;
                    }
                    Ok(reply) => answer = answer.or(Some(reply)),
                    Err(error) => tracing::debug!(%error, "not renewed there"),
                }
            }
            // The loop only goes away with the process.
            let _ = done.send(Done::Renewal(id, answer)).await;
        });
    }
}
