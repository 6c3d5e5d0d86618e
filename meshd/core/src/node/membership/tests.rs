//! Members that lie, and members that die.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foca::{Header, Message};
use meshd_proto::wire;
use prost::Message as _;

use super::{packet::id_to_wire, watching::CALM, *};
use crate::node::fixture::{self, Origin};

const LIAR: u64 = 1;
const VICTIM: u64 = 2;
const US: u64 = 0;

fn id(i: u64, generation: u64) -> SwimId {
    SwimId { node: fixture::key(i).hash(), generation }
}

fn record(i: u64, generation: u64) -> Arc<Record> {
    let mut record = (*fixture::record(i, &format!("n{i}"), generation)).clone();
    record.generation = generation;
    Arc::new(record)
}

/// Members that know one another and a network without loss, in virtual time.
struct World {
    now: Instant,
    members: Vec<Membership>,
    dead: BTreeSet<u64>,
    largest: usize,
    renewals: u32,
}

impl World {
    fn new(count: u64) -> Self {
        let now = Origin::default().now().mono;
        let mut rng = fixture::rng();
        let members = (0..count)
            .map(|i| {
                let mut one = Membership::new(&fixture::key(i), 1, Profile::Lan, &mut rng, now);
                (0..count).for_each(|other| one.admit(&record(other, 1), true, now));
                one
            })
            .collect();
        let mut world = Self { now, members, dead: BTreeSet::new(), largest: 0, renewals: 0 };
        world.run(Duration::from_secs(3));
        world
    }

    fn deliver(&mut self) {
        loop {
            let mut any = false;
            for from in 0..self.members.len() {
                while let Some((to, bytes)) = self.members[from].poll_send() {
                    any = true;
                    self.largest = self.largest.max(bytes.len());
                    let lost = |i: usize| self.dead.contains(&(i as u64));
                    let to = (0..self.members.len()).find(|i| fixture::key(*i as u64) == to);
                    if let Some(to) = to.filter(|to| !lost(from) && !lost(*to)) {
                        let key = fixture::key(from as u64);
                        let _ = self.members[to].handle_packet(&key, &bytes, self.now);
                    }
                }
            }
            if !any {
                return;
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.deliver();
            let next = self.members.iter().filter_map(|m| m.next_timeout()).map(|t| t.0).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            let now = self.now;
            for member in &mut self.members {
                member.handle_timeout(now);
                if member.take_renewal(now) {
                    self.renewals += 1;
                    member.set_generation(member.own.generation + 1, now);
                }
            }
        }
        self.now = end;
    }

    fn says(&mut self, update: Member<SwimId>) -> Result<(), Refusal> {
        self.sends(Message::Gossip, vec![update])
    }

    /// The liar sends us a packet.
    fn sends(
        &mut self,
        message: Message<SwimId>,
        updates: Vec<Member<SwimId>>,
    ) -> Result<(), Refusal> {
        let us = self.members[US as usize].own;
        let header = Header { src: id(LIAR, 1), src_incarnation: 0, dst: us, message };
        let bytes = Packet { header, updates }.to_wire();
        self.members[US as usize].handle_packet(&fixture::key(LIAR), &bytes, self.now)
    }

    fn sees(&self, observer: u64, member: u64) -> Liveness {
        self.members[observer as usize].liveness(&fixture::key(member)).unwrap().0
    }

    fn counted(&mut self, code: Code) -> u64 {
        self.members[US as usize].take_refusals().get(&code).copied().unwrap_or(0)
    }
}

#[test]
fn a_third_partys_down_is_a_doubt_that_the_victim_ends() {
    let mut world = World::new(5);
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive);
    world.now += Duration::from_secs(2); // Nobody heard anybody meanwhile.
    world.says(Member::down(id(VICTIM, 1))).unwrap();
    assert_eq!(world.counted(Code::SwimHearsayDown), 1);
    assert_eq!(world.sees(US, VICTIM), Liveness::Suspect);
    world.run(Duration::from_millis(100));
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive);
    for _ in 0..100 {
        world.says(Member::down(id(VICTIM, 1))).unwrap();
        world.run(Duration::from_millis(100));
        assert_ne!(world.sees(US, VICTIM), Liveness::Down);
    }
}

#[test]
fn invented_members_leave_nothing_behind() {
    let mut world = World::new(3);
    for first in (0..20_000).step_by(20) {
        let invented = (first..first + 20).map(|i| Member::alive(id(1_000_000 + i, 1))).collect();
        world.sends(Message::Gossip, invented).unwrap();
    }
    assert_eq!(world.counted(Code::SwimUnknownMember), 20_000);
    let us = &world.members[US as usize];
    assert_eq!(us.peers.len(), 2);
    assert_eq!(us.foca.iter_membership_state().count(), 2);
    assert!(us.timers.len() < 20);
}

#[test]
fn a_generation_is_believed_only_from_the_member_itself() {
    let mut world = World::new(4);
    for state in [State::Alive, State::Suspect, State::Down] {
        world.says(Member::new(id(VICTIM, u64::MAX), 0, state)).unwrap();
    }
    assert_eq!(world.counted(Code::SwimGeneration), 3);
    world.run(Duration::from_secs(20));
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive);
    assert_eq!(world.members[US as usize].peers[&id(VICTIM, 1).node].generation, 1);

    // Its own word is enough, its signature too; an earlier start's packet is late.
    let now = world.now;
    world.members[VICTIM as usize].set_generation(7, now);
    world.run(Duration::from_secs(5));
    assert_eq!(world.members[US as usize].peers[&id(VICTIM, 1).node].generation, 7);
    world.members[US as usize].admit(&record(3, 9), false, now);
    assert_eq!(world.members[US as usize].peers[&id(3, 1).node].generation, 9);
}

#[test]
fn lies_about_us_cannot_make_us_renew_more_often_than_the_limit() {
    let mut world = World::new(3);
    for _ in 0..600 {
        let own = world.members[US as usize].own;
        for state in [State::Down, State::Suspect] {
            world.says(Member::new(own, limits::SWIM_INCARNATION, state)).unwrap();
        }
        world.sends(Message::TurnUndead, Vec::new()).unwrap();
        world.run(Duration::from_millis(100));
    }
    assert!((2..=7).contains(&world.renewals), "{}", world.renewals);
    assert_eq!(world.sees(VICTIM, US), Liveness::Alive);
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive);
}

#[test]
fn each_lie_is_refused_with_its_code() {
    let mut world = World::new(3);
    let us = world.members[US as usize].own;
    let now = world.now;
    let mut send = |from: u64, src: SwimId, incarnation, dst, message| {
        let header = Header { src, src_incarnation: incarnation, dst, message };
        let mut packet = Packet { header, updates: Vec::new() }.to_wire();
        let mut packet = wire::SwimPacket::decode(&mut packet).unwrap();
        (packet.source, packet.destination) = (id_to_wire(&src), id_to_wire(&dst));
        let bytes = packet.encode_to_vec();
        let refused = world.members[US as usize].handle_packet(&fixture::key(from), &bytes, now);
        refused.err().map(|refusal| refusal.code)
    };
    let ping = || Message::Ping(1);
    assert_eq!(send(LIAR, id(LIAR, 1), 0, us, ping()), None);
    assert_eq!(send(LIAR, id(VICTIM, 1), 0, us, ping()), Some(Code::SwimSpoofedSource));
    assert_eq!(send(99, id(99, 1), 0, us, ping()), Some(Code::SwimUnknownMember));
    assert_eq!(send(LIAR, id(LIAR, 0), 0, us, ping()), Some(Code::SwimGeneration));
    assert_eq!(send(LIAR, id(LIAR, 1), 1001, us, ping()), Some(Code::SwimIncarnation));
    assert_eq!(send(LIAR, id(LIAR, 1), 0, id(VICTIM, 1), ping()), Some(Code::Malformed));
    let circle = Message::PingReq { target: us, probe_number: 1 };
    assert_eq!(send(LIAR, id(LIAR, 1), 0, us, circle), Some(Code::Malformed));

    world.says(Member::new(id(VICTIM, 1), 1001, State::Alive)).unwrap();
    assert_eq!(world.counted(Code::SwimIncarnation), 1);
    let liar = fixture::key(LIAR);
    let us = &mut world.members[US as usize];
    for junk in [&[][..], &[0xff; 40], &[0; limits::SWIM_PACKET + 1]] {
        assert!(us.handle_packet(&liar, junk, now).is_err());
    }
}

#[test]
fn a_crash_is_seen_within_seconds_and_being_heard_is_enough_to_be_back() {
    let mut world = World::new(8);
    world.dead.insert(VICTIM);
    let crashed = world.now;
    while (0..8).any(|i| i != VICTIM && world.sees(i, VICTIM) != Liveness::Down) {
        world.run(Duration::from_millis(250));
        assert!(world.now - crashed < Duration::from_secs(5), "not seen in 5 s");
    }
    world.dead.clear();
    let back = world.now;
    world.members[US as usize].heard(&fixture::key(VICTIM), back);
    world.members[VICTIM as usize].heard(&fixture::key(US), back);
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive);
    assert_eq!(world.sees(VICTIM, US), Liveness::Alive);
    world.run(Duration::from_secs(20));
    assert_eq!(world.sees(US, VICTIM), Liveness::Alive, "and stays so");
    // The others hear it themselves, or of its next start.
    assert!((LIAR..8).filter(|i| *i != VICTIM).all(|i| world.sees(i, VICTIM) == Liveness::Down));
    let now = world.now;
    for (i, member) in world.members.iter_mut().enumerate().filter(|(i, _)| *i as u64 != VICTIM) {
        member.admit(&record(VICTIM, 2), true, now);
        assert_eq!(member.liveness(&fixture::key(VICTIM)).unwrap().0, Liveness::Alive, "{i}");
    }
}

#[test]
fn a_restored_member_is_suspect_until_heard_and_down_if_it_is_not() {
    let mut world = World::new(3);
    let (now, us) = (world.now, US as usize);
    world.members[us].admit(&record(50, 1), false, now);
    assert_eq!(world.sees(US, 50), Liveness::Suspect);
    world.run(Duration::from_secs(8));
    assert_eq!(world.sees(US, 50), Liveness::Down);
    let now = world.now;
    world.members[us].heard(&fixture::key(50), now);
    assert_eq!(world.sees(US, 50), Liveness::Alive);

    let mut gone = (*record(50, 1)).clone();
    gone.left = true;
    world.members[us].admit(&gone, true, now);
    assert_eq!(world.sees(US, 50), Liveness::Left);
    world.members[us].heard(&fixture::key(50), now);
    assert_eq!(world.sees(US, 50), Liveness::Left);
    world.members[us].admit(&record(50, 2), true, now);
    assert_eq!(world.sees(US, 50), Liveness::Alive);
}

#[test]
fn no_packet_is_larger_than_a_datagram() {
    // As many as may be told about.
    let mut world = World::new(9);
    // The longest generation there is, and as much to tell as possible.
    let now = world.now;
    for (i, member) in world.members.iter_mut().enumerate() {
        member.set_generation(u64::MAX - i as u64, now);
    }
    world.run(Duration::from_secs(5));
    assert!(world.largest > 200 && world.largest <= limits::SWIM_PACKET, "{}", world.largest);
}

/// One that watches neighbours only, and what it does next, in order: whom it greets, and whom it asks by a packet.
struct Quiet {
    now: Instant,
    us: Membership,
}

impl Quiet {
    fn new() -> Self {
        let now = Origin::default().now().mono;
        let mut us = Membership::new(&fixture::key(US), 1, Profile::Lan, &mut fixture::rng(), now);
        (1..40).for_each(|other| us.admit(&record(other, 1), true, now));
        assert_eq!(us.neighbours().count(), 0, "more may come");
        let now = now + CALM.0;
        us.handle_timeout(now);
        Self { now, us }
    }

    /// All that it does within `time` for `of`: true for a greeting.
    fn within(&mut self, time: Duration, of: &NodeKey) -> Vec<bool> {
        let (end, mut all) = (self.now + time, Vec::new());
        while let Some((at, _)) = self.us.next_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.us.handle_timeout(self.now);
            let greeted = std::iter::from_fn(|| self.us.poll_greeting());
            all.extend(greeted.filter(|key| key == of).map(|_| true));
            let asked = std::iter::from_fn(|| self.us.poll_send());
            all.extend(asked.filter(|(key, _)| key == of).map(|_| false));
        }
        self.now = end;
        all
    }
}

#[test]
fn those_who_start_with_the_mesh_are_counted_in_when_no_more_come_and_others_at_once() {
    let mut now = Origin::default().now().mono;
    let mut us = Membership::new(&fixture::key(US), 1, Profile::Lan, &mut fixture::rng(), now);
    let begin = now;
    // They never stop coming.
    for other in 1.. {
        us.admit(&record(other, 1), true, now);
        us.handle_timeout(now);
        if us.neighbours().count() > 0 {
            break;
        }
        now += CALM.0 / 10;
    }
    assert_eq!(now - begin, CALM.1);
    // One that was there before all that.
    let near = |us: &Membership| us.neighbours().count() + us.members(Liveness::Suspect).count();
    let before = near(&us);
    (1_000..1_010).for_each(|other| us.admit(&record(other, 1), false, now));
    assert!(near(&us) > before);
}

#[test]
fn a_quiet_neighbour_is_greeted_and_only_one_that_does_not_acknowledge_is_asked() {
    let mut quiet = Quiet::new();
    let neighbours: Vec<_> = quiet.us.neighbours().collect();
    let Some((near, others)) = neighbours.split_first() else { panic!("nobody is near") };
    let period = Duration::from_secs(1);
    // A tenth of a period, in which all others are heard.
    let tenth = |quiet: &mut Quiet| {
        others.iter().for_each(|key| quiet.us.heard(key, quiet.now));
        quiet.within(period / 10, near)
    };
    quiet.us.heard(near, quiet.now);
    let mut said = Vec::new();
    for _ in 0..100 {
        let now = tenth(&mut quiet);
        if now.contains(&true) {
            quiet.us.heard(near, quiet.now);
        }
        said.extend(now);
    }
    let greeted = said.iter().filter(|greeting| **greeting).count();
    assert!((3..=4).contains(&greeted), "in ten periods: {said:?}");
    assert!(said.len() - greeted <= 4, "SWIM's own probes are rare: {said:?}");
    assert_eq!(quiet.us.liveness(near).map(|(liveness, _)| liveness), Some(Liveness::Alive));

    let said: Vec<_> = (0..50).flat_map(|_| tenth(&mut quiet)).collect();
    let Some(first) = said.iter().position(|greeting| *greeting) else { panic!("{said:?}") };
    let after = &said[first + 1..];
    assert!(after.len() >= 8 && after.iter().all(|greeting| !greeting), "{said:?}");
    assert_eq!(quiet.us.liveness(near).map(|(liveness, _)| liveness), Some(Liveness::Down));
}

#[test]
fn a_neighbour_that_was_never_heard_is_not_waited_for() {
    let mut quiet = Quiet::new();
    let neighbours: Vec<_> = quiet.us.neighbours().collect();
    quiet.within(Duration::from_secs(6), &fixture::key(VICTIM));
    for key in neighbours {
        assert_eq!(quiet.us.liveness(&key).map(|(liveness, _)| liveness), Some(Liveness::Down));
    }
}

#[test]
fn a_neighbours_word_that_a_dead_one_lives_does_not_end_the_questions() {
    let mut quiet = Quiet::new();
    let neighbours: Vec<_> = quiet.us.neighbours().collect();
    let Some((dead, others)) = neighbours.split_first() else { panic!("nobody is near") };
    let Some(liar) = others.first() else { panic!("nobody else is near") };
    neighbours.iter().for_each(|key| quiet.us.heard(key, quiet.now));
    let id = |key: &NodeKey| SwimId { node: key.hash(), generation: 1 };
    for round in 1..100 {
        others.iter().for_each(|key| quiet.us.heard(key, quiet.now));
        let own = quiet.us.own;
        let header =
            Header { src: id(liar), src_incarnation: 0, dst: own, message: Message::Gossip };
        let lie = Member::new(id(dead), round, State::Alive);
        let bytes = Packet { header, updates: vec![lie] }.to_wire();
        quiet.us.handle_packet(liar, &bytes, quiet.now).unwrap();
        quiet.within(Duration::from_millis(50), dead);
    }
    assert_eq!(quiet.us.liveness(dead).map(|(liveness, _)| liveness), Some(Liveness::Down));
}

#[test]
fn who_was_heard_since_foca_probed_it_is_not_suspected_when_foca_judges() {
    let mut quiet = Quiet::new();
    let neighbours: Vec<_> = quiet.us.neighbours().collect();
    // Nobody ever answers a probe of SWIM; all are heard all the time.
    for _ in 0..600 {
        neighbours.iter().for_each(|key| quiet.us.heard(key, quiet.now));
        quiet.within(Duration::from_millis(100), &fixture::key(VICTIM));
        for key in &neighbours {
            let liveness = quiet.us.liveness(key).map(|(liveness, _)| liveness);
            assert_eq!(liveness, Some(Liveness::Alive), "{key} at {:?}", quiet.now);
        }
    }
    let doubted = std::iter::from_fn(|| quiet.us.poll_change());
    let doubted: Vec<_> = doubted.filter(|(_, liveness)| *liveness == Liveness::Suspect).collect();
    assert!(doubted.is_empty(), "{doubted:?}");
}
