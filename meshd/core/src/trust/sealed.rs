//! A root's key under a passphrase: what lies on a disk, or goes to a safe.
//!
//! The format is PKCS#8 with PBES2 (RFC 5958, RFC 8018), scrypt and AES-256, so that `openssl pkey` reads it too.
//! The public key stands before the PEM block in plain: which key it is can be told without opening it.

use data_encoding::HEXLOWER;
use pkcs8::{
    EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument,
    der::{Decode as _, pem::PemLabel as _},
    pkcs5::{EncryptionScheme, pbes2, scrypt},
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{secret::IdentityKey, signership::public_of};

/// scrypt's cost: the most memory that OpenSSL takes by default, and OWASP's number of passes for that.
const LOG_N: u8 = 14;
const R: u32 = 8;
const P: u32 = 5;
/// The most that is spent on a key that somebody else has sealed: bytes of scrypt, passes of PBKDF2.
const MEMORY: u64 = 256 << 20;
const PASSES: u32 = 10_000_000;
/// Longest text that is looked at.
const LONGEST: usize = 8 * 1024;
const PUBLIC: &str = "public key ";

/// Why a key is not sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SealError {
    /// It is no key at all.
    #[error("it is neither 64 hexadecimal digits nor a PEM block of a private key")]
    NotAKey,
    /// Another algorithm, or parameters that would cost too much.
    #[error("it is sealed in a way that is not read here: {0}")]
    Unreadable(String),
    /// The passphrase is wrong, or the file was changed.
    #[error("the passphrase does not open it")]
    WrongPassphrase,
    /// The key inside is not Ed25519.
    #[error("the key inside is not an Ed25519 key")]
    NotEd25519,
    /// It has no passphrase.
    #[error("a passphrase is needed")]
    NoPassphrase,
}

/// A key as its file has it.
#[derive(Debug)]
pub enum StoredKey {
    /// The seed itself.
    Plain(Zeroizing<[u8; 32]>),
    /// Under a passphrase; its public key, when the file says it.
    Sealed(Option<[u8; 32]>),
}

/// Seals a seed, under random salt and initialization vector. An empty passphrase seals nothing.
pub fn seal_key(
    seed: &[u8; 32],
    passphrase: &[u8],
    salt: [u8; 16],
    iv: [u8; 16],
) -> Result<Zeroizing<String>, SealError> {
    if passphrase.is_empty() {
        return Err(SealError::NoPassphrase);
    }
    let failed = |error: pkcs8::Error| SealError::Unreadable(error.to_string());
    let cost = scrypt::Params::new(LOG_N, R, P)
        .map_err(|error| SealError::Unreadable(error.to_string()))?;
    let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv)
        .map_err(|error| SealError::Unreadable(error.to_string()))?;
    let plain = IdentityKey::from_seed(seed).pkcs8_der();
    let info = PrivateKeyInfoRef::from_der(&plain)
        .map_err(|error| SealError::Unreadable(error.to_string()))?;
    let sealed: SecretDocument =
        info.encrypt_with_params(parameters, passphrase).map_err(failed)?;
    let pem = sealed
        .to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
        .map_err(|error| SealError::Unreadable(error.to_string()))?;
    let public = HEXLOWER.encode(&public_of(seed));
    Ok(Zeroizing::new(format!("{PUBLIC}{public}\n{}", &*pem)))
}

/// Reads what a key file holds, without opening what is sealed.
pub fn read_key(text: &[u8]) -> Result<StoredKey, SealError> {
    let text = text.trim_ascii();
    if let Ok(bytes) = HEXLOWER.decode(text).map(Zeroizing::new)
        && let Ok(seed) = <[u8; 32]>::try_from(bytes.as_slice())
    {
        return Ok(StoredKey::Plain(Zeroizing::new(seed)));
    }
    let (public, block) = split(text)?;
    match SecretDocument::from_pem(block) {
        Ok((EncryptedPrivateKeyInfoRef::PEM_LABEL, _)) => Ok(StoredKey::Sealed(public)),
        Ok((PrivateKeyInfoRef::PEM_LABEL, key)) => ed25519_seed(&key).map(StoredKey::Plain),
        _ => Err(SealError::NotAKey),
    }
}

/// The seed of a key file, by its passphrase if it is sealed.
pub fn open_key(text: &[u8], passphrase: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError> {
    if let StoredKey::Plain(seed) = read_key(text)? {
        return Ok(seed);
    }
    if passphrase.is_empty() {
        return Err(SealError::NoPassphrase);
    }
    let (public, block) = split(text.trim_ascii())?;
    let (_, sealed) = SecretDocument::from_pem(block).map_err(|_| SealError::NotAKey)?;
    let sealed = EncryptedPrivateKeyInfoRef::from_der(sealed.as_bytes())
        .map_err(|error| SealError::Unreadable(error.to_string()))?;
    check_cost(&sealed.encryption_algorithm)?;
    let opened = sealed.decrypt(passphrase).map_err(|_| SealError::WrongPassphrase)?;
    let seed = ed25519_seed(&opened)?;
    // Whoever changed the line before the block meant to deceive.
    if public.is_some_and(|public| public != public_of(&seed)) {
        return Err(SealError::WrongPassphrase);
    }
    Ok(seed)
}

fn split(text: &[u8]) -> Result<(Option<[u8; 32]>, &str), SealError> {
    let text = std::str::from_utf8(text).map_err(|_| SealError::NotAKey)?;
    if text.len() > LONGEST {
        return Err(SealError::NotAKey);
    }
    let begin = text.find("-----BEGIN ").ok_or(SealError::NotAKey)?;
    let (before, block) = text.split_at(begin);
    let public = before
        .trim()
        .strip_prefix(PUBLIC)
        .and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok())
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
    Ok((public, block))
}

fn check_cost(scheme: &EncryptionScheme) -> Result<(), SealError> {
    let unreadable = |why: &str| SealError::Unreadable(why.to_owned());
    let EncryptionScheme::Pbes2(parameters) = scheme else {
        return Err(unreadable("PBES1"));
    };
    let fits = match &parameters.kdf {
        pbes2::Kdf::Scrypt(cost) => {
            let memory = 128 * u128::from(cost.cost_parameter) * u128::from(cost.block_size);
            memory * u128::from(cost.parallelization) <= u128::from(MEMORY)
        }
        pbes2::Kdf::Pbkdf2(cost) => cost.iteration_count <= PASSES,
        _ => false,
    };
    if fits { Ok(()) } else { Err(unreadable("it asks for too much work")) }
}

fn ed25519_seed(key: &SecretDocument) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let info = PrivateKeyInfoRef::from_der(key.as_bytes()).map_err(|_| SealError::NotEd25519)?;
    // RFC 8410: an OCTET STRING of 32 bytes inside the OCTET STRING.
    let inner = info.private_key.as_bytes();
    let seed = match inner {
        [0x04, 0x20, seed @ ..] => <[u8; 32]>::try_from(seed).ok(),
        _ => None,
    };
    let is_ed25519 = info.algorithm.oid.as_bytes() == [0x2b, 0x65, 0x70];
    seed.filter(|_| is_ed25519).map(Zeroizing::new).ok_or(SealError::NotEd25519)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = [7; 32];

    #[test]
    fn what_was_sealed_is_opened_by_its_passphrase_and_by_no_other() {
        let sealed = seal_key(&SEED, b"correct horse", [1; 16], [2; 16]).unwrap();
        assert!(sealed.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{}", *sealed);
        assert!(!sealed.contains(&HEXLOWER.encode(&SEED)));
        let public = match read_key(sealed.as_bytes()).unwrap() {
            StoredKey::Sealed(public) => public,
            StoredKey::Plain(_) => panic!("it is in plain"),
        };
        assert_eq!(public, Some(public_of(&SEED)));
        assert_eq!(*open_key(sealed.as_bytes(), b"correct horse").unwrap(), SEED);
        assert_eq!(open_key(sealed.as_bytes(), b"wrong").unwrap_err(), SealError::WrongPassphrase);
        assert_eq!(open_key(sealed.as_bytes(), b"").unwrap_err(), SealError::NoPassphrase);
        assert_eq!(seal_key(&SEED, b"", [1; 16], [2; 16]).unwrap_err(), SealError::NoPassphrase);
    }

    #[test]
    fn a_line_that_names_another_key_opens_nothing() {
        let sealed = seal_key(&SEED, b"correct horse", [1; 16], [2; 16]).unwrap();
        let other = HEXLOWER.encode(&public_of(&[8; 32]));
        let lie = sealed.replace(&HEXLOWER.encode(&public_of(&SEED)), &other);
        assert_eq!(
            open_key(lie.as_bytes(), b"correct horse").unwrap_err(),
            SealError::WrongPassphrase
        );
    }

    #[test]
    fn plain_keys_are_hexadecimal_or_pem() {
        let hex = format!("{}\n", HEXLOWER.encode(&SEED));
        assert_eq!(*open_key(hex.as_bytes(), b"").unwrap(), SEED);
        let der = IdentityKey::from_seed(&SEED).pkcs8_der();
        let pem = pem("PRIVATE KEY", &der);
        assert_eq!(*open_key(pem.as_bytes(), b"any").unwrap(), SEED);
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        let sealed = seal_key(&SEED, b"p", [1; 16], [2; 16]).unwrap();
        for text in ["", "nonsense", &hex_of(31), &sealed[..sealed.len() / 2], &"x".repeat(9_000)] {
            let read = read_key(text.as_bytes());
            assert_eq!(read.unwrap_err(), SealError::NotAKey, "{text:?}");
        }
        // A certificate, and a key of another kind.
        let other = pem("CERTIFICATE", &[0x30, 0x00]);
        assert_eq!(read_key(other.as_bytes()).unwrap_err(), SealError::NotAKey);
        let x25519 = {
            let mut der = IdentityKey::from_seed(&SEED).pkcs8_der().to_vec();
            der[11] = 0x6e;
            pem("PRIVATE KEY", &der)
        };
        assert_eq!(read_key(x25519.as_bytes()).unwrap_err(), SealError::NotEd25519);
    }

    #[test]
    fn a_file_that_asks_for_too_much_work_is_not_opened() {
        let cost = scrypt::Params::new(20, 8, 1).unwrap();
        let parameters =
            pbes2::Parameters::generate_scrypt_aes256cbc(cost, &[1; 16], [2; 16]).unwrap();
        assert!(check_cost(&EncryptionScheme::Pbes2(parameters)).is_err());
    }

    fn hex_of(bytes: usize) -> String {
        "ab".repeat(bytes)
    }

    fn pem(label: &'static str, der: &[u8]) -> String {
        SecretDocument::try_from(der).unwrap().to_pem(label, LineEnding::LF).unwrap().to_string()
    }
}
