//! A certificate of arbitrary bytes, as a node's and as a CA's. Whatever chains to the root is one that its signer issued.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{Anchors, NodeCertificate, valid_moment};
use meshd_fuzz::world::world;

fuzz_target!(|data: &[u8]| {
    let world = world();
    if let Ok(certificate) = NodeCertificate::parse(data) {
        assert_eq!(certificate.der, data);
        assert!(certificate.grants.is_sorted());
        assert!(certificate.mesh_addresses().len() <= 2);
    }
    let moment = valid_moment(&[data, world.anchors.root_der()]);
    assert!(moment.is_none_or(|at| at.0 > 0));
    if let Ok(certificate) = world.anchors.check_chain(data, None) {
        let known = world.members.iter().any(|member| member.identity.certificate.der == data);
        assert!(known, "a certificate of nobody chains: {certificate:?}");
    }
    if let Ok(anchors) = Anchors::from_root(data) {
        assert_eq!(anchors.root_der(), data);
        let again = Anchors::from_root(anchors.root_der()).expect("what was read");
        assert_eq!(again.mesh_id(), anchors.mesh_id());
    }
});
