//! What systemd is told: ready, status, watchdog.

use sd_notify::NotifyState;

/// Sends to `NOTIFY_SOCKET`; does nothing without one.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    ready: bool,
    status: String,
}

impl Notifier {
    fn send(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "systemd was not told");
        }
    }

    /// The daemon serves, and the kernel was brought in line as far as it goes. Once.
    pub(super) fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            Self::send(&[NotifyState::Ready]);
        }
    }

    /// The loop turns: feeds the watchdog, and shows `status` when it changed.
    pub(super) fn alive(&mut self, status: &str) {
        if self.status == status {
            Self::send(&[NotifyState::Watchdog]);
        } else {
            status.clone_into(&mut self.status);
            Self::send(&[NotifyState::Watchdog, NotifyState::Status(status)]);
        }
    }

    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => Self::send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "systemd was not told"),
        }
    }

    pub(super) fn reloaded(&self) {
        Self::send(&[NotifyState::Ready]);
    }

    pub(super) fn stopping(&self) {
        Self::send(&[NotifyState::Stopping]);
    }
}
