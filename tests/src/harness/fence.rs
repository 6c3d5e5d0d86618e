//! A router at the edge of a zone, as the hosts see it: what comes from beyond is dropped but for the addresses that it
//! lets through. It drops where packets come in, so that whatever a host sends still shows in a capture.

use anyhow::Result;

use super::host::Host;
use super::place::Place;

/// The edge of a zone.
#[derive(Debug)]
pub struct Fence;

impl Fence {
    /// `host` hears nobody but `others`.
    pub fn only(host: &Host, others: &[&Host]) -> Result<Self> {
        let (v4, v6) = lists(others);
        Self::put(
            host,
            &format!("ip saddr != {{ {v4} }} drop; ip6 saddr != {{ {v6}, fe80::/10 }} drop"),
        )
    }

    /// `host` does not hear `others`.
    pub fn without(host: &Host, others: &[&Host]) -> Result<Self> {
        let (v4, v6) = lists(others);
        Self::put(host, &format!("ip saddr {{ {v4} }} drop; ip6 saddr {{ {v6} }} drop"))
    }

    fn put(host: &Host, rules: &str) -> Result<Self> {
        host.sh(&format!(
            "nft -f - <<.
table inet fence
delete table inet fence
table inet fence {{ chain in {{ type filter hook prerouting priority -450; iifname != \"eth0\" accept; {rules}; }}; }}
."
        ))?;
        Ok(Self)
    }
}

fn lists(hosts: &[&Host]) -> (String, String) {
    let v4: Vec<String> = hosts.iter().map(|host| host.address()).collect();
    let v6: Vec<String> = hosts.iter().map(|host| host.address6()).collect();
    (v4.join(", "), v6.join(", "))
}
