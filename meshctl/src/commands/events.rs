//! `events`.

use std::{
    io::{self, Write as _},
    path::Path,
};

use meshd_proto::control::{EventsReply, EventsRequest, events_reply::What};

use crate::{
    cli::Events,
    connection::{LOOK, connect},
    failure::Failure,
    output::{Output, remark},
    table::{Cell, Paint, Table, tone_of, wrapped},
    text::moment,
    views::EventView,
};

/// Shown unless asked otherwise: a screen or two, and before what is followed only how it came to that.
const RECENT: u32 = 100;
const BEFORE: u32 = 10;

pub(crate) async fn run(socket: &Path, output: Output, arguments: Events) -> Result<(), Failure> {
    let usual = if arguments.follow { BEFORE } else { RECENT };
    let request = EventsRequest {
        codes: arguments.codes,
        follow: arguments.follow,
        since_seconds: arguments.since.map_or(0, |since| since.as_secs()),
        limit: match (arguments.limit, arguments.since) {
            (Some(limit), _) => limit,
            // All of that time.
            (None, Some(_)) => 0,
            (None, None) => usual,
        },
    };
    if request.follow {
        return follow(socket, output, request).await;
    }
    let filtered = !request.codes.is_empty() || request.since_seconds > 0;
    let mut client = connect(socket, Some(LOOK)).await?;
    let mut replies = client.events(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(reply) = replies.message().await? {
        events.extend(event(reply));
    }
    if events.is_empty() && !output.is_for_programs() {
        remark(if filtered {
            "nothing of that kind since the daemon's start; the journal goes further back: \
             journalctl -u meshd"
        } else {
            "nothing has happened since the daemon's start"
        });
        return Ok(());
    }
    output.print(&events, |paint, to| {
        table(&events, output.is_wide()).print_within(output.width(), paint, to)
    })
}

async fn follow(socket: &Path, output: Output, request: EventsRequest) -> Result<(), Failure> {
    let mut client = connect(socket, None).await?;
    let mut replies = client.events(request).await?.into_inner();
    let mut first = true;
    while let Some(reply) = replies.message().await? {
        let Some(event) = event(reply) else { continue };
        let header = std::mem::take(&mut first);
        output.print_next(&event, |paint, to| line(&event, header, output, paint, to))?;
    }
    Err(Failure::unreachable(
        "events are no longer followed",
        "the daemon stopped",
        "start it with `systemctl start meshd`",
    ))
}

/// The event of a reply; what was missed is said beside the result.
fn event(reply: EventsReply) -> Option<EventView> {
    match reply.what? {
        What::Event(event) => Some(EventView::from(event)),
        What::Missed(number) => {
            remark(&format!("… {number} events were missed: they came faster than they were read"));
            None
        }
    }
}

fn table(events: &[EventView], wide: bool) -> Table {
    let mut header = vec!["TIME (UTC)", "SEVERITY", "CODE"];
    if wide {
        header.extend(["NAME", "ACTOR", "REASON"]);
    }
    header.push("MESSAGE");
    let mut table = Table::new(header);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for event in events {
        let mut row = vec![
            Cell::text(time(&event.time, wide)),
            Cell::state(&event.severity),
            Cell::text(&*event.code),
        ];
        if wide {
            row.extend([
                Cell::text(or_dash(&event.name)),
                Cell::text(&*event.actor),
                Cell::text(or_dash(&event.reason)),
            ]);
        }
        row.push(Cell::text(&*event.message));
        table.row(row);
    }
    table
}

/// The year is the reader's.
fn time(time: &str, wide: bool) -> String {
    let whole = moment(time, true);
    if wide { whole } else { whole.get(5..).unwrap_or(&whole).to_owned() }
}

/// A row whose columns do not wait for what comes after it.
fn line(
    event: &EventView,
    header: bool,
    output: Output,
    paint: Paint,
    to: &mut Vec<u8>,
) -> io::Result<()> {
    let (wide, or_dash) =
        (output.is_wide(), |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned()));
    let begin = |time: &str, severity: String, code: &str, name: &str| {
        if wide {
            format!("{time:19}  {severity}  {code:19}  {name:12}  ")
        } else {
            format!("{time:14}  {severity}  {code:19}  ")
        }
    };
    if header {
        writeln!(
            to,
            "{}MESSAGE",
            begin("TIME (UTC)", format!("{:8}", "SEVERITY"), "CODE", "NAME")
        )?;
    }
    let severity =
        |paint: Paint| paint.apply(tone_of(&event.severity), &format!("{:8}", event.severity));
    let (time, name) = (time(&event.time, wide), or_dash(&event.name));
    let plain = begin(&time, severity(Paint(false)), &event.code, &name);
    let message = wrapped(&event.message, plain.chars().count(), output.width());
    writeln!(to, "{}{message}", begin(&time, severity(paint), &event.code, &name))
}
