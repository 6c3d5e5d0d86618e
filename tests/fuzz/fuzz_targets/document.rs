//! An identity document (JWT) and an issuer's keys (JWK set), as strangers and issuers send them. The first byte: bytes as they
//! are, header and claims that get encoded and a signature of zeros, or keys. What is read shows no secret, what is refused
//! says why in one plain line, and reading the same again gives the same.
#![no_main]

use data_encoding::BASE64URL_NOPAD;
use libfuzzer_sys::fuzz_target;
use meshd_core::trust::issuer::{Document, KeySet};

fuzz_target!(|data: &[u8]| {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 3 {
        0 => document(bytes),
        1 => document(&signed(bytes)),
        _ => {
            let read = KeySet::read(bytes);
            assert_eq!(
                read.as_ref().map(KeySet::len),
                KeySet::read(bytes).as_ref().map(KeySet::len)
            );
            match read {
                Ok(keys) => assert!(keys.len() <= 64, "{} keys", keys.len()),
                Err(why) => plain(&why),
            }
        }
    }
});

fn document(bytes: &[u8]) {
    match (Document::read(bytes), Document::read(bytes)) {
        (Ok(read), Ok(again)) => {
            let shown = format!("{read:?}");
            assert_eq!(shown, format!("{again:?}"));
            let text = String::from_utf8_lossy(bytes.trim_ascii());
            let signature = text.rsplit('.').next().unwrap_or("");
            assert!(signature.len() < 16 || !shown.contains(signature), "its secret is shown");
            assert!(bytes.trim_ascii().len() <= 8 * 1024, "longer than a document may be");
        }
        (Err(refusal), Err(_)) => plain(&refusal.to_string()),
        _ => panic!("read and refused"),
    }
}

/// Header and claims, with a new line between them, as a JWT.
fn signed(bytes: &[u8]) -> Vec<u8> {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (header, claims) = bytes.split_at(at);
    let parts = [header, claims, &[0; 64]].map(|part| BASE64URL_NOPAD.encode(part));
    parts.join(".").into_bytes()
}

fn plain(why: &str) {
    assert!(!why.is_empty() && why.len() < 4_096 && !why.chars().any(char::is_control), "{why:?}");
}
