//! The key of the mesh's root: in plain, under a passphrase, or not on this host.

use meshd_core::trust::{Anchors, SealError, StoredKey, open_key, read_key};
use zeroize::Zeroizing;

use super::{SMALL, StateDir, StateError, durable};

const KEY: &str = "pki/root.key";
const NEXT: &str = "pki/root-next.key";

impl StateDir {
    /// The file that holds the root's key, if this host has one.
    pub fn root_key_text(&self) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        Ok(durable::read(&self.file(KEY), SMALL)?.map(Zeroizing::new))
    }

    /// Keeps the root's key as that text.
    pub fn save_root_key(&self, text: &str) -> Result<(), StateError> {
        Ok(durable::write(&self.file(KEY), text.as_bytes())?)
    }

    /// Takes the root's key off this host.
    pub fn remove_root_key(&self) -> Result<(), StateError> {
        Ok(durable::remove(&self.file(KEY))?)
    }

    /// Keeps the key of the root that comes next, beside the one that counts.
    pub fn save_next_root_key(&self, text: &str) -> Result<(), StateError> {
        Ok(durable::write(&self.file(NEXT), text.as_bytes())?)
    }

    /// Makes the next root's key the root's when `anchors` name it; one that they do not name was never used.
    pub fn settle_root(&self, anchors: &Anchors) -> Result<(), StateError> {
        let path = self.file(NEXT);
        let Some(text) = durable::read(&path, SMALL)?.map(Zeroizing::new) else { return Ok(()) };
        let public = public_of(&text).map_err(|why| StateError::damaged(&path, why))?;
        if public == Some(*anchors.root_key()) {
            self.save_root_certificate(anchors)?;
            durable::write(&self.file(KEY), &text)?;
        }
        Ok(durable::remove(&path)?)
    }
}

/// The public key of what a key file holds, when that can be told without a passphrase.
fn public_of(text: &[u8]) -> Result<Option<[u8; 32]>, SealError> {
    Ok(match read_key(text)? {
        StoredKey::Plain(_) => Some(meshd_core::trust::public_of(&*open_key(text, b"")?)),
        StoredKey::Sealed(public) => public,
    })
}
