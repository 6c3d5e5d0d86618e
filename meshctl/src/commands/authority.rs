//! `cert ca show` and `cert ca rotate`.

use std::{io::Write, path::Path};

use meshd_proto::control::{ListRootsRequest, RotateRootRequest};

use super::sure;
use crate::{
    cli::{Ca, CaRotate},
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
    let here = if view.key_here { "is on this host" } else { "is not on this host" };
    writeln!(to, "the key of the active root {here}")?;
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
