use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use meshd_proto::control::{Counter, HealthLine};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{page::Page, process::Process, *};

fn counter(name: &str, labels: &[(&str, &str)], value: u64) -> Counter {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Counter { name: name.to_owned(), labels, value }
}

fn snapshot() -> Snapshot {
    let line = |code: &str, severity: &str| HealthLine {
        code: code.to_owned(),
        severity: severity.to_owned(),
        message: "it is so".to_owned(),
        fix: "mend it".to_owned(),
    };
    let end =
        |kind, name: &str, at| CertificateEnd { kind, name: name.to_owned(), at: UnixTime(at) };
    Snapshot {
        status: StatusReply {
            state: "degraded".to_owned(),
            mesh: Some("prod".to_owned()),
            node: Some("db-1".to_owned()),
            backend: Some("kernel".to_owned()),
            version: "0.1.0".to_owned(),
            synced: true,
            // Twice the same: IPv4 and IPv6.
            health: vec![
                line("revoked", "error"),
                line("forwarding_off", "warning"),
                line("forwarding_off", "warning"),
            ],
            devices: Some(meshd_proto::control::PeerCounts { total: 4, up: 2, stale: 1, down: 0 }),
            ..StatusReply::default()
        },
        peers: vec![
            PeerFigures {
                name: "db-2".to_owned(),
                gossip: "alive",
                tunnel: "up",
                last_handshake: Some(12.5),
                rx_bytes: 2_000,
                tx_bytes: 1_000,
                rtt: Some(0.0015),
            },
            PeerFigures {
                name: "db-3".to_owned(),
                gossip: "down",
                tunnel: "never",
                ..PeerFigures::default()
            },
        ],
        counters: CountersReply {
            counters: vec![
                counter("meshd_events_total", &[("severity", "info"), ("code", "running")], 1),
                counter("meshd_drift_repaired_total", &[], 3),
                counter("meshd_refusals_total", &[("reason", "bad_signature")], 2),
                counter("meshd_refusals_total", &[("reason", "malformed")], 4),
            ],
        },
        certificates: vec![
            end("node", "db-1", 1_800_000_000),
            // A signer with two keys, while the root is replaced.
            end("signer", "db-1", 1_900_000_002),
            end("signer", "db-1", 1_900_000_001),
            end("root", "", 2_000_000_000),
        ],
        records: 3,
        connections: 1,
    }
}

fn written(snapshot: Snapshot) -> String {
    let process = Process {
        cpu: 1.5,
        resident: 20_000_000,
        virtual_memory: 90_000_000,
        open_files: Some(30),
    };
    page::write(Page { snapshot, process: Some(process) }).unwrap()
}

#[test]
fn the_page_is_as_documented() {
    let wanted = include_str!("tests/page.txt");
    let found = written(snapshot());
    assert_eq!(found, wanted, "{found}");
}

#[test]
fn what_others_wrote_stays_inside_its_label() {
    let mut snapshot = snapshot();
    let evil = "a\"} 1\nmeshd_evil 1\r\n# EOF\n\\\u{202e}";
    snapshot.peers[0].name = evil.to_owned();
    snapshot.status.mesh = Some(evil.to_owned());
    snapshot.status.health[0].code = evil.to_owned();
    snapshot.certificates[0].name = evil.to_owned();
    snapshot.counters.counters[2].labels.insert("reason".to_owned(), evil.to_owned());
    let (page, plain) = (written(snapshot), written(super::tests::snapshot()));
    assert_eq!(page.lines().count(), plain.lines().count(), "{page}");
    assert_eq!(page.matches("# EOF\n").count(), 1, "{page}");
    for line in page.lines() {
        let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
        assert!(begins(&["# HELP ", "# TYPE ", "# EOF", "meshd_", "process_"]), "{line}");
        assert!(!begins(&["meshd_evil"]), "{line}");
        assert!(!line.contains(['\r', '\u{202e}']), "{line}");
    }
    assert!(page.contains(r#"meshd_peer_tunnel_up{peer="a\"} 1\\nmeshd_evil 1"#), "{page}");
}

#[test]
fn a_host_in_no_mesh_has_a_page_too() {
    let page = written(Snapshot {
        status: StatusReply { state: "waiting".to_owned(), ..StatusReply::default() },
        ..Snapshot::default()
    });
    assert!(page.contains("meshd_state{state=\"waiting\"} 1\n"), "{page}");
    assert!(page.contains("meshd_peers{gossip=\"down\",tunnel=\"up\"} 0\n"), "{page}");
    assert!(!page.contains("meshd_certificate_expiry"), "{page}");
}

#[test]
fn only_loopback_goes_without_a_word() {
    for (address, open) in [
        ("127.0.0.1:1", false),
        ("127.9.9.9:1", false),
        ("[::1]:1", false),
        ("[::ffff:127.0.0.1]:1", false),
        ("0.0.0.0:1", true),
        ("[::]:1", true),
        ("10.0.0.1:1", true),
    ] {
        assert_eq!(exposure(address.parse().unwrap()).is_some(), open, "{address}");
    }
}

/// Counts how often it is asked.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Source for Counted {
    fn snapshot(&self) -> BoxFuture<'_, Option<Snapshot>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        async { Some(super::tests::snapshot()) }.boxed()
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn one_page_and_nothing_else_is_served() {
    let (address, source) = (free_address().await, Arc::new(Counted::default()));
    let metrics = Metrics::start(address, source.clone());
    assert_eq!(metrics.problem(), None);
    for _ in 0..20 {
        let answer = ask(address, SCRAPE).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("# eof\n"), "{answer}");
    }
    // Whoever asks often gets the same page.
    assert!(source.0.load(Ordering::Relaxed) <= 2);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("rubbish\r\n\r\n", "400"),
    ] {
        let answer = ask(address, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It is closed before all is sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn who_connects_and_is_silent_keeps_nobody_out() {
    let address = free_address().await;
    let _metrics = Metrics::start(address, Arc::new(Counted::default()));
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /met").await.unwrap();
        silent.push(stream);
    }
    let start = Instant::now();
    assert!(ask(address, SCRAPE).await.contains("meshd_info"));
    assert!(start.elapsed() < Duration::from_secs(5));
    // The oldest had to go for it.
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(5), silent[0].read(&mut byte)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}

#[tokio::test]
async fn an_address_in_use_is_said_and_tried_again() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap();
    let mut metrics = Metrics::start(address, Arc::new(Counted::default()));
    let (message, fix) = metrics.problem().unwrap();
    assert!(message.contains(&address.to_string()) && message.contains("in use"), "{message}");
    assert!(fix.contains("[metrics] listen"), "{fix}");
    drop(holder);
    metrics.failed.wait_for(Option::is_none).await.unwrap();
    assert_eq!(metrics.problem(), None);
}
