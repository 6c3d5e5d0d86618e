//! What a pair does until its first handshake.

use super::{
    super::types::{Device, Peer, WgPrivateKey},
    *,
};
use crate::{node::fixture, now::UnixTime};

const KEY: WgPublicKey = WgPublicKey([1; 32]);

fn start() -> Instant {
    #[allow(clippy::disallowed_methods)] // A starting point; only differences count.
    Instant::now()
}

const LEADS: Pair = Pair { leads: true, together: false };
const FOLLOWS: Pair = Pair { leads: false, together: false };

fn poke() -> Due {
    Due { poke: vec![KEY], renew: Vec::new() }
}

fn renew() -> Due {
    Due { poke: Vec::new(), renew: vec![KEY] }
}

fn peers(handshake: Option<Duration>) -> BTreeMap<WgPublicKey, ObservedPeer> {
    BTreeMap::from([(KEY, ObservedPeer { last_handshake: handshake, ..ObservedPeer::default() })])
}

#[test]
fn the_side_that_leads_sends_at_once_and_the_other_later() {
    let now = start();
    let (mut leader, mut follower) = (FirstHandshakes::default(), FirstHandshakes::default());
    leader.wait(KEY, LEADS, now);
    follower.wait(KEY, FOLLOWS, now);
    assert_eq!(leader.due(now), poke());
    assert_eq!(follower.due(now), Due::default());
    assert_eq!(follower.due(now + SECOND), poke());
    let (first, second) = (leader.next().unwrap(), follower.next().unwrap());
    assert!(second > first + SECOND, "the one that leads renews first");
}

#[test]
fn a_silent_peer_is_made_anew_a_few_times_and_then_left_to_wireguard() {
    let mut now = start();
    let mut first = FirstHandshakes::default();
    first.wait(KEY, LEADS, now);
    for _ in 0..RENEWALS {
        assert_eq!(first.due(now), poke());
        first.observe(&peers(None), now);
        now = first.next().unwrap();
        assert_eq!(first.due(now), renew());
        first.wait(KEY, LEADS, now);
    }
    assert_eq!(first.due(now), poke());
    assert_eq!(first.next(), None);
}

#[test]
fn of_those_who_started_together_a_silent_one_is_made_anew_for_half_a_minute() {
    let begin = start();
    let mut now = begin;
    let mut first = FirstHandshakes::default();
    let pair = Pair { leads: true, together: true };
    first.wait(KEY, pair, now);
    while let Some(at) = first.next() {
        now = at;
        if first.due(now).renew == [KEY] {
            first.wait(KEY, pair, now);
        }
    }
    let seconds = (now - begin).as_secs();
    assert!((20..40).contains(&seconds), "{seconds}");
}

#[test]
fn one_that_is_not_made_anew_is_not_asked_for_without_end() {
    let mut now = start();
    let mut first = FirstHandshakes::default();
    first.wait(KEY, LEADS, now);
    let tried = BTreeMap::from([(KEY, ObservedPeer { tx_bytes: 148, ..ObservedPeer::default() })]);
    let mut renewals = 0;
    while let Some(at) = first.next() {
        now = at;
        renewals += u32::try_from(first.due(now).renew.len()).unwrap();
        // Its endpoint is not the plan's, say: it stays as it is.
        first.observe(&tried, now);
        assert!(renewals < 10);
    }
    assert_eq!(renewals, RENEWALS);
}

#[test]
fn a_peer_with_a_handshake_or_gone_is_left_alone() {
    let now = start();
    let mut first = FirstHandshakes::default();
    first.wait(KEY, LEADS, now);
    first.observe(&peers(Some(Duration::ZERO)), now);
    assert_eq!(first.next(), None);
    first.wait(KEY, LEADS, now);
    first.observe(&BTreeMap::new(), now);
    assert_eq!(first.next(), None);
}

#[test]
fn the_younger_record_leads_and_only_hosts_that_started_together_take_turns() {
    let record = |i: u64, at: i64| {
        let mut record = (*fixture::record(i, &format!("n{i}"), 1)).clone();
        record.issued_at = UnixTime(at);
        record
    };
    let (old, young) = (record(1, 1_000), record(2, 1_011));
    assert_eq!(Pair::of(&young, &old), LEADS);
    assert_eq!(Pair::of(&old, &young), FOLLOWS);
    let (one, other) = (record(1, 1_000), record(2, 1_000));
    let (here, there) = (Pair::of(&one, &other), Pair::of(&other, &one));
    assert!(here.together && there.together && here.leads != there.leads);
}

#[test]
fn of_many_that_started_together_a_few_are_sent_to_at_once_and_the_others_in_turn() {
    let mut now = start();
    let mut first = FirstHandshakes::default();
    let together = Pair { leads: true, together: true };
    for i in 0..49 {
        first.wait(WgPublicKey([i; 32]), together, now);
    }
    // One that was there before waits for nobody.
    first.wait(WgPublicKey([50; 32]), LEADS, now);
    let mut met = BTreeSet::new();
    let kernel = |met: &BTreeSet<WgPublicKey>, tx_bytes| -> BTreeMap<_, _> {
        let peer = |key| {
            let last_handshake = met.contains(&key).then_some(Duration::ZERO);
            ObservedPeer { last_handshake, tx_bytes, ..ObservedPeer::default() }
        };
        (0..51).map(|i| WgPublicKey([i; 32])).map(|key| (key, peer(key))).collect()
    };
    // Those who started together wait until no more of them come.
    assert_eq!(first.due(now).poke, [WgPublicKey([50; 32])]);
    met.insert(WgPublicKey([50; 32]));
    first.observe(&kernel(&met, 0), now);
    now += CALM.0 / 2;
    first.wait(WgPublicKey([49; 32]), together, now);
    assert_eq!(first.next(), Some(now + CALM.0));
    now += CALM.0;
    let poked = first.due(now).poke;
    assert_eq!(poked.len(), AT_ONCE);
    // As many follow as have answered, at once.
    met.extend(&poked[..5]);
    first.observe(&kernel(&met, 0), now);
    assert!(first.next().unwrap() <= now);
    assert_eq!(first.due(now).poke.len(), 5);
    assert!(first.next().unwrap() > now);
    // Who does not answer holds nobody up for long.
    now += TURN;
    let due = first.due(now);
    assert_eq!((due.poke.len(), due.renew.len()), (AT_ONCE, AT_ONCE));
    // The kernel had packets for all others: who does not answer is made anew soon.
    first.observe(&kernel(&met, 148), now);
    let left = 50 - 5 - AT_ONCE - AT_ONCE;
    now += PATIENCE;
    assert_eq!(first.due(now).renew.len(), left + AT_ONCE);
    first.observe(&kernel(&(0..51).map(|i| WgPublicKey([i; 32])).collect(), 148), now);
    assert_eq!(first.next(), None);
}

#[test]
fn a_busy_host_gives_no_turns_but_not_for_ever() {
    let begin = start();
    let mut now = begin;
    let mut first = FirstHandshakes::default();
    assert!(!first.queues());
    first.wait(KEY, Pair { leads: true, together: true }, now);
    // One that was there before waits for nobody.
    first.wait(WgPublicKey([2; 32]), LEADS, now);
    assert!(first.queues());
    first.hold(now + SECOND);
    assert_eq!(first.due(now).poke, [WgPublicKey([2; 32])]);
    first.observe(&peers(None), now);
    assert_eq!(first.next(), Some(now + SECOND));
    while first.queues() {
        now = first.next().unwrap();
        first.hold(now + SECOND);
        if first.due(now) == poke() {
            assert_eq!(now, begin + CALM.1);
            return;
        }
        assert!(now < begin + CALM.1, "held for ever");
    }
    panic!("nobody waits, and nothing was sent");
}

#[test]
fn only_what_never_had_a_handshake_and_has_an_endpoint_is_removed() {
    let keys = BTreeSet::from([KEY]);
    let device = Device {
        name: "mesh0".to_owned(),
        private_key: WgPrivateKey([2; 32]),
        public_key: WgPublicKey([3; 32]),
        listen_port: 51820,
        fwmark: 0x10,
        mtu: 1420,
        addresses: BTreeSet::new(),
        sysctls: BTreeMap::new(),
    };
    let endpoint = Some(([192, 0, 2, 1], 51820).into());
    let mut desired = Desired {
        device: Some(device),
        peers: BTreeMap::from([(KEY, Peer { endpoint, ..Peer::default() })]),
        ..Desired::default()
    };
    let with = |peers| Observed { peers, ..Observed::default() };
    let removal = Change::RemovePeer { device: "mesh0".to_owned(), public_key: KEY };
    assert_eq!(renewals(&desired, &with(peers(None)), &keys), [removal]);
    assert!(renewals(&desired, &with(peers(Some(Duration::ZERO))), &keys).is_empty());
    assert!(renewals(&desired, &with(BTreeMap::new()), &keys).is_empty());
    desired.peers.insert(KEY, Peer::default());
    assert!(renewals(&desired, &with(peers(None)), &keys).is_empty());
    assert!(renewals(&Desired::default(), &with(peers(None)), &keys).is_empty());
}
