//! What happened, for the log, the journal and `meshctl events`: who did what to whom, and why.
//!
//! Responsible for the form of an [`Event`], for what is kept of them and for how often the same is said
//! ([`Log`]). Not for writing them anywhere: the daemon does that.
//!
//! | file | has |
//! |---|---|
//! | `mod` | the event, its actor, its class |
//! | `log` | what is kept, what is said, which ones a reader asked for |
//! | `certificates` | events of certificates that were issued |
//! | `blocked` | prefixes that are not routed |
//! | `problems` | health lines that come and go |
//! | `signers` | what a new bundle changed |

mod blocked;
mod certificates;
mod log;
mod problems;
mod signers;

use std::{borrow::Cow, fmt, net::IpAddr};

use meshd_proto::NodeKey;

pub use self::{
    blocked::of_blocked,
    certificates::{about_certificate, of_admission},
    log::{Filter, Log, Logged},
    problems::{Problem, Problems},
    signers::{of_signers, signer_actor},
};
use crate::trust::TokenId;

/// Characters of each text that are kept.
const TEXT: usize = 1_000;

/// How much an [`Event`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a line.
    Info,
    /// Somebody should look.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    /// `info`, `warning` or `error`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// This daemon, by itself.
    Daemon,
    /// A process on this host that called the control socket, as the kernel names it.
    User {
        /// Whom it runs as.
        uid: u32,
        /// The process, while it lived.
        pid: Option<i32>,
        /// Who had logged in, before any `sudo`.
        login: Option<u32>,
    },
    /// A node that has proved its identity.
    Node(NodeKey),
    /// Whoever holds the mesh's root key.
    Root,
    /// Whoever came with this join token.
    Token(TokenId),
    /// Somebody of whom only the address is known.
    Address(IpAddr),
}

impl fmt::Display for Actor {
    /// `daemon`, `user:UID`, `node:ID`, `root`, `token:ID` or `address:IP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::User { uid, .. } => write!(f, "user:{uid}"),
            Self::Node(key) => write!(f, "node:{key}"),
            Self::Root => f.write_str("root"),
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Address(address) => write!(f, "address:{address}"),
        }
    }
}

/// What kind of thing an event is, as far as keeping and repeating it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Somebody with the right to it changed something: few, and kept apart from what others can cause.
    Decision,
    /// Something was not believed or not allowed: anybody can cause any number, so the same is said once in a while.
    Refusal,
    /// Members and problems come and go, and certificates are renewed: in time more than any ring holds.
    Presence,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Stable; `docs/operations.md` lists them.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The node that it is about.
    pub subject: Option<NodeKey>,
    /// That node's name.
    pub name: Option<String>,
    /// Who did it.
    pub actor: Actor,
    /// Why: a stable code (a refusal's, a health line's), or the words of a person.
    pub reason: Option<Cow<'static, str>>,
    /// For a person.
    pub text: String,
    /// More of it, by field.
    pub details: Vec<(&'static str, String)>,
}

impl Event {
    /// An event of this daemon's own doing, about nobody in particular.
    #[must_use]
    pub fn new(code: &'static str, severity: Severity, text: impl Into<String>) -> Self {
        Self {
            code,
            severity,
            subject: None,
            name: None,
            actor: Actor::Daemon,
            reason: None,
            text: text.into(),
            details: Vec::new(),
        }
    }

    /// The same with [`Severity::Info`].
    #[must_use]
    pub fn info(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Info, text)
    }

    /// The same with [`Severity::Warning`].
    #[must_use]
    pub fn warning(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Warning, text)
    }

    /// The same with [`Severity::Error`].
    #[must_use]
    pub fn error(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, text)
    }

    /// Whom it is about.
    #[must_use]
    pub fn about(self, key: NodeKey, name: impl fmt::Display) -> Self {
        Self { subject: Some(key), name: Some(name.to_string()), ..self }
    }

    /// Who did it.
    #[must_use]
    pub fn by(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    /// Why.
    #[must_use]
    pub fn because(self, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// One more field; nothing when the value is empty.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl fmt::Display) -> Self {
        let value = value.to_string();
        if !value.is_empty() {
            self.details.push((field, value));
        }
        self
    }

    /// The value of a field of `details`.
    #[must_use]
    pub fn detail(&self, field: &str) -> Option<&str> {
        self.details.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_str())
    }

    pub(crate) fn class(&self) -> Class {
        match self.code {
            "refused"
            | "connection_refused"
            | "control_refused"
            | "enrolment_refused"
            | "signer_time_refused"
            | "stored_record_refused" => Class::Refusal,
            "certificate_renewed"
            | "disconnected"
            | "member_alive"
            | "member_down"
            | "member_forgotten"
            | "member_joined"
            | "member_left"
            | "outbid"
            | "path_mtu_changed"
            | "prefix_blocked"
            | "prefix_unblocked"
            | "problem_began"
            | "problem_ended"
            | "renewal_failed"
            | "renewal_granted"
            | "synced" => Class::Presence,
            _ => Class::Decision,
        }
    }

    /// Nothing in it that a terminal or a log reader obeys, and nothing of any length.
    fn made_plain(mut self) -> Self {
        self.text = plain(&self.text);
        self.name = self.name.as_deref().map(plain);
        self.reason = self.reason.map(|reason| match reason {
            Cow::Borrowed(code) => Cow::Borrowed(code),
            Cow::Owned(text) => Cow::Owned(plain(&text)),
        });
        for (_, value) in &mut self.details {
            *value = plain(value);
        }
        self
    }
}

/// `text` on one line, cut to 1,000 characters, with everything escaped that steers a terminal or reorders a line.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len().min(TEXT));
    for c in text.chars().take(TEXT) {
        if steers(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Control characters, marks and overrides of writing direction, line separators.
#[must_use]
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_are_told_apart_by_their_text() {
        let texts = [
            (Actor::Daemon, "daemon".to_owned()),
            (Actor::User { uid: 0, pid: Some(7), login: Some(1000) }, "user:0".to_owned()),
            (Actor::Node(NodeKey([1; 32])), format!("node:{}", NodeKey([1; 32]))),
            (Actor::Root, "root".to_owned()),
            (Actor::Token(TokenId([0xab; 16])), format!("token:{}", "ab".repeat(16))),
            (Actor::Address([192, 0, 2, 1].into()), "address:192.0.2.1".to_owned()),
        ];
        for (actor, text) in texts {
            assert_eq!(actor.to_string(), text);
        }
    }

    #[test]
    fn what_others_wrote_stays_on_its_line() {
        let event = Event::info("x", "a\u{1b}[2J\nb\u{202e}".to_owned() + &"c".repeat(5_000))
            .because("d\re".to_owned())
            .with("key", "f\u{9b}")
            .with("nothing", "")
            .made_plain();
        assert!(event.text.starts_with("a\\u{1b}[2J\\nb\\u{202e}cc"), "{}", event.text);
        assert!(event.text.len() < 1_100);
        assert_eq!(event.reason.as_deref(), Some("d\\re"));
        assert_eq!((event.detail("key"), event.details.len()), (Some("f\\u{9b}"), 1));
    }
}
