//! The mesh's root is replaced by another, while everything runs.
//!
//! `cert ca rotate` makes the next root, has the old one certify it, and from then on signs the bundle by it. The
//! signers get keys under it one by one, their old ones retire, all nodes renew, and when nobody shows a
//! certificate of before, the old root counts no more. All but the first step follows from the bundle and
//! goes on after a restart.

use meshd_core::trust::{RootCa, SignerEntry};
use meshd_proto::control::{RootInfo, RootsReply};

use super::{
    Daemon, clock,
    requests::not_a_member,
    running::Running,
    signers::{failed, info},
    status::rfc3339,
};
use crate::control::ControlError;

const WHAT: &str = "cannot replace the root";

impl Daemon {
    /// `cert ca show`.
    pub(super) fn roots(&self) -> Result<RootsReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("show the roots"))?;
        let anchors = running.node.anchors();
        let newest = *anchors.root_key();
        let roots = anchors
            .roots()
            .into_iter()
            .map(|root| RootInfo {
                key: data_encoding::HEXLOWER.encode(&root.key),
                state: match (root.key == newest, root.counts) {
                    (true, _) => "active",
                    (false, true) => "retiring",
                    (false, false) => "replaced",
                }
                .to_owned(),
                not_before: rfc3339(root.not_before).unwrap_or_default(),
                not_after: rfc3339(root.not_after).unwrap_or_default(),
            })
            .collect();
        let own = Some(running.node.key());
        let to_move = anchors.signers_to_move().iter().map(|signer| info(signer, own)).collect();
        Ok(RootsReply {
            roots,
            to_move,
            to_renew: running.shows_old_certificates(),
            key_state: self.root_key_state().to_owned(),
        })
    }

    /// The root that could come next.
    pub(super) fn next_root(&self) -> Result<RootCa, ControlError> {
        self.root(WHAT)?;
        self.may_replace_root()?;
        let running = self.running.as_ref().ok_or_else(|| not_a_member("replace the root"))?;
        let anchors = running.node.anchors();
        RootCa::create(&rand::random(), anchors.mesh(), anchors.mesh_id(), clock::unix())
            .map_err(|error| failed(WHAT, error.to_string(), "see the journal"))
    }

    fn may_replace_root(&self) -> Result<(), ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("replace the root"))?;
        let anchors = running.node.anchors();
        // From an old backup, a second root would follow the first: neither side could follow the other.
        running.check_synced(WHAT)?;
        if let Err(error) = self.state.ipv4_pool(anchors.mesh_id()) {
            let fix = "do it on a signer, or restore pki/ledger from its backup";
            return Err(failed(WHAT, error.to_string(), fix));
        }
        if anchors.roots().iter().filter(|root| root.counts).count() > 1 {
            return Err(failed(
                WHAT,
                "the one before still counts",
                "wait until it is `replaced` in `meshctl cert ca show`, which says what it waits for",
            ));
        }
        Ok(())
    }

    /// From now on `next` is the mesh's root, its key kept as `text`. What is said to be done is on disk, and goes on
    /// by itself.
    pub(super) fn replace_root(
        &mut self,
        next: &RootCa,
        text: &str,
    ) -> Result<RootsReply, ControlError> {
        let old = self.root(WHAT)?;
        // Another one may have been made while this one's key was encrypted.
        self.may_replace_root()?;
        let unwell = |why: String| failed(WHAT, why, "nothing was changed; see the journal");
        let running = self.running.as_mut().ok_or_else(|| not_a_member("replace the root"))?;
        let anchors = running.node.anchors().clone();
        let succession = anchors
            .succession()
            .followed_by(&old, next, clock::unix())
            .map_err(|error| unwell(error.to_string()))?;
        // A crash from here on leaves one or the other: the bundle on disk says which counts.
        self.state.save_next_root_key(text).map_err(|error| unwell(error.to_string()))?;
        running.next_bundle(next, &anchors.signers(), succession, &self.state, WHAT)?;
        // What the old root and its signers revoked stays revoked when they count no more.
        running.sign_revocations_again(next, |signer| signer != &next.public());
        self.settle_root();
        self.roots()
    }

    /// The key of the root that the bundle names is the one that is kept.
    pub(super) fn settle_root(&mut self) {
        let Some(running) = &self.running else { return };
        if let Err(error) = self.state.settle_root(running.node.anchors()) {
            tracing::error!("{error}");
        }
    }

    /// Signers that still have keys under an older root get others: this host's first, then one after the other.
    pub(super) fn move_signers(&mut self) {
        let Some(running) = &self.running else { return };
        let mut due = running.node.anchors().signers_to_move();
        if due.is_empty() || self.inviting.is_some() {
            return;
        }
        // Only the holder of the root can do it.
        let Ok(root) = self.root("") else { return };
        let pool = match self.state.ipv4_pool(running.node.anchors().mesh_id()) {
            Ok(pool) => pool,
            Err(error) => return tracing::error!("no signer gets its next key; {error}"),
        };
        let own = running.node.key();
        if let Some(place) = due.iter().position(|signer| signer.node == own) {
            let signer = due.swap_remove(place);
            if let Err(error) = self.move_own(&signer, &root, pool) {
                tracing::error!("{error}");
            }
            return;
        }
        // One that is away must not keep the others waiting.
        self.moved += 1;
        let signer = &due[self.moved % due.len()];
        self.invite_again(signer, &root, &pool);
    }

    fn move_own(
        &mut self,
        signer: &SignerEntry,
        root: &RootCa,
        pool: ipnet::Ipv4Net,
    ) -> Result<(), ControlError> {
        let what = "this signer does not get its next key";
        let unwell = |why: String| failed(what, why, "see the journal");
        let seed = self
            .state
            .pending_signer(&rand::random(), pool)
            .map_err(|error| unwell(error.to_string()))?;
        let key = meshd_core::trust::public_of(&seed);
        if key == signer.key {
            // What a crash left is the key that retires: another one next time.
            self.state.forget_pending_signer().map_err(|error| unwell(error.to_string()))?;
            return Err(unwell("the key that waits is the one in use".to_owned()));
        }
        let certificate = root
            .certify_signer(&key, clock::unix())
            .map_err(|error| unwell(error.to_string()))?
            .into();
        let running = self.running.as_mut().ok_or_else(|| not_a_member("move a signer"))?;
        let new = SignerEntry { key, certificate, retiring: false, ..signer.clone() };
        let (all, succession) = running.node.anchors().with_signer(new);
        running.keep_revocations(root, &all);
        running.next_bundle(root, &all, succession, &self.state, what)
    }
}

impl Running {
    /// How many members, this one too, show certificates that an older root stands behind.
    fn shows_old_certificates(&self) -> u32 {
        let anchors = self.node.anchors();
        let old = anchors.signers().into_iter().filter(|one| !anchors.is_under_newest(&one.key));
        old.map(|one| self.users_of(&one.key)).sum()
    }
}
