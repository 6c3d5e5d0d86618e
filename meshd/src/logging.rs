//! Log lines for people and for the journal.
//!
//! Lines go to stderr. When the journal reads that, what happened (the events of `meshctl events`) goes to the
//! journal itself, so that each field is one of its fields: `journalctl -u meshd MESHD_CODE=node_revoked`.

use std::{
    env, fmt,
    io::{self, Write},
    os::fd::AsFd,
};

use meshd_core::event::steers;
use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Compact, Format, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// What the lines of events are marked with.
pub(crate) const EVENTS: &str = "meshd::events";
/// Of the fields of events in the journal.
const PREFIX: &str = "MESHD";

/// Starts logging: with the journal's `<priority>` prefixes and without times when the journal reads stderr, else
/// with times. `MESHD_LOG` sets the filter: a level, or `TARGET=LEVEL`, or several with commas between.
pub fn start() {
    let wanted = env::var("MESHD_LOG").ok().map(|text| text.parse::<Targets>()).transpose();
    let refused = wanted.as_ref().err().map(ToString::to_string);
    write_lines(wanted.ok().flatten().unwrap_or_else(|| {
        let quiet = ["quinn", "sled", "tonic", "h2"].map(|target| (target, LevelFilter::WARN));
        Targets::new().with_default(LevelFilter::INFO).with_targets(quiet)
    }));
    if let Some(why) = refused {
        tracing::warn!("MESHD_LOG is ignored; {why}; write it as `info` or `info,meshd=debug`");
    }
}

fn write_lines(filter: Targets) {
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Plain(io::stderr()));
    let all = tracing_subscriber::registry().with(filter);
    if !is_the_journal(&io::stderr(), env::var("JOURNAL_STREAM").ok().as_deref()) {
        all.with(lines.compact().with_target(false).with_ansi(false)).init();
        return;
    }
    let lines = lines.event_format(Journal(
        tracing_subscriber::fmt::format()
            .without_time()
            .compact()
            .with_ansi(false)
            .with_target(false)
            .with_level(false),
    ));
    // A container has the journal's stream without its socket, perhaps.
    let journal = tracing_journald::layer().ok().map(|journal| {
        journal
            .with_field_prefix(Some(PREFIX.to_owned()))
            .with_syslog_identifier("meshd".to_owned())
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            })
            .with_filter(filter_fn(|line| line.target() == EVENTS))
    });
    let structured = journal.is_some();
    let lines = lines.with_filter(filter_fn(move |line| !structured || line.target() != EVENTS));
    all.with(lines).with(journal).init();
}

/// Whether `stream` is what `JOURNAL_STREAM` (systemd.exec(5)) names: the variable alone is inherited by what
/// writes elsewhere.
fn is_the_journal(stream: &impl AsFd, variable: Option<&str>) -> bool {
    let named = variable.and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    named.is_some_and(|named| fstat(stream).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == named))
}

/// Escapes what a terminal would obey: some words come from other hosts.
struct Plain<W>(W);

impl<W: Write> Write for Plain<W> {
    /// Takes whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        let mut plain = String::with_capacity(text.len() + 1);
        for c in text.chars() {
            if steers(c) { plain.extend(c.escape_default()) } else { plain.push(c) }
        }
        plain.push_str(end);
        self.0.write_all(plain.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// sd-daemon(3): a line's priority in angle brackets before it.
struct Journal(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_the_stream_itself() {
        let (ours, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let stat = fstat(&ours).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_the_journal(&ours, Some(&named)));
        // Inherited by what writes into a file.
        assert!(!is_the_journal(&tempfile::tempfile().unwrap(), Some(&named)));
        for other in [None, Some(""), Some("1:2"), Some("8:x"), Some("nonsense")] {
            assert!(!is_the_journal(&ours, other), "{other:?}");
        }
    }

    #[test]
    fn what_others_wrote_stays_on_its_line() {
        let mut written = Vec::new();
        let line = "closed: \u{1b}[2J\nroot logged in\u{202e} ä\n";
        Plain(&mut written).write_all(line.as_bytes()).unwrap();
        let text = String::from_utf8(written).unwrap();
        assert_eq!(text, "closed: \\u{1b}[2J\\nroot logged in\\u{202e} ä\n");
    }
}
