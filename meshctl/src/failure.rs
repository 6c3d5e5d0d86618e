//! What went wrong, in the form of all errors, and the exit code that goes with it.

use std::{fmt, io};

use meshd_proto::control::ErrorDetail;
use prost::Message as _;
use tonic::{Code, Status};

use crate::text::safe;

const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;

/// An error: `error: what; why; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    parts: Vec<String>,
}

impl Failure {
    /// Something on this side.
    pub(crate) fn local(what: impl fmt::Display, why: impl fmt::Display, fix: &str) -> Self {
        Self { exit: FAILED, parts: vec![what.to_string(), why.to_string(), fix.to_owned()] }
    }

    /// The daemon cannot be reached.
    pub(crate) fn unreachable(what: impl Into<String>, why: impl Into<String>, fix: &str) -> Self {
        Self { exit: UNREACHABLE, parts: vec![what.into(), why.into(), fix.to_owned()] }
    }

    /// Exit with 1; all was said.
    pub(crate) fn silent() -> Self {
        Self { exit: FAILED, parts: Vec::new() }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.parts.is_empty()
    }

    /// The same, and what more is to be known.
    pub(crate) fn and(mut self, more: &str) -> Self {
        self.parts.push(more.to_owned());
        self
    }

    /// The same text with exit code 1, where no other is allowed.
    pub(crate) fn plain(mut self) -> Self {
        self.exit = self.exit.min(FAILED);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts.iter().map(|part| safe(part));
        let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
        write!(f, "error: {}", parts.join("; "))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Ok(detail) = ErrorDetail::decode(status.details())
            && !detail.what.is_empty()
        {
            return Self { exit: FAILED, parts: vec![detail.what, detail.why, detail.fix] };
        }
        let what = "the daemon did not answer";
        let log = "look at its log: journalctl -u meshd -e";
        match status.code() {
            Code::DeadlineExceeded => Self::unreachable(what, "it took too long", log),
            // Tonic's own timeout comes as Cancelled.
            Code::Cancelled => Self::unreachable(what, "the call took too long", log),
            Code::Unavailable | Code::Unknown | Code::Internal => {
                Self::unreachable(what, "it closed the connection", log)
            }
            Code::Unimplemented => Self::local(
                "the daemon does not know this call",
                "it is of another version than meshctl",
                "restart it after an upgrade: systemctl restart meshd",
            ),
            _ => Self::local(what, status.message(), log),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // `meshctl … | head`: the reader has what it wanted.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: 0, parts: Vec::new() };
        }
        Self::local("the output cannot be written", error, "check where it goes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_cannot_steer_the_terminal() {
        let detail = ErrorDetail {
            code: "x".into(),
            what: "a\u{1b}[2Jb".into(),
            why: String::new(),
            fix: "c\nd".into(),
        };
        let status = Status::with_details(Code::NotFound, "", detail.encode_to_vec().into());
        let text = Failure::from(status).to_string();
        assert_eq!(text, "error: a\\u{1b}[2Jb; c\\nd");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.is_silent() && failure.exit == 0);
    }
}
