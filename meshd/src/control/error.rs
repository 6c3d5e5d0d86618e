//! Errors as people and programs see them, and how they cross the socket.

use std::{borrow::Cow, fmt};

use meshd_proto::control::ErrorDetail;
use prost::Message as _;
use tonic::{Code, Status};

/// HTTP/2 headers carry the details; clients accept 16 KiB of them.
const MOST_CHARACTERS: usize = 1_000;

/// A call that failed: what happened, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlError {
    /// Stable, for programs, e.g. `token_expired`.
    pub code: Cow<'static, str>,
    /// What happened, to which thing.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl ControlError {
    /// An error in the form of all errors.
    pub fn new(
        code: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { code: code.into(), what: what.into(), why: why.into(), fix: fix.into() }
    }

    fn grpc(&self) -> Code {
        match self.code.as_ref() {
            "permission_denied" => Code::PermissionDenied,
            "bad_request" => Code::InvalidArgument,
            "too_many_calls" => Code::ResourceExhausted,
            code if code.ends_with("_not_found") => Code::NotFound,
            // What a client should do about any other is in the details.
            _ => Code::FailedPrecondition,
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.what, &self.why, &self.fix];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        f.write_str(&parts.join("; "))
    }
}

impl std::error::Error for ControlError {}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        let short = |text: &str| text.chars().take(MOST_CHARACTERS).collect::<String>();
        let detail = ErrorDetail {
            code: short(&error.code),
            what: short(&error.what),
            why: short(&error.why),
            fix: short(&error.fix),
        };
        Self::with_details(error.grpc(), short(&error.to_string()), detail.encode_to_vec().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_the_socket_whole() {
        let error = ControlError::new("token_expired", "cannot join", "the token expired", "ask");
        assert_eq!(error.to_string(), "cannot join; the token expired; ask");
        let status = Status::from(error);
        let detail = ErrorDetail::decode(status.details()).unwrap();
        assert_eq!(
            (detail.code.as_str(), detail.what.as_str(), detail.why.as_str(), detail.fix.as_str()),
            ("token_expired", "cannot join", "the token expired", "ask")
        );
    }

    #[test]
    fn a_huge_error_is_cut_rather_than_lost() {
        let status = Status::from(ControlError::new("x", "w".repeat(100_000), "", ""));
        assert!(status.details().len() < 5_000);
    }
}
