//! `cert show`: what certificates say. Of a file without any daemon.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use meshd_core::trust::pem;
use meshd_proto::control::ShowCertificatesRequest;

use super::issue::now;
use crate::{
    commands::list,
    connection::{LOOK, connect},
    failure::Failure,
    output::Output,
    shown::ShownView,
    table::{Paint, Tone},
    text::{age, known},
};

/// Certificates are below 32 KiB each.
const LARGEST: u64 = 1 << 20;

/// This node's certificate, its issuer's and the root's.
pub(super) async fn own(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.show_certificates(ShowCertificatesRequest {}).await?.into_inner();
    let mut shown = Vec::new();
    for (der, renewal) in [
        (&reply.certificate, reply.renewal_at.as_deref()),
        (&reply.issuer, None),
        (&reply.root, None),
    ] {
        if der.is_empty() {
            continue;
        }
        let view = ShownView::of(der, now(), renewal.and_then(known)).map_err(|error| {
            let fix = "use meshctl and meshd of one version";
            Failure::local("cannot show what the daemon answered", error.detail, fix)
        })?;
        shown.push(view);
    }
    print(output, &shown)
}

/// Those in a file, PEM or DER; `-` is stdin.
pub(super) fn file(output: Output, path: &Path) -> Result<(), Failure> {
    let all = read(path)?;
    let count = all.len();
    let mut shown = Vec::new();
    for (index, der) in all.iter().enumerate() {
        let view = ShownView::of(der, now(), None).map_err(|error| {
            let which = if count > 1 {
                format!("certificate {} of {count} in {}", index + 1, path.display())
            } else {
                path.display().to_string()
            };
            let what = format!("cannot show {which}");
            Failure::local(what, error.detail, "give a certificate that a mesh of meshd has made")
        })?;
        shown.push(view);
    }
    print(output, &shown)
}

/// The certificates in a file, DER; at least one.
pub(super) fn read(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let failed = |why: &dyn std::fmt::Display, fix: &str| {
        Failure::local(format!("cannot read {}", path.display()), why, fix)
    };
    let bytes = if path.as_os_str() == "-" {
        bounded(io::stdin().lock())
    } else {
        File::open(path).and_then(bounded)
    };
    let bytes = bytes.map_err(|error| failed(&error, "give the file of a certificate"))?;
    let is_pem = bytes.windows(10).any(|window| window == b"-----BEGIN");
    if bytes.is_empty() {
        return Err(failed(&"it is empty", "give the file of a certificate"));
    }
    if !is_pem {
        return Ok(vec![bytes]);
    }
    let all = pem::decode_all(&bytes).map_err(|why| failed(&why, "copy the whole file"))?;
    if all.is_empty() {
        let why = "it holds no certificate (BEGIN CERTIFICATE)";
        return Err(failed(&why, "give the file of a certificate"));
    }
    Ok(all)
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB, so no certificate"));
    }
    Ok(bytes)
}

fn print(output: Output, all: &[ShownView]) -> Result<(), Failure> {
    output.print(&all, |paint, to| {
        for (index, shown) in all.iter().enumerate() {
            if index > 0 {
                writeln!(to)?;
            }
            print_one(shown, paint, to)?;
        }
        Ok(())
    })
}

fn print_one(shown: &ShownView, paint: Paint, to: &mut impl Write) -> io::Result<()> {
    let mesh = shown.mesh.as_deref().unwrap_or("no mesh");
    let title = match (&shown.node, shown.kind) {
        (Some(node), _) => format!("node certificate of {node} in mesh {mesh}"),
        (None, kind) => format!("{kind} certificate of mesh {mesh}"),
    };
    writeln!(to, "{}", paint.apply(Tone::Strong, &title))?;
    let mut line = |label: &str, text: &str| {
        writeln!(to, "  {}{text}", paint.apply(Tone::Faint, &format!("{label:<15}")))
    };
    line("subject", &shown.subject)?;
    line("issuer", &shown.issuer)?;
    line("serial", &shown.serial)?;
    if let Some(mesh_id) = &shown.mesh_id {
        line("mesh id", mesh_id)?;
    }
    match (&shown.id, &shown.spiffe_id) {
        (Some(id), Some(spiffe_id)) => {
            line("node id", id)?;
            line("SPIFFE id", spiffe_id)?;
        }
        _ => line("public key", &shown.public_key)?,
    }
    let tone = if shown.state == "valid" { Tone::Good } else { Tone::Bad };
    let state = paint.apply(tone, &validity(shown));
    line("valid", &format!("{} to {}, {state}", shown.not_before, shown.not_after))?;
    match (&shown.renewal_from, &shown.renewal_until) {
        (Some(from), Some(until)) if from == until => line("renewed", &format!("from {from} on"))?,
        (Some(from), Some(until)) => {
            line("renewed", &format!("from a time between {from} and {until} on"))?;
        }
        _ => {}
    }
    if let Some(length) = shown.path_length {
        line("CAs below it", &length.to_string())?;
    }
    if shown.kind == "node" {
        line("addresses", &list(&shown.mesh_addresses))?;
        line("groups", &list(&shown.groups))?;
        line("grants", &list(&shown.grants))?;
        if !shown.pools.is_empty() {
            let pools: Vec<String> = shown
                .pools
                .iter()
                .map(|pool| format!("a /{} of {}", pool.length, pool.prefix))
                .collect();
            line("pools", &list(&pools))?;
        }
        line("limits", &list(&shown.limits))?;
    }
    let blocks =
        shown.address_blocks.as_ref().map_or("none that meshd makes".to_owned(), |b| list(b));
    line("address blocks", &blocks)?;
    line("SHA-256", &shown.fingerprint)
}

fn validity(shown: &ShownView) -> String {
    let span = age(shown.remaining_seconds.unsigned_abs());
    match shown.state {
        "valid" => format!("{span} left"),
        "expired" => format!("ended {span} ago"),
        _ => "not valid yet".to_owned(),
    }
}
