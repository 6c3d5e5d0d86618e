//! Who has left from this host: a leave is final, whatever files say that identity once had.

use std::collections::BTreeSet;

use meshd_proto::NodeKey;

use super::{SMALL, StateDir, StateError, durable};

/// The oldest are dropped first; by then their certificates have ended many times over.
const MOST: usize = 4_096;
const LEFT_TOKEN: &str = "left-token";

impl StateDir {
    /// The identities that have left from here.
    pub fn left(&self) -> Result<BTreeSet<NodeKey>, StateError> {
        Ok(self.left_in_order()?.into_iter().collect())
    }

    /// Notes that an identity leaves; when this returns it survives a power loss.
    pub fn note_left(&self, key: &NodeKey) -> Result<(), StateError> {
        let mut keys = self.left_in_order()?;
        keys.retain(|known| known != key);
        keys.push(*key);
        let newest = &keys[keys.len().saturating_sub(MOST)..];
        let text: String = newest.iter().map(|key| format!("{key}\n")).collect();
        Ok(durable::write(&self.file("left"), text.as_bytes())?)
    }

    /// The SHA-256 of the token in the token file, when this host left last: it brings the host back no more.
    pub fn left_token(&self) -> Result<Option<[u8; 32]>, StateError> {
        let path = self.file(LEFT_TOKEN);
        let Some(kept) = durable::read(&path, SMALL)? else { return Ok(None) };
        let hash = kept.try_into().map_err(|_| StateError::damaged(&path, "it is not 32 bytes"))?;
        Ok(Some(hash))
    }

    /// Notes that token; when this returns it survives a power loss.
    pub fn note_left_token(&self, hash: &[u8; 32]) -> Result<(), StateError> {
        Ok(durable::write(&self.file(LEFT_TOKEN), hash)?)
    }

    fn left_in_order(&self) -> Result<Vec<NodeKey>, StateError> {
        let path = self.file("left");
        let text = durable::read(&path, SMALL)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines()
            .map(|line| line.trim().parse().map_err(|why| StateError::damaged(&path, why)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_is_known_at_the_next_start_too() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<NodeKey> = (1..=3).map(|n| NodeKey([n; 32])).collect();
        {
            let state = StateDir::open(dir.path()).unwrap();
            assert!(state.left().unwrap().is_empty());
            for key in keys.iter().chain(&keys) {
                state.note_left(key).unwrap();
            }
        }
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.left().unwrap(), keys.iter().copied().collect());
        assert_eq!(state.left_token().unwrap(), None);
        state.note_left_token(&[7; 32]).unwrap();
        // It outlives the membership.
        state.forget_membership().unwrap();
        assert_eq!(state.left().unwrap().len(), 3);
        assert_eq!(state.left_token().unwrap(), Some([7; 32]));
        std::fs::write(dir.path().join("left-token"), "what").unwrap();
        assert!(matches!(state.left_token(), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn the_list_is_bounded_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            NodeKey(bytes)
        };
        let text: String = (0..MOST).map(|n| format!("{}\n", key(n))).collect();
        std::fs::write(dir.path().join("left"), text).unwrap();
        state.note_left(&key(MOST)).unwrap();
        let left = state.left().unwrap();
        assert_eq!(left.len(), MOST);
        assert!(left.contains(&key(MOST)) && !left.contains(&key(0)));
        std::fs::write(dir.path().join("left"), "what\n").unwrap();
        assert!(matches!(state.left(), Err(StateError::Damaged { .. })));
        assert!(state.note_left(&key(1)).is_err(), "what is damaged is not written over");
    }
}
