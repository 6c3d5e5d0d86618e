//! `cert issue`: the key is made here and never leaves this directory; the signer sees its public half.

use std::{
    io::Write as _,
    path::Path,
    time::{Duration, SystemTime},
};

use meshd_core::{
    now::UnixTime,
    trust::{
        Anchors, IdentityFile, IdentityKey, NodeCertificate, build_issue_request, identity_files,
        identity_key_file,
    },
};
use meshd_proto::{
    NodeKey, NodeName,
    control::{IssueCertificateReply, IssueCertificateRequest, ShowCertificatesRequest},
    wire::SignedBundle,
};
use prost::Message as _;
use zeroize::Zeroizing;

use super::{files::OutDir, show};
use crate::{
    cli::CertIssue,
    commands::list,
    connection::{CHANGE, Client, connect},
    failure::Failure,
    output::Output,
    shown::{IssuedView, ShownView},
};

const WHAT: &str = "cannot issue a certificate";

/// Seconds since 1970, by this host's clock.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or(Duration::ZERO).as_secs();
    UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX))
}

pub(super) async fn run(
    socket: &Path,
    output: Output,
    arguments: CertIssue,
) -> Result<(), Failure> {
    let before = match &arguments.certificate {
        Some(file) => Some(node_certificate(file)?),
        None => None,
    };
    let mut client = connect(socket, Some(CHANGE)).await?;
    let mut out = OutDir::make(&arguments.out)?;
    let issued = match &before {
        Some(before) => next(&mut client, &arguments, before).await,
        None => first(&mut client, &arguments, &mut out).await,
    };
    let (reply, key) = match issued {
        Ok(issued) => issued,
        Err(failure) => {
            out.discard()?;
            return Err(failure);
        }
    };
    let written = finish(&reply, before.as_ref(), key.as_ref(), &mut out);
    let (certificate, files) = match written {
        Ok(written) => written,
        Err(failure) => {
            out.discard()?;
            return Err(match &arguments.name {
                Some(name) => failure.and(&taken(name)),
                None => failure,
            });
        }
    };
    let shown = ShownView::of(&certificate.der, now(), None).map_err(|error| misread(&error))?;
    let view = IssuedView { out: out.path().display().to_string(), files, shown };
    print(output, &view, key.is_some())
}

/// Writes what goes with the key; the certificate last.
fn finish(
    reply: &IssueCertificateReply,
    before: Option<&NodeCertificate>,
    key: Option<&IdentityKey>,
    out: &mut OutDir,
) -> Result<(NodeCertificate, Vec<String>), Failure> {
    let (anchors, certificate) = believe(reply, before, key)?;
    let mut names = Vec::new();
    for (file, content) in identity_files(key, &anchors, &certificate, &reply.seeds) {
        // The key is there already.
        if file != IdentityFile::Key {
            out.write(file, &content)?;
        }
        names.push(file.name().to_owned());
    }
    out.finish()?;
    Ok((certificate, names))
}

/// For a key that is made here, and on disk before anybody is asked.
async fn first(
    client: &mut Client,
    arguments: &CertIssue,
    out: &mut OutDir,
) -> Result<(IssueCertificateReply, Option<IdentityKey>), Failure> {
    let name: NodeName = arguments.name.as_deref().unwrap_or_default().parse().map_err(
        |error: meshd_proto::NameError| Failure::local(WHAT, error, "give another --name"),
    )?;
    let shown = client.show_certificates(ShowCertificatesRequest {}).await?.into_inner();
    let anchors = Anchors::from_root(&shown.root).map_err(|error| misread(&error))?;
    let key = IdentityKey::from_seed(&Zeroizing::new(rand::random()));
    out.write(IdentityFile::Key, &identity_key_file(&key))?;
    let request = build_issue_request(&key, anchors.mesh_id(), &name, rand::random(), now());
    let request = IssueCertificateRequest {
        request: request.encode_to_vec(),
        certificate: Vec::new(),
        prefixes: arguments.prefixes.clone(),
        allow: arguments.allow.clone(),
        workloads: arguments.workloads.clone(),
        groups: arguments.groups.clone(),
        seeds: arguments.seeds.clone(),
        ttl_seconds: arguments.ttl.as_secs(),
    };
    let reply = client.issue_certificate(request).await?.into_inner();
    Ok((reply, Some(key)))
}

/// For the key of a certificate that is there.
async fn next(
    client: &mut Client,
    arguments: &CertIssue,
    before: &NodeCertificate,
) -> Result<(IssueCertificateReply, Option<IdentityKey>), Failure> {
    let request = IssueCertificateRequest {
        certificate: before.der.to_vec(),
        seeds: arguments.seeds.clone(),
        ttl_seconds: arguments.ttl.as_secs(),
        ..IssueCertificateRequest::default()
    };
    Ok((client.issue_certificate(request).await?.into_inner(), None))
}

/// The answer must be for this key, and hold together. The signatures of the chain are verified where it counts, by
/// the node: it is the daemon's library for that which makes programs large.
fn believe(
    reply: &IssueCertificateReply,
    before: Option<&NodeCertificate>,
    key: Option<&IdentityKey>,
) -> Result<(Anchors, NodeCertificate), Failure> {
    let mut anchors = Anchors::from_root(&reply.root).map_err(|error| misread(&error))?;
    let bundle = SignedBundle::decode(&reply.bundle[..]).map_err(|error| misread(&error))?;
    anchors.install_bundle(&bundle).map_err(|error| misread(&error))?;
    let certificate =
        NodeCertificate::parse(&reply.certificate).map_err(|error| misread(&error))?;
    let asked: Option<NodeKey> =
        before.map(|before| before.key).or_else(|| key.map(IdentityKey::public));
    if asked != Some(certificate.key) {
        return Err(misread(&"the certificate is for another key"));
    }
    if certificate.mesh_id != *anchors.mesh_id() || anchors.issuer_of(&certificate).is_none() {
        return Err(misread(&"the certificate is of another mesh than the root"));
    }
    Ok((anchors, certificate))
}

fn misread(error: &impl std::fmt::Display) -> Failure {
    let why = format!("the daemon's answer is not usable: {error}");
    Failure::local(WHAT, why, "use meshctl and meshd of one version")
}

fn taken(name: &str) -> String {
    format!(
        "the signer has given the name {name} away all the same: `meshctl node revoke {name}` frees it"
    )
}

fn node_certificate(file: &Path) -> Result<NodeCertificate, Failure> {
    let der = show::read(file)?.into_iter().next().unwrap_or_default();
    NodeCertificate::parse(&der).map_err(|error| {
        let what = format!("cannot use {}", file.display());
        Failure::local(what, error.detail, "give the node.crt of the node")
    })
}

fn print(output: Output, view: &IssuedView, with_key: bool) -> Result<(), Failure> {
    output.print(view, |_, to| {
        let shown = &view.shown;
        let node = shown.node.as_deref().unwrap_or_default();
        let what = if with_key { "a certificate" } else { "its next certificate" };
        writeln!(to, "{node} was issued {what}, valid until {}", shown.not_after)?;
        writeln!(to, "  grants     {}", list(&shown.grants))?;
        writeln!(to, "  addresses  {}", list(&shown.mesh_addresses))?;
        writeln!(to, "  files      {}: {}", view.out, list(&view.files))?;
        if with_key {
            writeln!(to, "  identity.key is a secret: whoever has it is {node}")?;
        }
        writeln!(
            to,
            "next: copy them to /etc/meshd/identity/ on {node}, owned by root; meshd takes them over by itself"
        )
    })
}
