//! What the daemon answers to each call.

use std::sync::Arc;

use futures::{future::BoxFuture, stream::BoxStream};
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

use super::{Caller, ControlError};

/// The answer of a call.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, ControlError>>;
/// The answers of a call that goes on; an error ends it.
pub type ReplyStream<T> = BoxStream<'static, Result<T, ControlError>>;

/// One method per call. Callers have been checked when a method runs: changes come from root.
///
/// A future or stream is dropped when the client goes away; what must not be left half done runs in
/// a task of its own.
pub trait ControlBackend: Send + Sync + 'static {
    /// The same, for what this caller asks to have changed.
    fn by(&self, caller: Caller) -> Arc<dyn ControlBackend>;

    /// This caller may not have what it asked for, and was told so.
    fn refused(&self, caller: Caller, error: &ControlError);

    /// What happened, and if asked what happens from then on. The server passes it on as fast as the reader reads.
    fn events(&self, request: EventsRequest) -> Reply<'_, ReplyStream<EventsReply>>;

    /// This host.
    fn status(&self) -> Reply<'_, StatusReply>;

    /// All peers in the order in which they are shown. The server applies the caller's filter.
    fn peers(&self) -> Reply<'_, ListPeersReply>;

    /// All peers now and whenever something changed. The server applies the caller's filter and
    /// leaves out answers that say nothing new.
    fn watch_peers(&self) -> Reply<'_, ReplyStream<ListPeersReply>>;

    /// One peer by name (`NAME` or `NAME~ab12`).
    fn peer(&self, request: ShowPeerRequest) -> Reply<'_, ShowPeerReply>;

    /// Probes through the tunnel, one answer per probe.
    fn ping(&self, request: PingRequest) -> Reply<'_, ReplyStream<PingReply>>;

    /// Tokens that this host has signed.
    fn tokens(&self) -> Reply<'_, ListTokensReply>;

    /// Everything counted since start.
    fn counters(&self) -> Reply<'_, CountersReply>;

    /// Makes a mesh.
    fn init(&self, request: InitRequest) -> Reply<'_, InitReply>;

    /// Makes a join token.
    fn create_token(&self, request: CreateTokenRequest) -> Reply<'_, CreateTokenReply>;

    /// Joins a mesh; the last answer is `done`.
    fn join(&self, request: JoinRequest) -> Reply<'_, ReplyStream<JoinProgress>>;

    /// Leaves the mesh and removes all that meshd made on this host.
    fn leave(&self) -> Reply<'_, LeaveReply>;

    /// Ends what is left of a token's uses.
    fn revoke_token(&self, request: RevokeTokenRequest) -> Reply<'_, RevokeTokenReply>;

    /// Who belongs to the mesh, and who did.
    fn nodes(&self) -> Reply<'_, ListNodesReply>;

    /// Ends a node's membership.
    fn revoke_node(&self, request: RevokeNodeRequest) -> Reply<'_, RevokeNodeReply>;

    /// Who may admit, renew and revoke.
    fn signers(&self) -> Reply<'_, ListSignersReply>;

    /// Makes a member a signer.
    fn add_signer(&self, request: AddSignerRequest) -> Reply<'_, SignerInfo>;

    /// Ends that somebody is one.
    fn revoke_signer(&self, request: RevokeSignerRequest) -> Reply<'_, RevokeSignerReply>;

    /// The mesh's roots, and what the replacing of one waits for.
    fn roots(&self) -> Reply<'_, RootsReply>;

    /// Begins to replace the root.
    fn rotate_root(&self) -> Reply<'_, RootsReply>;

    /// Opens the root's key for a while.
    fn unlock_root(&self, request: UnlockRootRequest) -> Reply<'_, RootsReply>;

    /// Puts the root's key on disk under a passphrase.
    fn encrypt_root(&self, request: EncryptRootRequest) -> Reply<'_, RootsReply>;

    /// The root's key under a passphrase, to be kept elsewhere.
    fn export_root(&self, request: ExportRootRequest) -> Reply<'_, ExportRootReply>;

    /// Takes the root's key off this host, if it is that of the root that is named.
    fn remove_root_key(&self, request: RemoveRootKeyRequest) -> Reply<'_, RootsReply>;

    /// For which audience an identity document must be made to join with a token.
    fn identity_audience(
        &self,
        request: IdentityAudienceRequest,
    ) -> Reply<'_, IdentityAudienceReply>;

    /// Asks a signer for this node's next certificate, and waits for it.
    fn renew_certificate(&self) -> Reply<'_, RenewCertificateReply>;

    /// Issues a certificate for a host that gets it as a file.
    fn issue_certificate(
        &self,
        request: IssueCertificateRequest,
    ) -> Reply<'_, IssueCertificateReply>;

    /// This node's certificate and those above it.
    fn certificates(&self) -> Reply<'_, ShowCertificatesReply>;

    /// Takes a device that cannot run meshd behind this host.
    fn add_device(&self, request: AddDeviceRequest) -> Reply<'_, AddDeviceReply>;

    /// What a device's own configuration must say, with its secrets.
    fn device_config(&self, request: DeviceConfigRequest) -> Reply<'_, DeviceConfigReply>;

    /// Throws a device's private key away.
    fn forget_device_key(&self, request: ForgetDeviceKeyRequest)
    -> Reply<'_, ForgetDeviceKeyReply>;

    /// Takes a device away.
    fn remove_device(&self, request: RemoveDeviceRequest) -> Reply<'_, RemoveDeviceReply>;

    /// Reads the configuration again, for good or on trial.
    fn reload(&self, request: ReloadRequest) -> Reply<'_, ReloadReply>;

    /// Keeps the configuration that is on trial.
    fn confirm(&self) -> Reply<'_, ConfirmReply>;
}
