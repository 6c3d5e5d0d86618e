//! `init`, `join` and `leave`: how this host comes and goes.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write},
    path::Path,
};

use meshd_proto::control::{
    InitRequest, JoinRequest, LeaveRequest, StatusRequest, join_progress::Step,
};

use super::{confirmed, identity, list};
use crate::{
    cli::{Init, Join, Leave},
    connection::{CHANGE, connect},
    failure::Failure,
    output::{Output, remark},
    text::{count, safe},
    views::{LeaveView, MemberView, StatusView},
};

/// Tokens are below 4 KiB.
const LONGEST_TOKEN: u64 = 16 * 1024;

pub(crate) async fn init(socket: &Path, output: Output, arguments: Init) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let allowed = arguments.allow.clone();
    let request = InitRequest {
        mesh: arguments.mesh,
        prefixes: arguments.prefixes,
        allow: arguments.allow,
        workloads: arguments.workloads,
        ipv4_pool: arguments.ipv4_pool.unwrap_or_default(),
    };
    let member = MemberView::from(client.init(request).await?.into_inner());
    output.print(&member, |_, to| {
        writeln!(
            to,
            "mesh {} made; this host is {}, its first member and signer",
            member.mesh, member.node
        )?;
        print_member(&member, to)?;
        if !member.not_granted.is_empty() {
            writeln!(
                to,
                "  not granted, so not reachable through the mesh: {}\n  fix: `meshctl leave`, then \
                 `meshctl init` with --allow CIDR that covers them",
                list(&member.not_granted)
            )?;
        }
        let same: String = allowed.iter().map(|net| format!(" --allow {net}")).collect();
        writeln!(to, "next: `meshctl token create{same}` here, `meshctl join -` on other hosts")
    })
}

pub(crate) async fn join(socket: &Path, output: Output, arguments: Join) -> Result<(), Failure> {
    let from_stdin = arguments.token == "-";
    let token = if from_stdin { read_token()? } else { arguments.token };
    if arguments.identity_audience {
        return identity::audience(socket, output, token).await;
    }
    let identity_document = match &arguments.identity {
        Some(file) => identity::read(file, from_stdin)?,
        None => String::new(),
    };
    let mut client = connect(socket, None).await?;
    let name = arguments.name.unwrap_or_default();
    let request = JoinRequest { token, name, identity_document };
    let mut steps = client.join(request).await?.into_inner();
    while let Some(progress) = steps.message().await? {
        match progress.step {
            Some(Step::Doing(doing)) => remark(&format!("… {}", safe(&doing))),
            Some(Step::Done(done)) => {
                let member = MemberView::from(done);
                return output.print(&member, |_, to| {
                    let peers = count(u64::from(member.peers), "peer", "peers");
                    writeln!(to, "joined mesh {} as {}; {peers}", member.mesh, member.node)?;
                    print_member(&member, to)?;
                    print_not_granted(&member, to)?;
                    print_not_synced(&member, to)
                });
            }
            None => {}
        }
    }
    Err(Failure::unreachable(
        "it is not known whether this host joined",
        "the daemon stopped before it was done",
        "start it with `systemctl start meshd`, then see `meshctl status`",
    ))
}

/// The first line of stdin that is not empty, so that the token stands in no command line.
fn read_token() -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        remark("paste the token and press Enter:");
    }
    for line in io::stdin().lock().take(LONGEST_TOKEN).lines() {
        let line = line.map_err(|error| {
            Failure::local("cannot read the token", error, "pipe it in as text")
        })?;
        if !line.trim().is_empty() {
            return Ok(line.trim().to_owned());
        }
    }
    Err(Failure::local(
        "cannot read the token",
        "stdin was empty",
        "pipe the output of `meshctl token create` in",
    ))
}

fn print_member(member: &MemberView, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "  addresses  {}", list(&member.mesh_addresses))?;
    writeln!(to, "  prefixes   {}", list(&member.prefixes))
}

fn print_not_granted(member: &MemberView, to: &mut impl Write) -> io::Result<()> {
    if member.not_granted.is_empty() {
        return Ok(());
    }
    writeln!(
        to,
        "  not granted, so not reachable through the mesh: {}\n  fix: join with a token made by \
         `meshctl token create --allow CIDR` with a CIDR that covers them",
        list(&member.not_granted)
    )
}

fn print_not_synced(member: &MemberView, to: &mut impl Write) -> io::Result<()> {
    if member.synced {
        return Ok(());
    }
    writeln!(
        to,
        "  not in contact with another member yet; meshd goes on trying\n  fix: check that UDP 51800 of \
         the others is open, then see `meshctl status`"
    )
}

pub(crate) async fn leave(socket: &Path, output: Output, arguments: Leave) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    if !arguments.yes {
        let status = StatusView::from(client.status(StatusRequest {}).await?.into_inner());
        if io::stdin().is_terminal() {
            confirm(&status)?;
        } else if status.signer == Some(true) {
            return Err(Failure::local(
                "nothing was done",
                "this host is a signer: what only it can sign (tokens, new members) ends with it, and if it holds the \
                 root's key, and nobody else does, that goes out of use (`meshctl cert ca export`)",
                "use --yes to leave all the same",
            ));
        }
    }
    let left = LeaveView::from(client.leave(LeaveRequest {}).await?.into_inner());
    output.print(&left, |_, to| {
        let mesh = left.mesh.as_deref().unwrap_or("the mesh");
        let told = count(u64::from(left.told), "member was", "members were");
        writeln!(to, "left {mesh}; {told} told")?;
        for removed in &left.removed {
            writeln!(to, "  removed {removed}")?;
        }
        if let Some(authority) = &left.authority {
            writeln!(
                to,
                "  kept    the mesh's CA, in {authority}: if root.key is in it and nowhere else, it is all that can \
                 add signers and replace the root; keep it safe, or delete it when the mesh is no more"
            )?;
        }
        Ok(())
    })
}

fn confirm(status: &StatusView) -> Result<(), Failure> {
    let node = status.node.as_deref().unwrap_or("this host");
    let mesh = status.mesh.as_deref().unwrap_or("its mesh");
    let signer = if status.signer == Some(true) {
        " It is a signer: what only it can sign (tokens, new members) ends with it. What it holds of the mesh's CA is \
         set aside, not deleted; if the root's key is here and nowhere else, `meshctl cert ca export` first."
    } else {
        ""
    };
    let question = format!(
        "{node} leaves {mesh}: its tunnels, keys and certificate are removed, and it needs a new \
         token to come back.{signer}\nLeave? [y/N] "
    );
    confirmed(&question, "leaving was not confirmed")
}
