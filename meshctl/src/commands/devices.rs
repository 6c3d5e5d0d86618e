//! `peers add`, `peers config` and `peers remove`: devices that cannot run meshd.

use std::{net::IpAddr, path::Path};

use meshd_proto::control::{
    AddDeviceRequest, DeviceConfigRequest, ForgetDeviceKeyRequest, RemoveDeviceRequest,
};

use super::qr;
use crate::{
    cli::{DeviceAdd, DeviceConfig},
    connection::{CHANGE, connect},
    failure::Failure,
    output::{Output, remark, write},
    text::{known, safe, safe_all},
    views::{DeviceConfigView, DeviceRemovedView, PeerDetailView},
};

pub(crate) async fn add(
    socket: &Path,
    output: Output,
    arguments: DeviceAdd,
) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let request = AddDeviceRequest {
        name: arguments.name,
        prefixes: arguments.prefixes,
        public_key: arguments.public_key.unwrap_or_default(),
        endpoint: arguments.endpoint.unwrap_or_default(),
        keepalive: arguments.keepalive,
        no_preshared_key: arguments.no_psk,
        dns: arguments.dns,
    };
    let reply = client.add_device(request).await?.into_inner();
    let peer = reply.peer.ok_or_else(|| {
        Failure::local("the daemon answered nothing", "it is of another version", "restart it")
    })?;
    let detail = PeerDetailView::from(peer);
    let not_granted = safe_all(&reply.not_granted);
    if !not_granted.is_empty() {
        remark(&waiting(&not_granted, reply.asked_in_seconds));
    }
    reply.remarks.iter().for_each(|text| remark(&safe(text)));
    output.print(&detail.peer, |_, to| {
        use std::io::Write as _;
        let peer = &detail.peer;
        writeln!(to, "{} has {} behind this host", peer.name, peer.prefixes.join(", "))?;
        writeln!(
            to,
            "its configuration: `meshctl peers config {}`, for a phone with --qr",
            peer.name
        )
    })
}

/// What a host wants and is not granted, and what becomes of that.
pub(crate) fn waiting(not_granted: &[String], asked_in_seconds: Option<u32>) -> String {
    let what = match asked_in_seconds {
        None => "`meshctl status` says why and what to do".to_owned(),
        Some(0) => "a signer is being asked; `meshctl status` says how it went".to_owned(),
        Some(wait) => format!("a signer is asked again by itself in {wait} s"),
    };
    format!("not granted yet: {}; {what}", not_granted.join(", "))
}

pub(crate) async fn config(
    socket: &Path,
    output: Output,
    arguments: DeviceConfig,
) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let DeviceConfig { name, qr, endpoint, forget_key } = arguments;
    let mut request = DeviceConfigRequest { name: name.clone(), without_keys: false };
    // A code that cannot be shown must not count as shown.
    if qr && !output.is_for_programs() {
        request.without_keys = true;
        let reply = client.device_config(request.clone()).await?.into_inner();
        let given = endpoint.as_deref().map(|given| with_port(given, reply.listen_port));
        qr_of(&DeviceConfigView::new(&reply, given.transpose()?), output)?;
        request.without_keys = false;
    }
    let reply = client.device_config(request).await?.into_inner();
    let given = endpoint.map(|given| with_port(&given, reply.listen_port)).transpose()?;
    if given.is_none() && reply.endpoint_private {
        let known = reply.endpoints.first().map(|endpoint| safe(endpoint));
        let known = known.unwrap_or_else(|| "none".to_owned());
        remark(&format!(
            "the gateway's address is {known}: a device outside that network needs another; say which with --endpoint"
        ));
    }
    if let Some(why) = &reply.not_noted {
        remark(&format!("it could not be noted that this was shown: {}", safe(why)));
    }
    reply.remarks.iter().for_each(|text| remark(&safe(text)));
    let view = DeviceConfigView::new(&reply, given);
    if output.is_for_programs() {
        output.print(&view, |_, _| Ok(()))?;
    } else if qr {
        write(qr_of(&view, output)?.as_bytes())?;
    } else {
        write(view.text.as_bytes())?;
    }
    if forget_key {
        let forgotten = client.forget_device_key(ForgetDeviceKeyRequest { name }).await?;
        remark(match forgotten.into_inner().forgotten {
            true => "the private key was thrown away: this was the last time that it was printed",
            false => "this host does not have the private key",
        });
    }
    Ok(())
}

fn qr_of(view: &DeviceConfigView, output: Output) -> Result<String, Failure> {
    if view.private_key.is_none() {
        return Err(Failure::local(
            format!("{} has no QR code", view.name),
            "its private key is not on this host, so that the code would be of no use",
            "print the file without --qr, and put the key in on the device",
        ));
    }
    qr::code(&view.settings(), output.is_terminal(), output.width())
}

pub(crate) async fn remove(socket: &Path, output: Output, name: String) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let reply = client.remove_device(RemoveDeviceRequest { name }).await?.into_inner();
    let view = DeviceRemovedView {
        name: safe(&reply.name),
        public_key: known(&reply.public_key),
        prefixes: safe_all(&reply.prefixes),
    };
    output.print(&view, |_, to| {
        use std::io::Write as _;
        let prefixes = view.prefixes.join(", ");
        let free = match view.prefixes.len() {
            0 => String::new(),
            1 => format!("; {prefixes} is free"),
            _ => format!("; {prefixes} are free"),
        };
        writeln!(to, "{} was removed{free}", view.name)
    })
}

/// `HOST` or `HOST:PORT` as wg reads it.
fn with_port(given: &str, port: u32) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Err(Failure::local(
            format!("the endpoint {:?} cannot be used", given.chars().take(80).collect::<String>()),
            why,
            "write it as vpn.example.net, 192.0.2.7:51820 or [2001:db8::7]:51820",
        ))
    };
    if let Ok(address) = given.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(match address {
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        });
    }
    if given.parse::<std::net::SocketAddr>().is_ok() {
        return Ok(given.to_owned());
    }
    if given.contains("://") {
        return wrong("it begins with a scheme, and WireGuard's has none");
    }
    let (host, given_port) = given.rsplit_once(':').unwrap_or((given, ""));
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if host.is_empty() || host.len() > 253 || !host.bytes().all(name) {
        return wrong("it is neither a name nor an address");
    }
    match given_port.parse::<u16>() {
        Ok(1..) => Ok(given.to_owned()),
        Err(_) if given_port.is_empty() && !given.ends_with(':') => Ok(format!("{host}:{port}")),
        _ => wrong("its port is not 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_the_port_that_it_lacks() {
        for (given, endpoint) in [
            ("vpn.example.net", "vpn.example.net:51820"),
            ("vpn.example.net:443", "vpn.example.net:443"),
            ("192.0.2.7", "192.0.2.7:51820"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("2001:db8::7", "[2001:db8::7]:51820"),
            ("[2001:db8::7]", "[2001:db8::7]:51820"),
            ("[2001:db8::7]:99", "[2001:db8::7]:99"),
        ] {
            assert_eq!(with_port(given, 51820).unwrap(), endpoint, "{given}");
        }
        for bad in ["", ":1", "a b", "x:0", "x:", "x:99999", "a\nPostUp = rm", "x:1:2"] {
            assert!(with_port(bad, 51820).is_err(), "{bad:?}");
        }
        let error = with_port("http://vpn.example.net", 51820).unwrap_err().to_string();
        assert!(error.contains("begins with a scheme"), "{error}");
    }
}
