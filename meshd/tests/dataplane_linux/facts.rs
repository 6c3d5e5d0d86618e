//! What a host says about itself.

use std::collections::BTreeSet;

use meshd::{dataplane::LinuxDataplane, host};

use crate::host::{Host, backend, choice, net, nets};

#[test]
fn the_facts_of_a_host_with_pods_and_a_mesh() {
    let a = Host::new();
    let b = Host::new();
    a.cable("eth0", &b, "eth0");
    a.sh("ip link set eth0 mtu 1450
          ip addr add 192.0.2.10/24 dev eth0; ip addr add 2001:db8::10/64 dev eth0 nodad
          ip route add default via 192.0.2.1 metric 200; ip -6 route add default via 2001:db8::1
          ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.1.0.1/24 dev cni0
          ip link add veth1 type veth peer name veth2; ip link set veth1 up
          ip addr add 172.20.0.1/16 dev veth1");
    a.apply(a.device_changes(1, &["100.112.0.1/32", "fd00::1/128"]));
    let facts = a.run(|| host::read().unwrap());

    assert!(!facts.name.is_empty());
    assert_eq!(facts.underlay_mtu(), 1450);
    assert!(!facts.forwarding_v4);
    assert_eq!(
        facts.gateways(),
        ["192.0.2.1", "2001:db8::1"].iter().map(|a| a.parse().unwrap()).collect()
    );
    let first = &facts.default_routes[0];
    assert_eq!((first.interface.as_str(), first.metric, first.v6), ("eth0", 200, false));
    assert!(
        facts.networks.iter().any(|n| n.prefix == net("192.0.2.0/24") && n.interface == "eth0")
    );
    let device = facts.interfaces.iter().find(|i| i.name == a.device).unwrap();
    assert!(device.is_ours() && device.up && !device.loopback);
    assert_eq!(
        facts.addresses(),
        ["192.0.2.10", "2001:db8::10", "10.1.0.1", "172.20.0.1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect()
    );
    let endpoints = |pods: BTreeSet<_>| -> Vec<String> {
        facts.endpoint_addresses(&pods).iter().map(ToString::to_string).collect()
    };
    assert_eq!(endpoints(nets(&["10.1.0.0/24"])), ["192.0.2.10", "2001:db8::10"]);
    assert_eq!(endpoints(nets(&["192.0.2.0/24"])), ["2001:db8::10"]);

    a.sh("sysctl -qw net.ipv4.ip_forward=1; ip route del default; ip -6 route del default");
    let facts = a.run(|| host::read().unwrap());
    assert!(facts.forwarding_v4 && facts.default_routes.is_empty());
}

#[test]
fn the_backend_is_probed_without_a_trace() {
    let host = Host::new();
    let before = host.everything();
    assert_eq!(host.run(|| LinuxDataplane::new(choice()).unwrap().probe()).unwrap(), backend());
    assert_eq!(host.everything(), before);
}
