//! `mtu`: the path to each peer.

use std::path::Path;

use meshd_proto::control::ListPeersRequest;

use crate::{
    connection::{LOOK, connect},
    failure::Failure,
    output::{Output, remark},
    table::{Cell, Table},
    views::MtuView,
};

pub(crate) async fn run(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.list_peers(ListPeersRequest::default()).await?.into_inner();
    // There is no path to who has left.
    let here = reply.peers.iter().filter(|peer| peer.gossip != "left");
    let paths: Vec<MtuView> = here.map(MtuView::from).collect();
    if paths.is_empty() && !output.is_for_programs() {
        remark("no peers; `meshctl status` says how this host is");
        return Ok(());
    }
    output.print(&paths, |paint, to| {
        let mut table = Table::new(vec!["NAME", "UNDERLAY", "MTU", "STATE", "SINCE"]);
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        for path in &paths {
            table.row(vec![
                Cell::text(&*path.name),
                Cell::text(or_dash(&path.underlay)),
                Cell::number(path.mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string())),
                Cell::state(&or_dash(&path.state)),
                Cell::text(or_dash(&path.since)),
            ]);
        }
        table.print(paint, to)
    })
}
