//! A host for a test: a thread in a network namespace of its own, and shortcuts.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use ipnet::IpNet;
use meshd::dataplane::{BackendChoice, Dataplane, DataplaneError, LinuxDataplane, Scope};
use meshd_core::plan::{Backend, Change, Observed, Route, RouteKind, Rule, WgPrivateKey};
use meshd_proto::WgPublicKey;
use nix::sched::{CloneFlags, unshare};

pub(crate) const TABLE: u32 = 51820;
pub(crate) const PRIORITY: u32 = 2600;
pub(crate) const MARK: u32 = 0x10;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a namespace, which ends with this value.
pub(crate) struct Host {
    jobs: mpsc::Sender<Job>,
    thread: i32,
    /// A name that no other test uses: userspace devices share one directory of sockets.
    pub(crate) device: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            ready.send((entered, nix::unistd::gettid().as_raw())).unwrap();
            for job in queue {
                job();
            }
        });
        let (entered, thread) = is_ready.recv().unwrap();
        entered.expect("these tests need root and network namespaces");
        let host =
            Self { jobs, thread, device: format!("t{}x{number}", std::process::id() % 100_000) };
        host.sh("ip link set lo up");
        host
    }

    /// Runs `job` in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs
            .send(Box::new(move || done.send(catch_unwind(AssertUnwindSafe(job))).unwrap()))
            .unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts `job` on a thread beside.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        self.run(|| thread::spawn(job))
    }

    /// Runs a shell command, which must succeed, and returns its output.
    pub(crate) fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &command]).output().unwrap();
            assert!(
                output.status.success(),
                "{command}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Joins two hosts by a cable.
    pub(crate) fn cable(&self, name: &str, other: &Self, other_name: &str) {
        let other_thread = other.thread;
        self.sh(&format!(
            "ip link add {name} type veth peer name {other_name} netns {other_thread}; ip link set {name} up"
        ));
        other.sh(&format!("ip link set {other_name} up"));
    }

    pub(crate) fn scope(&self) -> Scope {
        Scope {
            interface: self.device.clone(),
            table: TABLE,
            second_table: 51821,
            rule_priority: PRIORITY,
            sysctls: BTreeSet::from([self.rp_filter()]),
            ..Scope::default()
        }
    }

    pub(crate) fn rp_filter(&self) -> String {
        format!("net/ipv4/conf/{}/rp_filter", self.device)
    }

    /// Each call is a data plane with no memory.
    pub(crate) fn observe(&self) -> Result<Observed, DataplaneError> {
        let scope = self.scope();
        self.run(move || LinuxDataplane::new(choice()).unwrap().observe(&scope))
    }

    pub(crate) fn try_apply(&self, changes: Vec<Change>) -> Vec<(usize, DataplaneError)> {
        self.run(move || LinuxDataplane::new(choice()).unwrap().apply(&changes))
    }

    #[track_caller]
    pub(crate) fn apply(&self, changes: Vec<Change>) {
        let names: Vec<String> = changes.iter().map(|change| format!("{change:?}")).collect();
        let failures = self.try_apply(changes);
        let shown: Vec<String> =
            failures.iter().map(|(index, error)| format!("{}: {error}", names[*index])).collect();
        assert!(shown.is_empty(), "{shown:#?}");
    }

    /// Everything that is in this namespace, for comparing before with after.
    pub(crate) fn everything(&self) -> String {
        self.sh("ip -d -o link; ip -o addr; ip rule; ip -6 rule; ip route show table all; \
             ip -6 route show table all; nft list ruleset")
    }

    /// The device up, with addresses, key, port and mark.
    pub(crate) fn device_changes(&self, key: u8, addresses: &[&str]) -> Vec<Change> {
        let name = self.device.clone();
        let mut changes = vec![
            Change::CreateDevice { name: name.clone() },
            Change::ConfigureDevice {
                name: name.clone(),
                private_key: Some(private(key)),
                listen_port: Some(51820),
                fwmark: Some(MARK),
            },
            Change::SetMtu { name: name.clone(), mtu: 1420 },
            Change::SetSysctl { path: self.rp_filter(), value: "2".to_owned() },
        ];
        changes.extend(
            addresses.iter().map(|a| Change::AddAddress { name: name.clone(), address: net(a) }),
        );
        changes.push(Change::SetUp { name });
        changes
    }

    pub(crate) fn put_peer(&self, key: u8, endpoint: Option<&str>, allowed_ips: &[&str]) -> Change {
        Change::PutPeer {
            device: self.device.clone(),
            public_key: public(key),
            endpoint: endpoint.map(|e| e.parse().unwrap()),
            keepalive: Some(25),
            preshared_key: None,
            add_allowed_ips: nets(allowed_ips),
            new: true,
        }
    }

    pub(crate) fn route(&self, destination: &str, source: Option<&str>, mtu: Option<u32>) -> Route {
        route(
            destination,
            RouteKind::Device {
                device: self.device.clone(),
                source: source.map(|s| s.parse().unwrap()),
                mtu,
            },
        )
    }

    pub(crate) fn delete_device(&self) {
        self.apply(vec![Change::DeleteDevice { name: self.device.clone() }]);
    }
}

impl Drop for Host {
    /// Ends userspace processes, which would outlive the namespace.
    fn drop(&mut self) {
        let name = self.device.clone();
        let cleaned = self.run(move || {
            LinuxDataplane::new(choice())
                .map(|mut dataplane| dataplane.apply(&[Change::DeleteDevice { name }]).len())
        });
        drop(cleaned);
    }
}

pub(crate) fn backend() -> Backend {
    match std::env::var("MESHD_TEST_BACKEND").as_deref() {
        Ok("kernel") => Backend::Kernel,
        Ok("userspace") => Backend::Userspace,
        _ => panic!("set MESHD_TEST_BACKEND to kernel or userspace"),
    }
}

pub(crate) fn choice() -> BackendChoice {
    match backend() {
        Backend::Kernel => BackendChoice::Kernel,
        Backend::Userspace => BackendChoice::Userspace,
    }
}

pub(crate) fn route(destination: &str, kind: RouteKind) -> Route {
    Route { destination: net(destination), table: TABLE, metric: 100, kind }
}

pub(crate) fn rule(family: meshd_core::plan::Family) -> Rule {
    Rule { family, priority: PRIORITY, table: TABLE, fwmark: MARK }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

/// A key pair from a number.
pub(crate) fn private(number: u8) -> WgPrivateKey {
    let mut bytes = [number; 32];
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    WgPrivateKey(bytes)
}

pub(crate) fn public(number: u8) -> WgPublicKey {
    WgPublicKey(wireguard_control::Key(private(number).0).get_public().0)
}

pub(crate) fn sysctls(host: &Host, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(host.rp_filter(), value.to_owned())])
}
