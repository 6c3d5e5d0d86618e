//! `status`: this host.

use std::{
    io::{self, Write},
    path::Path,
};

use meshd_proto::control::StatusRequest;

use super::list;
use crate::{
    cli::{Check, Status},
    connection::{LOOK, connect},
    failure::Failure,
    output::Output,
    table::{Paint, Tone, tone_of},
    text::count,
    views::StatusView,
};

pub(crate) async fn run(socket: &Path, output: Output, arguments: Status) -> Result<(), Failure> {
    if let Some(check) = arguments.check {
        return check_for(socket, check).await.map_err(Failure::plain);
    }
    let status = fetch(socket).await?;
    output.print(&status, |paint, to| print(&status, paint, to))
}

pub(crate) async fn fetch(socket: &Path) -> Result<StatusView, Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    Ok(client.status(StatusRequest {}).await?.into_inner().into())
}

async fn check_for(socket: &Path, check: Check) -> Result<(), Failure> {
    let status = fetch(socket).await?;
    if check == Check::Live {
        return Ok(());
    }
    if let Some(revoked) = status.health.iter().find(|line| line.code == "revoked") {
        let fix = revoked.fix.as_deref().unwrap_or_default();
        return Err(Failure::local("not ready", revoked.message.clone(), fix));
    }
    if matches!(status.state.as_str(), "running" | "degraded") {
        return Ok(());
    }
    Err(Failure::local("not ready", format!("the daemon is {}", status.state), next(&status)))
}

/// What to do in a state in which the mesh cannot be used.
fn next(status: &StatusView) -> &'static str {
    match status.state.as_str() {
        "waiting" => {
            "make a mesh with `meshctl init --mesh NAME`, or join one with `meshctl join TOKEN`"
        }
        "joining" => "wait; if it goes on, see the health lines of `meshctl status`",
        _ => "",
    }
}

fn print(status: &StatusView, paint: Paint, to: &mut impl Write) -> io::Result<()> {
    let state = paint.apply(tone_of(&status.state), &status.state);
    writeln!(to, "meshd {}: {state}", status.version)?;
    let next = next(status);
    if !next.is_empty() {
        writeln!(to, "  next: {next}")?;
    }
    let line = |to: &mut dyn Write, label: &str, text: &str| {
        writeln!(to, "  {}{text}", paint.apply(Tone::Faint, &format!("{label:<13}")))
    };
    if let Some(mesh) = &status.mesh {
        line(to, "mesh", mesh)?;
    }
    if let Some(node) = &status.node {
        let zone = status.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        let signer = if status.signer == Some(true) { ", signer" } else { "" };
        line(to, "node", &format!("{node}{zone}{signer}"))?;
        if let Some(gateway) = &status.via {
            line(to, "gateway", gateway)?;
        }
    }
    if let Some(id) = &status.id {
        line(to, "id", id)?;
        line(to, "addresses", &list(&status.mesh_addresses))?;
        line(to, "prefixes", &list(&status.prefixes))?;
    }
    if let Some(interface) = &status.interface {
        let backend = status.backend.as_deref().unwrap_or("being set up");
        let port = status.listen_port.map(|port| format!(", UDP {port}")).unwrap_or_default();
        line(to, "interface", &format!("{interface} ({backend}{port})"))?;
    }
    if let Some(key) = &status.public_key {
        line(to, "public key", key)?;
    }
    if let Some(port) = status.gossip_port {
        let synced = if status.synced { "synced" } else { "not synced yet" };
        line(to, "gossip", &format!("UDP {port}, {synced}"))?;
    }
    if let Some(date) = &status.certificate_not_after {
        line(to, "certificate", &format!("until {date}"))?;
    }
    if status.mesh.is_some() {
        line(to, "peers", &peers(status, paint))?;
        if status.devices.total > 0 {
            let (devices, up) = (status.devices.total, status.devices.up);
            line(to, "devices", &format!("{devices} behind this host, {up} up"))?;
        }
    }
    print_health(status, paint, to)
}

fn peers(status: &StatusView, paint: Paint) -> String {
    let counts = &status.peers;
    if counts.total == 0 {
        return "none yet; let others in with `meshctl token create`".to_owned();
    }
    let part = |number: u32, state: &str| {
        let tone = if number == 0 { Tone::Faint } else { tone_of(state) };
        paint.apply(tone, &format!("{number} {state}"))
    };
    format!(
        "{}: {}, {}, {}",
        counts.total,
        part(counts.up, "up"),
        part(counts.stale, "stale"),
        part(counts.down, "down")
    )
}

fn print_health(status: &StatusView, paint: Paint, to: &mut impl Write) -> io::Result<()> {
    if status.health.is_empty() {
        return Ok(());
    }
    let lines = u64::try_from(status.health.len()).unwrap_or(u64::MAX);
    writeln!(to, "health: {}", count(lines, "line", "lines"))?;
    for line in &status.health {
        let severity = paint.apply(tone_of(&line.severity), &line.severity);
        writeln!(to, "  {severity} {}: {}", line.code, line.message)?;
        if let Some(fix) = &line.fix {
            writeln!(to, "    fix: {fix}")?;
        }
    }
    Ok(())
}
