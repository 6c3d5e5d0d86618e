//! The signer's ledger on disk: entries appended and fsynced one by one, never rewritten.
//!
//! Each is 4 bytes of length, 8 of checksum, and the entry. A crash while appending leaves an
//! incomplete last entry, of which nobody was told: it is cut off, a copy of the file kept. Damage anywhere else is an error,
//! since a forgotten entry could grant a prefix twice.

use sha2::{Digest, Sha256};

use super::{StateDir, StateError, durable};

/// A million entries.
const LARGEST: u64 = 1 << 30;
const HEADER: usize = 12;
/// No entry is larger: a length beyond it is damage, not a torn tail.
const ENTRY: usize = 64 << 10;

impl StateDir {
    /// Appends encoded entries; when this returns they survive a power loss.
    pub fn append_ledger(&self, entries: &[Vec<u8>]) -> Result<(), StateError> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| frame(entry)).collect();
        Ok(durable::append(&self.file("pki/ledger"), &bytes)?)
    }

    /// All entries in the order in which they were appended.
    pub fn read_ledger(&self) -> Result<Vec<Vec<u8>>, StateError> {
        let path = self.file("pki/ledger");
        let bytes = durable::read(&path, LARGEST)?.unwrap_or_default();
        let (entries, whole) = split(&bytes)
            .map_err(|at| StateError::damaged(&path, format!("entry at byte {at}")))?;
        if whole < bytes.len() {
            // If it was no crash but a bad disk, a person may still want to see it.
            let copy = self.file("pki/ledger.before-cut");
            durable::write(&copy, &bytes)?;
            tracing::warn!(copy = %copy.display(),
                "the last ledger entry was incomplete and is dropped: a crash cut it");
            durable::write(&path, &bytes[..whole])?;
        }
        Ok(entries)
    }
}

fn checksum(entry: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(entry);
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    short
}

pub(super) fn frame(entry: &[u8]) -> Vec<u8> {
    let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(HEADER + entry.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&checksum(entry));
    framed.extend_from_slice(entry);
    framed
}

/// The entries and the length of all complete ones; an error gives the position of a damaged one.
pub(super) fn split(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, usize), usize> {
    let (mut entries, mut at) = (Vec::new(), 0);
    while let Some(header) = bytes.get(at..at + HEADER) {
        // A file system may have lengthened the file and not written the data.
        if bytes[at..].iter().all(|byte| *byte == 0) {
            break;
        }
        let mut length = [0; 4];
        length.copy_from_slice(&header[..4]);
        let length = u32::from_be_bytes(length) as usize;
        if length > ENTRY {
            return Err(at);
        }
        let Some(entry) = bytes.get(at + HEADER..at + HEADER + length) else { break };
        if header[4..] != checksum(entry) {
            // The last one may have been cut by a crash with its blocks half written.
            return if at + HEADER + length == bytes.len() { Ok((entries, at)) } else { Err(at) };
        }
        entries.push(entry.to_vec());
        at += HEADER + length;
    }
    Ok((entries, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back_and_a_torn_tail_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.read_ledger().unwrap().is_empty());
        state.append_ledger(&[b"one".to_vec()]).unwrap();
        state.append_ledger(&[b"two".to_vec(), b"three".to_vec()]).unwrap();
        let path = dir.path().join("pki/ledger");
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(state.read_ledger().unwrap().len(), 3);
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(state.read_ledger().unwrap(), vec![b"one".to_vec(), b"two".to_vec()]);
        let copy = dir.path().join("pki/ledger.before-cut");
        assert_eq!(std::fs::read(copy).unwrap(), whole[..whole.len() - 1]);
        state.append_ledger(&[b"four".to_vec()]).unwrap();
        assert_eq!(state.read_ledger().unwrap()[2], b"four");
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.append_ledger(&[b"one".to_vec(), b"two".to_vec()]).unwrap();
        let path = dir.path().join("pki/ledger");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(state.read_ledger(), Err(StateError::Damaged { .. })));
    }
}
