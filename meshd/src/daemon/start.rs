//! Bringing the daemon up: everything opened in the order in which it is safe.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Instant,
};

use anyhow::{Context, anyhow};
use meshd_core::{
    event::{Event, about_certificate},
    node::{Node, NodeConfig, Profile, VersionBlock},
    path_mtu::PathMtus,
    plan::{FirstHandshakes, PlanPace, Revival, SourceFacts, TunnelTracker},
    refusal::Code,
    trust::{Expiry, NodeIdentity, Signer},
};
use meshd_proto::BootId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, watch};

use super::{
    Daemon,
    bridge::Bridge,
    carrying::Carrying,
    clock,
    counters::Counters,
    devices::Devices,
    enrolment::Forwarded,
    events::EventLog,
    handed::Handed,
    health,
    identities::Identities,
    inboxes::{Inboxes, signals},
    own::{Found, Own, Told},
    running::{Running, SharedAnchors},
    systemd::Notifier,
    zones::Zones,
};
use crate::{
    chosen::Chosen,
    config::{self, Config, RouteSource, Sources, issuers::Loaded},
    control::{self, ControlSocket},
    dataplane::{BackendChoice, LinuxDataplane, sources::ForeignSources, watch::Watch},
    host::{Load, cni, watch_files::FileWatch, workloads},
    metrics::Metrics,
    reconcile::Reconciler,
    state::{
        Membership, StateDir,
        store::{Opened, Store},
    },
    transport::{TlsIdentity, Transport},
};

/// How long this host has been a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// It has just joined or made the mesh: there is nothing that it could have forgotten.
    Now,
    /// It was one before this start.
    Before,
}

/// Which WireGuard the configuration wants.
pub(crate) fn backend(config: &Config) -> BackendChoice {
    match config.wireguard.backend {
        config::Backend::Auto => BackendChoice::Auto,
        config::Backend::Kernel => BackendChoice::Kernel,
        config::Backend::Userspace => BackendChoice::Userspace,
    }
}

impl Daemon {
    /// Opens everything. Must run inside the runtime.
    pub(super) fn start(sources: Sources, chosen: Chosen) -> anyhow::Result<(Self, Inboxes)> {
        let Chosen { config, origin, trial, changed, damage } = chosen;
        let (terminate, interrupt, hangup) = signals().context("cannot catch signals")?;
        let state = StateDir::open(&config.node.state_dir)?;
        // What takes longest goes on beside the rest: a host that was switched on is back that much sooner.
        let opening = state.is_member().then(|| {
            let path = state.store_path();
            std::thread::spawn(move || Store::open(&path))
        });
        let socket = ControlSocket::bind(&config.control.socket, &config.control.group)?;
        let reset_key = state.reset_key(rand::random())?;
        let transport = Transport::open(config.gossip.listen, config.wireguard.fwmark, &reset_key)?;
        let mut dataplane = LinuxDataplane::new(backend(&config))?;
        if opening.is_some() {
            dataplane.look_ahead();
        }
        let watch = Watch::new(dataplane.ours())?;
        let (reconciler, reports) = Reconciler::start(Box::new(dataplane))
            .map_err(|error| anyhow!("cannot start the data plane's thread; {error}"))?;
        let mut found = Found::default();
        let follow = match config.network.route_source {
            RouteSource::Prefixes => None,
            RouteSource::Workloads => {
                Some(workloads::follow(config.network.workload_interfaces.clone())?)
            }
        };
        let first = follow.as_ref().map(|told| told.borrow().clone()).unwrap_or_default();
        let foreign = ForeignSources::listen()
            .inspect_err(
                |error| tracing::debug!(%error, "source NAT is on: nfnetlink_log does not tell"),
            )
            .ok();
        let known = SourceFacts { told: foreign.is_some(), ..SourceFacts::default() };
        let told = Told { workloads: first, sources: known };
        let own = Own::look(&config, &mut found, told, Instant::now())?;
        let files = watch_files();

        let mut notices: Vec<_> = socket
            .warning()
            .map(|warning| {
                // The warning's last part is what to do.
                let (message, fix) = warning.rsplit_once("; ").unwrap_or((warning, ""));
                health::notice("control_group", message, fix)
            })
            .into_iter()
            .collect();
        if let Some(why) = damage {
            notices.push(health::notice(
                "trial_damaged",
                &why,
                "see that the configuration's files are right",
            ));
        }
        let (calls, requests) = mpsc::channel(64);
        let (done, done_inbox) = mpsc::channel(16);
        let (heard, hears) = mpsc::channel(256);
        let (stop_control, stopped) = watch::channel(false);
        let events = EventLog::default();
        let bridge = Bridge::new(calls, events.clone());
        let server = control::serve(socket, Arc::new(bridge.clone()), stopped);
        let served = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the control socket is closed; restart meshd");
            }
        });

        let listen = config.metrics.listen;
        let metrics = listen.map(|address| Metrics::start(address, Arc::new(bridge.clone())));

        let mut daemon = Self {
            handed: Handed::new(sources.identity()),
            sources,
            config,
            origin,
            trial,
            restarting: false,
            state,
            transport,
            reconciler,
            running: None,
            own,
            found,
            counters: Counters::default(),
            events,
            problems: meshd_core::event::Problems::default(),
            status_due: Instant::now(),
            notices,
            joining: None,
            token_wait: None,
            waiter: None,
            inviting: None,
            unlocked: None,
            moved: 0,
            signers_due: Instant::now(),
            check_due: Instant::now(),
            join_error: None,
            reload_error: None,
            unlike: None,
            issuers: Loaded::default(),
            stopping: false,
            bridge,
            metrics,
            done,
            heard,
            heard_due: Instant::now(),
            notifier: Notifier::default(),
            resolve_due: None,
            guard: super::guard::Keeper::default(),
            flush_due: None,
            flushing: false,
            sync_due: None,
            look_due: Some(Instant::now() + super::LOOK_EVERY),
        };
        daemon.load_issuers();
        daemon.note_trial(changed);
        match daemon.state.membership()? {
            Some(membership) => {
                let opened = match opening.map(std::thread::JoinHandle::join) {
                    Some(Ok(opened)) => opened,
                    _ => Store::open(&daemon.state.store_path()),
                };
                daemon.become_member(membership, opened, Since::Before)?;
            }
            None => {
                tracing::info!("waiting; run `meshctl init` or `meshctl join TOKEN`");
                daemon.notifier.ready();
                daemon.look_at_handed();
                daemon.join_unattended();
            }
        }
        let inboxes = Inboxes {
            reports,
            requests,
            done: done_inbox,
            hears,
            watch,
            workloads: follow,
            foreign,
            files,
            terminate,
            interrupt,
            hangup,
            stop_control,
            served,
        };
        Ok((daemon, inboxes))
    }

    /// From `waiting` to `running`: the kernel is programmed from the store before anybody is asked.
    pub(super) fn become_member(
        &mut self,
        mut membership: Membership,
        opened: Opened,
        since: Since,
    ) -> anyhow::Result<()> {
        for damage in &opened.damage {
            tracing::warn!("{damage}");
        }
        membership.anchors.set_expiry(match self.config.trust.expiry {
            config::Expiry::Soft => Expiry::Soft,
            config::Expiry::Hard => Expiry::Hard,
        });
        let store_whole = since == Since::Now || opened.whole;
        let mut damage = opened.damage;
        // A signer that cannot sign is still a member.
        let signer = self.open_signer(&membership).unwrap_or_else(|error| {
            tracing::error!("{error}");
            damage.push(error.to_string());
            None
        });
        let identity = Arc::new(NodeIdentity {
            key: membership.identity,
            certificate: Arc::new(membership.certificate),
        });
        // Without versions nothing can be published; the node asks again. A full disk is no reason not to run.
        let versions = self.state.reserve_versions(0).unwrap_or_else(|error| {
            tracing::error!("{error}");
            damage.push(error.to_string());
            VersionBlock::default()
        });
        let node = Node::new(
            self.node_config(),
            identity.clone(),
            membership.anchors.clone(),
            rand::random(),
            versions,
            BootId(rand::random()),
            clock::now(),
        );
        let revocations_lost = match since {
            Since::Now => None,
            Since::Before => self.state.revocations_lost(&membership.anchors),
        };
        let before = self.peek_kernel();
        let identities = Identities::new(&self.issuers.files, membership.anchors.mesh_id());
        let mut running = Running {
            node,
            identity,
            lane: membership.lane,
            store: opened.store,
            signer,
            events: self.events.clone(),
            anchors: SharedAnchors(Arc::new(std::sync::RwLock::new(membership.anchors))),
            seeds: membership.seeds,
            prober: None,
            prober_failed: false,
            members: Arc::default(),
            tracker: TunnelTracker::default(),
            first: FirstHandshakes::default(),
            load: Load::from_now(),
            revival: Revival::default(),
            mtus: PathMtus::new(rand::random()),
            held: self.held_mtus(before.as_ref()),
            carrying: Carrying::new(rand::random(), before.as_ref()),
            zones: Zones::default(),
            heard: self.heard.clone(),
            observed: None,
            observed_at: None,
            plan: meshd_core::plan::Plan::default(),
            plan_number: 0,
            pace: PlanPace::new(Instant::now()),
            reached: opened.reached.into_iter().collect(),
            dataplane_errors: Vec::new(),
            repaired: String::new(),
            contested: false,
            damage,
            forwarded: Forwarded::default(),
            identities,
            devices: Devices::default(),
            left: None,
            store_whole,
            revocations_lost,
            flush_error: None,
            store_dirty: false,
            programmed: false,
        };
        for (key, record) in opened.records {
            if let Err(refusal) = running.node.restore(&record, clock::now()) {
                self.counters.stored_refused(refusal.code.as_str());
                running.store_whole = false;
                let text = format!("a stored record is not believed: {}", refusal.detail);
                let event = Event::warning("stored_record_refused", text);
                let event = event.about(key, key.short()).because(refusal.code.as_str());
                self.events.emit(event);
                // An issuer may only be unknown yet: the bundle comes with the first exchange.
                if refusal.code != Code::UnknownIssuer
                    && let Err(why) = running.store.remove(&key)
                {
                    tracing::error!(%why, "cannot write the record store");
                }
            }
        }
        // A crash may have come between the bundle and what it says of this host.
        if let Err(error) = self.state.settle_root(running.node.anchors()) {
            tracing::error!("{error}");
            running.damage.push(error.to_string());
        }
        if let Err(error) = running.follow_signership(&self.state) {
            tracing::error!("{error}");
            running.damage.push(error.to_string());
        }
        let tls = tls_identity(&running)?;
        let name = running.anchors.get().server_name();
        let certificate = running.identity.certificate.clone();
        self.transport.become_member(&tls, name, Arc::new(running.anchors.clone()))?;
        let own = running.own_record();
        running.zones = Zones::new(own.as_ref().and_then(|own| own.via));
        let announced = own.as_ref().map(|own| own.prefixes.clone()).unwrap_or_default();
        running.load_devices(&self.state, &announced, before.as_ref());
        // Not single workloads, whose routes say at once whether they are still there.
        let announced = own.map(|own| own.whole_prefixes()).unwrap_or_default();
        let ranges = running.devices.ranges(&certificate, &BTreeSet::new());
        // What was announced for devices is not looked for in the CNI's files, also where the last was just removed.
        let devices = &running.devices;
        let announced: Vec<_> = announced
            .into_iter()
            .filter(|prefix| !ranges.contains(prefix) && !devices.was_range(prefix))
            .collect();
        self.running = Some(running);
        self.handed.judge_again();
        self.join_error = None;
        self.sync_due.get_or_insert(Instant::now() + super::SYNC_DELAY);
        self.found.remember(announced, Instant::now());
        self.look_at_host();
        self.announce();
        self.resolve_seeds();
        let text = format!("running as {} of the mesh {}", certificate.name, certificate.mesh);
        let event = Event::info("running", text).about(certificate.key, &certificate.name);
        self.events.emit(about_certificate(event, &certificate));
        Ok(())
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig {
            profile: match self.config.gossip.profile {
                config::Profile::Lan => Profile::Lan,
                config::Profile::Wan => Profile::Wan,
            },
            forget_after: self.config.network.forget_after,
            ..NodeConfig::default()
        }
    }

    fn open_signer(&self, membership: &Membership) -> anyhow::Result<Option<Signer>> {
        if self.state.authority()?.is_none() {
            return Ok(None);
        }
        let signer = self
            .state
            .open_signer(&membership.anchors, &membership.identity)
            .map_err(|error| anyhow!("cannot act as signer; {error}"))?;
        Ok(Some(signer))
    }
}

/// Without it the files are looked at now and then all the same.
fn watch_files() -> Option<FileWatch> {
    FileWatch::new(cni::CniPaths::default().places())
        .inspect_err(|error| tracing::warn!(%error, "changes of the CNI's files are seen late"))
        .ok()
}

pub(super) fn tls_identity(running: &Running) -> anyhow::Result<TlsIdentity> {
    let anchors = running.anchors.0.read().unwrap_or_else(PoisonError::into_inner);
    let certificate = &running.identity.certificate;
    // Without an issuer nobody lets it in: it asks for a certificate at the door.
    let issuers = anchors.chain_of(certificate);
    let issuers = issuers.into_iter().map(|der| CertificateDer::from(der.to_vec()));
    let leaf = CertificateDer::from(certificate.der.to_vec());
    let key = running.identity.key.pkcs8_der();
    Ok(TlsIdentity {
        chain: std::iter::once(leaf).chain(issuers).collect(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())),
        roots: anchors.trust_anchors(),
    })
}
