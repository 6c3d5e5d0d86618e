//! Workloads in this node's record: what is named, how often it changes, and how one moves to another host.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::*;
use crate::node::Unnamed;

const POOL: &str = "10.240.0.0/16@32";

fn pod(number: u32) -> IpNet {
    IpNet::new(std::net::Ipv4Addr::from_bits(0x0af0_0000 + number).into(), 32).unwrap()
}

fn draft(mesh: &TestMesh, node: &Node, prefixes: &[&str], pods: &[u32]) -> RecordDraft {
    let workloads = pods.iter().map(|number| pod(*number)).collect();
    RecordDraft { workloads, ..mesh.draft(node.own.identity(), prefixes) }
}

/// What the record of `node` names now.
fn named(node: &Node) -> Vec<IpNet> {
    node.own_record().map(|record| record.prefixes.clone()).unwrap_or_default()
}

fn at(now: Now, seconds: f64) -> Now {
    Now { mono: now.mono + Duration::from_secs_f64(seconds), ..now }
}

/// The record that `node` published last, as others get it.
fn published(node: &Node) -> wire::SignedRecord {
    node.own.published().unwrap().signed.clone()
}

#[test]
fn workloads_are_named_beside_prefixes_as_far_as_they_are_granted() {
    let (mesh, now) = (TestMesh::new(1), start());
    let mut us = node(&mesh, "us", &["10.244.1.0/24", POOL], now);
    let mut said = draft(&mesh, &us, &["10.244.1.0/24"], &[1, 2]);
    // Within a prefix that is announced as a whole, and granted to nobody.
    said.workloads.extend(
        ["10.244.1.9/32", "10.99.0.1/32", "10.99.0.2/32"].map(|p| p.parse::<IpNet>().unwrap()),
    );
    us.update_self(said, now);
    assert_eq!(named(&us), [pod(1), pod(2), "10.244.1.0/24".parse().unwrap()]);
    let unnamed = Unnamed { not_granted: 2, example: "10.99.0.1/32".parse().ok(), no_room: 0 };
    assert_eq!(*us.unnamed_workloads(), unnamed);
    assert!(us.own_refusals().is_empty(), "they are counted, not listed one by one");
    assert!(us.poll_timeout().is_some());
    assert_eq!(us.counters().refusals.len(), 0);
}

#[test]
fn more_than_a_record_holds_leaves_the_same_ones_out_and_nothing_else() {
    let (mesh, now) = (TestMesh::new(1), start());
    let mut us = node(&mesh, "us", &["10.244.1.0/24", POOL], now);
    let many: Vec<u32> = (100..1_300).collect();
    us.update_self(draft(&mesh, &us, &["10.244.1.0/24"], &many), now);
    let first: BTreeSet<IpNet> = named(&us).into_iter().collect();
    assert_eq!(first.len(), crate::limits::RECORD_PREFIXES);
    assert!(first.contains(&"10.244.1.0/24".parse().unwrap()));
    assert_eq!(us.unnamed_workloads().no_room, 1_200 + 1 - crate::limits::RECORD_PREFIXES);
    // New ones come before those in order, and push none of them out; one that goes makes room for one.
    let more: Vec<u32> = (1..50).chain(101..1_300).collect();
    let later = at(now, 2.0);
    us.update_self(draft(&mesh, &us, &["10.244.1.0/24"], &more), later);
    let second: BTreeSet<IpNet> = named(&us).into_iter().collect();
    assert_eq!(second.len(), crate::limits::RECORD_PREFIXES);
    assert_eq!(first.difference(&second).count(), 1);
    // The same after a restart: its own record tells it what it named.
    let mut again = node(&mesh, "us", &["10.244.1.0/24", POOL], later);
    again.restore(&published(&us).encode_to_vec(), later).unwrap();
    again.update_self(draft(&mesh, &again, &["10.244.1.0/24"], &more), later);
    assert_eq!(named(&again), named(&us));
}

#[test]
fn three_hundred_workloads_in_a_moment_are_a_few_records() {
    let (mesh, now) = (TestMesh::new(1), start());
    let mut us = node(&mesh, "us", &[POOL], now);
    us.update_self(draft(&mesh, &us, &[], &[]), now);
    for count in 1..=300_u32 {
        // A hundred a second.
        let then = at(now, 1.5 + f64::from(count) / 100.0);
        us.update_self(draft(&mesh, &us, &[], &(1..=count).collect::<Vec<_>>()), then);
        us.handle_timeout(then);
        if count == 1 {
            assert_eq!(named(&us), [pod(1)], "the first at once");
        }
    }
    us.handle_timeout(at(now, 6.0));
    assert_eq!(named(&us).len(), 300);
    assert!(us.counters().published <= 6, "{} records", us.counters().published);
}

/// Host a has a workload that appears on b; c sees both.
struct Move {
    mesh: TestMesh,
    a: Node,
    b: Node,
    now: Now,
}

impl Move {
    fn new() -> Self {
        let (mesh, now) = (TestMesh::new(1), start());
        let [mut a, mut b] = ["a", "b"].map(|name| node(&mesh, name, &[POOL], now));
        a.update_self(draft(&mesh, &a, &[], &[7]), now);
        b.update_self(draft(&mesh, &b, &[], &[8]), now);
        let mut new = Self { mesh, a, b, now };
        new.a_to_b();
        new.now = at(now, 5.0);
        new
    }

    fn a_to_b(&mut self) {
        self.b.handle_frame(peer("a"), &push(vec![published(&self.a)]), self.now);
    }

    fn on_a(&mut self, pods: &[u32]) {
        self.a.update_self(draft(&self.mesh, &self.a, &[], pods), self.now);
    }

    fn on_b(&mut self, pods: &[u32]) {
        self.b.update_self(draft(&self.mesh, &self.b, &[], pods), self.now);
    }

    fn later(&mut self, seconds: f64) {
        self.now = at(self.now, seconds);
        self.a.handle_timeout(self.now);
        self.b.handle_timeout(self.now);
    }
}

#[test]
fn a_workload_that_moves_is_never_claimed_by_both() {
    let mut it = Move::new();
    // The usual order: it is gone from a before it is on b, and a says so at once.
    it.on_a(&[]);
    assert!(named(&it.a).is_empty(), "withdrawn in the same call");
    it.a_to_b();
    it.on_b(&[7, 8]);
    assert_eq!(named(&it.b), [pod(7), pod(8)], "and published in the same call");
    // The other way round: b has it first, or a may not speak yet.
    let mut it = Move::new();
    it.on_b(&[7, 8, 9]);
    assert_eq!(named(&it.b), [pod(8), pod(9)], "what nobody else has does not wait");
    it.later(1.0);
    assert_eq!(named(&it.b), [pod(8), pod(9)]);
    it.on_a(&[]);
    it.a_to_b();
    assert_eq!(named(&it.b), [pod(7), pod(8), pod(9)], "with the other's word");
}

#[test]
fn whoever_keeps_a_workload_is_not_waited_for_for_ever_nor_who_is_gone() {
    let mut it = Move::new();
    it.on_b(&[7, 8]);
    it.later(2.9);
    assert_eq!(named(&it.b), [pod(8)]);
    it.later(0.2);
    assert_eq!(named(&it.b), [pod(7), pod(8)], "the rule for two claimants decides then");
    let mut it = Move::new();
    it.on_b(&[7, 8]);
    it.on_b(&[8]);
    it.later(10.0);
    assert_eq!(named(&it.b), [pod(8)], "gone again before its turn");
}
