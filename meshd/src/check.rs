//! `meshd check`: validates the configuration and this host, changes nothing.

use std::net::UdpSocket;

use anyhow::anyhow;

use crate::{
    daemon::Sources,
    dataplane::{DataplaneError, LinuxDataplane},
    host,
};

/// Prints a line per thing that was looked at.
///
/// # Errors
/// When something would keep the daemon from working.
pub fn run(sources: &Sources) -> anyhow::Result<()> {
    let config = sources.load()?;
    println!("ok       configuration: {}", sources.file.display());
    let mut problems = 0;
    let mut tell = |what: &str, result: Result<String, String>| match result {
        Ok(found) => println!("ok       {what}: {found}"),
        Err(problem) => {
            problems += 1;
            println!("problem  {what}: {problem}");
        }
    };
    tell("privileges", privileges());
    tell("WireGuard", wireguard(&config));
    tell("nft", program("nft"));
    tell("gossip port", port(config.gossip.listen));
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
    if problems == 0 {
        Ok(())
    } else {
        Err(anyhow!(
            "{problems} of the checks found a problem; this host is not ready; mend what is named above"
        ))
    }
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

fn wireguard(config: &crate::config::Config) -> Result<String, String> {
    LinuxDataplane::new(crate::daemon::backend(config))
        .and_then(|dataplane| dataplane.probe())
        .map(|backend| backend.as_str().to_owned())
        .map_err(|error: DataplaneError| error.to_string())
}

fn program(name: &str) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .map(|found| found.display().to_string())
        .ok_or_else(|| format!("{name} is not installed; install nftables"))
}

fn port(listen: std::net::SocketAddr) -> Result<String, String> {
    UdpSocket::bind(listen).map(|_| format!("{listen} is free")).map_err(|error| {
        format!("{listen}: {error}; fine when meshd runs already, else stop what holds it")
    })
}
