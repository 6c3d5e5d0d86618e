//! Seeds: host names and addresses to socket addresses.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use meshd_core::address::is_routable_unicast;

/// Port of a seed that names none.
pub(super) const DEFAULT_PORT: u16 = 51_800;
/// Addresses taken from one name.
const PER_NAME: usize = 16;
/// A resolver that does not answer must not hold up the others.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What became of a list of seeds.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// Addresses, in the order of the list.
    pub(super) addresses: Vec<SocketAddr>,
    /// Those that gave none, and why.
    pub(super) failed: Vec<String>,
}

/// `HOST:PORT`, `ADDRESS`, `[ADDRESS]:PORT` or `HOST` with its port made explicit.
pub(super) fn with_port(seed: &str) -> String {
    if seed.parse::<SocketAddr>().is_ok() {
        return seed.to_owned();
    }
    let bare = seed.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return SocketAddr::new(address, DEFAULT_PORT).to_string();
    }
    match seed.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => seed.to_owned(),
        _ => format!("{seed}:{DEFAULT_PORT}"),
    }
}

/// Those that the routing table of this host has no way to. Nothing is sent.
pub(super) fn without_route(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let leads_nowhere = |address: &&SocketAddr| {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let routed = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address));
        let nowhere = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
        routed.is_err_and(|error| nowhere.contains(&error.kind()))
    };
    addresses.iter().filter(leads_nowhere).copied().collect()
}

/// Resolves all `seeds` at once. Addresses that nobody can have are left out.
pub(super) async fn resolve(seeds: &[String]) -> Resolved {
    let lookups = seeds.iter().map(|seed| async move {
        let name = with_port(seed);
        match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host(name)).await {
            Ok(Ok(found)) => Ok(found.take(PER_NAME).collect::<Vec<_>>()),
            Ok(Err(error)) => Err(format!("{seed}: {error}")),
            Err(_) => Err(format!("{seed}: the resolver did not answer in time")),
        }
    });
    let mut resolved = Resolved::default();
    for outcome in futures::future::join_all(lookups).await {
        match outcome {
            Ok(found) => {
                for address in found {
                    if is_routable_unicast(&address.ip()) && !resolved.addresses.contains(&address)
                    {
                        resolved.addresses.push(address);
                    }
                }
            }
            Err(why) => resolved.failed.push(why),
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_the_default() {
        for (given, full) in [
            ("10.0.0.1", "10.0.0.1:51800"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("fd00::1", "[fd00::1]:51800"),
            ("[fd00::1]", "[fd00::1]:51800"),
            ("[fd00::1]:7", "[fd00::1]:7"),
            ("seed.example", "seed.example:51800"),
            ("seed.example:7", "seed.example:7"),
        ] {
            assert_eq!(with_port(given), full);
        }
    }

    #[tokio::test]
    async fn one_bad_seed_does_not_spoil_the_others() {
        let seeds = ["192.0.2.1".to_owned(), "127.0.0.1".to_owned(), "bad name".to_owned()];
        let resolved = resolve(&seeds).await;
        assert_eq!(resolved.addresses, vec!["192.0.2.1:51800".parse().unwrap()]);
        assert_eq!(resolved.failed.len(), 1);
    }
}
