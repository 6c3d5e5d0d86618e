//! Issuers of identity documents: a file each in `issuers.d`, beside `conf.d`.
//!
//! They are no section of the configuration: an issuer is a list of rules, which neither drop-ins nor the
//! environment could change piece by piece, and only signers have any. Responsible for what may stand in such a
//! file. What a document must be then, `meshd_core::trust::issuer` decides; keys are read by `crate::jwks`.

mod reader;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use hyper::Uri;
use meshd_core::trust::issuer::{Binding, IssuerTerms, mesh_audience};
use meshd_proto::MeshId;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use self::reader::Reader;
use super::{
    error::{ConfigError, ConfigErrors},
    layers::{LARGEST_FILE, clean, drop_in_files, unreadable},
};
use crate::trusted;

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
    /// SHA-256 of the file, for the log.
    pub digest: [u8; 32],
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

/// The issuers of a directory: those that can be used, and what is wrong with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// By name.
    pub files: Vec<IssuerFile>,
    /// The files that admit nobody, by name, with what is wrong with each. The directory itself may be one.
    pub refused: Vec<(String, ConfigErrors)>,
}

impl Loaded {
    fn refuse(&mut self, name: impl Into<String>, error: ConfigError) {
        self.refused.push((name.into(), ConfigErrors(vec![error])));
    }
}

/// Reads every issuer of a directory. One that does not exist holds none. A file that is wrong keeps out nobody whom
/// another file admits.
#[must_use]
pub fn load(directory: &Path) -> Loaded {
    let mut loaded = Loaded::default();
    let paths = drop_in_files(directory).unwrap_or_else(|error| {
        loaded.refuse("issuers.d", unreadable(directory, &error));
        Vec::new()
    });
    if paths.len() > MOST {
        let why = io::Error::other(format!(
            "it holds more than {MOST} issuers, and only the first of them count"
        ));
        loaded.refuse("issuers.d", unreadable(directory, &why));
    }
    for path in paths.into_iter().take(MOST) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match read_file(&path) {
            Ok(Some(text)) => {
                let mut errors = Vec::new();
                loaded.files.extend(read(&path.display().to_string(), &name, &text, &mut errors));
                if !errors.is_empty() {
                    loaded.refused.push((clean(&name, 80), ConfigErrors(errors)));
                }
            }
            Ok(None) => {}
            Err(error) => loaded.refuse(clean(&name, 80), unreadable(&path, &error)),
        }
    }
    loaded
}

/// Who can write it can let anybody in.
fn read_file(path: &Path) -> io::Result<Option<String>> {
    let bytes = match trusted::read(path, LARGEST_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("it is not UTF-8 text"))
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
    workloads: Vec<String>,
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
    let digest = Sha256::digest(text.as_bytes()).into();
    let mut reader = Reader { place, digest, errors, failed: false };
    let issuer = reader.issuer(name, given);
    if reader.failed { None } else { issuer }
}

#[cfg(test)]
mod tests;
