//! `signer list`, `signer add` and `signer revoke`.

use std::{io::Write as _, path::Path};

use meshd_proto::control::{AddSignerRequest, ListSignersRequest, RevokeSignerRequest};

use super::sure;
use crate::{
    cli::{Signer, SignerRevoke},
    connection::{CHANGE, LOOK, connect},
    failure::Failure,
    output::{Output, remark},
    table::{Cell, Table},
    text::count,
    views::{RevokedSignerView, SignerView},
};

pub(crate) async fn run(socket: &Path, output: Output, verb: Signer) -> Result<(), Failure> {
    match verb {
        Signer::List => show_list(socket, output).await,
        Signer::Add { node } => add(socket, output, node).await,
        Signer::Revoke(arguments) => revoke(socket, output, arguments).await,
    }
}

async fn show_list(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.list_signers(ListSignersRequest {}).await?.into_inner();
    let signers: Vec<SignerView> = reply.signers.into_iter().map(SignerView::from).collect();
    output.print(&signers, |paint, to| {
        let mut header = vec!["NAME", "STATE", "KEY"];
        if output.is_wide() {
            header.push("ID");
        }
        let mut table = Table::new(header);
        for signer in &signers {
            let own = if signer.is_self { " (this host)" } else { "" };
            let mut row = vec![
                Cell::text(format!("{}{own}", signer.name)),
                Cell::state(&signer.state),
                Cell::text(&*signer.key),
            ];
            if output.is_wide() {
                row.push(Cell::text(&*signer.id));
            }
            table.row(row);
        }
        table.print(paint, to)
    })
}

async fn add(socket: &Path, output: Output, node: String) -> Result<(), Failure> {
    if !output.is_for_programs() {
        remark(&format!("… asking {}", crate::text::safe(&node)));
    }
    let mut client = connect(socket, Some(CHANGE)).await?;
    let reply = client.add_signer(AddSignerRequest { node }).await?.into_inner();
    let signer = SignerView::from(reply);
    output.print(&signer, |_, to| {
        writeln!(to, "{} is a signer now: it may admit, renew and revoke nodes", signer.name)?;
        writeln!(to, "  its key {} was made there and stays there", signer.key)
    })
}

async fn revoke(socket: &Path, output: Output, arguments: SignerRevoke) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let how = if arguments.now {
        "Nodes that have its certificates are cut off until another signer renews them, which they \
         ask for by themselves."
    } else {
        "Its nodes get certificates from another signer first; nothing is cut."
    };
    let question = format!("{} signs nothing any more. {how}\nRevoke? [y/N] ", arguments.signer);
    sure(arguments.yes, "the revocation was not confirmed", &question)?;
    let request = RevokeSignerRequest {
        signer: arguments.signer,
        now: arguments.now,
        drop_revocations: arguments.drop_revocations,
        reason: arguments.reason.unwrap_or_default(),
    };
    let reply = client.revoke_signer(request).await?.into_inner();
    let revoked = RevokedSignerView::from(reply);
    output.print(&revoked, |_, to| {
        writeln!(to, "{} signs nothing any more", revoked.signer.name)?;
        let users = count(u64::from(revoked.users), "node has", "nodes have");
        if revoked.signer.state == "gone" {
            return writeln!(to, "  its certificates count for nothing");
        }
        writeln!(
            to,
            "  {users} its certificates and get others now; then it is gone from `signer list`"
        )
    })
}
