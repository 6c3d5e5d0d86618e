//! What `status` and `peers` show, from the state of one moment.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use meshd_core::{
    limits::HANDSHAKE_FRESH,
    node::Liveness,
    now::UnixTime,
    path_mtu,
    plan::{Blocked, Observed, ObservedPeer, TunnelState},
    trust::Record,
};
use meshd_proto::control::{BlockedPrefix, Device, HealthLine, Peer, PeerCounts, StatusReply};

use super::{Daemon, device_config::Side, health, running::Running};
use crate::{metrics::PeerFigures, state::devices::SavedDevice, transport::Transport};

/// RFC 3339 in UTC.
pub(super) fn rfc3339(at: UnixTime) -> Option<String> {
    at.rfc3339()
}

/// This host.
pub(super) fn status(daemon: &Daemon) -> StatusReply {
    let health: Vec<HealthLine> = health::lines(daemon);
    let broken = health.iter().any(|line| line.severity == "error");
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let trial_seconds_left = daemon.trial_seconds_left();
    let Some(running) = &daemon.running else {
        let state = if daemon.joining.is_some() { "joining" } else { "waiting" };
        return StatusReply {
            state: state.to_owned(),
            health,
            version,
            trial_seconds_left,
            ..StatusReply::default()
        };
    };
    let certificate = &running.identity.certificate;
    let own = running.own_record();
    let device = running.observed.as_ref().and_then(|observed| observed.device.as_ref());
    let state = match () {
        () if daemon.stopping => "stopping",
        () if broken => "degraded",
        () => "running",
    };
    StatusReply {
        state: state.to_owned(),
        mesh: Some(certificate.mesh.to_string()),
        node: Some(certificate.name.to_string()),
        id: Some(certificate.key.to_string()),
        interface: Some(daemon.config.wireguard.interface.to_string()),
        backend: device.map(|device| device.backend.as_str().to_owned()),
        public_key: Some(running.lane.public_key().to_string()),
        listen_port: Some(u32::from(daemon.config.wireguard.port)),
        gossip_port: daemon.transport.local_port().map(u32::from),
        mesh_addresses: certificate.mesh_addresses().iter().map(|a| a.addr().to_string()).collect(),
        prefixes: own.iter().flat_map(|o| o.prefixes.iter().map(ToString::to_string)).collect(),
        peers: Some(counts(running)),
        health,
        version,
        signer: Some(running.signer.is_some()),
        zone: own.as_ref().map(|own| own.zone.to_string()),
        certificate_not_after: rfc3339(certificate.not_after),
        directory_hash: Some(HEXLOWER.encode(&running.node.directory().root_hash())),
        synced: running.node.is_synced(),
        devices: Some(device_counts(running)),
        trial_seconds_left,
        via: own.and_then(|own| own.via).map(|key| running.node.directory().display_name(&key)),
    }
}

/// One line for `systemctl status`.
pub(super) fn one_line(status: StatusReply) -> String {
    match (status.mesh, status.peers) {
        (Some(mesh), Some(peers)) => {
            format!(
                "{}: {} in {mesh}, {} of {} peers up",
                status.state,
                status.node.unwrap_or_default(),
                peers.up,
                peers.total
            )
        }
        _ => format!("{}: run `meshctl init` or `meshctl join TOKEN`", status.state),
    }
}

fn others(running: &Running) -> impl Iterator<Item = &Arc<Record>> {
    let own = running.node.key();
    running.node.directory().iter().filter(move |record| record.key != own)
}

fn counts(running: &Running) -> PeerCounts {
    let mut counts = PeerCounts::default();
    for record in others(running) {
        let liveness = liveness(running, record);
        if liveness == Liveness::Left {
            continue;
        }
        counts.total += 1;
        // Each in one place: whom nobody hears is down, whatever its idle tunnel looks like.
        match (liveness, tunnel(running, record)) {
            (Liveness::Down, _) => counts.down += 1,
            (_, "up") => counts.up += 1,
            (_, "stale") => counts.stale += 1,
            _ => {}
        }
    }
    counts
}

fn liveness(running: &Running, record: &Record) -> Liveness {
    running.node.liveness(&record.key).map_or(Liveness::Suspect, |(liveness, _)| liveness)
}

fn tunnel(running: &Running, record: &Record) -> &'static str {
    let Some(lane) = record.lanes.first() else { return "blocked" };
    if let Some(gateway) = running.plan.carried.get(&record.key) {
        return running.carried_state(&record.key, gateway).as_str();
    }
    match running.tracker.health(&lane.public_key) {
        Some(health) => health.state.as_str(),
        None if whole_member_blocked(running, record).is_some() => "blocked",
        None => TunnelState::Never.as_str(),
    }
}

fn whole_member_blocked<'a>(running: &'a Running, record: &Record) -> Option<&'a Blocked> {
    running.plan.blocked.get(&record.key)?.iter().find(|blocked| blocked.prefix.is_none())
}

/// All peers, by name.
pub(super) fn peers(
    running: &Running,
    observed: Option<&Observed>,
    transport: &Transport,
) -> Vec<Peer> {
    let mut peers: Vec<Peer> =
        others(running).map(|record| peer(running, observed, transport, record)).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

/// What is measured of every peer that has not left.
pub(super) fn figures(running: &Running, transport: &Transport) -> Vec<PeerFigures> {
    let observed = running.observed.as_ref();
    others(running)
        .filter_map(|record| {
            let liveness = liveness(running, record);
            let lane = record.lanes.first();
            let kernel = lane.and_then(|lane| observed?.peers.get(&lane.public_key));
            (liveness != Liveness::Left).then(|| PeerFigures {
                name: running.node.directory().display_name(&record.key),
                gossip: liveness.as_str(),
                tunnel: tunnel(running, record),
                last_handshake: kernel.and_then(|p| p.last_handshake).map(|age| age.as_secs_f64()),
                rx_bytes: kernel.map_or(0, |peer| peer.rx_bytes),
                tx_bytes: kernel.map_or(0, |peer| peer.tx_bytes),
                rtt: transport.rtt(&record.key).map(|rtt| rtt.as_secs_f64()),
            })
        })
        .collect()
}

fn peer(
    running: &Running,
    observed: Option<&Observed>,
    transport: &Transport,
    record: &Record,
) -> Peer {
    let lane = record.lanes.first();
    let kernel = lane.and_then(|lane| observed?.peers.get(&lane.public_key));
    let tunnel = tunnel(running, record);
    let via = running.plan.carried.get(&record.key);
    let blocked = running.plan.blocked.get(&record.key).map(Vec::as_slice).unwrap_or_default();
    let liveness = liveness(running, record);
    let mtu = running.shown_mtu(&record.key);
    let reason = blocked.first().map(|blocked| blocked.reason.as_str().to_owned());
    Peer {
        name: running.node.directory().display_name(&record.key),
        id: record.key.to_string(),
        zone: record.zone.to_string(),
        gossip: liveness.as_str().to_owned(),
        tunnel: tunnel.to_owned(),
        path: match via {
            _ if tunnel != "up" => "none",
            Some(_) => "relay",
            None => "direct",
        }
        .to_owned(),
        via: via.map(|gateway| running.node.directory().display_name(gateway)),
        endpoint: kernel.and_then(|peer| peer.endpoint).map(|endpoint| endpoint.to_string()),
        rtt_ms: transport.rtt(&record.key).map(|rtt| round_ms(rtt.as_secs_f64())),
        last_handshake_seconds: kernel.and_then(|p| p.last_handshake).map(|age| age.as_secs()),
        rx_bytes: kernel.map_or(0, |peer| peer.rx_bytes),
        tx_bytes: kernel.map_or(0, |peer| peer.tx_bytes),
        mtu: mtu.0,
        mtu_state: mtu.1.map(str::to_owned),
        mtu_since: mtu.2.and_then(rfc3339),
        public_key: lane.map(|lane| lane.public_key.to_string()),
        mesh_addresses: record.mesh_addresses.iter().map(|a| a.addr().to_string()).collect(),
        node_addresses: record.node_addresses.iter().map(ToString::to_string).collect(),
        prefixes: record.prefixes.iter().map(ToString::to_string).collect(),
        groups: record.certificate.groups.clone(),
        reason,
        version: record.software_version.clone(),
        blocked: blocked.iter().filter_map(blocked_prefix).collect(),
        endpoints: record.endpoints.iter().map(ToString::to_string).collect(),
        record_version: record.version,
        record_issued_at: rfc3339(record.issued_at),
        certificate_not_after: rfc3339(record.certificate.not_after),
        allowed_ips: kernel
            .map(|peer| peer.allowed_ips.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        device: None,
    }
}

/// The devices behind this host, by name. `side`: what they are told of it.
pub(super) fn devices(
    running: &Running,
    observed: Option<&Observed>,
    side: Option<&Side>,
) -> Vec<Peer> {
    running.devices.iter().map(|one| device(running, observed, one, side)).collect()
}

/// A device. It says nothing of itself: what is there is what this host knows and sees.
pub(super) fn device(
    running: &Running,
    observed: Option<&Observed>,
    device: &SavedDevice,
    side: Option<&Side>,
) -> Peer {
    let kernel = observed.and_then(|observed| observed.peers.get(&device.public_key));
    let blocked = running.plan.externals.get(&device.name).map(Vec::as_slice).unwrap_or_default();
    let tunnel = device_tunnel(kernel, blocked);
    let (config_shown_at, config_stale) = side.map_or((None, false), |side| side.judge(device));
    Peer {
        name: device.name.to_string(),
        tunnel: tunnel.to_owned(),
        path: if tunnel == "up" { "direct" } else { "none" }.to_owned(),
        endpoint: kernel.and_then(|peer| peer.endpoint).map(|endpoint| endpoint.to_string()),
        last_handshake_seconds: kernel.and_then(|p| p.last_handshake).map(|age| age.as_secs()),
        rx_bytes: kernel.map_or(0, |peer| peer.rx_bytes),
        tx_bytes: kernel.map_or(0, |peer| peer.tx_bytes),
        mtu: kernel.map(|_| path_mtu::BASE),
        mtu_state: kernel.map(|_| "fixed".to_owned()),
        public_key: Some(device.public_key.to_string()),
        prefixes: device.prefixes.iter().map(ToString::to_string).collect(),
        reason: blocked.first().map(|blocked| blocked.reason.as_str().to_owned()),
        blocked: blocked.iter().filter_map(blocked_prefix).collect(),
        allowed_ips: kernel
            .map(|peer| peer.allowed_ips.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        device: Some(Device {
            gateway: running.identity.certificate.name.to_string(),
            added_at: rfc3339(UnixTime(device.added_at)).unwrap_or_default(),
            private_key_kept: device.private_key.is_some(),
            preshared_key: device.preshared_key.is_some(),
            config_shown_at,
            config_stale,
            keepalive: u32::from(device.keepalive),
            dns: device.dns.clone(),
        }),
        ..Peer::default()
    }
}

/// A device that was not heard of for three minutes is away, or idle without keepalives: who it is has not been proved since.
fn device_tunnel(kernel: Option<&ObservedPeer>, blocked: &[Blocked]) -> &'static str {
    match kernel {
        None if !blocked.is_empty() => "blocked",
        Some(peer) if peer.allowed_ips.is_empty() => "blocked",
        None => TunnelState::Never.as_str(),
        Some(peer) => match peer.last_handshake {
            None => TunnelState::Never.as_str(),
            Some(age) if age < HANDSHAKE_FRESH => TunnelState::Up.as_str(),
            Some(_) => TunnelState::Stale.as_str(),
        },
    }
}

/// How many devices there are, by state.
pub(super) fn device_counts(running: &Running) -> PeerCounts {
    let mut counts = PeerCounts::default();
    for device in devices(running, running.observed.as_ref(), None) {
        counts.total += 1;
        match device.tunnel.as_str() {
            "up" => counts.up += 1,
            "stale" => counts.stale += 1,
            _ => {}
        }
    }
    counts
}

fn blocked_prefix(blocked: &Blocked) -> Option<BlockedPrefix> {
    Some(BlockedPrefix {
        prefix: blocked.prefix?.to_string(),
        reason: blocked.reason.as_str().to_owned(),
        message: blocked.message.clone(),
    })
}

/// Milliseconds with three decimals: a microsecond is as good as QUIC measures.
pub(super) fn round_ms(seconds: f64) -> f64 {
    (seconds * 1_000_000.0).round() / 1_000.0
}
