//! Certificates whose signed part is the fuzzer's, under a signature that is right.

use ed25519_dalek::{Signer, SigningKey};

/// A DER element with its header.
pub fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or(0));
    } else {
        let bytes = length.to_be_bytes();
        let skip = bytes.iter().take_while(|byte| **byte == 0).count();
        out.push(0x80 | u8::try_from(bytes.len() - skip).unwrap_or(0));
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(content);
    out
}

/// The first element inside a SEQUENCE, with its header: of a certificate, the part that is signed.
pub fn first_inside(der: &[u8]) -> &[u8] {
    let inside = &der[header(der)..];
    let length = header(inside) + content_length(inside);
    &inside[..length]
}

fn header(der: &[u8]) -> usize {
    if der[1] < 0x80 { 2 } else { 2 + usize::from(der[1] & 0x7f) }
}

fn content_length(der: &[u8]) -> usize {
    let bytes = &der[2..header(der)];
    if bytes.is_empty() {
        usize::from(der[1])
    } else {
        bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
    }
}

/// A certificate around `signed_part`.
pub fn certify(signed_part: &[u8], seed: &[u8; 32]) -> Vec<u8> {
    let algorithm = element(0x30, &[0x06, 0x03, 0x2b, 0x65, 0x70]);
    let signature = SigningKey::from_bytes(seed).sign(signed_part).to_bytes();
    let bits = element(0x03, &[&[0], &signature[..]].concat());
    element(0x30, &[signed_part, &algorithm, &bits].concat())
}
