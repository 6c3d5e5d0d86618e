//! Keys and identifiers of fixed length.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A key or identifier that has the wrong length or alphabet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} must be {want} bytes, got {got}")]
pub struct KeyError {
    /// What was being read.
    pub kind: &'static str,
    /// Bytes it must have.
    pub want: usize,
    /// Bytes it had; 0 when the text was not in the right alphabet.
    pub got: usize,
}

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal, $encoding:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = KeyError;
            fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
                bytes.try_into().map(Self).map_err(|_| KeyError {
                    kind: $kind,
                    want: $len,
                    got: bytes.len(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encoding.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                let wrong = KeyError { kind: $kind, want: $len, got: 0 };
                let bytes = $encoding.decode(text.as_bytes()).map_err(|_| wrong)?;
                Self::try_from(bytes.as_slice())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
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

/// RFC 4648 base32, lower case, no padding: can be read aloud, and selected with a double click.
static BASE32_LOWER: std::sync::LazyLock<data_encoding::Encoding> =
    std::sync::LazyLock::new(|| {
        let mut spec = data_encoding::Specification::new();
        spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        // The specification is a constant that the tests below read and write with.
        #[allow(clippy::unwrap_used)]
        spec.encoding().unwrap()
    });

fixed_bytes!(
    /// The 16 random bytes that name a mesh for its whole life.
    MeshId,
    16,
    "mesh id",
    data_encoding::HEXLOWER
);
fixed_bytes!(
    /// A node's identity: its Ed25519 public key.
    NodeKey,
    32,
    "identity key",
    BASE32_LOWER
);
fixed_bytes!(
    /// First 16 bytes of SHA-256 of a [`NodeKey`]: how SWIM packets name a node.
    NodeHash,
    16,
    "node hash",
    data_encoding::HEXLOWER
);
fixed_bytes!(
    /// The 16 random bytes of one start of a daemon.
    BootId,
    16,
    "boot id",
    data_encoding::HEXLOWER
);
fixed_bytes!(
    /// A WireGuard (X25519) public key, written as `wg` writes it.
    WgPublicKey,
    32,
    "WireGuard public key",
    data_encoding::BASE64
);

impl NodeKey {
    /// How SWIM packets name this node.
    #[must_use]
    pub fn hash(&self) -> NodeHash {
        let digest = Sha256::digest(self.0);
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        NodeHash(short)
    }

    /// The first four characters, for telling two holders of one name apart.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(4).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_read_back() {
        let key = NodeKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 52);
        let wg = WgPublicKey([9; 32]);
        assert_eq!(wg.to_string().parse(), Ok(wg));
        assert_eq!(wg.to_string().len(), 44);
    }

    #[test]
    fn a_wrong_length_is_named() {
        let error = MeshId::try_from(&[1, 2, 3][..]).unwrap_err();
        assert_eq!(error.to_string(), "mesh id must be 16 bytes, got 3");
        assert!("zz".parse::<MeshId>().is_err());
    }
}
