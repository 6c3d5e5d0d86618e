//! PEM (RFC 7468), so that standard tools read the certificates.

use data_encoding::BASE64;
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// A certificate as PEM.
pub(super) fn encode(der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The first certificate of a PEM file, DER.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>, String> {
    CertificateDer::from_pem_slice(text)
        .map(|der| der.as_ref().to_vec())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_encoded_is_decoded() {
        for length in [1, 48, 49, 500] {
            let der = vec![7; length];
            assert_eq!(super::decode(super::encode(&der).as_bytes()).unwrap(), der);
        }
        assert!(super::decode(b"nothing").is_err());
    }
}
