//! An identity that was issued off-line and lies beside the configuration.
//!
//! ```text
//! waiting ── all files there, and they fit one another ──► taken over into the state directory, running
//! running ── node.crt is a later one of this identity ───► taken over as a renewal
//! ```
//! The directory is only read, and looked at every second: copying is somebody else's business and takes its
//! time. What keeps it from being used is a health line. Once taken over it decides nothing: copying the same
//! again changes nothing, and after a leave it brings nothing back.

use std::path::PathBuf;

use meshd_core::{
    refusal::{Code, Refusal},
    trust::{
        Enrolment, IdentityFile, IdentityFiles, IssuedIdentity, Misfit, read_bundle,
        read_certificate,
    },
};
use meshd_proto::{NodeKey, control::HealthLine};

use super::{Daemon, clock, deeds, health::notice};
use crate::{
    control::ControlError,
    identity_dir::{self, Stamp},
};

/// The directory, as it was judged last.
#[derive(Debug, Default)]
pub(super) struct Handed {
    path: PathBuf,
    /// `None`: to be judged.
    stamp: Option<Stamp>,
    problem: Option<Problem>,
    /// Left from here, and the disk does not know it.
    left: Option<NodeKey>,
}

/// Why it is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    code: &'static str,
    message: String,
    fix: String,
    /// Worth another look though nothing is copied: a clock may be set, a disk mended.
    passing: bool,
}

impl Handed {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// Any of the files is there.
    pub(super) fn is_there(&self) -> bool {
        self.stamp.as_ref().is_some_and(|stamp| !stamp.is_empty())
    }

    /// What this host is has changed.
    pub(super) fn judge_again(&mut self) {
        self.stamp = None;
        self.problem = None;
    }

    /// Why it is not used, for `status`.
    pub(super) fn line(&self) -> Option<HealthLine> {
        let problem = self.problem.as_ref()?;
        Some(notice(problem.code, &problem.message, &problem.fix))
    }

    fn misfit(&self, misfit: &Misfit, missing: bool) -> Problem {
        let path = self.path.join(misfit.file.name());
        Problem {
            code: if missing { "identity_incomplete" } else { "identity_refused" },
            message: format!("{}: {}", path.display(), misfit.why),
            fix: misfit.fix.clone(),
            passing: misfit.clock,
        }
    }
}

impl Daemon {
    /// Looks whether the directory is another than before, and acts on it.
    pub(super) fn look_at_handed(&mut self) {
        // What a person does by hand comes first.
        if self.is_joining_by_hand() {
            return;
        }
        let stamp = Stamp::of(&self.handed.path);
        let passing = self.handed.problem.as_ref().is_some_and(|problem| problem.passing);
        if self.handed.stamp.as_ref() == Some(&stamp) && !passing {
            return;
        }
        let was_there = self.handed.is_there();
        self.handed.stamp = Some(stamp);
        let problem = if self.handed.is_there() { self.judge_handed().err() } else { None };
        let code = |problem: &Option<Problem>| problem.as_ref().map(|problem| problem.code);
        if let Some(problem) = &problem
            && (!problem.passing || code(&self.handed.problem) != Some(problem.code))
        {
            tracing::warn!(code = problem.code, "{}; {}", problem.message, problem.fix);
        }
        self.handed.problem = problem;
        if was_there && !self.handed.is_there() && self.joining.is_none() {
            // The files are gone: a token does as well.
            self.join_unattended();
        }
    }

    /// Whether or not it looks as before.
    pub(super) fn look_at_handed_again(&mut self) {
        if let Some(problem) = &mut self.handed.problem {
            problem.passing = true;
        }
        self.look_at_handed();
    }

    /// Notes on disk that this identity has left, so that its files do not bring it back.
    pub(super) fn note_left(&mut self, key: NodeKey) -> Result<(), ControlError> {
        self.handed.judge_again();
        let Err(error) = self.state.note_left(&key) else { return Ok(()) };
        tracing::error!("{error}");
        self.handed.left = Some(key);
        if Stamp::of(&self.handed.path).is_empty() {
            // Nothing could bring it back.
            return Ok(());
        }
        Err(ControlError::new(
            "state_dir",
            "left, but the identity's files would bring it back at the next start",
            error.to_string(),
            format!("remove {}", self.handed.path.display()),
        ))
    }

    fn judge_handed(&mut self) -> Result<(), Problem> {
        if self.running.is_none() {
            // Who has files is not to join as somebody else while they are copied.
            self.stop_unattended();
        }
        let files = identity_dir::read(&self.handed.path)
            .map_err(|misfit| self.handed.misfit(&misfit, false))?;
        if self.running.is_some() { self.take_next(&files) } else { self.take_handed(&files) }
    }

    /// From `waiting` to `running`, as after a join.
    fn take_handed(&mut self, files: &IdentityFiles) -> Result<(), Problem> {
        if let Ok(certificate) = read_certificate(files) {
            self.check_not_left(&certificate.key)?;
        }
        let missing = IdentityFile::ALL.into_iter().any(|file| !files.contains_key(&file));
        let issued = IssuedIdentity::read(files, clock::unix())
            .map_err(|misfit| self.handed.misfit(&misfit, missing))?;
        let failed = |error: ControlError| Problem {
            code: "state_dir",
            message: format!(
                "the identity that was issued for this host is not taken over: {}",
                error.why
            ),
            fix: error.fix,
            passing: true,
        };
        let state = |error: crate::state::StateError| {
            failed(ControlError::new(
                "state_dir",
                "",
                error.to_string(),
                "check the state directory",
            ))
        };
        let path = self.handed.path.clone();
        self.state.save_identity(&issued.identity).map_err(state)?;
        let lane = self.state.lane(&rand::random()).map_err(state)?;
        let enrolment = Enrolment {
            anchors: issued.anchors,
            certificate: issued.certificate,
            records: Vec::new(),
            not_granted: Vec::new(),
        };
        let certificate = enrolment.certificate.clone();
        self.take_over(enrolment, issued.identity, lane, issued.seeds).map_err(failed)?;
        self.events.emit(deeds::joined(&certificate).with("files", path.display()));
        Ok(())
    }

    fn check_not_left(&self, key: &NodeKey) -> Result<(), Problem> {
        let path = self.handed.path.display();
        let left = self.state.left().map_err(|error| Problem {
            code: "state_damaged",
            message: format!("{path} is not used: {error}"),
            fix: "restore that file, or remove it if no host ever left from here".to_owned(),
            passing: true,
        })?;
        if !left.contains(key) && self.handed.left != Some(*key) {
            return Ok(());
        }
        Err(Problem {
            code: "identity_left",
            message: format!("{path} holds an identity that has left the mesh from this host, for good"),
            fix: "issue a new one with `meshctl cert issue --name NAME --out DIR` on a signer, or remove the files"
                .to_owned(),
            passing: false,
        })
    }

    /// A member: a later certificate of its own is its next one.
    fn take_next(&mut self, files: &IdentityFiles) -> Result<(), Problem> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if !files.contains_key(&IdentityFile::Certificate) {
            return Ok(());
        }
        let misfit = |misfit: Misfit| self.handed.misfit(&misfit, false);
        let certificate = read_certificate(files).map_err(misfit)?;
        if certificate.key != running.node.key() {
            return Err(Problem {
                code: "identity_ignored",
                message: format!(
                    "{} holds another identity ({}) than this host has; it is not used",
                    self.handed.path.display(),
                    certificate.name
                ),
                fix: "remove the files; or `meshctl leave`, and this host becomes that node"
                    .to_owned(),
                passing: false,
            });
        }
        let bundle = read_bundle(files).map_err(misfit)?;
        match running.node.take_certificate(&certificate, bundle.as_ref(), clock::now()) {
            Ok(true) => {
                tracing::info!(path = %self.handed.path.display(),
                    "this node's next certificate was taken over");
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(refusal) => Err(self.not_taken(&refusal)),
        }
    }

    fn not_taken(&self, refusal: &Refusal) -> Problem {
        let path = self.handed.path.join(IdentityFile::Certificate.name());
        let clock = refusal.code == Code::CertificateNotYetValid;
        Problem {
            code: "identity_refused",
            message: format!("{}: {}", path.display(), refusal.detail),
            fix: match refusal.code {
                Code::CertificateNotYetValid => "set this host's clock",
                Code::Revoked => "`meshctl leave`, then issue a new identity",
                _ => {
                    "issue the next one with `meshctl cert issue --certificate FILE --out DIR`, and copy all its \
                     files"
                }
            }
            .to_owned(),
            passing: clock,
        }
    }
}
