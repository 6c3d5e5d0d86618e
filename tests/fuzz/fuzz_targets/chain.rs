//! The signed part of a certificate of arbitrary bytes, correctly signed: by an intermediate as a node's, by the root as an
//! intermediate's. What is believed is read the same again, and speaks of this mesh.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::NodeCertificate;
use meshd_fuzz::{der, world::world};
use meshd_proto::wire;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let world = world();
    let node = der::certify(data, &world.intermediate.seed());
    if let Ok(certificate) = world.anchors.check_chain(&node, None) {
        assert_eq!(NodeCertificate::parse(&node).as_ref(), Ok(&*certificate));
        assert_eq!(certificate.mesh_id, *world.mesh_id());
        assert_eq!(certificate.mesh, *world.anchors.mesh());
        assert!(certificate.not_before <= certificate.not_after);
        let extra = certificate
            .mesh_ipv4
            .into_iter()
            .all(|own| certificate.grants.iter().any(|grant| grant.prefix.addr() == own));
        assert!(extra, "an address that is not granted");
    }
    let intermediate = der::certify(data, &world.root.seed());
    // Nobody but the root makes bundles: one with this certificate, and what the root would sign around it.
    let bundle = wire::IntermediateBundle {
        mesh_id: world.mesh_id().0.to_vec().into(),
        version: 7,
        certificates: vec![intermediate.into()],
        ..wire::IntermediateBundle::default()
    };
    let mut anchors = world.anchors.clone();
    let signed =
        meshd_fuzz::world::sign_bundle(&world.root, world.mesh_id(), &bundle.encode_to_vec());
    if anchors.install_bundle(&signed) == Ok(true) {
        assert_eq!((anchors.bundle_version(), anchors.intermediates().count()), (7, 1));
        let member = &world.liar().identity.certificate;
        let still = anchors.check_chain(&member.der, None);
        assert!(still.is_err() || anchors.issuer_key(member) == Some(world.intermediate.public()));
    }
});
