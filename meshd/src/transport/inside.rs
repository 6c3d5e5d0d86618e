//! The QUIC port inside the tunnel: for members between which a gateway carries, that have no other way to each other.
//!
//! It is bound to the mesh's device, so that nothing of it leaves in the clear whatever became of routes and rules, and
//! nothing comes in but out of the tunnel. A device that was made anew is another one: the socket is changed below the
//! connections, which go on.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use ipnet::Ipv6Net;
use meshd_core::limits::INSIDE_PORT;
use nix::net::if_::if_nametoindex;
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::{
    Report, Transport,
    server::{self, Gate},
};

/// Length of a mesh's prefix of addresses.
const MESH: u8 = 48;

/// The port, once there is a device.
#[derive(Default)]
pub(super) struct Inside {
    open: Option<Open>,
    /// What did not work the last time: said once.
    failed: Option<String>,
}

struct Open {
    endpoint: Endpoint,
    ula: Ipv6Addr,
    /// Index of the device.
    device: u32,
}

/// What a new endpoint needs.
pub(super) struct Needs<'a> {
    pub(super) config: &'a EndpointConfig,
    pub(super) server: Option<&'a ServerConfig>,
    pub(super) gate: &'a Gate,
    pub(super) reports: &'a mpsc::Sender<Report>,
}

impl Inside {
    /// The endpoint that reaches `address`, if that is one of this mesh.
    pub(super) fn endpoint_for(&self, address: &SocketAddr) -> Option<&Endpoint> {
        let open = self.open.as_ref()?;
        let SocketAddr::V6(v6) = address else { return None };
        let mesh = Ipv6Net::new_assert(open.ula, MESH).trunc();
        (mesh.contains(v6.ip()) && v6.port() == INSIDE_PORT).then_some(&open.endpoint)
    }

    pub(super) fn set_server(&self, server: Option<ServerConfig>) {
        if let Some(open) = &self.open {
            open.endpoint.set_server_config(server);
        }
    }

    fn keep(&mut self, ula: Ipv6Addr, interface: &str, needs: &Needs<'_>) {
        let Ok(device) = if_nametoindex(interface) else { return };
        if self.open.as_ref().is_some_and(|open| (open.ula, open.device) == (ula, device)) {
            return;
        }
        match self.bind(ula, interface, device, needs) {
            Ok(()) => self.failed = None,
            Err(error) => {
                let why = error.to_string();
                if self.failed.as_ref() != Some(&why) {
                    tracing::warn!(
                        %error,
                        "cannot listen on [{ula}]:{INSIDE_PORT} inside the tunnel; members behind \
                         gateways do not reach this host's gossip"
                    );
                }
                self.failed = Some(why);
            }
        }
    }

    fn bind(
        &mut self,
        ula: Ipv6Addr,
        interface: &str,
        device: u32,
        needs: &Needs<'_>,
    ) -> io::Result<()> {
        let socket = socket(ula, interface)?;
        match &mut self.open {
            Some(open) if open.ula == ula => {
                open.endpoint.rebind(socket)?;
                open.device = device;
            }
            _ => {
                let runtime = Arc::new(TokioRuntime);
                let config = needs.config.clone();
                let endpoint = Endpoint::new(config, needs.server.cloned(), socket, runtime)?;
                let (gate, reports) = (needs.gate.clone(), needs.reports.clone());
                // Who comes from a pod's address, as a gateway could, would seem to be there on the underlay.
                let mesh = Ipv6Net::new_assert(ula, MESH).trunc();
                tokio::spawn(server::accept(endpoint.clone(), gate, reports, Some(mesh)));
                if let Some(old) = self.open.replace(Open { endpoint, ula, device }) {
                    old.endpoint.close(0_u32.into(), b"another address");
                }
            }
        }
        Ok(())
    }

    /// Nobody is let in any more; what is said to those who are connected still goes out.
    pub(super) async fn wait_idle(&self) {
        if let Some(open) = &self.open {
            open.endpoint.wait_idle().await;
        }
    }
}

fn socket(ula: Ipv6Addr, interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_freebind_v6(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((ula, INSIDE_PORT)).into())?;
    Ok(socket.into())
}

impl Transport {
    /// Listens on `ula` inside the tunnel, as long as there is the device `interface`. Cheap when nothing changed.
    pub fn keep_inside(&mut self, ula: Ipv6Addr, interface: &str) {
        let needs = Needs {
            config: &self.endpoint_config,
            server: self.member.as_ref().map(|member| &member.server),
            gate: &self.gate,
            reports: &self.reports,
        };
        self.inside.keep(ula, interface, &needs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_addresses_of_this_mesh_are_dialled_inside() {
        let mut inside = Inside::default();
        let (reports, _inbox) = mpsc::channel(1);
        let gate = Gate::default();
        let config = EndpointConfig::default();
        let needs = Needs { config: &config, server: None, gate: &gate, reports: &reports };
        let ula: Ipv6Addr = "fd01:2:3::1".parse().unwrap();
        let reaches =
            |inside: &Inside, text: &str| inside.endpoint_for(&text.parse().unwrap()).is_some();
        inside.keep(ula, "no-such-device", &needs);
        assert!(!reaches(&inside, "[fd01:2:3::2]:51802"), "there is no device");
        inside.keep(ula, "lo", &needs);
        assert_eq!(inside.failed, None);
        assert!(reaches(&inside, "[fd01:2:3::2]:51802"));
        for outside in ["[fd01:2:4::2]:51802", "[fd01:2:3::2]:51800", "192.0.2.1:51802"] {
            assert!(!reaches(&inside, outside), "{outside}");
        }
        inside.keep(ula, "lo", &needs);
        assert_eq!(inside.failed, None, "it is bound once");
    }
}
