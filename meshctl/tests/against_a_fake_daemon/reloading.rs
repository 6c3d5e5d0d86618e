//! `reload` and `confirm`.

use super::*;

fn change(key: &str) -> ReloadChange {
    ReloadChange { key: key.into(), old: "1".into(), new: "\"a\u{1b}\"".into() }
}

fn with(reload: ReloadReply) -> Daemon {
    Daemon::start(Script { reload, ..Script::default() })
}

#[test]
fn a_reload_says_what_it_did_and_what_waits() {
    let daemon = with(ReloadReply {
        applied: vec![change("node.zone")],
        needs_restart: vec![change("wireguard.port")],
        ..ReloadReply::default()
    });
    let text = stdout(&daemon.meshctl(&["reload"]));
    assert_eq!(
        text,
        "applied:\n  node.zone: 1 -> \"a\\u{1b}\"\nwaits for a restart (`systemctl restart meshd`):\n  \
         wireguard.port: 1 -> \"a\\u{1b}\"\n"
    );
    assert_eq!(daemon.asked(), ["ReloadRequest { trial_seconds: 0, restart: false }"]);
    let json = parsed(&daemon.meshctl(&["reload", "-o", "json"]));
    assert_eq!(keys(&json), ["applied", "needs_restart", "restarting", "trial_seconds_left"]);
    assert_eq!(keys(&json["applied"][0]), ["key", "new", "old"]);
    assert_eq!(json["trial_seconds_left"], Value::Null);
    assert_eq!(
        stdout(&with(ReloadReply::default()).meshctl(&["reload"])),
        "nothing differs from what runs\n"
    );
}

#[test]
fn a_trial_says_what_to_type_and_until_when() {
    let daemon = with(ReloadReply {
        needs_restart: vec![change("wireguard.port")],
        trial_seconds_left: Some(150),
        restarting: true,
        ..ReloadReply::default()
    });
    for (arguments, seconds) in [
        (&["reload", "--confirm", "--restart"][..], 120),
        (&["reload", "--confirm", "150s", "--restart"], 150),
        (&["reload", "--restart", "--confirm=1h"], 3_600),
    ] {
        let text = stdout(&daemon.meshctl(arguments));
        assert!(
            text.contains("`meshctl confirm` keeps it") && text.contains("in 2m 30s"),
            "{text}"
        );
        assert!(text.contains("applied by beginning anew, now:"), "{text}");
        let asked = daemon.asked().pop().unwrap();
        assert_eq!(asked, format!("ReloadRequest {{ trial_seconds: {seconds}, restart: true }}"));
    }
    for wrong in [
        &["reload", "--restart"][..],
        &["reload", "--confirm", "9s"],
        &["reload", "--confirm", "61m"],
        &["reload", "--confirm", "soon"],
        &["confirm", "now"],
    ] {
        assert_eq!(daemon.meshctl(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(daemon.asked().len(), 3);
}

#[test]
fn a_confirmation_says_what_was_not_tried() {
    let daemon = with(ReloadReply::default());
    assert_eq!(stdout(&daemon.meshctl(&["confirm"])), "confirmed: what runs stays\n");
    let daemon = with(ReloadReply {
        needs_restart: vec![change("wireguard.port")],
        ..ReloadReply::default()
    });
    let text = stdout(&daemon.meshctl(&["confirm"]));
    assert!(text.contains("was not tried") && text.contains("  wireguard.port: 1 -> "), "{text}");
    let json = parsed(&daemon.meshctl(&["confirm", "-o", "json"]));
    assert_eq!(keys(&json), ["files_broken", "files_differ", "needs_restart"]);
    assert!(json["files_broken"].is_null());
    let error =
        ControlError::new("trial_over", "nothing was confirmed", "the trial is over", "fix");
    let daemon = Daemon::start(Script { error: Some(error), ..Script::default() });
    let output = daemon.meshctl(&["confirm"]);
    assert_eq!(stderr(&output), "error: nothing was confirmed; the trial is over; fix\n");
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
}

#[test]
fn a_confirmation_says_that_the_files_are_others_or_broken() {
    let daemon = with(ReloadReply { applied: vec![change("node.zone")], ..ReloadReply::default() });
    let text = stdout(&daemon.meshctl(&["confirm"]));
    assert!(text.contains("a restart would take them:\n  node.zone: 1 -> "), "{text}");
    assert!(!text.contains("would fail"), "{text}");
    let daemon = with(ReloadReply { restarting: true, ..ReloadReply::default() });
    let text = stdout(&daemon.meshctl(&["confirm"]));
    assert!(text.ends_with("a restart would fail: meshd.toml: line 1\n"), "{text}");
    let json = parsed(&daemon.meshctl(&["confirm", "-o", "json"]));
    assert_eq!(json["files_broken"], "meshd.toml: line 1");
}
