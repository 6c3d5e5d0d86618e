//! Serves the API: one task per connection (by tonic), bounded in number per user and altogether.
//!
//! Queues: none of our own; a stream is polled only as fast as its client reads. Everything may be
//! cancelled at any await.

mod connections;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, future::ready};
use meshd_proto::control::{
    AddDeviceReply, AddDeviceRequest, AddSignerRequest, ConfirmReply, ConfirmRequest,
    CountersReply, CountersRequest, CreateTokenReply, CreateTokenRequest, DeviceConfigReply,
    DeviceConfigRequest, EncryptRootRequest, EventsReply, EventsRequest, ExportRootReply,
    ExportRootRequest, ForgetDeviceKeyReply, ForgetDeviceKeyRequest, IdentityAudienceReply,
    IdentityAudienceRequest, InitReply, InitRequest, IssueCertificateReply,
    IssueCertificateRequest, JoinProgress, JoinRequest, LeaveReply, LeaveRequest, ListNodesReply,
    ListNodesRequest, ListPeersReply, ListPeersRequest, ListRootsRequest, ListSignersReply,
    ListSignersRequest, ListTokensReply, ListTokensRequest, PingReply, PingRequest, ReloadReply,
    ReloadRequest, RemoveDeviceReply, RemoveDeviceRequest, RemoveRootKeyRequest,
    RenewCertificateReply, RenewCertificateRequest, RevokeNodeReply, RevokeNodeRequest,
    RevokeSignerReply, RevokeSignerRequest, RevokeTokenReply, RevokeTokenRequest, RootsReply,
    RotateRootRequest, ShowCertificatesReply, ShowCertificatesRequest, ShowPeerReply,
    ShowPeerRequest, SignerInfo, StatusReply, StatusRequest, UnlockRootRequest,
    control_server::{Control, ControlServer},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use self::connections::incoming;
use super::{Caller, ControlBackend, ControlError, ControlSocket, PeerFilter, ReplyStream};

/// Requests are names and a token.
const LARGEST_REQUEST: usize = 64 * 1024;
/// Calls at once on one connection.
const CALLS: u32 = 16;
/// For calls that are still open when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `stop` becomes true or its sender is gone, then ends watches and gives other calls
/// two seconds.
///
/// # Errors
/// When the socket fails for good.
pub async fn serve(
    socket: ControlSocket,
    backend: Arc<dyn ControlBackend>,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let service = ControlServer::new(Service { backend, stop: stop.clone() })
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS)
        .concurrency_limit_per_connection(CALLS as usize)
        .http2_max_header_list_size(8 * 1024)
        .serve_with_incoming_shutdown(service, incoming(&socket), stopped(stop.clone()));
    tokio::select! {
        done = served => done,
        () = async { stopped(stop).await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the daemon.
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Service {
    backend: Arc<dyn ControlBackend>,
    stop: watch::Receiver<bool>,
}

fn caller<T>(request: &Request<T>) -> Result<Caller, ControlError> {
    request.extensions().get::<Caller>().copied().ok_or_else(|| {
        ControlError::new("permission_denied", "the daemon refused to answer", "unknown caller", "")
    })
}

impl Service {
    /// What is asked by a caller that may look.
    fn look<T>(&self, request: Request<T>) -> Result<T, ControlError> {
        let caller = caller(&request)?;
        caller.check_read().inspect_err(|error| self.backend.refused(caller, error))?;
        Ok(request.into_inner())
    }

    /// What is asked, and who answers it for this caller: nothing is changed without saying by whom.
    fn change<T>(
        &self,
        request: Request<T>,
        what: &str,
    ) -> Result<(Arc<dyn ControlBackend>, T), ControlError> {
        let caller = caller(&request)?;
        caller.check_change(what).inspect_err(|error| self.backend.refused(caller, error))?;
        Ok((self.backend.by(caller), request.into_inner()))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answers<T: Send + 'static>(stream: ReplyStream<T>) -> Answers<T> {
    Box::pin(stream.map(|item| item.map_err(Status::from)))
}

#[tonic::async_trait]
impl Control for Service {
    type WatchPeersStream = Answers<ListPeersReply>;
    type PingStream = Answers<PingReply>;
    type JoinStream = Answers<JoinProgress>;
    type EventsStream = Answers<EventsReply>;

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.status().await?))
    }

    async fn list_peers(
        &self,
        request: Request<ListPeersRequest>,
    ) -> Result<Response<ListPeersReply>, Status> {
        let filter = PeerFilter::try_from(self.look(request)?)?;
        let mut reply = self.backend.peers().await?;
        reply.peers.retain(|peer| filter.matches(peer));
        Ok(Response::new(reply))
    }

    async fn watch_peers(
        &self,
        request: Request<ListPeersRequest>,
    ) -> Result<Response<Self::WatchPeersStream>, Status> {
        let filter = PeerFilter::try_from(self.look(request)?)?;
        let mut last = None;
        let peers = self.backend.watch_peers().await?.filter_map(move |item| {
            let item = item.map(|mut reply| {
                reply.peers.retain(|peer| filter.matches(peer));
                reply
            });
            let new = !matches!((&item, &last), (Ok(now), Some(before)) if now == before);
            if let (Ok(now), true) = (&item, new) {
                last = Some(now.clone());
            }
            ready(new.then_some(item))
        });
        let peers = peers.take_until(Box::pin(stopped(self.stop.clone())));
        Ok(Response::new(answers(peers.boxed())))
    }

    async fn show_peer(
        &self,
        request: Request<ShowPeerRequest>,
    ) -> Result<Response<ShowPeerReply>, Status> {
        Ok(Response::new(self.backend.peer(self.look(request)?).await?))
    }

    async fn ping(
        &self,
        request: Request<PingRequest>,
    ) -> Result<Response<Self::PingStream>, Status> {
        let replies = self.backend.ping(self.look(request)?).await?;
        let replies = replies.take_until(Box::pin(stopped(self.stop.clone())));
        Ok(Response::new(answers(replies.boxed())))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.tokens().await?))
    }

    async fn counters(
        &self,
        request: Request<CountersRequest>,
    ) -> Result<Response<CountersReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.counters().await?))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitReply>, Status> {
        let (backend, request) = self.change(request, "make a mesh")?;
        Ok(Response::new(backend.init(request).await?))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenReply>, Status> {
        let (backend, request) = self.change(request, "create a token")?;
        Ok(Response::new(backend.create_token(request).await?))
    }

    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (backend, request) = self.change(request, "join a mesh")?;
        Ok(Response::new(answers(backend.join(request).await?)))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let (backend, _) = self.change(request, "leave the mesh")?;
        Ok(Response::new(backend.leave().await?))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenReply>, Status> {
        let (backend, request) = self.change(request, "revoke a token")?;
        Ok(Response::new(backend.revoke_token(request).await?))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.nodes().await?))
    }

    async fn revoke_node(
        &self,
        request: Request<RevokeNodeRequest>,
    ) -> Result<Response<RevokeNodeReply>, Status> {
        let (backend, request) = self.change(request, "revoke a node")?;
        Ok(Response::new(backend.revoke_node(request).await?))
    }

    async fn list_signers(
        &self,
        request: Request<ListSignersRequest>,
    ) -> Result<Response<ListSignersReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.signers().await?))
    }

    async fn add_signer(
        &self,
        request: Request<AddSignerRequest>,
    ) -> Result<Response<SignerInfo>, Status> {
        let (backend, request) = self.change(request, "add a signer")?;
        Ok(Response::new(backend.add_signer(request).await?))
    }

    async fn revoke_signer(
        &self,
        request: Request<RevokeSignerRequest>,
    ) -> Result<Response<RevokeSignerReply>, Status> {
        let (backend, request) = self.change(request, "revoke a signer")?;
        Ok(Response::new(backend.revoke_signer(request).await?))
    }

    async fn list_roots(
        &self,
        request: Request<ListRootsRequest>,
    ) -> Result<Response<RootsReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.roots().await?))
    }

    async fn rotate_root(
        &self,
        request: Request<RotateRootRequest>,
    ) -> Result<Response<RootsReply>, Status> {
        let (backend, _) = self.change(request, "replace the root")?;
        Ok(Response::new(backend.rotate_root().await?))
    }

    async fn unlock_root(
        &self,
        request: Request<UnlockRootRequest>,
    ) -> Result<Response<RootsReply>, Status> {
        let (backend, request) = self.change(request, "unlock the root")?;
        Ok(Response::new(backend.unlock_root(request).await?))
    }

    async fn encrypt_root(
        &self,
        request: Request<EncryptRootRequest>,
    ) -> Result<Response<RootsReply>, Status> {
        let (backend, request) = self.change(request, "encrypt the root's key")?;
        Ok(Response::new(backend.encrypt_root(request).await?))
    }

    async fn export_root(
        &self,
        request: Request<ExportRootRequest>,
    ) -> Result<Response<ExportRootReply>, Status> {
        let (backend, request) = self.change(request, "export the root's key")?;
        Ok(Response::new(backend.export_root(request).await?))
    }

    async fn remove_root_key(
        &self,
        request: Request<RemoveRootKeyRequest>,
    ) -> Result<Response<RootsReply>, Status> {
        let (backend, request) = self.change(request, "take the root's key off this host")?;
        Ok(Response::new(backend.remove_root_key(request).await?))
    }

    async fn identity_audience(
        &self,
        request: Request<IdentityAudienceRequest>,
    ) -> Result<Response<IdentityAudienceReply>, Status> {
        // It makes this host's identity key, if there is none yet.
        let (backend, request) = self.change(request, "prepare a join")?;
        Ok(Response::new(backend.identity_audience(request).await?))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateReply>, Status> {
        let (backend, _) = self.change(request, "renew the certificate")?;
        Ok(Response::new(backend.renew_certificate().await?))
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let events = self.backend.events(self.look(request)?).await?;
        let events = events.take_until(Box::pin(stopped(self.stop.clone())));
        Ok(Response::new(answers(events.boxed())))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateReply>, Status> {
        let (backend, request) = self.change(request, "issue a certificate")?;
        Ok(Response::new(backend.issue_certificate(request).await?))
    }

    async fn show_certificates(
        &self,
        request: Request<ShowCertificatesRequest>,
    ) -> Result<Response<ShowCertificatesReply>, Status> {
        self.look(request)?;
        Ok(Response::new(self.backend.certificates().await?))
    }

    async fn add_device(
        &self,
        request: Request<AddDeviceRequest>,
    ) -> Result<Response<AddDeviceReply>, Status> {
        let (backend, request) = self.change(request, "add a device")?;
        Ok(Response::new(backend.add_device(request).await?))
    }

    async fn device_config(
        &self,
        request: Request<DeviceConfigRequest>,
    ) -> Result<Response<DeviceConfigReply>, Status> {
        // It holds secrets.
        let (backend, request) = self.change(request, "show a device's configuration")?;
        Ok(Response::new(backend.device_config(request).await?))
    }

    async fn forget_device_key(
        &self,
        request: Request<ForgetDeviceKeyRequest>,
    ) -> Result<Response<ForgetDeviceKeyReply>, Status> {
        let (backend, request) = self.change(request, "throw a device's key away")?;
        Ok(Response::new(backend.forget_device_key(request).await?))
    }

    async fn remove_device(
        &self,
        request: Request<RemoveDeviceRequest>,
    ) -> Result<Response<RemoveDeviceReply>, Status> {
        let (backend, request) = self.change(request, "remove a device")?;
        Ok(Response::new(backend.remove_device(request).await?))
    }

    async fn reload(
        &self,
        request: Request<ReloadRequest>,
    ) -> Result<Response<ReloadReply>, Status> {
        let (backend, request) = self.change(request, "reload the configuration")?;
        Ok(Response::new(backend.reload(request).await?))
    }

    async fn confirm(
        &self,
        request: Request<ConfirmRequest>,
    ) -> Result<Response<ConfirmReply>, Status> {
        let (backend, _) = self.change(request, "confirm the configuration")?;
        Ok(Response::new(backend.confirm().await?))
    }
}
