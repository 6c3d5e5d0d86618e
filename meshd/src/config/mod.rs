//! The daemon's configuration: files, drop-ins and environment merged into one typed [`Config`].
//!
//! Responsible for where a value comes from, whether it is allowed, and what differs between two
//! configurations. Not for whether the host can do what is asked (that is `meshd check`), nor for
//! reading what files a value points to. The daemon's start, `meshd check` and the reload call it.
//!
//! Layers, later ones win: `/etc/meshd/meshd.toml`, `/etc/meshd/conf.d/*.toml` in the order of their
//! names, environment variables `MESHD_SECTION__KEY`. Every layer is checked in full, so that a
//! mistake is found even where a later layer hides it.

mod error;
mod given;
pub mod issuers;
mod layers;
mod parse;
mod schema;
mod sources;
mod texts;
mod types;

use std::{ffi::OsString, path::Path};

use meshd_proto::{NameError, NodeName};

pub use error::{ConfigError, ConfigErrors};
pub use schema::{
    Config, Control, Dns, Gossip, Metrics, Network, Node, Trust, WireGuard, documented_keys,
};
pub use sources::Sources;
pub use texts::{Origin, Texts};
pub use types::{
    Automatic, Backend, Encrypt, Expiry, InterfaceName, LeakProtection, Profile, Psk, RouteSource,
    Seed,
};

/// Where the configuration is read from unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";
/// Where drop-ins are read from unless told otherwise.
pub const DEFAULT_DROP_INS: &str = "/etc/meshd/conf.d";

/// A key whose value differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `section.key`.
    pub key: &'static str,
    /// The value now in force, as JSON.
    pub old: String,
    /// The value that was read, as JSON.
    pub new: String,
}

/// Where a key has its value from; `None`: it is the default.
type Place<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What a reload can do and what it cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Can be applied to a running daemon.
    pub live: Vec<Difference>,
    /// Take effect at the next start only.
    pub restart: Vec<Difference>,
}

impl Changes {
    /// True when nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

impl Config {
    /// Reads all layers. A file or directory that does not exist counts as empty.
    ///
    /// `environment` is usually [`std::env::vars_os`]; only `MESHD_SECTION__KEY` is looked at.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the layers.
    pub fn load(
        file: &Path,
        drop_ins: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        Texts::read(file, drop_ins, environment).1
    }

    /// Reads one text as if it were the only file, named `name` in errors.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_text(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let found = layers::from_text(name, text, &mut errors);
        Self::from_layers(found.as_slice(), errors)
    }

    /// Reads texts as if they were the file and its drop-ins, under an environment.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn from_texts(
        texts: &[&str],
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let texts = texts.iter().enumerate();
        let mut found: Vec<_> = texts
            .filter_map(|(i, text)| layers::from_text(&format!("{i}.toml"), text, &mut errors))
            .collect();
        found.extend(layers::from_environment(environment, &mut errors));
        Self::from_layers(&found, errors)
    }

    fn from_layers(
        found: &[layers::Layer],
        mut errors: Vec<ConfigError>,
    ) -> Result<Self, ConfigErrors> {
        for layer in found {
            // The values of a single layer are only checked here; the merged ones count below.
            Self::default().read(&layer.values, &mut errors);
        }
        let mut config = Self::default();
        if errors.is_empty() {
            match layers::merge(found) {
                Ok(values) => config.read(&values, &mut errors),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            config.check_together(&|key| layers::place_of(found, key), &mut errors);
        }
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// Rules that no value breaks by itself.
    fn check_together(&self, place: Place<'_>, errors: &mut Vec<ConfigError>) {
        let gossip = self.gossip.listen.port();
        let lanes = [self.wireguard.port, self.wireguard.port.saturating_add(1)];
        if lanes.contains(&gossip) {
            errors.push(ConfigError::Conflict {
                place: place("gossip.listen")
                    .or_else(|| place("wireguard.port"))
                    .unwrap_or_default(),
                key: "gossip.listen",
                value: self.gossip.listen.to_string(),
                why: format!(
                    "WireGuard uses UDP ports {} and {} (wireguard.port and the one above it)",
                    lanes[0], lanes[1]
                ),
                fix: "give gossip.listen or wireguard.port another port".to_owned(),
            });
        }
        self.check_gateways(place, errors);
    }

    fn check_gateways(&self, place: Place<'_>, errors: &mut Vec<ConfigError>) {
        let node = &self.node;
        let names: Vec<&str> = node.gateways.iter().map(NodeName::as_str).collect();
        let mut conflict = |key: &'static str, value: String, why: &str, fix: &str| {
            let (why, fix) = (why.to_owned(), fix.to_owned());
            errors.push(ConfigError::Conflict {
                place: place(key).unwrap_or_default(),
                key,
                value,
                why,
                fix,
            });
        };
        let zoned = !node.zone.as_str().is_empty();
        if !names.is_empty() && !zoned {
            let why = "gateways are of the same zone, and node.zone is empty";
            conflict("node.gateways", names.join(", "), why, "set node.zone, here and at them");
        }
        if node.gateway && !zoned {
            let why = "a gateway carries for its zone, and node.zone is empty";
            conflict("node.gateway", "true".to_owned(), why, "set node.zone, here and behind it");
        }
        if node.gateway && !names.is_empty() {
            let why = "a gateway is reached directly: node.gateway is true";
            conflict("node.gateways", names.join(", "), why, "take one of the two out");
        }
        if node.name.as_ref().is_some_and(|own| node.gateways.contains(own)) {
            let why = "it names this host itself";
            conflict("node.gateways", names.join(", "), why, "name other members");
        }
    }

    /// The name this host goes by: the configured one, or else the host's own in lower case.
    ///
    /// # Errors
    /// When the host's name cannot be a node's name; `node.name` has to be set then.
    pub fn node_name(&self, host_name: &str) -> Result<NodeName, NameError> {
        match &self.node.name {
            Some(name) => Ok(name.clone()),
            None => host_name.trim_end_matches('.').to_ascii_lowercase().parse(),
        }
    }
}

#[cfg(test)]
mod tests;
