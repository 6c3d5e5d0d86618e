//! What certificates are said to say.

use proptest::prelude::*;

use crate::trust::{
    CertificateKind, describe,
    fixture::{NOW, TestMesh},
};

const DAY: i64 = 24 * 3600;

#[test]
fn a_nodes_certificate_is_told_whole() {
    let mesh = TestMesh::new(1);
    let mut terms = mesh.terms("db-1", &["10.1.0.0/24", "10.1.1.0/24", "10.2.0.0/16@24"]);
    terms.groups = vec!["db".into()];
    terms.limits = vec!["10.128.0.0/9".parse().unwrap()];
    terms.not_before = NOW;
    terms.not_after = NOW.plus(30 * DAY);
    let certificate = mesh.node_of("db-1", &terms).certificate;
    let said = describe(&certificate.der).unwrap();
    assert_eq!(said.kind, CertificateKind::Node);
    assert_eq!(said.mesh.as_ref().map(|mesh| mesh.as_str()), Some("prod"));
    assert_eq!(said.mesh_id, Some(mesh.mesh_id));
    assert_eq!(said.fingerprint, certificate.hash);
    assert_eq!((said.not_before, said.not_after), (NOW, NOW.plus(30 * DAY)));
    assert!(said.issuer.contains("meshd signer"), "{}", said.issuer);
    assert_eq!(said.serial.split(':').count(), 16, "{}", said.serial);
    let node = said.node.unwrap();
    assert_eq!((node.name.as_str(), node.key), ("db-1", certificate.key));
    assert_eq!(node.spiffe_id, "spiffe://prod/node/db-1");
    assert_eq!((node.groups, node.limits), (terms.groups, terms.limits));
    let grants: Vec<_> = node.grants.iter().map(|g| (g.prefix.to_string(), g.claim_len)).collect();
    let exact = |text: &str| (text.to_owned(), None);
    assert_eq!(
        grants,
        [exact("10.1.0.0/24"), exact("10.1.1.0/24"), ("10.2.0.0/16".to_owned(), Some(24))],
        "its own address is no grant to a reader"
    );
    assert_eq!(node.mesh_addresses, certificate.mesh_addresses());
    assert_eq!(node.renewal, (NOW.plus(18 * DAY), NOW.plus(21 * DAY)));
    // Adjacent ones are one block, as standard tools show them.
    let blocks = said.address_blocks.unwrap();
    assert_eq!(blocks[0], "10.1.0.0/23");
    assert_eq!(blocks[1], "10.2.0.0/16");
    assert_eq!(blocks.len(), 4, "{blocks:?}");
}

#[test]
fn the_cas_are_told_apart() {
    let mesh = TestMesh::new(1);
    let root = describe(mesh.root.der()).unwrap();
    assert_eq!((root.kind, root.path_length), (CertificateKind::Root, Some(1)));
    assert_eq!((root.mesh_id, root.subject.clone()), (Some(mesh.mesh_id), root.issuer.clone()));
    assert_eq!(root.public_key, *mesh.anchors.root_key());
    let signer = describe(mesh.intermediate.der()).unwrap();
    assert_eq!((signer.kind, signer.path_length), (CertificateKind::Intermediate, Some(0)));
    assert_eq!((signer.mesh, signer.mesh_id), (Some(mesh.mesh.clone()), None));
    assert_eq!(signer.issuer, root.subject);
    for ca in [root.address_blocks, signer.address_blocks] {
        assert_eq!(ca.unwrap(), ["0.0.0.0/0", "::/0"]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        prop_assert!(describe(&bytes).is_err());
        let mesh = TestMesh::new(1);
        for der in [&mesh.node("a", &["10.1.0.0/16"]).certificate.der[..], mesh.root.der()] {
            let mut changed = der.to_vec();
            let at = at.index(changed.len());
            changed[at] = to;
            let _ = describe(&changed).is_ok();
            prop_assert!(describe(&der[..at]).is_err());
            prop_assert!(describe(&[der, &bytes, &[1]].concat()).is_err());
        }
    }
}
