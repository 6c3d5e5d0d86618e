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
    table::{Cell, Paint, Table, tone_of},
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
    output.print(&events, |paint, to| table(&events, output.is_wide()).print(paint, to))
}

async fn follow(socket: &Path, output: Output, request: EventsRequest) -> Result<(), Failure> {
    let mut client = connect(socket, None).await?;
    let mut replies = client.events(request).await?.into_inner();
    let mut first = true;
    while let Some(reply) = replies.message().await? {
        let Some(event) = event(reply) else { continue };
        let header = std::mem::take(&mut first);
        output.print_next(&event, |paint, to| line(&event, header, paint, to))?;
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

/// For people: the date is as good without its letters.
fn moment(time: &str) -> String {
    time.trim_end_matches('Z').replacen('T', " ", 1)
}

fn table(events: &[EventView], wide: bool) -> Table {
    let mut header = vec!["TIME (UTC)", "SEVERITY", "CODE", "NAME"];
    if wide {
        header.extend(["ACTOR", "REASON"]);
    }
    header.push("MESSAGE");
    let mut table = Table::new(header);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for event in events {
        let mut row = vec![
            Cell::text(moment(&event.time)),
            Cell::state(&event.severity),
            Cell::text(&*event.code),
            Cell::text(or_dash(&event.name)),
        ];
        if wide {
            row.extend([Cell::text(&*event.actor), Cell::text(or_dash(&event.reason))]);
        }
        row.push(Cell::text(&*event.message));
        table.row(row);
    }
    table
}

/// A row whose columns do not wait for what comes after it.
fn line(event: &EventView, header: bool, paint: Paint, to: &mut Vec<u8>) -> io::Result<()> {
    if header {
        writeln!(
            to,
            "{:19}  {:8}  {:19}  {:12}  MESSAGE",
            "TIME (UTC)", "SEVERITY", "CODE", "NAME"
        )?;
    }
    let severity = paint.apply(tone_of(&event.severity), &format!("{:8}", event.severity));
    let (time, name) = (moment(&event.time), event.name.as_deref().unwrap_or("-"));
    writeln!(to, "{time:19}  {severity}  {:19}  {name:12}  {}", event.code, event.message)
}
