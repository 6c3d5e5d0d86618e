//! The page: each family with its help, then a line per series.
//!
//! The library writes and escapes; what is text of others is made plain before. Per member there are five series;
//! nothing else grows with the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use meshd_core::event::plain;
use meshd_proto::control::{Counter, CountersReply};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabel, EncodeMetric, text,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{PeerFigures, Snapshot, process::Process};

/// Of `meshctl status`.
const STATES: [&str; 5] = ["waiting", "joining", "running", "degraded", "stopping"];
const GOSSIP: [&str; 3] = ["alive", "suspect", "down"];
const TUNNELS: [&str; 4] = ["up", "stale", "never", "blocked"];

/// What each counter counts, by its name without `_total`.
const COUNTERS: [(&str, &str); 23] = [
    ("meshd_certificate_renewals_failed", "Attempts to renew this node's certificate that failed."),
    ("meshd_certificates_renewed", "Certificates of other nodes that this signer renewed."),
    ("meshd_connections_refused", "QUIC connections that were refused, by reason."),
    ("meshd_datagrams", "Gossip datagrams."),
    ("meshd_datagrams_bytes", "Bytes in gossip datagrams."),
    ("meshd_drift_repaired", "Changes in the kernel that undid what others had changed."),
    ("meshd_enrolments", "Nodes that this signer admitted."),
    ("meshd_enrolments_refused", "Requests to join or renew that were refused, by reason."),
    ("meshd_events", "Events by code and severity, as in `meshctl events`."),
    ("meshd_frames", "Frames on gossip streams."),
    ("meshd_frames_bytes", "Bytes in frames on gossip streams."),
    ("meshd_frames_dropped", "Frames dropped because a member was too slow."),
    ("meshd_issuer_keys", "Readings of the keys of issuers of identity documents, by outcome."),
    ("meshd_kernel_changes", "Changes made in the kernel."),
    ("meshd_kernel_changes_failed", "Changes in the kernel that failed."),
    ("meshd_records_accepted", "Records that were new when they came."),
    ("meshd_records_known", "Records that were held already when they came."),
    ("meshd_records_published", "Records that this node signed."),
    ("meshd_refusals", "What members sent and was not believed, by reason."),
    ("meshd_signerships_refused", "Invitations and offers of signership that were refused."),
    ("meshd_stored_records_refused", "Stored records that were not believed, by reason."),
    ("meshd_swim_renewals", "SWIM identities that this node gave up for a newer one."),
    ("meshd_syncs", "Anti-entropy exchanges that this node opened, by outcome."),
];

/// The page for `snapshot`.
pub(super) fn text(snapshot: Snapshot) -> Result<String, fmt::Error> {
    write(Page { snapshot, process: Process::now() })
}

/// The page, with the process as given.
pub(super) fn write(page: Page) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

#[derive(Debug)]
pub(super) struct Page {
    pub(super) snapshot: Snapshot,
    pub(super) process: Option<Process>,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.host(&mut families)?;
        self.peers(&mut families)?;
        counters(&mut families, &self.snapshot.counters)?;
        self.process(&mut families)
    }
}

impl Page {
    fn host(&self, families: &mut Families<'_>) -> fmt::Result {
        let status = &self.snapshot.status;
        let or_empty = |text: &Option<String>| plain(text.as_deref().unwrap_or_default());
        families.info(
            "meshd",
            "This daemon; empty labels: in no mesh.",
            &[
                ("version", plain(&status.version)),
                ("mesh", or_empty(&status.mesh)),
                ("node", or_empty(&status.node)),
                ("backend", or_empty(&status.backend)),
            ],
        )?;
        families.gauge(
            "meshd_state",
            "1 for the state that the daemon is in, as in `meshctl status`.",
            STATES.map(|state| ([("state", state)], u64::from(status.state == state))),
        )?;
        families.gauge(
            "meshd_synced",
            "1 when records were compared with another member since start, or there is none.",
            [(ALONE, u64::from(status.synced))],
        )?;
        let health: BTreeSet<(&str, &str)> =
            status.health.iter().map(|line| (line.code.as_str(), line.severity.as_str())).collect();
        families.gauge(
            "meshd_health",
            "1 for each health line of `meshctl status` that there is.",
            health.into_iter().map(|(code, severity)| {
                ([("code", plain(code)), ("severity", plain(severity))], 1_u64)
            }),
        )?;
        // A signer may have two keys while the root is replaced: the first to end is what matters.
        let mut ends: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for end in &self.snapshot.certificates {
            let at = ends.entry((end.kind, &end.name)).or_insert(end.at.0);
            *at = end.at.0.min(*at);
        }
        families.gauge(
            "meshd_certificate_expiry_timestamp_seconds",
            "When certificates end: this node's, the mesh's signers', the root's.",
            ends.into_iter()
                .map(|((kind, name), at)| ([("kind", kind.to_owned()), ("name", plain(name))], at)),
        )?;
        families.gauge(
            "meshd_records",
            "Records of members that are held, this node's own among them.",
            [(ALONE, self.snapshot.records)],
        )?;
        families.gauge(
            "meshd_connections",
            "Members with which a QUIC connection stands.",
            [(ALONE, self.snapshot.connections)],
        )
    }

    fn peers(&self, families: &mut Families<'_>) -> fmt::Result {
        let peers = &self.snapshot.peers;
        let count = |gossip, tunnel| {
            peers.iter().filter(|p| (p.gossip, p.tunnel) == (gossip, tunnel)).count() as u64
        };
        families.gauge(
            "meshd_peers",
            "Other members by what gossip and WireGuard say of them; those that left do not count.",
            GOSSIP.into_iter().flat_map(|gossip| {
                TUNNELS
                    .map(|tunnel| ([("gossip", gossip), ("tunnel", tunnel)], count(gossip, tunnel)))
            }),
        )?;
        let devices = self.snapshot.status.devices.unwrap_or_default();
        let others = devices.total.saturating_sub(devices.up).saturating_sub(devices.stale);
        let devices = [("up", devices.up), ("stale", devices.stale), ("never", others)];
        families.gauge(
            "meshd_devices",
            "Devices behind this host that cannot run meshd, by their tunnel; absent: there are none.",
            devices
                .into_iter()
                .filter(|_| devices.iter().any(|(_, count)| *count > 0))
                .map(|(tunnel, count)| ([("tunnel", tunnel)], u64::from(count))),
        )?;
        let of = |peer: &PeerFigures| [("peer", plain(&peer.name))];
        families.gauge(
            "meshd_peer_tunnel_up",
            "1 while the tunnel to this member is up.",
            peers.iter().map(|peer| (of(peer), u64::from(peer.tunnel == "up"))),
        )?;
        families.gauge(
            "meshd_peer_last_handshake_seconds",
            "Seconds since the last handshake with this member; absent: none yet.",
            peers.iter().filter_map(|peer| Some((of(peer), peer.last_handshake?))),
        )?;
        families.gauge(
            "meshd_peer_rtt_seconds",
            "Round-trip time of the QUIC connection with this member; absent: none stands.",
            peers.iter().filter_map(|peer| Some((of(peer), peer.rtt?))),
        )?;
        families.counter(
            "meshd_peer_received_bytes",
            "Bytes received through the tunnel to this member since it was made.",
            peers.iter().map(|peer| (of(peer), peer.rx_bytes)),
        )?;
        families.counter(
            "meshd_peer_sent_bytes",
            "Bytes sent through the tunnel to this member since it was made.",
            peers.iter().map(|peer| (of(peer), peer.tx_bytes)),
        )
    }

    fn process(&self, families: &mut Families<'_>) -> fmt::Result {
        let Some(process) = &self.process else { return Ok(()) };
        families.counter(
            "process_cpu_seconds",
            "User and system time of the daemon.",
            [(ALONE, process.cpu)],
        )?;
        families.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon.",
            [(ALONE, process.resident)],
        )?;
        families.gauge(
            "process_virtual_memory_bytes",
            "Virtual memory of the daemon.",
            [(ALONE, process.virtual_memory)],
        )?;
        families.gauge(
            "process_open_fds",
            "Open file descriptors of the daemon.",
            process.open_files.map(|count| (ALONE, count)),
        )
    }
}

fn counters(families: &mut Families<'_>, reply: &CountersReply) -> fmt::Result {
    let mut by_name: BTreeMap<&str, Vec<&Counter>> = BTreeMap::new();
    for counter in &reply.counters {
        let name = counter.name.strip_suffix("_total").unwrap_or(&counter.name);
        by_name.entry(name).or_default().push(counter);
    }
    for (name, series) in by_name {
        let help = COUNTERS.iter().find(|(of, _)| *of == name).map_or("", |(_, help)| *help);
        let rows = series.into_iter().map(|counter| {
            let labels: BTreeMap<_, _> = counter.labels.iter().collect();
            let labels = labels.into_iter().map(|(key, value)| (key.clone(), plain(value)));
            (labels.collect::<Vec<_>>(), counter.value)
        });
        families.counter(name, help, rows)?;
    }
    Ok(())
}

/// Labels of a family with one series.
const ALONE: [(&str, &str); 0] = [];

/// Writes a family with its series; one without any is left out.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<T: EncodeLabel, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (impl AsRef<[T]>, V)>,
    ) -> fmt::Result {
        let rows = rows.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, rows)
    }

    fn counter<T: EncodeLabel, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (impl AsRef<[T]>, V)>,
    ) -> fmt::Result {
        let rows = rows.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, rows)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, String)]) -> fmt::Result {
        let mut series = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        series.encode_info(&labels)
    }

    fn family<T: EncodeLabel>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl Iterator<Item = (impl AsRef<[T]>, impl EncodeMetric)>,
    ) -> fmt::Result {
        let mut rows = rows.peekable();
        let Some((first, _)) = rows.peek() else { return Ok(()) };
        let alone = first.as_ref().is_empty();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        match rows.next_if(|_| alone) {
            // A series without labels is the only one.
            Some((_, value)) => value.encode(family),
            None => rows.try_for_each(|(labels, value)| {
                value.encode(family.encode_family(&labels.as_ref())?)
            }),
        }
    }
}
