//! Everything of a host's network that a program could have changed, to compare before and after.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::host::Host;
use super::place::Place;

/// The state of links, addresses, routes of all tables, rules, neighbours, nftables, sysctls and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    parts: BTreeMap<String, Vec<String>>,
}

/// Prints every part after a line `== NAME`, in one shell, since each program costs a tenth of a second in the VM. What
/// moves by itself is left out: counters, lifetimes, and sysctls that only come with a kernel module.
const SCRIPT: &str = r"
echo '== links'; ip -d -o link show | sed -E 's/[a-z_]*timer +[0-9.]+//g'
echo '== addresses'; ip -o addr show
echo '== routes'; ip -4 route show table all; ip -6 route show table all | sed 's/ expires [0-9]*sec//'
echo '== rules'; ip -4 rule show; ip -6 rule show
echo '== nftables'; nft -s list ruleset
echo '== sysctls'; grep -rsH '' /proc/sys/net/ipv4 /proc/sys/net/ipv6 | grep -v stable_secret
echo '== wireguard'; ls -A /run/wireguard; wg show interfaces
echo '== state'; find /var/lib/meshd -mindepth 1 -maxdepth 2 | sort
echo '== processes'
for process in /proc/[0-9]*; do
    [ $process -ef /proc/$$ ] && continue
    if [ $process/ns/net -ef /proc/$$/ns/net ] && read -r name <$process/comm; then echo $name; fi
done 2>/dev/null | sort
";

impl Snapshot {
    /// The state of `host` now.
    pub fn take(host: &Host) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for part in host.run(&["sh", "-c", SCRIPT])?.split("== ").skip(1) {
            let mut lines = part.lines().map(str::to_owned);
            let name = lines.next().context("a part without a name")?;
            // The shell's own children that print the list.
            parts.insert(
                name,
                lines.filter(|line| line != "sort" && line != "sh" && line != "sed").collect(),
            );
        }
        Ok(Self { parts })
    }

    /// What `later` has more (`+`) or less (`-`) than this, a line each; the parts named in `except` are not compared.
    pub fn differences(&self, later: &Self, except: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for (name, before) in self.parts.iter().filter(|(name, _)| !except.contains(&name.as_str()))
        {
            let Some(after) = later.parts.get(name) else { continue };
            for (sign, from, to) in [('-', before, after), ('+', after, before)] {
                found.extend(
                    from.iter().filter(|l| !to.contains(l)).map(|l| format!("{name}: {sign} {l}")),
                );
            }
        }
        found
    }
}
