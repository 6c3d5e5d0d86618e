//! `meshd check`: validates the configuration and this host, changes nothing.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    time::SystemTime,
};

use anyhow::anyhow;
use meshd_core::{
    now::UnixTime,
    plan::{self, Observed, ObservedDevice},
    trust::{IssuedIdentity, JoinToken},
};

use crate::{
    chosen::{Chosen, chosen},
    config::{
        Config, Sources,
        issuers::{self, IssuerFile},
    },
    daemon::plan_config,
    dataplane::{Dataplane, DataplaneError, LinuxDataplane, Scope},
    host, identity_dir, jwks, metrics,
    state::durable,
};

/// Bytes that are written to see whether there is room: what a membership takes.
const PROBE: usize = 16 << 10;

/// Prints a line per thing that was looked at.
///
/// # Errors
/// When something would keep the daemon from working.
pub fn run(sources: &Sources) -> anyhow::Result<()> {
    let config = sources.load()?;
    let absent = if sources.file.exists() { "" } else { " is not there: defaults" };
    println!("ok       configuration: {}{absent}", sources.file.display());
    if let Ok(Chosen { trial: Some(trial), .. }) = chosen(sources) {
        let how = match &trial.ended {
            None => "is on trial".to_owned(),
            Some(ended) => {
                format!("is not in force, `meshctl reload` takes it: {}", ended.text())
            }
        };
        println!("note     configuration: it {how}");
    }
    let mut problems = 0;
    let mut tell = |what: &str, result: Result<String, String>| match result {
        Ok(found) => println!("ok       {what}: {found}"),
        Err(problem) => {
            problems += 1;
            println!("problem  {what}: {problem}");
        }
    };
    if let Some(problem) = own_gateway(&config) {
        tell("gateways", Err(problem));
    }
    tell("privileges", privileges());
    tell("WireGuard", wireguard(&config));
    tell("nft", program("nft"));
    tell("state directory", writable(&config.node.state_dir));
    // A member has what it needs, and its files may be half gone.
    let member = config.node.state_dir.join("pki/node.crt").exists();
    if !member && let Some(found) = identity(&sources.identity()) {
        tell("identity files", found);
    }
    if let (false, Some(file)) = (member, &config.gossip.join_token_file) {
        tell("join token", token(file));
    }
    tell("gossip port", port(config.gossip.listen, &config.control.socket));
    if let Some(listen) = config.metrics.listen {
        tell("metrics", metrics_port(listen, &config.control.socket));
    }
    tell(
        "host",
        host::read()
            .map(|facts| {
                format!(
                    "{} interfaces, underlay MTU {}",
                    facts.interfaces.len(),
                    facts.underlay_mtu()
                )
            })
            .map_err(|error| error.to_string()),
    );
    match observe(&config) {
        Ok(observed) => {
            tell("WireGuard port", wireguard_port(&config, observed.device.as_ref()));
            let taken = plan::taken(&plan_config(&config), &observed.foreign);
            for taken in taken {
                tell("routing", Err(format!("{}; {}", taken.message, taken.fix)));
            }
        }
        Err(error) => tell("routing", Err(error.to_string())),
    }
    for (name, result) in issuers(sources) {
        tell(&name, result);
    }
    if problems == 0 {
        Ok(())
    } else {
        Err(anyhow!(
            "{problems} of the checks found a problem; this host is not ready; mend what is named above"
        ))
    }
}

/// A host that names itself, by the name that it has from the system.
fn own_gateway(config: &Config) -> Option<String> {
    let host = host::read().ok()?.name;
    let own = config.node_name(&host).ok()?;
    config.node.gateways.contains(&own).then(|| {
        format!(
            "node.gateways names {own}, which is this host itself; name other members of its zone"
        )
    })
}

/// Says what is missing for changing the network, if anything.
pub(crate) fn privileges() -> Result<String, String> {
    // CapEff, bit 12: CAP_NET_ADMIN (capabilities(7), linux/capability.h).
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    if effective >> CAP_NET_ADMIN & 1 == 1 {
        Ok("CAP_NET_ADMIN".to_owned())
    } else {
        Err("it lacks CAP_NET_ADMIN; run it as root, or by its systemd unit".to_owned())
    }
}

fn wireguard(config: &Config) -> Result<String, String> {
    LinuxDataplane::new(crate::daemon::backend(config))
        .and_then(|dataplane| dataplane.probe())
        .map(|backend| backend.as_str().to_owned())
        .map_err(|error: DataplaneError| error.to_string())
}

fn observe(config: &Config) -> Result<Observed, DataplaneError> {
    LinuxDataplane::new(crate::daemon::backend(config))
        .and_then(|mut dataplane| dataplane.observe(&Scope::of(&plan_config(config))))
}

/// The issuers of identity documents, with the keys that each has now.
fn issuers(sources: &Sources) -> Vec<(String, Result<String, String>)> {
    let loaded = issuers::load(&sources.issuers());
    let refused = loaded.refused.iter().flat_map(|(name, errors)| {
        errors.0.iter().map(move |error| (format!("issuer {name}"), Err(error.to_string())))
    });
    let read = |file: &IssuerFile| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let keys = runtime.map_err(|error| error.to_string())?.block_on(jwks::read(&file.keys))?;
        Ok(format!("rules: {}, keys: {}", file.rules(), keys.len()))
    };
    let good = loaded.files.iter().map(|file| (format!("issuer {}", file.name()), read(file)));
    refused.chain(good).collect()
}

pub(crate) fn program(name: &str) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .map(|found| found.display().to_string())
        .ok_or_else(|| format!("{name} is not installed; install nftables"))
}

/// Writes a file and removes it again: a mode says nothing of a read-only or full file system.
fn writable(state_dir: &Path) -> Result<String, String> {
    // The daemon makes what is missing.
    let there = state_dir.ancestors().find(|directory| directory.exists());
    let directory = there.unwrap_or(Path::new("/"));
    let probe = directory.join(format!(".meshd-check-{}", std::process::id()));
    let tried = durable::write(&probe, &[0; PROBE]);
    let removed = durable::remove(&probe);
    let is_there = directory == state_dir;
    let (state_dir, directory) = (state_dir.display(), directory.display());
    tried.and(removed).map_err(|error| {
        format!("{state_dir}: {error}; mount it writable, make room, or set node.state_dir")
    })?;
    Ok(if is_there {
        format!("{state_dir} can be written")
    } else {
        format!("{state_dir} is not there yet; meshd makes it, {directory} can be written")
    })
}

/// Says what the token is for that an unattended host joins with.
fn token(file: &Path) -> Result<String, String> {
    let in_file = |why: String| format!("{}: {why}", file.display());
    let fix = "put the token there, or correct gossip.join_token_file";
    let text = std::fs::read_to_string(file).map_err(|why| in_file(format!("{why}; {fix}")))?;
    let token = JoinToken::parse(text.trim())
        .map_err(|error| in_file(format!("{}; {}", error.why(), error.fix())))?;
    let end = token.expires_at().rfc3339().unwrap_or_else(|| "no date".to_owned());
    if token.expires_at() <= now() {
        let made = "make another with `meshctl token create` on a signer";
        return Err(in_file(format!("the token ended at {end}; {made}")));
    }
    Ok(format!("{} admits to mesh {} until {end}", file.display(), token.mesh()))
}

/// Says for whom the identity is that lies beside the configuration, if one does.
fn identity(directory: &Path) -> Option<Result<String, String>> {
    let files = match identity_dir::read(directory) {
        Ok(files) if files.is_empty() => return None,
        files => files,
    };
    let read = files.and_then(|files| IssuedIdentity::read(&files, now()));
    Some(match read {
        Ok(issued) => {
            let certificate = &issued.certificate;
            Ok(format!("{} in mesh {}", certificate.name, certificate.mesh))
        }
        Err(misfit) => Err(format!("{}/{misfit}", directory.display())),
    })
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// `device`: ours, as it is; it stays while meshd is stopped.
fn wireguard_port(config: &Config, device: Option<&ObservedDevice>) -> Result<String, String> {
    let port = config.wireguard.port;
    if let Some(device) = device
        && device.listen_port == port
    {
        return Ok(format!("{port} is held by {}, as it should be", device.name));
    }
    // The kernel's device takes the port in both families, and so does wireguard-go.
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Ok(format!("{port} is free")),
        Err(error) => Err(format!("{port}: {error}; stop what holds it, or set wireguard.port")),
    }
}

fn port(listen: SocketAddr, socket: &Path) -> Result<String, String> {
    match UdpSocket::bind(listen) {
        Ok(_) => Ok(format!("{listen} is free")),
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(socket).is_ok() =>
        {
            Ok(format!("{listen} is in use, as it should be: meshd runs"))
        }
        Err(error) => Err(format!("{listen}: {error}; stop what holds it, or set gossip.listen")),
    }
}

/// The daemon works without it, but nobody would see that it does.
fn metrics_port(listen: SocketAddr, socket: &Path) -> Result<String, String> {
    let found = match TcpListener::bind(listen) {
        Ok(_) => format!("{listen} is free"),
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(socket).is_ok() =>
        {
            format!("{listen} is in use, as it should be: meshd runs")
        }
        Err(error) => {
            return Err(format!("{listen}: {error}; stop what holds it, or set metrics.listen"));
        }
    };
    let note = metrics::exposure(listen).map(|note| format!("; {note}")).unwrap_or_default();
    Ok(found + &note)
}
