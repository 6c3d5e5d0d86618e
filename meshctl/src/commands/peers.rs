//! `peers list` and `peers show`.

use std::{
    io::{self, Write},
    path::Path,
};

use meshd_proto::control::{ListPeersRequest, Peer, ShowPeerRequest};

use super::{devices, list, short_list, status};
use crate::{
    cli::{Peers, PeersList},
    connection::{LOOK, connect},
    failure::Failure,
    output::{Output, remark},
    table::{Cell, Paint, Table, Tone, tone_of},
    text::{age, round_trip, size},
    views::{DeviceView, PeerDetailView, PeerView},
};

pub(crate) async fn run(socket: &Path, output: Output, verb: Peers) -> Result<(), Failure> {
    match verb {
        Peers::List(arguments) if arguments.watch => watch(socket, output, arguments).await,
        Peers::List(arguments) => show_list(socket, output, arguments).await,
        Peers::Show { name } => show(socket, output, name).await,
        Peers::Add(arguments) => devices::add(socket, output, arguments).await,
        Peers::Config(arguments) => devices::config(socket, output, arguments).await,
        Peers::Remove { name } => devices::remove(socket, output, name).await,
    }
}

fn request(arguments: PeersList) -> ListPeersRequest {
    ListPeersRequest {
        state: arguments.state.map(|state| state.as_str().to_owned()).unwrap_or_default(),
        zone: arguments.zone.unwrap_or_default(),
        name: arguments.name.unwrap_or_default(),
    }
}

fn views(peers: Vec<Peer>) -> Vec<PeerView> {
    peers.into_iter().map(|peer| PeerDetailView::from(peer).peer).collect()
}

async fn show_list(socket: &Path, output: Output, arguments: PeersList) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let request = request(arguments);
    let filtered = request != ListPeersRequest::default();
    let peers = views(client.list_peers(request).await?.into_inner().peers);
    let (here, left) = present(&peers, filtered);
    if here.is_empty() && !output.is_for_programs() {
        remark(nobody(socket, filtered).await);
    } else {
        output.print(&peers, |paint, to| table(&here, output.is_wide()).print(paint, to))?;
    }
    if left > 0 && !output.is_for_programs() {
        let who = if left == 1 { "1 host has".to_owned() } else { format!("{left} hosts have") };
        remark(&format!("{who} left: `meshctl peers list --state left`"));
    }
    Ok(())
}

/// Who is to be shown to people, and how many others have left: nobody looks for those unless they ask.
fn present(peers: &[PeerView], filtered: bool) -> (Vec<&PeerView>, usize) {
    let is_shown = |peer: &&PeerView| filtered || peer.gossip.as_deref() != Some("left");
    let shown: Vec<&PeerView> = peers.iter().filter(is_shown).collect();
    let left = peers.len() - shown.len();
    (shown, left)
}

/// Why the list is empty and what to do about it.
async fn nobody(socket: &Path, filtered: bool) -> &'static str {
    if filtered {
        return "no peer matches; `meshctl peers list` shows all";
    }
    match status::fetch(socket).await {
        Ok(status) if status.state == "waiting" => {
            "no peers: this host is in no mesh; make one with `meshctl init --mesh NAME`, or join \
             one with `meshctl join TOKEN`"
        }
        Ok(status) if status.signer == Some(true) => {
            "no peers yet; make a token with `meshctl token create` and use it on another host with \
             `meshctl join TOKEN`"
        }
        _ => "no peers yet; `meshctl status` says how this host is",
    }
}

async fn watch(socket: &Path, output: Output, arguments: PeersList) -> Result<(), Failure> {
    let mut client = connect(socket, None).await?;
    let request = request(arguments);
    let filtered = request != ListPeersRequest::default();
    let mut changes = client.watch_peers(request).await?.into_inner();
    let clear = !output.is_for_programs() && output.is_terminal();
    if clear {
        crate::output::write(b"\x1b[2J")?;
    }
    while let Some(reply) = changes.message().await? {
        let peers = views(reply.peers);
        output.print_again(&peers, |paint, to| {
            let (here, _) = present(&peers, filtered);
            if here.is_empty() {
                return writeln!(to, "no peers; waiting for a change");
            }
            table(&here, output.is_wide()).print(paint, to)
        })?;
    }
    Err(Failure::unreachable(
        "the list is no longer watched",
        "the daemon stopped",
        "start it with `systemctl start meshd`",
    ))
}

fn table(peers: &[&PeerView], wide: bool) -> Table {
    // A column that would hold nothing in any row only pushes the others out of sight.
    let reasons = wide || peers.iter().any(|peer| peer.reason.is_some());
    let mut header = vec!["NAME", "GOSSIP", "TUNNEL", "ENDPOINT", "HANDSHAKE", "PREFIXES"];
    if reasons {
        header.push("REASON");
    }
    if wide {
        header.extend(["PATH", "RTT", "RX", "TX", "ZONE", "ADDRESSES", "NODE ADDRESSES", "MTU"]);
        header.extend(["PUBLIC KEY", "VERSION"]);
    }
    let mut table = Table::new(header);
    for peer in peers {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let handshake = peer.last_handshake_seconds.map_or_else(|| "-".to_owned(), age);
        let mut row = vec![
            Cell::text(&*peer.name),
            match &peer.gossip {
                Some(gossip) => Cell::state(gossip),
                None => Cell::state("device"),
            },
            Cell::state(&peer.tunnel),
            Cell::text(or_dash(&peer.endpoint)),
            Cell::number(handshake),
            Cell::text(short_list(&peer.prefixes, wide)),
        ];
        if reasons {
            row.push(Cell::text(or_dash(&peer.reason)));
        }
        if wide {
            let mtu = peer.mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string());
            row.extend([
                Cell::text(match &peer.via {
                    Some(gateway) => format!("via {gateway}"),
                    None => peer.path.clone(),
                }),
                Cell::number(peer.rtt_ms.map_or_else(|| "-".to_owned(), round_trip)),
                Cell::number(size(peer.rx_bytes)),
                Cell::number(size(peer.tx_bytes)),
                Cell::text(or_dash(&peer.zone)),
                Cell::text(short_list(&peer.mesh_addresses, wide)),
                Cell::text(short_list(&peer.node_addresses, wide)),
                Cell::number(mtu),
                Cell::text(or_dash(&peer.public_key)),
                Cell::text(or_dash(&peer.version)),
            ]);
        }
        table.row(row);
    }
    table
}

async fn show(socket: &Path, output: Output, name: String) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.show_peer(ShowPeerRequest { name }).await?.into_inner();
    let peer = reply.peer.ok_or_else(|| {
        Failure::local("the daemon answered nothing", "it is of another version", "restart it")
    })?;
    let detail = PeerDetailView::from(peer);
    output.print(&detail, |paint, to| print(&detail, paint, to))
}

fn print(detail: &PeerDetailView, paint: Paint, to: &mut impl Write) -> io::Result<()> {
    let peer = &detail.peer;
    let state = |text: &str| paint.apply(tone_of(text), text);
    writeln!(to, "peer: {}", paint.apply(Tone::Strong, &peer.name))?;
    let mut line = |label: &str, text: &str| {
        writeln!(to, "  {} {text}", paint.apply(Tone::Strong, &format!("{label}:")))
    };
    if let Some(id) = &peer.id {
        line("id", id)?;
    }
    if let Some(device) = &peer.device {
        line("device of", &device.gateway)?;
    }
    if let Some(zone) = &peer.zone {
        line("zone", zone)?;
    }
    if let Some(gossip) = &peer.gossip {
        line("gossip", &state(gossip))?;
    }
    let path = match &peer.via {
        Some(gateway) => format!(", via {gateway}"),
        None if peer.path == "none" => String::new(),
        None => format!(", {}", peer.path),
    };
    line("tunnel", &format!("{}{path}", state(&peer.tunnel)))?;
    if let Some(reason) = &peer.reason {
        line("reason", reason)?;
    }
    line("public key", peer.public_key.as_deref().unwrap_or("unknown"))?;
    line("endpoint", peer.endpoint.as_deref().unwrap_or("none"))?;
    let handshake = peer.last_handshake_seconds;
    line("latest handshake", &handshake.map_or("never".to_owned(), |s| format!("{} ago", age(s))))?;
    let (received, sent) = (size(peer.rx_bytes), size(peer.tx_bytes));
    line("transfer", &format!("{received} received, {sent} sent"))?;
    line("allowed ips", &list(&detail.allowed_ips))?;
    if let Some(mtu) = peer.mtu {
        line("mtu", &format!("{mtu}{}", known_how(detail)))?;
    }
    if let Some(rtt) = peer.rtt_ms {
        line("round trip", &round_trip(rtt))?;
    }
    if peer.device.is_none() {
        line("mesh addresses", &list(&peer.mesh_addresses))?;
        line("node addresses", &list(&peer.node_addresses))?;
    }
    line("prefixes", &list(&peer.prefixes))?;
    for blocked in &detail.blocked {
        let text = format!("{} ({}): {}", blocked.prefix, blocked.reason, blocked.message);
        line("not routed", &paint.apply(Tone::Bad, &text))?;
    }
    if let Some(device) = &peer.device {
        return print_device(&peer.name, device, paint, to);
    }
    line("published endpoints", &list(&detail.endpoints))?;
    line("groups", &list(&peer.groups))?;
    let issued = detail.record_issued_at.as_ref().map(|at| format!(", issued {at}"));
    line("record", &format!("version {}{}", detail.record_version, issued.unwrap_or_default()))?;
    if let Some(date) = &detail.certificate_not_after {
        line("certificate", &format!("until {date}"))?;
    }
    line("version", peer.version.as_deref().unwrap_or("unknown"))
}

fn print_device(
    name: &str,
    device: &DeviceView,
    paint: Paint,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut line = |label: &str, text: &str| {
        writeln!(to, "  {} {text}", paint.apply(Tone::Strong, &format!("{label}:")))
    };
    line("added", device.added_at.as_deref().unwrap_or("unknown"))?;
    line("pre-shared key", if device.preshared_key { "yes" } else { "no" })?;
    let kept =
        format!("kept on this host; `meshctl peers config {name} --forget-key` throws it away");
    line("private key", if device.private_key_kept { &kept } else { "not on this host" })?;
    let stale =
        "the gateway's key or addresses, or the mesh's prefixes, are others now: print it again";
    match (&device.config_shown_at, device.config_stale) {
        (None, _) => line("configuration", "never printed"),
        (Some(at), false) => line("configuration", &format!("printed {at}, still right")),
        (Some(at), true) => {
            let text = format!("printed {at}, stale: {stale}");
            line("configuration", &paint.apply(Tone::Doubtful, &text))
        }
    }
}

fn known_how(detail: &PeerDetailView) -> String {
    let state = detail.mtu_state.as_ref().map(|state| format!(", {state}"));
    let since = detail.mtu_since.as_ref().map(|since| format!(" since {since}"));
    format!("{}{}", state.unwrap_or_default(), since.unwrap_or_default())
}
