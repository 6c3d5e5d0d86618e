//! Which prefixes a device may have, and which it is given.

use std::sync::Arc;

use meshd_proto::{MeshId, NodeKey};

use super::*;
use crate::{
    address::{host_prefix, ula},
    now::UnixTime,
    trust::Grant,
};

const MESH: MeshId = MeshId([7; 16]);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn certificate(number: u8, exact: &[&str], limits: &[&str]) -> NodeCertificate {
    let exact = exact.iter().map(|text| Grant { prefix: net(text), claim_len: None });
    let mesh = Grant { prefix: net(&format!("100.112.0.{number}/32")), claim_len: None };
    NodeCertificate {
        der: bytes::Bytes::new(),
        hash: [number; 32],
        key: NodeKey([number; 32]),
        name: format!("n{number}").parse().unwrap(),
        mesh: "test".parse().unwrap(),
        mesh_id: MESH,
        enrolment_id: [number; 16],
        groups: Vec::new(),
        grants: exact.chain([mesh]).collect(),
        mesh_ipv4: Some([100, 112, 0, number].into()),
        limits: limits.iter().map(|text| net(text)).collect(),
        subject: None,
        not_before: UnixTime(0),
        not_after: UnixTime(i64::MAX),
    }
}

fn member(number: u8, prefixes: &[&str]) -> Record {
    let certificate = certificate(number, prefixes, &[]);
    let key = certificate.key;
    Record {
        signed: meshd_proto::wire::SignedRecord::default(),
        payload_hash: [number; 8],
        key,
        name: certificate.name.clone(),
        mesh_addresses: vec![
            host_prefix(IpAddr::V6(ula(&MESH, &key))),
            net(&format!("100.112.0.{number}/32")),
        ],
        certificate: Arc::new(certificate),
        version: 1,
        boot_id: meshd_proto::BootId([number; 16]),
        generation: 1,
        issued_at: UnixTime(0),
        lanes: Vec::new(),
        prefixes: prefixes.iter().map(|text| net(text)).collect(),
        endpoints: vec![([198, 51, 100, number], 51800).into()],
        zone: meshd_proto::Zone::default(),
        capabilities: Vec::new(),
        left: false,
        via: None,
        node_addresses: Vec::new(),
        node_claims: Vec::new(),
        software_version: String::new(),
    }
}

/// Node 1 with pods in 10.244.1.0/24 on 192.0.2.1/24; the laptop has 10.99.0.1, the member n2 10.244.2.0/24.
struct Scene {
    certificate: NodeCertificate,
    own: BTreeSet<IpNet>,
    local: LocalNetwork,
    member: Record,
    laptop: (NodeName, BTreeSet<IpNet>),
}

impl Scene {
    fn new(exact: &[&str], limits: &[&str]) -> Self {
        let mut all = vec!["10.244.1.0/24"];
        all.extend(exact);
        Self {
            certificate: certificate(1, &all, limits),
            own: nets(&["10.244.1.0/24"]),
            local: LocalNetwork {
                addresses: nets(&["192.0.2.1/24", "127.0.0.1/8", "10.244.1.1/24"]),
                gateways: ["192.0.2.254".parse().unwrap(), "203.0.113.1".parse().unwrap()].into(),
                ..LocalNetwork::default()
            },
            member: member(2, &["10.244.2.0/24"]),
            laptop: ("laptop".parse().unwrap(), nets(&["10.99.0.1/32"])),
        }
    }

    fn around(&self) -> Around<'_> {
        Around {
            certificate: &self.certificate,
            own: &self.own,
            local: &self.local,
            members: vec![&self.member],
            devices: vec![(&self.laptop.0, &self.laptop.1)],
            pool: None,
            signer: false,
        }
    }

    fn check(&self, prefix: &str) -> &'static str {
        check(&self.around(), &net(prefix)).err().map_or("good", |refused| refused.code)
    }
}

#[test]
fn what_is_another_thing_s_is_refused_with_its_reason() {
    let scene = Scene::new(&["10.99.0.0/24", "fd99::/64"], &["0.0.0.0/1", "128.0.0.0/1", "::/1"]);
    let own = host_prefix(IpAddr::V6(ula(&MESH, &NodeKey([1; 32])))).to_string();
    let inside = format!("{}/64", ula_prefix(&MESH).network());
    for (prefix, code) in [
        ("10.99.0.2/32", "good"),
        ("fd99::/80", "good"),
        ("10.99.0.5/24", "bad_request"),
        ("127.0.0.0/16", "prefix_reserved"),
        (own.as_str(), "covers_mesh_addresses"),
        (inside.as_str(), "covers_mesh_addresses"),
        ("100.112.0.1/32", "covers_mesh_addresses"),
        ("100.112.0.2/32", "covers_mesh_addresses"),
        ("10.244.1.7/32", "prefix_is_local"),
        ("10.244.0.0/16", "prefix_is_local"),
        ("10.99.0.1/32", "prefix_taken"),
        ("10.99.0.0/28", "prefix_taken"),
        ("10.244.2.9/32", "prefix_taken"),
        ("192.0.2.0/28", "covers_underlay"),
        ("192.0.2.99/32", "covers_underlay"),
        ("203.0.113.0/24", "covers_endpoint"),
        ("198.51.100.2/32", "covers_endpoint"),
        ("fd00:8000::/32", "prefix_not_granted"),
    ] {
        assert_eq!(scene.check(prefix), code, "{prefix}");
    }
    let pool = Around { pool: Some("100.112.0.0/16".parse().unwrap()), ..scene.around() };
    let refused = check(&pool, &net("100.112.99.0/24")).unwrap_err();
    assert_eq!(refused.code, "covers_mesh_addresses");
}

#[test]
fn what_is_not_granted_names_the_command_that_grants_it() {
    let scene = Scene::new(&[], &["10.99.0.0/24"]);
    assert_eq!(scene.check("10.99.0.2/32"), "good", "inside the limits it is asked for");
    let refused = check(&scene.around(), &net("10.98.0.0/24")).unwrap_err();
    assert_eq!(refused.code, "prefix_not_granted");
    assert!(refused.fix.contains("meshctl token create --prefix 10.98.0.0/24"), "{refused:?}");
}

#[test]
fn the_range_is_announced_and_not_the_single_device() {
    let mut certificate = certificate(1, &["10.99.0.0/24", "10.99.0.128/25"], &["10.98.0.0/16"]);
    certificate.grants.push(Grant { prefix: net("10.97.0.0/16"), claim_len: Some(24) });
    let announced = |text: &str| announced(&certificate, &net(text)).map(|net| net.to_string());
    assert_eq!(announced("10.99.0.2/32").as_deref(), Some("10.99.0.0/24"));
    assert_eq!(announced("10.99.0.200/32").as_deref(), Some("10.99.0.128/25"));
    assert_eq!(announced("10.97.3.4/32").as_deref(), Some("10.97.3.0/24"));
    assert_eq!(announced("10.97.0.0/20"), None, "wider than its pool's pieces");
    assert_eq!(announced("10.98.3.4/32").as_deref(), Some("10.98.3.4/32"));
    assert_eq!(announced("10.96.0.0/24"), None);
}

#[test]
fn the_lowest_free_address_of_each_family_is_assigned() {
    let scene = Scene::new(&["10.99.0.0/24", "fd99::/64"], &[]);
    let given = |scene: &Scene| assign(&scene.around()).map(|a| (a.prefixes, a.full));
    assert_eq!(given(&scene).unwrap(), (nets(&["10.99.0.2/32", "fd99::1/128"]), None));
    // Never the pods' prefix, nor what may only be asked for.
    let scene = Scene::new(&[], &["10.98.0.0/16"]);
    let refused = assign(&scene.around()).unwrap_err();
    assert_eq!(refused.code, "no_address");
    assert!(refused.fix.contains("--prefix: inside 10.98.0.0/16, what"), "{refused:?}");
    assert!(!refused.fix.contains("signer add"), "{refused:?}");
    let refused = assign(&Around { signer: true, ..scene.around() }).unwrap_err();
    assert!(refused.fix.contains("`meshctl signer add` another"), "{refused:?}");
    // A range of a single address, and one that is full.
    let scene = Scene::new(&["10.99.0.1/32", "10.99.1.0/31"], &[]);
    assert_eq!(given(&scene).unwrap(), (nets(&["10.99.1.0/32"]), None));
    let scene = Scene::new(&["10.99.0.1/32"], &[]);
    assert!(assign(&scene.around()).unwrap_err().why.contains("is free"));
    // One family is full, the other not.
    let mut scene = Scene::new(&["10.99.0.0/30", "192.0.2.1/32", "fd99::/64"], &[]);
    scene.laptop.1 = nets(&["10.99.0.0/30"]);
    assert_eq!(given(&scene).unwrap(), (nets(&["fd99::1/128"]), Some(net("10.99.0.0/30"))));
    // The largest range there is.
    let scene = Scene::new(&["fc00::/7", "::/1"], &[]);
    assert!(assign(&scene.around()).is_ok_and(|assigned| assigned.prefixes.len() == 1));
}

#[test]
fn keys_are_pairs_and_bad_ones_are_known() {
    for random in [[0; 32], [255; 32], [9; 32]] {
        let (private, public) = key_pair(&random);
        assert_eq!(public_key(&private), public);
        assert_eq!((private.0[0] & 7, private.0[31] & 0xc0), (0, 0x40), "clamped");
        assert!(is_usable_key(&public));
    }
    let mut one = [0; 32];
    one[0] = 1;
    assert!(!is_usable_key(&WgPublicKey([0; 32])) && !is_usable_key(&WgPublicKey(one)));
}

#[test]
fn neighbours_are_joined_in_a_device_s_file() {
    let joined = allowed_ips(["10.0.0.0/24", "10.0.1.0/24", "10.0.1.7/32", "fd00::/64"].map(net));
    assert_eq!(joined, [net("10.0.0.0/23"), net("fd00::/64")]);
}

#[test]
fn a_range_that_holds_pods_is_no_devices() {
    let mut scene = Scene::new(&[], &[]);
    scene.certificate = certificate(1, &["10.99.0.0/16"], &[]);
    scene.own = nets(&["10.99.1.0/24"]);
    let refused = check(&scene.around(), &net("10.99.2.1/32")).unwrap_err();
    assert_eq!(refused.code, "range_holds_pods");
    assert!(
        refused.why.contains("10.99.0.0/16") && refused.why.contains("10.99.1.0/24"),
        "{refused:?}"
    );
    // Granted by itself, or where it may be asked for, it need not be announced with the pods.
    scene.certificate = certificate(1, &["10.99.0.0/16", "10.99.2.0/24"], &[]);
    assert_eq!(check(&scene.around(), &net("10.99.2.1/32")), Ok(()));
}
