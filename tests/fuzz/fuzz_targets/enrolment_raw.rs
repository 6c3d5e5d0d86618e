//! A request for a certificate of arbitrary bytes, from a stranger: nothing is decided that no token and no member asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd_core::{
    limits,
    trust::{Known, decider},
};
use meshd_fuzz::world::{NOW, rng, world};
use meshd_proto::wire;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let world = world();
    let passed_on = decider(data, &world.anchors, |_| false).is_ok();
    let decided = world.signer().enrol(data, Known::default(), &[], NOW, &mut rng());
    match decided {
        Ok(enrolled) => {
            assert!(passed_on, "a signer takes what no member would pass on");
            let request = wire::EnrolRequest::decode(data).expect("a request");
            let body = wire::EnrolBody::decode(request.body).expect("its body");
            assert_eq!(body.identity_key[..], enrolled.key.0);
            assert!(enrolled.reply.encoded_len() <= limits::ENROL_MESSAGE);
        }
        Err(refused) => {
            let said = refused.to_string();
            assert!(said.len() < 4_096 && !said.chars().any(char::is_control), "{said:?}");
        }
    }
});
