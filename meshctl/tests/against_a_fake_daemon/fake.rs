//! A daemon without a mesh: serves the real control server on a temporary socket and answers from
//! what the test gave it.

#![allow(clippy::unwrap_used)] // A failed step of a test is a failed test.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use futures::{FutureExt as _, StreamExt as _, future::ready, stream};
use meshd::control::{
    Caller, ControlBackend, ControlError, ControlSocket, Reply, ReplyStream, serve,
};
use meshd_proto::control::*;
use tokio::sync::watch;

/// What the daemon answers, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) status: StatusReply,
    pub(crate) peers: Vec<Peer>,
    pub(crate) tokens: Vec<TokenInfo>,
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) pings: Vec<PingReply>,
    pub(crate) join: Vec<JoinProgress>,
    pub(crate) events: Vec<EventsReply>,
    /// The signer repeats the certificate that is held.
    pub(crate) renewed_before: bool,
    pub(crate) not_granted: Vec<String>,
    pub(crate) config: DeviceConfigReply,
    pub(crate) reload: ReloadReply,
    pub(crate) error: Option<ControlError>,
    pub(crate) asked: Vec<String>,
    /// Who changed something, or was refused.
    pub(crate) callers: Vec<String>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn answer<T: Send + 'static>(
        &self,
        ask: String,
        with: impl FnOnce(&Script) -> T,
    ) -> Reply<'_, T> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(ask);
        let answer = match &script.error {
            Some(error) => Err(error.clone()),
            None => Ok(with(&script)),
        };
        ready(answer).boxed()
    }
}

fn each<T: Send + 'static>(items: Vec<T>) -> ReplyStream<T> {
    stream::iter(items.into_iter().map(Ok)).boxed()
}

fn roots() -> RootsReply {
    let root = |key: &str, state: &str| RootInfo {
        key: key.repeat(16),
        state: state.into(),
        not_before: "2026-01-01T00:00:00Z".into(),
        not_after: "2046-01-01T00:00:00Z".into(),
    };
    RootsReply {
        roots: vec![root("00aa", "retiring"), root("ff11", "active")],
        to_move: vec![signer("active")],
        to_renew: 3,
        key_state: "plain".into(),
    }
}

fn signer(state: &str) -> SignerInfo {
    SignerInfo {
        name: "db-1".into(),
        id: "abcd".into(),
        key: "00ff".into(),
        state: state.into(),
        self_: false,
    }
}

impl ControlBackend for Fake {
    fn by(&self, caller: Caller) -> Arc<dyn ControlBackend> {
        self.0.lock().unwrap().callers.push(caller.actor().to_string());
        Arc::new(self.clone())
    }
    fn refused(&self, caller: Caller, error: &ControlError) {
        let refused = format!("{}: {}", caller.actor(), error.code);
        self.0.lock().unwrap().callers.push(refused);
    }
    fn events(&self, request: EventsRequest) -> Reply<'_, ReplyStream<EventsReply>> {
        self.answer(format!("{request:?}"), |s| each(s.events.clone()))
    }
    fn status(&self) -> Reply<'_, StatusReply> {
        self.answer("status".into(), |s| s.status.clone())
    }
    fn peers(&self) -> Reply<'_, ListPeersReply> {
        self.answer("peers".into(), |s| ListPeersReply { peers: s.peers.clone() })
    }
    fn watch_peers(&self) -> Reply<'_, ReplyStream<ListPeersReply>> {
        // The same twice: the second says nothing new and must not be sent on.
        self.answer("watch".into(), |s| {
            let now = ListPeersReply { peers: s.peers.clone() };
            each(vec![now.clone(), now, ListPeersReply::default()])
        })
    }
    fn peer(&self, request: ShowPeerRequest) -> Reply<'_, ShowPeerReply> {
        let name = request.name.clone();
        self.answer(format!("peer {name}"), move |s| ShowPeerReply {
            peer: s.peers.iter().find(|peer| peer.name == name).cloned(),
        })
    }
    fn ping(&self, request: PingRequest) -> Reply<'_, ReplyStream<PingReply>> {
        self.answer(format!("{request:?}"), |s| each(s.pings.clone()))
    }
    fn tokens(&self) -> Reply<'_, ListTokensReply> {
        self.answer("tokens".into(), |s| ListTokensReply { tokens: s.tokens.clone() })
    }
    fn counters(&self) -> Reply<'_, CountersReply> {
        self.answer("counters".into(), |_| CountersReply::default())
    }
    fn init(&self, request: InitRequest) -> Reply<'_, InitReply> {
        self.answer(format!("{request:?}"), |_| InitReply {
            mesh: "demo".into(),
            node: "db-1".into(),
            id: "abcd".into(),
            mesh_addresses: vec!["100.112.0.1".into()],
            prefixes: Vec::new(),
            not_granted: Vec::new(),
        })
    }
    fn create_token(&self, request: CreateTokenRequest) -> Reply<'_, CreateTokenReply> {
        self.answer(format!("{request:?}"), |s| CreateTokenReply {
            token: "meshd-token".into(),
            info: s.tokens.first().cloned(),
        })
    }
    fn join(&self, request: JoinRequest) -> Reply<'_, ReplyStream<JoinProgress>> {
        let asked = format!("join {} {}", request.token, request.identity_document);
        self.answer(asked.trim_end().to_owned(), |s| each(s.join.clone()))
    }
    fn leave(&self) -> Reply<'_, LeaveReply> {
        self.answer("leave".into(), |_| LeaveReply {
            told: 2,
            mesh: "demo".into(),
            node: "db-1".into(),
            removed: vec!["interface mesh0".into(), "rule 2600".into()],
            authority: Some("/var/lib/meshd/former-ca-1".into()),
        })
    }
    fn revoke_token(&self, request: RevokeTokenRequest) -> Reply<'_, RevokeTokenReply> {
        self.answer(format!("{request:?}"), |s| RevokeTokenReply {
            info: s.tokens.first().cloned(),
        })
    }
    fn nodes(&self) -> Reply<'_, ListNodesReply> {
        self.answer("nodes".into(), |s| ListNodesReply { nodes: s.nodes.clone() })
    }
    fn revoke_node(&self, request: RevokeNodeRequest) -> Reply<'_, RevokeNodeReply> {
        self.answer(format!("{request:?}"), |_| RevokeNodeReply {
            name: "bad".into(),
            id: "abcd".into(),
            members: 3,
            before: false,
            prefixes: vec!["10.9.0.0/24".into()],
        })
    }
    fn signers(&self) -> Reply<'_, ListSignersReply> {
        self.answer("signers".into(), |_| ListSignersReply { signers: vec![signer("active")] })
    }
    fn add_signer(&self, request: AddSignerRequest) -> Reply<'_, SignerInfo> {
        self.answer(format!("{request:?}"), |_| signer("active"))
    }
    fn identity_audience(
        &self,
        request: IdentityAudienceRequest,
    ) -> Reply<'_, IdentityAudienceReply> {
        self.answer(format!("{request:?}"), |_| IdentityAudienceReply {
            audience: "meshd:00:aa".into(),
            issuer: "idp".into(),
            id: "aa".into(),
            bound_to_key: true,
        })
    }

    fn revoke_signer(&self, request: RevokeSignerRequest) -> Reply<'_, RevokeSignerReply> {
        self.answer(format!("{request:?}"), |_| RevokeSignerReply {
            signer: Some(signer("retiring")),
            users: 2,
        })
    }
    fn roots(&self) -> Reply<'_, RootsReply> {
        self.answer("ListRoots".to_owned(), |_| roots())
    }

    fn rotate_root(&self) -> Reply<'_, RootsReply> {
        self.answer("RotateRoot".to_owned(), |_| roots())
    }

    fn unlock_root(&self, request: UnlockRootRequest) -> Reply<'_, RootsReply> {
        self.answer(format!("{request:?}"), |_| roots())
    }

    fn encrypt_root(&self, request: EncryptRootRequest) -> Reply<'_, RootsReply> {
        self.answer(format!("{request:?}"), |_| roots())
    }

    fn export_root(&self, request: ExportRootRequest) -> Reply<'_, ExportRootReply> {
        self.answer(format!("{request:?}"), |_| ExportRootReply {
            key: "sealed\n".into(),
            public_key: "ff11".repeat(16),
        })
    }

    fn remove_root_key(&self, request: RemoveRootKeyRequest) -> Reply<'_, RootsReply> {
        self.answer(format!("{request:?}"), |_| roots())
    }

    fn renew_certificate(&self) -> Reply<'_, RenewCertificateReply> {
        self.answer("renew".into(), |script| RenewCertificateReply {
            not_before: "2026-01-01T00:00:00Z".into(),
            not_after: "2026-01-31T00:00:00Z".into(),
            prefixes: vec!["10.1.0.0/24".into()],
            renewed: !script.renewed_before,
            not_granted: script.not_granted.clone(),
            asked_in_seconds: (!script.not_granted.is_empty()).then_some(17),
        })
    }
    fn issue_certificate(
        &self,
        request: IssueCertificateRequest,
    ) -> Reply<'_, IssueCertificateReply> {
        self.answer(format!("{request:?}"), move |_| crate::certificates::issue(&request))
    }
    fn add_device(&self, request: AddDeviceRequest) -> Reply<'_, AddDeviceReply> {
        self.answer(format!("{request:?}"), |s| AddDeviceReply {
            peer: s.peers.first().cloned(),
            not_granted: s.not_granted.clone(),
            asked_in_seconds: (!s.not_granted.is_empty()).then_some(17),
            remarks: vec!["it has \u{1b}[31mIPv6 only".into()],
        })
    }
    fn device_config(&self, request: DeviceConfigRequest) -> Reply<'_, DeviceConfigReply> {
        self.answer(format!("{request:?}"), |s| s.config.clone())
    }
    fn forget_device_key(
        &self,
        request: ForgetDeviceKeyRequest,
    ) -> Reply<'_, ForgetDeviceKeyReply> {
        self.answer(format!("{request:?}"), |_| ForgetDeviceKeyReply { forgotten: true })
    }
    fn remove_device(&self, request: RemoveDeviceRequest) -> Reply<'_, RemoveDeviceReply> {
        self.answer(format!("{request:?}"), |_| RemoveDeviceReply {
            name: "phone".into(),
            public_key: "KEY3=".into(),
            prefixes: vec!["10.99.0.1/32".into()],
        })
    }
    fn reload(&self, request: ReloadRequest) -> Reply<'_, ReloadReply> {
        self.answer(format!("{request:?}"), |s| s.reload.clone())
    }
    fn confirm(&self) -> Reply<'_, ConfirmReply> {
        self.answer("confirm".into(), |s| ConfirmReply {
            needs_restart: s.reload.needs_restart.clone(),
            files_differ: s.reload.applied.clone(),
            files_broken: s.reload.restarting.then(|| "meshd.toml: line 1".into()),
        })
    }
    fn certificates(&self) -> Reply<'_, ShowCertificatesReply> {
        self.answer("certificates".into(), |_| crate::certificates::own())
    }
}

/// A running fake; it stops when dropped.
pub(crate) struct Daemon {
    home: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
    stop: Option<watch::Sender<bool>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    /// For root only, as on a host without the group.
    pub(crate) fn start(script: Script) -> Self {
        Self::start_for_group(script, "no-such-group")
    }

    pub(crate) fn start_for_group(script: Script, group: &'static str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let script = Arc::new(Mutex::new(script));
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, backend) = (home.path().join("s"), Fake(script.clone()));
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = ControlSocket::bind(&path, group).unwrap();
                let warned = socket.warning().is_some_and(|text| text.contains("groupadd"));
                assert_eq!(warned, group == "no-such-group");
                ready.send(()).unwrap();
                serve(socket, Arc::new(backend), stopped).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Self { home, script, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("s")
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    pub(crate) fn callers(&self) -> Vec<String> {
        self.script.lock().unwrap().callers.clone()
    }

    /// Runs `meshctl` with these arguments and no terminal.
    pub(crate) fn meshctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.arg("--socket").arg(self.socket()).args(arguments).env_remove("MESHD_SOCKET");
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
