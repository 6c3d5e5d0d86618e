//! Which records are believed: one test per way of lying.

use meshd_proto::{BootId, wire};
use proptest::prelude::*;
use prost::Message;

use crate::{
    address, limits,
    now::UnixTime,
    refusal::Code,
    trust::{
        AdmitContext, Expiry, NodeIdentity, Record, RecordDraft, admit, authenticate,
        authenticate_bytes,
        fixture::{NOW, TestMesh},
    },
};

const GRANTS: &[&str] = &["10.1.0.0/16", "10.2.0.0/16@24", "fd01::/64"];

struct Case {
    mesh: TestMesh,
    node: NodeIdentity,
    payload: wire::NodeRecord,
}

fn case() -> Case {
    let mesh = TestMesh::new(1);
    let node = mesh.node("a", GRANTS);
    let draft = mesh.draft(&node, &["fd01::/64", "10.2.7.0/24", "10.1.0.0/16"]);
    let payload = wire::NodeRecord::decode(&mesh.sign(&node, &draft, 5).payload[..]).unwrap();
    Case { mesh, node, payload }
}

impl Case {
    fn sign(&self) -> wire::SignedRecord {
        self.node.sign_payload(&self.payload)
    }

    /// What becomes of the record when its payload is changed and signed by its owner.
    fn refused(change: impl FnOnce(&mut Case)) -> Code {
        let mut case = case();
        change(&mut case);
        case.refusal(&case.sign())
    }

    fn refusal(&self, signed: &wire::SignedRecord) -> Code {
        authenticate(signed, &self.mesh.anchors).unwrap_err().code
    }
}

fn prefix(text: &str) -> wire::IpPrefix {
    address::prefix_to_wire(&text.parse().unwrap())
}

#[test]
fn an_honest_record_is_believed_and_read() {
    let case = case();
    let signed = case.sign();
    let record = authenticate(&signed, &case.mesh.anchors).unwrap();
    assert_eq!(record.signed, signed);
    assert_eq!((record.key, record.version), (case.node.public(), 5));
    assert_eq!(record.name.as_str(), "a");
    assert_eq!(record.lanes.len(), 1);
    assert_eq!(record.mesh_addresses, case.node.certificate.mesh_addresses());
    let prefixes: Vec<String> = record.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.1.0.0/16", "10.2.7.0/24", "fd01::/64"]);
    assert_eq!(record.endpoints, ["192.0.2.7:51800".parse().unwrap()]);
    let bytes = signed.encode_to_vec();
    assert_eq!(authenticate_bytes(&bytes, &case.mesh.anchors), Ok(record));
}

#[test]
fn a_record_of_a_node_without_wireguard_or_that_left_may_be_bare() {
    let mesh = TestMesh::new(1);
    let node = mesh.node("a", &[]);
    let draft = RecordDraft { left: true, ..RecordDraft::default() };
    let record = authenticate(&mesh.sign(&node, &draft, 1), &mesh.anchors).unwrap();
    assert!(record.left && record.lanes.is_empty());
}

#[test]
fn unknown_fields_of_a_later_version_do_not_hurt() {
    let case = case();
    let mut payload = case.payload.encode_to_vec();
    payload.extend_from_slice(&[0xfa, 0x07, 3, 1, 2, 3]); // Field 127, three bytes.
    let signature =
        case.node.key.sign(crate::trust::signing::Kind::Record, &case.mesh.mesh_id, &payload);
    let signed = wire::SignedRecord {
        payload: payload.into(),
        signature: signature.to_vec().into(),
        certificate: case.node.certificate.der.clone(),
    };
    assert_eq!(authenticate(&signed, &case.mesh.anchors).unwrap().signed, signed);
}

#[test]
fn another_identity_is_refused() {
    let other = TestMesh::new(1).node("b", GRANTS);
    // B's record, signed by A.
    let key = other.public().0.to_vec();
    assert_eq!(Case::refused(|case| case.payload.identity_key = key.into()), Code::BadSignature);
    // A's record under B's certificate, with and without B's hash in it.
    let case = case();
    let mut attached = case.sign();
    attached.certificate = other.certificate.der.clone();
    assert_eq!(case.refusal(&attached), Code::CertificateMismatch);
    let hash = other.certificate.hash.to_vec();
    let mut payload = case.payload.clone();
    payload.certificate_hash = hash.into();
    let mut attached = case.node.sign_payload(&payload);
    attached.certificate = other.certificate.der.clone();
    assert_eq!(case.refusal(&attached), Code::IdentityMismatch);
}

#[test]
fn another_name_is_refused() {
    assert_eq!(Case::refused(|case| case.payload.name = "b".into()), Code::NameMismatch);
    assert_eq!(Case::refused(|case| case.payload.name = "B\u{1b}".into()), Code::Malformed);
}

#[test]
fn another_nodes_wireguard_key_is_refused() {
    let mesh = TestMesh::new(1);
    let other = mesh.node("b", &[]);
    let lanes = mesh.draft(&other, &[]).lanes;
    assert_eq!(Case::refused(|case| case.payload.lanes = lanes), Code::WgKeyUnproven);
    let twice = |case: &mut Case| {
        let mut second = case.payload.lanes[0].clone();
        second.index = 1;
        case.payload.lanes.push(second);
    };
    assert_eq!(Case::refused(twice), Code::Malformed);
    let three = |case: &mut Case| case.payload.lanes = vec![case.payload.lanes[0].clone(); 3];
    assert_eq!(Case::refused(three), Code::TooLarge);
}

#[test]
fn prefixes_outside_the_grants_are_refused() {
    for bad in ["10.3.0.0/16", "10.1.0.0/24", "10.0.0.0/8", "10.2.0.0/25", "fd01::/65"] {
        let change = |case: &mut Case| case.payload.prefixes = vec![prefix(bad)];
        assert_eq!(Case::refused(change), Code::PrefixNotGranted, "{bad}");
    }
}

#[test]
fn what_is_nobodys_cannot_be_claimed_even_when_a_certificate_grants_it() {
    let mesh = TestMesh::new(1);
    let ula = address::ula_prefix(&mesh.mesh_id).to_string();
    let everything = ["0.0.0.0/0", "127.0.0.0/8", "fe80::/64", "::/0", &ula, "fd00::/8"];
    let node = mesh.node("a", &everything);
    for bad in everything {
        let draft = mesh.draft(&node, &[bad]);
        let refusal = authenticate(&mesh.sign(&node, &draft, 1), &mesh.anchors).unwrap_err();
        assert_eq!(refusal.code, Code::PrefixNotGranted, "{bad}");
    }
}

#[test]
fn prefixes_are_sorted_and_each_there_once() {
    assert_eq!(Case::refused(|case| case.payload.prefixes.reverse()), Code::Malformed);
    let twice = |case: &mut Case| {
        let first = case.payload.prefixes[0].clone();
        case.payload.prefixes.insert(0, first);
    };
    assert_eq!(Case::refused(twice), Code::Malformed);
}

#[test]
fn another_nodes_mesh_address_is_refused() {
    let mesh = TestMesh::new(1);
    let other = mesh.node("b", &[]).certificate.mesh_addresses();
    for address in other {
        let wire = address::prefix_to_wire(&address);
        let change = |case: &mut Case| case.payload.mesh_addresses = vec![wire];
        assert_eq!(Case::refused(change), Code::AddressNotGranted, "{address}");
    }
    let wide = |case: &mut Case| case.payload.mesh_addresses = vec![prefix("100.112.0.0/16")];
    assert_eq!(Case::refused(wide), Code::AddressNotGranted);
    let many = |case: &mut Case| {
        case.payload.mesh_addresses = vec![case.payload.mesh_addresses[0].clone(); 3];
    };
    assert_eq!(Case::refused(many), Code::AddressNotGranted);
}

#[test]
fn endpoints_that_must_not_be_dialled_are_refused() {
    let endpoint = |text: &str, port: u32| wire::Endpoint {
        address: address::address_to_wire(&text.parse().unwrap()).into(),
        port,
    };
    let ula = address::ula(&TestMesh::new(1).mesh_id, &TestMesh::key("b").public()).to_string();
    for (bad, port) in [
        ("127.0.0.1", 51800),
        ("::1", 51800),
        ("0.0.0.0", 51800),
        ("224.0.0.1", 51800),
        ("255.255.255.255", 51800),
        ("fe80::1", 51800),
        ("ff02::1", 51800),
        (&ula, 51800),
        ("192.0.2.1", 0),
        ("192.0.2.1", 65_536),
    ] {
        let change = |case: &mut Case| case.payload.endpoints = vec![endpoint(bad, port)];
        assert_eq!(Case::refused(change), Code::EndpointRefused, "{bad} {port}");
    }
    let mapped = |case: &mut Case| {
        let v6: std::net::Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
        let address = v6.octets().to_vec().into();
        case.payload.endpoints = vec![wire::Endpoint { address, port: 1 }];
    };
    assert_eq!(Case::refused(mapped), Code::Malformed);
    let nine = |case: &mut Case| {
        case.payload.endpoints = (1..=9).map(|port| endpoint("192.0.2.1", port)).collect();
    };
    assert_eq!(Case::refused(nine), Code::TooLarge);
    let twice = |case: &mut Case| case.payload.endpoints = vec![endpoint("192.0.2.1", 1); 2];
    assert_eq!(Case::refused(twice), Code::Malformed);
}

#[test]
fn other_meshes_and_other_cas_are_refused() {
    let case = case();
    let foreign = |mesh: &TestMesh| {
        let node = mesh.node("a", GRANTS);
        case.refusal(&mesh.sign(&node, &mesh.draft(&node, &[]), 5))
    };
    assert_eq!(foreign(&TestMesh::new(2)), Code::OtherMesh);
    assert_eq!(foreign(&TestMesh::with_id(2, case.mesh.mesh_id)), Code::UnknownIssuer);
}

#[test]
fn no_signature_and_a_signature_for_another_use_are_refused() {
    let case = case();
    let mut signed = case.sign();
    for (kind, bytes) in crate::trust::signing::Kind::ALL
        .into_iter()
        .map(|kind| (kind, case.node.key.sign(kind, &case.mesh.mesh_id, &signed.payload).to_vec()))
    {
        let signed = wire::SignedRecord { signature: bytes.into(), ..signed.clone() };
        let good = kind == crate::trust::signing::Kind::Record;
        assert_eq!(authenticate(&signed, &case.mesh.anchors).is_ok(), good, "{kind:?}");
    }
    signed.signature = Default::default();
    assert_eq!(case.refusal(&signed), Code::BadSignature);
    signed.signature = vec![0; 65].into();
    assert_eq!(case.refusal(&signed), Code::TooLarge);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_looked_at() {
    let case = case();
    let mut signed = case.sign();
    signed.payload = vec![0; limits::RECORD_PAYLOAD + 1].into();
    assert_eq!(case.refusal(&signed), Code::TooLarge);
    let mut signed = case.sign();
    signed.certificate = vec![0; limits::CERTIFICATE + 1].into();
    assert_eq!(case.refusal(&signed), Code::TooLarge);
    let bytes = vec![0; limits::FRAME];
    assert_eq!(authenticate_bytes(&bytes, &case.mesh.anchors).unwrap_err().code, Code::TooLarge);
    // 1,024 prefixes fit into 16 KiB, one more does not pass.
    let many = |case: &mut Case| case.payload.prefixes = vec![prefix("10.0.0.0/8"); 1_025];
    assert_eq!(Case::refused(many), Code::TooLarge);
}

#[test]
fn fields_that_could_mislead_or_overflow_are_refused() {
    for change in [
        (|payload| payload.version = 0) as fn(&mut wire::NodeRecord),
        |payload| payload.version = u64::MAX,
        |payload| payload.issued_at = -1,
        |payload| payload.boot_id = vec![1; 15].into(),
        |payload| payload.via = vec![1; 31].into(),
        |payload| payload.zone = "a b".into(),
        |payload| payload.capabilities = vec!["a\n".into()],
        |payload| payload.capabilities = vec!["a".repeat(33)],
        |payload| payload.software_version = "1\u{1b}[2J".into(),
        |payload| payload.software_version = "1".repeat(65),
        |payload| payload.node_addresses = vec![vec![1; 5].into()],
        |payload| payload.prefixes[0].length = 300,
        |payload| payload.prefixes[0].address = vec![10, 1, 0, 1].into(),
    ] {
        assert_eq!(Case::refused(|case| change(&mut case.payload)), Code::Malformed);
    }
    let many = |case: &mut Case| case.payload.capabilities = vec!["a".into(); 33];
    assert_eq!(Case::refused(many), Code::TooLarge);
    let many = |case: &mut Case| case.payload.node_addresses = vec![vec![1; 4].into(); 33];
    assert_eq!(Case::refused(many), Code::TooLarge);
}

#[test]
fn node_addresses_need_an_exact_grant_each() {
    let mesh = TestMesh::new(1);
    let node =
        mesh.node("a", &["192.0.2.7/32", "2001:db8::7/128", "192.0.2.0/24@32", "10.1.0.0/16"]);
    let sign = |claims: &[&str]| {
        let mut draft = mesh.draft(&node, &[]);
        draft.node_claims = claims.iter().map(|text| text.parse().unwrap()).collect();
        authenticate(&mesh.sign(&node, &draft, 5), &mesh.anchors)
    };
    let record = sign(&["2001:db8::7", "192.0.2.7"]).unwrap();
    let claims: Vec<String> = record.node_claims.iter().map(ToString::to_string).collect();
    assert_eq!(claims, ["192.0.2.7/32", "2001:db8::7/128"]);
    assert!(record.prefixes.is_empty(), "who knows no better must not route them");
    // Of a pool, within a wider grant, of nobody, the mesh's own.
    for bad in ["192.0.2.8", "10.1.0.1", "198.51.100.1"] {
        assert_eq!(sign(&[bad]).unwrap_err().code, Code::PrefixNotGranted, "{bad}");
    }
    let node = mesh.node("b", &["127.0.0.1/32"]);
    let mut draft = mesh.draft(&node, &[]);
    draft.node_claims = vec!["127.0.0.1".parse().unwrap()];
    let refused = authenticate(&mesh.sign(&node, &draft, 5), &mesh.anchors).unwrap_err();
    assert_eq!(refused.code, Code::PrefixNotGranted);
    let bytes = |claims: &[&[u8]]| -> Vec<bytes::Bytes> {
        claims.iter().map(|claim| claim.to_vec().into()).collect()
    };
    for claims in [&[&[192, 0, 2, 9][..], &[192, 0, 2, 7]][..], &[&[1; 5]]] {
        let change = |case: &mut Case| case.payload.node_claims = bytes(claims);
        assert_eq!(Case::refused(change), Code::Malformed);
    }
    let many = |case: &mut Case| case.payload.node_claims = bytes(&[&[1; 4][..]; 33]);
    assert_eq!(Case::refused(many), Code::TooLarge);
}

fn record(mesh: &TestMesh, node: &NodeIdentity, version: u64, issued_at: UnixTime) -> Record {
    let signed = node.sign_record(&mesh.draft(node, &[]), version, BootId([7; 16]), 1, issued_at);
    (*authenticate(&signed, &mesh.anchors).unwrap()).clone()
}

fn verdict(record: &Record, held: Option<&Record>, now: UnixTime) -> Result<(), Code> {
    let mut anchors = TestMesh::new(1).anchors;
    anchors.set_expiry(Expiry::Hard);
    let anchors = &anchors;
    let context = AdmitContext { anchors, now, held, forget_after_seconds: 7 * 24 * 3600 };
    admit(record, &context).map_err(|refusal| refusal.code)
}

#[test]
fn dates_ahead_and_records_risen_from_the_dead_are_refused() {
    let mesh = TestMesh::new(1);
    let node = mesh.node("a", &[]);
    let week = 7 * 24 * 3600;
    assert_eq!(verdict(&record(&mesh, &node, 1, NOW), None, NOW), Ok(()));
    assert_eq!(verdict(&record(&mesh, &node, 1, NOW.plus(600)), None, NOW), Ok(()));
    let ahead = record(&mesh, &node, 9, NOW.plus(601));
    assert_eq!(verdict(&ahead, None, NOW), Err(Code::ClockSkew));
    let held = record(&mesh, &node, 1, NOW);
    assert_eq!(verdict(&ahead, Some(&held), NOW), Err(Code::ClockSkew));
    assert_eq!(verdict(&held, None, NOW.plus(week)), Ok(()));
    assert_eq!(verdict(&held, None, NOW.plus(week + 1)), Err(Code::PastDate));
    // A clock that was set back: the version orders.
    let back = record(&mesh, &node, 2, NOW.plus(-30 * 24 * 3600));
    assert_eq!(verdict(&back, Some(&held), NOW), Ok(()));
}

#[test]
fn certificates_out_of_date_or_superseded_are_refused() {
    let mesh = TestMesh::new(1);
    let first = mesh.node("a", &[]);
    let year = 366 * 24 * 3600;
    let old = record(&mesh, &first, 9, NOW);
    assert_eq!(verdict(&old, Some(&old), NOW.plus(year)), Err(Code::CertificateExpired));
    assert_eq!(verdict(&old, None, NOW.plus(-700)), Err(Code::CertificateNotYetValid));
    let mut terms = mesh.terms("a", &[]);
    terms.not_before = NOW.plus(60);
    let renewed = record(&mesh, &mesh.node_of("a", &terms), 5, NOW.plus(60));
    let later = NOW.plus(70);
    assert_eq!(verdict(&renewed, Some(&record(&mesh, &first, 4, NOW)), later), Ok(()));
    assert_eq!(verdict(&old, Some(&renewed), later), Err(Code::SupersededCertificate));
}

#[test]
fn versions_only_rise_and_ties_end_the_same_everywhere() {
    let mesh = TestMesh::new(1);
    let node = mesh.node("a", &[]);
    let held = record(&mesh, &node, 5, NOW);
    assert_eq!(verdict(&held, Some(&held), NOW), Err(Code::OldVersion));
    assert_eq!(verdict(&record(&mesh, &node, 4, NOW), Some(&held), NOW), Err(Code::OldVersion));
    assert_eq!(verdict(&record(&mesh, &node, 6, NOW), Some(&held), NOW), Ok(()));
    let twin = record(&mesh, &node, 5, NOW.plus(1));
    let verdicts = [verdict(&twin, Some(&held), NOW), verdict(&held, Some(&twin), NOW)];
    assert_eq!(verdicts.iter().filter(|verdict| verdict.is_ok()).count(), 1);
    let smaller = if held.payload_hash < twin.payload_hash { &held } else { &twin };
    let larger = if held.payload_hash < twin.payload_hash { &twin } else { &held };
    assert_eq!(verdict(smaller, Some(larger), NOW), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_flipped_bit_is_believed(position in 0.0..1.0_f64, bit in 0..8_u8) {
        let case = case();
        let signed = case.sign();
        let mut bytes = signed.encode_to_vec();
        let index = ((bytes.len() - 1) as f64 * position) as usize;
        bytes[index] ^= 1 << bit;
        // A flip in a field number can turn a field into an unknown one, never into a believed record.
        prop_assert!(authenticate_bytes(&bytes, &case.mesh.anchors).is_err(), "byte {index}");
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mesh = TestMesh::new(1);
        let _ = authenticate_bytes(&bytes, &mesh.anchors);
        let _ = mesh.anchors.check_chain(&bytes, Some(NOW));
        let _ = crate::trust::Anchors::from_root(&bytes);
        let signed = wire::SignedBundle { payload: bytes.into(), signature: Default::default() };
        let _ = mesh.anchors.clone().install_bundle(&signed);
    }

    #[test]
    fn a_flipped_bit_in_a_certificate_never_panics_nor_passes(
        position in 0.0..1.0_f64,
        bit in 0..8_u8,
    ) {
        let mesh = TestMesh::new(1);
        let mut der = mesh.node("a", GRANTS).certificate.der.to_vec();
        let index = ((der.len() - 1) as f64 * position) as usize;
        der[index] ^= 1 << bit;
        prop_assert!(mesh.anchors.check_chain(&der, None).is_err(), "byte {index}");
    }

    #[test]
    fn a_flipped_bit_in_a_bundle_never_panics_nor_passes(
        position in 0.0..1.0_f64,
        bit in 0..8_u8,
    ) {
        let mesh = TestMesh::new(1);
        let signed = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&mesh.intermediate]);
        let mut bytes = signed.encode_to_vec();
        let index = ((bytes.len() - 1) as f64 * position) as usize;
        bytes[index] ^= 1 << bit;
        if let Ok(signed) = wire::SignedBundle::decode(&bytes[..]) {
            prop_assert!(mesh.anchors.clone().install_bundle(&signed).is_err(), "byte {index}");
        }
    }
}
