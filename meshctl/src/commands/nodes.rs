//! `node list` and `node revoke`.

use std::{io::Write as _, path::Path};

use meshd_proto::control::{ListNodesRequest, RevokeNodeRequest};

use super::{list, short_list, sure};
use crate::{
    cli::{Node, NodeRevoke},
    connection::{CHANGE, LOOK, connect},
    failure::Failure,
    output::Output,
    table::{Cell, Table},
    text::{count, moment},
    views::{NodeView, RevokedView},
};

pub(crate) async fn run(socket: &Path, output: Output, verb: Node) -> Result<(), Failure> {
    match verb {
        Node::List => show_list(socket, output).await,
        Node::Revoke(arguments) => revoke(socket, output, arguments).await,
    }
}

async fn show_list(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.list_nodes(ListNodesRequest {}).await?.into_inner();
    let nodes: Vec<NodeView> = reply.nodes.into_iter().map(NodeView::from).collect();
    output.print(&nodes, |paint, to| table(&nodes, output.is_wide()).print(paint, to))
}

fn table(nodes: &[NodeView], wide: bool) -> Table {
    let mut header = vec!["NAME", "STATE", "GOSSIP", "PREFIXES", "CERTIFIED UNTIL"];
    if wide {
        header.extend(["ZONE", "GROUPS", "REVOKED", "ADDRESSES", "VERSION", "ID"]);
    }
    let mut table = Table::new(header);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for node in nodes {
        let name =
            if node.is_self { format!("{} (this host)", node.name) } else { node.name.clone() };
        let mut row = vec![
            Cell::text(name),
            Cell::state(&node.state),
            node.gossip.as_deref().map_or_else(|| Cell::text("-"), Cell::state),
            Cell::text(short_list(&node.prefixes, wide)),
            Cell::text(moment(&or_dash(&node.certificate_not_after), wide)),
        ];
        if wide {
            row.extend([
                Cell::text(or_dash(&node.zone)),
                Cell::text(short_list(&node.groups, true)),
                Cell::text(or_dash(&node.revoked_at)),
                Cell::text(short_list(&node.mesh_addresses, true)),
                Cell::text(or_dash(&node.version)),
                Cell::text(&*node.id),
            ]);
        }
        table.row(row);
    }
    table
}

async fn revoke(socket: &Path, output: Output, arguments: NodeRevoke) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let mut request = RevokeNodeRequest {
        node: arguments.node,
        reason: arguments.reason.unwrap_or_default(),
        look: false,
    };
    if !arguments.yes {
        // Who is asked must know who is meant; a name that is nobody's is an error before any question.
        let look = RevokeNodeRequest { look: true, ..request.clone() };
        let meant = RevokedView::from(client.revoke_node(look).await?.into_inner());
        sure(false, "the revocation was not confirmed", &question(&meant))?;
        // That one, whoever has the name by now.
        request.node = meant.id;
    }
    let revoked = RevokedView::from(client.revoke_node(request).await?.into_inner());
    output.print(&revoked, |_, to| {
        if revoked.before {
            return writeln!(
                to,
                "{} ({}) was revoked before; nothing changed",
                revoked.name, revoked.id
            );
        }
        writeln!(to, "revoked {} ({})", revoked.name, revoked.id)?;
        let members = count(u64::from(revoked.members), "other member hears", "other members hear");
        writeln!(to, "  cut off here; {members} of it now, the rest when they are back")
    })
}

fn question(meant: &RevokedView) -> String {
    format!(
        "{}\n  id        {}\n  prefixes  {}\nis cut off by every member, for good: it needs a new identity and a new \
         token to come back, and the token that let it in admits nobody else.\nRevoke? [y/N] ",
        meant.name,
        meant.id,
        list(&meant.prefixes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_who_is_meant() {
        let meant = RevokedView {
            name: "db-2".to_owned(),
            id: "abcd".to_owned(),
            members: 3,
            before: false,
            prefixes: vec!["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()],
        };
        let question = question(&meant);
        for part in ["db-2\n", "id        abcd\n", "10.1.0.0/24, fd00::/64\n", "[y/N] "] {
            assert!(question.contains(part), "{question}");
        }
    }
}
