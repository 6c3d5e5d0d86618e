//! Which certificates are believed, by us and by standard tools.

use meshd_proto::MeshId;
use rustls_pki_types::CertificateDer;

use crate::{
    now::UnixTime,
    refusal::Code,
    trust::{
        Anchors, CaError, Intermediate, NodeCertificate, RootCa,
        fixture::{NOW, TestMesh},
        root_from_key, server_name,
    },
};

#[test]
fn a_node_certificate_is_read_as_it_was_issued() {
    let mesh = TestMesh::new(1);
    let mut terms = mesh.terms("db-1.example", &["10.2.0.0/16@24", "10.1.0.0/16", "fd01::/64"]);
    terms.groups = vec!["web".into(), "db".into()];
    let issued = mesh.intermediate.issue_node(&terms).unwrap();
    let read = mesh.anchors.check_chain(&issued.der, Some(NOW)).unwrap();
    assert_eq!(*read, issued);
    assert_eq!(read.name, terms.name);
    assert_eq!(read.mesh, mesh.mesh);
    assert_eq!(read.key, terms.key);
    assert_eq!(read.enrolment_id, terms.enrolment_id);
    assert_eq!(read.groups, terms.groups);
    assert_eq!(read.mesh_ipv4, terms.mesh_ipv4);
    assert_eq!((read.not_before, read.not_after), (terms.not_before, terms.not_after));
    assert_eq!(read.grants.len(), 4, "the mesh address is among them");
    assert_eq!(read.mesh_addresses().len(), 2);
}

#[test]
fn the_same_terms_give_the_same_certificate() {
    let mesh = TestMesh::new(1);
    let terms = mesh.terms("a", &["10.1.0.0/16"]);
    let first = mesh.intermediate.issue_node(&terms).unwrap();
    assert_eq!(first, mesh.intermediate.issue_node(&terms).unwrap());
}

#[test]
fn a_joiner_with_the_root_key_alone_rebuilds_the_anchor() {
    let mesh = TestMesh::new(1);
    let der = CertificateDer::from(mesh.root.der());
    let anchor = webpki::anchor_from_trusted_cert(&der).unwrap();
    let rebuilt = root_from_key(&mesh.mesh, &mesh.mesh_id, mesh.anchors.root_key());
    assert_eq!(anchor, rebuilt);

    let leaf = mesh.node("a", &[]).certificate.der.clone();
    let leaf = CertificateDer::from(&leaf[..]);
    let end_entity = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let intermediates = [CertificateDer::from(mesh.intermediate.der())];
    let now = std::time::Duration::from_secs(NOW.0 as u64);
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[rebuilt],
            &intermediates,
            rustls_pki_types::UnixTime::since_unix_epoch(now),
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .unwrap();
    let name = server_name(&mesh.mesh_id);
    let name = rustls_pki_types::ServerName::try_from(name.as_str()).unwrap();
    end_entity.verify_is_valid_for_subject_name(&name).unwrap();
}

#[test]
fn a_mesh_address_outside_the_grants_is_refused() {
    let mesh = TestMesh::new(1);
    let der = mesh.node("a", &[]).certificate.der.clone();
    let read = NodeCertificate::parse(&der).unwrap();
    let address = read.mesh_ipv4.unwrap();
    let grants = crate::trust::extension::Grants {
        mesh_id: mesh.mesh_id,
        enrolment_id: [0; 16],
        groups: Vec::new(),
        grants: Vec::new(),
        mesh_ipv4: Some(address),
        limits: Vec::new(),
        subject: None,
    };
    let refusal = crate::trust::extension::Grants::decode(&grants.encode()).unwrap_err();
    assert_eq!(refusal.code, Code::Malformed);
}

#[test]
fn certificates_of_others_are_refused_with_their_reason() {
    let ours = TestMesh::new(1);
    let refused = |mesh: &TestMesh| {
        let leaf = mesh.node("a", &[]).certificate.der.clone();
        ours.anchors.check_chain(&leaf, None).unwrap_err().code
    };
    assert_eq!(refused(&TestMesh::new(2)), Code::OtherMesh);
    // Another CA with the same name and mesh id.
    assert_eq!(refused(&TestMesh::with_id(2, ours.mesh_id)), Code::UnknownIssuer);
    // Our intermediate's name on another's signature.
    let root = RootCa::create(&[9; 32], &ours.mesh, &ours.mesh_id, NOW).unwrap();
    let forged = root.issue_intermediate(&ours.intermediate.seed(), NOW).unwrap();
    let mut leaf = forged.issue_node(&ours.terms("a", &[])).unwrap().der.to_vec();
    assert!(ours.anchors.check_chain(&leaf, None).is_ok(), "same key, same name: the same issuer");
    let last = leaf.len() - 1;
    leaf[last] ^= 1;
    assert_eq!(ours.anchors.check_chain(&leaf, None).unwrap_err().code, Code::UntrustedChain);
}

#[test]
fn a_certificate_whose_issuer_left_the_bundle_is_refused() {
    let mut mesh = TestMesh::new(1);
    let leaf = mesh.node("a", &[]).certificate.clone();
    assert!(mesh.anchors.issuer_of(&leaf).is_some());
    let second = mesh.root.issue_intermediate(&[77; 32], NOW).unwrap();
    let bundle = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&second]);
    assert_eq!(mesh.anchors.install_bundle(&bundle), Ok(true));
    let refusal = mesh.anchors.check_chain(&leaf.der, None).unwrap_err();
    assert_eq!(refusal.code, Code::UnknownIssuer);
}

#[test]
fn ca_certificates_are_no_node_certificates_nor_the_other_way_round() {
    let mesh = TestMesh::new(1);
    for der in [mesh.root.der(), mesh.intermediate.der()] {
        assert_eq!(NodeCertificate::parse(der).unwrap_err().code, Code::Malformed);
    }
    let leaf = mesh.node("a", &[]).certificate.der.clone();
    assert!(Anchors::from_root(&leaf).is_err());
    assert!(Anchors::from_root(mesh.intermediate.der()).is_err());
    let mut trailing = leaf.to_vec();
    trailing.push(0);
    assert_eq!(mesh.anchors.check_chain(&trailing, None).unwrap_err().code, Code::Malformed);
}

#[test]
fn dates_are_judged_at_the_given_time_only() {
    let mut mesh = TestMesh::new(1);
    mesh.anchors.set_expiry(crate::trust::Expiry::Hard);
    let leaf = mesh.node("a", &[]).certificate.der.clone();
    let code = |at: Option<UnixTime>| mesh.anchors.check_chain(&leaf, at).map_err(|r| r.code).err();
    assert_eq!(code(None), None);
    assert_eq!(code(Some(NOW.plus(-601))), Some(Code::CertificateNotYetValid));
    assert_eq!(code(Some(NOW.plus(-600))), None);
    assert_eq!(code(Some(NOW.plus(366 * 24 * 3600))), Some(Code::CertificateExpired));
}

#[test]
fn a_certificate_never_outlives_its_issuer() {
    let mesh = TestMesh::new(1);
    let mut terms = mesh.terms("a", &[]);
    terms.not_before = UnixTime(5);
    terms.not_after = UnixTime(i64::MAX);
    let leaf = mesh.intermediate.issue_node(&terms).unwrap();
    assert!(leaf.not_before >= NOW.plus(-600));
    assert!(leaf.not_after <= NOW.plus(crate::limits::CA_CERTIFICATE_SECONDS));
    assert!(mesh.anchors.check_chain(&leaf.der, None).is_ok());
}

#[test]
fn bundles_need_the_roots_signature_the_mesh_and_a_newer_version() {
    let mut mesh = TestMesh::new(1);
    let held = mesh.anchors.signed_bundle().clone();
    assert_eq!(mesh.anchors.install_bundle(&held), Ok(false));
    let mut altered = held.clone();
    altered.signature = vec![0; 64].into();
    assert_eq!(mesh.anchors.install_bundle(&altered).unwrap_err().code, Code::BadSignature);
    let other = TestMesh::new(2);
    let foreign = other.anchors.signed_bundle().clone();
    assert_eq!(mesh.anchors.install_bundle(&foreign).unwrap_err().code, Code::BadSignature);
    let elsewhere = mesh.root.sign_bundle(&MeshId([9; 16]), 5, &[]);
    assert_eq!(mesh.anchors.install_bundle(&elsewhere).unwrap_err().code, Code::BadSignature);
    // A root's bundle with an intermediate that another root signed.
    let stranger = mesh.root.sign_bundle(&mesh.mesh_id, 5, &[&other.intermediate]);
    assert_eq!(mesh.anchors.install_bundle(&stranger).unwrap_err().code, Code::UntrustedChain);
    let newer = mesh.root.sign_bundle(&mesh.mesh_id, 5, &[&mesh.intermediate]);
    assert_eq!(mesh.anchors.install_bundle(&newer), Ok(true));
    assert_eq!(mesh.anchors.install_bundle(&held), Ok(false));
    assert_eq!(mesh.anchors.bundle_version(), 5);
}

#[test]
fn two_bundles_of_one_version_end_the_same_everywhere() {
    let mesh = TestMesh::new(1);
    let one = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[&mesh.intermediate]);
    let two = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[]);
    let (mut a, mut b) = (mesh.anchors.clone(), mesh.anchors.clone());
    for (anchors, order) in [(&mut a, [&one, &two]), (&mut b, [&two, &one])] {
        for bundle in order {
            anchors.install_bundle(bundle).unwrap();
        }
    }
    assert_eq!(a.signed_bundle(), b.signed_bundle());
}

#[test]
fn stored_ca_parts_read_back_and_mixed_ones_are_refused() {
    let mesh = TestMesh::new(1);
    let root = RootCa::from_parts(mesh.root.der(), &mesh.root.seed()).unwrap();
    assert_eq!(root.der(), mesh.root.der());
    let back = Intermediate::from_parts(mesh.intermediate.der(), &mesh.intermediate.seed());
    assert_eq!(back.unwrap().public(), mesh.intermediate.public());
    let mixed = RootCa::from_parts(mesh.root.der(), &mesh.intermediate.seed());
    assert_eq!(mixed.unwrap_err(), CaError::KeyMismatch);
    assert!(!format!("{root:?}").contains("1, 1, 1"));
}

/// What `openssl` says of chain and address blocks. Where there is no openssl the test says so by
/// failing: the CI image has it.
#[test]
fn openssl_verifies_the_chain_and_shows_the_blocks() {
    let mesh = TestMesh::new(1);
    let node = mesh.node("a", &["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24", "fd01::/64"]);
    let directory = std::env::temp_dir().join(format!("meshd-openssl-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let pem = |name: &str, der: &[u8]| {
        let path = directory.join(name);
        let body = data_encoding::BASE64.encode(der);
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let text = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let root = pem("root.pem", mesh.root.der());
    let intermediate = pem("intermediate.pem", mesh.intermediate.der());
    let leaf = pem("leaf.pem", &node.certificate.der);
    let run = |args: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new("openssl").args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
    };
    let at = NOW.0.to_string();
    let verify = ["verify", "-x509_strict", "-attime", &at, "-CAfile"].map(std::ffi::OsStr::new);
    let files =
        [root.as_os_str(), "-untrusted".as_ref(), intermediate.as_os_str(), leaf.as_os_str()];
    let verified = run(&[&verify[..], &files].concat());
    let shown = run(&[
        "x509".as_ref(),
        "-noout".as_ref(),
        "-text".as_ref(),
        "-in".as_ref(),
        leaf.as_os_str(),
    ]);
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(verified.0, "{}", verified.1);
    for text in ["URI:spiffe://prod/node/a", "10.1.0.0-10.1.2.255", "fd01::/64"] {
        assert!(shown.1.contains(text), "{text} is not in\n{}", shown.1);
    }
}

#[test]
fn issuing_is_possible_for_as_many_grants_as_are_read() {
    let mesh = TestMesh::new(1);
    let many: Vec<String> =
        (1..crate::limits::GRANTS).map(|i| format!("2001:db8:{:x}::/48", i * 2)).collect();
    let grants: Vec<&str> = many.iter().map(String::as_str).collect();
    let node = mesh.node("a", &grants);
    assert!(node.certificate.der.len() < 16_000, "{}", node.certificate.der.len());
    assert!(mesh.anchors.check_chain(&node.certificate.der, Some(NOW)).is_ok());
}
