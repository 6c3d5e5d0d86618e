//! Issuers of identity documents: a file each in `issuers.d`, beside `conf.d`.
//!
//! They are no section of the configuration: an issuer is a list of rules, which neither drop-ins nor the
//! environment could change piece by piece, and only signers have any. Responsible for what may stand in such a
//! file. What a document must be then, `meshd_core::trust::issuer` decides; keys are read by `crate::jwks`.

mod reader;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hyper::Uri;
use meshd_core::trust::issuer::{Binding, IssuerTerms, mesh_audience};
use meshd_proto::MeshId;
use serde::Deserialize;

use self::reader::Reader;
use super::{
    error::{ConfigError, ConfigErrors},
    layers::{clean, drop_in_files, read_bounded, unreadable},
};

/// Issuers, and rules of one.
const MOST: usize = 64;

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file on this host.
    File(PathBuf),
    /// An address that serves them, and who vouches for it: a file of certificates, or the system's.
    Url {
        /// `https://…`.
        url: Uri,
        /// PEM.
        ca_file: Option<PathBuf>,
    },
}

/// An issuer as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerFile {
    terms: IssuerTerms,
    /// Where its keys are.
    pub keys: KeySource,
}

impl IssuerFile {
    /// Its name: the file's, without `.toml`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.terms.name
    }

    /// How many rules it has.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.terms.rules.len()
    }

    /// What documents of it must be in a mesh.
    #[must_use]
    pub fn terms(&self, mesh: &MeshId) -> IssuerTerms {
        let mut terms = self.terms.clone();
        if let Binding::FirstUse { audience } = &mut terms.binding
            && audience.is_empty()
        {
            *audience = mesh_audience(mesh);
        }
        terms
    }
}

/// Reads every issuer of a directory. One that does not exist holds none.
///
/// # Errors
/// Everything that is wrong.
pub fn load(directory: &Path) -> Result<Vec<IssuerFile>, ConfigErrors> {
    let mut errors = Vec::new();
    let mut found = Vec::new();
    let paths = drop_in_files(directory).unwrap_or_else(|error| {
        errors.push(unreadable(directory, &error));
        Vec::new()
    });
    if paths.len() > MOST {
        let why = std::io::Error::other(format!("it holds more than {MOST} issuers"));
        return Err(ConfigErrors(vec![unreadable(directory, &why)]));
    }
    for path in paths {
        match read_bounded(&path) {
            Ok(Some(text)) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                found.extend(read(&path.display().to_string(), &name, &text, &mut errors));
            }
            Ok(None) => {}
            Err(error) => errors.push(unreadable(&path, &error)),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(ConfigErrors(errors)) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenIssuer {
    issuer: String,
    jwks_file: Option<PathBuf>,
    jwks_url: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default = "by_key")]
    binding: String,
    audience: Option<String>,
    algorithms: Option<Vec<String>>,
    #[serde(default = "an_hour")]
    max_age: String,
    #[serde(default)]
    rule: Vec<GivenRule>,
}

fn by_key() -> String {
    "key".to_owned()
}

fn an_hour() -> String {
    "1h".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenRule {
    name: Option<String>,
    node_name: Option<String>,
    node_name_prefix: Option<String>,
    #[serde(default = "the_subject")]
    subject: String,
    #[serde(default = "yes")]
    once: bool,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    claims: BTreeMap<String, GivenClaim>,
}

fn the_subject() -> String {
    "{/sub}".to_owned()
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a claim is text, a whole number, true or false, { prefix = \"…\" }, or a list of those"
)]
enum GivenClaim {
    Any(Vec<GivenValue>),
    One(GivenValue),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum GivenValue {
    Text(String),
    Number(i64),
    Bool(bool),
    Prefix(GivenPrefix),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenPrefix {
    prefix: String,
}

/// One file; `None` when it cannot be used, and `errors` says why.
fn read(place: &str, name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<IssuerFile> {
    let given: GivenIssuer = match toml::from_str(text) {
        Ok(given) => given,
        Err(error) => {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(text));
            let line = before.matches('\n').count() + 1;
            let why = clean(&format!("line {line}: {}", error.message()), 300);
            errors.push(ConfigError::Unreadable { path: place.into(), why });
            return None;
        }
    };
    let mut reader = Reader { place, errors, failed: false };
    let issuer = reader.issuer(name, given);
    if reader.failed { None } else { issuer }
}

#[cfg(test)]
mod tests;
