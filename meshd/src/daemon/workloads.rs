//! What `status` says of workloads that are on this host and not in its record.

use meshd_proto::control::HealthLine;

use super::{Daemon, health::line, running::Running};

pub(super) fn lines(daemon: &Daemon, running: &Running) -> Vec<HealthLine> {
    let mut lines = Vec::new();
    let unnamed = running.node.unnamed_workloads();
    let no_room = unnamed.no_room + daemon.own.workloads.beyond;
    if no_room > 0 {
        lines.push(line(
            "workloads_no_room",
            "warning",
            format!(
                "{no_room} workloads of this host are not announced: a record holds no more; those that are stay"
            ),
            "run fewer pods here, or narrow [network] workload_interfaces; where a whole prefix is this host's alone, \
             announce it with [network] pod_prefixes",
        ));
    }
    if let (count @ 1.., Some(example)) = (unnamed.not_granted, unnamed.example) {
        lines.push(line(
            "workloads_not_granted",
            "warning",
            format!(
                "{count} workloads of this host ({example} is one) are not announced: this node's certificate does not \
                 grant them"
            ),
            "make a token with `meshctl token create --workloads CIDR` on a signer, then `meshctl leave` here and \
             join with it; on the host that makes the mesh, `meshctl init --workloads CIDR`",
        ));
    }
    let doubtful = &daemon.own.workloads.doubtful;
    if let Some(interface) = doubtful.first() {
        let others = match doubtful.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more interfaces"),
        };
        lines.push(line(
            "workloads_doubtful",
            "warning",
            format!(
                "routes over {interface}{others} are not announced: router advertisements from behind it made them, or could have"
            ),
            format!(
                "set net.ipv6.conf.{interface}.accept_ra = 0, best in the CNI's settings for each of them; then remove routes \
                 that lead to no pod (`ip -6 route show dev {interface}`)"
            ),
        ));
    }
    lines
}
