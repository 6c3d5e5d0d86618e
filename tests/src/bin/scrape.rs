//! Asks for metrics inside a host's namespace, as a monitor does, and as nobody should.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Arguments {
    address: SocketAddr,
    /// What to do with it.
    #[arg(long, value_enum, default_value_t = Mode::Get)]
    mode: Mode,
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// Prints the page.
    Get,
    /// Opens connections, sends half a request on each, and waits.
    Silent,
    /// Asks, and reads a byte now and then; prints how many there were.
    Slow,
    /// Takes the address, and waits.
    Hold,
}

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
const SLOWLY: Duration = Duration::from_millis(100);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn main() -> Result<()> {
    let Arguments { address, mode, connections } = Arguments::parse();
    match mode {
        Mode::Get => get(address),
        Mode::Silent => {
            let mut open = Vec::new();
            for _ in 0..connections {
                let mut stream = TcpStream::connect(address)?;
                // The daemon may have closed it already.
                let _ = stream.write_all(&REQUEST[..20]);
                open.push(stream);
            }
            println!("{} open", open.len());
            sleep(LONG);
            Ok(())
        }
        Mode::Slow => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(REQUEST)?;
            let (mut count, mut byte) = (0, [0]);
            while stream.read(&mut byte).unwrap_or(0) > 0 {
                count += 1;
                sleep(SLOWLY);
            }
            println!("{count} bytes");
            Ok(())
        }
        Mode::Hold => {
            let listener = TcpListener::bind(address)?;
            println!("{} held", listener.local_addr()?);
            sleep(LONG);
            Ok(())
        }
    }
}

fn get(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("it answered {head}");
    }
    print!("{body}");
    Ok(())
}
