//! The control API's backend: every call is a message to the loop, which answers it.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use meshd_core::event::Actor;
use meshd_proto::control::{
    AddDeviceReply, AddDeviceRequest, AddSignerRequest, ConfirmReply, CountersReply,
    CreateTokenReply, CreateTokenRequest, DeviceConfigReply, DeviceConfigRequest,
    EncryptRootRequest, EventsReply, EventsRequest, ExportRootReply, ExportRootRequest,
    ForgetDeviceKeyReply, ForgetDeviceKeyRequest, IdentityAudienceReply, IdentityAudienceRequest,
    InitReply, InitRequest, IssueCertificateReply, IssueCertificateRequest, JoinProgress,
    JoinRequest, LeaveReply, ListNodesReply, ListPeersReply, ListSignersReply, ListTokensReply,
    PingReply, PingRequest, ReloadReply, ReloadRequest, RemoveDeviceReply, RemoveDeviceRequest,
    RemoveRootKeyRequest, RenewCertificateReply, RevokeNodeReply, RevokeNodeRequest,
    RevokeSignerReply, RevokeSignerRequest, RevokeTokenReply, RevokeTokenRequest, RootsReply,
    ShowCertificatesReply, ShowPeerReply, ShowPeerRequest, SignerInfo, StatusReply,
    UnlockRootRequest,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::{deeds, events::EventLog};
use crate::{
    control::{Caller, ControlBackend, ControlError, Reply, ReplyStream},
    metrics::{Snapshot, Source},
};

/// Where one answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, ControlError>>;
/// Where the answers of a call that goes on go.
pub(super) type Answers<T> = mpsc::Sender<Result<T, ControlError>>;

/// A call, as the loop sees it.
pub(super) enum Request {
    Status(Answer<StatusReply>),
    Peers(Answer<ListPeersReply>),
    Peer(ShowPeerRequest, Answer<ShowPeerReply>),
    Ping(PingRequest, Answers<PingReply>),
    Tokens(Answer<ListTokensReply>),
    Counters(Answer<CountersReply>),
    Metrics(Answer<Snapshot>),
    Init(InitRequest, Answer<InitReply>),
    CreateToken(CreateTokenRequest, Answer<CreateTokenReply>),
    Join(JoinRequest, Answers<JoinProgress>),
    Leave(Answer<LeaveReply>),
    RevokeToken(RevokeTokenRequest, Answer<RevokeTokenReply>),
    Nodes(Answer<ListNodesReply>),
    RevokeNode(RevokeNodeRequest, Answer<RevokeNodeReply>),
    Renew(Answer<RenewCertificateReply>),
    Signers(Answer<ListSignersReply>),
    AddSigner(AddSignerRequest, Answer<SignerInfo>),
    RevokeSigner(RevokeSignerRequest, Answer<RevokeSignerReply>),
    Roots(Answer<RootsReply>),
    RotateRoot(Answer<RootsReply>),
    UnlockRoot(UnlockRootRequest, Answer<RootsReply>),
    EncryptRoot(EncryptRootRequest, Answer<RootsReply>),
    ExportRoot(ExportRootRequest, Answer<ExportRootReply>),
    RemoveRootKey(RemoveRootKeyRequest, Answer<RootsReply>),
    Issue(IssueCertificateRequest, Answer<IssueCertificateReply>),
    Certificates(Answer<ShowCertificatesReply>),
    IdentityAudience(IdentityAudienceRequest, Answer<IdentityAudienceReply>),
    AddDevice(AddDeviceRequest, Answer<AddDeviceReply>),
    DeviceConfig(DeviceConfigRequest, Answer<DeviceConfigReply>),
    ForgetDeviceKey(ForgetDeviceKeyRequest, Answer<ForgetDeviceKeyReply>),
    RemoveDevice(RemoveDeviceRequest, Answer<RemoveDeviceReply>),
    Reload(ReloadRequest, Answer<ReloadReply>),
    Confirm(Answer<ConfirmReply>),
}

/// A call, and who made it.
pub(super) struct Call {
    pub(super) by: Actor,
    pub(super) request: Request,
}

/// How often a watch looks; the server leaves out what did not change.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// The sending side, given to the control server.
#[derive(Clone)]
pub(super) struct Bridge {
    calls: mpsc::Sender<Call>,
    events: EventLog,
    by: Actor,
}

fn stopping() -> ControlError {
    ControlError::new("stopping", "the call was not answered", "meshd is stopping", "try again")
}

impl Bridge {
    /// For calls that nobody made from outside.
    pub(super) fn new(calls: mpsc::Sender<Call>, events: EventLog) -> Self {
        Self { calls, events, by: Actor::Daemon }
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(Answer<T>) -> Request + Send + 'static,
    ) -> BoxFuture<'static, Result<T, ControlError>> {
        let (loop_, by) = (self.calls.clone(), self.by);
        async move {
            let (answer, wait) = oneshot::channel();
            loop_.send(Call { by, request: request(answer) }).await.map_err(|_| stopping())?;
            wait.await.unwrap_or_else(|_| Err(stopping()))
        }
        .boxed()
    }

    fn ask_many<T: Send + 'static>(
        &self,
        request: impl FnOnce(Answers<T>) -> Request + Send + 'static,
    ) -> BoxFuture<'static, Result<ReplyStream<T>, ControlError>> {
        let (loop_, by) = (self.calls.clone(), self.by);
        async move {
            let (answers, stream) = mpsc::channel(16);
            loop_.send(Call { by, request: request(answers) }).await.map_err(|_| stopping())?;
            Ok(ReceiverStream::new(stream).boxed())
        }
        .boxed()
    }
}

impl Source for Bridge {
    fn snapshot(&self) -> BoxFuture<'_, Option<Snapshot>> {
        let asked = self.ask(Request::Metrics);
        async move { asked.await.ok() }.boxed()
    }
}

impl ControlBackend for Bridge {
    fn by(&self, caller: Caller) -> Arc<dyn ControlBackend> {
        Arc::new(Self { by: caller.actor(), ..self.clone() })
    }

    fn refused(&self, caller: Caller, error: &ControlError) {
        self.events.emit(deeds::refused(error).by(caller.actor()));
    }

    fn events(&self, request: EventsRequest) -> Reply<'_, ReplyStream<EventsReply>> {
        let events = self.events.read(request);
        async move { Ok(events) }.boxed()
    }

    fn status(&self) -> Reply<'_, StatusReply> {
        self.ask(Request::Status)
    }

    fn peers(&self) -> Reply<'_, ListPeersReply> {
        self.ask(Request::Peers)
    }

    fn watch_peers(&self) -> Reply<'_, ReplyStream<ListPeersReply>> {
        let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(WATCH_EVERY));
        let bridge = self.clone();
        let answers = stream::unfold(ticks, move |mut ticks| {
            let bridge = bridge.clone();
            async move {
                ticks.next().await?;
                Some((bridge.ask(Request::Peers).await, ticks))
            }
        });
        async move { Ok(answers.boxed()) }.boxed()
    }

    fn peer(&self, request: ShowPeerRequest) -> Reply<'_, ShowPeerReply> {
        self.ask(|answer| Request::Peer(request, answer))
    }

    fn ping(&self, request: PingRequest) -> Reply<'_, ReplyStream<PingReply>> {
        self.ask_many(|answers| Request::Ping(request, answers))
    }

    fn tokens(&self) -> Reply<'_, ListTokensReply> {
        self.ask(Request::Tokens)
    }

    fn counters(&self) -> Reply<'_, CountersReply> {
        self.ask(Request::Counters)
    }

    fn init(&self, request: InitRequest) -> Reply<'_, InitReply> {
        self.ask(|answer| Request::Init(request, answer))
    }

    fn create_token(&self, request: CreateTokenRequest) -> Reply<'_, CreateTokenReply> {
        self.ask(|answer| Request::CreateToken(request, answer))
    }

    fn join(&self, request: JoinRequest) -> Reply<'_, ReplyStream<JoinProgress>> {
        self.ask_many(|answers| Request::Join(request, answers))
    }

    fn leave(&self) -> Reply<'_, LeaveReply> {
        self.ask(Request::Leave)
    }

    fn revoke_token(&self, request: RevokeTokenRequest) -> Reply<'_, RevokeTokenReply> {
        self.ask(|answer| Request::RevokeToken(request, answer))
    }

    fn nodes(&self) -> Reply<'_, ListNodesReply> {
        self.ask(Request::Nodes)
    }

    fn revoke_node(&self, request: RevokeNodeRequest) -> Reply<'_, RevokeNodeReply> {
        self.ask(|answer| Request::RevokeNode(request, answer))
    }

    fn signers(&self) -> Reply<'_, ListSignersReply> {
        self.ask(Request::Signers)
    }

    fn add_signer(&self, request: AddSignerRequest) -> Reply<'_, SignerInfo> {
        self.ask(|answer| Request::AddSigner(request, answer))
    }

    fn revoke_signer(&self, request: RevokeSignerRequest) -> Reply<'_, RevokeSignerReply> {
        self.ask(|answer| Request::RevokeSigner(request, answer))
    }

    fn roots(&self) -> Reply<'_, RootsReply> {
        self.ask(Request::Roots)
    }

    fn rotate_root(&self) -> Reply<'_, RootsReply> {
        self.ask(Request::RotateRoot)
    }

    fn unlock_root(&self, request: UnlockRootRequest) -> Reply<'_, RootsReply> {
        self.ask(|answer| Request::UnlockRoot(request, answer))
    }

    fn encrypt_root(&self, request: EncryptRootRequest) -> Reply<'_, RootsReply> {
        self.ask(|answer| Request::EncryptRoot(request, answer))
    }

    fn export_root(&self, request: ExportRootRequest) -> Reply<'_, ExportRootReply> {
        self.ask(|answer| Request::ExportRoot(request, answer))
    }

    fn remove_root_key(&self, request: RemoveRootKeyRequest) -> Reply<'_, RootsReply> {
        self.ask(|answer| Request::RemoveRootKey(request, answer))
    }

    fn identity_audience(
        &self,
        request: IdentityAudienceRequest,
    ) -> Reply<'_, IdentityAudienceReply> {
        self.ask(|answer| Request::IdentityAudience(request, answer))
    }

    fn renew_certificate(&self) -> Reply<'_, RenewCertificateReply> {
        self.ask(Request::Renew)
    }

    fn issue_certificate(
        &self,
        request: IssueCertificateRequest,
    ) -> Reply<'_, IssueCertificateReply> {
        self.ask(|answer| Request::Issue(request, answer))
    }

    fn certificates(&self) -> Reply<'_, ShowCertificatesReply> {
        self.ask(Request::Certificates)
    }

    fn add_device(&self, request: AddDeviceRequest) -> Reply<'_, AddDeviceReply> {
        self.ask(|answer| Request::AddDevice(request, answer))
    }

    fn device_config(&self, request: DeviceConfigRequest) -> Reply<'_, DeviceConfigReply> {
        self.ask(|answer| Request::DeviceConfig(request, answer))
    }

    fn forget_device_key(
        &self,
        request: ForgetDeviceKeyRequest,
    ) -> Reply<'_, ForgetDeviceKeyReply> {
        self.ask(|answer| Request::ForgetDeviceKey(request, answer))
    }

    fn remove_device(&self, request: RemoveDeviceRequest) -> Reply<'_, RemoveDeviceReply> {
        self.ask(|answer| Request::RemoveDevice(request, answer))
    }

    fn reload(&self, request: ReloadRequest) -> Reply<'_, ReloadReply> {
        self.ask(move |answer| Request::Reload(request, answer))
    }

    fn confirm(&self) -> Reply<'_, ConfirmReply> {
        self.ask(Request::Confirm)
    }
}
