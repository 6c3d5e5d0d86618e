//! The worker against the fake data plane.

use meshd_core::{
    plan::{Device, Firewall, FirewallRules, FirewallSets},
    trust::LaneKey,
};

use super::*;
use crate::dataplane::FakeDataplane;

fn plan() -> (Arc<Desired>, Scope) {
    let lane = LaneKey::from_seed(&[1; 32]);
    let device = Device {
        name: "mesh0".to_owned(),
        private_key: lane.private_key(),
        public_key: lane.public_key(),
        listen_port: 51820,
        fwmark: 16,
        mtu: 1420,
        addresses: BTreeSet::new(),
        sysctls: std::collections::BTreeMap::new(),
    };
    let firewall = Firewall { rules: FirewallRules::default(), sets: FirewallSets::default() };
    let peers = [(WgPublicKey([9; 32]), meshd_core::plan::Peer::default())].into();
    let desired =
        Desired { device: Some(device), peers, firewall: Some(firewall), ..Desired::default() };
    let scope = Scope { interface: "mesh0".to_owned(), ..Scope::default() };
    (Arc::new(desired), scope)
}

fn remove_peer(kernel: &FakeDataplane) {
    let removal =
        Change::RemovePeer { device: "mesh0".to_owned(), public_key: WgPublicKey([9; 32]) };
    kernel.kernel().apply(&removal).unwrap();
}

#[tokio::test]
async fn a_peer_that_others_remove_is_seen_without_being_told() {
    let fake = FakeDataplane::default();
    let (mut reconciler, mut reports) = Reconciler::start(Box::new(fake.clone())).unwrap();
    let (desired, scope) = plan();
    reconciler.want(desired, scope);
    assert!(!reports.recv().await.unwrap().repaired);
    remove_peer(&fake);
    let report = reports.recv().await.unwrap();
    assert!(report.repaired && !report.contested, "{report:?}");
    assert!(matches!(report.applied[..], [Change::PutPeer { .. }]), "{report:?}");
}

#[tokio::test]
async fn a_small_change_of_the_plan_reads_nothing() {
    let fake = FakeDataplane::default();
    let (reports, mut inbox) = mpsc::channel(64);
    let mut worker = Worker::new(Box::new(fake.clone()), reports);
    let (desired, scope) = plan();
    worker.want = Some((desired.clone(), scope.clone(), 1));
    assert!(!worker.advance(), "nothing was read yet");
    worker.keep(Vec::new());
    inbox.recv().await.unwrap();

    let mut more = Desired::clone(&desired);
    more.peers.insert(WgPublicKey([8; 32]), meshd_core::plan::Peer::default());
    worker.want = Some((Arc::new(more.clone()), scope.clone(), 2));
    let before = fake.kernel().calls();
    assert!(worker.advance());
    assert_eq!(fake.kernel().calls() - before, 1, "one change, and nothing else");
    let report = inbox.recv().await.unwrap();
    assert_eq!((report.plan, report.applied.len(), report.errors.len()), (2, 1, 0));
    assert_eq!(report.observed, Some(fake.kernel().state()));
    assert_eq!(diff(&more, &fake.kernel().state()), []);

    // What fails is looked into, and so is what a notification is still to be followed up for.
    more.peers.insert(WgPublicKey([7; 32]), meshd_core::plan::Peer::default());
    worker.want = Some((Arc::new(more.clone()), scope.clone(), 3));
    fake.kernel().fail_calls([1]);
    assert!(!worker.advance());
    worker.look = true;
    assert!(!worker.advance());
    worker.keep(Vec::new());
    assert_eq!(inbox.recv().await.unwrap().errors.len(), 0);
    assert_eq!(diff(&more, &fake.kernel().state()), []);

    // What changes the device has consequences that only the kernel knows.
    let mut other = more.clone();
    other.device.as_mut().unwrap().mtu = 1300;
    worker.want = Some((Arc::new(other), scope, 4));
    assert!(!worker.advance());
}

#[tokio::test]
async fn who_asks_gets_the_peers_of_now() {
    let fake = FakeDataplane::default();
    let (mut reconciler, mut reports) = Reconciler::start(Box::new(fake.clone())).unwrap();
    let (desired, scope) = plan();
    reconciler.want(desired, scope);
    reports.recv().await.unwrap();
    let key = WgPublicKey([9; 32]);
    fake.kernel().peer_mut("mesh0", &key).unwrap().rx_bytes = 77;
    let (seen, _) = reconciler.look_now().await.unwrap().unwrap();
    assert_eq!(seen.peers[&key].rx_bytes, 77);
    // A tunnel that came up is told, whoever sees it.
    fake.kernel().peer_mut("mesh0", &key).unwrap().last_handshake = Some(Duration::ZERO);
    let report = reports.recv().await.unwrap();
    assert!(report.observed.unwrap().peers[&key].last_handshake.is_some());
    assert!(report.applied.is_empty());
}

#[tokio::test]
async fn what_fails_is_not_tried_at_every_glance() {
    let fake = FakeDataplane::default();
    let (reports, _inbox) = mpsc::channel(64);
    let mut worker = Worker::new(Box::new(fake.clone()), reports);
    let (desired, scope) = plan();
    worker.want = Some((desired, scope, 1));
    // The first call observes, the second makes the device, the third would configure it.
    fake.kernel().fail_calls([3]);
    worker.keep(Vec::new());
    worker.glance(false, Vec::new());
    assert!(!worker.look, "the backoff is passed by");
    worker.keep(Vec::new());
    remove_peer(&fake);
    worker.glance(false, Vec::new());
    assert!(worker.look, "a whole state is watched");
}

#[tokio::test]
async fn who_fights_is_answered_rarely_and_said() {
    let fake = FakeDataplane::default();
    let (mut reconciler, mut reports) = Reconciler::start(Box::new(fake.clone())).unwrap();
    let (desired, scope) = plan();
    reconciler.want(desired, scope);
    reports.recv().await.unwrap();
    // Another program that undoes each repair as soon as it sees it.
    for _ in 0..100 {
        remove_peer(&fake);
        reconciler.look();
        if reports.recv().await.unwrap().contested {
            remove_peer(&fake);
            reconciler.look();
            let soon = tokio::time::timeout(Duration::from_secs(1), reports.recv()).await;
            assert!(soon.is_err(), "repaired again at once: {soon:?}");
            return;
        }
    }
    panic!("a hundred repairs, and nobody says that somebody fights");
}
