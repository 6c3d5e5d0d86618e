//! Is told by the kernel of packets that leave into the mesh with a source that is not ours there, see
//! [`SourceNat::watch`].

use std::{future::poll_fn, io, task::Poll};

use meshd_core::plan::SourceNat;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterProtoFamily,
    nflog::{ConfigCmd, ConfigMode, ConfigNla, config_request},
};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

/// Headers of a message and of what is in it, without a packet's content.
const BUFFER: usize = 4 * 1024;

/// The kernel's word of such packets.
pub struct ForeignSources(TokioSocket);

impl ForeignSources {
    /// Listens in the network namespace of the calling thread. Must be called inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, where the kernel has no nfnetlink_log, and where another program has the group.
    pub fn listen() -> io::Result<Self> {
        let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        // The first packet at once (one, not a hundred or a second), and nothing of what is in it.
        let wanted: Vec<ConfigNla> =
            vec![ConfigCmd::Bind.into(), ConfigMode::META.into(), ConfigNla::QThresh(1)];
        let request = config_request(NetfilterProtoFamily::Unspec, SourceNat::LOG_GROUP, wanted);
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.socket_ref().send(&bytes, 0)?;
        // The kernel answers before the call above returns.
        let mut answer = Vec::with_capacity(BUFFER);
        socket.socket_ref().recv(&mut answer, 0)?;
        match NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map(|read| read.payload) {
            Ok(NetlinkPayload::Error(error)) if error.code.is_some() => Err(error.to_io()),
            Ok(NetlinkPayload::Error(_)) => Ok(Self(socket)),
            Ok(_) => Err(io::Error::other("an answer to something else")),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Waits for the first such packet. Cancel safe.
    pub async fn seen(&mut self) {
        let mut buffer = Vec::with_capacity(BUFFER);
        poll_fn(|context| match self.0.poll_recv(context, &mut buffer) {
            // ENOBUFS: there were more than there is room for.
            Poll::Ready(Ok(()) | Err(_)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        })
        .await;
    }
}
