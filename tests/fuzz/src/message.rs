//! What a member can send, right in form and wrong in content.

use arbitrary::Arbitrary;
use bytes::Bytes;
use meshd_core::trust::signing;
use meshd_proto::{NodeKey, wire};
use prost::Message;
use sha2::{Digest, Sha256};
use wire::frame::Body;

use crate::{
    authority::{By, bundle, revocation, time},
    record::{self, Change},
    victim::Victim,
    world::World,
};

/// Whom something is about.
#[derive(Debug, Clone, Arbitrary)]
pub enum Who {
    Member(u8),
    Invented(u8),
    Raw(Vec<u8>),
}

impl Who {
    fn key(&self, world: &World) -> Bytes {
        match self {
            Self::Member(number) => Bytes::copy_from_slice(&world.any(*number).key().0),
            Self::Invented(number) => Sha256::digest([*number]).to_vec().into(),
            Self::Raw(bytes) => bytes.clone().into(),
        }
    }

    fn hash(&self, world: &World) -> Bytes {
        match self {
            Self::Raw(bytes) => bytes.clone().into(),
            _ => match NodeKey::try_from(&self.key(world)[..]) {
                Ok(key) => key.hash().0.to_vec().into(),
                Err(_) => Bytes::new(),
            },
        }
    }
}

/// A record as another member names it.
#[derive(Debug, Clone, Arbitrary)]
pub struct Entry {
    who: Who,
    version: u64,
    hash: Option<Vec<u8>>,
}

impl Entry {
    fn to_wire(&self, world: &World) -> wire::RecordKey {
        let hash = self.hash.clone().unwrap_or_else(|| vec![1; 8]);
        wire::RecordKey {
            identity_key: self.who.key(world),
            version: self.version,
            payload_hash: hash.into(),
        }
    }
}

/// An update in a SWIM packet.
#[derive(Debug, Clone, Arbitrary)]
pub struct Update {
    who: Who,
    generation: Option<u64>,
    incarnation: u32,
    state: u8,
}

/// A SWIM packet.
#[derive(Debug, Clone, Arbitrary)]
pub struct Swim {
    /// Another than the sender.
    source: Option<Who>,
    generation: Option<u64>,
    incarnation: u16,
    destination: Option<Who>,
    kind: u8,
    number: u8,
    subject: Option<Who>,
    updates: Vec<Update>,
}

/// One thing that happens to the victim.
#[derive(Debug, Clone, Arbitrary)]
pub enum Step {
    Push(Vec<Vec<Change>>),
    OthersRecord(u8),
    Bundle {
        by: By,
        version: u64,
        ours: bool,
        foreign: bool,
        retiring: bool,
    },
    Revocation {
        by: By,
        of_root: bool,
        who: u8,
        at: i64,
        until: i64,
    },
    Time {
        by: By,
        later: i32,
    },
    Announce(Vec<Entry>),
    Pull(Vec<Who>),
    /// Of anybody by anybody, with what differs from the generations that both have.
    Report {
        watched: u8,
        watcher: u8,
        generations: (i8, i8),
        state: u8,
        number: u8,
        altered: Option<u16>,
    },
    PullReports(Vec<u8>),
    SyncRoot {
        exchange: u64,
        same: bool,
        bundle: u64,
        revocations: Vec<u8>,
        time: i64,
        reports: Vec<u8>,
    },
    SyncBuckets {
        exchange: u8,
        hashes: Vec<u8>,
        whole: bool,
        bundle: u64,
        time: i64,
        reports: Vec<(u8, Vec<u8>)>,
    },
    SyncEntries {
        exchange: u8,
        buckets: Vec<u32>,
        entries: Vec<Entry>,
        answer: bool,
    },
    SyncDone {
        exchange: u8,
    },
    Hello {
        address: Vec<u8>,
        port: u32,
    },
    EnrolForward {
        id: u64,
        request: Vec<u8>,
    },
    EnrolReply {
        id: u64,
        reply: Vec<u8>,
    },
    Invite {
        payload: Vec<u8>,
        signature: Vec<u8>,
    },
    Frame(Vec<u8>),
    Swim(Swim),
    Datagram(Vec<u8>),
    /// The next messages come from another.
    From(u8),
    Disconnected(u8),
    Connected(u8),
    Unreachable(u8),
    Wait(u16),
    WaitLong(u8),
    ClockSet(i32),
    RenewNow,
}

fn key_of(world: &World, number: u8) -> Bytes {
    Bytes::copy_from_slice(&world.somebody(number).key().0)
}

/// A report by the watcher's key, one bit of which may be another.
fn report(
    world: &World,
    victim: &Victim,
    (watched, watcher, generations, state, number): (u8, u8, (i8, i8), u8, u8),
    altered: Option<u16>,
) -> wire::SignedReport {
    let (watched, watcher) = (world.somebody(watched), world.somebody(watcher));
    let generation = |key: &NodeKey, off: i8| {
        let held = victim.node.directory().get(key).map_or(1, |record| record.generation);
        held.wrapping_add_signed(i64::from(off))
    };
    let report = wire::Report {
        watched: Bytes::copy_from_slice(&watched.key().0),
        generation: generation(&watched.key(), generations.0),
        state: i32::from(state % 5),
        watcher: Bytes::copy_from_slice(&watcher.key().0),
        watcher_generation: generation(&watcher.key(), generations.1),
        number: u64::from(number),
    };
    let mut payload = report.encode_to_vec();
    let kind = signing::Kind::Report;
    let signature = watcher.identity.key.sign(kind, world.mesh_id(), &payload).to_vec();
    if let Some(at) = altered.map(usize::from) {
        let place = at % payload.len();
        payload[place] ^= 1 << (at / payload.len() % 8);
    }
    wire::SignedReport { payload: payload.into(), signature: signature.into() }
}

/// Does all of it to a victim, which is checked after each.
pub fn play(world: &World, victim: &mut Victim, steps: &[Step]) {
    let mut from = world.liar().key();
    for step in steps.iter().take(24) {
        if let Some(body) = body(world, victim, step) {
            let frame = wire::Frame { body: Some(body) }.encode_to_vec();
            victim.node.handle_frame(from, &frame, victim.now);
        } else {
            happen(world, victim, step, &mut from);
        }
        victim.check();
    }
    victim.wait(std::time::Duration::from_secs(2));
    victim.check();
}

fn happen(world: &World, victim: &mut Victim, step: &Step, from: &mut NodeKey) {
    let now = victim.now;
    let own = world.victim().key();
    match step {
        Step::Frame(bytes) => victim.node.handle_frame(*from, bytes, now),
        Step::Datagram(bytes) => victim.node.handle_datagram(*from, bytes, now),
        Step::Swim(packet) => {
            let packet = swim(world, packet, from);
            victim.node.handle_datagram(*from, &packet.encode_to_vec(), now);
        }
        Step::From(number) => *from = world.any(*number).key(),
        Step::Disconnected(number) => {
            let key = world.any(*number).key();
            if key != own {
                victim.node.handle_disconnected(key, now);
            }
        }
        Step::Connected(number) => {
            let member = world.any(*number);
            victim.node.handle_connected(member.key(), member.draft.endpoints[0], true, now);
        }
        Step::Unreachable(number) => victim.node.handle_unreachable(world.any(*number).key(), now),
        Step::Wait(millis) => victim.wait(std::time::Duration::from_millis(u64::from(*millis))),
        Step::WaitLong(minutes) => {
            victim.wait(std::time::Duration::from_secs(60 * u64::from(*minutes)));
        }
        Step::ClockSet(by) => victim.now.unix = now.unix.plus(i64::from(*by)),
        Step::RenewNow => victim.node.renew_now(now),
        _ => {}
    }
}

fn body(world: &World, victim: &Victim, step: &Step) -> Option<Body> {
    let push = |push| Some(Body::Push(push));
    let exchange = |place: &u8| {
        let known = &victim.exchanges;
        if known.is_empty() { 1 } else { known[usize::from(*place) % known.len()] }
    };
    match step {
        Step::Push(records) => push(wire::Push {
            records: records.iter().take(8).map(|changes| record::signed(world, changes)).collect(),
            ..Default::default()
        }),
        Step::OthersRecord(number) => push(wire::Push {
            records: vec![world.any(*number).signed.clone()],
            ..Default::default()
        }),
        Step::Bundle { by, version, ours, foreign, retiring } => {
            let bundle = bundle(world, *by, *version, (*ours, *foreign, *retiring));
            push(wire::Push { bundle: Some(bundle), ..Default::default() })
        }
        Step::Revocation { by, of_root, who, at, until } => {
            let revocation = revocation(world, *by, *of_root, *who, (*at, *until));
            push(wire::Push { revocations: vec![revocation], ..Default::default() })
        }
        Step::Time { by, later } => {
            push(wire::Push { time: Some(time(world, *by, *later)), ..Default::default() })
        }
        Step::Announce(entries) => Some(Body::Announce(wire::Announce {
            records: entries.iter().map(|entry| entry.to_wire(world)).collect(),
        })),
        Step::Pull(keys) => Some(Body::Pull(wire::Pull {
            identity_keys: keys.iter().map(|who| who.key(world)).collect(),
            ..Default::default()
        })),
        Step::Report { watched, watcher, generations, state, number, altered } => {
            let about = (*watched, *watcher, *generations, *state, *number);
            push(wire::Push {
                reports: vec![report(world, victim, about, *altered)],
                ..Default::default()
            })
        }
        Step::PullReports(of) => Some(Body::Pull(wire::Pull {
            reports_of: of.iter().map(|number| key_of(world, *number)).collect(),
            ..Default::default()
        })),
        Step::SyncRoot { exchange, same, bundle, revocations, time, reports } => {
            let root = if *same { victim.node.directory().root_hash() } else { [1; 32] };
            Some(Body::SyncRoot(wire::SyncRoot {
                exchange: *exchange,
                root: root.to_vec().into(),
                bundle_version: *bundle,
                records: 4,
                revocations: revocations.clone().into(),
                signer_time: *time,
                reports: reports.clone().into(),
            }))
        }
        Step::SyncBuckets { exchange: place, hashes, whole, bundle, time, reports } => {
            let mut hashes = hashes.clone();
            if *whole {
                hashes.resize(256 * 8, 0);
            }
            Some(Body::SyncBuckets(wire::SyncBuckets {
                exchange: exchange(place),
                hashes: hashes.into(),
                bundle_version: *bundle,
                revocations: Bytes::new(),
                signer_time: *time,
                reports: reports
                    .iter()
                    .map(|(number, hash)| wire::ReportDigest {
                        watched: key_of(world, *number),
                        hash: hash.clone().into(),
                    })
                    .collect(),
            }))
        }
        Step::SyncEntries { exchange: place, buckets, entries, answer } => {
            Some(Body::SyncEntries(wire::SyncEntries {
                exchange: exchange(place),
                buckets: buckets.clone(),
                entries: entries.iter().map(|entry| entry.to_wire(world)).collect(),
                answer: *answer,
            }))
        }
        Step::SyncDone { exchange: place } => {
            Some(Body::SyncDone(wire::SyncDone { exchange: exchange(place) }))
        }
        Step::Hello { address, port } => Some(Body::Hello(wire::Hello {
            observed: Some(wire::Endpoint { address: address.clone().into(), port: *port }),
            software_version: "9".into(),
        })),
        Step::EnrolForward { id, request } => Some(Body::EnrolForward(wire::EnrolForward {
            id: *id,
            request: request.clone().into(),
        })),
        Step::EnrolReply { id, reply } => Some(Body::EnrolForwardReply(wire::EnrolForwardReply {
            id: *id,
            reply: reply.clone().into(),
        })),
        Step::Invite { payload, signature } => Some(Body::SignerInvite(wire::SignerInvite {
            payload: payload.clone().into(),
            signature: signature.clone().into(),
        })),
        _ => None,
    }
}

fn swim(world: &World, plan: &Swim, from: &NodeKey) -> wire::SwimPacket {
    let identity = |hash: Bytes, generation: Option<u64>| wire::SwimIdentity {
        node: hash,
        generation: generation.unwrap_or(1),
    };
    let source = plan.source.as_ref().map(|who| who.hash(world));
    let destination = plan.destination.as_ref().map(|who| who.hash(world));
    let victim = || world.victim().key().hash().0.to_vec().into();
    let update = |update: &Update| wire::SwimMember {
        id: Some(identity(update.who.hash(world), update.generation)),
        incarnation: update.incarnation,
        state: i32::from(update.state % 5),
    };
    wire::SwimPacket {
        source: Some(identity(
            source.unwrap_or_else(|| from.hash().0.to_vec().into()),
            plan.generation,
        )),
        source_incarnation: u32::from(plan.incarnation),
        destination: Some(identity(destination.unwrap_or_else(victim), None)),
        kind: i32::from(plan.kind % 12),
        probe_number: u32::from(plan.number),
        subject: plan.subject.as_ref().map(|who| identity(who.hash(world), None)),
        updates: plan.updates.iter().map(update).collect(),
    }
}
