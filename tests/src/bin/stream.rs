//! One TCP stream between two places: `serve` says who came and sends so many bytes, `fetch` reads all and says how many.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Nothing for so long: the path does not carry the stream.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "One TCP stream between two places")]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Listens, says `listening`, and prints the address of each who comes; sends each so many bytes.
    Serve {
        /// Where.
        address: SocketAddr,
        /// How many.
        bytes: usize,
    },
    /// Reads to the end, and prints the number of bytes.
    Fetch {
        /// From whom.
        address: SocketAddr,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().mode {
        Mode::Serve { address, bytes } => serve(address, bytes),
        Mode::Fetch { address } => fetch(address),
    }
}

fn serve(address: SocketAddr, bytes: usize) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    println!("listening");
    let data = vec![0x5a; bytes];
    loop {
        let (mut stream, from) = listener.accept()?;
        println!("{}", from.ip());
        stream.set_write_timeout(Some(PATIENCE))?;
        // Who goes away in the middle tells its own failure.
        if let Err(why) = stream.write_all(&data) {
            eprintln!("{from}: {why}");
        }
    }
}

fn fetch(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut data = Vec::new();
    stream.read_to_end(&mut data).with_context(|| format!("after {} bytes", data.len()))?;
    println!("{}", data.len());
    Ok(())
}
