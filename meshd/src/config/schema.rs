//! Every key with its type, default, reader, and whether a reload can apply it: the one list from
//! which the types, the reading and the comparing come.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use meshd_proto::{NodeName, Zone};
use serde::Serialize;

use super::{
    Changes, Difference,
    error::ConfigError,
    given::{self, Given, Reading},
    parse,
    types::{
        Automatic, Backend, Encrypt, Expiry, InterfaceName, LeakProtection, Profile, Psk,
        RouteSource, Seed,
    },
};

/// The values of a layer: section, key, value.
pub(super) type Values = BTreeMap<String, BTreeMap<String, ::config::Value>>;

macro_rules! schema {
    ($(
        $(#[$section_doc:meta])*
        $section:ident: $name:ident {$(
            $(#[$doc:meta])*
            $key:ident: $type:ty = $default:expr, $when:ident, $read:expr;
        )*}
    )*) => {
        /// The daemon's whole configuration. [`Config::default`] is what an empty file means.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
        pub struct Config {$(
            $(#[$section_doc])*
            pub $section: $name,
        )*}

        $(
            $(#[$section_doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
            pub struct $name {$(
                $(#[$doc])*
                pub $key: $type,
            )*}

            impl Default for $name {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        /// The sections.
        pub(super) const SECTIONS: &[&str] = &[$(stringify!($section)),*];

        /// The keys of a section, none if there is no such section.
        pub(super) fn keys(section: &str) -> &'static [&'static str] {
            match section {
                $(stringify!($section) => &[$(stringify!($key)),*],)*
                _ => &[],
            }
        }

        /// Every `section.key`, and whether a reload can apply it.
        #[must_use]
        pub fn documented_keys() -> Vec<(&'static str, bool)> {
            vec![$($((
                concat!(stringify!($section), ".", stringify!($key)),
                schema!(@live $when),
            ),)*)*]
        }

        impl Config {
            /// Takes over the values; what cannot be used goes to `errors`.
            pub(super) fn read(&mut self, values: &Values, errors: &mut Vec<ConfigError>) {
                $($(
                    let found = values
                        .get(stringify!($section))
                        .and_then(|section| section.get(stringify!($key)));
                    if let Some(value) = found {
                        let key = concat!(stringify!($section), ".", stringify!($key));
                        let read: fn(&Given<'_>) -> Reading<$type> = $read;
                        match given::value(key, value, read) {
                            Ok(value) => self.$section.$key = value,
                            Err(error) => errors.push(error),
                        }
                    }
                )*)*
            }

            /// Takes over from `new` what can change at run time, and leaves the rest.
            pub fn apply_live(&mut self, new: Self) {
                $($(
                    if schema!(@live $when) {
                        self.$section.$key = new.$section.$key;
                    }
                )*)*
            }

            /// What differs between `self`, which is in force, and `new`.
            #[must_use]
            pub fn changes(&self, new: &Self) -> Changes {
                let mut changes = Changes::default();
                $($(
                    if self.$section.$key != new.$section.$key {
                        let difference = Difference {
                            key: concat!(stringify!($section), ".", stringify!($key)),
                            old: shown(&self.$section.$key),
                            new: shown(&new.$section.$key),
                        };
                        if schema!(@live $when) {
                            changes.live.push(difference);
                        } else {
                            changes.restart.push(difference);
                        }
                    }
                )*)*
                changes
            }
        }
    };
    (@live live) => { true };
    (@live restart) => { false };
}

fn shown(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    match value.get("secs") {
        // How serde writes a Duration.
        Some(seconds) => format!("\"{seconds}s\""),
        None => value.to_string(),
    }
}

schema! {
    /// Who this host is.
    node: Node {
        /// The node's name; none: the host name.
        name: Option<NodeName> = None, restart, parse::node_name;
        /// Free text; nearer endpoints and relays are preferred within a zone.
        zone: Zone = Zone::default(), live, parse::zone;
        /// Members of the zone by which other zones reach this host, the preferred first; none: it is reached directly.
        gateways: Vec<NodeName> = Vec::new(), live, parse::gateways;
        /// Carries for hosts of the zone that name this one.
        gateway: bool = false, live, parse::gateway;
        /// Keys, certificates and the record store.
        state_dir: PathBuf = "/var/lib/meshd".into(), restart, parse::absolute_path;
    }
    /// How hosts find one another.
    gossip: Gossip {
        /// UDP address of QUIC.
        listen: SocketAddr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 51800), restart,
            parse::listen_address;
        /// Members to ask first.
        seeds: Vec<Seed> = Vec::new(), live, parse::seeds;
        /// Extra addresses by which others reach this host, behind a port forward.
        advertise: Vec<SocketAddr> = Vec::new(), live, parse::advertised;
        /// A file that holds a join token, for joining unattended.
        join_token_file: Option<PathBuf> = None, restart, parse::optional_path;
        /// A file that holds an identity document, for a token that admits by those.
        join_identity_file: Option<PathBuf> = None, restart, parse::optional_path;
        /// The timing of SWIM.
        profile: Profile = Profile::Lan, restart, parse::profile;
    }
    /// The tunnel.
    wireguard: WireGuard {
        /// Name of the interface.
        interface: InterfaceName = parse::default_interface(), restart, parse::interface;
        /// UDP port; the one above it is used while keys are rotated.
        port: u16 = 51820, restart, parse::wireguard_port;
        /// Kernel or userspace.
        backend: Backend = Backend::Auto, restart, parse::backend;
        /// The mark of encrypted packets, which keeps them out of the tunnel.
        fwmark: u32 = 0x10, restart, parse::fwmark;
        /// Seconds, only towards peers that need it; 0: never.
        persistent_keepalive: u16 = 25, live, parse::keepalive;
        /// Time between rotations of the static key; none: only by hand.
        rotate_keys_every: Option<Duration> = None, restart, parse::rotation;
        /// Post-quantum pre-shared keys.
        psk: Psk = Psk::Off, restart, parse::psk;
    }
    /// What is carried.
    network: Network {
        /// The pod prefixes of this host; automatic: from the CNI's files.
        pod_prefixes: Automatic<Vec<IpNet>> = Automatic::Auto, live, parse::pod_prefixes;
        /// This host's own addresses.
        node_addresses: Automatic<Vec<IpAddr>> = Automatic::Auto, live, parse::node_addresses;
        /// Whether node addresses are carried too.
        encrypt: Encrypt = Encrypt::Pods, live, parse::encrypt;
        /// Prefixes or single workloads.
        route_source: RouteSource = RouteSource::Prefixes, restart, parse::route_source;
        /// Patterns of the interfaces that lead to workloads.
        workload_interfaces: Vec<String> = parse::default_workload_interfaces(), restart,
            parse::workload_interfaces;
        /// Guard against prefixes of the mesh in the clear.
        leak_protection: LeakProtection = LeakProtection::Off, restart, parse::leak_protection;
        /// After this a dead peer that never said leave is forgotten.
        forget_after: Duration = Duration::from_secs(7 * 86_400), live, parse::forget_after;
        /// Number of the routing table.
        table: u32 = 51820, restart, parse::table;
        /// Priority of the routing rule; the one above it is meshd's too.
        rule_priority: u32 = 2600, restart, parse::rule_priority;
        /// Of the interface; automatic: from the link, until it is measured per peer.
        mtu: Automatic<u16> = Automatic::Auto, live, parse::mtu;
        /// Clamp the segment size of TCP to the route's MTU.
        mss_clamp: bool = true, restart, parse::mss_clamp;
    }
    /// The socket of `meshctl`.
    control: Control {
        /// Path of the unix socket.
        socket: PathBuf = "/run/meshd/meshd.sock".into(), restart, parse::absolute_path;
        /// Members of this group may read; only root may change.
        group: String = "meshd".to_owned(), restart, parse::group;
    }
    /// Prometheus.
    metrics: Metrics {
        /// Address to serve on; none: off.
        listen: Option<SocketAddr> = None, restart, parse::metrics_listen;
        /// The status page on the same address.
        ui: bool = false, restart, parse::metrics_ui;
    }
    /// Certificates.
    trust: Trust {
        /// How final a certificate's date is.
        expiry: Expiry = Expiry::Soft, restart, parse::expiry;
    }
    /// Names of the mesh in the resolver.
    dns: Dns {
        /// `NAME.MESH.mesh` through systemd-resolved.
        enabled: bool = false, restart, parse::dns;
    }
}
