//! This node's next certificate as a file that somebody has put on its host: for hosts that reach no signer.

use meshd_proto::wire;

use super::Node;
use crate::{
    now::Now,
    refusal::Refusal,
    trust::{NodeCertificate, accept_renewal},
};

impl Node {
    /// Takes a certificate over that was handed to this host, when it is a later one of the same identity; tells
    /// whether it was. The same, or an older one, is no news: such files lie there for ever. One that is not later
    /// is taken only in the place of one that counts no more, by an issuer that does.
    ///
    /// # Errors
    /// What would be refused of a signer's answer too.
    pub fn take_certificate(
        &mut self,
        certificate: &NodeCertificate,
        bundle: Option<&wire::SignedBundle>,
        now: Now,
    ) -> Result<bool, Refusal> {
        let current = self.own.identity().certificate.clone();
        let counts =
            self.anchors.issuer_of(&current).is_some() && !self.anchors.is_from_retiring(&current);
        let later = certificate.not_before > current.not_before;
        if certificate.hash == current.hash || self.own.has_left() {
            return Ok(false);
        }
        if !later && (counts || !self.would_count(certificate, bundle)) {
            return Ok(false);
        }
        self.anchors.check_membership(&current.key)?;
        let accepted = wire::EnrolAccepted {
            certificate: certificate.der.clone(),
            bundle: bundle.cloned(),
            ..wire::EnrolAccepted::default()
        };
        let reply =
            wire::EnrolReply { result: Some(wire::enrol_reply::Result::Accepted(accepted)) };
        let mut anchors = self.anchors.clone();
        let renewed = accept_renewal(&reply, &current, &mut anchors, now.unix)?;
        if let Some(bundle) = &renewed.bundle {
            self.take_bundle(bundle, now)?;
        }
        self.adopt(&renewed.certificate, now);
        self.settle(now);
        Ok(true)
    }

    /// Its issuer is one that stays, by the bundle that lies beside it if that is newer.
    fn would_count(
        &self,
        certificate: &NodeCertificate,
        bundle: Option<&wire::SignedBundle>,
    ) -> bool {
        let mut anchors = self.anchors.clone();
        if let Some(bundle) = bundle {
            // One that is not valid is refused when the certificate is taken.
            let _ = anchors.install_bundle(bundle);
        }
        anchors.issuer_of(certificate).is_some() && !anchors.is_from_retiring(certificate)
    }
}
