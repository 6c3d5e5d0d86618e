//! What can be taken away from a host's protection.

/// What somebody does to a host whose daemon is dead; every part of the protection but one may be gone.
pub const LOSSES: [(&str, &str); 8] = [
    ("nothing", "true"),
    ("device down", "ip link set mesh0 down"),
    ("device deleted", "ip link del mesh0"),
    ("table flushed", "ip route flush table 51820; ip -6 route flush table 51820"),
    (
        "rules deleted",
        "for f in -4 -6; do ip $f rule del pref 2600; ip $f rule del pref 2601; done",
    ),
    ("ruleset flushed", "nft flush ruleset"),
    (
        "all but the nftables guard",
        "ip link del mesh0; for f in -4 -6; do ip $f rule del pref 2600; ip $f rule del pref 2601
         ip $f route flush table 51820; ip $f route flush table 51821; done",
    ),
    (
        "all but the second table",
        "ip link del mesh0; nft flush ruleset; for f in -4 -6; do ip $f rule del pref 2600
         ip $f route flush table 51820; done",
    ),
];

/// As after a reboot: nothing of the mesh is left in the kernel.
pub const REBOOT: &str = "ip link del mesh0 2>/dev/null || true; nft flush ruleset
    for f in -4 -6; do for p in 2600 2601; do ip $f rule del pref $p 2>/dev/null || true; done
    for t in 51820 51821; do ip $f route flush table $t; done; done; rm -f /run/meshd/sysctls
    echo 0 >/proc/sys/net/ipv4/conf/eth0/src_valid_mark";
