//! The control socket of a userspace WireGuard: <https://www.wireguard.com/xplatform/>.
//!
//! Our own client instead of `wireguard-control`'s, which starts the process by itself when it does
//! not answer, waits without limit, panics on a malformed answer and reads no public key from
//! boringtun.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use meshd_core::plan::{ObservedPeer, WgPresharedKey};
use meshd_proto::WgPublicKey;
use nix::errno::Errno;
use wireguard_control::Key;
use zeroize::Zeroizing;

use crate::dataplane::{
    DataplaneError,
    linux::wireguard::{Configuration, PeerUpdate, State, since},
};

/// Where implementations put their sockets.
const DIRECTORY: &str = "/run/wireguard";
/// Longest wait for one read or write.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer: 20,000 peers of 1,024 allowed IPs would be larger, and are not what a userspace device carries.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;

/// The socket of a device.
pub(crate) fn socket_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

/// True when a process answers on the socket.
pub(crate) fn is_alive(name: &str) -> bool {
    UnixStream::connect(socket_path(name)).is_ok()
}

/// Reads device and peers.
pub(crate) fn read(name: &str) -> Result<State, DataplaneError> {
    let action = "read the WireGuard device";
    let mut parser = Parser { now: SystemTime::now(), state: State::default(), peer: None };
    exchange(name, "get=1\n\n", |key, value| parser.add(key, value))
        .map_err(|e| refused(action, name, &e))?;
    parser.finish_peer();
    Ok(parser.state)
}

/// Sets key, port and mark, those that are given.
pub(crate) fn configure(name: &str, wanted: &Configuration<'_>) -> Result<(), DataplaneError> {
    let mut request = Zeroizing::new(String::from("set=1\n"));
    if let Some(key) = wanted.private_key {
        line(&mut request, "private_key", &Zeroizing::new(hex(&key.0)).as_str());
    }
    if let Some(port) = wanted.listen_port {
        line(&mut request, "listen_port", &port);
    }
    if let Some(mark) = wanted.fwmark {
        line(&mut request, "fwmark", &mark);
    }
    set(name, "configure the WireGuard device", request)
}

/// Applies updates of peers in order.
pub(crate) fn update_peers(name: &str, updates: &[PeerUpdate]) -> Result<(), DataplaneError> {
    let mut request = Zeroizing::new(String::from("set=1\n"));
    for update in updates {
        line(&mut request, "public_key", &hex(&update.public_key.0));
        if update.remove {
            line(&mut request, "remove", &true);
        }
        if let Some(endpoint) = update.endpoint {
            line(&mut request, "endpoint", &endpoint);
        }
        if let Some(seconds) = update.keepalive {
            line(&mut request, "persistent_keepalive_interval", &seconds);
        }
        if let Some(key) = &update.preshared_key {
            line(&mut request, "preshared_key", &Zeroizing::new(hex(&key.0)).as_str());
        }
        for net in &update.add_allowed_ips {
            line(&mut request, "allowed_ip", net);
        }
    }
    set(name, "configure a peer", request)
}

fn set(
    name: &str,
    action: &'static str,
    mut request: Zeroizing<String>,
) -> Result<(), DataplaneError> {
    request.push('\n');
    exchange(name, &request, |_, _| Ok(())).map_err(|e| refused(action, name, &e))
}

fn line(request: &mut String, key: &str, value: &dyn std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(request, "{key}={value}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Sends a request and hands each line of the answer to `take`, up to the empty line that ends it.
fn exchange(
    name: &str,
    request: &str,
    take: impl FnMut(&str, &str) -> io::Result<()>,
) -> io::Result<()> {
    let mut socket = UnixStream::connect(socket_path(name))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(request.as_bytes())?;
    read_answer(BufReader::new(socket.take(ANSWER_MAX)), take)
}

fn read_answer(
    mut reader: impl BufRead,
    mut take: impl FnMut(&str, &str) -> io::Result<()>,
) -> io::Result<()> {
    let mut text = Zeroizing::new(String::new());
    let mut errno = None;
    loop {
        text.clear();
        if reader.read_line(&mut text)? == 0 {
            return Err(malformed("an answer without an end"));
        }
        let line = text.trim_end();
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| malformed("a line without '='"))?;
        if key == "errno" {
            errno = Some(number::<i32>(value)?);
        } else {
            take(key, value)?;
        }
    }
    match errno {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_abs())),
        None => Err(malformed("an answer without an error code")),
    }
}

/// How many peers are in an answer.
#[cfg(feature = "fuzzing")]
pub(crate) fn peers_of(answer: &str) -> io::Result<usize> {
    let mut parser = Parser { now: SystemTime::now(), state: State::default(), peer: None };
    read_answer(answer.as_bytes(), |key, value| parser.add(key, value))?;
    parser.finish_peer();
    Ok(parser.state.peers.len())
}

/// Builds the state from the lines of an answer.
struct Parser {
    now: SystemTime,
    state: State,
    peer: Option<(WgPublicKey, ObservedPeer)>,
}

impl Parser {
    fn add(&mut self, key: &str, value: &str) -> io::Result<()> {
        match key {
            "private_key" => {
                let private = Zeroizing::new(key_bytes(value)?);
                // All zero means that none is set.
                let public = || WgPublicKey(Key(*private).get_public().0);
                self.state.public_key = (*private != [0; 32]).then(public);
            }
            // boringtun tells the public key instead.
            "own_public_key" => self.state.public_key = Some(WgPublicKey(key_bytes(value)?)),
            "listen_port" => self.state.listen_port = number(value)?,
            "fwmark" => self.state.fwmark = number(value)?,
            "public_key" => {
                self.finish_peer();
                self.peer = Some((WgPublicKey(key_bytes(value)?), ObservedPeer::default()));
            }
            _ => self.add_to_peer(key, value)?,
        }
        Ok(())
    }

    fn add_to_peer(&mut self, key: &str, value: &str) -> io::Result<()> {
        let Some((_, peer)) = &mut self.peer else { return Ok(()) };
        match key {
            "allowed_ip" => {
                let net: IpNet = value.parse().map_err(|_| malformed("a bad allowed_ip"))?;
                peer.allowed_ips.insert(net.trunc());
            }
            // A link-local endpoint with a zone is none that we ever set.
            "endpoint" => peer.endpoint = value.parse().ok(),
            "persistent_keepalive_interval" => peer.keepalive = number(value)?,
            "preshared_key" => peer.preshared_key = WgPresharedKey(key_bytes(value)?),
            "rx_bytes" => peer.rx_bytes = number(value)?,
            "tx_bytes" => peer.tx_bytes = number(value)?,
            "last_handshake_time_sec" => {
                let seconds: u64 = number(value)?;
                let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
                peer.last_handshake = at.filter(|_| seconds > 0).map(|at| since(at, self.now));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish_peer(&mut self) {
        self.state.peers.extend(self.peer.take());
    }
}

fn key_bytes(text: &str) -> io::Result<[u8; 32]> {
    Key::from_hex(text).map(|key| key.0).map_err(|_| malformed("a bad key"))
}

fn number<N: std::str::FromStr>(text: &str) -> io::Result<N> {
    text.parse().map_err(|_| malformed("a bad number"))
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn refused(action: &'static str, name: &str, error: &io::Error) -> DataplaneError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno @ (Errno::EADDRINUSE | Errno::EPERM | Errno::EACCES)) => {
            DataplaneError::Kernel { action, object: name.to_owned(), errno }
        }
        Some(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE) => {
            DataplaneError::NoInterface { action, name: name.to_owned() }
        }
        _ => DataplaneError::Uapi { action, socket: socket_path(name), reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parser() -> Parser {
        Parser {
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            state: State::default(),
            peer: None,
        }
    }

    #[test]
    fn an_answer_of_wireguard_go_is_understood() {
        let mut parser = parser();
        let lines = "private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
                     listen_port=12912\nfwmark=16\n\
                     public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
                     protocol_version=1\nendpoint=[fd00::1]:51820\nlast_handshake_time_sec=990\n\
                     last_handshake_time_nsec=5\ntx_bytes=38333\nrx_bytes=2224\n\
                     persistent_keepalive_interval=25\nallowed_ip=192.168.4.4/32\nallowed_ip=fd01::/64\n\
                     public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n";
        for line in lines.lines() {
            let (key, value) = line.split_once('=').unwrap();
            parser.add(key, value).unwrap();
        }
        parser.finish_peer();
        let state = parser.state;
        assert!(state.public_key.is_some());
        assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (12912, 16, 2));
        let peer = state.peers.values().find(|peer| peer.keepalive == 25).unwrap();
        assert_eq!(peer.last_handshake, Some(Duration::from_secs(10)));
        assert_eq!(peer.endpoint, Some("[fd00::1]:51820".parse().unwrap()));
        assert_eq!((peer.rx_bytes, peer.tx_bytes, peer.allowed_ips.len()), (2224, 38333, 2));
    }

    #[test]
    fn malformed_answers_are_errors() {
        for (key, value) in [("listen_port", "70000"), ("private_key", "zz"), ("public_key", "")] {
            assert!(parser().add(key, value).is_err(), "{key}={value}");
        }
        let mut parser = parser();
        assert!(parser.add("allowed_ip", "nonsense").is_ok(), "before any peer it means nothing");
        parser.add("public_key", &"11".repeat(32)).unwrap();
        assert!(parser.add("allowed_ip", "nonsense").is_err());
        assert!(parser.add("last_handshake_time_sec", "18446744073709551615").is_ok());
    }
}
