//! `peers config`, `peers add` and `peers remove`.

use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;
use meshd_proto::control as wire;
use serde::Serialize;
use zeroize::Zeroizing;

use super::optional;
use crate::text::{safe, safe_all};

/// `meshctl peers config`: all of it is secret.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceConfigView {
    pub(crate) name: String,
    pub(crate) mesh: String,
    pub(crate) gateway: String,
    pub(crate) private_key: Option<String>,
    pub(crate) public_key: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) mtu: u32,
    pub(crate) dns: Vec<String>,
    pub(crate) gateway_public_key: String,
    pub(crate) preshared_key: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) allowed_ips: Vec<String>,
    pub(crate) keepalive: u32,
    pub(crate) at: String,
    /// The whole file.
    pub(crate) text: String,
}

impl DeviceConfigView {
    /// `endpoint`: instead of the best that the gateway knows.
    pub(crate) fn new(reply: &wire::DeviceConfigReply, endpoint: Option<String>) -> Self {
        let endpoints = safe_all(&reply.endpoints);
        let mut view = Self {
            name: safe(&reply.name),
            mesh: safe(&reply.mesh),
            gateway: safe(&reply.gateway),
            private_key: optional(reply.private_key.as_ref()),
            public_key: safe(&reply.public_key),
            addresses: safe_all(&reply.addresses),
            mtu: reply.mtu,
            dns: safe_all(&reply.dns),
            gateway_public_key: safe(&reply.gateway_public_key),
            preshared_key: optional(reply.preshared_key.as_ref()),
            endpoint: endpoint.or_else(|| endpoints.first().cloned()),
            endpoints,
            allowed_ips: safe_all(&reply.allowed_ips),
            keepalive: reply.keepalive,
            at: safe(&reply.at),
            text: String::new(),
        };
        view.text = view.comments() + &view.settings();
        view
    }

    fn comments(&self) -> String {
        let Self { name, mesh, gateway, at, .. } = self;
        format!(
            "# The device {name} of the mesh {mesh}, behind {gateway}. Secret: who has this file is the device.\n\
             # Written {at}. Wrong when the key or address of {gateway}, or the mesh's prefixes, are others:\n\
             # `meshctl peers show {name}` on {gateway} says whether it is.\n"
        )
    }

    /// The file as wg-quick and the WireGuard apps read it.
    pub(crate) fn settings(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::from("[Interface]\n"));
        let mut line = |key: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key} = {value}");
        };
        match &self.private_key {
            Some(key) => line("PrivateKey", key),
            None => {
                line("# PrivateKey", "here goes the device's own, which this host does not have");
            }
        }
        line("Address", &self.device_addresses().join(", "));
        line("MTU", &self.mtu.to_string());
        if !self.dns.is_empty() {
            line("DNS", &self.dns.join(", "));
        }
        text.push_str("\n[Peer]\n");
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key} = {value}");
        };
        line("PublicKey", &self.gateway_public_key);
        if let Some(key) = &self.preshared_key {
            line("PresharedKey", key);
        }
        match &self.endpoint {
            Some(endpoint) => line("Endpoint", endpoint),
            None => line("# Endpoint", "here goes the gateway's, which does not know its address"),
        }
        line("AllowedIPs", &self.allowed_ips.join(", "));
        if self.keepalive > 0 {
            line("PersistentKeepalive", &self.keepalive.to_string());
        }
        text
    }

    /// Addresses for the interface: its own where it has single ones, else the first of each network behind it.
    fn device_addresses(&self) -> Vec<String> {
        let nets: Vec<IpNet> = self.addresses.iter().filter_map(|net| net.parse().ok()).collect();
        let single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        let mut addresses: Vec<IpNet> = nets.iter().filter(single).copied().collect();
        for v6 in [false, true] {
            if addresses.iter().all(|net| net.addr().is_ipv6() != v6) {
                let networks = nets.iter().filter(|net| net.addr().is_ipv6() == v6);
                addresses.extend(networks.filter_map(|net| Some(IpNet::from(first(net)?))));
            }
        }
        addresses.iter().map(ToString::to_string).collect()
    }
}

/// The lowest address of a network that a host can have. Of IPv6's the very first is every router's (RFC 4291, 2.6.1).
fn first(net: &IpNet) -> Option<IpAddr> {
    net.hosts()
        .find(|address| *address != net.network() || net.prefix_len() + 1 >= net.max_prefix_len())
}

/// `meshctl peers remove`.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceRemovedView {
    pub(crate) name: String,
    pub(crate) public_key: Option<String>,
    pub(crate) prefixes: Vec<String>,
}
