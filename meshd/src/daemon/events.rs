//! What happened: kept in memory, written to the log or the journal, and handed to `meshctl events`.
//!
//! What is kept and how often the same is said, the core's log decides. Shared by the loop, which writes, and
//! the control server, which reads; nobody waits for anybody: a reader that is too slow is told how much it
//! missed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, future::ready, stream};
use meshd_core::event::{Actor, Event, Filter, Log, Logged, Problem, Severity};
use meshd_proto::control::{
    self as wire, EventsReply, EventsRequest, HealthLine, events_reply::What,
};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{clock, status::rfc3339};
use crate::{
    control::{ControlError, ReplyStream},
    logging::EVENTS,
};

/// Events that a reader may be behind before it misses some.
const BEHIND: usize = 512;
/// Details that have a field of their own in the journal; the others share one.
const FIELDS: [&str; 8] =
    ["token", "serial", "prefixes", "limits", "remote", "via", "pid", "login_uid"];

/// Where everything goes that happens. A handle: clones are the same log.
#[derive(Debug, Clone)]
pub(super) struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    readers: broadcast::Sender<Arc<Logged>>,
}

impl Default for EventLog {
    fn default() -> Self {
        let (readers, _) = broadcast::channel(BEHIND);
        Self(Arc::new(Shared { log: Mutex::default(), readers }))
    }
}

impl EventLog {
    /// Something happened.
    pub(super) fn emit(&self, event: Event) {
        let event = match event.actor {
            Actor::User { pid, login, .. } => {
                let event = pid.map_or(event.clone(), |pid| event.with("pid", pid));
                login.map_or(event.clone(), |uid| event.with("login_uid", uid))
            }
            _ => event,
        };
        let mut log = self.log();
        if let Some(logged) = log.push(event, clock::now()) {
            self.say(logged);
        }
    }

    /// Says what was only counted for a minute. To be called every second.
    pub(super) fn tick(&self) {
        let mut log = self.log();
        for logged in log.poll(clock::now()) {
            self.say(logged);
        }
    }

    /// How many there were of each code and severity.
    pub(super) fn counts(&self) -> Vec<(&'static str, Severity, u64)> {
        self.log().counts().collect()
    }

    /// What is held, and if asked what comes: nothing in between is lost.
    pub(super) fn read(&self, request: EventsRequest) -> ReplyStream<EventsReply> {
        let filter = Filter { codes: request.codes };
        let age = i64::try_from(request.since_seconds).unwrap_or(i64::MAX);
        let since = (age > 0).then(|| clock::unix().plus(-age));
        let most = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let (held, coming) = {
            let log = self.log();
            (log.recent(&filter, since, most), request.follow.then(|| self.0.readers.subscribe()))
        };
        let held = stream::iter(held.into_iter().map(|logged| What::Event(shown(&logged))));
        let coming = stream::iter(coming).flat_map(BroadcastStream::new).filter_map(move |next| {
            ready(match next {
                Ok(logged) => filter.wants(&logged.event).then(|| What::Event(shown(&logged))),
                Err(BroadcastStreamRecvError::Lagged(missed)) => Some(What::Missed(missed)),
            })
        });
        let reply = |what| Ok::<_, ControlError>(EventsReply { what: Some(what) });
        held.chain(coming).map(reply).boxed()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, logged: Arc<Logged>) {
        write(&logged);
        // An error means that nobody reads.
        let _ = self.0.readers.send(logged);
    }
}

/// To stderr, or to the journal with a field each (`MESHD_CODE` and so on).
fn write(logged: &Logged) {
    let event = &logged.event;
    let [token, serial, prefixes, limits, remote, via, pid, login_uid] =
        FIELDS.map(|field| event.detail(field));
    let others = event.details.iter().filter(|(field, _)| !FIELDS.contains(field));
    let others: Vec<String> = others.map(|(field, value)| format!("{field}={value}")).collect();
    let details = (!others.is_empty()).then(|| others.join("; "));
    let by = match event.actor {
        Actor::Daemon => String::new(),
        actor => format!(" (by {actor})"),
    };
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: EVENTS,
                code = event.code,
                severity = event.severity.as_str(),
                node = event.subject.map(tracing::field::display),
                name = event.name.as_deref(),
                actor = %event.actor,
                reason = event.reason.as_deref(),
                count = (logged.count > 1).then_some(logged.count),
                token, serial, prefixes, limits, remote, via, pid, login_uid, details,
                "{}{by}", event.text
            )
        };
    }
    match event.severity {
        Severity::Info => line!(info),
        Severity::Warning => line!(warn),
        Severity::Error => line!(error),
    }
}

fn shown(logged: &Logged) -> wire::Event {
    let event = &logged.event;
    let details = event.details.iter();
    wire::Event {
        number: logged.number,
        time: rfc3339(logged.time).unwrap_or_default(),
        severity: event.severity.as_str().to_owned(),
        code: event.code.to_owned(),
        node: event.subject.map(|key| key.to_string()),
        name: event.name.clone(),
        actor: event.actor.to_string(),
        reason: event.reason.as_deref().map(str::to_owned),
        message: event.text.clone(),
        count: logged.count,
        details: details.map(|(field, value)| ((*field).to_owned(), value.clone())).collect(),
    }
}

/// A connection that was not let in.
pub(super) fn refused_connection(code: &'static str, remote: SocketAddr, why: &str) -> Event {
    // The net is full of what tries any port.
    let told = match code {
        "handshake_failed" | "handshake_timeout" => Event::info,
        _ => Event::warning,
    };
    let text = format!("a connection was refused: {}", if why.is_empty() { code } else { why });
    let event = told("connection_refused", text).because(code).with("remote", remote);
    event.by(Actor::Address(remote.ip()))
}

/// A health line as the core follows it.
pub(super) fn problem(line: &HealthLine) -> Problem {
    Problem {
        code: line.code.clone(),
        severity: match line.severity.as_str() {
            "error" => Severity::Error,
            "warning" => Severity::Warning,
            _ => Severity::Info,
        },
        message: line.message.clone(),
        fix: line.fix.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn codes(stream: &mut ReplyStream<EventsReply>, count: usize) -> Vec<String> {
        let some: Vec<_> = stream.take(count).collect().await;
        some.into_iter()
            .map(|reply| match reply.unwrap().what.unwrap() {
                What::Event(event) => event.code,
                What::Missed(number) => format!("missed {number}"),
            })
            .collect()
    }

    fn request(follow: bool) -> EventsRequest {
        EventsRequest { follow, ..EventsRequest::default() }
    }

    #[tokio::test]
    async fn a_reader_gets_what_was_and_what_comes_without_a_gap() {
        let log = EventLog::default();
        log.emit(Event::info("mesh_created", "it was"));
        let mut ended = log.read(request(false));
        let mut followed = log.read(request(true));
        log.emit(Event::info("node_admitted", "it comes"));
        assert_eq!(codes(&mut ended, 9).await, ["mesh_created"]);
        assert_eq!(codes(&mut followed, 2).await, ["mesh_created", "node_admitted"]);
        let counts = ["mesh_created", "node_admitted"].map(|code| (code, Severity::Info, 1));
        assert_eq!(log.counts(), counts);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_costs_no_memory() {
        let log = EventLog::default();
        let mut slow = log.read(request(true));
        for number in 0..BEHIND + 100 {
            log.emit(Event::info("member_alive", number.to_string()));
        }
        assert_eq!(codes(&mut slow, 2).await, ["missed 100", "member_alive"]);
    }

    #[tokio::test]
    async fn a_reader_gets_only_what_it_asked_for() {
        let log = EventLog::default();
        let request = EventsRequest {
            codes: vec!["token_expired".into(), "left".into()],
            follow: true,
            ..EventsRequest::default()
        };
        let mut wanted = log.read(request);
        log.emit(Event::info("member_alive", "no"));
        log.emit(Event::warning("enrolment_refused", "yes").because("token_expired"));
        log.emit(Event::info("left", "yes"));
        assert_eq!(codes(&mut wanted, 2).await, ["enrolment_refused", "left"]);
    }

    #[test]
    fn who_asked_is_in_the_details() {
        let log = EventLog::default();
        let by = Actor::User { uid: 0, pid: Some(7), login: Some(1000) };
        log.emit(Event::info("token_created", "made").by(by));
        let logged = log.log().recent(&Filter::default(), None, 1);
        let shown = shown(&logged[0]);
        assert_eq!((shown.actor.as_str(), shown.details["login_uid"].as_str()), ("user:0", "1000"));
        assert_eq!(shown.details["pid"], "7");
    }
}
