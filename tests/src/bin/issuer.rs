//! `issuer`: serves an issuer's key set over HTTPS, as it stands in a file at each request. A line on stderr for each.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

#[derive(Parser)]
#[command(about = "An issuer's key set over HTTPS, for tests")]
struct Arguments {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// The server's certificate, in PEM.
    #[arg(long)]
    certificate: PathBuf,
    /// The server's key, in PEM.
    #[arg(long)]
    key: PathBuf,
    /// What is served.
    #[arg(long)]
    keys: PathBuf,
}

/// A client that says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = CertificateDer::from_pem_file(&arguments.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&arguments.key)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let config = Arc::new(config);
    let listener = TcpListener::bind(arguments.listen)?;
    eprintln!("listening");
    for stream in listener.incoming() {
        if let Err(error) = serve(stream?, config.clone(), &arguments.keys) {
            eprintln!("failed: {error}");
        }
    }
    Ok(())
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, keys: &Path) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut request = String::new();
    stream.read_line(&mut request)?;
    let mut line = String::from("x");
    while !line.trim().is_empty() {
        line.clear();
        stream.read_line(&mut line)?;
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/keys") => ("200 OK", std::fs::read(keys)?),
        Some("/large") => ("200 OK", vec![b' '; 1 << 20]),
        Some("/moved") => ("302 Found\r\nlocation: /keys", Vec::new()),
        _ => ("404 Not Found", Vec::new()),
    };
    eprintln!("asked: {}", request.trim());
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}
