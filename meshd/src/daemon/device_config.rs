//! What a device's own configuration must say, and whether what was printed is still right.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use data_encoding::HEXLOWER;
use ipnet::{IpNet, Ipv4Net};
use meshd_core::{
    address::ula_prefix,
    devices::allowed_ips,
    node::{Liveness, Observed},
    now::UnixTime,
    path_mtu::BASE,
};
use meshd_proto::control::{DeviceConfigReply, DeviceConfigRequest};
use sha2::{Digest as _, Sha256};

use super::{Daemon, clock, requests::not_a_member, running::Running, status::rfc3339};
use crate::{
    control::ControlError,
    state::devices::{SavedDevice, Shown},
};

/// This side of every device's tunnel.
pub(super) struct Side {
    endpoints: Vec<SocketAddr>,
    allowed: Vec<IpNet>,
    public_key: String,
}

impl Daemon {
    /// `peers config`.
    pub(super) fn device_config(
        &mut self,
        request: &DeviceConfigRequest,
    ) -> Result<DeviceConfigReply, ControlError> {
        let side = self.side();
        let listed = self.mesh_pool().is_none();
        let running = self.running.as_mut().ok_or_else(|| not_a_member("show a configuration"))?;
        let side = side.ok_or_else(|| not_a_member("show a configuration"))?;
        let certificate = running.identity.certificate.clone();
        let device = running.find_device("show the configuration of", &request.name)?;
        let now = clock::unix();
        let mut noted = device.clone();
        noted.shown = Some(Shown { at: now.0, fingerprint: side.fingerprint() });
        // What is asked for can be said on a full disk too.
        let not_noted = match request.without_keys {
            true => None,
            false => match self.state.save_device(&noted) {
                Ok(()) => {
                    *device = noted;
                    None
                }
                Err(error) => Some(error.to_string()),
            },
        };
        let text = |key: &crate::state::devices::Secret| match request.without_keys {
            true => "x".repeat(key.text().len()),
            false => key.text().to_string(),
        };
        let remarks = listed.then(|| {
            "this host is no signer and does not know the mesh's range of IPv4 addresses, so that the file lists each \
             member's: it is stale when a member joins (`meshctl peers show` says so)"
                .to_owned()
        });
        let first = side.endpoints.first();
        Ok(DeviceConfigReply {
            name: device.name.to_string(),
            mesh: certificate.mesh.to_string(),
            gateway: certificate.name.to_string(),
            private_key: device.private_key.as_ref().map(text),
            public_key: device.public_key.to_string(),
            addresses: device.prefixes.iter().map(ToString::to_string).collect(),
            mtu: BASE,
            dns: device.dns.clone(),
            gateway_public_key: side.public_key.clone(),
            preshared_key: device.preshared_key.as_ref().map(text),
            endpoints: side.endpoints.iter().map(ToString::to_string).collect(),
            endpoint_private: first.is_none_or(|endpoint| !is_public(&endpoint.ip())),
            allowed_ips: side.allowed_by(device).map(|net| net.to_string()).collect(),
            keepalive: u32::from(device.keepalive),
            at: rfc3339(now).unwrap_or_default(),
            not_noted,
            listen_port: u32::from(self.config.wireguard.port),
            remarks: remarks.into_iter().collect(),
        })
    }

    /// What a device is told of this host and the mesh.
    pub(super) fn side(&self) -> Option<Side> {
        let running = self.running.as_ref()?;
        Some(Side {
            endpoints: self.wireguard_endpoints(running),
            allowed: self.mesh_prefixes(running),
            public_key: running.lane.public_key().to_string(),
        })
    }

    /// Where WireGuard of this host may be reached, the best first.
    fn wireguard_endpoints(&self, running: &Running) -> Vec<SocketAddr> {
        let port = self.config.wireguard.port;
        let advertised = self.config.gossip.advertise.iter().map(SocketAddr::ip);
        let own = self.own.node_addresses(&self.config);
        let ranked = ranked(advertised, own, running.node.observed());
        ranked.into_iter().map(|address| SocketAddr::new(address, port)).collect()
    }

    /// Everything that a device reaches by this host, neighbours joined.
    fn mesh_prefixes(&self, running: &Running) -> Vec<IpNet> {
        let ulas = IpNet::V6(ula_prefix(&running.identity.certificate.mesh_id));
        let pool = self.mesh_pool().map(IpNet::V4);
        let records = running.node.directory().iter().filter(|record| {
            let liveness = running.node.liveness(&record.key).map(|(liveness, _)| liveness);
            !record.left && liveness != Some(Liveness::Left)
        });
        let addresses = records.flat_map(|record| record.mesh_addresses.clone());
        let own = running.own_record().map(|own| own.prefixes.clone()).unwrap_or_default();
        let routed = running.plan.routed.values().flatten().copied();
        allowed_ips([ulas].into_iter().chain(pool).chain(addresses).chain(own).chain(routed))
    }

    /// The mesh's IPv4 addresses, which only a signer's ledger tells.
    pub(super) fn mesh_pool(&self) -> Option<Ipv4Net> {
        self.running.as_ref()?.devices.pool
    }
}

impl Side {
    /// The same for as long as a printed configuration is right.
    fn fingerprint(&self) -> String {
        let mut digest = Sha256::new().chain_update(b"meshd-device-config-v1\0");
        digest.update(&self.public_key);
        for endpoint in &self.endpoints {
            digest.update(format!("\n{endpoint}"));
        }
        for net in &self.allowed {
            digest.update(format!("\n{net}"));
        }
        HEXLOWER.encode(&digest.finalize()[..8])
    }

    /// What is of use to a device: without an address of a family it can send nothing there.
    fn allowed_by<'a>(&'a self, device: &'a SavedDevice) -> impl Iterator<Item = &'a IpNet> {
        self.allowed.iter().filter(|net| {
            device.prefixes.iter().any(|own| own.addr().is_ipv4() == net.addr().is_ipv4())
        })
    }

    /// When a device's configuration was printed last, and whether it is not right any more.
    pub(super) fn judge(&self, device: &SavedDevice) -> (Option<String>, bool) {
        let Some(shown) = &device.shown else { return (None, false) };
        (rfc3339(UnixTime(shown.at)), shown.fingerprint != self.fingerprint())
    }
}

/// This host's addresses, the best first: as configured, its own public IPv4, as others see it, the rest of its own. What
/// one member alone says comes last: it would decide where devices send.
fn ranked(
    advertised: impl IntoIterator<Item = IpAddr>,
    own: impl IntoIterator<Item = IpAddr>,
    seen: impl IntoIterator<Item = Observed>,
) -> Vec<IpAddr> {
    let rank = |address: &IpAddr| match (is_public(address), address) {
        (true, IpAddr::V4(_)) => 1,
        (true, IpAddr::V6(_)) => 3,
        (false, _) => 4,
    };
    let advertised = advertised.into_iter().map(|address| (0, address));
    let own = own.into_iter().map(|address| (rank(&address), address));
    let seen = seen.into_iter().map(|seen| match rank(&seen.address) {
        _ if !seen.agreed => (5, seen.address),
        1 => (2, seen.address),
        rank => (rank, seen.address),
    });
    let mut ranked: Vec<(u8, IpAddr)> = advertised.chain(own).chain(seen).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut known = BTreeSet::new();
    ranked.retain(|(_, address)| known.insert(*address));
    ranked.into_iter().map(|(_, address)| address).collect()
}

/// An address that others than neighbours can reach.
fn is_public(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_private() || v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.octets()[0] & 0xfe != 0xfc,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_member_says_stands_behind_what_this_host_knows() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let private = [ip("10.0.0.5"), ip("2001:db8::5")];
        let ranked = |own: &[IpAddr], agreed| {
            let seen = Observed { address: ip("198.51.100.7"), agreed };
            let ranked = ranked([ip("192.0.2.1")], own.iter().copied(), [seen]);
            ranked.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            ranked(&private, true),
            ["192.0.2.1", "198.51.100.7", "2001:db8::5", "10.0.0.5"]
        );
        assert_eq!(
            ranked(&private, false),
            ["192.0.2.1", "2001:db8::5", "10.0.0.5", "198.51.100.7"]
        );
        let public = [ip("203.0.113.1")];
        assert_eq!(ranked(&public, true), ["192.0.2.1", "203.0.113.1", "198.51.100.7"]);
    }
}
