//! The files of an identity that was issued off-line: what is in them, and whether they belong together.
//!
//! ```text
//! identity.key   Ed25519 seed of the node's identity (hex), as the state directory has it
//! root.crt       the mesh's root certificate (PEM)
//! bundle         the intermediates in force, as the root signed them (text, as PEM)
//! seeds          where to ask first, a HOST:PORT per line
//! node.crt       the node's certificate (PEM); written last
//! ```
//! Somebody else copies them, one after the other, perhaps on top of older ones. So a set counts only when all
//! fit one another: until then it is said which file does not, why, and what to do.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use meshd_proto::wire::SignedBundle;
use prost::Message;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
    trust::{anchors::Anchors, pem, record::NodeCertificate, secret::IdentityKey, token::is_seed},
};

/// The label of the bundle's section.
const BUNDLE: &str = "MESHD BUNDLE";
const ISSUE: &str =
    "copy all files of one `meshctl cert issue --out DIR` again, or issue them anew";

/// One of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdentityFile {
    /// The private key.
    Key,
    /// The mesh's root.
    Root,
    /// The intermediates.
    Bundle,
    /// Where to ask first.
    Seeds,
    /// The node's certificate.
    Certificate,
}

impl IdentityFile {
    /// All, in the order in which they are written.
    pub const ALL: [Self; 5] =
        [Self::Key, Self::Root, Self::Bundle, Self::Seeds, Self::Certificate];

    /// Its name in the directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "identity.key",
            Self::Root => "root.crt",
            Self::Bundle => "bundle",
            Self::Seeds => "seeds",
            Self::Certificate => "node.crt",
        }
    }
}

/// Contents of the files that are there.
pub type IdentityFiles = BTreeMap<IdentityFile, Zeroizing<Vec<u8>>>;

/// Why files do not make an identity. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {why}; {fix}", file.name())]
pub struct Misfit {
    /// Which one.
    pub file: IdentityFile,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
    /// It is a matter of this host's clock: the same files may do later.
    pub clock: bool,
}

impl Misfit {
    /// One that new files mend.
    pub fn new(file: IdentityFile, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { file, why: why.into(), fix: fix.into(), clock: false }
    }
}

/// A node's identity with all that it needs to find and know its mesh.
#[derive(Debug, Clone)]
pub struct IssuedIdentity {
    /// The node's key.
    pub identity: IdentityKey,
    /// The mesh's root and its intermediates.
    pub anchors: Anchors,
    /// The node's certificate.
    pub certificate: NodeCertificate,
    /// Where to ask first, as `HOST:PORT`.
    pub seeds: Vec<String>,
}

impl IssuedIdentity {
    /// Reads all files. By `now` the certificate must be in date.
    pub fn read(files: &IdentityFiles, now: UnixTime) -> Result<Self, Misfit> {
        let identity = read_key(content(files, IdentityFile::Key)?)?;
        let certificate = read_certificate(files)?;
        if identity.public() != certificate.key {
            return Err(misfit(IdentityFile::Key, "it is another key than that of node.crt"));
        }
        let anchors = read_anchors(files)?;
        let chained = anchors.check_chain(&certificate.der, None);
        chained.map_err(|refusal| unchained(&refusal))?;
        check_dates(&certificate, now)?;
        let seeds = read_seeds(content(files, IdentityFile::Seeds)?)?;
        Ok(Self { identity, anchors, certificate, seeds })
    }
}

/// The files of an identity, in the order in which they are to be written. Without `key`: for a node that has it.
#[must_use]
pub fn identity_files(
    key: Option<&IdentityKey>,
    anchors: &Anchors,
    certificate: &NodeCertificate,
    seeds: &[String],
) -> Vec<(IdentityFile, Zeroizing<Vec<u8>>)> {
    let text = |text: String| Some(Zeroizing::new(text.into_bytes()));
    let content = |file: IdentityFile| match file {
        IdentityFile::Key => key.map(identity_key_file),
        IdentityFile::Root => text(pem::encode(anchors.root_der())),
        IdentityFile::Bundle => {
            text(pem::encode_as(BUNDLE, &anchors.signed_bundle().encode_to_vec()))
        }
        IdentityFile::Seeds => text(seeds.iter().map(|seed| format!("{seed}\n")).collect()),
        IdentityFile::Certificate => text(pem::encode(&certificate.der)),
    };
    IdentityFile::ALL.into_iter().filter_map(|file| Some((file, content(file)?))).collect()
}

/// The certificate alone: all that a member wants to know first.
pub fn read_certificate(files: &IdentityFiles) -> Result<NodeCertificate, Misfit> {
    let file = IdentityFile::Certificate;
    let der = pem::decode(content(files, file)?).map_err(|why| misfit(file, why))?;
    NodeCertificate::parse(&der).map_err(|refusal| misfit(file, refusal.detail))
}

/// The bundle alone, not verified; `None` when there is no such file.
pub fn read_bundle(files: &IdentityFiles) -> Result<Option<SignedBundle>, Misfit> {
    let file = IdentityFile::Bundle;
    let Some(text) = files.get(&file) else { return Ok(None) };
    let sections = pem::decode_as(BUNDLE, text).map_err(|why| misfit(file, why))?;
    let [bytes] = sections.as_slice() else {
        return Err(misfit(file, format!("it is not one section {BUNDLE}")));
    };
    let bundle = SignedBundle::decode(bytes.as_slice());
    bundle.map(Some).map_err(|_| misfit(file, "its content is not decodable"))
}

fn content(files: &IdentityFiles, file: IdentityFile) -> Result<&[u8], Misfit> {
    files.get(&file).map(|bytes| bytes.as_slice()).ok_or_else(|| {
        Misfit::new(file, "it is missing", "copy it there; `meshctl cert issue --out DIR` makes it")
    })
}

fn misfit(file: IdentityFile, why: impl Into<String>) -> Misfit {
    Misfit::new(file, why, ISSUE)
}

/// The file of a key.
#[must_use]
pub fn identity_key_file(key: &IdentityKey) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(HEX.encode(&*key.seed()).into_bytes());
    text.push(b'\n');
    text
}

fn read_key(text: &[u8]) -> Result<IdentityKey, Misfit> {
    let wrong = || misfit(IdentityFile::Key, "it is not 64 hexadecimal digits");
    let bytes = HEX.decode(text.trim_ascii()).map(Zeroizing::new).map_err(|_| wrong())?;
    let seed = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| wrong())?;
    Ok(IdentityKey::from_seed(&seed))
}

fn read_anchors(files: &IdentityFiles) -> Result<Anchors, Misfit> {
    let file = IdentityFile::Root;
    let der = pem::decode(content(files, file)?).map_err(|why| misfit(file, why))?;
    let mut anchors = Anchors::from_root(&der).map_err(|refusal| misfit(file, refusal.detail))?;
    let file = IdentityFile::Bundle;
    content(files, file)?;
    if let Some(bundle) = read_bundle(files)? {
        anchors.install_bundle(&bundle).map_err(|refusal| misfit(file, refusal.detail))?;
    }
    Ok(anchors)
}

fn unchained(refusal: &Refusal) -> Misfit {
    let file = match refusal.code {
        Code::UnknownIssuer => IdentityFile::Bundle,
        _ => IdentityFile::Certificate,
    };
    misfit(file, refusal.detail.clone())
}

fn check_dates(certificate: &NodeCertificate, now: UnixTime) -> Result<(), Misfit> {
    let shown = |at: UnixTime| at.rfc3339().unwrap_or_default();
    let why = if now < certificate.not_before {
        format!("the certificate begins on {}", shown(certificate.not_before))
    } else if now > certificate.not_after {
        format!("the certificate ended on {}", shown(certificate.not_after))
    } else {
        return Ok(());
    };
    Err(Misfit {
        file: IdentityFile::Certificate,
        why: format!("{why}, and this host's clock says {}", shown(now)),
        fix: "set the clock; or issue the next certificate with `meshctl cert issue --certificate FILE`"
            .to_owned(),
        clock: true,
    })
}

fn read_seeds(text: &[u8]) -> Result<Vec<String>, Misfit> {
    let file = IdentityFile::Seeds;
    let text = std::str::from_utf8(text).map_err(|_| misfit(file, "it is not text"))?;
    if !text.is_empty() && !text.ends_with('\n') {
        // Half a port is a port.
        return Err(misfit(file, "it is cut off: its last line does not end"));
    }
    let seeds: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if seeds.len() > limits::TOKEN_SEEDS || !seeds.iter().all(|seed| is_seed(seed)) {
        let why = format!("it is not a HOST:PORT per line, at most {}", limits::TOKEN_SEEDS);
        return Err(Misfit::new(file, why, "correct it"));
    }
    Ok(seeds)
}
