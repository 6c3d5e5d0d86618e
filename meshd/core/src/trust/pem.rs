//! PEM (RFC 7468): certificates as standard tools read them, and all that is copied as text.

use data_encoding::BASE64;

/// The label of a certificate.
const CERTIFICATE: &str = "CERTIFICATE";
/// Sections of one file that are read.
const SECTIONS: usize = 64;

/// A certificate as PEM.
#[must_use]
pub fn encode(der: &[u8]) -> String {
    encode_as(CERTIFICATE, der)
}

/// The first certificate of a PEM file, DER.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, String> {
    let first = decode_all(text)?.into_iter().next();
    first.ok_or_else(|| "it holds no certificate (BEGIN CERTIFICATE)".to_owned())
}

/// All certificates of a PEM file, DER. Text between them, and sections of another kind, are no one's
/// business here.
pub fn decode_all(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    decode_as(CERTIFICATE, text)
}

/// `bytes` as a section of PEM.
pub(super) fn encode_as(label: &str, bytes: &[u8]) -> String {
    let body = BASE64.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// All sections of one label.
pub(super) fn decode_as(label: &str, text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let (mut sections, mut body) = (Vec::new(), None::<String>);
    for line in text.lines().map(str::trim) {
        match &mut body {
            None if line == begin => body = Some(String::new()),
            None => {}
            Some(collected) if line == end => {
                let bytes = BASE64.decode(collected.as_bytes());
                sections.push(bytes.map_err(|_| format!("a {label} in it is not base64"))?);
                body = None;
                if sections.len() > SECTIONS {
                    return Err(format!("it holds more than {SECTIONS} of {label}"));
                }
            }
            Some(collected) => collected.push_str(line),
        }
    }
    match body {
        None => Ok(sections),
        Some(_) => Err(format!("it is cut off: `{end}` is missing")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        for length in [1, 48, 49, 500] {
            let der = vec![7; length];
            assert_eq!(decode(encode(&der).as_bytes()), Ok(der.clone()));
            let two = format!("subject=x\r\n{}# next\n{}", encode(&der), encode(&[1, 2]));
            assert_eq!(decode_all(two.as_bytes()), Ok(vec![der, vec![1, 2]]));
        }
        assert!(decode(b"nothing").is_err());
    }

    #[test]
    fn damage_is_named() {
        let text = encode(&[7; 100]);
        for cut in 30..text.len() - 1 {
            let error = decode(&text.as_bytes()[..cut]).unwrap_err();
            assert!(error.contains("cut off"), "{cut}: {error}");
        }
        assert!(decode(text.replace('B', "!").as_bytes()).is_err());
        let broken = text.replacen("Bw", "!!", 1);
        assert!(decode(broken.as_bytes()).unwrap_err().contains("base64"));
        assert!(decode(&[0xff, 0xfe]).unwrap_err().contains("not text"));
        let many = encode(&[1]).repeat(100);
        assert!(decode_all(many.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<Vec<u8>>()) {
            let framed = [&b"-----BEGIN CERTIFICATE-----\n"[..], &text, b"\n-----END CERTIFICATE-----"];
            let _ = decode_all(&text).is_ok();
            prop_assert!(decode_all(&framed.concat()).map_or(true, |all| all.len() <= SECTIONS));
        }
    }
}
