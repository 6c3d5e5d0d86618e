//! Log lines for people and for the journal.

use std::{env, fmt};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Compact, Format, Writer},
    },
    registry::LookupSpan,
};

/// Starts logging to stderr: with the journal's `<priority>` prefixes and without times when the
/// journal reads it (`JOURNAL_STREAM`), else with times. `MESHD_LOG` sets the filter.
pub fn start() {
    let filter = EnvFilter::try_from_env("MESHD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,sled=warn,tonic=warn,h2=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if env::var_os("JOURNAL_STREAM").is_some() {
        builder
            .event_format(Journal(
                tracing_subscriber::fmt::format()
                    .without_time()
                    .compact()
                    .with_ansi(false)
                    .with_target(false)
                    .with_level(false),
            ))
            .init();
    } else {
        builder.compact().with_target(false).with_ansi(false).init();
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
