//! Calls of the control API, answered by the loop.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use meshd_core::{address, event::Event, trust::Record};
use meshd_proto::control::{
    CreateTokenReply, CreateTokenRequest, ListPeersReply, ListTokensReply, Peer, PingReply,
    PingRequest, RevokeTokenReply, RevokeTokenRequest, ShowPeerReply,
};
use tokio::sync::oneshot;

use super::{
    Daemon, Done,
    bridge::{Answers, Call, Request},
    clock, deeds,
    root_key::Asked,
    status,
};
use crate::{control::ControlError, probe, state::devices::SavedDevice};

/// Probes per call.
const PROBES: u32 = 10_000;
/// Longest interval and timeout that a caller may ask for.
const PROBE_LONGEST: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Payload of a probe unless asked otherwise, as `ping` has it.
const PROBE_SIZE: usize = 56;

/// This host belongs to no mesh yet.
pub(super) fn not_a_member(doing: &str) -> ControlError {
    ControlError::new(
        "not_a_member",
        format!("cannot {doing}"),
        "this host belongs to no mesh",
        "`meshctl init --mesh NAME` makes one, `meshctl join TOKEN` joins one",
    )
}

/// An answer whose caller went away is nobody's loss.
fn answer<T>(to: oneshot::Sender<T>, with: T) {
    let _ = to.send(with);
}

impl Daemon {
    pub(super) async fn on_request(&mut self, call: Call) {
        let Call { by, request } = call;
        match request {
            Request::Status(to) => answer(to, Ok(status::status(self))),
            request @ (Request::Peers(_) | Request::Peer(..) | Request::Metrics(_)) => {
                self.look_for(request);
            }
            Request::Ping(request, to) => self.ping(&request, to),
            Request::Tokens(to) => answer(to, self.tokens()),
            Request::Counters(to) => answer(to, Ok(self.all_counters())),
            Request::Init(request, to) => {
                let made = self.init(&request);
                self.note(by, &made, deeds::mesh_created);
                answer(to, made);
            }
            Request::CreateToken(request, to) => {
                let made = self.create_token(&request);
                let tell = |made: &CreateTokenReply| {
                    deeds::token_created(&made.info.clone().unwrap_or_default())
                };
                self.note(by, &made, tell);
                answer(to, made);
            }
            Request::RevokeToken(request, to) => {
                let revoked = self.revoke_token(&request);
                let tell = |revoked: &RevokeTokenReply| {
                    deeds::token_revoked(&revoked.info.clone().unwrap_or_default())
                };
                self.note(by, &revoked, tell);
                answer(to, revoked);
            }
            Request::Nodes(to) => answer(to, self.nodes()),
            Request::RevokeNode(request, to) if request.look => {
                answer(to, self.whom_to_revoke(&request));
            }
            Request::RevokeNode(request, to) => {
                let revoked = self.revoke_node(&request);
                self.note(by, &revoked, |reply| deeds::node_revoked(&request, reply));
                answer(to, revoked);
            }
            Request::Renew(to) => {
                let text = "this node's next certificate was asked for";
                self.events.emit(Event::info("renewal_requested", text).by(by));
                self.renew(to);
            }
            Request::Signers(to) => answer(to, self.signers()),
            Request::AddSigner(request, to) => self.add_signer(&request, by, to),
            Request::RevokeSigner(request, to) => {
                let revoked = self.revoke_signer(&request);
                self.note(by, &revoked, |reply| deeds::signer_revoked(&request, reply));
                answer(to, revoked);
            }
            Request::Roots(to) => answer(to, self.roots()),
            Request::RotateRoot(to) => self.rotate_root(Asked { by, to }),
            Request::UnlockRoot(request, to) => self.unlock_root(&request, Asked { by, to }),
            Request::EncryptRoot(request, to) => {
                self.encrypt_root(&request.passphrase, Asked { by, to });
            }
            Request::ExportRoot(request, to) => {
                self.export_root(&request.passphrase, Asked { by, to });
            }
            Request::RemoveRootKey(request, to) => {
                self.remove_root_key(&request.public_key, Asked { by, to });
            }
            Request::Join(request, to) => self.join(&request, by, to),
            Request::Issue(request, to) => {
                let issued = self.issue(&request);
                self.note(by, &issued, deeds::issued);
                answer(to, issued);
            }
            Request::Certificates(to) => answer(to, self.certificates()),
            Request::IdentityAudience(request, to) => {
                let audience = self.identity_audience(&request);
                answer(to, audience);
            }
            Request::AddDevice(request, to) => self.add_device(&request, by, to),
            Request::RemoveDevice(request, to) => self.remove_device(&request.name, by, to),
            Request::DeviceConfig(request, to) => {
                let config = self.device_config(&request);
                if !request.without_keys || config.is_err() {
                    self.note(by, &config, deeds::device_config_shown);
                }
                answer(to, config);
            }
            Request::ForgetDeviceKey(request, to) => {
                let forgotten = self.forget_device_key(&request.name);
                self.note(by, &forgotten, |_| deeds::device_key_forgotten(&request.name));
                answer(to, forgotten);
            }
            Request::Reload(request, to) => {
                let reloaded = self.reload_by(&request, by);
                answer(to, reloaded);
            }
            Request::Confirm(to) => {
                let confirmed = self.confirm();
                self.note(by, &confirmed, |_| deeds::config_confirmed());
                answer(to, confirmed);
            }
            Request::Leave(to) => {
                let left = self.leave().await;
                self.note(by, &left, deeds::left);
                answer(to, left);
            }
        }
    }

    /// Has the kernel's counters of now read, and the request answered then. The thread answers within
    /// milliseconds unless the kernel is stuck; then old figures do.
    fn look_for(&self, request: Request) {
        let look = self.reconciler.look_now();
        let done = self.done.clone();
        tokio::spawn(async move {
            let observed =
                tokio::time::timeout(LOOK, look).await.ok().and_then(Result::ok).flatten();
            // The loop only goes away with the process.
            let _ = done.send(Done::Looked(observed.map(Box::new), Box::new(request))).await;
        });
    }

    /// Answers what asks for peers.
    pub(super) fn answer_peers(&self, request: Request) {
        let peers = || match &self.running {
            Some(running) => {
                let observed = running.observed.as_ref();
                let mut peers = status::peers(running, observed, &self.transport);
                peers.extend(status::devices(running, observed, self.side().as_ref()));
                peers
            }
            None => Vec::new(),
        };
        match request {
            Request::Peers(to) => answer(to, Ok(ListPeersReply { peers: peers() })),
            Request::Peer(request, to) => {
                let found = match self.is_this_host(&request.name) {
                    Some(error) => Err(error),
                    None => find(peers(), &request.name),
                };
                answer(to, found.map(|peer| ShowPeerReply { peer: Some(peer) }));
            }
            Request::Metrics(to) => answer(to, Ok(self.snapshot())),
            _ => {}
        }
    }

    fn is_this_host(&self, name: &str) -> Option<ControlError> {
        let running = self.running.as_ref()?;
        let is_own = running.identity.certificate.name.as_str() == name;
        let others = running.node.directory().by_name(name);
        let only = others.iter().all(|record| record.left || record.key == running.node.key());
        (is_own && only).then(|| {
            let fix = "`meshctl status` and `meshctl cert show` tell of it";
            ControlError::new(
                "peer_not_found",
                format!("{name} is no peer"),
                "that is this host",
                fix,
            )
        })
    }

    fn ping(&self, request: &PingRequest, to: Answers<PingReply>) {
        match self.prepare_ping(request) {
            Ok(plan) => {
                tokio::spawn(async move {
                    tokio::select! {
                        () = plan.run(&to) => {}
                        // The caller went away.
                        () = to.closed() => {}
                    }
                });
            }
            Err(error) => {
                let _ = to.try_send(Err(error));
            }
        }
    }

    fn prepare_ping(&self, request: &PingRequest) -> Result<Ping, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("ping"))?;
        let refused = |why, fix| {
            Err(ControlError::new("bad_request", format!("cannot ping {}", request.name), why, fix))
        };
        if running.node.is_revoked() {
            return Err(is_revoked("ping"));
        }
        let named = running.node.directory().by_name(&request.name);
        let mut devices = running.devices.iter();
        if named.is_empty()
            && let Some(device) = devices.find(|device| device.name.as_str() == request.name)
        {
            return Err(is_a_device(device));
        }
        let record = one_of(&named, &request.name)?;
        if record.key == running.node.key() {
            return refused("that is this host", "name another member");
        }
        if record.left {
            return refused("it has left the mesh", "`meshctl peers list` shows who is there");
        }
        let prober = running.prober.clone().ok_or_else(|| {
            ControlError::new(
                "not_ready",
                format!("cannot ping {}", request.name),
                "the tunnel device is not up",
                "see `meshctl status`",
            )
        })?;
        let kernel = record
            .lanes
            .first()
            .and_then(|lane| running.observed.as_ref()?.peers.get(&lane.public_key));
        let duration = |ms: u32, default: Duration| match ms {
            0 => default,
            ms => Duration::from_millis(u64::from(ms)).min(PROBE_LONGEST),
        };
        Ok(Ping {
            name: request.name.clone(),
            target: address::ula(&running.identity.certificate.mesh_id, &record.key),
            endpoint: kernel.and_then(|peer| peer.endpoint).map(|e| e.to_string()),
            mtu: running.shown_mtu(&record.key).0,
            prober,
            count: request.count.clamp(1, PROBES),
            size: match request.size {
                0 => PROBE_SIZE,
                size => (size as usize).min(probe::LARGEST),
            },
            interval: duration(request.interval_ms, PROBE_INTERVAL),
            timeout: duration(request.timeout_ms, PROBE_TIMEOUT),
        })
    }

    fn tokens(&self) -> Result<ListTokensReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("list tokens"))?;
        let signer = running.signer.as_ref().ok_or_else(|| not_a_signer("list tokens"))?;
        let tokens =
            signer.tokens(clock::unix()).map(|token| super::tokens::info(&token)).collect();
        Ok(ListTokensReply { tokens })
    }

    fn create_token(
        &mut self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenReply, ControlError> {
        let port = self.gossip_port();
        let seeds = self.own.endpoints(&self.config, port);
        let running = self.running.as_mut().ok_or_else(|| not_a_member("make a token"))?;
        if running.node.is_revoked() {
            return Err(is_revoked("make a token"));
        }
        running.create_token(request, &seeds, &self.state)
    }

    fn revoke_token(
        &mut self,
        request: &RevokeTokenRequest,
    ) -> Result<RevokeTokenReply, ControlError> {
        let running = self.running.as_mut().ok_or_else(|| not_a_member("revoke a token"))?;
        running.revoke_token(&request.id, &self.state)
    }
}

/// An answer waits no longer for the kernel's counters.
const LOOK: Duration = Duration::from_millis(60);

/// Nobody believes this host any more.
fn is_revoked(doing: &str) -> ControlError {
    ControlError::new(
        "revoked",
        format!("cannot {doing}"),
        "the membership of this host was ended: no member answers it or believes it",
        "`meshctl leave` clears what remains here; then join with a new token",
    )
}

/// Only signers have what it takes.
pub(super) fn not_a_signer(doing: &str) -> ControlError {
    ControlError::new(
        "not_a_signer",
        format!("cannot {doing}"),
        "this host is a member, but no signer of its mesh",
        "do it on a signer: `meshctl signer list` names them",
    )
}

fn is_a_device(device: &SavedDevice) -> ControlError {
    let single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
    let address = device.prefixes.iter().find(single).map(IpNet::addr);
    let fix = match address {
        Some(address) => format!("use `ping {address}`"),
        None => "use `ping` with its address".to_owned(),
    };
    let what = format!("cannot ping {}", device.name);
    ControlError::new("bad_request", what, "it is a device, which answers no probes of meshd", fix)
}

fn no_such_peer(name: &str) -> ControlError {
    let shown: String = name.chars().take(80).collect();
    ControlError::new(
        "peer_not_found",
        format!("no peer named {shown:?}"),
        "no member of this mesh has that name",
        "`meshctl peers list` shows the names",
    )
}

/// The only member of that name.
pub(super) fn one_of<'a>(
    found: &[&'a Arc<Record>],
    name: &str,
) -> Result<&'a Arc<Record>, ControlError> {
    match found {
        [one] => Ok(one),
        [] => Err(no_such_peer(name)),
        several => Err(ControlError::new(
            "name_conflict",
            format!(
                "{name} is the name of {} {}",
                several.len(),
                if several.iter().all(|record| record.left) { "that have left" } else { "members" }
            ),
            "the name alone does not tell which is meant",
            format!(
                "say {name}~{}, with the letters that `meshctl peers list` shows",
                several[0].key.short()
            ),
        )),
    }
}

fn find(peers: Vec<Peer>, name: &str) -> Result<Peer, ControlError> {
    peers.into_iter().find(|peer| peer.name == name).ok_or_else(|| no_such_peer(name))
}

/// A series of probes.
struct Ping {
    name: String,
    target: std::net::Ipv6Addr,
    endpoint: Option<String>,
    mtu: Option<u32>,
    prober: Arc<probe::Prober>,
    count: u32,
    size: usize,
    interval: Duration,
    timeout: Duration,
}

impl Ping {
    async fn run(self, to: &Answers<PingReply>) {
        let mut ticks = tokio::time::interval(self.interval);
        for sequence in 1..=self.count {
            ticks.tick().await;
            let rtt = match self.prober.ping(self.target, self.size, self.timeout).await {
                Ok(rtt) => rtt,
                Err(error) => {
                    let failed = ControlError::new(
                        "probe_failed",
                        format!("cannot ping {}", self.name),
                        error.to_string(),
                        "see `meshctl status`",
                    );
                    let _ = to.send(Err(failed)).await;
                    return;
                }
            };
            let reply = PingReply {
                sequence,
                rtt_ms: rtt.map(|rtt| status::round_ms(rtt.as_secs_f64())),
                path: if rtt.is_some() { "direct" } else { "none" }.to_owned(),
                endpoint: self.endpoint.clone(),
                mtu: self.mtu,
                address: self.target.to_string(),
                name: self.name.clone(),
            };
            if to.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }
}
