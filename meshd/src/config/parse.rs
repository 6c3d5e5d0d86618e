//! One reader per key: what is allowed, and what is planned but not built.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use meshd_proto::{NodeName, Zone};

use super::{
    given::{Given, Reading, Refused, bad, each},
    types::{
        Automatic, Backend, Encrypt, Expiry, InterfaceName, LeakProtection, Profile, Psk,
        RouteSource, Seed,
    },
};

pub(super) fn node_name(given: &Given<'_>) -> Reading<Option<NodeName>> {
    const ALLOWED: &str = "lower-case letters, digits, '-' and '.', at most 128 characters, or \"\" for the host name";
    let text = given.text(ALLOWED)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).or_else(|_| bad("it is not a name", ALLOWED))
}

pub(super) fn zone(given: &Given<'_>) -> Reading<Zone> {
    const ALLOWED: &str = "letters, digits and any of - _ . : /, at most 64 characters";
    let text = given.text(ALLOWED)?;
    let why = match text.chars().count() {
        ..=64 => "it has a character that is not allowed".to_owned(),
        length => format!("it has {length} characters"),
    };
    text.parse().or_else(|_| bad(why, ALLOWED))
}

pub(super) fn gateways(given: &Given<'_>) -> Reading<Vec<NodeName>> {
    const ALLOWED: &str = "a list of at most 4 names of members, such as [\"gw-1\", \"gw-2\"]";
    let read =
        |text: &str| match text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
            true => Err("it is an address".to_owned()),
            false => text.parse::<NodeName>().map_err(|error| error.to_string()),
        };
    let names = each(given, meshd_core::gateway::MOST, ALLOWED, read)?;
    match (1..names.len()).find(|i| names[..*i].contains(&names[*i])) {
        Some(i) => bad(format!("{} stands in it twice", names[i]), ALLOWED),
        None => Ok(names),
    }
}

pub(super) fn gateway(given: &Given<'_>) -> Reading<bool> {
    given.switch("true or false")
}

pub(super) fn absolute_path(given: &Given<'_>) -> Reading<PathBuf> {
    const ALLOWED: &str = "an absolute path";
    let text = given.text(ALLOWED)?;
    if !text.starts_with('/') || text.contains('\0') {
        return bad("it does not begin with /", ALLOWED);
    }
    Ok(text.into())
}

pub(super) fn optional_path(given: &Given<'_>) -> Reading<Option<PathBuf>> {
    const ALLOWED: &str = "an absolute path, or \"\" for none";
    if given.text(ALLOWED)?.is_empty() {
        return Ok(None);
    }
    absolute_path(given).map(Some).or_else(|_| bad("it does not begin with /", ALLOWED))
}

pub(super) fn listen_address(given: &Given<'_>) -> Reading<SocketAddr> {
    const ALLOWED: &str = "ADDRESS:PORT, such as \"[::]:51800\" or \"10.0.0.1:51800\"";
    match given.text(ALLOWED)?.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => bad("others have to know the port, so it cannot be 0", ALLOWED),
        Err(_) => bad("it is not an address and a port", ALLOWED),
    }
}

pub(super) fn seeds(given: &Given<'_>) -> Reading<Vec<Seed>> {
    const ALLOWED: &str = "a list such as [\"10.0.0.1:51800\", \"seed.example.net:51800\"]";
    each(given, 256, ALLOWED, str::parse::<Seed>)
}

pub(super) fn advertised(given: &Given<'_>) -> Reading<Vec<SocketAddr>> {
    const ALLOWED: &str = "a list of at most 8 ADDRESS:PORT, such as [\"198.51.100.7:51800\"]";
    each(given, 8, ALLOWED, |text| match text.parse::<SocketAddr>() {
        Ok(address)
            if address.port() == 0
                || address.ip().is_unspecified()
                || address.ip().is_loopback()
                || address.ip().is_multicast() =>
        {
            Err("others cannot reach it")
        }
        Ok(address) => Ok(address),
        Err(_) => Err("it is not an address and a port"),
    })
}

pub(super) fn profile(given: &Given<'_>) -> Reading<Profile> {
    let words = [("lan", Profile::Lan), ("wan", Profile::Wan)];
    given.word(&words, &[], "\"lan\" or \"wan\"")
}

pub(super) fn default_interface() -> InterfaceName {
    // A constant that the tests compare with the documented default.
    #[allow(clippy::unwrap_used)]
    "mesh0".parse().unwrap()
}

pub(super) fn interface(given: &Given<'_>) -> Reading<InterfaceName> {
    const ALLOWED: &str = "1 to 15 letters, digits and any of _ - . (not lo, all, default)";
    given.text(ALLOWED)?.parse().or_else(|()| bad("it is not an interface's name", ALLOWED))
}

pub(super) fn wireguard_port(given: &Given<'_>) -> Reading<u16> {
    given.port(65534, "a UDP port from 1 to 65534 (the one above it is used too)")
}

pub(super) fn backend(given: &Given<'_>) -> Reading<Backend> {
    let words =
        [("auto", Backend::Auto), ("kernel", Backend::Kernel), ("userspace", Backend::Userspace)];
    given.word(&words, &[], "\"auto\", \"kernel\" or \"userspace\"")
}

pub(super) fn fwmark(given: &Given<'_>) -> Reading<u32> {
    given.number(1, u32::MAX, "a number from 1 to 0xffffffff that nothing else on the host uses")
}

pub(super) fn keepalive(given: &Given<'_>) -> Reading<u16> {
    const ALLOWED: &str = "seconds from 0 (never) to 65535";
    let seconds = given.number(0, 65535, ALLOWED)?;
    u16::try_from(seconds).or_else(|_| bad("it is out of range", ALLOWED))
}

pub(super) fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let unit = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        "" if number == 0 => 0,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_secs)
}

pub(super) fn rotation(given: &Given<'_>) -> Reading<Option<Duration>> {
    const ALLOWED: &str = "\"0\" (only by hand)";
    match duration(given.text(ALLOWED)?) {
        Some(Duration::ZERO) => Ok(None),
        Some(_) => Err(Refused::NotBuilt { allowed: ALLOWED }),
        None => bad("it is not a duration", ALLOWED),
    }
}

pub(super) fn psk(given: &Given<'_>) -> Reading<Psk> {
    given.word(&[("off", Psk::Off)], &["preferred", "required"], "\"off\"")
}

pub(super) fn pod_prefixes(given: &Given<'_>) -> Reading<Automatic<Vec<IpNet>>> {
    const ALLOWED: &str = "\"auto\", a list such as [\"10.244.1.0/24\"], or [] for none";
    if given.is_auto() {
        return Ok(Automatic::Auto);
    }
    let read = |text: &str| {
        let prefix: IpNet = text.parse().map_err(|_| "it is not ADDRESS/LENGTH".to_owned())?;
        if prefix.prefix_len() == 0 {
            return Err("it is the whole address space".to_owned());
        }
        if prefix.addr() != prefix.network() {
            return Err(format!("it has bits beyond its length, {} has not", prefix.trunc()));
        }
        Ok(prefix)
    };
    each(given, 1_024, ALLOWED, read).map(Automatic::Given)
}

pub(super) fn node_addresses(given: &Given<'_>) -> Reading<Automatic<Vec<IpAddr>>> {
    const ALLOWED: &str = "\"auto\" or a list of addresses such as [\"10.0.0.1\"]";
    if given.is_auto() {
        return Ok(Automatic::Auto);
    }
    let read = |text: &str| match text.parse::<IpAddr>() {
        Ok(address)
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() =>
        {
            Err("it is no host's address")
        }
        Ok(address) => Ok(address),
        Err(_) => Err("it is not an address"),
    };
    each(given, 64, ALLOWED, read).map(Automatic::Given)
}

pub(super) fn encrypt(given: &Given<'_>) -> Reading<Encrypt> {
    given.word(
        &[("pods", Encrypt::Pods), ("pods+nodes", Encrypt::PodsAndNodes)],
        &[],
        "\"pods\" or \"pods+nodes\"",
    )
}

pub(super) fn route_source(given: &Given<'_>) -> Reading<RouteSource> {
    let words = [("prefixes", RouteSource::Prefixes), ("workloads", RouteSource::Workloads)];
    given.word(&words, &[], "\"prefixes\" or \"workloads\"")
}

pub(super) fn default_workload_interfaces() -> Vec<String> {
    ["cali*", "azv*", "lxc*", "veth*"].map(str::to_owned).to_vec()
}

pub(super) fn workload_interfaces(given: &Given<'_>) -> Reading<Vec<String>> {
    const ALLOWED: &str =
        "a list of names of interfaces, in which * stands for any letters, such as [\"eni*\"]";
    let read = |text: &str| {
        // Of one letter at least, or it would be every interface of the host.
        if !text.bytes().any(|b| b.is_ascii_alphanumeric()) {
            return Err("it says nothing of the name");
        }
        let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"*_-.".contains(&b));
        match letters && text.len() <= 32 {
            true => Ok(text.to_owned()),
            false => Err("it is not a name of letters, digits and any of _ - . *"),
        }
    };
    each(given, 64, ALLOWED, read)
}

pub(super) fn leak_protection(given: &Given<'_>) -> Reading<LeakProtection> {
    given.word(
        &[("off", LeakProtection::Off), ("strict", LeakProtection::Strict)],
        &[],
        "\"off\" or \"strict\"",
    )
}

pub(super) fn forget_after(given: &Given<'_>) -> Reading<Duration> {
    const ALLOWED: &str = "a duration of 1h to 365d, such as \"7d\"";
    match duration(given.text(ALLOWED)?) {
        Some(time) if (3_600..=365 * 86_400).contains(&time.as_secs()) => Ok(time),
        Some(_) => bad("it is out of range", ALLOWED),
        None => bad("it is not a duration", ALLOWED),
    }
}

pub(super) fn table(given: &Given<'_>) -> Reading<u32> {
    const ALLOWED: &str = "a routing table's number from 1 to 4294967294, not 252 to 255 (the one after it is meshd's too)";
    let number = given.number(1, u32::MAX - 1, ALLOWED)?;
    if (252..=255).contains(&number) {
        return bad("it or the one after it is one of the system's own tables", ALLOWED);
    }
    Ok(number)
}

pub(super) fn rule_priority(given: &Given<'_>) -> Reading<u32> {
    given.number(1, 32_764, "a number from 1 to 32764, below the rule of the main table")
}

pub(super) fn mtu(given: &Given<'_>) -> Reading<Automatic<u16>> {
    const ALLOWED: &str = "\"auto\" or a number from 1280 to 65455";
    if given.is_auto() {
        return Ok(Automatic::Auto);
    }
    let number = given.number(1_280, 65_455, ALLOWED)?;
    u16::try_from(number).map(Automatic::Given).or_else(|_| bad("it is out of range", ALLOWED))
}

fn off_until_built(given: &Given<'_>) -> Reading<bool> {
    const ALLOWED: &str = "false";
    if given.switch(ALLOWED)? { Err(Refused::NotBuilt { allowed: ALLOWED }) } else { Ok(false) }
}

pub(super) fn mss_clamp(given: &Given<'_>) -> Reading<bool> {
    given.switch("true or false")
}

pub(super) fn metrics_ui(given: &Given<'_>) -> Reading<bool> {
    off_until_built(given)
}

pub(super) fn dns(given: &Given<'_>) -> Reading<bool> {
    off_until_built(given)
}

pub(super) fn group(given: &Given<'_>) -> Reading<String> {
    const ALLOWED: &str = "a group's name: at most 32 of a-z, A-Z, 0-9, _ - .";
    let text = given.text(ALLOWED)?;
    let sound = (1..=32).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if sound { Ok(text.to_owned()) } else { bad("it is not a group's name", ALLOWED) }
}

pub(super) fn metrics_listen(given: &Given<'_>) -> Reading<Option<SocketAddr>> {
    const ALLOWED: &str = "ADDRESS:PORT, such as \"127.0.0.1:9586\", or \"\" for off";
    let text = given.text(ALLOWED)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        Ok(_) => bad("a monitor has to know the port, so it cannot be 0", ALLOWED),
        Err(_) => bad("it is not an address and a port", ALLOWED),
    }
}

pub(super) fn expiry(given: &Given<'_>) -> Reading<Expiry> {
    given.word(&[("soft", Expiry::Soft), ("hard", Expiry::Hard)], &[], "\"soft\" or \"hard\"")
}
