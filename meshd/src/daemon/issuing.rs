//! `cert issue` on a signer, and `cert show` without a file.

use std::net::SocketAddr;

use meshd_core::trust::{EnrolRefusal, Enrolled, IssueTerms, Known};
use meshd_proto::{
    control::{IssueCertificateReply, IssueCertificateRequest, ShowCertificatesReply},
    wire,
};
use prost::Message as _;

use super::{
    Daemon, clock,
    counters::Counters,
    enrolment,
    requests::{not_a_member, not_a_signer},
    resolve::with_port,
    running::Running,
    status::rfc3339,
    tokens::prefixes,
};
use crate::{control::ControlError, state::StateDir};

const WHAT: &str = "cannot issue a certificate";
/// Life of a certificate unless asked otherwise.
const TTL_SECONDS: i64 = meshd_core::limits::NODE_CERTIFICATE_SECONDS;

fn refused(refusal: EnrolRefusal) -> ControlError {
    ControlError::new(refusal.refusal.code.as_str(), WHAT, refusal.refusal.detail, refusal.fix)
}

impl Daemon {
    /// `cert issue`.
    pub(super) fn issue(
        &mut self,
        request: &IssueCertificateRequest,
    ) -> Result<IssueCertificateReply, ControlError> {
        let port = self.gossip_port();
        let own = self.own.endpoints(&self.config, port);
        let running = self.running.as_mut().ok_or_else(|| not_a_member("issue a certificate"))?;
        running.issue(request, &own, &self.state, &mut self.counters)
    }

    /// `cert show`.
    pub(super) fn certificates(&self) -> Result<ShowCertificatesReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("show a certificate"))?;
        let (anchors, own) = (running.node.anchors(), &running.identity.certificate);
        let issuer = anchors.issuer_of(own).map(<[u8]>::to_vec);
        Ok(ShowCertificatesReply {
            certificate: own.der.to_vec(),
            issuer: issuer.unwrap_or_default(),
            root: anchors.root_der().to_vec(),
            renewal_at: rfc3339(running.node.renewal_due()),
        })
    }
}

impl Running {
    /// On disk before it is answered.
    fn issue(
        &mut self,
        request: &IssueCertificateRequest,
        own_endpoints: &[SocketAddr],
        state: &StateDir,
        counters: &mut Counters,
    ) -> Result<IssueCertificateReply, ControlError> {
        let seeds: Vec<String> = if request.seeds.is_empty() {
            own_endpoints.iter().map(ToString::to_string).collect()
        } else {
            request.seeds.iter().map(|seed| with_port(seed)).collect()
        };
        let terms = IssueTerms {
            prefixes: prefixes(&request.prefixes, "--prefix")?,
            allow: prefixes(&request.allow, "--allow")?,
            pools: prefixes(&request.workloads, "--workloads")?,
            groups: request.groups.clone(),
            seeds: seeds.clone(),
            ttl_seconds: match request.ttl_seconds {
                0 => TTL_SECONDS,
                seconds => i64::try_from(seconds).unwrap_or(i64::MAX),
            },
        };
        let enrolled = self.decide_issue(request, &terms, state)?;
        counters.enrolments += u64::from(!enrolled.renewal);
        counters.renewals += u64::from(enrolled.renewal);
        match enrolled.reply.result {
            Some(wire::enrol_reply::Result::Accepted(accepted)) => Ok(IssueCertificateReply {
                certificate: accepted.certificate.to_vec(),
                root: accepted.root.to_vec(),
                bundle: accepted.bundle.unwrap_or_default().encode_to_vec(),
                seeds,
            }),
            _ => Err(ControlError::new("malformed", WHAT, "the signer said nothing", "try again")),
        }
    }

    fn decide_issue(
        &mut self,
        request: &IssueCertificateRequest,
        terms: &IssueTerms,
        state: &StateDir,
    ) -> Result<Enrolled, ControlError> {
        let members: Vec<_> = self.node.directory().iter().cloned().collect();
        let barred: Vec<_> = self.node.barred().cloned().collect();
        let known = Known { members: &members, barred: &barred, issuers: None };
        let signer = self.signer.as_mut().ok_or_else(|| not_a_signer("issue a certificate"))?;
        let (now, mut rng) = (clock::unix(), rand::rng());
        let enrolled = if request.certificate.is_empty() {
            signer.issue(&request.request, terms, known, now, &mut rng)
        } else {
            signer.issue_next(&request.certificate, terms, known, now, &mut rng)
        };
        let enrolled = enrolled.map_err(refused)?;
        enrolment::record(signer, &enrolled.entries, state).map_err(refused)?;
        Ok(enrolled)
    }
}
