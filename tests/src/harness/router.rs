//! A router before a host, whose way to and from it is as narrow as wanted and which keeps silent about it.

use anyhow::Result;

use super::host::Host;
use super::place::{Place, Space};
use super::world::World;

/// A router between the underlay and one host. It answers for the one side on the other, so that no address changes.
#[derive(Debug)]
pub struct Router {
    space: Space,
    number: u32,
}

impl Place for Router {
    fn space(&self) -> &Space {
        &self.space
    }
}

/// It fragments what may be fragmented, drops the rest, and tells nobody.
const SILENT: &str = "
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 1 >/proc/sys/net/ipv6/conf/default/proxy_ndp
nft -f - <<.
table inet silent {
    chain out {
        type filter hook output priority 0;
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
    }
}
.
";

impl Router {
    /// Puts a router before `host`; `others` are the hosts that it shall reach through it. Links take `link` bytes.
    pub fn before(world: &World, host: &Host, others: &[&Host], link: u32) -> Result<Self> {
        let space = Space::new(&format!("router-{}", host.name()), SILENT)?;
        let (number, pid, port) = (host.number(), space.pid(), host.port());
        let batch = format!(
            "link set {port} nomaster\n\
             link set {port} netns {pid} name near\n\
             link add r{number} mtu {link} type veth peer name far mtu {link} netns {pid}\n\
             link set r{number} addrgenmode none\n\
             link set r{number} master br0 up\n"
        );
        world.try_run_with(&["ip", "-batch", "-"], &batch)?.ok()?;
        let router = Self { space, number };
        let host_address = host.address6();
        let mut script = format!(
            "ip link set near mtu {link}
             echo 1 >/proc/sys/net/ipv4/conf/far/proxy_arp
             echo 1 >/proc/sys/net/ipv4/conf/near/proxy_arp
             echo 0 >/proc/sys/net/ipv4/neigh/far/proxy_delay
             echo 0 >/proc/sys/net/ipv4/neigh/near/proxy_delay
             echo 0 >/proc/sys/net/ipv6/neigh/far/proxy_delay
             echo 0 >/proc/sys/net/ipv6/neigh/near/proxy_delay
             ip addr add 192.0.2.253/32 dev far
             ip link set far up
             ip link set near up
             ip -6 neigh add proxy {host_address} dev far
             ip -6 neigh add proxy 2001:db8::fe dev near\n"
        );
        for other in others {
            script += &format!("ip -6 neigh add proxy {} dev near\n", other.address6());
        }
        router.sh(&script)?;
        router.narrow(link)?;
        Ok(router)
    }

    /// Lets only packets of `mtu` bytes through, both ways.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        let number = self.number;
        let script = format!(
            "ip route replace 192.0.2.{number}/32 dev near mtu lock {mtu}
             ip route replace 192.0.2.0/24 dev far src 192.0.2.253 mtu lock {mtu}
             ip -6 route replace 2001:db8::{number}/128 dev near mtu lock {mtu}
             ip -6 route replace 2001:db8::/64 dev far mtu lock {mtu}"
        );
        self.sh(&script).map(drop)
    }
}
