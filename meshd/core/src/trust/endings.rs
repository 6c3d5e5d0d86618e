//! Certificates of the mesh itself that end, said long before: the root's, and each signer's.
//!
//! A node's own certificate renews by itself, and `node::renewal` says when that fails. These do not: somebody has
//! to act, and must have the time to.

use meshd_proto::NodeName;

use super::Anchors;
use crate::{event::Severity, limits::DAY_SECONDS, now::UnixTime};

/// Everything hangs on it, and replacing it needs every node once.
const ROOT_SECONDS: i64 = 365 * DAY_SECONDS;
/// What it issues ends with it: the last node certificates of a full life come a month before.
const SIGNER_SECONDS: i64 = 180 * DAY_SECONDS;
/// With less left than this it is urgent: node certificates become shorter.
const URGENT_SECONDS: i64 = 45 * DAY_SECONDS;

/// A certificate that ends, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Whose: a signer's, or the root.
    pub signer: Option<NodeName>,
    /// The last second of its life.
    pub at: UnixTime,
    /// [`Severity::Error`] when it is urgent.
    pub severity: Severity,
}

impl Anchors {
    /// When the mesh's own certificates end: the root's first, without a name, then each signer's.
    #[must_use]
    pub fn ends(&self) -> Vec<(Option<NodeName>, UnixTime)> {
        let signers = self.bundle().intermediates.iter().filter_map(|one| {
            let key = &one.certificate.key;
            let (_, _, name) = self.signer_infos().iter().find(|info| info.0 == *key)?;
            // Who retires is not needed for long.
            let stays = !self.retiring().contains(key);
            stays.then(|| (Some(name.clone()), one.certificate.not_after))
        });
        [(None, self.root().not_after)].into_iter().chain(signers).collect()
    }

    /// What of them ends so soon that somebody should act.
    #[must_use]
    pub fn endings(&self, now: UnixTime) -> Vec<Ending> {
        let soon = |(signer, at): (Option<NodeName>, UnixTime)| {
            let left = at.since(now);
            let from = if signer.is_some() { SIGNER_SECONDS } else { ROOT_SECONDS };
            let severity = if left < URGENT_SECONDS { Severity::Error } else { Severity::Warning };
            (left < from).then_some(Ending { signer, at, severity })
        };
        self.ends().into_iter().filter_map(soon).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::CA_CERTIFICATE_SECONDS,
        trust::{
            SignerEntry,
            fixture::{NOW, TestMesh},
        },
    };

    #[test]
    fn the_root_and_every_signer_are_said_long_before_they_end() {
        let mesh = TestMesh::new(1);
        let key = TestMesh::key("signer").public();
        let name: NodeName = "signer".parse().unwrap();
        let entry = |retiring| SignerEntry {
            key: mesh.intermediate.public(),
            node: key,
            name: name.clone(),
            certificate: bytes::Bytes::copy_from_slice(mesh.intermediate.der()),
            retiring,
        };
        let install = |version, retiring| {
            let mut anchors = mesh.anchors.clone();
            let bundle = mesh.root.sign_signers(
                &mesh.mesh_id,
                version,
                &[entry(retiring)],
                mesh.anchors.succession(),
            );
            assert_eq!(anchors.install_bundle(&bundle), Ok(true));
            anchors
        };
        let anchors = install(2, false);
        let end = NOW.plus(CA_CERTIFICATE_SECONDS);
        let found = |anchors: &Anchors, days: i64| {
            let all = anchors.endings(end.plus(-days * DAY_SECONDS));
            assert!(all.iter().all(|ending| ending.at == end));
            all.into_iter().map(|one| (one.signer, one.severity)).collect::<Vec<_>>()
        };
        assert_eq!(anchors.ends(), [(None, end), (Some(name.clone()), end)]);
        let (root, signer) = (None, Some(name.clone()));
        assert!(found(&anchors, 366).is_empty());
        assert_eq!(found(&anchors, 364), [(root.clone(), Severity::Warning)]);
        assert_eq!(
            found(&anchors, 179),
            [(root.clone(), Severity::Warning), (signer.clone(), Severity::Warning)]
        );
        let urgent = [(root.clone(), Severity::Error), (signer, Severity::Error)];
        assert_eq!(found(&anchors, 44), urgent);
        assert_eq!(found(&anchors, -1), urgent);
        assert_eq!(found(&install(3, true), 44), [(root, Severity::Error)]);
    }
}
