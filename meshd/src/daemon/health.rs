//! Health lines: what is wrong with this host, and how to mend it.

use meshd_core::{
    limits::{DAY_SECONDS, SIGNER_TIME_EVERY_SECONDS},
    node::Liveness,
    plan::{self, BlockReason},
    refusal::Code,
};
use meshd_proto::control::HealthLine;

use super::{Daemon, clock, planning::plan_config, running::Running, status::rfc3339};

/// A renewal that is due for so long is worth a warning.
const RENEWAL_GRACE_SECONDS: i64 = DAY_SECONDS;
/// A certificate that ends this soon is an error.
const SOON_SECONDS: i64 = 3 * DAY_SECONDS;
/// Lines about what others have in our places: a host may have a thousand rules.
const TAKEN: usize = 4;
/// Signers speak every hour.
const SIGNERS_SILENT_SECONDS: i64 = 3 * SIGNER_TIME_EVERY_SECONDS;

/// A line that comes from the start of the daemon.
pub(super) fn notice(code: &str, message: &str, fix: &str) -> HealthLine {
    line(code, "warning", message, fix)
}

pub(super) fn line(
    code: &str,
    severity: &str,
    message: impl Into<String>,
    fix: impl Into<String>,
) -> HealthLine {
    HealthLine {
        code: code.to_owned(),
        severity: severity.to_owned(),
        message: message.into(),
        fix: fix.into(),
    }
}

/// All lines, worst first.
pub(super) fn lines(daemon: &Daemon) -> Vec<HealthLine> {
    let mut lines = daemon.notices.clone();
    for warning in &daemon.own.warnings {
        lines.push(line(
            "pod_prefixes",
            "warning",
            warning,
            "correct the file, or set [network] pod_prefixes",
        ));
    }
    if let Some(error) = &daemon.join_error {
        let message = format!("{}: {}", error.what, error.why);
        lines.push(line(&error.code, "warning", message, error.fix.as_str()));
    }
    lines.extend(daemon.handed.line());
    if let Some(why) = &daemon.guard.error {
        lines.push(line(
            "guard_not_kept",
            "warning",
            format!("the leak guard is not kept for the next boot: {why}"),
            "check the disk of the state directory",
        ));
    }
    if let Some(errors) = &daemon.reload_error {
        lines.push(line(
            "config_refused",
            "warning",
            format!("the configuration on disk is not in force: {errors}"),
            "correct it, then run `systemctl reload meshd`",
        ));
    }
    lines.extend(daemon.trial_line());
    lines.extend(daemon.files_line());
    for (name, errors) in &daemon.issuers.refused {
        lines.push(line(
            "issuers_refused",
            "warning",
            format!("the issuer {name} of identity documents admits nobody: {errors}"),
            "correct its file and run `systemctl reload meshd`",
        ));
    }
    if daemon.running.is_none() && daemon.joining.is_none() && daemon.state.lacks_certificate() {
        lines.push(line(
            "certificate_missing",
            "error",
            "this host was a member of a mesh, whose root and signers are in its state directory; its certificate, \
             pki/node.crt, is missing",
            "restore pki/node.crt from a backup and restart meshd; else `meshctl node revoke` its name on a signer, \
             remove pki/ and keys/ here, and join with a new token",
        ));
    }
    if let Some((message, fix)) = daemon.metrics.as_ref().and_then(|metrics| metrics.problem()) {
        lines.push(line("metrics_not_served", "warning", message, fix));
    }
    if let Some(running) = &daemon.running {
        of_running(daemon, running, &mut lines);
    }
    let rank = |line: &HealthLine| match line.severity.as_str() {
        "error" => 0,
        "warning" => 1,
        _ => 2,
    };
    lines.sort_by_key(rank);
    lines
}

/// What other programs have in our places.
fn taken(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let foreign = running.observed.as_ref().map(|observed| &observed.foreign);
    let found = foreign.map(|foreign| plan::taken(&plan_config(&daemon.config), foreign));
    for taken in found.into_iter().flatten().take(TAKEN) {
        lines.push(line(taken.code, "warning", taken.message, taken.fix));
    }
}

fn of_running(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let name = running.identity.certificate.name.as_str();
    if let Some(other) = daemon.config.node.name.as_ref().filter(|other| other.as_str() != name) {
        lines.push(line(
            "name_differs",
            "warning",
            format!("the configuration names this host {other}; it is {name}, as its certificate says"),
            format!(
                "set [node] name = \"{name}\"; or, for the other name, `meshctl leave` here and join anew"
            ),
        ));
    }
    for (code, text) in &running.dataplane_errors {
        // The error's last part is what to do.
        let (message, fix) = text.rsplit_once("; ").unwrap_or((text, "see the journal"));
        lines.push(line(code, "error", message, fix));
    }
    for (prefix, refusal) in running.node.own_refusals() {
        let asked = prefix.as_ref().and_then(|prefix| running.asked_for(prefix));
        let held = prefix.as_ref().and_then(|prefix| running.held_by(prefix));
        let fix = match refusal.code {
            Code::PrefixNotGranted if held.is_some() => held.as_deref().unwrap_or_default(),
            Code::PrefixNotGranted if asked.is_some() => asked.as_deref().unwrap_or_default(),
            Code::PrefixNotGranted if running.signer.is_some() => {
                "this host is a signer, which must not leave lightly: `meshctl signer add` another, then \
                 `meshctl leave` here and join with a token that grants it"
            }
            Code::PrefixNotGranted => {
                "if nobody else has it: make a token that grants it (`meshctl token create --allow CIDR` on \
                 a signer), then `meshctl leave` here and join with it"
            }
            _ => "see the journal",
        };
        lines.push(line(refusal.code.as_str(), "warning", refusal.detail.clone(), fix));
    }
    lines.extend(super::workloads::lines(daemon, running));
    if running.contested {
        lines.push(line(
            "drift_contested",
            "warning",
            format!("another program undoes what meshd repairs, last: {}", running.repaired),
            "find it (`ip monitor`, `nft monitor`) and exempt interface, table, rule and nftables table of meshd there",
        ));
    }
    if running.signer.is_some() {
        lines.extend(running.identities.lines());
    }
    for damage in &running.damage {
        lines.push(line(
            "state_damaged",
            "warning",
            damage.as_str(),
            "check the disk of the state directory",
        ));
    }
    if let Some(why) = &running.revocations_lost {
        lines.push(line(
            "revocations_damaged",
            "warning",
            format!(
                "pki/revocations cannot be read ({why}): who was revoked is not known until another member answers"
            ),
            "it is written anew after the first exchange; see that another member is `alive` in `meshctl peers \
             list`, and check the disk of the state directory",
        ));
    }
    if let Some(why) = &running.flush_error {
        lines.push(line(
            "store_not_written",
            "warning",
            format!("the record store cannot be written: {why}"),
            "check the disk of the state directory; until then a restart may not know every member",
        ));
    }
    lines.extend(super::measuring::small_paths(running));
    lines.extend(running.uncarried(&daemon.config));
    running.device_lines(lines);
    if running.node.is_revoked() {
        lines.push(line(
            "revoked",
            "error",
            "a signer has ended this node's membership: no member believes it any more",
            "`meshctl leave` clears what remains here; then join with a new token",
        ));
    } else if running.node.has_left() {
        lines.push(line(
            "has_left",
            "error",
            "this node has left the mesh: no member believes it any more",
            "`meshctl leave` clears what remains here; then join with a new token",
        ));
    }
    taken(daemon, running, lines);
    contact(daemon, running, lines);
    forwarding(daemon, running, lines);
    expiry(running, lines);
    names(running, lines);
    let userspace = running
        .observed
        .as_ref()
        .and_then(|observed| observed.device.as_ref())
        .is_some_and(|device| device.backend == meshd_core::plan::Backend::Userspace);
    if userspace {
        lines.push(line(
            "userspace_wireguard",
            "info",
            "WireGuard runs in userspace, which is slower",
            "use a kernel with the wireguard module (Linux 5.6 or later)",
        ));
    }
    let own_key = running.node.key();
    super::zones::lines(daemon, running, lines);
    let own = running.plan.blocked.get(&own_key).into_iter().flatten();
    for blocked in own.filter(|blocked| blocked.reason != BlockReason::GatewayOdd) {
        lines.push(line(
            blocked.reason.as_str(),
            "warning",
            blocked.message.as_str(),
            "announce each prefix on one host only",
        ));
    }
}

/// Tunnels go on when gossip does not, so nothing else would tell.
fn contact(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let own = running.node.key();
    let others = running.node.directory().iter().filter(|r| r.key != own && !r.left);
    let states: Vec<_> =
        others.filter_map(|record| running.node.liveness(&record.key)).map(|(l, _)| l).collect();
    if states.is_empty() {
        return newcomer(daemon, running, lines);
    }
    if states.iter().all(|liveness| *liveness == Liveness::Down) {
        let port = daemon.gossip_port();
        lines.push(line(
            "isolated",
            "warning",
            "no other member answers; tunnels stay as they are, and changes do not arrive",
            format!("check that the others run meshd, and that UDP {port} passes both ways"),
        ));
    }
}

/// A host that has met nobody yet: its identity came as files, and its seeds may be gone, or refuse it.
fn newcomer(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let Some(problem) = running.node.renewal_problem() else { return };
    let rejoin = "`meshctl leave`, then join with a new token or identity";
    let (code, severity, message, fix) = match problem.code {
        Code::NoSigner => {
            let port = daemon.gossip_port();
            let fix =
                format!("check [gossip] seeds, that they run meshd, and that UDP {port} passes");
            ("isolated", "warning", "no seed has answered yet".to_owned(), fix)
        }
        Code::Revoked => {
            let message = format!("no member lets this host in: {}", problem.detail);
            ("revoked", "error", message, rejoin.to_owned())
        }
        _ => {
            let message = format!("no member lets this host in: {}", problem.detail);
            ("not_let_in", "warning", message, rejoin.to_owned())
        }
    };
    lines.push(line(code, severity, message, fix));
}

fn forwarding(daemon: &Daemon, running: &Running, lines: &mut Vec<HealthLine>) {
    let Some(own) = running.own_record() else { return };
    let facts = &daemon.own.facts;
    let gateway = daemon.config.node.gateway;
    let has = |v6| gateway || own.prefixes.iter().any(|prefix| prefix.addr().is_ipv6() == v6);
    for (off, family, sysctl) in [
        (has(false) && !facts.forwarding_v4, "IPv4", "net.ipv4.ip_forward=1"),
        (has(true) && !facts.forwarding_v6, "IPv6", "net.ipv6.conf.all.forwarding=1"),
    ] {
        if off {
            lines.push(line(
                "forwarding_off",
                "warning",
                match gateway {
                    true => format!("this host is a gateway but does not forward {family}"),
                    false => {
                        format!(
                            "this host announces {family} prefixes but does not forward {family}"
                        )
                    }
                },
                format!("sysctl -w {sysctl}, and keep it in /etc/sysctl.d"),
            ));
        }
    }
}

/// Long before it ends: what is due at two thirds of its life and does not come is said.
fn expiry(running: &Running, lines: &mut Vec<HealthLine>) {
    let node = &running.node;
    let end = running.identity.certificate.not_after;
    let wall = clock::unix();
    let left = end.since(node.anchors().trust_time(wall).ends);
    let overdue = wall.since(node.renewal_due()) > RENEWAL_GRACE_SECONDS;
    if left <= 0 || overdue {
        let date = rfc3339(end).unwrap_or_default();
        let why = node
            .renewal_problem()
            .map(|refusal| format!(" and is not renewed: {}", refusal.detail))
            .unwrap_or_default();
        let severity = if left <= SOON_SECONDS { "error" } else { "warning" };
        let ends = if left <= 0 { "ended" } else { "ends" };
        let message = format!("this node's certificate {ends} on {date}{why}");
        lines.push(line(
            "certificate_expiry",
            severity,
            message,
            "start a signer, or check that this host reaches one; else `meshctl leave` and join with a \
             new token",
        ));
    }
    authorities(running, lines);
    signers(running, lines);
}

/// What signs certificates ends too, and somebody has to act long before.
fn authorities(running: &Running, lines: &mut Vec<HealthLine>) {
    let anchors = running.node.anchors();
    // A clock that is behind must not hide it.
    let now = anchors.trust_time(clock::unix()).begins;
    for ending in anchors.endings(now) {
        let (days, date) = (ending.at.since(now) / DAY_SECONDS, rfc3339(ending.at));
        let date = date.unwrap_or_default();
        let when = if days < 0 {
            format!("ended on {date}")
        } else {
            format!("ends on {date}, in {days} days")
        };
        let severity = ending.severity.as_str();
        match ending.signer {
            None => lines.push(line(
                "root_expiry",
                severity,
                format!("the certificate of the mesh's root {when}; nobody is believed after that"),
                "replace it with `meshctl cert ca rotate`, on the host with the root's key, while all nodes can \
                 hear of it",
            )),
            Some(name) => lines.push(line(
                "signer_expiry",
                severity,
                format!("the certificate of the signer {name} {when}, and all that it issues with it"),
                format!(
                    "on the host with the root's key: `meshctl signer add` another host, `meshctl signer revoke \
                     {name}`, and `meshctl signer add {name}` when it is gone from the list"
                ),
            )),
        }
    }
}

/// Without signers nothing is cut, and nobody is admitted, renewed or revoked.
fn signers(running: &Running, lines: &mut Vec<HealthLine>) {
    let Some(at) = running.node.anchors().signer_time() else { return };
    let silent = clock::unix().since(at);
    if silent > SIGNERS_SILENT_SECONDS {
        let since = rfc3339(at).unwrap_or_default();
        lines.push(line(
            "no_signer",
            "warning",
            format!(
                "no signer has been heard of since {since}: nobody is admitted and no certificate \
                 renewed; nothing is cut"
            ),
            "start a signer's host, or check its clock and this one's",
        ));
    } else if silent < -SIGNERS_SILENT_SECONDS {
        lines.push(line(
            "clock_skew",
            "warning",
            "this host's clock is more than an hour behind the signers'",
            "set the clock, and keep it with NTP",
        ));
    }
}

fn names(running: &Running, lines: &mut Vec<HealthLine>) {
    let directory = running.node.directory();
    let own = running.identity.certificate.name.as_str();
    if directory.display_name(&running.node.key()) != own {
        lines.push(line(
            "name_conflict",
            "warning",
            format!("another member is named {own} too"),
            "give each host a name of its own: leave, set [node] name, and join again",
        ));
    }
}
