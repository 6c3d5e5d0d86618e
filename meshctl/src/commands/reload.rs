//! `reload` and `confirm`: the daemon's configuration, for good or on trial.

use std::{
    io::{self, Write},
    path::Path,
};

use meshd_proto::control::{ConfirmRequest, ReloadRequest};

use crate::{
    cli::Reload,
    connection::{CHANGE, connect},
    failure::Failure,
    output::Output,
    text::age,
    views::{ChangeView, ConfirmView, ReloadView},
};

pub(crate) async fn reload(
    socket: &Path,
    output: Output,
    arguments: Reload,
) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let seconds = arguments.confirm.unwrap_or_default().as_secs();
    let request = ReloadRequest {
        trial_seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
        restart: arguments.restart,
    };
    let view = ReloadView::from(client.reload(request).await?.into_inner());
    output.print(&view, |_, to| print(&view, to))
}

fn print(view: &ReloadView, to: &mut impl Write) -> io::Result<()> {
    if view.applied.is_empty() && view.needs_restart.is_empty() {
        writeln!(to, "nothing differs from what runs")?;
    }
    print_changes("applied:", &view.applied, to)?;
    let waits = match (view.restarting, view.trial_seconds_left) {
        (true, _) => "applied by beginning anew, now:",
        (false, Some(_)) => {
            "waits for a restart, and is not on trial before (`meshctl reload --confirm --restart`):"
        }
        (false, None) => "waits for a restart (`systemctl restart meshd`):",
    };
    print_changes(waits, &view.needs_restart, to)?;
    if let Some(seconds) = view.trial_seconds_left {
        let left = age(u64::from(seconds));
        writeln!(
            to,
            "on trial: `meshctl confirm` keeps it; otherwise what ran before comes back in {left}"
        )?;
    }
    Ok(())
}

pub(crate) async fn confirm(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let view = ConfirmView::from(client.confirm(ConfirmRequest {}).await?.into_inner());
    output.print(&view, |_, to| {
        writeln!(to, "confirmed: what runs stays")?;
        let waits = "was not tried, and waits for a restart (`systemctl restart meshd`):";
        print_changes(waits, &view.needs_restart, to)?;
        let differ =
            "but the files on disk differ from what was confirmed; a restart would take them:";
        print_changes(differ, &view.files_differ, to)?;
        if let Some(why) = &view.files_broken {
            writeln!(to, "but the files on disk cannot be read; a restart would fail: {why}")?;
        }
        Ok(())
    })
}

fn print_changes(title: &str, changes: &[ChangeView], to: &mut impl Write) -> io::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(to, "{title}")?;
    for ChangeView { key, old, new } in changes {
        writeln!(to, "  {key}: {old} -> {new}")?;
    }
    Ok(())
}
