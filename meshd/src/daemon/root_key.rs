//! Where the root's key is, and who may use it for how long.
//!
//! It lies in the state directory in plain or under a passphrase, comes as a credential of systemd, or is kept elsewhere
//! and brought when it is needed. What is opened stays in memory for a quarter of an hour, or for as long as a
//! replacing of the root or a retiring signer needs it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use meshd_core::{
    event::{Actor, Event},
    trust::{RootCa, SealError, StoredKey, open_key, public_of, read_key, seal_key},
};
use meshd_proto::control::{ExportRootReply, RootsReply, UnlockRootRequest};
use zeroize::Zeroizing;

use super::{
    Daemon,
    bridge::Answer,
    done::Done,
    requests::not_a_member,
    signers::{failed, no_root},
};
use crate::control::ControlError;

/// A key that was opened by hand is forgotten after this.
const HELD_FOR: Duration = Duration::from_secs(15 * 60);
/// Name of the credential.
const CREDENTIAL: &str = "meshd.root";
/// Longest file that is looked at.
const LONGEST: u64 = 64 * 1024;

/// A key that somebody has opened.
pub(super) struct Unlocked {
    root: RootCa,
    /// Seals the next root's key too. Empty when the key was in plain.
    passphrase: Zeroizing<Vec<u8>>,
    until: Instant,
}

/// Who asked for something, and where the answer goes.
pub(super) struct Asked<T> {
    pub(super) by: Actor,
    pub(super) to: Answer<T>,
}

/// What is done when a key is sealed.
pub(super) enum Sealing {
    /// It takes the place of the one on disk.
    Keep(RootCa, Zeroizing<Vec<u8>>, Asked<RootsReply>),
    /// It goes to who asked.
    Export(RootCa, Asked<ExportRootReply>),
    /// It is the next root's.
    Rotate(RootCa, Asked<RootsReply>),
}

const UNLOCKED: (&str, &str) = ("root_unlocked", "the root's key was unlocked");
const ENCRYPTED: (&str, &str) = ("root_encrypted", "the root's key is under a passphrase now");
const EXPORTED: (&str, &str) = ("root_exported", "the root's key was exported");
const REMOVED: (&str, &str) = ("root_removed", "the root's key was taken off this host");
const REPLACED: (&str, &str) =
    ("root_replaced", "the mesh has a new root; the old one counts until all have renewed");

/// A systemd credential (systemd.exec(5)), if the unit was given one of that name.
pub(super) fn credential(name: &str) -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| PathBuf::from(directory).join(name))
        .filter(|path| path.exists())
}

fn unreadable(what: &str, why: &impl ToString) -> ControlError {
    failed(what, why.to_string(), "restore pki/root.key from a backup")
}

fn locked(what: &str) -> ControlError {
    ControlError::new(
        "root_locked",
        what.to_owned(),
        "the root's key is under a passphrase",
        "run `meshctl cert ca unlock`, then this again",
    )
}

/// A root that came after the export is in nobody's file: its key must stay.
fn check_exported(what: &str, newest: &[u8; 32], exported: &str) -> Result<(), ControlError> {
    if HEXLOWER.encode(newest) == exported {
        return Ok(());
    }
    let why = "it is not the key that was exported: the root was replaced meanwhile";
    Err(failed(what, why, "run `meshctl cert ca export --remove` again, with another --out"))
}

impl Daemon {
    /// The root, if its key is at hand.
    pub(super) fn root(&self, what: &str) -> Result<RootCa, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member(what))?;
        let anchors = running.node.anchors();
        let newest = *anchors.root_key();
        if let Some(unlocked) = &self.unlocked
            && unlocked.root.public() == newest
        {
            return Ok(unlocked.root.clone());
        }
        let mut refused = no_root(what);
        for text in self.root_key_texts(what)? {
            match read_key(&text).map_err(|why| unreadable(what, &why))? {
                StoredKey::Plain(seed) if public_of(&seed) == newest => {
                    return RootCa::from_parts(anchors.root_der(), &seed)
                        .map_err(|why| unreadable(what, &why));
                }
                StoredKey::Sealed(public) if public.is_none_or(|public| public == newest) => {
                    refused = locked(what);
                }
                _ => {
                    refused = failed(
                        what,
                        "the root's key on this host is one that was replaced",
                        "restore pki/root.key from a newer backup",
                    );
                }
            }
        }
        Err(refused)
    }

    /// What there is of key files, the state directory's before the credential.
    fn root_key_texts(&self, what: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, ControlError> {
        let own = self.state.root_key_text().map_err(|why| unreadable(what, &why))?;
        let given = match credential(CREDENTIAL) {
            Some(path) => {
                let read = crate::state::durable::read(&path, LONGEST);
                read.map_err(|why| unreadable(what, &why))?.map(Zeroizing::new)
            }
            None => None,
        };
        Ok(own.into_iter().chain(given).collect())
    }

    /// How the root's key is kept here, for `cert ca show`.
    pub(super) fn root_key_state(&self) -> &'static str {
        if self.unlocked.is_some() {
            return "unlocked";
        }
        match self.root("") {
            Ok(_) => "plain",
            Err(error) if error.code == "root_locked" => "locked",
            Err(_) => "absent",
        }
    }

    /// `cert ca unlock`: the key's file is read here, or comes with the call.
    pub(super) fn unlock_root(&mut self, request: &UnlockRootRequest, to: Asked<RootsReply>) {
        let what = "cannot unlock the root";
        let passphrase = Zeroizing::new(request.passphrase.to_vec());
        let text = if request.key.is_empty() {
            match self.root_key_texts(what).map(|texts| texts.into_iter().next()) {
                Ok(Some(text)) => text,
                Ok(None) => return self.answer_root(to, Err(no_root(what)), UNLOCKED),
                Err(error) => return self.answer_root(to, Err(error), UNLOCKED),
            }
        } else {
            Zeroizing::new(request.key.to_vec())
        };
        let done = self.done.clone();
        // Takes a good part of a second and 16 MiB, by intent.
        tokio::task::spawn_blocking(move || {
            let seed = open_key(&text, &passphrase);
            // What did not open anything must not lock anything.
            let sealed = matches!(read_key(&text), Ok(StoredKey::Sealed(_)));
            let passphrase = if sealed { passphrase } else { Zeroizing::default() };
            // The loop only goes away with the process.
            let _ = done.blocking_send(Done::Opened(seed, passphrase, to));
        });
    }

    pub(super) fn root_opened(
        &mut self,
        seed: Result<Zeroizing<[u8; 32]>, SealError>,
        passphrase: Zeroizing<Vec<u8>>,
        to: Asked<RootsReply>,
    ) {
        let opened = self.hold_root(seed, passphrase);
        self.answer_root(to, opened, UNLOCKED);
    }

    /// Answers, and tells that it was done, or refused.
    fn answer_root<T>(
        &self,
        to: Asked<T>,
        done: Result<T, ControlError>,
        (code, text): (&'static str, &str),
    ) {
        self.note(to.by, &done, |_| Event::warning(code, text));
        // An answer whose caller went away is nobody's loss.
        drop(to.to.send(done));
    }

    fn hold_root(
        &mut self,
        seed: Result<Zeroizing<[u8; 32]>, SealError>,
        passphrase: Zeroizing<Vec<u8>>,
    ) -> Result<RootsReply, ControlError> {
        let what = "cannot unlock the root";
        let seed = seed.map_err(|why| {
            let fix = match why {
                SealError::WrongPassphrase | SealError::NoPassphrase => "try again",
                _ => {
                    "name the file that `meshctl cert ca export` wrote, or pki/root.key of a backup"
                }
            };
            failed(what, why.to_string(), fix)
        })?;
        let running = self.running.as_ref().ok_or_else(|| not_a_member(what))?;
        let anchors = running.node.anchors();
        if public_of(&seed) != *anchors.root_key() {
            let why = "it is not the key of this mesh's root";
            let fix = "the root may have been replaced since: take the newest backup";
            return Err(failed(what, why, fix));
        }
        let root =
            RootCa::from_parts(anchors.root_der(), &seed).map_err(|why| unreadable(what, &why))?;
        self.unlocked = Some(Unlocked { root, passphrase, until: Instant::now() + HELD_FOR });
        self.roots()
    }

    /// Forgets what was unlocked when its time is over and nothing waits for it.
    pub(super) fn lock_root_when_done(&mut self) {
        let Some(unlocked) = &mut self.unlocked else { return };
        let waits = self.running.as_ref().is_some_and(|running| {
            let anchors = running.node.anchors();
            !anchors.signers_to_move().is_empty()
                || anchors.signers().iter().any(|signer| signer.retiring)
        });
        if !waits && unlocked.until <= Instant::now() {
            self.unlocked = None;
            tracing::info!("the root's key is locked again");
        }
    }

    /// `cert ca encrypt`: from now on the key on disk is under that passphrase.
    pub(super) fn encrypt_root(&mut self, passphrase: &[u8], to: Asked<RootsReply>) {
        match self.root("cannot encrypt the root's key") {
            Ok(root) => {
                let passphrase = Zeroizing::new(passphrase.to_vec());
                let kept = passphrase.clone();
                let seed = root.seed();
                self.seal(seed, &passphrase, Sealing::Keep(root, kept, to));
            }
            Err(error) => self.answer_root(to, Err(error), ENCRYPTED),
        }
    }

    /// `cert ca export`.
    pub(super) fn export_root(&mut self, passphrase: &[u8], to: Asked<ExportRootReply>) {
        match self.root("cannot export the root's key") {
            Ok(root) => self.seal(root.seed(), passphrase, Sealing::Export(root, to)),
            Err(error) => self.answer_root(to, Err(error), EXPORTED),
        }
    }

    /// `cert ca rotate`: a key that was under a passphrase gets a successor that is, too.
    pub(super) fn rotate_root(&mut self, to: Asked<RootsReply>) {
        let next = match self.next_root() {
            Ok(next) => next,
            Err(error) => return self.answer_root(to, Err(error), REPLACED),
        };
        match &self.unlocked {
            Some(unlocked) if !unlocked.passphrase.is_empty() => {
                let (seed, passphrase) = (next.seed(), unlocked.passphrase.clone());
                self.seal(seed, &passphrase, Sealing::Rotate(next, to));
            }
            _ => {
                let text = format!("{}\n", HEXLOWER.encode(&*next.seed()));
                let text = Zeroizing::new(text);
                let replaced = self.replace_root(&next, &text);
                self.answer_root(to, replaced, REPLACED);
            }
        }
    }

    fn seal(&self, seed: Zeroizing<[u8; 32]>, passphrase: &[u8], then: Sealing) {
        let (done, passphrase) = (self.done.clone(), Zeroizing::new(passphrase.to_vec()));
        tokio::task::spawn_blocking(move || {
            let text = seal_key(&seed, &passphrase, rand::random(), rand::random());
            let _ = done.blocking_send(Done::Sealed(text, Box::new(then)));
        });
    }

    pub(super) fn root_sealed(
        &mut self,
        text: Result<Zeroizing<String>, SealError>,
        then: Sealing,
    ) {
        let text = text
            .map_err(|why| failed("cannot encrypt the root's key", why.to_string(), "give one"));
        match then {
            Sealing::Keep(root, passphrase, to) => {
                let kept = text.and_then(|text| {
                    self.check_newest(&root)?;
                    let saved = self.state.save_root_key(&text);
                    saved.map_err(|why| {
                        failed("cannot keep the key", why.to_string(), "check the disk")
                    })?;
                    // Who has just given the passphrase need not give it again.
                    let until = Instant::now() + HELD_FOR;
                    self.unlocked = Some(Unlocked { root, passphrase, until });
                    self.roots()
                });
                self.answer_root(to, kept, ENCRYPTED);
            }
            Sealing::Export(root, to) => {
                let text = text.and_then(|text| self.check_newest(&root).map(|()| text));
                let reply = text.map(|text| ExportRootReply {
                    key: text.as_bytes().to_vec(),
                    public_key: HEXLOWER.encode(&root.public()),
                });
                self.answer_root(to, reply, EXPORTED);
            }
            Sealing::Rotate(next, to) => {
                let replaced = text.and_then(|text| self.replace_root(&next, &text));
                if replaced.is_ok()
                    && let Some(unlocked) = &mut self.unlocked
                {
                    unlocked.root = next;
                }
                self.answer_root(to, replaced, REPLACED);
            }
        }
    }

    /// The root may have been replaced while its key was encrypted.
    fn check_newest(&self, root: &RootCa) -> Result<(), ControlError> {
        let newest = self.running.as_ref().map(|running| *running.node.anchors().root_key());
        if newest == Some(root.public()) {
            return Ok(());
        }
        Err(failed("nothing was done", "the root was replaced meanwhile", "try again"))
    }

    /// `cert ca export --remove`, after the file was written.
    pub(super) fn remove_root_key(&mut self, exported: &str, to: Asked<RootsReply>) {
        let removed = self.take_root_key_off(exported);
        self.answer_root(to, removed, REMOVED);
    }

    fn take_root_key_off(&mut self, exported: &str) -> Result<RootsReply, ControlError> {
        let what = "cannot take the root's key off this host";
        check_exported(what, &self.root(what)?.public(), exported)?;
        self.state
            .remove_root_key()
            .map_err(|why| failed(what, why.to_string(), "check the disk"))?;
        self.unlocked = None;
        self.roots()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_that_was_exported_is_taken_off() {
        let (newest, before) = ([0xab; 32], [0xcd; 32]);
        assert!(check_exported("no", &newest, &HEXLOWER.encode(&newest)).is_ok());
        for other in [HEXLOWER.encode(&before), String::new(), "ab".to_owned()] {
            let error = check_exported("no", &newest, &other).unwrap_err();
            assert!(error.why.contains("replaced meanwhile"), "{error}");
            assert!(error.fix.contains("--out"), "{error}");
        }
    }
}
