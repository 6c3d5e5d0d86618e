//! An answer to a request, as a joiner and as a member that renews see it: a certificate counts only for who asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::trust::{accept_renewal, accept_reply};
use meshd_fuzz::world::{NOW, world};
use meshd_proto::wire;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(reply) = wire::EnrolReply::decode(data) else { return };
    let world = world();
    let liar = &world.liar().identity.certificate;
    match accept_reply(&reply, &world.token, &liar.key, &liar.name) {
        Ok(enrolment) => {
            assert_eq!(
                (enrolment.certificate.key, &enrolment.certificate.name),
                (liar.key, &liar.name)
            );
            assert_eq!(enrolment.anchors.root_key(), world.anchors.root_key());
            assert!(enrolment.records.len() <= 16 && enrolment.not_granted.len() <= 64);
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 4_096 && !said.chars().any(char::is_control), "{said:?}");
        }
    }
    let mut anchors = world.anchors.clone();
    if let Ok(renewed) = accept_renewal(&reply, liar, &mut anchors, NOW) {
        assert_eq!((renewed.certificate.key, &renewed.certificate.name), (liar.key, &liar.name));
        assert_eq!(renewed.certificate.enrolment_id, liar.enrolment_id);
    }
    assert!(anchors.bundle_version() >= world.anchors.bundle_version());
});
