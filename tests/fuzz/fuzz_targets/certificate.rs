//! A certificate of arbitrary bytes, as a node's and as a CA's. What chains to the root is what the signer makes of what was
//! read, byte for byte: a certificate has no second form, and nothing in it goes unread.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{Anchors, NodeCertificate, NodeTerms, valid_moment};
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
        // The corpus remembers worlds whose signer had the same key, so nobody here may have this certificate.
        let again = world.intermediate.issue_node(&terms_of(&certificate)).expect("its own terms");
        assert_eq!(*certificate, again);
    }
    if let Ok(anchors) = Anchors::from_root(data) {
        assert_eq!(anchors.root_der(), data);
        let again = Anchors::from_root(anchors.root_der()).expect("what was read");
        assert_eq!(again.mesh_id(), anchors.mesh_id());
    }
});

fn terms_of(certificate: &NodeCertificate) -> NodeTerms {
    NodeTerms {
        mesh: certificate.mesh.clone(),
        mesh_id: certificate.mesh_id,
        name: certificate.name.clone(),
        key: certificate.key,
        enrolment_id: certificate.enrolment_id,
        groups: certificate.groups.clone(),
        grants: certificate.grants.clone(),
        mesh_ipv4: certificate.mesh_ipv4,
        limits: certificate.limits.clone(),
        subject: certificate.subject,
        not_before: certificate.not_before,
        not_after: certificate.not_after,
    }
}
