//! `cert ca`: the mesh's root.

use std::{io::Write, path::Path};

use meshd_proto::control::{
    EncryptRootRequest, ExportRootRequest, ListRootsRequest, RemoveRootKeyRequest,
    RotateRootRequest, UnlockRootRequest,
};

use super::{passphrase, sure};
use crate::{
    cli::{Ca, CaExport, CaRotate, CaUnlock, Passphrase},
    connection::{CHANGE, LOOK, connect},
    failure::Failure,
    output::Output,
    table::{Cell, Paint, Table},
    text::count,
    views::RootsView,
};

pub(crate) async fn run(socket: &Path, output: Output, verb: Ca) -> Result<(), Failure> {
    match verb {
        Ca::Show => show(socket, output).await,
        Ca::Rotate(arguments) => rotate(socket, output, arguments).await,
        Ca::Encrypt(arguments) => encrypt(socket, output, &arguments).await,
        Ca::Unlock(arguments) => unlock(socket, output, &arguments).await,
        Ca::Export(arguments) => export(socket, output, &arguments).await,
    }
}

async fn show(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let view = RootsView::from(client.list_roots(ListRootsRequest {}).await?.into_inner());
    output.print(&view, |paint, to| print(&view, paint, to))
}

async fn rotate(socket: &Path, output: Output, arguments: CaRotate) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let question = "The mesh gets a new root, and every signer and node a new key or certificate under it, while \
                    all goes on. Backups of pki/root.key are of no use afterwards.\nReplace the root? [y/N] ";
    sure(arguments.yes, "the replacement was not confirmed", question)?;
    let view = RootsView::from(client.rotate_root(RotateRootRequest {}).await?.into_inner());
    output.print(&view, |paint, to| {
        print(&view, paint, to)?;
        writeln!(to)?;
        writeln!(to, "The rest goes on by itself; `meshctl cert ca show` says how far it is.")?;
        writeln!(to, "Back up pki/root.key of this host again: the old one is of no use.")
    })
}

async fn encrypt(socket: &Path, output: Output, arguments: &Passphrase) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let passphrase = passphrase::chosen(arguments)?;
    let request = EncryptRootRequest { passphrase: passphrase.to_vec() };
    let view = RootsView::from(client.encrypt_root(request).await?.into_inner());
    output.print(&view, |_, to| {
        writeln!(
            to,
            "the root's key on this host is under the passphrase now; without it the key is lost"
        )?;
        writeln!(to, "  `meshctl cert ca unlock` opens it for a quarter of an hour, as it is now")
    })
}

async fn unlock(socket: &Path, output: Output, arguments: &CaUnlock) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let key = match &arguments.root_key {
        Some(path) => std::fs::read(path).map_err(|error| {
            Failure::local(format!("cannot read {}", path.display()), error, "name the key's file")
        })?,
        None => Vec::new(),
    };
    let passphrase = passphrase::known(&arguments.passphrase)?;
    let request = UnlockRootRequest { key, passphrase: passphrase.to_vec() };
    let view = RootsView::from(client.unlock_root(request).await?.into_inner());
    output.print(&view, |_, to| {
        writeln!(
            to,
            "the root's key is open for a quarter of an hour, or until what needs it is done"
        )
    })
}

/// The key goes off this host only when it is in the file.
async fn export(socket: &Path, output: Output, arguments: &CaExport) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let path = &arguments.out;
    let not_written = |error: std::io::Error| {
        let what = format!("cannot write {}", path.display());
        Failure::local(what, error, "name a file that does not exist, on a disk that has room")
    };
    if path.exists() {
        return Err(not_written(std::io::ErrorKind::AlreadyExists.into()));
    }
    let passphrase = passphrase::chosen(&arguments.passphrase)?;
    let request = ExportRootRequest { passphrase: passphrase.to_vec() };
    let exported = client.export_root(request).await?.into_inner();
    write_new(path, &exported.key).map_err(not_written)?;
    if !arguments.remove {
        let reply = client.list_roots(ListRootsRequest {}).await?.into_inner();
        return output.print(&RootsView::from(reply), |_, to| {
            writeln!(
                to,
                "the root's key is in {}, under the passphrase; this host keeps its own",
                path.display()
            )
        });
    }
    // The daemon removes no other: the root may have been replaced since.
    let request = RemoveRootKeyRequest { public_key: exported.public_key };
    let reply = client.remove_root_key(request).await?.into_inner();
    output.print(&RootsView::from(reply), |_, to| {
        writeln!(to, "the root's key is in {}, under the passphrase, and no more on this host", path.display())?;
        writeln!(to, "  `meshctl cert ca unlock --root-key FILE` brings it when signers are to be added or revoked")
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn print(view: &RootsView, paint: Paint, to: &mut impl Write) -> std::io::Result<()> {
    let mut table = Table::new(vec!["ROOT", "STATE", "VALID FROM", "UNTIL"]);
    for root in &view.roots {
        table.row(vec![
            Cell::text(root.key.get(..16).unwrap_or(&root.key)),
            Cell::state(&root.state),
            Cell::text(root.not_before.get(..10).unwrap_or(&root.not_before)),
            Cell::text(root.not_after.get(..10).unwrap_or(&root.not_after)),
        ]);
    }
    table.print(paint, to)?;
    let key = match &*view.key_state {
        "plain" => "is on this host, without a passphrase",
        "locked" => "is on this host, under a passphrase",
        "unlocked" => "is open on this host for a while",
        _ => "is not on this host",
    };
    writeln!(to, "the key of the active root {key}")?;
    if !view.to_move.is_empty() {
        let names: Vec<&str> = view.to_move.iter().map(|signer| &*signer.name).collect();
        writeln!(to, "signers that need a key under it: {}", names.join(", "))?;
    }
    if view.to_renew > 0 {
        let nodes = count(u64::from(view.to_renew), "node has", "nodes have");
        writeln!(to, "{nodes} a certificate under an older root")?;
    }
    Ok(())
}
