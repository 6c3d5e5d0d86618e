//! The first handshake of each new pair, without WireGuard's own wait of five seconds.
//!
//! WireGuard sends a handshake message again only after REKEY_TIMEOUT, five seconds (WireGuard, 6.1).
//! A first message that meets a peer not yet programmed is lost; two that cross undo each other,
//! since each side then answers a message that the other has forgotten. So one side of each pair, the
//! one that leads, sends at once, and the other a little later, since it may be the one that was
//! programmed last. The one whose record is younger leads: a host that joins is ready after those that it joins.
//! Where no handshake comes of it, the peer is made anew, which makes WireGuard
//! forget when it last sent. That is done a few times only, and only to a peer that never had a
//! handshake: there is no session to lose.
//!
//! Where a whole mesh starts, as after a power cut, all pairs at once are N² handshakes, and as many paths to measure, while
//! everybody is busiest. So of those who started with it a host sends to a few at once, and to the next as soon as one of
//! them has answered: as fast as the machines are. With more than those few it begins when no more of them come, since to know
//! each other is more urgent. The kernel begins with whom it has a packet for in any case.
//!
//! ```text
//! programmed ─► turn ─► poke, or the kernel sent ─► no handshake in time ─► renew ─► programmed …  (four times)
//!                                         └───────► handshake: done
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use meshd_proto::WgPublicKey;

use super::types::{Change, Desired, Observed, ObservedPeer};
use crate::trust::Record;

/// How much later the side that does not lead sends: longer than a handshake takes on a busy host.
const SECOND: Duration = Duration::from_millis(400);
/// How long a handshake may take before the peer is made anew; each further one twice as long.
const PATIENCE: Duration = Duration::from_millis(700);
/// The same where few wait for theirs: then nobody is busy, and two that crossed need not wait for long. So much for each of
/// them is added to it.
const SHORT_PATIENCE: Duration = Duration::from_millis(200);
const FOR_EACH: Duration = Duration::from_millis(8);
/// After these WireGuard's own retries go on alone.
const RENEWALS: u32 = 4;
/// The same where both have just started: the other side may be busy with that for a while, and its own turn be late. Half
/// a minute in all, since the patience grows once only.
const RENEWALS_TOGETHER: u32 = 20;
/// Hosts whose records are no further apart than these seconds have started together.
const TOGETHER: u64 = 10;
/// Of those who started together so many are sent to at once.
const AT_ONCE: usize = 8;
/// Where more than these start together, turns are given when no new one came for so long, or after the second time at the latest.
const CALM: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));
/// One that does not answer gives its turn to the next after this.
const TURN: Duration = Duration::from_millis(1_400);

/// How the two of a pair stand to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    /// This side sends first.
    leads: bool,
    /// Both have just started.
    together: bool,
}

impl Pair {
    /// Of the host with the record `own` and another.
    fn of(own: &Record, other: &Record) -> Self {
        Self {
            leads: (own.issued_at, own.key) > (other.issued_at, other.key),
            together: own.issued_at.0.abs_diff(other.issued_at.0) <= TOGETHER,
        }
    }
}

/// Pairs that wait for their first handshake.
#[derive(Debug, Clone, Default)]
pub struct FirstHandshakes {
    waiting: BTreeMap<WgPublicKey, Waiting>,
    /// Those that wait for their turn, in order.
    queue: VecDeque<WgPublicKey>,
    /// Those that have it, and until when.
    turns: BTreeMap<WgPublicKey, Instant>,
    /// When the first and the last came of those that wait for it.
    came: Option<(Instant, Instant)>,
}

#[derive(Debug, Clone)]
struct Waiting {
    next: Step,
    at: Instant,
    pair: Pair,
    renewals: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Waits for its turn.
    Turn,
    Poke,
    Renew,
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Peers to send a packet to through the tunnel.
    pub poke: Vec<WgPublicKey>,
    /// Peers to take away and add again ([`renewals`]).
    pub renew: Vec<WgPublicKey>,
}

impl FirstHandshakes {
    /// The kernel of the host with the record `own` has new peers, the hosts with these records.
    pub fn programmed<'a>(
        &mut self,
        own: &Record,
        others: impl IntoIterator<Item = &'a Record>,
        now: Instant,
    ) {
        // From here on round the ring of keys, so that where all start together not all begin with the same ones.
        let (before, after): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|other| other.key <= own.key);
        for other in after.into_iter().chain(before) {
            if let Some(lane) = other.lanes.first() {
                self.wait(lane.public_key, Pair::of(own, other), now);
            }
        }
    }

    fn wait(&mut self, key: WgPublicKey, pair: Pair, now: Instant) {
        let renewals = self.waiting.get(&key).map_or(0, |waiting| waiting.renewals);
        let first = if pair.leads { now } else { now + SECOND };
        let next = if pair.together && renewals == 0 { Step::Turn } else { Step::Poke };
        if next == Step::Turn {
            self.queue.push_back(key);
            let (_, last) = self.came.get_or_insert((now, now));
            *last = now;
        }
        self.waiting.insert(key, Waiting { next, at: first, pair, renewals });
    }

    /// Until when nobody is given a turn.
    fn rush(&self) -> Option<Instant> {
        let (first, last) = self.came.filter(|_| self.queue.len() > AT_ONCE)?;
        Some((last + CALM.0).min(first + CALM.1))
    }

    /// Gives turns to as many as may have one.
    fn give_turns(&mut self, now: Instant) {
        self.turns.retain(|_, until| *until > now);
        if self.rush().is_some_and(|until| until > now) {
            return;
        }
        while self.turns.len() < AT_ONCE
            && let Some(key) = self.queue.pop_front()
        {
            if let Some(waiting) = self.waiting.get_mut(&key).filter(|w| w.next == Step::Turn) {
                waiting.next = Step::Poke;
                self.turns.insert(key, now + TURN);
            }
        }
        self.came.take_if(|_| self.queue.is_empty());
    }

    /// Takes in what the kernel held at `now`: pairs with a handshake are done.
    pub fn observe(&mut self, peers: &BTreeMap<WgPublicKey, ObservedPeer>, now: Instant) {
        self.waiting.retain(|key, waiting| {
            let Some(peer) = peers.get(key).filter(|peer| peer.last_handshake.is_none()) else {
                return false;
            };
            // The kernel had a packet for it before it was its turn.
            if waiting.next == Step::Turn && peer.tx_bytes > 0 {
                (waiting.next, waiting.at) = (Step::Renew, now + PATIENCE);
            }
            true
        });
        self.turns.retain(|key, _| self.waiting.contains_key(key));
        let waits = |key: &WgPublicKey| self.waiting.get(key).is_some_and(|w| w.next == Step::Turn);
        self.queue.retain(waits);
    }

    /// When [`FirstHandshakes::due`] is to be asked next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let turn = if self.turns.len() < AT_ONCE {
            self.queue.iter().filter_map(|key| self.waiting.get(key)).map(|w| w.at).min()
        } else {
            self.turns.values().min().copied().filter(|_| !self.queue.is_empty())
        };
        let turn = turn.max(self.rush());
        let others = self.waiting.values().filter(|waiting| waiting.next != Step::Turn);
        others.map(|waiting| waiting.at).chain(turn).min()
    }

    /// What is due at `now`.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.give_turns(now);
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let short = FOR_EACH.saturating_mul(waiting).saturating_add(SHORT_PATIENCE).min(PATIENCE);
        self.waiting.retain(|key, waiting| {
            if waiting.at > now {
                return true;
            }
            match waiting.next {
                Step::Turn => true,
                Step::Poke => {
                    due.poke.push(*key);
                    waiting.next = Step::Renew;
                    // The side that follows leaves the first renewal to the one that leads.
                    let Pair { leads, together } = waiting.pair;
                    let (patience, doublings, renewals) = match together {
                        true => (PATIENCE, waiting.renewals.min(1), RENEWALS_TOGETHER),
                        false => (short, waiting.renewals, RENEWALS),
                    };
                    let patience = patience * 2_u32.pow(doublings);
                    waiting.at = now + if leads { patience } else { patience * 2 };
                    waiting.renewals < renewals
                }
                Step::Renew => {
                    due.renew.push(*key);
                    waiting.renewals += 1;
                    // `programmed` comes before that, or the peer had its handshake and is left alone.
                    waiting.next = Step::Poke;
                    waiting.at = now + PATIENCE;
                    true
                }
            }
        });
        due
    }
}

/// The removals that make those of `keys` new at the next diff that have had no handshake until now
/// and are given an endpoint by the plan; one that was learned would be lost.
#[must_use]
pub fn renewals(
    desired: &Desired,
    observed: &Observed,
    keys: &BTreeSet<WgPublicKey>,
) -> Vec<Change> {
    let Some(device) = &desired.device else { return Vec::new() };
    let silent = |key: &WgPublicKey| {
        observed.peers.get(key).is_some_and(|peer| peer.last_handshake.is_none())
    };
    let placed =
        |key: &WgPublicKey| desired.peers.get(key).is_some_and(|peer| peer.endpoint.is_some());
    keys.iter()
        .filter(|key| placed(key) && silent(key))
        .map(|key| Change::RemovePeer { device: device.name.clone(), public_key: *key })
        .collect()
}

#[cfg(test)]
mod tests {
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
        BTreeMap::from([(
            KEY,
            ObservedPeer { last_handshake: handshake, ..ObservedPeer::default() },
        )])
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
        let tried =
            BTreeMap::from([(KEY, ObservedPeer { tx_bytes: 148, ..ObservedPeer::default() })]);
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
}
