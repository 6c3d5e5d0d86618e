//! Who may admit, renew and revoke: the holder of the root adds signers and takes them out.

use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use meshd_core::{
    event::{Actor, Event},
    trust::{
        self, LedgerEntry, LedgerEvent, RootCa, SignerEntry, Succession, build_offer, open_invite,
        open_offer,
    },
};
use meshd_proto::{
    NodeKey, NodeName,
    control::{
        AddSignerRequest, ListSignersReply, RevokeSignerReply, RevokeSignerRequest, SignerInfo,
    },
    wire,
};
use prost::Message as _;

use super::{
    Daemon,
    bridge::Answer,
    clock,
    counters::Counters,
    deeds,
    requests::{not_a_member, one_of},
    running::Running,
};
use crate::{control::ControlError, state::StateDir};

/// A member that was invited answers within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// One that is a signer already is asked again after this.
const PATIENCE_AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether a retiring signer is needed by nobody any more.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A member that was asked to become a signer.
pub(super) struct Inviting {
    node: NodeKey,
    name: NodeName,
    nonce: [u8; 16],
    until: Instant,
    /// Nobody waits when the root was replaced and the signer gets its next key.
    to: Option<Answer<SignerInfo>>,
}

pub(super) fn failed(what: &str, why: impl Into<String>, fix: impl Into<String>) -> ControlError {
    ControlError::new("signer", what.to_owned(), why, fix)
}

pub(super) fn no_root(what: &str) -> ControlError {
    failed(
        what,
        "the mesh's root key is not on this host",
        "do it on the host where `meshctl init` was run, or bring the key with `meshctl cert ca unlock --root-key FILE`",
    )
}

pub(super) fn info(entry: &SignerEntry, own: Option<NodeKey>) -> SignerInfo {
    SignerInfo {
        name: entry.name.to_string(),
        id: entry.node.to_string(),
        key: data_encoding::HEXLOWER.encode(&entry.key[..8]),
        state: if entry.retiring { "retiring" } else { "active" }.to_owned(),
        self_: own == Some(entry.node),
    }
}

impl Running {
    /// Whoever signs the next bundle must know the one of now: two with one number would part the mesh.
    pub(super) fn check_synced(&self, what: &str) -> Result<(), ControlError> {
        if self.node.directory().len() <= 1 || self.node.is_synced() {
            return Ok(());
        }
        Err(failed(
            what,
            "this host has not exchanged with another member since it started",
            "wait until `meshctl peers list` shows one that is `alive`",
        ))
    }

    /// Signs and installs the next bundle.
    pub(super) fn next_bundle(
        &mut self,
        root: &RootCa,
        signers: &[SignerEntry],
        succession: Succession,
        state: &StateDir,
        what: &str,
    ) -> Result<(), ControlError> {
        let anchors = self.node.anchors();
        let version = anchors.bundle_version().saturating_add(1);
        let succession = succession.kept_for(signers);
        let bundle = root.sign_signers(anchors.mesh_id(), version, signers, &succession);
        let unwell = |why: String| failed(what, why, "see the journal");
        // What could not be read again must not lie on the disk at the next start.
        let tried = anchors.clone().install_bundle(&bundle);
        tried.map_err(|refusal| unwell(refusal.to_string()))?;
        // What is said to be done survives a crash.
        state.save_bundle(&bundle.encode_to_vec()).map_err(|error| unwell(error.to_string()))?;
        let installed = self.node.install_bundle(&bundle, clock::now());
        installed.map(drop).map_err(|refusal| unwell(refusal.to_string()))
    }

    /// The root asks this node to become a signer: its key is on disk before its public half goes out.
    pub(super) fn answer_invite(
        &mut self,
        from: NodeKey,
        invite: &wire::SignerInvite,
        state: &StateDir,
        counters: &mut Counters,
    ) {
        let key = self.node.key();
        let invitation = match open_invite(invite, self.node.anchors(), &key, clock::unix()) {
            Ok(invitation) => invitation,
            Err(refusal) => {
                counters.signership_refused(refusal.code.as_str());
                let why =
                    format!("an invitation to become a signer is refused: {}", refusal.detail);
                let event = Event::warning("refused", why).about(from, from.short());
                self.events.emit(event.by(Actor::Node(from)).because(refusal.code.as_str()));
                return;
            }
        };
        let seed = match state.pending_signer(&rand::random(), invitation.ipv4_pool) {
            Ok(seed) => seed,
            Err(error) => {
                tracing::error!("cannot become a signer; {error}");
                return;
            }
        };
        let mesh = *self.node.anchors().mesh_id();
        let offer = build_offer(&self.identity.key, &mesh, &invitation.nonce, &seed);
        self.node.send_offer(from, offer);
    }

    /// The bundle names this node's new intermediate, or an old one no more.
    pub(super) fn follow_signership(&mut self, state: &StateDir) -> Result<bool, anyhow::Error> {
        let anchors = self.node.anchors().clone();
        let before = self.signer.as_ref().map(trust::Signer::public);
        match before {
            Some(key) if anchors.has_intermediate(&key) => {
                // A crash may have left the key that is in use as one that waits.
                if state
                    .read_pending_signer()?
                    .is_some_and(|(seed, _)| trust::public_of(&seed) == key)
                {
                    state.forget_pending_signer()?;
                }
                return Ok(false);
            }
            Some(_) => {
                tracing::warn!("this host is no signer any more");
                self.signer = None;
                state.forget_intermediate()?;
            }
            None => {}
        }
        let ended = before.is_some();
        // The same bundle may name the key that was made for the next time.
        let Some((seed, pool)) = state.read_pending_signer()? else { return Ok(ended) };
        let public = trust::public_of(&seed);
        let entry = anchors.signers().into_iter().find(|entry| entry.key == public);
        let Some(entry) = entry.filter(|entry| !entry.retiring) else { return Ok(ended) };
        let founded = LedgerEvent::Founded { ipv4_pool: pool };
        let first = LedgerEntry { time: clock::unix(), event: founded }.encode();
        state.become_signer(&entry.certificate, &seed, &first)?;
        self.signer = Some(state.open_signer(&anchors, &self.identity.key)?);
        tracing::info!("this host is a signer now");
        Ok(true)
    }
}

impl Daemon {
    /// The bundle is another: this host may be a signer now, or none any more.
    pub(super) fn follow_signership(&mut self) {
        let Some(running) = &mut self.running else { return };
        match running.follow_signership(&self.state) {
            // Others learn of it from the record.
            Ok(true) => self.announce(),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
        if let Some(running) = &self.running {
            running.show_identity(&mut self.transport);
        }
    }

    /// `signer list`.
    pub(super) fn signers(&self) -> Result<ListSignersReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("list signers"))?;
        let own = running.node.key();
        let all = running.node.anchors().signers();
        Ok(ListSignersReply { signers: all.iter().map(|one| info(one, Some(own))).collect() })
    }

    /// `signer add`: answered when the member's key is in the bundle.
    pub(super) fn add_signer(
        &mut self,
        request: &AddSignerRequest,
        by: Actor,
        to: Answer<SignerInfo>,
    ) {
        let invited = self.invite(request);
        self.note(by, &invited, |(node, name, _)| deeds::signer_invited(*node, name));
        match invited {
            Ok((node, name, nonce)) => {
                let until = Instant::now() + PATIENCE;
                self.inviting = Some(Inviting { node, name, nonce, until, to: Some(to) });
            }
            // An answer whose caller went away is nobody's loss.
            Err(error) => drop(to.send(Err(error))),
        }
    }

    fn invite(
        &mut self,
        request: &AddSignerRequest,
    ) -> Result<(NodeKey, NodeName, [u8; 16]), ControlError> {
        let what = "cannot add a signer";
        if self.inviting.is_some() {
            return Err(failed(what, "another one is being added", "try again in a moment"));
        }
        let root = self.root(what)?;
        let running = self.running.as_mut().ok_or_else(|| not_a_member("add a signer"))?;
        running.check_synced(what)?;
        // From the ledger, not from the signer: this host may be none itself any more.
        let pool = self
            .state
            .ipv4_pool(running.node.anchors().mesh_id())
            .map_err(|error| failed(what, error.to_string(), "restore pki/ledger from a backup"))?;
        let record =
            one_of(&running.node.directory().by_name(&request.node), &request.node)?.clone();
        let all = running.node.anchors().signers();
        if let Some(there) = all.iter().find(|entry| entry.node == record.key) {
            let fix = if there.retiring {
                "wait until it is gone from `meshctl signer list`"
            } else {
                "nothing is to be done"
            };
            return Err(failed(what, format!("{} is one", request.node), fix));
        }
        let nonce = running.send_invite(&root, record.key, &pool);
        Ok((record.key, record.name.clone(), nonce))
    }

    /// A signer that is there already gets its key under the newest root: nobody waits for the answer.
    pub(super) fn invite_again(&mut self, signer: &SignerEntry, root: &RootCa, pool: &Ipv4Net) {
        let Some(running) = self.running.as_mut().filter(|_| self.inviting.is_none()) else {
            return;
        };
        let nonce = running.send_invite(root, signer.node, pool);
        let until = Instant::now() + PATIENCE_AGAIN;
        let (node, name) = (signer.node, signer.name.clone());
        self.inviting = Some(Inviting { node, name, nonce, until, to: None });
    }

    /// A member's answer to the invitation that is open.
    pub(super) fn take_offer(&mut self, from: NodeKey, offer: &wire::SignerOffer) {
        let Some(inviting) = self.inviting.take_if(|inviting| inviting.node == from) else {
            self.counters.signership_refused("not_invited");
            return;
        };
        let added = self.admit_signer(&inviting, offer);
        match (inviting.to, added) {
            // An answer whose caller went away is nobody's loss.
            (Some(to), added) => drop(to.send(added)),
            (None, Ok(_)) => {}
            (None, Err(error)) => tracing::error!("{error}"),
        }
    }

    fn admit_signer(
        &mut self,
        inviting: &Inviting,
        offer: &wire::SignerOffer,
    ) -> Result<SignerInfo, ControlError> {
        let what = "cannot add a signer";
        let refused = |why: String| failed(what, why, "see the journal of that host");
        let root = self.root(what)?;
        let running = self.running.as_mut().ok_or_else(|| not_a_member("add a signer"))?;
        let anchors = running.node.anchors();
        let key = open_offer(offer, anchors.mesh_id(), &inviting.node, &inviting.nonce)
            .map_err(|refusal| refused(refusal.to_string()))?;
        // Who gets its next key must still be a signer.
        let is_one = |one: &SignerEntry| one.node == inviting.node && !one.retiring;
        if inviting.to.is_none() && !anchors.signers().iter().any(is_one) {
            return Err(refused("it is no signer any more".to_owned()));
        }
        let certificate = root
            .certify_signer(&key, clock::unix())
            .map_err(|error| refused(error.to_string()))?
            .into();
        let (node, name) = (inviting.node, inviting.name.clone());
        let entry = SignerEntry { key, node, name, certificate, retiring: false };
        let (all, succession) = anchors.with_signer(entry.clone());
        running.keep_revocations(&root, &all);
        running.next_bundle(&root, &all, succession, &self.state, what)?;
        Ok(info(&entry, Some(running.node.key())))
    }

    /// `signer revoke`.
    pub(super) fn revoke_signer(
        &mut self,
        request: &RevokeSignerRequest,
    ) -> Result<RevokeSignerReply, ControlError> {
        let what = "cannot revoke a signer";
        let root = self.root(what)?;
        let running = self.running.as_mut().ok_or_else(|| not_a_member("revoke a signer"))?;
        running.check_synced(what)?;
        let mut all = running.node.anchors().signers();
        let meant: Vec<usize> = (0..all.len())
            .filter(|i| {
                let shown = info(&all[*i], None);
                [&shown.name, &shown.id, &shown.key].contains(&&request.signer)
            })
            .collect();
        let [place] = meant[..] else {
            let why = match meant.len() {
                0 => "no signer has that name, id or key".to_owned(),
                n => format!("{n} signers have that name"),
            };
            return Err(failed(what, why, "name it by its key, which `meshctl signer list` shows"));
        };
        let directory = running.node.directory();
        let present = |node: &NodeKey| directory.get(node).is_some_and(|record| !record.left);
        let works = |entry: &SignerEntry| !entry.retiring && present(&entry.node);
        if !all.iter().enumerate().any(|(i, entry)| i != place && works(entry)) {
            return Err(failed(
                what,
                "it is the only one: nobody could admit or renew any more",
                "add another with `meshctl signer add NODE`",
            ));
        }
        let gone = all[place].clone();
        // An invitation that is still open must not bring it back.
        self.inviting.take_if(|inviting| inviting.node == gone.node);
        // What it revoked rightly stays so; what a thief revoked can be dropped.
        if !request.drop_revocations {
            running.sign_revocations_again(&root, |signer| *signer == gone.key);
        }
        if request.now || gone.retiring {
            all.remove(place);
        } else {
            all[place].retiring = true;
        }
        let succession = running.node.anchors().succession().clone();
        running.next_bundle(&root, &all, succession, &self.state, what)?;
        let users = running.users_of(&gone.key);
        let state = if request.now || gone.retiring { "gone" } else { "retiring" };
        let info = SignerInfo { state: state.to_owned(), ..info(&gone, Some(running.node.key())) };
        Ok(RevokeSignerReply { signer: Some(info), users })
    }

    /// Takes out retiring signers whose certificates nobody shows any more; gives up on invited members.
    pub(super) fn tend_signers(&mut self) {
        let now = Instant::now();
        if let Some(late) = self.inviting.take_if(|inviting| inviting.until <= now) {
            let error = failed(
                "cannot add a signer",
                format!("{} did not answer", late.name),
                "check that it runs this version of meshd and is `alive` in `meshctl peers list`",
            );
            match late.to {
                Some(to) => drop(to.send(Err(error))),
                None => tracing::warn!("{error}"),
            }
        }
        if self.signers_due > now {
            return;
        }
        self.signers_due = now + LOOK_EVERY;
        self.lock_root_when_done();
        self.settle_root();
        let Some(running) = &self.running else { return };
        // Whoever has just come back, from a backup or without its store, knows nobody who may need it.
        if !running.node.is_synced() || running.node.directory().len() < 2 {
            return;
        }
        let mut all = running.node.anchors().signers();
        let before = all.len();
        all.retain(|entry| !entry.retiring || running.users_of(&entry.key) > 0);
        if all.len() == before {
            self.move_signers();
            return;
        }
        // Only the holder of the root can say so.
        let Ok(root) = self.root("") else { return };
        let Some(running) = &mut self.running else { return };
        let succession = running.node.anchors().succession().clone();
        let retired =
            running.next_bundle(&root, &all, succession, &self.state, "cannot retire a signer");
        if let Err(error) = retired {
            tracing::error!("{error}");
        }
    }
}

impl Running {
    fn send_invite(&mut self, root: &RootCa, to: NodeKey, pool: &Ipv4Net) -> [u8; 16] {
        let nonce = rand::random();
        let mesh = *self.node.anchors().mesh_id();
        let invite = root.invite(&mesh, &to, pool, nonce, clock::unix());
        self.node.send_invite(to, invite);
        nonce
    }

    /// How many members show a certificate of this issuer.
    pub(super) fn users_of(&self, key: &[u8; 32]) -> u32 {
        let anchors = self.node.anchors();
        let issued = |certificate: &trust::NodeCertificate| {
            anchors.issuer_key(certificate).is_some_and(|issuer| issuer == *key)
        };
        let others = self.node.directory().iter().filter(|record| !record.left);
        let count = others.filter(|record| issued(&record.certificate)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Signs again what signers revoked whose keys count no more after a bundle of these.
    pub(super) fn keep_revocations(&mut self, root: &RootCa, signers: &[SignerEntry]) {
        let stays = |key: &[u8; 32]| signers.iter().any(|one| one.key == *key && !one.retiring);
        self.sign_revocations_again(root, |signer| *signer != root.public() && !stays(signer));
    }

    pub(super) fn sign_revocations_again(&mut self, root: &RootCa, of: impl Fn(&[u8; 32]) -> bool) {
        let anchors = self.node.anchors();
        let mesh = *anchors.mesh_id();
        let again: Vec<_> = anchors
            .all_revocations()
            .filter(|revocation| of(&revocation.signer))
            .map(|revocation| root.revoke(&mesh, &revocation.terms()))
            .collect();
        if let Err(refusal) = self.node.revoke_all(&again, clock::now()) {
            tracing::error!(%refusal, "a revocation is not signed again");
        }
    }
}
