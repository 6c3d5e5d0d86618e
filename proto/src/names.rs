//! Names that people give, restricted so that logs, metrics and terminals cannot be injected.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} {given:?} is not valid; {rule}")]
pub struct NameError {
    /// What was being named.
    pub kind: &'static str,
    /// The text, shortened to 80 characters and escaped when shown.
    pub given: String,
    /// What is allowed.
    pub rule: &'static str,
}

fn error(kind: &'static str, given: &str, rule: &'static str) -> NameError {
    NameError { kind, given: given.chars().take(80).collect(), rule }
}

/// Lower-case labels of RFC 1123 joined by dots, at most `max` bytes.
fn is_dns_name(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(error($kind, text, $rule))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A node's name: what `meshctl` shows and takes.
    NodeName,
    "node name",
    "use lower-case letters, digits, '-' and '.', at most 128 characters",
    |text| is_dns_name(text, 128)
);
name!(
    /// A mesh's name: the trust domain of its SPIFFE ids.
    MeshName,
    "mesh name",
    "use lower-case letters, digits, '-' and '.', at most 63 characters",
    |text| is_dns_name(text, 63)
);
name!(
    /// A zone: free text within what a terminal shows safely; empty means none.
    #[derive(Default)]
    Zone,
    "zone",
    "use letters, digits and any of - _ . : /, at most 64 characters",
    |text| text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b))
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mislead_are_refused() {
        for bad in ["", "-a", "a-", "a..b", "A", "a b", "a\u{1b}[31m", "a\n", "ä", &"a".repeat(64)]
        {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        for good in ["a", "db-1", "node-1.example.net", "7"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        assert!("aws-eu-west-1".parse::<Zone>().is_ok());
        assert!("".parse::<Zone>().is_ok());
        assert!("a b".parse::<Zone>().is_err());
    }

    #[test]
    fn the_error_names_the_rule_and_cannot_inject() {
        let text = "x\u{1b}[2J".parse::<NodeName>().unwrap_err().to_string();
        assert!(text.contains("lower-case"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
