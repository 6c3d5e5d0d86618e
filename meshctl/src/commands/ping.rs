//! `ping`: probes through the tunnel.

use std::{
    io::{self, Write},
    path::Path,
};

use meshd_proto::control::{PingReply, PingRequest};

use crate::{
    cli::Ping,
    connection::connect,
    failure::Failure,
    output::{Output, remark, write},
    text::{count, known, round_trip, safe},
    views::{PingView, ProbeView},
};

pub(crate) async fn run(socket: &Path, output: Output, arguments: Ping) -> Result<(), Failure> {
    let mut client = connect(socket, None).await?;
    let request = PingRequest {
        name: arguments.name.clone(),
        count: arguments.count,
        interval_ms: arguments.interval,
        timeout_ms: arguments.timeout,
        size: arguments.size.unwrap_or(0),
    };
    let mut replies = client.ping(request).await?.into_inner();
    let mut view = PingView { name: safe(&arguments.name), ..PingView::default() };
    let mut failed = None;
    loop {
        let reply = tokio::select! {
            reply = replies.message() => reply,
            // The summary of what was seen so far is what Ctrl-C is pressed for.
            _ = tokio::signal::ctrl_c() => break,
        };
        match reply {
            Ok(Some(reply)) => {
                if !output.is_for_programs() {
                    write(line(&view.name, &reply).as_bytes())?;
                }
                add(&mut view, &reply);
            }
            Ok(None) => break,
            Err(status) => {
                failed = Some(Failure::from(status));
                break;
            }
        }
    }
    summarise(&mut view);
    // A call that failed before any probe has nothing to sum up.
    if failed.is_none() || view.sent > 0 {
        output.print(&view, |_, to| print_summary(&view, to))?;
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    if view.received == 0 {
        remark(&format!(
            "error: no answer from {0}; {1} got none: the tunnel does not carry them, or meshd is not \
             running there; see `meshctl peers show {0}`",
            view.name,
            count(u64::from(view.sent), "probe", "probes")
        ));
        return Err(Failure::silent());
    }
    Ok(())
}

fn line(name: &str, reply: &PingReply) -> String {
    match reply.rtt_ms {
        Some(rtt) => {
            let address = safe(&reply.address);
            let via = reply.endpoint.as_deref().map(safe);
            let via = via.map(|endpoint| format!(" via {endpoint}")).unwrap_or_default();
            format!(
                "{name} ({address}): seq {} time {}, {}{via}\n",
                reply.sequence,
                round_trip(rtt),
                safe(&reply.path)
            )
        }
        None => format!("{name}: seq {} no answer\n", reply.sequence),
    }
}

fn add(view: &mut PingView, reply: &PingReply) {
    view.sent += 1;
    view.replies.push(ProbeView { sequence: reply.sequence, rtt_ms: reply.rtt_ms });
    view.address = known(&reply.address).or(view.address.take());
    view.path = known(&reply.path).or(view.path.take());
    view.endpoint = reply.endpoint.as_deref().and_then(known).or(view.endpoint.take());
    view.mtu = reply.mtu.or(view.mtu);
}

fn summarise(view: &mut PingView) {
    let times: Vec<f64> = view.replies.iter().filter_map(|reply| reply.rtt_ms).collect();
    let received = u32::try_from(times.len()).unwrap_or(u32::MAX);
    view.received = received;
    if received > 0 {
        view.rtt_min_ms = times.iter().copied().reduce(f64::min);
        view.rtt_max_ms = times.iter().copied().reduce(f64::max);
        view.rtt_avg_ms = Some(times.iter().sum::<f64>() / f64::from(received));
    }
}

fn print_summary(view: &PingView, to: &mut impl Write) -> io::Result<()> {
    let lost = view.sent.saturating_sub(view.received);
    let percent = if view.sent == 0 { 0.0 } else { f64::from(lost) * 100.0 / f64::from(view.sent) };
    writeln!(to, "{} sent, {} received, {percent:.0} % lost", view.sent, view.received)?;
    if let (Some(min), Some(avg), Some(max)) = (view.rtt_min_ms, view.rtt_avg_ms, view.rtt_max_ms) {
        write!(to, "round trip min/avg/max {min:.2}/{avg:.2}/{max:.2} ms")?;
        if let Some(mtu) = view.mtu {
            write!(to, ", mtu {mtu}")?;
        }
        writeln!(to)?;
    }
    Ok(())
}
