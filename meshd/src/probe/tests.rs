use nix::net::if_::if_nametoindex;

use super::*;

const MEMBER: NodeKey = NodeKey([1; 32]);

#[tokio::test]
async fn members_are_answered_and_others_are_not() {
    let own = Ipv6Addr::LOCALHOST;
    let members = Members::default();
    let (heard, mut hears) = mpsc::channel(16);
    let prober = Prober::start(own, "lo".to_owned(), members.clone(), heard).unwrap();
    let wait = Duration::from_millis(200);
    assert_eq!(prober.ping(own, 100, wait).await.unwrap(), None);
    let from = MEMBER;
    members.write().unwrap().insert(own, from);
    let long = Duration::from_secs(5);
    assert!(prober.ping(own, 100, long).await.unwrap().is_some());
    assert!(prober.ping(own, 0, long).await.unwrap().is_some());
    assert_eq!(hears.recv().await, Some(Heard::Anything { from }));
    let before = prober.sent(&own);
    prober.measure(own, 77, 9_000);
    assert_eq!(hears.recv().await, Some(Heard::Answer { from, id: 77 }));
    assert_eq!(prober.sent(&own) - before, 9_008 + 32 + 64 + 32, "the probe and its answer");
}

fn member() -> Ipv6Addr {
    "fd00::1".parse().unwrap()
}

/// A packet of every kind from a member, as it comes in by `interface`: what is heard, and whether a ping
/// still waits for its answer.
async fn taken(interface: Option<u32>) -> (Vec<Heard>, bool) {
    let members: Members = Arc::new(RwLock::new(BTreeMap::from([(member(), MEMBER)])));
    let (heard, mut hears) = mpsc::channel(16);
    let socket = UdpSocket::from_std(bound(Ipv6Addr::LOCALHOST, 0).unwrap().into()).unwrap();
    let (pending, sent) = (Pending::default(), Sent::default());
    let (answered, _answer) = oneshot::channel();
    pending.lock().unwrap().insert(9, (member(), answered));
    let mut answering = Answering {
        socket: Arc::new(socket),
        interface: "lo".to_owned(),
        members: members.clone(),
        pending: pending.clone(),
        heard: heard.clone(),
        told: BTreeMap::new(),
        sent,
    };
    let measured = Measured { interface: "lo".to_owned(), members, heard };
    let from = SocketAddrV6::new(member(), PORT, 0, 0);
    let statement =
        Statement { start: [1; 8], count: 1, accepts: std::collections::BTreeSet::new() };
    for kind in REQUEST..=ANSWER {
        let mut packet = packet(kind, 9, HEADER);
        let received = |length| Received { length, from, interface };
        measured.take(&packet, &received(packet.len()));
        packet.extend(statement.encode());
        answering.take(&packet, &received(packet.len()));
    }
    drop((answering, measured));
    let mut all = Vec::new();
    while let Some(heard) = hears.recv().await {
        all.push(heard);
    }
    let waits = !pending.lock().unwrap().is_empty();
    (all, waits)
}

#[tokio::test]
async fn what_does_not_come_out_of_the_tunnel_is_nothing_whoever_it_says_it_is_of() {
    let tunnel = if_nametoindex("lo").unwrap();
    for interface in [None, Some(tunnel + 1_000)] {
        assert_eq!(taken(interface).await, (Vec::new(), true), "{interface:?}");
    }
    let (heard, waits) = taken(Some(tunnel)).await;
    assert!(!waits, "the ping is answered");
    assert_eq!(heard.len(), 4, "something, the answer to a probe, and both statements: {heard:?}");
}
