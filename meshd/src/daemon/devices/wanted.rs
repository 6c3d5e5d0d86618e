//! What somebody asks for a device, read and checked as far as it can be without looking around.

use std::net::SocketAddr;

use ipnet::IpNet;
use meshd_core::{devices::is_usable_key, limits};
use meshd_proto::{NodeName, WgPublicKey, control::AddDeviceRequest};

use crate::control::ControlError;

/// A device's keepalive unless said otherwise: what keeps NAT boxes open.
const KEEPALIVE: u32 = 25;
/// Resolvers and search domains of one device.
const DNS: usize = 8;

/// A request for a device, read.
pub(super) struct Wanted {
    pub(super) name: NodeName,
    pub(super) prefixes: Vec<IpNet>,
    pub(super) public_key: Option<WgPublicKey>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: u16,
    pub(super) preshared: bool,
    pub(super) dns: Vec<String>,
}

impl Wanted {
    pub(super) fn read(request: &AddDeviceRequest) -> Result<Self, ControlError> {
        let bad = |why: String, fix: &str| refused(&request.name, "bad_request", why, fix);
        let name: NodeName = request.name.parse().map_err(|error: meshd_proto::NameError| {
            let error = meshd_proto::NameError { kind: "device name", ..error };
            bad(error.to_string(), "give it a name such as phone-anna")
        })?;
        if request.prefixes.len() > limits::DEVICE_PREFIXES {
            let why = format!("it is given more than {} prefixes", limits::DEVICE_PREFIXES);
            return Err(bad(why, "give it one that holds them"));
        }
        let prefix = |text: &String| {
            let net = text.parse::<IpNet>();
            let net = net.or_else(|_| text.parse().map(meshd_core::address::host_prefix));
            let shown: String = text.chars().take(80).collect();
            let why = format!("{shown:?} is no prefix");
            net.map_err(|_| bad(why, "write it as 10.99.0.5/32"))
        };
        let public_key = Some(&request.public_key).filter(|text| !text.is_empty());
        let public_key = public_key.map(|text| {
            let key = text.parse::<WgPublicKey>().ok().filter(is_usable_key);
            let fix =
                "give what `wg pubkey` prints on the device, or leave it out to have a key made";
            key.ok_or_else(|| bad("its public key is none of WireGuard's".to_owned(), fix))
        });
        let endpoint = Some(&request.endpoint).filter(|text| !text.is_empty());
        let endpoint = endpoint.map(|text| {
            let address = text.parse::<SocketAddr>().ok().filter(|address| {
                address.port() != 0 && meshd_core::address::is_routable_unicast(&address.ip())
            });
            let why = match text.split_once("://") {
                Some((scheme, _)) if scheme.len() < 20 => {
                    format!("its endpoint begins with {scheme}://, and WireGuard's has no scheme")
                }
                _ => "its endpoint is no address and port, and names are not looked up".to_owned(),
            };
            address.ok_or_else(|| {
                bad(why, "write it as 192.0.2.7:51820; a device that moves needs none")
            })
        });
        let keepalive = u16::try_from(request.keepalive.unwrap_or(KEEPALIVE));
        let dns = &request.dns;
        // They are written into a file of lines.
        let plain = |text: &String| {
            (1..=253).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
        };
        if dns.iter().any(|text| text.contains([',', ' '])) {
            let why = "DNS is given as a list".to_owned();
            return Err(bad(why, "say one per --dns: --dns 10.99.0.53 --dns example.net"));
        }
        if dns.len() > DNS || !dns.iter().all(plain) {
            let why = format!("DNS takes at most {DNS} addresses or search domains");
            return Err(bad(why, "write each as 10.99.0.53 or example.net"));
        }
        Ok(Self {
            name,
            prefixes: request.prefixes.iter().map(prefix).collect::<Result<_, _>>()?,
            public_key: public_key.transpose()?,
            endpoint: endpoint.transpose()?,
            keepalive: keepalive
                .map_err(|_| bad("its keepalive is above 65535 s".to_owned(), "use 25, or 0"))?,
            preshared: !request.no_preshared_key,
            dns: dns.clone(),
        })
    }
}

pub(super) fn refused(
    name: &str,
    code: &'static str,
    why: String,
    fix: impl Into<String>,
) -> ControlError {
    let shown: String = name.chars().take(80).collect();
    ControlError::new(code, format!("the device {shown:?} was not added"), why, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let good = AddDeviceRequest { name: "phone".into(), ..AddDeviceRequest::default() };
        assert!(Wanted::read(&good).is_ok());
        let list = AddDeviceRequest { dns: vec!["1.1.1.1,8.8.8.8".into()], ..good.clone() };
        let scheme = AddDeviceRequest { endpoint: "http://192.0.2.7:51820".into(), ..good.clone() };
        let name = AddDeviceRequest { name: "Phone A".into(), ..good };
        for (request, what) in [
            (list, "say one per --dns"),
            (scheme, "begins with http://, and WireGuard's has no scheme"),
            (name, "device name"),
        ] {
            let error = Wanted::read(&request).err().unwrap();
            let text = format!("{}; {}; {}", error.what, error.why, error.fix);
            assert!(text.contains(what), "{text}");
        }
    }
}
