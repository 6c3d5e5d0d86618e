//! The types of single values. Words that the design plans and this version does not have are no
//! variants here; `parse` names them as not built.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::Serialize;

/// Found by the daemon, or given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Automatic<T> {
    /// `"auto"`.
    Auto,
    /// What was given.
    Given(T),
}

impl<T: Serialize> Serialize for Automatic<T> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Given(value) => value.serialize(to),
        }
    }
}

/// The timing of SWIM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Round trips of up to 500 ms.
    Lan,
    /// Slower and lossier.
    Wan,
}

/// Who does the WireGuard part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel if it can, else userspace.
    Auto,
    /// The kernel's module only.
    Kernel,
    /// A userspace program in a unit of its own.
    Userspace,
}

/// Post-quantum pre-shared keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Psk {
    /// None.
    Off,
}

/// What goes through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encrypt {
    /// Pod prefixes and mesh addresses.
    Pods,
    /// Those, and the hosts' own addresses.
    #[serde(rename = "pods+nodes")]
    PodsAndNodes,
}

/// What is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteSource {
    /// Whole prefixes.
    Prefixes,
    /// Whole prefixes, and each workload that has a route of its own on this host.
    Workloads,
}

/// Whether mesh prefixes may ever leave in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LeakProtection {
    /// Hosts that are no members are reached as before.
    Off,
    /// What belongs to members goes through the mesh or not at all.
    Strict,
}

/// How final a certificate's date is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    /// Without a signer nothing is cut.
    Soft,
    /// The certificate's date is final.
    Hard,
}

/// The name of a network interface: 1 to 15 letters, digits and any of `_`, `-`, `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let sound = (1..=15).contains(&text.len())
            && !matches!(text, "." | ".." | "lo" | "all" | "default")
            // It is an argument of other programs.
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if sound { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A member to ask first: an address, or a DNS name that the daemon resolves each time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seed {
    /// `10.0.0.1:51800` or `[fd00::1]:51800`.
    Address(SocketAddr),
    /// `seed.example.net:51800`.
    Name {
        /// The host's name.
        host: String,
        /// The UDP port.
        port: u16,
    },
}

impl FromStr for Seed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err("port 0 cannot be reached")
            } else {
                Ok(Self::Address(address))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        if host.contains([':', '[', ']']) {
            return Err("an IPv6 address is written [ADDRESS]:PORT");
        }
        let port: u16 = port.parse().map_err(|_| "the port is not a number from 1 to 65535")?;
        if port == 0 {
            return Err("port 0 cannot be reached");
        }
        let name = host.trim_end_matches('.');
        let sound = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            });
        // All digits and dots would be a mistyped address that no DNS server knows.
        if !sound || name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err("it is neither an address nor a DNS name");
        }
        Ok(Self::Name { host: name.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Serialize for Seed {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
