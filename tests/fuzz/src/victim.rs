//! The member under test, and what must hold of it after whatever it is sent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use meshd_core::{
    limits,
    node::{Node, NodeConfig, Output, SharedCache, VersionBlock},
    now::Now,
    trust::{self, Record, VerifyCache},
};
use meshd_proto::{BootId, NodeKey, wire};
use prost::Message;

use crate::{
    record,
    world::{Member, VERSION, VICTIM, World, start, world},
};

/// More outputs of one call than this are a flood of its own making.
const OUTPUTS: usize = 5_000;
/// What a member may ask for at once, and some more.
const BYTES: usize = 20 << 20;

/// A node with three neighbours, connected to the one that lies.
pub struct Victim {
    pub node: Node,
    pub now: Now,
    world: &'static World,
    believed: BTreeMap<NodeKey, Arc<Record>>,
    /// Exchanges that it opened.
    pub exchanges: Vec<u64>,
    next_version: u64,
    /// Members that it was given.
    known: usize,
}

impl Victim {
    pub fn new() -> Self {
        Self::among(&[])
    }

    /// A node of a mesh so large that it watches its neighbours only.
    pub fn in_a_crowd() -> Self {
        Self::among(&world().crowd)
    }

    fn among(crowd: &[Member]) -> Self {
        let (world, now) = (world(), start());
        let own = world.victim();
        let versions = VersionBlock { next: VERSION, end: VERSION + 64 };
        let (identity, anchors) = (own.identity.clone(), world.anchors.clone());
        let config = NodeConfig::default();
        let mut node =
            Node::new(config, identity, anchors, [3; 32], versions, BootId([2; 16]), now);
        node.share_cache(of_the_beginning());
        for (place, member) in world.members.iter().enumerate() {
            if place != VICTIM {
                node.restore(&member.signed.encode_to_vec(), now).expect("a good record");
            }
        }
        for member in crowd {
            node.restore(&member.signed.encode_to_vec(), now).expect("a good record");
        }
        node.update_self(own.draft.clone(), now);
        for member in &world.members {
            if member.key() != own.key() {
                node.handle_connected(member.key(), member.draft.endpoints[0], false, now);
            }
        }
        // What the fuzzer sends is verified anew for each input.
        node.share_cache(Arc::new(Mutex::new(VerifyCache::new(64))));
        let believed = node.directory().iter().map(|record| (record.key, record.clone())).collect();
        let next_version = VERSION + 64;
        let known = world.members.len() + crowd.len();
        let exchanges = Vec::new();
        let mut victim = Self { node, now, world, believed, exchanges, next_version, known };
        victim.check();
        victim
    }

    /// Lets time pass, timers included.
    pub fn wait(&mut self, by: Duration) {
        let end = self.now.after(by).mono;
        let mut at_once = 0;
        for _ in 0..200 {
            let Some((at, why)) = self.node.poll_timeout().filter(|(at, _)| *at <= end) else {
                break;
            };
            at_once = if at <= self.now.mono { at_once + 1 } else { 0 };
            assert!(at_once < 50, "a busy loop: {why:?}");
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            self.node.handle_timeout(self.now);
            self.check();
        }
        self.now = self.now.after(end.saturating_duration_since(self.now.mono));
    }

    /// To be called after each call.
    pub fn check(&mut self) {
        self.check_outputs();
        let anchors = self.node.anchors();
        for held in self.node.directory().iter() {
            // Its own it keeps: the kernel is planned from it.
            let out = anchors.revocation(&held.key).is_some() && held.key != self.node.key();
            assert!(!out, "{} was revoked", held.key);
            let before = self.believed.get(&held.key);
            if before.is_some_and(|before| Arc::ptr_eq(before, held)) {
                continue;
            }
            let again = trust::authenticate(&held.signed, anchors);
            assert_eq!(again.as_ref().ok(), Some(held), "an unverified record is held");
            record::assert_lawful(self.world, held);
            if let Some(before) = before {
                assert!(held.version >= before.version, "an older record is held");
            }
            self.believed.insert(held.key, held.clone());
        }
        assert!(self.node.directory().len() <= self.known + 3);
    }

    fn check_outputs(&mut self) {
        let (mut count, mut bytes) = (0, 0);
        while let Some(output) = self.node.poll_output() {
            count += 1;
            assert!(count < OUTPUTS, "more and more outputs");
            bytes += self.check_output(output);
            assert!(bytes < BYTES, "{bytes} bytes of output");
        }
    }

    fn check_output(&mut self, output: Output) -> usize {
        match output {
            Output::Datagram { bytes, .. } => {
                assert!(bytes.len() <= limits::SWIM_PACKET);
                let packet = wire::SwimPacket::decode(&bytes[..]).expect("a SWIM packet");
                assert!(packet.source_incarnation <= u32::from(limits::SWIM_INCARNATION) + 1);
                bytes.len()
            }
            Output::Frame { bytes, .. } => {
                assert!(bytes.len() <= limits::FRAME, "a frame of {} bytes", bytes.len());
                let frame = wire::Frame::decode(&bytes[..]).expect("a frame");
                match frame.body.expect("a body") {
                    wire::frame::Body::SyncRoot(root) => self.exchanges.push(root.exchange),
                    wire::frame::Body::Push(push) => {
                        // Its own it tells though its issuer may be none any more: others refuse it by themselves.
                        let own = &self.world.victim().key().0;
                        let others = push.records.iter().filter(|record| {
                            let payload = wire::NodeRecord::decode(&record.payload[..]);
                            payload.is_ok_and(|payload| payload.identity_key[..] != own[..])
                        });
                        for record in others {
                            let verdict = trust::authenticate(record, self.node.anchors());
                            let held = verdict.is_ok();
                            assert!(held, "an unverified record is passed on: {verdict:?}");
                        }
                        for signed in &push.reports {
                            let report = trust::Report::read(&signed.payload);
                            let mesh = self.world.mesh_id();
                            let verdict = report.and_then(|report| report.verify(signed, mesh));
                            assert!(verdict.is_ok(), "an unverified report is passed on");
                        }
                    }
                    _ => {}
                }
                bytes.len()
            }
            Output::Store { bytes, key } => {
                let signed = wire::SignedRecord::decode(&bytes[..]).expect("a record");
                let payload = wire::NodeRecord::decode(&signed.payload[..]).expect("its payload");
                assert_eq!(payload.identity_key[..], key.0);
                bytes.len()
            }
            Output::StoreBundle(bytes) => {
                let bundle = wire::SignedBundle::decode(&bytes[..]).expect("a bundle");
                assert_eq!(bundle, *self.node.anchors().signed_bundle());
                bytes.len()
            }
            Output::StoreRevocations(bytes) => {
                let mut again = self.node.anchors().clone();
                again.restore_revocations(&bytes).expect("what it stores");
                assert_eq!(again.revocations_hash(), self.node.anchors().revocations_hash());
                bytes.len()
            }
            Output::StoreTime(bytes) => {
                let mut again = self.node.anchors().clone();
                again.restore_time(&bytes).expect("what it stores");
                bytes.len()
            }
            Output::Renewed { certificate } => {
                let own = &self.world.victim().identity.certificate;
                assert_eq!((certificate.key, &certificate.name), (own.key, &own.name));
                0
            }
            Output::ReserveVersions { at_least } => {
                let next = self.next_version.max(at_least);
                self.next_version = next.saturating_add(64);
                let versions = VersionBlock { next, end: self.next_version };
                self.node.handle_versions(versions, self.now);
                0
            }
            Output::EnrolForward { request, .. } => {
                assert!(request.len() <= limits::ENROL_MESSAGE);
                request.len()
            }
            Output::Event(event) => {
                assert!(!event.text.chars().any(char::is_control), "{:?}", event.text);
                assert!(event.text.len() < 4_096, "an event of {} bytes", event.text.len());
                event.text.len()
            }
            Output::Greet { to } => {
                self.node.handle_acknowledged(to, self.now);
                0
            }
            Output::Left { .. } => panic!("it leaves by another's word"),
            _ => 0,
        }
    }
}

impl Default for Victim {
    fn default() -> Self {
        Self::new()
    }
}

/// Verdicts on the records of the beginning, which every input needs again.
fn of_the_beginning() -> SharedCache {
    static CACHE: OnceLock<SharedCache> = OnceLock::new();
    CACHE.get_or_init(|| Arc::new(Mutex::new(VerifyCache::new(128)))).clone()
}
