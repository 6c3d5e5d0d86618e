//! Changes in the kernel are reported, and silence too.

use std::time::Duration;

use meshd::dataplane::{Ours, watch::Watch};

use crate::host::Host;

#[test]
fn changes_are_reported_once_and_quiet_is_quiet() {
    let host = Host::new();
    let device = host.device.clone();
    host.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = Watch::new(Ours::default()).unwrap();
            let sh = |command: String| {
                let status = std::process::Command::new("sh").args(["-ec", &command]).status();
                assert!(status.unwrap().success(), "{command}");
            };
            let patience = Duration::from_secs(10);
            for command in [
                format!("ip link add {device} type veth peer name other"),
                format!("ip link set {device} up; ip link set other up"),
                format!("ip addr add 10.0.0.1/32 dev {device}"),
                format!("ip -6 addr add fd00::1/128 dev {device} nodad"),
                "ip route add unreachable 10.9.0.0/24 table 7".to_owned(),
                "ip -6 route add unreachable fd09::/64 table 7".to_owned(),
                "ip rule add pref 7 lookup 7".to_owned(),
                "ip -6 rule add pref 7 lookup 7".to_owned(),
                "nft add table inet meshd".to_owned(),
                "nft delete table inet meshd".to_owned(),
            ] {
                // The kernel says more of a link that just came up: wait for quiet.
                while tokio::time::timeout(Duration::from_millis(300), watch.changed())
                    .await
                    .is_ok()
                {}
                sh(command.clone());
                let seen = tokio::time::timeout(patience, watch.changed()).await;
                assert!(seen.is_ok(), "{command}");
            }
            while tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_ok() {}
            sh("nft add table inet other; nft delete table inet other".to_owned());
            let seen = tokio::time::timeout(Duration::from_millis(300), watch.changed()).await;
            assert!(seen.is_err(), "another program's tables are no news");
        });
    });
}
