//! `meshctl events`.

use meshd_proto::control::events_reply::What;

use super::*;

fn event(number: u64, code: &str, name: Option<&str>, message: &str) -> EventsReply {
    let event = Event {
        number,
        time: "2026-11-21T12:20:31Z".into(),
        severity: "warning".into(),
        code: code.into(),
        node: Some("abcd".into()),
        name: name.map(str::to_owned),
        actor: "user:0".into(),
        reason: Some("it was stolen".into()),
        message: message.into(),
        count: 1,
        details: [("members".to_owned(), "3".to_owned())].into(),
    };
    EventsReply { what: Some(What::Event(event)) }
}

fn with_events(events: Vec<EventsReply>) -> Daemon {
    Daemon::start(Script { status: running(), events, ..Script::default() })
}

fn two() -> Vec<EventsReply> {
    vec![
        event(1, "node_revoked", Some("db-2"), "the membership of db-2 was ended"),
        event(2, "stopping", None, "stopping"),
    ]
}

#[test]
fn events_have_exactly_the_documented_fields() {
    let daemon = with_events(two());
    let events = parsed(&daemon.meshctl(&["events", "-o", "json"]));
    let want = [
        "actor", "code", "count", "details", "message", "name", "node", "number", "reason",
        "severity", "time",
    ];
    assert_eq!(keys(&events[0]), want);
    assert_eq!(events[0]["actor"], "user:0");
    assert_eq!(events[0]["reason"], "it was stolen");
    assert_eq!(events[0]["details"], json!({"members": "3"}));
    assert_eq!(events[1]["name"], Value::Null);
    let yaml = stdout(&daemon.meshctl(&["events", "-o", "yaml"]));
    assert!(yaml.starts_with("- number: 1\n  time: 2026-11-21T12:20:31Z\n"), "{yaml}");
}

#[test]
fn people_get_a_line_each() {
    let daemon = with_events(two());
    let text = stdout(&daemon.meshctl(&["events"]));
    assert_eq!(
        text,
        "TIME (UTC)      SEVERITY  CODE          MESSAGE\n\
         11-21 12:20:31  warning   node_revoked  the membership of db-2 was ended\n\
         11-21 12:20:31  warning   stopping      stopping\n"
    );
    let wide = stdout(&daemon.meshctl(&["events", "-o", "wide"]));
    assert!(wide.contains("user:0") && wide.contains("it was stolen"), "{wide}");
    assert!(wide.contains("2026-11-21 12:20:31") && wide.contains("  db-2  "), "{wide}");
    let none = with_events(Vec::new()).meshctl(&["events", "--code", "x"]);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
    assert!(stderr(&none).contains("journalctl -u meshd"), "{}", stderr(&none));
}

#[test]
fn what_is_asked_for_reaches_the_daemon() {
    let daemon = with_events(Vec::new());
    daemon.meshctl(&["events"]);
    daemon.meshctl(&["events", "--since", "10m", "--code", "left", "--code", "joined"]);
    daemon.meshctl(&["events", "--follow", "--limit", "3"]);
    daemon.meshctl(&["events", "--follow"]);
    let request = |codes: &[&str], follow, since_seconds, limit| {
        let codes = codes.iter().map(|code| (*code).to_owned()).collect();
        format!("{:?}", EventsRequest { codes, follow, since_seconds, limit })
    };
    let want = [
        request(&[], false, 0, 100),
        request(&["left", "joined"], false, 600, 0),
        request(&[], true, 0, 3),
        request(&[], true, 0, 10),
    ];
    assert_eq!(daemon.asked(), want);
    assert_eq!(daemon.meshctl(&["events", "--limit", "0"]).status.code(), Some(2));
    assert_eq!(daemon.meshctl(&["events", "--since", "soon"]).status.code(), Some(2));
}

#[test]
fn following_prints_an_object_per_line_and_ends_with_the_daemon() {
    let mut events = two();
    events.insert(1, EventsReply { what: Some(What::Missed(7)) });
    let daemon = with_events(events);
    let output = daemon.meshctl(&["events", "--follow", "-o", "json"]);
    let text = stdout(&output);
    let codes: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["code"].clone())
        .collect();
    assert_eq!(codes, ["node_revoked", "stopping"]);
    assert!(stderr(&output).contains("7 events were missed"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(3));
    let text = stdout(&daemon.meshctl(&["events", "-f"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let place = lines[0].find("MESSAGE").unwrap();
    assert!(lines.iter().skip(1).all(|line| line[place..].starts_with(['t', 's'])), "{text}");
}

#[test]
fn events_of_a_hostile_daemon_steer_no_terminal() {
    let evil = event(1, "a\u{1b}[2Jb", Some("\u{202e}x"), "c\nd\u{9b}1m");
    let daemon = with_events(vec![evil]);
    for format in ["table", "wide", "json", "yaml"] {
        for follow in [&["events", "-o", format][..], &["events", "-o", format, "--follow"]] {
            let text = stdout(&daemon.meshctl(follow));
            let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(steers), "{format}: {text:?}");
        }
    }
}

#[test]
fn a_revocation_takes_a_persons_reason_along() {
    let daemon = with_events(Vec::new());
    daemon.meshctl(&["node", "revoke", "bad", "--yes", "--reason", "it was stolen"]);
    let asked = daemon.asked();
    assert!(asked[0].contains("reason: \"it was stolen\""), "{asked:?}");
    assert_eq!(daemon.callers(), [format!("user:{}", nix::unistd::geteuid())]);
}
