//! Echo requests to many addresses at once, and a datagram to each of some ports: what `ping` and a shell would do, in one
//! process, since starting one for each starves an emulated machine. Prints the addresses that did not answer.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[derive(Parser)]
#[command(about = "Echo requests to many addresses at once; prints those that did not answer")]
struct Arguments {
    /// `ADDRESS`, or `ADDRESS,SOURCE` to send from an address of one's own.
    #[arg(required = true)]
    to: Vec<String>,
    /// Seconds to wait for each.
    #[arg(long, default_value_t = 1)]
    wait: u64,
    /// Send a datagram to these ports too.
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
}

/// ICMP's types of an echo request and its answer: IPv4, IPv6.
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];
/// How often each is asked, unless it answers.
const TRIES: u32 = 3;
/// Bytes of ICMP's header for echoes.
const HEADER: usize = 8;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wait = Duration::from_secs(arguments.wait);
    thread::scope(|scope| {
        let tries: Vec<_> = arguments
            .to
            .iter()
            .enumerate()
            .map(|(number, text)| (text, scope.spawn(move || echo(text, number, wait))))
            .collect();
        for text in &arguments.to {
            let (to, _) = addresses(text)?;
            for port in &arguments.ports {
                datagram(to, *port);
            }
        }
        for (text, tried) in tries {
            match tried.join() {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => println!("{text}: no answer"),
                Ok(Err(why)) => println!("{text}: {why:#}"),
                Err(_) => println!("{text}: the thread failed"),
            }
        }
        Ok(())
    })
}

fn addresses(text: &str) -> Result<(IpAddr, Option<IpAddr>)> {
    let (to, from) = text.split_once(',').map_or((text, None), |(to, from)| (to, Some(from)));
    let parse = |text: &str| text.parse::<IpAddr>().with_context(|| format!("address {text}"));
    Ok((parse(to)?, from.map(parse).transpose()?))
}

/// Whether it is answered. Where the kernel refuses to send, that is the error.
fn echo(text: &str, number: usize, wait: Duration) -> Result<bool> {
    let (to, from) = addresses(text)?;
    let six = usize::from(to.is_ipv6());
    let (domain, protocol) = match six {
        0 => (Domain::IPV4, Protocol::ICMPV4),
        _ => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("a raw socket")?;
    if let Some(from) = from {
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
    // Told apart from what other places and tries send to the same address. The identifier, which comes first, must be
    // another for each: of two that are translated to one source at once, the kernel loses one (EPERM).
    let [.., a, b, c] = std::process::id().to_be_bytes();
    let number = u8::try_from(number)?;
    let mut packet = [REQUEST[six], 0, 0, 0, c, number, a, b, 0x6d, 0x65, 0x73, 0x68];
    let sum = checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    // Asked again, as by ping: the first packet from a source that members do not take is lost, and brings source NAT.
    let (begin, mut sent) = (Instant::now(), 0);
    let mut buffer = [0; 512];
    loop {
        if begin.elapsed() >= wait {
            return Ok(false);
        }
        let next = begin + wait * sent / TRIES;
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            ensure!(socket.send(&packet)? == packet.len(), "half a packet was sent");
            sent += 1;
            continue;
        }
        socket.set_read_timeout(Some(left))?;
        let length = match (&socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        // Raw sockets of IPv4 give the IP header too.
        let skip = if six == 0 { usize::from(buffer[0] & 15) * 4 } else { 0 };
        if let Some(message) = buffer[..length].get(skip..skip + HEADER)
            && message[0] == REPLY[six]
            && message[4..8] == packet[4..8]
        {
            return Ok(true);
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Internet checksum (RFC 1071). For IPv6 the kernel puts its own there.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// Whether it gets anywhere is for others to say.
fn datagram(to: IpAddr, port: u16) {
    let any: IpAddr = if to.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
    if let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, 0)) {
        let _ = socket.send_to(b"leak", SocketAddr::new(to, port));
    }
}
