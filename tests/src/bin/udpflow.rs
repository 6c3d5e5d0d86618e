//! `udpflow`: one end of a flow of numbered UDP packets. Start one at each of two addresses; each sends at a fixed rate and,
//! at the end, prints what arrived from the other as one JSON object (fields: `meshd_tests::harness::Direction`).
//!
//! Numbering starts when the other end has been heard, so that neither counts what was sent before there was anybody to
//! receive it. One thread sends, one receives; the receiver stops when the other's last packet and the linger are over.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use meshd_tests::harness::{Direction, Gap};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

/// Number of a packet that only says "I am here".
const HELLO: u32 = u32::MAX;

#[derive(Parser)]
#[command(about = "One end of a flow of numbered UDP packets")]
struct Arguments {
    /// Address to send from and to listen on.
    #[arg(long)]
    bind: IpAddr,
    /// Address of the other end.
    #[arg(long)]
    to: IpAddr,
    /// UDP port of both ends.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Packets a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds to send.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Seconds to listen after the last packet was sent.
    #[arg(long, default_value_t = 3)]
    linger: u32,
    /// Payload bytes.
    #[arg(long, default_value_t = 64)]
    size: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let socket = UdpSocket::bind(SocketAddr::new(arguments.bind, arguments.port))
        .with_context(|| format!("cannot listen on {} port {}", arguments.bind, arguments.port))?;
    // A receiver that is not scheduled for a moment must not count as loss.
    setsockopt(&socket, RcvBufForce, &(8 << 20)).context("receive buffer (needs CAP_NET_ADMIN)")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let other = SocketAddr::new(arguments.to, arguments.port);
    let count = arguments.rate * arguments.seconds;
    meet(&socket, other)?;

    let done = AtomicBool::new(false);
    let (sent, arrivals) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, count, &done));
        let sent = send(&socket, other, &arguments, count);
        std::thread::sleep(Duration::from_secs(arguments.linger.into()));
        done.store(true, Ordering::Relaxed);
        (sent, receiver.join())
    });
    let Ok(arrivals) = arrivals else { bail!("the receiver failed") };
    println!("{}", serde_json::to_string(&arrivals.report(&arguments, count, sent))?);
    Ok(())
}

/// Says hello until anything comes from the other end.
fn meet(socket: &UdpSocket, other: SocketAddr) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        let _ = socket.send_to(&HELLO.to_be_bytes(), other);
        if let Ok((length, _)) = socket.recv_from(&mut buffer)
            && length >= 4
        {
            // The other end may have come up after our earlier ones.
            let _ = socket.send_to(&HELLO.to_be_bytes(), other);
            return Ok(());
        }
    }
    bail!("nothing heard from {other} for 30 s")
}

fn send(
    socket: &UdpSocket,
    other: SocketAddr,
    arguments: &Arguments,
    count: u32,
) -> (u32, BTreeMap<String, u32>) {
    let mut packet = vec![0_u8; arguments.size.max(4)];
    let mut errors = BTreeMap::new();
    let start = Instant::now();
    let step = Duration::from_secs(1) / arguments.rate.max(1);
    for number in 0..count {
        packet[..4].copy_from_slice(&number.to_be_bytes());
        if let Err(error) = socket.send_to(&packet, other) {
            *errors.entry(error.to_string()).or_default() += 1;
        }
        std::thread::sleep((start + step * (number + 1)).saturating_duration_since(Instant::now()));
    }
    (count, errors)
}

struct Arrivals {
    seen: Vec<bool>,
    duplicates: u32,
    reordered: u32,
    longest_gap: Duration,
}

fn receive(socket: &UdpSocket, count: u32, done: &AtomicBool) -> Arrivals {
    let mut arrivals = Arrivals {
        seen: vec![false; count as usize],
        duplicates: 0,
        reordered: 0,
        longest_gap: Duration::ZERO,
    };
    let mut buffer = [0; 2048];
    let (mut highest, mut last) = (None, Instant::now());
    while !done.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
        let Some(number) = buffer[..length].first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
        else {
            continue;
        };
        let Some(seen) = arrivals.seen.get_mut(number as usize) else { continue };
        if std::mem::replace(seen, true) {
            arrivals.duplicates += 1;
            continue;
        }
        let now = Instant::now();
        if highest.is_some() {
            arrivals.longest_gap = arrivals.longest_gap.max(now - last);
        }
        last = now;
        if highest.is_some_and(|highest| number < highest) {
            arrivals.reordered += 1;
        }
        highest = highest.max(Some(number));
    }
    arrivals
}

impl Arrivals {
    fn report(
        &self,
        arguments: &Arguments,
        count: u32,
        (sent, send_errors): (u32, BTreeMap<String, u32>),
    ) -> Direction {
        let mut gaps = Vec::new();
        let mut number = 0_u32;
        for run in self.seen.chunk_by(|a, b| a == b) {
            let packets = u32::try_from(run.len()).unwrap_or(u32::MAX);
            if !run[0] && gaps.len() < 20 {
                gaps.push(Gap {
                    at_seconds: f64::from(number) / f64::from(arguments.rate),
                    packets,
                });
            }
            number += packets;
        }
        let received =
            u32::try_from(self.seen.iter().filter(|seen| **seen).count()).unwrap_or(u32::MAX);
        Direction {
            sent,
            send_errors,
            expected: count,
            received,
            lost: count - received,
            duplicates: self.duplicates,
            reordered: self.reordered,
            longest_gap_ms: self.longest_gap.as_secs_f64() * 1000.0,
            gaps,
        }
    }
}
