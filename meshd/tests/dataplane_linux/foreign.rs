//! What is not ours is neither taken nor touched, and errors say what to do.

use meshd::dataplane::DataplaneError;
use meshd_core::plan::{
    Backend, Change, Family, Firewall, Observed, PlanConfig, RouteKind, Rule, Steering, taken,
};

use crate::host::{Host, MARK, PRIORITY, TABLE, backend, net, public, route, rule};

const OTHERS: &str = "
    ip link add other0 type veth peer name other1
    ip link set other0 addrgenmode none; ip link set other1 addrgenmode none
    ip link set other0 up; ip link set other1 up; ip addr add 198.51.100.1/24 dev other0
    ip addr add 2001:db8:1::1/64 dev other0 nodad
    ip rule add pref 2600 not fwmark 0x10/0x10 lookup 51820
    ip -6 rule add pref 2600 not fwmark 0x10/0x10 lookup 51820
    ip rule add pref 2600 from 198.51.100.1 lookup 51820 protocol 109
    ip rule add pref 2601 not fwmark 0x20/0x20 lookup 99 protocol 109
    ip route add 10.7.0.0/24 dev other0 table 51820
    ip -6 route add fd07::/64 dev other0 table 51820 metric 100
    ip route add 10.8.0.0/24 dev other0 table 99 protocol 109
    ip route add unreachable 10.9.0.0/24 table 51820 metric 100 protocol static
    nft add table inet other; nft add chain inet other c; nft add table ip meshd";

#[test]
fn other_programs_objects_survive_all_of_our_life() {
    let host = Host::new();
    host.sh(OTHERS);
    let before = host.everything();
    let seen = host.observe().unwrap();
    assert!(seen.device.is_none() && seen.routes.is_empty() && seen.rules.is_empty(), "{seen:?}");
    assert!(seen.firewall.is_none());

    let routes = [host.route("10.2.0.0/24", None, None), route("fd03::/64", RouteKind::Throw)];
    let rules = [rule(Family::V4), rule(Family::V6)];
    let mut table = Firewall::default();
    table.rules.nat.device.clone_from(&host.device);
    table.rules.guard = Some(Steering { mark: MARK, gossip: 51800, wireguard: 51820 });
    let mut changes = host.device_changes(1, &["100.112.0.1/32", "fd00::1/128"]);
    changes.push(host.put_peer(2, None, &["10.2.0.0/24"]));
    changes.extend(routes.iter().cloned().map(Change::PutRoute));
    changes.extend(rules.iter().cloned().map(Change::AddRule));
    changes.push(Change::PutFirewall(table));
    host.apply(changes);
    let seen = host.observe().unwrap();
    assert_eq!(seen.rules, rules.clone().into(), "one of ours beside each of theirs");
    assert_eq!(seen.routes, routes.clone().into());

    let mut removal = vec![Change::RemoveFirewall];
    removal.extend(rules.into_iter().map(Change::RemoveRule));
    removal.extend(routes.into_iter().map(Change::RemoveRoute));
    removal.push(Change::DeleteDevice { name: host.device.clone() });
    host.apply(removal);
    assert_eq!(host.everything(), before);
}

#[test]
fn removing_what_only_others_have_removes_nothing() {
    let host = Host::new();
    host.sh(OTHERS);
    let before = host.everything();
    host.apply(vec![
        Change::RemoveRule(rule(Family::V4)),
        Change::RemoveRule(rule(Family::V6)),
        Change::RemoveRoute(route("10.9.0.0/24", RouteKind::Unreachable)),
        Change::RemoveRoute(route("fd07::/64", RouteKind::Unreachable)),
        Change::RemoveFirewall,
        Change::DeleteDevice { name: host.device.clone() },
    ]);
    assert_eq!(host.everything(), before);
}

#[test]
fn anothers_route_is_not_replaced_and_the_rest_goes_on() {
    let host = Host::new();
    host.sh(OTHERS);
    let before = host.everything();
    let fine = route("10.10.0.0/24", RouteKind::Throw);
    let failures = host.try_apply(vec![
        Change::PutRoute(route("10.9.0.0/24", RouteKind::Throw)),
        Change::PutRoute(route("fd07::/64", RouteKind::Throw)),
        Change::PutRoute(fine.clone()),
    ]);
    let codes: Vec<_> = failures.iter().map(|(index, error)| (*index, error.code())).collect();
    assert_eq!(codes, [(0, "foreign_object"), (1, "foreign_object")], "{failures:?}");
    assert!(failures[0].1.to_string().contains("10.9.0.0/24"), "{}", failures[0].1);
    host.apply(vec![Change::RemoveRoute(fine)]);
    assert_eq!(host.everything(), before);
}

#[test]
fn a_taken_interface_name_is_refused_and_untouched() {
    let same_kind = match backend() {
        Backend::Kernel => "link add NAME type wireguard",
        Backend::Userspace => "tuntap add NAME mode tun",
    };
    for kind in ["link add dev NAME type veth", same_kind] {
        let host = Host::new();
        let name = host.device.clone();
        host.sh(&format!("ip {}", kind.replace("NAME", &name)));
        let before = host.everything();
        let seen = host.observe().unwrap();
        assert_eq!(seen, Observed { foreign: seen.foreign.clone(), ..Observed::default() });
        let mut changes = host.device_changes(1, &["100.112.0.1/32"]);
        changes.retain(|change| !matches!(change, Change::SetSysctl { .. }));
        changes.push(host.put_peer(2, None, &["10.2.0.0/24"]));
        changes.push(Change::PutRoute(host.route("10.2.0.0/24", None, None)));
        changes.push(Change::DeleteDevice { name: name.clone() });
        let count = changes.len();
        let failures = host.try_apply(changes);
        assert_eq!(failures.len(), count, "{kind}");
        let text = failures[0].1.to_string();
        assert!(text.contains("[wireguard] interface"), "{text}");
        assert!(failures.iter().all(|(_, e)| matches!(e, DataplaneError::NameTaken { .. })));
        assert_eq!(host.everything(), before);
        host.sh(&format!("ip link del {name}"));
    }
}

#[test]
fn a_change_never_makes_an_interface_by_the_way() {
    let host = Host::new();
    let before = host.everything();
    let name = host.device.clone();
    let failures = host.try_apply(vec![
        host.put_peer(2, None, &["10.2.0.0/24"]),
        Change::RemovePeer { device: name.clone(), public_key: public(2) },
        Change::ConfigureDevice {
            name: name.clone(),
            private_key: None,
            listen_port: Some(1),
            fwmark: None,
        },
        Change::SetUp { name: name.clone() },
        Change::AddAddress { name, address: net("100.112.0.1/32") },
        Change::PutRoute(host.route("10.2.0.0/24", None, None)),
    ]);
    assert_eq!(failures.len(), 6);
    assert!(failures.iter().all(|(_, error)| error.code() == "interface_gone"), "{failures:?}");
    assert_eq!(host.everything(), before);
}

#[test]
fn a_port_in_use_is_said() {
    let host = Host::new();
    let _busy = host.run(|| {
        (
            std::net::UdpSocket::bind("0.0.0.0:51820").unwrap(),
            std::net::UdpSocket::bind("[::]:51820").ok(),
        )
    });
    let failures = host.try_apply(host.device_changes(1, &[]));
    assert!(failures.iter().any(|(_, error)| error.code() == "port_in_use"), "{failures:?}");
    let text = failures[0].1.to_string();
    assert!(text.contains("EADDRINUSE") && text.contains("[wireguard] port"), "{text}");
}

#[test]
fn rules_of_an_older_configuration_are_seen() {
    let host = Host::new();
    let old = Rule { family: Family::V4, priority: PRIORITY - 1, table: TABLE, fwmark: 0x40 };
    host.apply(vec![Change::AddRule(old.clone())]);
    assert_eq!(host.observe().unwrap().rules, [old.clone()].into());
    host.apply(vec![Change::RemoveRule(old)]);
    assert!(host.observe().unwrap().rules.is_empty());
}

#[test]
fn what_a_crash_left_of_a_device_is_known_and_made_whole() {
    if backend() == Backend::Kernel {
        // What a crash between creation and mark leaves is known as ours.
        let host = Host::new();
        host.sh(&format!("ip link add {} group 1835365224 type wireguard", host.device));
        assert!(host.observe().unwrap().device.is_some());
        host.apply(host.device_changes(1, &[]));
        assert!(host.sh(&format!("ip -d link show {}", host.device)).contains("alias meshd"));
        return;
    }
    let host = Host::new();
    host.apply(host.device_changes(1, &[]));
    // The socket without its process, as after kill -9 with a TUN that somebody keeps open.
    let socket = format!("/run/wireguard/{}.sock", host.device);
    let process = host.sh(&format!("pgrep -xf 'wireguard-go -f {}'", host.device));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process.trim().parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert!(std::path::Path::new(&socket).exists());
    while host.observe().unwrap().device.is_some() {
        std::thread::yield_now();
    }
    host.apply(host.device_changes(1, &[]));
    assert_eq!(host.observe().unwrap().device.unwrap().public_key, Some(public(1)));
    host.delete_device();
    assert!(!std::path::Path::new(&socket).exists());
}

#[test]
fn a_process_of_another_namespace_keeps_its_socket() {
    let first = Host::new();
    first.apply(first.device_changes(1, &[]));
    let mut second = Host::new();
    second.device.clone_from(&first.device);
    let failures = second.try_apply(vec![Change::CreateDevice { name: second.device.clone() }]);
    match backend() {
        // The kernel's devices of two namespaces have nothing in common.
        Backend::Kernel => assert!(failures.is_empty(), "{failures:?}"),
        Backend::Userspace => {
            let codes: Vec<_> = failures.iter().map(|(_, error)| error.code()).collect();
            assert_eq!(codes, ["userspace_not_started"], "{failures:?}");
        }
    }
    assert_eq!(first.observe().unwrap().device.unwrap().public_key, Some(public(1)));
}

#[test]
fn what_others_have_in_our_places_is_told() {
    let host = Host::new();
    host.sh("ip rule add pref 2600 lookup 7; ip -6 rule add fwmark 0x30/0xff pref 9 lookup 7
             ip route add unreachable 10.9.0.0/24 table 51820; ip -6 route add unreachable fd09::/64 table 51820");
    let config = PlanConfig { interface: host.device.clone(), ..PlanConfig::default() };
    let codes = |host: &Host| -> Vec<&'static str> {
        taken(&config, &host.observe().unwrap().foreign).iter().map(|taken| taken.code).collect()
    };
    assert_eq!(codes(&host), ["table_taken", "rule_priority_taken", "mark_taken"]);
    host.sh("ip rule del pref 2600; ip -6 rule del pref 9; ip route del unreachable 10.9.0.0/24 table 51820
             ip -6 route del unreachable fd09::/64 table 51820");
    host.apply(host.device_changes(1, &[]));
    host.apply(vec![
        Change::AddRule(rule(Family::V4)),
        Change::PutRoute(route("10.9.0.0/24", RouteKind::Throw)),
    ]);
    assert_eq!(codes(&host), [""; 0], "what is ours is not taken");
}
