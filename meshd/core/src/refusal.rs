//! Why something from outside was not believed.

use thiserror::Error;

/// A refusal with its stable code. Each is counted and shown as an event; none changes any state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{code}: {detail}", code = self.code.as_str())]
pub struct Refusal {
    /// The stable reason code.
    pub code: Code,
    /// What exactly was wrong, for a person. Holds no unescaped text from outside.
    pub detail: String,
    /// Found in what its owner had signed: the same payload will be refused whoever sends it. Of anything
    /// before that, whoever relayed it may be the author.
    pub by_owner: bool,
}

impl Refusal {
    /// A refusal for `code`.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), by_owner: false }
    }

    /// The same, found in what its owner had signed.
    #[must_use]
    pub fn by_owner(self) -> Self {
        Self { by_owner: true, ..self }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Stable reason codes: part of the JSON output, the metrics and the logs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code, in the order of declaration.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// Larger than a limit of the protocol.
    TooLarge = "too_large",
    /// Not decodable, or a field has a value that it cannot have.
    Malformed = "malformed",
    /// A signature that does not verify, or none.
    BadSignature = "bad_signature",
    /// The certificate does not chain to this mesh's root.
    UntrustedChain = "untrusted_chain",
    /// Signed for, or by a certificate of, another mesh.
    OtherMesh = "other_mesh",
    /// Issued by an intermediate that the bundle does not hold.
    UnknownIssuer = "unknown_issuer",
    /// The identity or its intermediate was revoked.
    Revoked = "revoked",
    /// The certificate is past its end.
    CertificateExpired = "certificate_expired",
    /// The certificate is not valid yet.
    CertificateNotYetValid = "certificate_not_yet_valid",
    /// The record goes with another certificate than the one it carries.
    CertificateMismatch = "certificate_mismatch",
    /// The record is signed by, or names, another identity than its certificate.
    IdentityMismatch = "identity_mismatch",
    /// The record's name is not the certificate's.
    NameMismatch = "name_mismatch",
    /// A WireGuard key without the proof that its owner is this node.
    WgKeyUnproven = "wg_key_unproven",
    /// A prefix outside the certificate's grants.
    PrefixNotGranted = "prefix_not_granted",
    /// A mesh address that is not the one derived from the key, or not granted.
    AddressNotGranted = "address_not_granted",
    /// Not newer than what is held.
    OldVersion = "old_version",
    /// A report of somebody by a member that is not among those who watch it.
    ReportNotWatcher = "report_not_watcher",
    /// A report that goes with another start of the watched or of the watcher than the one that is known.
    ReportOutdated = "report_outdated",
    /// Dated before the record that is held, or so long ago that nothing may rise again.
    PastDate = "past_date",
    /// Dated further ahead than clocks may differ.
    ClockSkew = "clock_skew",
    /// An older certificate of a key that holds a newer one.
    SupersededCertificate = "superseded_certificate",
    /// The directory is full.
    DirectoryFull = "directory_full",
    /// SWIM: the packet names another sender than the connection.
    SwimSpoofedSource = "swim_spoofed_source",
    /// SWIM: a member without an admitted record.
    SwimUnknownMember = "swim_unknown_member",
    /// SWIM: a third party's word that a member is down; taken as a suspicion.
    SwimHearsayDown = "swim_hearsay_down",
    /// SWIM: a generation that the member itself did not sign.
    SwimGeneration = "swim_generation",
    /// SWIM: an incarnation beyond the limit.
    SwimIncarnation = "swim_incarnation",
    /// An endpoint that must not be dialled (not unicast, ours, loopback, inside the mesh).
    EndpointRefused = "endpoint_refused",
    /// Enrolment: no such token, or not for this mesh.
    TokenUnknown = "token_unknown",
    /// Enrolment: the token's time is over.
    TokenExpired = "token_expired",
    /// Enrolment: every use of the token is taken.
    TokenUsed = "token_used",
    /// Enrolment: the token was revoked, or a node that was admitted with it.
    TokenRevoked = "token_revoked",
    /// Enrolment: the token names another node.
    TokenName = "token_name",
    /// Enrolment: the name belongs to another identity.
    NameTaken = "name_taken",
    /// Enrolment: an asked prefix belongs to another identity.
    PrefixTaken = "prefix_taken",
    /// What a token or `init` was asked to grant cannot be granted.
    BadTerms = "bad_terms",
    /// Enrolment: the pool of mesh addresses is empty.
    PoolExhausted = "pool_exhausted",
    /// Enrolment: this host is no signer and reaches none.
    NoSigner = "no_signer",
    /// More than is allowed in a time.
    RateLimited = "rate_limited",
    /// Enrolment: the token admits by identity documents only, and none came.
    IdentityRequired = "identity_required",
    /// Identity document: not readable, or a claim is missing or of another type.
    IdentityMalformed = "identity_malformed",
    /// Identity document: signed by an algorithm that is not taken.
    IdentityAlgorithm = "identity_algorithm",
    /// Identity document: of another issuer, or of one that the signer does not know.
    IdentityIssuer = "identity_issuer",
    /// Identity document: its issuer has no such key.
    IdentityKeyUnknown = "identity_key_unknown",
    /// Identity document: its issuer's keys cannot be had.
    IdentityKeysUnavailable = "identity_keys_unavailable",
    /// Identity document: its signature does not verify.
    IdentitySignature = "identity_signature",
    /// Identity document: for another audience, or for another host's key.
    IdentityAudience = "identity_audience",
    /// Identity document: past its end, or older than is taken.
    IdentityExpired = "identity_expired",
    /// Identity document: not begun yet.
    IdentityNotYetValid = "identity_not_yet_valid",
    /// Identity document: no rule admits it.
    IdentityRule = "identity_rule",
    /// Identity document: it admits another name.
    IdentityName = "identity_name",
    /// Identity document: it, or its subject, has admitted another key.
    IdentityUsed = "identity_used",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_snake_case() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()));
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }
}
