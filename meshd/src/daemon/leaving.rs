//! Leaving for good: the others are told, the kernel and the state directory are emptied.

use std::time::Duration;

use meshd_core::plan::{Change, Desired};
use meshd_proto::control::LeaveReply;
use tokio::time::timeout;

use super::{Daemon, planning::scope};
use crate::control::ControlError;

/// The frames that carry the leave get this long to be acknowledged.
const TELL: Duration = Duration::from_secs(3);
/// Longer than the kernel takes for thousands of peers.
const TEAR_DOWN: Duration = Duration::from_secs(30);

impl Daemon {
    /// Ends this host's membership. What cannot be done is an error that says what remains.
    pub(super) async fn leave(&mut self) -> Result<LeaveReply, ControlError> {
        let Some(running) = &mut self.running else {
            return Err(self.stop_joining());
        };
        let certificate = running.identity.certificate.clone();
        // While the others still take our node addresses.
        let encrypt = self.stop_carrying().await;
        if let Some(running) = &mut self.running {
            running.node.leave(super::clock::now());
        }
        self.pump();
        let to = self.running.as_mut().and_then(|r| r.left.take()).unwrap_or_default();
        let told = self.transport.flush(&to, TELL).await;

        let scope = scope(&self.config, &Desired::default());
        let report = timeout(TEAR_DOWN, self.reconciler.tear_down(scope)).await;
        self.config.network.encrypt = encrypt;
        self.transport.stop_member();
        let emptied = self.empty_store();
        self.resolve_due = None;
        // What was on trial here is nobody's concern any more.
        let trial = self.forget_trial();
        let mut noted = self.note_left(certificate.key);
        let forgotten = self.state.forget_membership();
        if noted.is_err() {
            // What is gone now has made room.
            noted = self.note_left(certificate.key);
        }
        let token = self.note_left_token();
        if let Ok(Some(aside)) = &forgotten {
            tracing::warn!(path = %aside.display(), "the mesh's CA was set aside, not deleted");
        }
        let (removed, failed) = match report {
            Ok(Ok(report)) => (
                summary(&report.applied),
                report.errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ),
            Ok(Err(_)) => (Vec::new(), vec!["the data plane's thread is gone".to_owned()]),
            Err(_) => (Vec::new(), vec!["the kernel did not answer in time".to_owned()]),
        };
        if !failed.is_empty() {
            let on_disk = [forgotten.err().map(|error| error.to_string()), emptied.err()];
            let all: Vec<String> =
                failed.into_iter().chain(on_disk.into_iter().flatten()).collect();
            return Err(ControlError::new(
                "dataplane",
                "left, but not all was removed from the kernel",
                all.join(", "),
                "stop meshd and run `meshd cleanup`",
            ));
        }
        let remains = |why: String| {
            let fix = "mend what is said, stop meshd, and remove pki/, keys/ and db/ of the state directory; on a \
                       signer keep the mesh's CA first, which lies in pki/ or former-ca-N/";
            ControlError::new("state_dir", "left, but not all is gone from the disk", why, fix)
        };
        let aside = forgotten.map_err(|error| remains(error.to_string()))?;
        emptied.map_err(remains)?;
        trial.map_err(|error| remains(error.to_string()))?;
        noted?;
        token.map_err(|error| remains(error.to_string()))?;
        Ok(LeaveReply {
            told: u32::try_from(told).unwrap_or(u32::MAX),
            authority: aside.map(|path| path.display().to_string()),
            mesh: certificate.mesh.to_string(),
            node: certificate.name.to_string(),
            removed,
        })
    }
}

impl Daemon {
    /// Of a host that is no member yet: what it may be trying ends.
    fn stop_joining(&mut self) -> ControlError {
        if !self.is_joining_unattended() {
            return super::requests::not_a_member("leave");
        }
        self.stop_unattended();
        self.join_error = None;
        if let Err(error) = self.note_left_token() {
            return ControlError::new(
                "state_dir",
                "this host is no member; it does not try to join any more until meshd is restarted",
                error.to_string(),
                "remove the token file",
            );
        }
        ControlError::new(
            "not_a_member",
            "nothing to leave",
            "this host is no member of a mesh; it does not try to join with its token file any more",
            "put another token there, or run `meshctl join TOKEN`",
        )
    }

    /// Records of other hosts do not stay: a store that can write no more is removed as files.
    fn empty_store(&mut self) -> Result<(), String> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let Err(why) = running.store.clear() else { return Ok(()) };
        tracing::error!(%why, "the record store was not emptied");
        running.store.destroy(&self.state.store_path())
    }
}

/// What was removed, a line per kind of thing.
fn summary(applied: &[Change]) -> Vec<String> {
    let mut lines: Vec<String> = applied
        .iter()
        .filter_map(|change| match change {
            Change::DeleteDevice { name } => {
                Some(format!("interface {name} with its peers and addresses"))
            }
            Change::RemoveFirewall => Some("nftables table inet meshd".to_owned()),
            Change::RemoveArp => Some("nftables table arp meshd".to_owned()),
            Change::RestoreSysctl { path } => Some(format!("sysctl {path}, which is as before")),
            _ => None,
        })
        .collect();
    for (count, one, many) in [
        (count(applied, |c| matches!(c, Change::RemoveRoute(_))), "route", "routes"),
        (count(applied, |c| matches!(c, Change::RemoveRule(_))), "rule", "rules"),
    ] {
        match count {
            0 => {}
            1 => lines.push(format!("1 {one}")),
            n => lines.push(format!("{n} {many}")),
        }
    }
    lines.push("this node's keys, certificate and records".to_owned());
    lines
}

fn count(applied: &[Change], of: fn(&Change) -> bool) -> usize {
    applied.iter().filter(|change| of(change)).count()
}
